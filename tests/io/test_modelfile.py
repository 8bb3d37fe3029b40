"""Modelfiles for Ollama: what its parser reads of them, and that its templates write what the model's own do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar.errors import ConfigError
from entrenar.io.go_template import GoTemplate, literal
from entrenar.io.modelfile import go_template, parameters, write_modelfile
from entrenar.io.tokenizer import CHATML_TEMPLATE, Tokenizer

from ..edges.chats import TEMPLATES
from .ollama import Wrong, parse_modelfile, render

pytestmark = pytest.mark.unit

BOS = "<|im_start|>"  # of the tokenizer that these tests train
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
OTHERS = {  # further shapes of templates
    "chatml": CHATML_TEMPLATE,
    "alpaca": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% else %}"
    "{{ '### Response:\n' + m['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
    "gemma with a system message": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set prefix = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% else %}"
    "{% set prefix = '' %}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + (prefix if loop.first else '')"
    " + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "mistral with a beginning": "{{ bos_token + 'TEXT ' }}{% if messages[0]['role'] == 'system' %}"
    "{% set s = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST]' }}{% if loop.last and s is defined %}{{ s + '|' }}{% endif %}"
    "{{ m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    "braces": "{% for m in messages %}{{ '{{' + m['role'] + '}} \"\"\"\u200b' + m['content'] + '\n\"' }}{% endfor %}"
    '{% if add_generation_prompt %}{{ \'{{assistant}} """\u200b\' }}{% endif %}',
}
WITHOUT = {  # templates that no text around the messages gives
    "in capitals": "{% for m in messages %}{{ m['role'] + m['content'] | upper }}{% endfor %}",
    "numbered turns": "{% for m in messages %}{{ loop.index ~ m['role'] + m['content'] }}{% endfor %}",
    "the last message alone": "{{ messages[-1]['content'] }}",
    "looks into the text": "{% for m in messages %}{{ m['role'] }}{% if '\n' in m['content'] %}:{% endif %}"
    "{{ m['content'] }}{% endfor %}",
}
REFUSING = {  # and those that a request cannot be written by
    "refuses everything": ("{{ raise_exception('no') }}", "no"),
    "fails": ("{{ messages.nothing.nothing }}", "nothing"),
    "is cut": ("{% for m in messages %}{{ m.content }", "unexpected '}'"),
}
CONVERSATIONS = ["u", "su", "uau", "suau", "uauau", "suauauau"]
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def tokenizer(template: str | None, **changes: Any) -> Tokenizer:
    made = Tokenizer.train(["some text"], 300)
    made.chat_template = template
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def template_of(name: str) -> str:
    return OTHERS[name] if name in OTHERS else (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def conversation(letters: str) -> list[dict[str, str]]:
    texts = [
        "Say {{ it }}.",
        "first\n\nsecond",
        'a "quoted" word',
        "d\u00e9j\u00e0",
        "<|x|>",
        "7",
        "[INST]",
        "&",
        "end",
    ]
    return [{"role": ROLES[letter], "content": text} for letter, text in zip(letters, texts, strict=False)]


def through_ollama(path: Path, messages: Sequence[dict[str, str]]) -> str:
    (template,) = (argument for command, argument in parse_modelfile(path.read_text("utf-8")) if command == "template")
    return render(template, messages)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_ollama_writes_what_the_model_s_template_writes(name: str, adds_bos: bool, tmp_path: Path) -> None:
    """Whole conversations, through the parser and the template language; the token of the beginning is Ollama's."""
    made = tokenizer(template_of(name), adds_bos=adds_bos)
    write_modelfile(tmp_path / "Modelfile", base="base.gguf", tokenizer=made)
    compared = 0
    for letters in CONVERSATIONS:
        messages = conversation(letters)
        try:
            expected = made.render_chat(messages, add_generation_prompt=True).text
        except ConfigError:
            assert letters[0] == "s"  # Gemma's refuses a system message alone
            continue
        found = through_ollama(tmp_path / "Modelfile", messages)
        if adds_bos and expected.startswith(BOS):
            found = BOS + found
        assert found == expected, letters
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", WITHOUT)
def test_a_template_without_a_form_in_go_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    remarks = write_modelfile(tmp_path / "Modelfile", base="base.gguf", tokenizer=tokenizer(WITHOUT[name]))
    commands = parse_modelfile((tmp_path / "Modelfile").read_text())
    assert "template" not in dict(commands)
    assert len(remarks) == 1
    assert "has no form in Ollama's template language" in remarks[0]


@pytest.mark.parametrize("name", REFUSING)
def test_a_template_that_fails_is_left_out_and_its_error_said(name: str, tmp_path: Path) -> None:
    template, error = REFUSING[name]
    (remark,) = write_modelfile(tmp_path / "Modelfile", base="base.gguf", tokenizer=tokenizer(template))
    assert "template" not in dict(parse_modelfile((tmp_path / "Modelfile").read_text()))
    assert "chat template refuses a plain request, so none is written: " in remark
    assert error in remark.split(": ", 2)[2]
    assert "\n" not in remark


def test_an_end_token_that_no_text_has_is_said(tmp_path: Path) -> None:
    made = tokenizer(CHATML_TEMPLATE)
    (remark,) = write_modelfile(tmp_path / "Modelfile", base="base.gguf", tokenizer=made, end_tokens=[700000])
    assert remark.endswith("The end token 700000 is none of the tokenizer's: no text ends at it.")
    commands = parse_modelfile((tmp_path / "Modelfile").read_text())
    assert [a for c, a in commands if c == "stop"] == ["<|im_end|>"]


def test_an_answer_that_was_begun_is_continued(tmp_path: Path) -> None:
    write_modelfile(tmp_path / "Modelfile", base="base.gguf", tokenizer=tokenizer(CHATML_TEMPLATE))
    text = through_ollama(tmp_path / "Modelfile", conversation("ua"))
    assert text.endswith("<|im_start|>assistant\nfirst\n\nsecond")


def test_a_system_message_that_the_template_refuses_is_said() -> None:
    _, remarks = go_template(tokenizer(template_of("gemma")))
    assert any("takes no system message" in remark for remark in remarks)
    assert any("spaces off the ends" in remark for remark in remarks)


def test_what_go_cannot_do_is_said() -> None:
    assert any("today's date" in remark for remark in go_template(tokenizer(template_of("llama3.2")))[1])
    remarks = go_template(tokenizer(template_of("qwen3")))[1]
    assert any("reasoning of earlier answers" in remark for remark in remarks)
    assert any("can take tools" in remark for remark in remarks)
    assert go_template(tokenizer(CHATML_TEMPLATE))[1] == []


def test_the_file_says_where_texts_end_and_how_they_are_sampled(tmp_path: Path) -> None:
    made = tokenizer(CHATML_TEMPLATE)
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    ends = [made.id("<|endoftext|>"), made.eos_id]
    write_modelfile(tmp_path / "Modelfile", base=tmp_path / "model.gguf", adapter=tmp_path / "deep" / "a.gguf",
                    tokenizer=made, end_tokens=ends, generation_config=sampling, context=131072)  # fmt: skip
    commands = parse_modelfile((tmp_path / "Modelfile").read_text())
    assert commands[:2] == [("model", "./model.gguf"), ("adapter", str(tmp_path / "deep" / "a.gguf"))]
    assert [a for c, a in commands if c == "stop"] == ["<|endoftext|>", "<|im_end|>"]
    found = {c: a for c, a in commands[3:] if c != "stop"}
    assert found == {"temperature": "0.7", "top_p": "0.8", "top_k": "20", "repeat_penalty": "1.05",
                     "repeat_last_n": "-1", "num_ctx": "4096"}  # fmt: skip


def test_a_short_context_stays_and_a_greedy_model_has_no_temperature() -> None:
    assert parameters({"temperature": 0.7, "do_sample": False, "top_p": None}) == {}
    assert parameters({"temperature": float("nan"), "do_sample": True, "top_k": True}) == {}


def test_the_context_is_that_of_a_short_model(tmp_path: Path) -> None:
    write_modelfile(tmp_path / "Modelfile", base="base.gguf", context=2048)
    assert ("num_ctx", "2048") in parse_modelfile((tmp_path / "Modelfile").read_text())


def test_a_model_without_a_template_is_said(tmp_path: Path) -> None:
    (remark,) = write_modelfile(tmp_path / "Modelfile", base="base.gguf", tokenizer=tokenizer(None))
    assert "no chat template" in remark
    assert (tmp_path / "Modelfile").read_text().startswith("# The model has no chat template")


def test_a_name_that_no_modelfile_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a character in its name"):
        write_modelfile(tmp_path / "Modelfile", base=tmp_path / "a\nb.gguf")
    assert not list(tmp_path.iterdir())


def test_a_name_with_spaces_is_read_back(tmp_path: Path) -> None:
    write_modelfile(tmp_path / "Modelfile", base=tmp_path / "my model.gguf")
    assert parse_modelfile((tmp_path / "Modelfile").read_text()) == [("model", "./my model.gguf")]


@pytest.mark.parametrize(
    "text", ["plain", "{{ .Content }}", '"""', '""""""', "}}{{", "\x00\u200b\U000e0001", '\n\t""', "{", "{{{"]
)
def test_any_text_can_stand_in_a_template(text: str) -> None:
    written = literal(text)
    assert '"""' not in written
    assert render(written, []) == text
    assert render(f"{written}{{{{ .Response }}}}", []) == text  # an action beside it
    parsed = parse_modelfile(f'FROM x\nTEMPLATE """{written}"""\n')
    assert parsed[1] == ("template", written)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TEMPLATE x",
        'FROM x\nTEMPLATE """open',
        "FROM x\nSTOP y",
        "FROM x\nPARAMETER heat 1",
        "FROM x\nPARAMETER num_ctx many",
    ],
)
def test_the_parser_refuses(text: str) -> None:
    with pytest.raises((Wrong, ValueError)):
        parse_modelfile(text)


