"""What is trained: answers and their end-of-turn, in every turn; prompts, templates and padding are not."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.data import DataLoader, Example, Sample, encode_example, text_windows
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer

from .. import smollm2

QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris, on the Seine."}
ONE_TURN = Example([QUESTION, ANSWER])
TWO_TURNS = Example(
    [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        ANSWER,
        {"role": "user", "content": "And of Spain?"},
        {"role": "assistant", "content": "Madrid.\n\nA city of 3,300,000."},
    ]
)


@functools.cache
def chatml() -> Tokenizer:
    """ChatML on a small vocabulary."""
    return Tokenizer.train([message["content"] for message in TWO_TURNS.messages] * 3, 330)


def with_template(template: str | None, adds_bos: bool = False) -> Tokenizer:
    base = chatml()
    return Tokenizer(
        base.backend,
        bos_id=base.unk_id,  # <|endoftext|>
        eos_id=base.eos_id,
        pad_id=base.pad_id,
        chat_template=template,
        adds_bos=adds_bos,
    )


def text(tokenizer: Tokenizer, sample: Sample, trained: bool) -> str:
    """The text of the tokens that are trained, or of those that are not."""
    return tokenizer.decode(sample.tokens[sample.trained == trained].tolist(), skip_special=False)


# ---------------------------------------------------------------------- the default model's template
@pytest.mark.model
def test_only_the_answer_and_its_end_of_turn_are_trained() -> None:
    tokenizer = smollm2.tokenizer()
    sample = encode_example(ONE_TURN, tokenizer)
    assert text(tokenizer, sample, True) == "Paris, on the Seine.<|im_end|>"
    assert text(tokenizer, sample, False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n\n"
    )
    assert sample.tokens[sample.trained][-1] == tokenizer.eos_id
    assert (sample.tokens.dtype, sample.trained.dtype) == (np.int32, np.bool_)
    assert not sample.truncated


@pytest.mark.model
def test_every_answer_of_a_conversation_is_trained() -> None:
    tokenizer = smollm2.tokenizer()
    sample = encode_example(TWO_TURNS, tokenizer)
    assert text(tokenizer, sample, True) == ("Paris, on the Seine.<|im_end|>Madrid.\n\nA city of 3,300,000.<|im_end|>")
    assert "And of Spain?<|im_end|>\n<|im_start|>assistant\n" in text(tokenizer, sample, False)


@pytest.mark.peers
@pytest.mark.model
@pytest.mark.parametrize("example", [ONE_TURN, TWO_TURNS], ids=["one turn", "two turns"])
def test_tokens_are_those_of_transformers_for_the_whole_conversation(example: Example) -> None:
    transformers = pytest.importorskip("transformers")
    ours = smollm2.tokenizer()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=ours.backend, chat_template=ours.chat_template)
    expected = theirs.apply_chat_template(example.messages, tokenize=True, return_dict=True)["input_ids"]
    assert encode_example(example, ours).tokens.tolist() == expected


@pytest.mark.model
def test_the_text_is_tokenized_once_and_a_token_across_the_border_is_trained() -> None:
    """As transformers' masks have it: every token that stands for a character of the answer."""
    tokenizer = smollm2.tokenizer()
    for content, joined in (("Paris", ""), ("\n\nParis", "\n"), ("  Paris", "\n"), ("\tParis", "")):
        example = Example([QUESTION, {"role": "assistant", "content": content}])
        sample = encode_example(example, tokenizer)
        assert sample.tokens.tolist() == tokenizer.apply_chat_template(example.messages)
        assert text(tokenizer, sample, True) == f"{joined}{content}<|im_end|>"
        prompt = tokenizer.apply_chat_template(example.messages[:1], add_generation_prompt=True)
        first = int(sample.trained.argmax())
        assert sample.tokens[:first].tolist() == (prompt[:-1] if joined else prompt)


