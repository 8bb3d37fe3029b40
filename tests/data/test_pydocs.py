"""The default data: the documentation on this machine, read without importing what it documents."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from entrenar.data import Example, documentation_examples, pydocs, split_held_out
from entrenar.errors import FormatError


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return documentation_examples()


def fingerprint(found: list[Example]) -> str:
    return hashlib.sha256("\0".join(example.text for example in found).encode()).hexdigest()


# ---------------------------------------------------------------------- what is found
@pytest.mark.unit
def test_there_are_two_to_three_thousand_pairs(examples: list[Example]) -> None:
    assert 2000 <= len(examples) <= 3500
    for example in examples:
        assert [message["role"] for message in example.messages] == ["user", "assistant"]
    topics = sum(example.messages[0]["content"].startswith("Explain the Python topic '") for example in examples)
    docstrings = sum(example.messages[0]["content"].startswith("What does the Python ") for example in examples)
    assert topics > 300
    assert docstrings > 1500
    assert topics + docstrings == len(examples)


@pytest.mark.unit
def test_no_answer_is_empty_longer_than_a_part_or_there_twice(examples: list[Example]) -> None:
    answers = [example.messages[1]["content"] for example in examples]
    assert max(map(len, answers)) <= 1400
    assert all(answer.strip() for answer in answers)
    assert len(set(answers)) == len(answers)
    prompts = Counter(example.messages[0]["content"] for example in examples)
    assert prompts.most_common(1)[0][1] <= 2  # a name that a module defines twice


@pytest.mark.unit
def test_known_documentation_is_among_them(examples: list[Example]) -> None:
    pairs = {example.messages[0]["content"]: example.messages[1]["content"] for example in examples}
    (statement,) = [
        pairs[prompt] for prompt in pairs if prompt.startswith("Explain the Python topic 'with', part 1 of")
    ]
    assert statement.startswith('The "with" statement\n')
    names = {prompt.split()[-2] for prompt in pairs if prompt.startswith("What does the Python ")}
    assert "argparse.ArgumentParser" in names
    assert "heapq.merge" in names
    kinds = Counter(prompt.split()[4] for prompt in pairs if prompt.startswith("What does the Python "))
    assert set(kinds) == {"module", "class", "function"}
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]
    assert not [name for name in names if name.split(".")[0] in ("test", "idlelib", "site-packages", "pip", "numpy")]


# ---------------------------------------------------------------------- how it is read
CHILD = """
import hashlib, json, sys
from entrenar.data import documentation_examples
before = set(sys.modules)
found = documentation_examples()
text = "\\0".join(example.text for example in found)
print(json.dumps([sorted(set(sys.modules) - before), hashlib.sha256(text.encode()).hexdigest()]))
"""


@pytest.mark.unit
def test_nothing_that_is_documented_is_imported_and_another_process_finds_the_same(examples: list[Example]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PYTHONHASHSEED": "1", "PATH": "/usr/bin:/bin"},
    )
    imported, digest = json.loads(done.stdout)
    # sysconfig reads what it knows about this Python from a module of its own
    assert {name for name in imported if not name.startswith("_sysconfigdata")} <= {"pydoc_data", "pydoc_data.topics"}
    assert digest == fingerprint(examples)
    assert done.stderr == ""  # the warnings of other people's sources are not the user's


def library(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


LONG = "does a thing " * 12
SOURCE = f'''"""Module {LONG}."""
import sys
sys.modules["entrenar_test_was_imported"] = sys
raise RuntimeError("this module must not run")

def public(x):
    """Public {LONG}.

        indented
    less
    """

def _private():
    """Private {LONG}."""

def short():
    """Too short."""

def long():
    """{"x" * 1401}"""

async def coroutine():
    """Coroutine {LONG}."""

class Thing:
    """Thing {LONG}."""

    def method(self):
        """Method {LONG}."""

    def _hidden(self):
        """Hidden {LONG}."""
'''


@pytest.mark.unit
def test_public_docstrings_are_read_from_sources_that_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, str | bytes] = {
        "mod.py": SOURCE,
        "pkg/__init__.py": f'"""Package {LONG}."""',
        "pkg/inner.py": f'"""Inner {LONG}."""',
        "pkg/_inner.py": f'"""No {LONG}."""',
        "_pkg/inner.py": f'"""No {LONG}."""',
        "test/x.py": f'"""No {LONG}."""',
        "site-packages/x.py": f'"""No {LONG}."""',
        "test_x.py": f'"""No {LONG}."""',
        "broken.py": "def f(:\n",
        "binary.py": b"\xff\xfe\x00 = 1",
        "null.py": b'"""x"""\0',
        "deep.py": "x = " + "(" * 5000 + ")" * 5000,
        "notes.txt": f'"""No {LONG}."""',
    }
    library(tmp_path, files)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(pydocs, "_topic_pairs", lambda: iter(()))
    before = set(sys.modules)
    found = documentation_examples()
    assert set(sys.modules) == before
    pairs = [(example.messages[0]["content"], example.messages[1]["content"]) for example in found]
    assert [prompt for prompt, _ in pairs] == [
        "What does the Python module mod do?",
        "What does the Python function mod.public do?",
        "What does the Python function mod.coroutine do?",
        "What does the Python class mod.Thing do?",
        "What does the Python function mod.Thing.method do?",
        "What does the Python module pkg do?",
        "What does the Python module pkg.inner do?",
    ]
    assert pairs[1][1] == f"Public {LONG}.\n\n    indented\nless"


@pytest.mark.unit
def test_a_python_without_documentation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # importing it fails
    with pytest.raises(FormatError, match=r"carries neither pydoc_data\.topics nor library sources; use --data\."):
        documentation_examples()


# ---------------------------------------------------------------------- parts
@pytest.mark.unit
def test_parts_are_cut_between_paragraphs_then_lines_then_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "PART_CHARACTERS", 20)
    parts = pydocs._parts("one two\n\nthree four\n\nfive six seven")
    assert parts == ["one two\n\nthree four", "five six seven"]
    assert pydocs._parts("aaaa aaaa\nbbbb bbbb\ncccc cccc") == ["aaaa aaaa\nbbbb bbbb", "cccc cccc"]
    assert pydocs._parts("x" * 45) == ["x" * 20, "x" * 20, "x" * 5]
    assert pydocs._parts("") == []
    assert pydocs._parts(" \n\n \n") == []
    assert pydocs._parts("a\n\n\n\n\nb") == ["a\n\n\n\n\nb"]


@pytest.mark.unit
def test_parts_hold_all_of_a_topics_words_in_order() -> None:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        parts = pydocs._parts(text)
        assert all(0 < len(part) <= 1400 for part in parts), name
        assert "".join("".join(parts).split()) == "".join(text.split()), name
        if len(text) > 6000:
            assert len(parts) < len(text) / 700, name  # no crumbs


# ---------------------------------------------------------------------- the split
@pytest.mark.unit
def test_the_split_is_deterministic_and_follows_from_the_text_alone(examples: list[Example]) -> None:
    training, held_out = split_held_out(examples)
    assert (training, held_out) == split_held_out(examples)
    assert len(training) + len(held_out) == len(examples)
    assert 0.01 < len(held_out) / len(examples) < 0.03
    assert not {example.text for example in training} & {example.text for example in held_out}
    backwards = split_held_out(examples[::-1])
    assert (backwards[0][::-1], backwards[1][::-1]) == (training, held_out)  # the order has no say
    fewer = split_held_out(examples[: len(examples) // 2])
    assert set(map(id, fewer[1])) <= set(map(id, held_out))  # neither have the other examples


@pytest.mark.unit
def test_a_larger_fraction_holds_out_more_of_the_same(examples: list[Example]) -> None:
    sizes = []
    before: set[str] = set()
    for fraction in (0.0, 0.02, 0.1, 0.5, 1.0):
        held_out = {example.text for example in split_held_out(examples, fraction)[1]}
        assert before <= held_out
        before = held_out
        sizes.append(len(held_out) / len(examples))
    assert sizes[0] == 0
    assert sizes[-1] == 1
    assert sizes[1:4] == pytest.approx([0.02, 0.1, 0.5], abs=0.03)
