"""Write entrenar/_kernels/simd/*.pxd, what Cython sees of the C headers beside them; `--check` says which are stale.

Every header that simd/simd.h includes gets one; what stands below `#ifdef TIER` is for micro-kernels and left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SIMD = Path(__file__).resolve().parents[1] / "entrenar" / "_kernels" / "simd"
WIDTH = 120
STDINT = re.compile(r"\bu?int(?:8|16|32|64)_t\b")


@dataclass
class Header:
    """What one header declares: lines of Cython, and the names that other headers may use."""

    name: str
    includes: list[str] = field(default_factory=list)
    enumerators: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)


def without_tier(source: str) -> str:
    """The header without comments and without what stands below `#ifdef TIER`."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL).replace("\\\n", " ")
    kept, depth, hidden = [], 0, 0  # `hidden`: the depth of the #ifdef TIER that the line is below, 0 outside
    for line in source.splitlines():
        if re.match(r"\s*#\s*if", line):
            depth += 1
            hidden = hidden or (depth if re.match(r"\s*#\s*ifdef\s+TIER\b", line) else 0)
        if not hidden:
            kept.append(line)
        if re.match(r"\s*#\s*endif", line):
            hidden = 0 if hidden == depth else hidden
            depth -= 1
    return "\n".join(kept)


def statements(source: str) -> Iterator[str]:
    """The declarations and definitions at the file's level, each on one line."""
    text = " ".join(line for line in source.splitlines() if not line.lstrip().startswith("#"))
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        inline = text[start : at + 1].lstrip().startswith("static inline")
        if depth == 0 and (character == ";" or (character == "}" and inline)):
            statement = re.sub(r"\s+", " ", text[start : at + (character == "}")]).strip()
            start = at + 1
            if statement:
                yield statement