# ---------------------------------------------------------------------- options
@pytest.mark.unit
def test_with_train_on_prompt_everything_but_the_first_token_is_trained() -> None:
    sample = encode_example(TWO_TURNS, chatml(), train_on_prompt=True)
    assert not sample.trained[0]  # nothing comes before it
    assert sample.trained[1:].all()
    plain = encode_example(TWO_TURNS, chatml())
    np.testing.assert_array_equal(sample.tokens, plain.tokens)
    assert plain.trained.sum() < sample.trained.sum()


@pytest.mark.unit
def test_longer_examples_are_cut_and_say_so() -> None:
    whole = encode_example(TWO_TURNS, chatml())
    for length in (1, 5, len(whole) - 1, len(whole), len(whole) + 1):
        cut = encode_example(TWO_TURNS, chatml(), length)
        assert len(cut) == min(length, len(whole))
        np.testing.assert_array_equal(cut.tokens, whole.tokens[:length])
        np.testing.assert_array_equal(cut.trained, whole.trained[:length])
        assert cut.truncated == (length < len(whole))
    lengths = [encode_example(TWO_TURNS, chatml(), length) for length in (20, 10_000)]
    assert DataLoader([*lengths, whole], 1, len(whole) - 1).truncated == 3
    assert DataLoader([*lengths, whole], 1, len(whole)).truncated == 1


@pytest.mark.unit
def test_an_answer_that_is_cut_off_whole_leaves_nothing_to_train() -> None:
    prompt = int(encode_example(ONE_TURN, chatml()).trained.argmax())
    cut = encode_example(ONE_TURN, chatml(), prompt)
    assert not cut.trained.any()
    with pytest.raises(
        ConfigError,
        match=rf"^None of the {prompt} tokens of 1 examples is trained; the answers are missing, or cut off by the "
        rf"sequence length of {prompt}\.$",
    ):
        DataLoader([cut], 1, prompt)
    whole = encode_example(ONE_TURN, chatml())
    with pytest.raises(ConfigError, match="None of the"):
        DataLoader([whole], 1, prompt)  # cut by the loader
    DataLoader([whole], 1, prompt + 1)
    with pytest.raises(ConfigError, match="None of the 0 tokens of 0 examples is trained"):
        DataLoader([], 1, 8)
    with pytest.raises(ConfigError, match="None of the 1 tokens"):
        DataLoader([Sample(np.array([5], np.int32), np.array([True]))], 1, 8)  # nothing predicts a first token


# ---------------------------------------------------------------------- templates
@pytest.mark.unit
def test_white_space_after_the_end_of_turn_is_not_trained_and_inside_an_answer_is() -> None:
    example = Example([QUESTION, {"role": "assistant", "content": "a <|im_end|> b\n"}])
    sample = encode_example(example, chatml())
    assert text(chatml(), sample, True) == "a <|im_end|> b\n<|im_end|>"
    assert text(chatml(), sample, False).endswith("<|im_start|>assistant\n\n")


@pytest.mark.unit
@pytest.mark.parametrize(("adds_bos", "written"), [(False, False), (True, False), (True, True), (False, True)])
def test_a_beginning_of_text_token_comes_once(adds_bos: bool, written: bool) -> None:
    body = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    end = "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = with_template(("{{ bos_token }}" if written else "") + body + end, adds_bos)
    sample = encode_example(ONE_TURN, tokenizer)
    assert (sample.tokens == tokenizer.bos_id).sum() == int(adds_bos or written)
    assert (sample.tokens[0] == tokenizer.bos_id) == (adds_bos or written)
    assert not sample.trained[0]
    assert text(tokenizer, sample, True) == "Paris, on the Seine.<|im_end|>"


