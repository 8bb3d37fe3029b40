"""Every case of every op: value against float64 NumPy, gradient against finite differences, bits for any threads."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import Tensor, gradcheck

from .cases import CASES
from .cases.base import Case

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
gradient_cases = pytest.mark.parametrize("case", [c for c in CASES if c.gradient], ids=lambda case: case.id)


def make_inputs(case: Case) -> list[np.ndarray]:
    return case.inputs(np.random.default_rng(7))


def run_with_gradients(case: Case, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The output and the gradient of every differentiable input for a fixed random output gradient."""
    wanted = range(len(arrays)) if case.differentiable is None else case.differentiable
    tensors = [Tensor(array, requires_grad=i in wanted) for i, array in enumerate(arrays)]
    out = case.run(*tensors)
    if not len(wanted):
        return [out.numpy().copy()]
    out.backward(Tensor(np.random.default_rng(8).standard_normal(out.shape)))
    return [out.numpy().copy()] + [tensors[i].grad.numpy().copy() for i in wanted]


@pytest.mark.unit
@every_case
def test_value_agrees_with_float64(case: Case, tier: str) -> None:
    arrays = make_inputs(case)
    expected = case.reference(*[array.astype(np.float64) for array in arrays])
    actual = case.run(*[Tensor(array) for array in arrays]).numpy().astype(np.float64)
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-12)
    assert error <= case.tolerance, f"{case.id} on {tier}: relative error {error:.2e}"


@pytest.mark.gradient
@gradient_cases
def test_gradient_agrees_with_finite_differences(case: Case, tier: str) -> None:
    errors = gradcheck.errors(case.run, make_inputs(case), differentiable=case.differentiable)
    assert max(errors.values(), default=0.0) < gradcheck.LIMIT, f"{case.id} on {tier}: {errors}"


@pytest.mark.unit
@every_case
def test_same_bits_for_any_thread_count(case: Case, tier: str, threads: None) -> None:
    arrays = make_inputs(case)
    results = []
    for count in (1, 2, 3):
        cpu.set_num_threads(count)
        results.append(run_with_gradients(case, arrays))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tobytes() == two.tobytes(), case.id


@pytest.mark.architecture
def test_every_registered_op_has_a_case() -> None:
    missing = set(autograd.OPS) - {case.op for case in CASES}
    assert not missing, f"ops without a case in tests/kernels/cases: {sorted(missing)}"
    unknown = {case.op for case in CASES} - set(autograd.OPS)
    assert not unknown, f"cases of ops that autograd does not export: {sorted(unknown)}"
