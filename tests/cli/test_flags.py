"""Flags: what other programs call them, said once, numbers below zero, nothing empty."""

from __future__ import annotations

import pytest

from entrenar.cli.flags import CONFIG, Parser, early, parser_for
from entrenar.config import shown, text_argument
from entrenar.qlora import QLoRAConfig
from entrenar.train import TrainConfig, synonyms

NAMES = [(ours, theirs) for ours, names in synonyms.SYNONYMS.items() for theirs in names.split()]


@pytest.fixture
def parser() -> Parser:
    made = parser_for(None, TrainConfig(), config=None, adapter=QLoRAConfig())
    made.add_argument("--model", type=text_argument)
    made.add_argument("--dtype")
    for flag in ("--temperature", "--max-tokens", "--raw", "--file"):  # of the verbs that generate
        made.add_argument(flag)
    return made


def refused(parser: Parser, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err.split(": error: ", 1)[1].rstrip("\n")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lr", "it is called --learning-rate here."),
        ("--learning_rate", "it is written --learning-rate here."),
        ("--batch", "it is called --batch-size here."),
        ("--iters", "it is called --steps here."),
        ("--max-seq-length", "it is called --sequence-length here."),
        ("--max_seq_length", "it is called --sequence-length here."),
        ("--grad-accum", "it is called --gradient-accumulation here."),
        ("--lora_r", "it is called --rank here."),
        ("--r", "it is called --rank here."),
        ("--lora-alpha", "it is called --alpha here."),
        ("--base_model", "it is called --model here."),
        ("--output_dir", "it is called --output here."),
        ("--val-batches", f"there is none here: {synonyms.HELD_OUT}."),
        ("--val-data", "it is called --eval-data here."),
        ("--learning-rat", "did you mean '--learning-rate'?"),
    ],
)
def test_a_flag_of_another_program_is_named(
    flag: str, message: str, parser: Parser, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([flag, "3"], [f"{flag}=3"]):
        assert refused(parser, arguments, capsys) == f"unknown argument {flag}; {message}"


@pytest.mark.unit
def test_the_table_of_other_names_is_sound(parser: Parser) -> None:
    flags = set(parser.flags())
    known = {ours for ours in synonyms.SYNONYMS if ours in flags}
    assert len(known) >= 30
    assert {ours for ours, _ in NAMES} == known
    spoken = [theirs for _, theirs in NAMES] + [name for names in synonyms.LACKING for name in names.split()]
    assert sorted(name for name in spoken if spoken.count(name) > 1) == []  # one answer a name
    assert [name for name in spoken if f"--{name}" in flags] == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a", "--data", "b"], "--data is given twice; expected it once."),
        (["--data=a", "--data", "a"], "--data is given twice; expected it once."),
        (["--packing", "--no-packing"], "--packing and --no-packing are both given; expected it once."),
        (["--rank", "4", "--steps", "3", "--rank", "4"], "--rank is given twice; expected it once."),
        (["--model", ""], "argument --model: the value is empty; leave the flag out, or give it a value"),
        (["--data="], "argument --data: the value is empty; leave the flag out, or give it a value"),
        (["--output", ""], "argument --output: the value is empty; leave the flag out, or give it a value"),
        (["--rank-pattern", "q_proj=8,q_proj=4"], "argument --rank-pattern: 'q_proj' is given twice; expected it once"),
        (["--rank-pattern", "q_proj"], "argument --rank-pattern: 'q_proj' is not NAME=VALUE"),
        (["--alpha-pattern", "q_proj=8,"], "argument --alpha-pattern: '' is not NAME=VALUE"),
        (["--steps", "9" * 5000], f"argument --steps: {shown('9' * 5000)} is not an integer"),
    ],
)
def test_what_would_be_lost_silently_is_refused(
    arguments: list[str], message: str, parser: Parser, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(parser, arguments, capsys) == message


@pytest.mark.unit
@pytest.mark.parametrize("text", ["-1", "-1.5", "-.5", "-1e-3", "-2.E+4"])
def test_a_number_below_zero_is_a_value(text: str, parser: Parser) -> None:
    assert parser.parse_args(["--learning-rate", text]).learning_rate == float(text)


@pytest.mark.unit
def test_the_configuration_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert early(["--steps", "3"], CONFIG) is None
    assert early(["--steps", "3"], CONFIG, "b.toml") == "b.toml"
    assert early(["--config", "a.toml", "--steps", "3"], CONFIG) == "a.toml"
    with pytest.raises(SystemExit):
        early(["--config", "a.toml", "--config=b.toml"], CONFIG)
    assert "--config is given twice" in capsys.readouterr().err
