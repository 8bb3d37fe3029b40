"""`entrenar chat`: turns that keep their keys and values, commands, and Ctrl-C that ends an answer alone."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from entrenar.errors import safe
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.train.answers import Sampling, Speaker
from entrenar.train.loading import Source
from tests.train.builders import entrenar_command, run_entrenar, write_model

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


def talk(model: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = entrenar_command("chat", "--model", model, "--max-tokens", "8", "--precision", "highest", *words)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def turns(model: Path, *questions: str) -> list[str]:
    """The answers, each from a prompt that is computed anew."""
    loaded, tokenizer = LLaMAModel.from_pretrained(model), Tokenizer.from_directory(model)
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": tokenizer.decode(loaded.generate(prompt, max_new_tokens=8))})
    return [safe(message["content"]) for message in messages[1::2]]


@pytest.mark.unit
def test_answers_follow_from_the_whole_conversation(model: Path) -> None:
    ended = talk(model, "one\n\ntwo\n/undo\n/rest\n/reset\none\n/exit\nunheard\n")
    first, second = turns(model, "one", "two")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{first}\n{second}\n'/rest' is no command; did you mean '/reset'?\n{first}\n"
    assert talk(model, "one").stdout == f"{first}\n"  # the input's end leaves


@pytest.mark.unit
@pytest.mark.parametrize("scaling", [None, DYNAMIC], ids=["plain", "dynamic"])
def test_a_turn_computes_its_new_tokens_alone(
    scaling: dict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", **({"rope_scaling": scaling} if scaling else {}))
    speaker = Speaker.load(Source(str(model), precision="highest"), None, Sampling(max_tokens=6))
    other = LLaMAModel.from_pretrained(model)
    ran: list[int] = []
    hidden = LLaMAModel.hidden_states

    def counted(self: LLaMAModel, tokens: object, *rest: object, **named: object) -> object:
        ran.append(tokens.shape[1])  # type: ignore[attr-defined]
        return hidden(self, tokens, *rest, **named)

    prompts = [
        speaker.chat_tokens([{"role": "user", "content": text}]) for text in ("a b", "a b c d e f g", "a b", "z")
    ]
    for number, prompt in enumerate([*prompts, prompts[1] * 2, prompts[0]]):
        expected = other.generate(prompt, max_new_tokens=6, stop=speaker.ends)
        ran.clear()
        with monkeypatch.context() as patched:
            patched.setattr(LLaMAModel, "hidden_states", counted)
            if number == 3:  # interrupted after the second part
                with pytest.raises(KeyboardInterrupt):
                    speaker.answer(prompt, interrupt_at(2))
                assert speaker.partial.tokens == expected[: len(speaker.partial.tokens)]
                ran.clear()
            found = speaker.answer(prompt)
        assert found.tokens == expected
        if number and len(prompt) < 60:
            assert ran[0] < len(prompt)  # what both begin with is held
    again = speaker.answer([*prompts[0], *found.tokens, 5])
    assert again.tokens == other.generate([*prompts[0], *found.tokens, 5], max_new_tokens=6, stop=speaker.ends)


def interrupt_at(count: int):
    parts: list[str] = []

    def say(text: str) -> None:
        parts.append(text)
        if len(parts) == count:
            raise KeyboardInterrupt

    return say


@pytest.mark.chaos
def test_ctrl_c_ends_an_answer_and_not_the_program(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", max_position_embeddings=1 << 20)
    command = entrenar_command("chat", "--model", model, "--max-tokens", str(1 << 19))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        for _ in range(2):
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            process.stdout.read1(1)  # the answer has begun
            process.send_signal(signal.SIGINT)
            until = b""
            while not until.endswith(b"[interrupted]\n"):
                until += process.stdout.read1(4096)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # at the prompt
        assert process.stdout.readline() + process.stdout.readline() == b"\n/exit or Ctrl-D leaves.\n"
        process.stdin.write(b"/exit\n")
        process.stdin.flush()
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == b""
    finally:
        process.kill()


@pytest.mark.chaos
def test_what_is_wrong_is_one_sentence(model: Path, tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare")
    for file in (bare / "chat_template.jinja", bare / "tokenizer_config.json"):
        file.unlink(missing_ok=True)
    for words, text in (
        (["--model", bare], "`entrenar generate --raw`"),
        (["--model", tmp_path / "none"], "no such file or directory"),
        (["--model", model, "--adapter", model], "adapter_config.json"),
        (["--model", model, "--top-p", "1.5"], "expected at most 1"),
    ):
        ended = run_entrenar("chat", *words)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr
        assert text in ended.stderr, ended.stderr
    long = talk(model, "x" * 4000 + "\nhello\n")
    assert long.returncode == 0 and "leave no room" in long.stdout and turns(model, "hello")[0] in long.stdout
