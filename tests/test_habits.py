"""What people who know torch and transformers write."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import entrenar
from entrenar.adapters.base import adapter_layers
from entrenar.autograd import Tensor
from entrenar.data import DataLoader
from entrenar.errors import ConfigError, GraphError, ShapeError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.lora import DoRAConfig, LoRAConfig
from entrenar.optim import AdamW
from entrenar.qlora import QLoRAConfig
from tests.train.builders import DROPOUT, LENGTH, SHAPE, samples


@pytest.mark.unit
def test_models_tokenizers_and_loaders() -> None:
    model = LLaMAModel(SHAPE).to_lora(DROPOUT)
    assert [id(t) for t in model.parameters()] == [id(t) for _, t in model.trainable_parameters()]
    states = [[layer.training for _, layer in adapter_layers(m)] for m in (model.eval(), model.train(), model.eval())]
    assert len(set(states[0])) == 1 and states[0] == states[2] == [False] * len(states[0])
    tokens = np.arange(12)[None]
    assert np.array_equal(model(tokens).numpy(), model(tokens).numpy())
    model.train()
    AdamW(model.parameters(), lr=1e-3)
    tokenizer = Tokenizer.train(["a b c"] * 9, 262)
    one = tokenizer("a b")
    assert one["input_ids"][-2:] == tokenizer.encode("a b")[-2:] and set(one["attention_mask"]) == {1}
    assert tokenizer(["a b", "c"])["input_ids"][0] == one["input_ids"]
    with pytest.raises(
        ConfigError, match=r"return_tensors is no option here; ids come as lists, whole and without padd"
    ):
        tokenizer("a b", return_tensors="pt")
    loader = DataLoader(samples(), 2, LENGTH)
    first = [batch.tokens.tolist() for batch in loader]
    other = DataLoader(samples(), 2, LENGTH)
    assert len(first) == len(loader) and first == [other.next_batch().tokens.tolist() for _ in first]
    assert [batch.tokens.tolist() for batch in loader] != first  # the next epoch


@pytest.mark.unit
def test_the_version_is_an_attribute() -> None:
    assert entrenar.__version__ == entrenar._version(entrenar.Path(entrenar.__path__[0]))


VALUES = np.arange(6.0, dtype=np.float32).reshape(2, 3)


@pytest.mark.unit
@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("other", [VALUES.T.reshape(2, 3), 3, 3.0, np.float32(3), [0.0, 4.0, 2.0]])
def test_comparisons_are_elementwise_as_in_torch(compare: Callable[[Any, Any], Any], other: Any) -> None:
    torch = pytest.importorskip("torch")
    array = np.asarray(other)
    theirs = compare(torch.from_numpy(VALUES.copy()), torch.from_numpy(array) if array.ndim else float(array)).numpy()
    for ours in (Tensor(VALUES), Tensor(VALUES, requires_grad=True), Tensor(VALUES) * 1):
        found = compare(ours, other)
        assert found.dtype == bool and np.array_equal(found, theirs)
        if isinstance(other, np.ndarray):
            assert np.array_equal(compare(ours, Tensor(other)), theirs)
            assert np.array_equal(compare(Tensor(other), ours), compare(other, VALUES))
            assert np.array_equal(compare(other, ours), compare(other, VALUES))


@pytest.mark.unit
def test_equality_keeps_identity_where_python_needs_it() -> None:
    one, same = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert len({one, same, one}) == 2 and {one: 1, same: 2}[same] == 2 and hash(one) != hash(same)
    assert [(one == other, one != other) for other in (None, "text", object())] == [(False, True)] * 3
    assert 2 in one and 3 not in one
    assert one in [same, one][1:]
    with pytest.raises(ShapeError, match="ambiguous"):
        bool(Tensor([1.0, 2.0]))
    with pytest.raises(ShapeError, match=r"shapes \(2,\) and \(3,\), which do not broadcast; use `is`"):
        one == Tensor([1.0, 2.0, 3.0])  # noqa: B015
    with pytest.raises(TypeError):
        one < "text"  # type: ignore[operator]  # noqa: B015
    assert np.array_equal(Tensor([0.1, 1], dtype="bfloat16") == np.float32(1), [False, True])


@pytest.mark.unit
@pytest.mark.parametrize(
    "call",
    [
        *(np.exp, np.log, np.sqrt, np.tanh, np.negative, np.sum, np.mean, np.max, np.transpose),
        *(lambda t: np.add(t, 2), lambda t: np.power(t, 3), lambda t: np.sum(t, axis=1), lambda t: np.mean(t, 0)),
        *(lambda t: np.concatenate([t, t * 2]), lambda t: np.reshape(t, (3, 2)), lambda t: np.multiply(VALUES, t)),
        *(lambda t: np.float32(2) / t, lambda t: VALUES - t, lambda t: np.matmul(t, t.T), lambda t: VALUES.T @ t),
    ],
)
def test_numpy_functions_with_an_operation_of_the_tape_keep_the_graph(call: Callable[[Any], Any]) -> None:
    tensor = Tensor(VALUES + 1, requires_grad=True)
    result = call(tensor)
    assert isinstance(result, Tensor) and result.requires_grad
    array = (VALUES + 1).astype(np.float64)
    expected = np.concatenate([array, array * 2]) if result.shape == (4, 3) else call(array)
    assert np.allclose(result.numpy(), expected, rtol=1e-5)
    result.sum().backward()
    assert tensor.grad is not None and tensor.grad.shape == tensor.shape


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sin", np.sin),
        ("add.reduce", np.add.reduce),
        ("stack", lambda t: np.stack([t, t])),
        ("linalg.norm", np.linalg.norm),
        ("std", np.std),
        ("maximum", lambda t: np.maximum(VALUES, t)),
        ("add", lambda t: np.add(t, t, out=VALUES.copy())),
        ("mean", lambda t: np.mean(t, dtype=np.float64)),
        ("add", lambda t: operator.iadd(VALUES.copy(), t)),
    ],
)
def test_numpy_functions_that_would_leave_the_graph_are_refused(name: str, call: Callable[[Any], Any]) -> None:
    tensor = Tensor(VALUES, requires_grad=True)
    for given in (tensor, tensor * 2):
        with pytest.raises(GraphError, match=rf"numpy\.{name} .* would leave the graph.*tensor\.numpy\(\)") as refused:
            call(given)
        assert (f"entrenar.autograd.{name} records it" in str(refused.value)) is (name in ("add", "mean"))
    for allowed in (tensor.numpy(), Tensor(VALUES), tensor.detach()):  # as in torch: no gradient is lost
        found = call(allowed)
        assert type(found) is not Tensor and np.array_equal(found, call(VALUES))


@pytest.mark.unit
def test_numpy_functions_without_a_gradient_take_any_tensor() -> None:
    tensor = Tensor(VALUES, requires_grad=True)
    assert np.isfinite(tensor).all() and np.array_equal(tensor, VALUES) and np.allclose(tensor * 2, VALUES * 2)
    assert np.argmax(tensor) == 5 and np.shape(tensor) == (2, 3) and np.count_nonzero(tensor) == 5
    assert np.array_equal(np.where(tensor > 2, 1, 0), VALUES > 2)
    assert np.array_equal(np.sin(Tensor([1, 2], dtype="bfloat16")), np.sin(Tensor([1, 2], dtype="bfloat16").numpy()))


@pytest.mark.unit
def test_a_tensor_of_one_element_is_a_number() -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = Tensor(2.75, requires_grad=True), torch.tensor(2.75, requires_grad=True)
    for call in (float, int, bool, lambda t: t.item(), lambda t: f"{t:.1f} {t}", lambda t: t.tolist()):
        assert call(ours) == call(theirs.detach())
    rows = Tensor(VALUES, requires_grad=True)
    assert len(rows) == 2 and [row.tolist() for row in rows] == VALUES.tolist()
    assert all(row.requires_grad for row in rows)
    for call in (float, int):
        with pytest.raises(ShapeError, match="one element"):
            call(rows)
    with pytest.raises(TypeError):
        len(ours)
    with pytest.raises((TypeError, ValueError)):
        f"{rows:.2f}"


@pytest.mark.unit
@pytest.mark.parametrize("kind", [LoRAConfig, DoRAConfig, QLoRAConfig])
def test_adapters_are_configured_with_the_names_of_peft(kind: Any) -> None:
    peft = pytest.importorskip("peft")
    given: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj"]}
    given |= {"bias": "none", "task_type": "CAUSAL_LM", "use_rslora": True}
    theirs, ours = peft.LoraConfig(**given), kind(**given)
    assert (ours.rank, ours.alpha, ours.dropout) == (theirs.r, theirs.lora_alpha, theirs.lora_dropout)
    own = kind(rank=8, alpha=16, dropout=0.1, target_modules=["q_proj"], use_rslora=True)
    assert ours == own == replace(own, rank=8) and kind(8, 16, 0.1, ["q_proj"], True) == own
    with pytest.raises(ConfigError, match=r"r=8 and rank=4; keep one"):
        kind(r=8, rank=4)
    with pytest.raises(ConfigError, match=r"task_type='SEQ_CLS' is not supported"):
        kind(r=8, task_type="SEQ_CLS")
    with pytest.raises(ConfigError, match=r"rank is 0, expected at least 1"):
        kind(r=0)
    with pytest.raises(TypeError, match="lora_rank"):
        kind(lora_rank=8)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["state_dict", "load_state_dict", "zero_grad", "to", "cuda", "half", "requires_grad_"])
def test_what_torch_has_and_a_model_has_not_is_answered_with_what_serves(name: str) -> None:
    model = LLaMAModel(SHAPE)
    assert not hasattr(model, name)
    for part in (model, model.model.layers[0]):
        with pytest.raises(AttributeError, match=rf"^{type(part).__name__} has no {name}; .+\.$"):
            getattr(part, name)
    with pytest.raises(AttributeError, match=r"^LLaMAModel has no nonsense\.$"):
        getattr(model, "nonsense")  # noqa: B009
