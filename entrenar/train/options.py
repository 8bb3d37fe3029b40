"""The options of what is done with a model that is there, without what acts on them: a help needs no engine."""

from __future__ import annotations

from dataclasses import dataclass

from entrenar.choices import FORMATS, PRECISIONS, PREFERENCES, QUANTIZE, SAVED_DTYPES, TOO_LONG
from entrenar.config import check_dataclass, option
from entrenar.errors import ConfigError
from entrenar.models.file_types import FILE_TYPES, KEEP
from entrenar.train.config import FORMAT_HELP, MODEL_HELP
from entrenar.train.synonyms import format_hint

ROW, BATCH = 512, 4  # tokens of a row, and rows that are evaluated at once
EXAMPLES_HELP = "examples: files (JSON, CSV, Parquet, text) or folders of texts"
HF, GGUF, GGUF_ADAPTER, MODELFILE = "hf", "gguf", "gguf-adapter", "modelfile"
FLOAT32 = "float32"
LARGEST_SHARD = 5.0  # GB


@dataclass
class SourceOptions:
    """Which model, and how it computes."""

    model: str | None = option(None, help=MODEL_HELP)
    quantize: str | None = option(
        None,
        help="4-bit format of the decoder's linears (auto, nf4, int4); unset keeps the types that the file has",
        choices=QUANTIZE[1:],
    )
    precision: str = option(
        "auto",
        help="of matrix products, as in training; auto is high where the machine has it",
        choices=("auto", *PRECISIONS),
    )
    threads: int = option(0, help="threads; 0 takes what the machine and environment say", minimum=0)

    def __post_init__(self) -> None:
        check_dataclass(self, "source")


@dataclass
class Rows:
    """Which examples are evaluated, and as what rows."""

    data: str | list[str] = option(help=EXAMPLES_HELP, words=True)
    held_out_fraction: float = option(
        1.0, help="share of them that is held out from training, chosen as finetune does; 1 is all", above=0, maximum=1
    )
    sequence_length: int = option(ROW, help="length of a row", unit="tokens", minimum=2)
    batch_size: int = option(BATCH, help="rows that run through the model at once", minimum=1)
    max_examples: int = option(0, help="use at most this many examples of each file; 0 is all", minimum=0)
    format: str = option("auto", help=FORMAT_HELP, choices=tuple(FORMATS), called=format_hint)
    train_on_prompt: bool = option(False, help="evaluate the prompts too, not only the answers")
    answers: str = option("all", help="which answers of a conversation are evaluated", choices=("all", "last"))
    too_long: str = option(
        "auto",
        help="what becomes of examples longer than a row; auto splits text files and truncates others",
        choices=TOO_LONG,
    )

    def __post_init__(self) -> None:
        check_dataclass(self, "evaluate")


@dataclass
class Checked:
    """Which examples are looked at, and as rows of which model."""

    data: str | list[str] = option(help=EXAMPLES_HELP, words=True)
    model: str | None = option(None, help=MODEL_HELP)
    sequence_length: int = option(ROW, help="length of a row", unit="tokens", minimum=2)
    max_examples: int = option(0, help="use at most this many examples of each file; 0 is all", minimum=0)
    format: str = option("auto", help=FORMAT_HELP, choices=tuple(FORMATS), called=format_hint)
    train_on_prompt: bool = option(False, help="train on the prompts too, not only on the answers")
    answers: str = option("all", help="which answers of a conversation are trained", choices=("all", "last"))
    too_long: str = option("auto", help="what becomes of examples longer than a row", choices=TOO_LONG)
    preference: str = option(
        "none",
        help="read preferences, as finetune does for this loss: prompt, chosen and rejected (dpo, orpo), or prompt, "
        "completion and label (kto)",
        choices=PREFERENCES,
    )
    show: int = option(3, help="samples that are shown; of preferences, records", minimum=0)
    eval_data: str | list[str] | None = option(
        None,
        help="examples to evaluate on, which are checked alike, and held against the others; unset is none",
        words=True,
    )

    def __post_init__(self) -> None:
        check_dataclass(self, "data")


@dataclass
class Sampling:
    """How tokens are chosen, and how many."""

    max_tokens: int = option(256, help="new tokens at most; fewer where the context ends", unit="tokens", minimum=1)
    temperature: float = option(0.0, help="0 takes the most likely token, 1 samples as the model says", minimum=0)
    top_k: int = option(0, help="sample among so many most likely tokens; 0 is all", minimum=0)
    top_p: float = option(
        1.0, help="sample among the most likely tokens that together reach this probability", above=0, maximum=1
    )
    seed: int = option(0, help="seed of sampling", minimum=0)
    system: str | None = option(None, help="the system message of the chat template; unset gives none")

    def __post_init__(self) -> None:
        check_dataclass(self, "generate")
        if self.temperature == 0 and (self.top_k, self.top_p, self.seed) != (0, 1.0, 0):
            raise ConfigError(
                "generate: top_k, top_p and seed have no effect where temperature is 0; give a temperature too."
            )


@dataclass
class ExportOptions:
    """What is written of which model."""

    model: str = option(help="GGUF file or Hugging Face directory")
    output: str = option(help="file (gguf) or folder (hf) to write")
    adapter: str | None = option(
        None, help="PEFT adapter directory or GGUF adapter: merged into the model, made a GGUF adapter, or named"
    )
    to: str = option(
        GGUF,
        help="what to write: a GGUF file, a Hugging Face directory, a GGUF adapter for llama.cpp and Ollama, or only "
        "Ollama's Modelfile of GGUF files",
        choices=(GGUF, HF, GGUF_ADAPTER, MODELFILE),
    )
    type: str = option(
        KEEP,
        help=f"type of a GGUF file's matrices ({', '.join((KEEP, *FILE_TYPES))}), each as llama-quantize decides; "
        f"{KEEP} is the type that the model has them in",
    )
    dtype: str = option(FLOAT32, help="of a directory's weights", choices=SAVED_DTYPES)
    max_shard_gb: float = option(LARGEST_SHARD, help="largest file of a directory's weights", unit="GB", above=0)
    data: str | None = option(None, help="examples whose loss is shown before and after; unset shows none")
    held_out_fraction: float = option(
        1.0, help="share of them that is held out from training, chosen as finetune does; 1 is all", above=0, maximum=1
    )
    sequence_length: int = option(ROW, help="length of a row of them", unit="tokens", minimum=2)
    modelfile: bool = option(True, help="write Ollama's Modelfile beside a GGUF output (model.gguf: model.Modelfile)")
    overwrite: bool = option(False, help="replace an output that is there")