@pytest.mark.unit
def test_a_model_without_a_template_gets_the_alpaca_layout() -> None:
    tokenizer = with_template(None, adds_bos=True)
    sample = encode_example(TWO_TURNS, tokenizer)
    assert text(tokenizer, sample, True) == ("Paris, on the Seine.<|im_end|>Madrid.\n\nA city of 3,300,000.<|im_end|>")
    assert tokenizer.decode(sample.tokens.tolist(), skip_special=False) == (
        "<|endoftext|>Be brief.\n\n### Instruction:\nWhat is the capital of France?\n\n### Response:\n"
        "Paris, on the Seine.<|im_end|>\n\n### Instruction:\nAnd of Spain?\n\n### Response:\n"
        "Madrid.\n\nA city of 3,300,000.<|im_end|>"
    )


@pytest.mark.peers
def test_an_answer_of_a_sentencepiece_model_begins_as_in_the_whole_text(tmp_path: Path) -> None:
    """LLaMA 2's layout: a space that the tokenizer puts before a text must not come before every answer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, trainers

    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    texts = [message["content"] for message in TWO_TURNS.messages]
    backend.train_from_iterator(texts * 5, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}[INST] {{ m.content }} [/INST]\n{% endif %}{% endfor %}"
    )
    theirs: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_directory(tmp_path)
    expected = theirs.apply_chat_template(TWO_TURNS.messages, tokenize=True, return_dict=True)["input_ids"]
    sample = encode_example(TWO_TURNS, ours)
    assert sample.tokens.tolist() == expected
    trained = [ours.token(index) for index in sample.tokens[sample.trained].tolist()]
    assert not trained[0].startswith("▁")
    assert "".join(trained).startswith("Paris,▁on▁the▁Seine.</s>Madrid.")


# ---------------------------------------------------------------------- plain text
@pytest.mark.unit
def test_windows_follow_each_other_over_all_texts() -> None:
    tokenizer = chatml()
    texts = ["What is the capital of France?", "Paris", "And of Spain?"] * 6
    stream = [index for each in texts for index in [*tokenizer.encode(each), tokenizer.eos_id]]
    windows, rest = text_windows(texts, tokenizer, 16)
    assert len(windows) == len(stream) // 16 > 3
    assert np.concatenate([window.tokens for window in windows]).tolist() == stream[: 16 * len(windows)]
    for window in windows:
        assert window.trained.tolist() == [False] + [True] * 15
    assert rest == len(stream) % 16
    for given, length, left in ((texts, len(stream) + 1, len(stream)), ([], 4, 0)):
        windows, rest = text_windows(given, tokenizer, length)
        assert (len(windows), rest) == (0, left)


@pytest.mark.unit
def test_documentation_text_is_not_read_as_special_tokens() -> None:
    windows, _ = text_windows(["a <|im_start|> b " * 20], chatml(), 8)
    assert not any((window.tokens == chatml().id("<|im_start|>")).any() for window in windows)


@pytest.mark.unit
def test_examples_survive_json(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": TWO_TURNS.messages}))
    from entrenar.data import read_examples

    (again,) = read_examples(tmp_path / "x.jsonl")
    first, second = encode_example(again, chatml()), encode_example(TWO_TURNS, chatml())
    np.testing.assert_array_equal(first.tokens, second.tokens)


@pytest.mark.unit
@pytest.mark.parametrize("weights", [{0: 0.25, 1: 0.5}, {0: 0.5, 1: 0.25}], ids=["rising", "falling"])
def test_a_token_of_two_answers_has_the_greater_weight(weights: dict[int, float]) -> None:
    template = "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
    tokenizer = with_template(template)
    answers = [{"role": "assistant", "content": content} for content in ("What is the capi", "tal of France?")]
    sample = encode_example(Example(answers, weights=weights), tokenizer)
    ends = np.cumsum([len(tokenizer.decode([token])) for token in sample.tokens.tolist()])
    across = int(np.searchsorted(ends, len(answers[0]["content"])))
    assert ends[across] > len(answers[0]["content"])  # one token stands for characters of both
    assert sample.weights is not None
    assert sample.weights.tolist() == [
        *([weights[0]] * across),
        0.5,
        *([weights[1]] * (len(sample.tokens) - across - 1)),
    ]
