"""Several files read as one: paths and weights, and the examples of all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from entrenar.data import Example, ExampleFile, ExampleFiles, Source, digests, sources_of, split_files, split_indices
from entrenar.errors import ConfigError, FormatError


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.unit
def test_paths_and_weights() -> None:
    assert sources_of("a.jsonl") == [Source("a.jsonl")]
    assert sources_of(["a.jsonl", "b"]) == [Source("a.jsonl"), Source("b")]
    assert sources_of(["a.jsonl:0.7", "b:2e-1"]) == [Source("a.jsonl", 0.7), Source("b", 0.2)]
    assert sources_of(["s3://x.jsonl", "b"])[0] == Source("s3://x.jsonl")  # no weight; its reader says what is wrong


@pytest.mark.unit
def test_a_path_that_exists_is_that_path_with_its_colons(tmp_path: Path) -> None:
    odd = write(tmp_path / "a:0.5", ["x"])
    assert sources_of(odd) == [Source(odd)]
    assert sources_of([f"{odd}:2", "b:1"]) == [Source(odd, 2.0), Source("b", 1.0)]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["a:0.7", "b"], r"data\.path gives b no weight and others one; give each file a weight, or none\."),
        (["a:0", "b:1"], r"data\.path is 'a:0', whose weight '0' is not a number above 0\."),
        (["a:-1", "b:1"], "whose weight '-1' is not"),
        (["a:nan", "b:1"], "whose weight 'nan' is not"),
        (["a:inf", "b:1"], "whose weight 'inf' is not"),
        ([":1", "b:1"], "data.path is ':1'"),
        ("a:0.7", r"gives a the weight 0\.7, which has no effect without another file; leave it out\."),
        (["a", "b", "a"], r"names a twice; name it once"),
        (["a:1", "a:2"], r"names a twice"),
    ],
)
def test_what_could_not_be_meant_is_refused(given: str | list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        sources_of(given)


@pytest.mark.unit
def test_a_weight_that_is_no_number_is_refused_where_the_file_exists(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(ConfigError, match="whose weight 'half' is not a number above 0"):
        sources_of([f"{path}:half", "b:1"])


@pytest.mark.unit
def test_examples_come_file_after_file_and_say_of_which(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", ["1", "2", "3"]), write(tmp_path / "b.jsonl", ["4"])]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "c.txt").write_text("5")
    files = ExampleFiles(sources_of([*paths, str(tmp_path / "texts")]))
    assert [example.document for example in files] == ["1", "2", "3", "4", "5"]
    assert [example.file for example in files] == [0, 0, 0, 1, 2]
    assert files.bounds.tolist() == [0, 3, 4, 5] and files[-1].whole_file
    assert [example.document for example in files.read([4, 0, 3, 2])] == ["5", "1", "4", "3"]
    assert [example.document for example in ExampleFiles(files.sources, 2)] == ["1", "2", "4", "5"]
    assert list(ExampleFiles(sources_of(paths[0]))) == list(ExampleFile(paths[0]))
    with pytest.raises(FormatError, match=r"none\.jsonl: cannot be read"):
        ExampleFiles(sources_of([*paths, "none.jsonl"]))


@pytest.mark.unit
def test_the_size_is_of_all_texts_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12345")
    (tmp_path / "b.md").write_text("123")
    assert Source(str(tmp_path)).nbytes == 8
    assert Source("none.jsonl").nbytes == Source("a\0b").nbytes == 0


def hashes_of(texts: list[str]) -> np.ndarray:
    return digests([Example([], document=text) for text in texts])


@pytest.mark.unit
def test_each_file_holds_out_its_own_and_no_text_is_on_both_sides() -> None:
    first, second = hashes_of([f"a {n}" for n in range(30)]), hashes_of([f"b {n}" for n in range(10)])
    both = np.concatenate([first, second])
    training, held_out = split_files(both, np.array([0, 30, 40]), 0.1)
    expected = np.concatenate([split_indices(first, 0.1)[1], 30 + split_indices(second, 0.1)[1]])
    assert held_out.tolist() == expected.tolist() and (held_out >= 30).any() and (held_out < 30).any()
    assert sorted([*training, *held_out]) == list(range(40))
    same = np.concatenate([first, first[:5]])  # of five, one is held out that chance would train on among thirty
    training, held_out = split_files(same, np.array([0, 30, 35]), 0.02)
    assert not set(same[training].tolist()) & set(same[held_out].tolist())
    alone = split_files(first, np.array([0, 30]), 0.1)
    assert [side.tolist() for side in alone] == [side.tolist() for side in split_indices(first, 0.1)]
