"""Each floor of the house imports only from its own and those below it."""

from __future__ import annotations

import re

import pytest

from .imports import FLOORS, circles, cython_imports, higher, package_imports, python_imports, upward
from .sources import PACKAGE, files, name, statements, text

pytestmark = pytest.mark.architecture

# Within autograd: operations stand on the tape, the tape on tensors.
OPERATIONS = "entrenar.autograd.ops"
BELOW_OPERATIONS = {f"entrenar.autograd.{stem}" for stem in ("tensor", "tape", "quantized", "random")}


def test_every_part_of_the_package_has_a_floor() -> None:
    parts = {path.name.split(".")[0] for path in PACKAGE.iterdir() if path.suffix in (".py", ".pyx") or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} - {part for floor in FLOORS for part in floor} == set()


def test_each_floor_imports_only_from_those_below_it() -> None:
    graph = package_imports()
    assert len(graph) > 60
    assert sum(len(found.runtime) for found in graph.values()) > 200  # the reader of imports sees them
    wrong = [f"{name} imports {dotted}" for name in graph for dotted in upward(name, graph[name].runtime)]
    wrong += [f"{name} imports {dotted} for its types" for name in graph for dotted in higher(name, graph[name].types)]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    found = circles({name: imports.runtime for name, imports in package_imports().items()})
    assert not found, "\n".join(" - ".join(group) for group in found)


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}) == [["a", "b", "c"], ["e"]]


def test_the_tape_does_not_import_the_operations_that_stand_on_it() -> None:
    graph = package_imports()
    for dotted in BELOW_OPERATIONS:
        assert not {found for found in graph[dotted].runtime if found.startswith(OPERATIONS)}, dotted


def test_kernels_include_no_header_from_above() -> None:
    for path in files(".c", ".h", under=("entrenar/_kernels",)):
        for included in re.findall(r'#include "([^"]+)"', text(path)):
            assert (PACKAGE / "_kernels" / included).exists() or (path.parent / included).exists(), name(path)


def test_kernels_hold_no_python_object() -> None:
    """No kernel has a `def` or an import, but cpu, peak and profile: they are Python's view of machine and counters."""
    for path in files(".pyx", under=("entrenar/_kernels",)):
        if path.stem in ("cpu", "peak", "profile"):
            continue
        source = statements(text(path))
        assert not re.search(r"^\s*(def|class|cdef class|import)\s", source, re.MULTILINE), name(path)
        assert not re.search(r"\b(object|list|dict|tuple|str|with gil)\b(?=[ )])(?!\s*=)", code(source)), name(path)


def code(source: str) -> str:
    """Cython source without comments and docstrings."""
    return re.sub(r"#.*", "", re.sub(r'""".*?"""', "", source, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("entrenar.models.decoder", "from entrenar.lora import LoRAConfig"),
        ("entrenar.io.gguf", "def f():\n    from entrenar.models.config import LLaMAConfig"),
        ("entrenar.io.gguf", "import entrenar.data.loader as loader"),
        ("entrenar.optim.adam", "from entrenar import train"),
        ("entrenar.optim.adam", "from ..train import trainer"),
        ("entrenar.optim.adam", "if TYPE_CHECKING:\n    pass\nelse:\n    from entrenar import cli"),
    ],
)
def test_an_upward_import_in_python_is_seen(importer: str, source: str) -> None:
    assert upward(importer, python_imports(source, importer, is_package=False).runtime)


@pytest.mark.parametrize(
    "source",
    [
        "from entrenar.autograd.tensor cimport (\n    Node,\n    Tensor,\n)",
        "    from entrenar.autograd.ops import add",
        "cimport entrenar.optim.update",
        "from entrenar import train",
        "from entrenar cimport (\n    autograd,\n)",
    ],
)
def test_an_upward_import_in_cython_is_seen(source: str) -> None:
    assert upward("entrenar._kernels.gemm", cython_imports(source).runtime)


@pytest.mark.parametrize("condition", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_type_checkers_may_not_point_up(condition: str) -> None:
    source = f"if {condition}:\n    from entrenar.train import Trainer\n"
    found = python_imports(source, "entrenar.models.decoder", is_package=False)
    assert found.runtime == set()
    assert higher("entrenar.models.decoder", found.types)


def test_an_import_for_type_checkers_may_point_sideways() -> None:
    source = "if TYPE_CHECKING:\n    from entrenar.optim import Adam\n"
    found = python_imports(source, "entrenar.data.loader", is_package=False)
    assert not higher("entrenar.data.loader", found.types)
