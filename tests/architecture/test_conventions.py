"""What the house agreed on: short files, documented names, kernels without the GIL, one stem an op."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .sources import PACKAGE, ROOT, files, functions, module, name, statements, text

pytestmark = pytest.mark.architecture
MOST_LINES = 600
MOST_COLUMNS = 120
MOST_LINES_OF_A_FUNCTION = 60
CODE = (".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".sh")
KERNELS = {"matmul": "gemm"}  # families whose kernel has another name
FAMILIES = sorted(path.stem for path in (PACKAGE / "autograd" / "ops").glob("*.pyx"))


# ---------------------------------------------------------------------- files
def test_no_file_is_longer_than_six_hundred_lines() -> None:
    checked = [path for path in files() if path.name not in ("uv.lock", "edges.md")]  # both are generated
    assert len(checked) > 150
    assert [f"{name(path)}: {n}" for path in checked if (n := text(path).count("\n")) > MOST_LINES] == []


def test_no_line_is_wider_than_120_columns() -> None:
    checked = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", *files(*CODE)]
    assert len(checked) > 150
    wide = [
        f"{name(path)}:{number}"
        for path in checked
        for number, line in enumerate(text(path).splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert wide == []


def test_no_function_is_longer_than_sixty_lines() -> None:
    found = [(title, lines) for path in files(*CODE) for title, lines in functions(path)]
    assert sum(".py:" in title for title, _ in found) > 1000
    assert sum(".pyx:" in title for title, _ in found) > 300
    assert sum(".c:" in title for title, _ in found) > 100
    assert [f"{title}: {lines}" for title, lines in found if lines > MOST_LINES_OF_A_FUNCTION] == []


@pytest.mark.parametrize(
    ("suffix", "source"),
    [
        (".py", "class A:\n    def f(\n        self,\n    ):\n        pass\n\n\nx = 1\n"),
        (
            ".pyx",
            "cdef int g(int a) nogil\n\n\ncdef int f(int a,\n           int b):\n    return 0\n\n    # end\n\nx = 1",
        ),
        (
            ".c",
            "enum { A };\nstatic int g(void) { return 0; }\nstatic int\nf(int a) {\n    if (a) {\n    }\n}\nint x;\n",
        ),
    ],
)
def test_a_function_s_lines_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, source: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(source)
    monkeypatch.setattr(f"{functions.__module__}.ROOT", tmp_path)
    lengths = {title.rpartition(" ")[2]: lines for title, lines in functions(path)}
    assert lengths["f"] == {".py": 4, ".pyx": 5, ".c": 5}[suffix]


def test_no_file_names_a_machine_or_a_registry() -> None:
    paths = re.compile(r"(?<![\w.])/(root|home|work|opt|mnt|Users)/\w")
    hosts = re.compile("|".join([r"pypi\.org", "pythonhosted", "artifactory", r"index-url\s*=?\s*http", r"/simple/"]))
    own = Path(__file__).resolve()
    wrong = [
        f"{name(path)}: {line.strip()}"
        for path in files()
        if path.resolve() != own
        for line in text(path).splitlines()
        if paths.search(line) or hosts.search(line)
    ]
    assert wrong == []


def test_no_command_swallows_its_failure() -> None:
    for path in [ROOT / "Makefile", *files(under=(".ci",)), *files(".sh")]:
        assert not re.search(r"\|\|\s*(true|:|exit 0)|^\s*-\$\(PYTHON\)|set \+e", text(path), re.MULTILINE), name(path)


# ---------------------------------------------------------------------- names
def undocumented(source: str, dotted: str) -> Iterator[str]:
    """The public modules, classes, functions and methods of a .py file that say nothing of themselves.

    An override stands here too; see `inherited`.
    """
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield dotted
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{dotted}.{node.name}"
        for method in node.body if isinstance(node, ast.ClassDef) else []:
            if not isinstance(method, ast.FunctionDef) or method.name.startswith("_") or is_beside(method):
                continue
            if not ast.get_docstring(method):
                yield f"{dotted}.{node.name}.{method.name}"


def is_beside(method: ast.FunctionDef) -> bool:
    """A property's setter is documented by its getter, an overload by what it declares."""
    return any(ast.unparse(decorator).endswith((".setter", "overload")) for decorator in method.decorator_list)