PIECES = st.text(st.sampled_from('ab<|>{}" \n\t\u200b'), max_size=6)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(
    pieces=st.fixed_dictionaries(
        dict.fromkeys(("first", "later", "before_answer", "after_answer", "prompt", "after_system"), PIECES)
    ),
    before_system=st.none() | PIECES,
    system_last=st.booleans(),
    shared=st.booleans(),
    letters=st.sampled_from([*CONVERSATIONS, "ua", "sua"]),
    contents=st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=5), min_size=8),
)
def test_the_text_in_go_writes_what_its_parts_say(
    pieces: dict[str, str], before_system: str | None, system_last: bool, shared: bool, letters: str,
    contents: list[str],
) -> None:  # fmt: skip
    """Whatever stands around the messages, also where the system message ends as every turn does."""
    if shared:
        pieces["after_system"] += pieces["later"]
        pieces["first"] = pieces["first"][:1] + pieces["later"]
    made = GoTemplate(**pieces, before_system=before_system, system_last=system_last and before_system is not None)
    messages = [{"role": ROLES[letter], "content": text} for letter, text in zip(letters, contents, strict=False)]
    if before_system is None and letters[0] == "s":
        expected = made.render(messages[1:])  # it is left out
    else:
        expected = made.render(messages)
    assert render(made.text(), messages) == expected
    assert parse_modelfile(f'FROM x\nTEMPLATE """{made.text()}"""\n')[1] == ("template", made.text())


def test_no_action_trims() -> None:
    """A trim marker would take spaces of the text that stands beside it."""
    for name in NAMES:
        template, _ = go_template(tokenizer(template_of(name)))
        assert template is not None
        assert not re.search(r"\{\{- | -\}\}", template.text())
