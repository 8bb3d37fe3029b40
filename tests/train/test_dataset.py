"""A run's examples: which are used, what is said of the others, and what is held out."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from entrenar.data import Example
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.checkpoint import Checkpoint
from entrenar.train import dataset, pretrain, report
from entrenar.train.config import Preferences
from entrenar.train.finetune import encode_prompt
from tests.train.builders import SHAPE, SMALL, config_for, quiet, write_examples, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "examples.jsonl")


@pytest.mark.unit
def test_examples_whose_answers_are_cut_off_whole_are_left_out(model: Path, data: Path, tmp_path: Path) -> None:
    lines = data.read_text().splitlines()
    long = [json.dumps({"prompt": f"{number} " + "x " * 300, "completion": "y"}) for number in range(20)]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(lines + long))
    plain, _ = quiet(model, config_for(data, tmp_path / "a"))
    result, _ = quiet(model, config_for(mixed, tmp_path / "b"))
    assert [replace(report, seconds=0) for report in plain.reports] == [replace(r, seconds=0) for r in result.reports]
    only_long = tmp_path / "long.jsonl"
    only_long.write_text("\n".join(long))
    with pytest.raises(ConfigError, match=r"none of its \d+ examples has a token that is trained: 1\d of 1\d examples"):
        quiet(model, config_for(only_long, tmp_path / "c"))


@pytest.mark.unit
def test_one_example_at_most_where_one_is_asked_for(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path)
    config.data = replace(config.data, max_examples=1)
    with pytest.raises(
        ConfigError, match=r"examples\.jsonl: has one example, which cannot be both trained on and held"
    ):
        quiet(model, config)


@pytest.mark.unit
def test_what_is_left_out_cut_or_not_used_is_said_before_training_and_in_the_summary(
    model: Path, data: Path, tmp_path: Path
) -> None:
    records = [json.loads(line) | {"id": n} for n, line in enumerate(data.read_text().splitlines()[:40])]
    records += [{"prompt": f"{n} " + "x " * 300, "completion": "y"} for n in range(40)]
    path = tmp_path / "half.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    result, out = quiet(model, config_for(path, tmp_path / "run"))
    said = out[: out.index("step 1/4")]
    reason = r"the prompt alone fills a row of 64 tokens, so that no answer would be trained \(the first is .*line 4"
    assert re.search(rf"\n\d\d of \d\d examples are left out: {reason}", said)
    assert re.search(r"half\.jsonl: the key 'id' of 40 records is not used\.", said)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    sides = [summary["data"][side] for side in ("training", "held_out")]
    assert sum(side["examples"] for side in sides) == 80 and sum(side["samples"] for side in sides) == 40
    assert sum(sum(side["left_out"].values()) for side in sides) == 40
    assert summary["data"]["unused_keys"] == {"id": 40}
    assert sides[1]["trained_tokens"] == result.after.tokens
    trained = re.search(r"tokens trained +│ ([\d,]+) of ([\d,]+) an epoch", said)
    assert trained and [int(n.replace(",", "")) for n in trained.groups()] == [
        sides[0]["trained_tokens"],
        sides[0]["tokens"],
    ]
    assert all(
        remark in " ".join(out.split()) for remark in (" ".join(remark.split()) for remark in summary["remarks"])
    )


@pytest.mark.unit
def test_twenty_examples_are_enough_and_few_held_out_tokens_are_said_to_say_little(
    model: Path, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(data.read_text().splitlines()[:20]))
    config = config_for(path, tmp_path)
    config.data = replace(config.data, held_out_fraction=0.001)  # chance would hold out none
    result, out = quiet(model, config)
    assert result.before is not None and result.before.tokens < 60
    sentence = f"The held-out set has only {result.before.tokens} tokens: its loss is known to about "
    assert out.count("The held-out set has only") == 1 and out.index(sentence) < out.index("step 1/4")


@pytest.mark.unit
def test_few_tokens_are_below_what_five_percent_needs() -> None:
    assert report.uncertainty(400) is report.uncertainty(400, held_out=False) is None
    assert "hold out at least 400 (data.held_out_fraction, or a larger file of data.eval_p" in str(
        report.uncertainty(24)
    )
    assert str(report.uncertainty(24, held_out=False)).endswith("says little; evaluate on at least 400.")
    assert "known to about 20 % (1 / sqrt(tokens))" in str(report.uncertainty(24)) == report.held_out_size(24)
    assert report.held_out_size(400) is report.held_out_size(1_000_000) is None
    assert "has 1,000,001 tokens that count in its loss, before the first step" in str(report.held_out_size(1_000_001))


@pytest.mark.unit
def test_a_fraction_of_zero_trains_on_all_and_compares_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path)
    config.data = replace(config.data, held_out_fraction=0.0)
    config.checkpointing = replace(config.checkpointing, every=2)
    result, out = quiet(model, config)
    assert (result.before, result.after) == (None, None)
    assert "Nothing was held out (data.held_out_fraction is 0), so there is no loss before and after." in out
    assert re.search(r"held out +│ nothing", out) and re.search(r"data +│ 64 samples", out)
    assert json.loads((tmp_path / "summary.json").read_text())["held_out"] == {"before": None, "after": None}
    config = config_for(data, tmp_path, replace(SMALL, steps=6))
    config.data = replace(config.data, held_out_fraction=0.0)
    config.checkpointing = replace(config.checkpointing, resume=True)
    resumed, _ = quiet(model, config)
    assert len(resumed.reports) == 6 and resumed.sample_before == result.sample_before


@pytest.mark.unit
def test_plain_texts_are_trained_on(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{n} plus 1 is {n + 1}, and that is all."}) for n in range(30)))
    result, _ = quiet(model, config_for(path, tmp_path / "run", replace(SMALL, steps=8)))
    assert result.before and result.after and result.after.loss < result.before.loss
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["training"]
    assert summary["trained_tokens"] == summary["tokens"] - summary["samples"]  # all but the first of each


def without_places(folder: Path, template: str | None) -> Path:
    """A model with this chat template."""
    model = write_model(folder)
    tokenizer = Tokenizer.from_directory(model)
    tokenizer.chat_template = template
    tokenizer.save(model)
    return model


@pytest.mark.unit
def test_training_on_prompts_needs_no_place_of_an_answer(tmp_path: Path) -> None:
    """Neither for the tokens nor for the sample, which continues the beginning of the text."""
    model = without_places(tmp_path / "model", "{% for m in messages | reverse %}[{{ m.content | upper }}]{% endfor %}")
    path = tmp_path / "chats.jsonl"
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    chats = [[*turns[:3], {"role": "assistant", "content": f"{n}!"}] for n in range(9)]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    config = config_for(path, tmp_path / "run", replace(SMALL, steps=1))
    with pytest.raises(ConfigError, match="or train on the prompts too"):
        quiet(model, config)
    config.data = replace(config.data, train_on_prompt=True)
    _, out = quiet(model, config)
    assert re.search(r"Prompt: \[\d!\]\[USER 1\]", out)


IN_BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("template", "learns"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", False),
        (
            "{% for m in messages %}{{ m.content }}<|endoftext|>\n{% endfor %}",
            False,
        ),  # which this model's text ends not
        (IN_BLOCKS, False),
        (IN_BLOCKS.replace("{% endgeneration %}", "<|im_end|>{% endgeneration %}"), True),
        ("{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}", True),
    ],
    ids=["no end", "another end", "an end outside of its block", "an end inside", "an end"],
)
def test_a_template_that_trains_no_end_is_said(template: str, learns: bool, data: Path, tmp_path: Path) -> None:
    model = without_places(tmp_path / "model", template)
    _, out = quiet(model, config_for(data, tmp_path / "run", replace(SMALL, steps=1)))
    said = re.search(
        r"In (\d+) of the first (\d+) whole samples no token of those that end a generation \('<\|im_end\|>'\)", out
    )
    assert (said is None) == learns
    assert said is None or said[1] == said[2]


@pytest.mark.unit
def test_a_template_that_is_none_is_the_models_fault(data: Path, tmp_path: Path) -> None:
    model = without_places(tmp_path / "model", "{{ if .System }}<|system|>{{ .System }}{{ end }}")  # as Ollama has them
    with pytest.raises(FormatError) as caught:
        quiet(model, config_for(data, tmp_path / "run", replace(SMALL, steps=1)))
    assert str(caught.value).startswith(f"{model}: The chat template is no valid Jinja template: ")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"{n} plus 1 is {n + 1}"}) for n in range(9)))
    quiet(model, config_for(texts, tmp_path / "run", replace(SMALL, steps=1)))  # which needs none


@pytest.mark.unit
def test_the_layout_of_a_model_without_a_template_is_said(tmp_path: Path) -> None:
    model = without_places(tmp_path / "model", None)
    path = tmp_path / "chats.jsonl"
    chat = [json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}."}) for n in range(9)]
    path.write_text("\n".join([*chat, json.dumps({"text": "a plain text"})]))
    _, out = quiet(model, config_for(path, tmp_path / "run", replace(SMALL, steps=1, sequence_length=120)))
    said = "The tokenizer has no chat template, so that 9 conversations are written in the layout of Stanford Alpaca"
    assert out.index(said) < out.index("step 1/1")
    remarks = json.loads((tmp_path / "run" / "summary.json").read_text())["remarks"]
    assert any(remark.startswith(said) for remark in remarks)


@pytest.mark.unit
def test_the_layout_of_preferences_without_a_template_is_said(tmp_path: Path) -> None:
    model, path = without_places(tmp_path / "model", None), tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "It is not."} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    training = replace(SMALL, steps=1, sequence_length=120)
    _, out = quiet(model, config_for(path, tmp_path / "run", training, preference=Preferences("dpo")))
    assert "so that 8 conversations are written in the layout of Stanford Alpaca" in out


@pytest.mark.unit
def test_what_is_to_be_said_is_shown_before_training_and_kept(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Checkpoint.open

    def noted(path: str | Path) -> Checkpoint:
        checkpoint = opened(path)
        checkpoint.remarks.append("config.json: [field] x is not used.")
        return checkpoint

    monkeypatch.setattr(Checkpoint, "open", noted)
    result, out = quiet(model, config_for(data, tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["remarks"][0] == "config.json: [field] x is not used."
    assert out.index("config.json: [field] x is not used.") < out.index("step 1/4")
    assert summary["steps"] == 4
    assert summary["trained_tokens"] == sum(step.trained_tokens for step in result.reports)
    assert summary["held_out"]["after"] == {"loss": result.after.loss, "tokens": result.after.tokens}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("more", "name"), [({"tools": [{"name": "f"}]}, "tools"), ({"weight": 0}, "marks of training")]
)
def test_what_a_plain_text_has_no_place_for_is_refused(more: dict[str, object], name: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = {"messages": turns, **more} if "tools" in more else {"messages": [turns[0], turns[1] | more]}
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "c", "completion": "d"}) + "\n" + json.dumps(record))
    config = config_for(tmp_path / "data.jsonl", tmp_path / "run", adapter=None)
    config.data = replace(config.data, held_out_fraction=0.0)
    with pytest.raises(ConfigError, match=rf"data\.jsonl, line 2: has {name}, which training from scratch on plain"):
        pretrain(replace(SHAPE, vocab_size=270), config, Console(file=io.StringIO()))


@pytest.mark.unit
def test_examples_that_are_left_out_do_not_stop_a_run_by_being_held_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where those that are chosen to be held out have no room for an answer, others are held out."""
    path, tokenizer, again = tmp_path / "data.jsonl", Tokenizer.from_directory(model), dataset._hold_out_others
    calls = []
    monkeypatch.setattr(dataset, "_hold_out_others", lambda *sides: (calls.append(sides), again(*sides)))
    for start in range(0, 400, 20):
        long = " plus 1" * 99
        records = [
            {"prompt": f"What is {start + n} plus 1?{n % 2 * long}", "completion": "It is more."} for n in range(20)
        ]
        path.write_text("\n".join(map(json.dumps, records)))
        config = config_for(path, tmp_path / "run")
        config.data = replace(config.data, held_out_fraction=0.1)
        data = dataset.encode(config, tokenizer, tokenizer.vocab_size)
        sides = (data.report.training, data.report.held_out)
        assert [side.samples for side in sides] == [len(data.training), len(data.held_out)] and len(data.held_out) > 0
        assert sum(side.examples for side in sides) == 20
        assert [sum(side.samples for side in sides), sum(sum(side.left_out.values()) for side in sides)] == [10, 10]
        assert sum(side.tokens for side in sides) == sum(map(len, [*data.training, *data.held_out]))
        texts = [tokenizer.decode(sample.tokens.tolist()) for sample in data.held_out]
        assert data.shown.messages[0]["content"] in texts[0]
        assert not {*texts} & {tokenizer.decode(sample.tokens.tolist()) for sample in data.training}
    assert 0 < len(calls) < 20