def inherited(dotted: str) -> bool:
    """Whether the method `dotted` is documented where it comes from."""
    owner, _, method = dotted.rpartition(".")
    where, _, class_name = owner.rpartition(".")
    try:
        found = getattr(importlib.import_module(where), class_name, None)
    except ImportError:
        return False
    if not inspect.isclass(found):
        return False
    return any(getattr(getattr(base, method, None), "__doc__", None) for base in found.__mro__[1:])


def test_every_public_name_in_python_has_a_docstring() -> None:
    empty = {path for path in files(".py", under=("entrenar",)) if not text(path).strip()}
    found = [
        dotted
        for path in files(".py", under=("entrenar",))
        if path not in empty
        for dotted in undocumented(text(path), module(path))
        if not inherited(dotted)
    ]
    assert found == []


def stub_names(source: str) -> Iterator[str]:
    """The public functions, classes and methods that a stub declares; Cython's attributes cannot have docstrings."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name
            for member in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and not is_data(member):
                    yield f"{node.name}.{member.name}"


def is_data(member: ast.FunctionDef) -> bool:
    """Whether a stub declares an attribute that may be one of the C struct."""
    return any(ast.unparse(decorator) == "property" for decorator in member.decorator_list)


def spoken(value: object, short: str) -> str:
    """The docstring without the signature that Cython puts in front of it."""
    said = (getattr(value, "__doc__", None) or "").strip()
    return re.sub(rf"^([\w.]+\.)?{short}\(.*\)( ?->.*)?$", "", said, count=1, flags=re.MULTILINE).strip()


def test_every_public_name_of_a_compiled_module_has_a_docstring() -> None:
    silent, seen = [], 0
    for path in files(".pyi", under=("entrenar",)):
        compiled = importlib.import_module(module(path))
        for dotted in stub_names(text(path)):
            value: object = compiled
            for part in dotted.split("."):
                value = getattr(value, part)
            seen += 1
            if not spoken(value, dotted.rpartition(".")[2]):
                silent.append(f"{module(path)}.{dotted}")
    assert seen > 80
    assert silent == []


# ---------------------------------------------------------------------- kernels
def without_gil(source: str) -> list[str]:
    """The declarations of functions that run without the GIL."""
    return [
        line for line in statements(source).splitlines() if re.match(r"\s*cdef\s.*\)[^=]*\bnogil:?\s*(#.*)?$", line)
    ]


def slow(declaration: str) -> bool:
    """Whether each call of it from a parallel loop takes the GIL to ask for an exception."""
    return not re.search(r"\)[^)]*\b(noexcept|except)\b", declaration)


def test_functions_without_the_gil_do_not_ask_for_exceptions() -> None:
    declarations = {
        f"{name(path)}: {line.strip()}"
        for path in files(".pyx", ".pxd", under=("entrenar",))
        for line in without_gil(text(path))
        if "extern" not in line
    }
    assert len(declarations) > 100
    assert sorted(line for line in declarations if slow(line)) == []


def test_a_function_that_asks_for_exceptions_is_seen() -> None:
    source = "cdef void f(\n    float* y,\n    Py_ssize_t n) nogil:\n    pass\ncdef int g(int n) except -1 nogil:\n"
    found = without_gil(source)
    assert [slow(line) for line in found] == [True, False]


def test_kernels_do_not_import_numpy() -> None:
    for path in files(".pyx", ".pxd", under=("entrenar",)):
        assert not re.search(r"\bcimport numpy|from numpy cimport", text(path)), name(path)
    for path in files(".pyx", under=("entrenar/_kernels",)):
        assert not re.search(r"^\s*(import|from) numpy", text(path), re.MULTILINE), name(path)


def test_openmp_is_asked_in_one_place() -> None:
    asking = re.compile(r"\bGOMP_\w+\(|\bomp_\w+|cimport openmp|from openmp cimport|#include [<\"]omp\.h|#pragma omp")
    callers = {
        name(path) for path in files(".pyx", ".pxd", ".c", ".h", under=("entrenar",)) if asking.search(text(path))
    }
    assert callers == {"entrenar/_kernels/team_calls.c"}


def test_c_has_no_macros_that_read_variables_around_them() -> None:
    # what pastes names, and an empty asm for a float or a vector: none reads a variable that is not its argument
    allowed = {"TIER_PASTE_", "TIER_PASTE", "TIERED", "QUOTE_", "QUOTE", "ROUNDED"}
    found = {
        f"{name(path)}: {macro}"
        for path in files(".c", ".h", under=("entrenar",))
        for macro in re.findall(r"^\s*#\s*define (\w+)\(", text(path), re.MULTILINE)
        if macro not in allowed
    }
    assert found == set()


def test_kernels_allocate_nothing_themselves() -> None:
    for path in files(".pyx", ".c", under=("entrenar/_kernels",)):
        if path.name not in ("cpu.pyx", "scratch.c", "team.c"):
            assert not re.search(r"\b(m|c|re)alloc\b|\baligned_alloc\b|\bfree\(", text(path)), name(path)


# ---------------------------------------------------------------------- one op, one stem
@pytest.mark.parametrize("stem", FAMILIES)
def test_every_part_of_a_family_has_its_stem(stem: str) -> None:
    wanted = [
        f"entrenar/_kernels/{KERNELS.get(stem, stem)}.pyx",
        f"entrenar/_kernels/{KERNELS.get(stem, stem)}.pxd",
        f"entrenar/autograd/ops/{stem}.pyi",
        f"tests/kernels/cases/{stem}.py",
    ]
    assert [part for part in wanted if not (ROOT / part).exists()] == []
    names = {stem, KERNELS.get(stem, stem)}
    tests = [ROOT / "tests" / folder / f"test_{part}.py" for folder in ("kernels", "autograd") for part in names]
    assert any(path.exists() for path in tests), f"no test file of {stem}"


def test_no_kernel_lacks_a_user_above() -> None:
    kernels = {path.stem for path in (PACKAGE / "_kernels").glob("*.pyx")}
    below = {"profile", "gemv"}  # which kernels use
    assert all(f"entrenar._kernels.{stem} cimport" in text(PACKAGE / "_kernels" / "gemm.pyx") for stem in below)
    kernels -= {*below, "peak"}  # a measurement: observe/peak.py runs it
    above = "".join(text(path) for path in files(".pyx", under=("entrenar/autograd", "entrenar/optim")))
    assert {stem for stem in kernels if f"entrenar._kernels.{stem} cimport" not in above} == set()
    assert {KERNELS.get(stem, stem) for stem in FAMILIES} <= kernels


# ---------------------------------------------------------------------- tests
def marks(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> set[str]:
    """The pytest marks on a function or class, or of a whole module."""
    if isinstance(node, ast.Module):
        values = [
            statement.value
            for statement in node.body
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark"
        ]
    else:
        values = list(node.decorator_list)
    return set(re.findall(r"pytest\.mark\.(\w+)", " ".join(ast.unparse(value) for value in values)))


def unmarked(source: str, categories: set[str]) -> Iterator[str]:
    """The tests of a file that no category names."""
    tree = ast.parse(source)
    aliases = {
        ast.unparse(node.targets[0]): set(re.findall(r"pytest\.mark\.(\w+)", ast.unparse(node.value)))
        for node in tree.body
        if isinstance(node, ast.Assign)
    }

    def visit(body: list[ast.stmt], above: set[str]) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            own = above | marks(node)
            own |= {mark for decorator in node.decorator_list for mark in aliases.get(ast.unparse(decorator), ())}
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, own)
            elif node.name.startswith("test_") and not own & categories:
                yield node.name

    yield from visit(tree.body, marks(tree))


def test_every_test_belongs_to_a_category() -> None:
    categories = set(re.findall(r'^    "(\w+): ', text(ROOT / "pyproject.toml"), re.MULTILINE))
    assert {"unit", "gradient", "architecture", "slow"} <= categories
    found = [
        f"{name(path)}::{test}"
        for path in files(".py", under=("tests",))
        if path.name.startswith("test_")
        for test in unmarked(text(path), categories)
    ]
    assert found == []


def test_a_test_without_a_category_is_seen() -> None:
    source = (
        "fast = pytest.mark.unit\n@fast\ndef test_a(): ...\n@pytest.mark.parametrize('x', [1])\ndef test_b(x): ...\n"
    )
    assert list(unmarked(source, {"unit"})) == ["test_b"]
