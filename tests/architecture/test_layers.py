"""Each floor of the house imports only from its own and those below it."""

from __future__ import annotations

import ast
import re

import pytest

from .sources import PACKAGE, files, module, name, statements, text

pytestmark = pytest.mark.architecture

# From the ground up. A module or package of entrenar/ that is missing here fails the test: it has no floor yet.
FLOORS = (
    "errors",
    "config",
    "_kernels",
    "autograd",
    "observe",
    "io",
    "optim",
    "data",
    "nn",
    "models",
    "adapters",
    "llama",
    "lora",
    "qlora",
    "train",
)
FLOORS += ("cli",)
# Within autograd: operations stand on the tape, the tape on tensors.
OPERATIONS = "entrenar.autograd.ops"
BELOW_OPERATIONS = {f"entrenar.autograd.{stem}" for stem in ("tensor", "tape", "quantized", "random")}


def floor(dotted: str) -> str | None:
    """The floor of a module; None for the package itself, which everything may import."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else None


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def python_imports(source: str, importer: str, is_package: bool) -> set[str]:
    """The modules of entrenar that a .py file imports when it runs, lazily or not; those for type checkers are none."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if for_type_checkers(node):
            for child in node.orelse:  # type: ignore[attr-defined]
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = importer.split(".")[: len(importer.split(".")) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            # `from entrenar import x` may import a module: both readings count
            found.update({base} | {f"{base}.{alias.name}" for alias in node.names if base == "entrenar"})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return {dotted for dotted in found if dotted.split(".")[0] == "entrenar"}


def cython_imports(source: str) -> set[str]:
    """The modules of entrenar that a .pyx or .pxd file imports or cimports, lazily or not."""
    found = set()
    for line in statements(source).splitlines():
        if match := re.match(r"\s*from\s+(entrenar[\w.]*)\s+c?import\s+(.+)", line):
            found.add(match[1])
            if match[1] == "entrenar":
                found.update(f"entrenar.{part.split()[0]}" for part in match[2].strip("() ").split(",") if part.strip())
        elif match := re.match(r"\s*c?import\s+(entrenar[\w.]*)", line):
            found.add(match[1])
    return found


def upward(importer: str, imported: set[str]) -> list[str]:
    """The imports that reach a higher floor."""
    own = floor(importer)
    if own is None:
        return []
    level = FLOORS.index(own)
    return sorted(dotted for dotted in imported if (up := floor(dotted)) is not None and FLOORS.index(up) > level)


def all_imports() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in files(".py", ".pyx", ".pxd", under=("entrenar",)):
        dotted = module(path)
        if path.suffix == ".py":
            imports = python_imports(text(path), dotted, path.name == "__init__.py")
        else:
            imports = cython_imports(text(path))
        found.setdefault(dotted, set()).update(imports)
    return found


def test_every_part_of_the_package_has_a_floor() -> None:
    parts = {path.name.split(".")[0] for path in PACKAGE.iterdir() if path.suffix in (".py", ".pyx") or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} - set(FLOORS) == set()


def test_each_floor_imports_only_from_those_below_it() -> None:
    imports = all_imports()
    assert len(imports) > 60
    assert sum(len(found) for found in imports.values()) > 200  # the reader of imports sees them
    wrong = [f"{importer} imports {dotted}" for importer in imports for dotted in upward(importer, imports[importer])]
    assert not wrong, "\n".join(wrong)


def test_the_tape_does_not_import_the_operations_that_stand_on_it() -> None:
    imports = all_imports()
    for dotted in BELOW_OPERATIONS:
        assert not {found for found in imports[dotted] if found.startswith(OPERATIONS)}, dotted


def test_kernels_include_no_header_from_above() -> None:
    for path in files(".c", ".h", under=("entrenar/_kernels",)):
        for included in re.findall(r'#include "([^"]+)"', text(path)):
            assert (PACKAGE / "_kernels" / included).exists() or (path.parent / included).exists(), name(path)


def test_kernels_hold_no_python_object() -> None:
    """No kernel has a `def` or an import, but cpu: it is also Python's view of the machine."""
    for path in files(".pyx", under=("entrenar/_kernels",)):
        if path.stem == "cpu":
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
    assert upward(importer, python_imports(source, importer, is_package=False))


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
    assert upward("entrenar._kernels.matmul", cython_imports(source))


def test_an_import_for_type_checkers_is_no_import() -> None:
    source = "if TYPE_CHECKING:\n    from entrenar.lora import LoRAConfig\n"
    assert python_imports(source, "entrenar.models.decoder", is_package=False) == set()
