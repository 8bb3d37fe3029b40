"""Tokenizers from GGUF metadata or tokenizer.json through the `tokenizers` library, with their chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.io import tokenizer_library as library

if TYPE_CHECKING:
    import tokenizers

    from entrenar.io.chat_template import ChatTemplate
    from entrenar.io.rendering import Rendering

Message = Mapping[str, Any]

CLEANED = (  # by transformers' clean_up_tokenization
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
TRAINED_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
# What another tokenizer may have left, and readers prefer to tokenizer.json and tokenizer_config.json.
OVERRIDING = (
    *("special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates"),
)
WRITING_BOS = "{{ bos_token }}{# which llama.cpp puts before the text #}\n"  # the line end is no part of the output
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer:
    """Text to token ids and back.

    Made by `from_gguf`, `from_file`, `from_directory` or `train`. Ids of special tokens are None where the vocabulary
    has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        pad_id: int | None = None,
        unk_id: int | None = None,
        named: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        templates: Mapping[str, str] | None = None,
        bos_before_chat: bool = True,
        adds_bos: bool = False,
        adds_eos: bool = False,
        cleans_up: bool = False,
        remarks: Sequence[str] = (),
    ) -> None:
        self.backend = backend
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = bos_id, eos_id, pad_id, unk_id
        first = () if eos_id is None else (eos_id,)
        self.eos_ids = tuple(dict.fromkeys((*first, *eos_ids)))  # every token that ends a text or a turn
        self.named = dict(named or {})  # further special tokens that templates read: sep_token, image_token, ...
        self.chat_template = chat_template
        self.templates = dict(templates or {})  # further ones by name; with tools that named tool_use is taken
        self.bos_before_chat = bos_before_chat  # before a template's text too, as llama.cpp and not as transformers
        self.adds_bos = adds_bos  # whether the model was trained with a beginning-of-text token
        self.adds_eos = adds_eos  # whether the reference puts `eos_id` after a text
        self.cleans_up = cleans_up  # whether decoding takes spaces before punctuation out
        self.remarks = list(remarks)  # what a person must know before training, a sentence each

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token(self, index: int | None) -> str:
        """The text of one id; empty for None."""
        return "" if index is None else self.backend.id_to_token(index) or ""

    def id(self, token: str) -> int | None:
        """The id of one token's text, or None."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of `text`. `parse_special` reads the text of special tokens as those tokens, else as plain text."""
        ids = self.encode_with_offsets(text, parse_special=parse_special)[0]
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True, **others: Any) -> dict[str, Any]:
        """input_ids and attention_mask as transformers gives them for a text, or lists of both for several.

        ConfigError for transformers' other options, which nothing reads.
        """
        if others:
            raise ConfigError(
                f"Tokenizer.__call__: {next(iter(others))} is no option here; ids come as lists, whole and without "
                "padding: numpy.array makes an array of them, entrenar.data.collate rows of samples."
            )
        if not isinstance(text, str):
            found = [self(each, add_special_tokens=add_special_tokens) for each in text]
            return {key: [each[key] for each in found] for key in ("input_ids", "attention_mask")}
        ids = self.encode(text, add_bos=add_special_tokens and self.adds_bos)
        if add_special_tokens and self.adds_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def encode_with_offsets(self, text: str, *, parse_special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, and for each the (start, stop) of the characters of `text` that it stands for.

        Tokens that share a character (its bytes, one each) have that character's offsets; a space that the tokenizer
        puts before a text has those of the first character.
        """
        self.backend.encode_special_tokens = not parse_special
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except BaseException as error:
            if not library.is_failure(error):
                raise
            raise FormatError(f"The tokenizer fails on the text {text[:60]!r} ({library.said(error)}).") from error
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        text = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        for written, meant in CLEANED if self.cleans_up else ():
            text = text.replace(written, meant)
        return text

    # ------------------------------------------------------------------ chat
    @property
    def has_template(self) -> bool:
        """Whether conversations are written by a chat template."""
        return self.chat_template is not None or bool(self.templates)

    def template(self, tools: Sequence[Any] | None = None) -> ChatTemplate:
        """The template that writes a conversation: with tools the one named tool_use, where there is one."""
        from entrenar.io.chat_template import compile_template

        if tools is not None and "tool_use" in self.templates:
            return compile_template(self.templates["tool_use"])
        if self.chat_template is not None:
            return compile_template(self.chat_template)
        if self.templates:
            raise ConfigError(
                f"The tokenizer has chat templates named {sorted(self.templates)} and none named default; write the "
                "one to use into chat_template.jinja."
            )
        raise ConfigError("The tokenizer has no chat template; format the prompt as plain text.")

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendering:
        """The messages as the model expects to read them, through its own template in a sandbox.

        The template gets what transformers gives it: `variables` beside the special tokens that there are, messages
        without keys that are None. Raises ConfigError where the tokenizer has no template or the template refuses,
        FormatError where it fails or takes more time or memory than a rendering should.
        """
        from entrenar.io.chat_template import plain_data, plain_messages

        template = self.template(tools)
        special = (("bos", self.bos_id), ("eos", self.eos_id), ("pad", self.pad_id), ("unk", self.unk_id))
        return template.render(
            {
                **self.named,
                **{f"{name}_token": self.token(index) for name, index in special if index is not None},
                **plain_data(variables or {}),
                "messages": plain_messages(messages),
                "tools": plain_data(tools),
                "documents": plain_data(documents),
                "add_generation_prompt": add_generation_prompt,
            }
        )

    @overload
    def apply_chat_template(self, messages: Sequence[Message], *, tokenize: Literal[False], **options: Any) -> str: ...

    @overload
    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: Literal[True] = True, **options: Any
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int] | str:
        """Token ids (or with `tokenize=False` the text) of messages as the model expects to read them.

        As in transformers: special tokens are parsed, none is added, `variables` reach the template. Raises as
        `render_chat`, and ConfigError for an empty conversation or an option of transformers that is not known here.
        """
        from entrenar.io.chat_template import check_variables

        check_variables(variables)
        if not messages:
            raise ConfigError("The conversation has no messages; expected at least one.")
        text = self.render_chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            variables=variables,
        ).text
        return self.encode(text) if tokenize else text

    # ------------------------------------------------------------------ making one
    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.*` metadata of a GGUF file: byte-level BPE ("gpt2") or SentencePiece BPE ("llama")."""
        from entrenar.io.tokenizer_gguf import from_gguf

        return Tokenizer(**vars(from_gguf(metadata)))

    @staticmethod
    def from_file(path: str | Path) -> Tokenizer:
        """From a tokenizer.json or tokenizer.model, with tokenizer_config.json and chat templates beside it."""
        from entrenar.io.tokenizer_hf import from_file

        return Tokenizer(**vars(from_file(Path(path))))

    @staticmethod
    def from_directory(directory: str | Path) -> Tokenizer:
        """From a Hugging Face directory that holds a tokenizer.json, or a tokenizer.model (SentencePiece)."""
        from entrenar.io.tokenizer_hf import vocabulary_file

        return Tokenizer.from_file(vocabulary_file(Path(directory)))

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE trained on `texts`, with ChatML special tokens and template; any text round-trips."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        least = 256 + len(TRAINED_SPECIAL)
        if vocab_size < least:
            raise ConfigError(
                f"vocab_size is {vocab_size}, expected at least {least}: 256 bytes and the special tokens."
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(TRAINED_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return Tokenizer(
            backend,
            bos_id=backend.token_to_id("<|im_start|>"),
            eos_id=backend.token_to_id("<|im_end|>"),
            pad_id=backend.token_to_id("<|pad|>"),
            unk_id=backend.token_to_id("<|endoftext|>"),
            chat_template=CHATML_TEMPLATE,
        )

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template) into `directory`.

        transformers' AutoTokenizer reads from them the same ids, special ids and what is put around a text. The files
        of another tokenizer that would override them go, others stay as they are.
        """
        from entrenar.io.atomic import atomic_files

        special = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unk_id}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.adds_bos,
            "add_eos_token": self.adds_eos,
            "clean_up_tokenization_spaces": self.cleans_up,
            "chat_template": self._written_templates(),
            **{f"{name}_token": self.token(index) for name, index in special.items() if index is not None},
        }
        if self.named:
            config["extra_special_tokens"] = self.named
        if self.eos_ids != (self.eos_id,):
            config["end_token_ids"] = list(self.eos_ids)  # transformers has a place for one
        self.backend.post_processor = self._post_processor()
        with atomic_files(directory, key="tokenizer.json", stale=lambda new: OVERRIDING) as folder:
            (folder / "tokenizer.json").write_text(self.backend.to_str(), encoding="utf-8")
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def _written_templates(self) -> Any:
        """The template as tokenizer_config.json has it: a text, or where there are several a list of named ones."""
        default = {} if self.chat_template is None else {"default": self.chat_template}
        named = {name: self._writing_bos(text) for name, text in {**default, **self.templates}.items()}
        if not self.templates:
            return named.get("default")
        return [{"name": name, "template": text} for name, text in named.items()]

    def _writing_bos(self, template: str) -> str:
        """The template, which writes the beginning-of-text token itself where llama.cpp puts it before the text."""
        if not self.adds_bos or not self.bos_before_chat or self.bos_id is None:
            return template
        bare = Tokenizer(self.backend, bos_id=self.bos_id, eos_id=self.eos_id, chat_template=template)
        try:
            text = bare.render_chat([{"role": "user", "content": "Hello"}], add_generation_prompt=True).text
        except EntrenarError:  # it asks for more than a question; those of such models write it
            return template
        return template if text.startswith(self.token(self.bos_id)) else WRITING_BOS + template

    def _post_processor(self) -> Any:
        """What puts `bos_id` before a text and `eos_id` after it, where the model was trained so."""
        from tokenizers import processors

        before = [self.bos_id] if self.adds_bos and self.bos_id is not None else []
        after = [self.eos_id] if self.adds_eos and self.eos_id is not None else []
        if not before and not after:
            return None

        def around(number: int) -> list[str]:
            first, last = ([f"{self.token(index)}:{number}" for index in ids] for ids in (before, after))
            return [*first, f"${'AB'[number]}:{number}", *last]

        return processors.TemplateProcessing(
            single=around(0),
            pair=around(0) + around(1),
            special_tokens=[(self.token(index), index) for index in {*before, *after}],
        )