@pytest.mark.unit
def test_examples_that_are_held_out_in_place_of_others_are_not_counted_of_their_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, tokenizer = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], Tokenizer.from_directory(model)
    calls, again = [], dataset._hold_out_others
    monkeypatch.setattr(dataset, "_hold_out_others", lambda *sides: (calls.append(sides), again(*sides)))
    for start in range(0, 320, 16):
        for path, first in zip(paths, (start, start + 8), strict=True):
            texts = [f"What is {first + n} plus 1?{n % 2 * ' plus 1' * 99}" for n in range(8)]
            path.write_text("\n".join(json.dumps({"prompt": text, "completion": "It is more."}) for text in texts))
        config = config_for(paths[0], tmp_path / "run")
        config.data = replace(config.data, path=[str(path) for path in paths], held_out_fraction=0.1)
        data = dataset.encode(config, tokenizer, tokenizer.vocab_size)
        assert sum(file.samples for file in data.report.files) == len(data.training)
    assert 0 < len(calls) < 20


@pytest.mark.unit
def test_the_sample_answers_the_question_that_is_shown(model: Path) -> None:
    tokenizer = Tokenizer.from_directory(model)
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    for left_out, question in ((frozenset(), "user 0"), (frozenset([1]), "user 1")):
        example = Example(turns, left_out)
        prompt = tokenizer.decode(encode_prompt(tokenizer, example)[0], skip_special=False)
        assert example.question == question
        assert prompt.endswith(f"{question}<|im_end|>\n<|im_start|>assistant\n")
    assert encode_prompt(tokenizer, Example(turns, frozenset([1, 3])))[0]  # trained on prompts alone
    text = "What is 1 plus 1? " * 20
    for document, begins in ((text, text), ("What", "What")):
        prompt, is_question = encode_prompt(tokenizer, Example([], document=document))
        assert begins.startswith(tokenizer.decode(prompt)) and prompt and not is_question
    assert tokenizer.decode(encode_prompt(tokenizer, Example([], document="What"))[0]) == "What"
