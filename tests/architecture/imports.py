"""The imports of the package as a graph of modules: read from the sources of Python and Cython, never by importing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .sources import files, module, statements, text

# From the ground up. A module or package of entrenar/ that is missing here fails a test: it has no floor yet.
FLOORS = (
    ("errors",),
    ("config", "choices"),
    ("_kernels",),
    ("autograd",),
    ("observe",),
    ("io",),
    ("optim", "data"),
    ("distributed",),
    ("nn",),
    ("adapters", "models"),
    ("llama", "lora", "qlora"),
    ("train",),
    ("serve",),
    ("cli",),
    ("__main__",),
)


@dataclass
class Imports:
    """What a file imports: when it runs, lazily or not, and for type checkers only."""

    runtime: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)

    def __ior__(self, other: Imports) -> Imports:
        self.runtime |= other.runtime
        self.types |= other.types
        return self


def level(dotted: str) -> int | None:
    """The floor of a module, counted from the ground; None for the package itself, which everything may import."""
    parts = dotted.split(".")
    if len(parts) == 1:
        return None
    return next(index for index, floor in enumerate(FLOORS) if parts[1] in floor)


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def python_imports(source: str, importer: str, is_package: bool) -> Imports:
    """The modules of entrenar that a .py file imports; `from x import y` gives both x and x.y."""
    found = Imports()

    def visit(node: ast.AST, into: set[str]) -> None:
        if for_type_checkers(node):
            for child in node.body:  # type: ignore[attr-defined]
                visit(child, found.types)
            for child in node.orelse:  # type: ignore[attr-defined]
                visit(child, into)
            return
        if isinstance(node, ast.Import):
            into.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = importer.split(".")[: len(importer.split(".")) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            into.update({base} | {f"{base}.{alias.name}" for alias in node.names})
        for child in ast.iter_child_nodes(node):
            visit(child, into)

    visit(ast.parse(source), found.runtime)
    return Imports(*({name for name in names if _ours(name)} for names in (found.runtime, found.types)))


def cython_imports(source: str) -> Imports:
    """The modules of entrenar that a .pyx or .pxd file imports or cimports, lazily or not."""
    found: set[str] = set()
    for line in statements(source).splitlines():
        if match := re.match(r"\s*from\s+(entrenar[\w.]*)\s+c?import\s+(.+)", line):
            names = [part.split()[0] for part in match[2].strip("() ").split(",") if part.strip()]
            found |= {match[1]} | {f"{match[1]}.{name}" for name in names}
        elif match := re.match(r"\s*c?import\s+(entrenar[\w.]*)", line):
            found.add(match[1])
    return Imports(runtime=found)


def _ours(dotted: str) -> bool:
    return dotted.split(".")[0] == "entrenar"


def package_imports() -> dict[str, Imports]:
    """What each module imports, by dotted name, of modules that exist; a .pyx and its .pxd are one module."""
    graph: dict[str, Imports] = {}
    for path in files(".py", ".pyx", ".pxd", under=("entrenar",)):
        dotted = module(path)
        if path.suffix == ".py":
            imports = python_imports(text(path), dotted, path.name == "__init__.py")
        else:
            imports = cython_imports(text(path))
        graph.setdefault(dotted, Imports())
        graph[dotted] |= imports
    return {name: Imports(*(_modules(names, name, graph) for names in (imports.runtime, imports.types)))
            for name, imports in graph.items()}  # fmt: skip


def _modules(names: set[str], importer: str, graph: Mapping[str, Imports]) -> set[str]:
    """The modules among names; a package counts only where something else than its modules is taken from it."""
    modules = {name for name in names if name in graph and name != importer}
    attributes = {name.rpartition(".")[0] for name in names if name not in graph}
    inner = {name.rpartition(".")[0] for name in modules}
    return {name for name in modules if name not in inner or name in attributes}


def upward(importer: str, imported: set[str]) -> list[str]:
    """The imports that reach a higher floor, or another room of the same one."""
    own, room = level(importer), importer.split(".")[1:2]
    if own is None:
        return []
    found = []
    for dotted in imported:
        other = level(dotted)
        if other is not None and (other > own or (other == own and dotted.split(".")[1:2] != room)):
            found.append(dotted)
    return sorted(found)


def higher(importer: str, imported: set[str]) -> list[str]:
    """The imports that reach a higher floor; those for type checkers may point sideways."""
    own = level(importer)
    return sorted(d for d in imported if own is not None and (level(d) or 0) > own)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or not (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(root: str) -> None:
        work: list[tuple[str, Iterator[str]]] = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            name, rest = work[-1]
            step = next(rest, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    group = stack[stack.index(name) :]
                    del stack[stack.index(name) :]
                    if len(group) > 1 or name in graph[name]:
                        found.append(sorted(group))
            elif step not in index:
                index[step] = low[step] = len(index)
                stack.append(step)
                work.append((step, iter(sorted(graph[step]))))
            elif step in stack:
                low[name] = min(low[name], index[step])

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found
