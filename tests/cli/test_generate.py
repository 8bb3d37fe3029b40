"""`entrenar generate`: prompts from argument, file and standard input; text as it comes; what it refuses."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest

from entrenar.cli.main import dispatch
from entrenar.errors import safe
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.train.answers import TextStream
from tests.train.builders import config_for, entrenar_command, quiet, run_entrenar


def plain(model: Path, text: str, count: int) -> str:
    loaded, tokenizer = LLaMAModel.from_pretrained(model), Tokenizer.from_directory(model)
    return tokenizer.decode(loaded.generate(tokenizer.encode(text, add_bos=True), max_new_tokens=count))


@pytest.mark.unit
def test_a_text_is_continued_as_the_library_continues_it(model: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--raw", "--max-tokens", 12, "--precision", "highest"]
    expected = plain(model, "What is 3 plus", 12)
    ended = run_entrenar("generate", *map(str, words), "What is 3 plus")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.removesuffix("\n") == safe(expected)
    (tmp_path / "p.txt").write_text("What is 3 plus\n\nWhat is 4\n")
    ended = run_entrenar("generate", *map(str, words), "--file", tmp_path / "p.txt", "--lines", "--json")
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["What is 3 plus", "What is 4"]
    assert rows[0]["text"] == expected and rows[1]["text"] == plain(model, "What is 4", 12)
    assert rows[0]["tokens"] == 12 and rows[0]["finish"] == "length" and rows[0]["tokens_per_second"] > 0
    command = entrenar_command("generate", *map(str, words))
    piped = subprocess.run(command, input="What is 3 plus", capture_output=True, text=True, check=True)
    assert piped.stdout == safe(expected) + "\n"


@pytest.mark.unit
def test_a_prompt_is_a_users_message_and_an_adapter_answers(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run")
    config.training.steps = 150
    result, _ = quiet(model, config)
    words = ["generate", "--model", str(model), "--max-tokens", "40", "What is 3 plus 4?"]
    (base,) = dispatch(words)  # type: ignore[misc]
    (tuned,) = dispatch([*words, "--adapter", str(result.output)])  # type: ignore[misc]
    assert base.text != tuned.text and "plus" in tuned.text and tuned.finish == "stop"
    (sampled,) = dispatch([*words, "--temperature", "2", "--seed", "1"])  # type: ignore[misc]
    (again,) = dispatch([*words, "--temperature", "2", "--seed", "1"])  # type: ignore[misc]
    assert sampled.tokens == again.tokens != base.tokens


@pytest.mark.unit
def test_parts_of_a_text_are_the_whole_and_no_half_character_is_shown() -> None:
    text = "Grüße, 世界! \N{GRINNING FACE} done \N{REPLACEMENT CHARACTER} x"
    tokenizer = Tokenizer.train(["abc def " * 20], 262)  # the characters above are bytes
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    parts = [stream.push(token) for token in ids]
    assert "".join(parts) + stream.end() == tokenizer.decode(ids) == text
    assert "世" in parts and "\N{GRINNING FACE}" in parts and sum(not part for part in parts) > 8


@pytest.mark.chaos
def test_what_is_wrong_is_one_sentence(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for words, status, text in (
        (["x", "--file", "y"], 1, "both given"),
        (["--file", tmp_path / "none"], 1, "No such file"),
        (["--file", tmp_path / "latin"], 1, "is not UTF-8"),
        (["--file", tmp_path], 1, "cannot be read"),
        ([" "], 1, "has no text"),
        (["x", "--lines"], 1, "--lines"),
        (["x", "--raw", "--system", "s"], 1, "--system"),
        (["x", "--top-k", 3], 1, "no effect where temperature is 0"),
        (["x", "--temperature", -1], 1, "expected at least 0"),
        (["x" * 4000], 1, "leave no room"),
        (["x", "--adapter", tmp_path / "none"], 1, "no such file or directory"),
        (["x", "--temp", 1], 2, "it is called --temperature here."),
    ):
        ended = run_entrenar("generate", "--model", model, *map(str, words))
        assert (ended.returncode, ended.stderr.count("\n")) == (status, 1), ended.stderr
        assert text in ended.stderr, ended.stderr
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(Exception, match="standard input: has no text"):
        dispatch(["generate", "--model", str(model)])