def split(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def declared(text: str) -> str:
    """A declarator with Cython's types, and the stars at the type."""
    text = re.sub(r"\bptrdiff_t\b", "Py_ssize_t", text.strip())
    return re.sub(r"\s*(\*+)\s*", r"\1 ", text).replace("* const", "*")


def wrapped(head: str, arguments: list[str], tail: str, indent: str) -> Iterator[str]:
    """head(arguments)tail in lines of WIDTH columns, continued below the first argument."""
    line = f"{indent}{head}("
    column = len(line)
    for number, argument in enumerate(arguments):
        last = number == len(arguments) - 1
        piece = argument + (")" + tail if last else ",")
        if len(line) + len(piece) + (line[-1] == ",") > WIDTH:
            yield line
            line = " " * column + piece
        else:
            line += (" " if line[-1] == "," else "") + piece
    yield line if arguments else f"{line}){tail}"


def function(result: str, name: str, arguments: str, indent: str, tail: str = " noexcept nogil") -> Iterator[str]:
    """A function, or with `(*name)` a pointer to one."""
    given = [] if arguments.strip() in ("", "void") else [declared(part) for part in split(arguments)]
    head = re.sub(r" +", " ", declared(f"{result} {name}")).replace("(* ", "(*")
    yield from wrapped(head, given, tail, indent)


def members(body: str, indent: str) -> Iterator[str]:
    """The members of a struct."""
    for member in filter(None, (part.strip() for part in body.split(";"))):
        pointer = re.fullmatch(r"(.+?)\s*\(\*(\w+)\)\((.*)\)", member)
        if pointer:
            yield from function(pointer[1], f"(*{pointer[2]})", pointer[3], indent)
            continue
        first, *others = split(member)
        kind = re.match(r"((?:const |unsigned |struct )*\w+)\s*(.*)", first)
        assert kind, member
        for one in [kind[2], *others]:
            yield indent + declared(f"{kind[1]} {one}")


def add(header: Header, statement: str) -> None:
    """Add the Cython of one statement of the header."""
    indent = " " * 4
    if statement.startswith("_Static_assert"):
        return
    if found := re.fullmatch(r"(?:typedef )?enum (\w+ )?\{(.*)\}( \w+)?", statement):
        header.enumerators += [part.split("=")[0].strip() for part in split(found[2])]
    elif found := re.fullmatch(r"typedef struct (\w+) \{(.*)\} \1", statement):
        header.types.append(found[1])
        header.lines += [f"{indent}ctypedef struct {found[1]}:", *members(found[2], indent * 2)]
    elif found := re.fullmatch(r"typedef (.+?) ?\(\*(\w+)\)\((.*)\)", statement):
        header.types.append(found[2])
        header.lines += function(f"ctypedef {found[1]}", f"(*{found[2]})", found[3], indent)
    elif found := re.fullmatch(r"typedef (.+?[ *])(\w+)\((.*)\)", statement):
        header.types.append(found[2])
        header.lines += function(f"ctypedef {found[1]}", found[2], found[3], indent)
    elif found := re.fullmatch(r"typedef ([\w ]+?) ?(\**)(\w+)", statement):
        header.types.append(found[3])
        header.lines.append(f"{indent}ctypedef {declared(found[1] + found[2]).rstrip()} {found[3]}")
    elif found := re.fullmatch(r"(?:static|extern) const (\w+) (\w+)\[.*", statement):
        header.lines.append(f"{indent}const {found[1]}* {found[2]}")
    elif found := re.fullmatch(r"(?:static inline |extern )?(.+?[ *])(\w+)\((.*?)\)(?: \{.*)?", statement):
        header.lines += function(found[1], found[2], found[3], indent, " noexcept")
    else:
        raise SystemExit(f"simd/{header.name}.h: no rule for {statement!r}")


def read(name: str) -> Header:
    """Parse simd/<name>.h."""
    header = Header(name)
    source = without_tier((SIMD / f"{name}.h").read_text(encoding="utf-8"))
    header.includes = re.findall(r'#\s*include "(?:simd/)?([\w/]+)\.h"', source)
    header.enumerators = re.findall(r"#\s*define (\w+)\s+\d+\s*$", source, re.MULTILINE)
    for statement in statements(source):
        add(header, statement)
    return header


def pxd(header: Header, headers: dict[str, Header]) -> str:
    """The text of simd/<name>.pxd."""
    body = "\n".join(header.lines)
    blocks = []
    if standard := sorted(set(STDINT.findall(body))):
        blocks.append(f"from libc.stdint cimport {', '.join(standard)}\n")
    used = {
        other.name: [name for name in sorted([*other.types, *other.enumerators]) if re.search(rf"\b{name}\b", body)]
        for other in headers.values()
        if other is not header
    }
    if any(used.values()):
        blocks.append(
            "".join(
                f"from entrenar._kernels.simd.{name.replace('/', '.')} cimport {', '.join(names)}\n"
                for name, names in sorted(used.items())
                if names
            )
        )
    enum = [f"{' ' * 8}{name}" for name in header.enumerators]
    lines = [f'cdef extern from "simd/{header.name}.h" nogil:', *(["    enum:", *enum] if enum else []), *header.lines]
    return "# Made from the header by scripts/simd_pxd.py.\n" + "\n".join([*blocks, "\n".join(lines) + "\n"])


def generated() -> dict[Path, str]:
    """The files, and what they should contain."""
    headers: dict[str, Header] = {}
    waiting = ["simd"]
    while waiting:
        name = waiting.pop()
        if name not in headers and name != "vec":
            headers[name] = read(name)
            waiting += headers[name].includes
    return {
        SIMD / f"{name}.pxd": pxd(header, headers)
        for name, header in sorted(headers.items())
        if header.lines or header.enumerators
    }


def stale() -> list[str]:
    """The .pxd files that are not what the headers say, those without a header included."""
    wanted = generated()
    found = {path for path in SIMD.rglob("*.pxd") if path.name != "__init__.pxd"}
    return sorted(
        str(path.relative_to(SIMD))
        for path in found | wanted.keys()
        if not path.exists() or path.read_text(encoding="utf-8") != wanted.get(path)
    )


def main() -> int:
    """Write the files, or with --check name the stale ones."""
    if sys.argv[1:] == ["--check"]:
        names = stale()
        print("\n".join(f"simd/{name} is stale: run scripts/simd_pxd.py" for name in names))
        return int(bool(names))
    for path in SIMD.rglob("*.pxd"):
        if path.name != "__init__.pxd" and path not in generated():
            path.unlink()
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(SIMD))
    return 0


if __name__ == "__main__":
    sys.exit(main())
