"""Fine-tuning from a checkpoint and examples to an adapter (or a model), with everything a user wants to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from entrenar.adapters.peft import continue_adapter, save_adapter
from entrenar.autograd import Tensor
from entrenar.config import nearest
from entrenar.data import Batch, DataLoader, Example, MixedLoader, encode_document, encode_example
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.config import LLaMAConfig
from entrenar.models.storage import StoragePolicy
from entrenar.models.weights import storage_of
from entrenar.train import dataset, preference_data, report, run
from entrenar.train.callbacks import Record
from entrenar.train.config import NO_ADAPTER, Pretrained, TrainConfig, shape_hint
from entrenar.train.fingerprint import of_tokenizer
from entrenar.train.memory import MemoryEstimate, plan
from entrenar.train.objective import Objective
from entrenar.train.preference import PreferenceObjective
from entrenar.train.stopping import end_tokens, stop_remarks
from entrenar.train.summary import Summary
from entrenar.train.trainer import Trainer
from entrenar.train.vocabulary import padding, vocabulary_remarks
from entrenar.train.written import to_run_again, whole_toml

SAMPLE_TOKENS = 64
TEMPLATE = "The chat template "  # how a sentence begins that is about the model's, whatever the record
DOCUMENT_PROMPT_TOKENS = 32  # of a plain text, at most


def finetune(
    model_path: str | Path,
    config: TrainConfig,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    shape: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> run.Result:
    """Fine-tune the checkpoint at `model_path` as `config` says and write the adapter (or model) and metrics.csv.

    `dtype` and `quantize` are those of `LLaMAModel.from_pretrained`; [qlora] has its own `quantize`, and where all
    weights are trained they stay in float32. `shape` holds keys of [model] with the values that the checkpoint must
    have.
    Raises EntrenarError with one clear sentence for everything that is wrong with the input, before training starts
    wherever it can be known.
    """
    console = console or report.Output()
    policy = storage_policy(config, dtype, quantize)
    base = Pretrained(str(model_path), policy.dtype, quantize, NO_ADAPTER if config.adapter is None else None)
    toml = whole_toml(to_run_again(config), base, shape)
    with run.prepared(config, console) as config:
        with console.status("reading model and examples"):
            trainer, tokenizer, example, needed, record = _assemble(model_path, config, policy, shape or {}, console)
            record.toml = toml
        return _run(trainer, tokenizer, example, needed, record, console, str(model_path))


def _run(
    trainer: Trainer,
    tokenizer: Tokenizer,
    example: Example,
    needed: MemoryEstimate,
    record: Record,
    console: Console,
    base: str,
) -> run.Result:
    config = trainer.config
    record.summary.model, record.summary.estimate = base, needed.items
    _show_summary(console, trainer, needed, record.summary)

    def save(output: Path) -> None:
        if config.adapter is not None:
            save_adapter(trainer.model, output, base_model=base)
            return
        origin = trainer.model.origin
        as_it_came = origin is not None and origin.tokenizer_files()
        trainer.model.save_pretrained(output, tokenizer=None if as_it_came else tokenizer)

    return run.execute(
        trainer,
        output=Path(config.checkpointing.directory) / ("model" if config.adapter is None else "adapter"),
        save=save,
        prompt=_shown_prompt(tokenizer, example, config.data.train_on_prompt),
        sample=lambda: _sample(trainer.model, tokenizer, example, config.data.train_on_prompt),
        record=record,
        console=console,
    )


def _check_shape(actual: LLaMAConfig, wanted: Mapping[str, Any], model_path: str | Path) -> None:
    """ConfigError where the checkpoint's shape is another than a configuration file says."""
    known = [spec.name for spec in fields(actual)]
    for key, value in wanted.items():
        if key not in known:
            raise ConfigError(f"model.{key} is no known key; {shape_hint(key) or nearest(key, known)}")
        if getattr(actual, key) != value:
            raise ConfigError(
                f"model.{key} is {value}, and {model_path} has {getattr(actual, key)}; remove [model], whose shape is "
                "that of a model to train from scratch, or choose the checkpoint that has it."
            )


def _assemble(
    model_path: str | Path, config: TrainConfig, policy: StoragePolicy, shape: Mapping[str, Any], console: Console
) -> tuple[Trainer, Tokenizer, Example, MemoryEstimate, Record]:
    """The trainer, the tokenizer, the held-out example to sample, the memory estimate, and what is to be written."""
    checkpoint = Checkpoint.open(model_path)
    checkpoint.check()
    _check_shape(checkpoint.config, shape, model_path)
    if config.adapter is None:
        _check_can_be_saved(checkpoint)
    check_length(config, checkpoint.config, str(checkpoint.path))
    storage = storage_of(checkpoint, policy)
    checkpointing, needed = plan(checkpoint.config, config, storage)
    tokenizer = checkpoint.tokenizer()
    rows = checkpoint.config.vocab_size
    preferences = config.preference.method != "none"
    try:
        data = (preference_data if preferences else dataset).encode(config, tokenizer, rows)
    except FormatError as error:
        if not str(error).startswith(TEMPLATE):
            raise
        raise FormatError(f"{model_path}: {error}") from error
    model = LLaMAModel.from_checkpoint(checkpoint, storage)
    loader, batches, objective = _batches(config, data, model, padding(tokenizer, rows))
    model.gradient_checkpointing = checkpointing
    of_adapter = [] if model.adapter_config is None else model.adapter_config.remarks(model)
    remarks = [
        *checkpoint.remarks,
        *of_adapter,
        *tokenizer.remarks,
        *vocabulary_remarks(tokenizer, rows),
        *data.report.remarks(),
        *([] if isinstance(data, dataset.Dataset) else data.remarks(config.preference)),
    ]
    remarks += stop_remarks(loader.samples, end_tokens(model, tokenizer), tokenizer)
    record = Record(Path(config.checkpointing.directory), Summary(remarks, data.report.table()))
    fixed: dict[str, Any] = {"the tokenizer": of_tokenizer(tokenizer)}
    if isinstance(loader, MixedLoader):
        fixed["the weights of the files"] = list(loader.mix.weights)
    trainer = Trainer(
        model, config, loader, batches, run.callbacks(config, record, console), fixed=fixed, objective=objective
    )
    return trainer, tokenizer, data.shown, needed, record


def _batches(
    config: TrainConfig, data: dataset.Dataset | preference_data.PreferenceSides, model: LLaMAModel, pad_id: int | None
) -> tuple[DataLoader, Sequence[Batch], Objective]:
    """The loader, the held-out batches and the loss, and the adapters on the model, which comes without.

    An adapter that is continued is part of the reference of preferences, as in TRL.
    """
    begun = config.training.continue_adapter
    if isinstance(data, dataset.Dataset):
        loader, batches = run.batches(config, data.training, data.held_out, pad_id, data.mix)
        _adapt(model, config)
        return loader, batches, Objective()
    if begun is not None:
        _adapt(model, config)
    of_preferences = data.batches(config, model, pad_id or 0)
    if begun is None:
        _adapt(model, config)
    t = config.training
    return *of_preferences, PreferenceObjective(config.preference, t.batch_size * t.gradient_accumulation)


def _adapt(model: LLaMAModel, config: TrainConfig) -> None:
    """Put the adapters of the configuration on the model, where it has some."""
    begun, seed = config.training.continue_adapter, config.training.seed
    if config.adapter is not None and begun is not None:
        continue_adapter(model, begun, config.adapter, seed)
    elif config.adapter is not None:
        config.adapter.apply(model, seed)


def check_length(config: TrainConfig, shape: LLaMAConfig, where: str) -> None:
    """ConfigError where a row, with what an adapter puts before it, is longer than the model's context."""
    length, context = config.training.sequence_length, shape.context
    added = 0 if config.adapter is None else config.adapter.added_positions
    if length + added > context:
        before = f", with {added} positions of the adapter before it" if added else ""
        raise ConfigError(
            f"training.sequence_length is {length}{before}, longer than the context of {where}: {context}."
        )


def storage_policy(config: TrainConfig, dtype: str, quantize: str | None) -> StoragePolicy:
    """How the base is stored; ConfigError where the adapter's section says that too, as [qlora] does, and for storage
    of frozen weights where all are trained."""
    adapter = config.adapter
    if adapter is None:
        if dtype not in ("auto", "float32"):
            raise ConfigError(f"dtype is {dtype}, which is storage of frozen weights; train all weights in float32.")
        if quantize is not None:
            raise ConfigError(f"quantize is {quantize}, which is storage of frozen weights; train all in float32.")
        return StoragePolicy("float32")
    options = adapter.storage_options()
    if options and quantize is not None:
        section = adapter.section
        raise ConfigError(f"quantize is {quantize}, and [{section}] has its own; set {section}.quantize.")
    return StoragePolicy(dtype, **({"quantize": quantize} | options))


def _check_can_be_saved(checkpoint: Checkpoint) -> None:
    """ConfigError, before hours are spent, where all weights are trained and could not be written as a directory."""
    try:
        checkpoint.config.to_hf()
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from error


def _show_summary(console: Console, trainer: Trainer, needed: MemoryEstimate, summary: Summary) -> None:
    model = trainer.model
    total = sum(weight.size for _, weight in model.named_parameters())
    trainable = sum(tensor.size for _, tensor in trainer.parameters)
    sizes: dict[str, int] = {}
    for _, weight in model.named_parameters():
        weight_type = weight.dtype if isinstance(weight, Tensor) else weight.weight_type
        sizes[weight_type] = sizes.get(weight_type, 0) + weight.size
    share = f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)"
    rows = run.summary_rows(trainer, share, needed)
    rows["weights"] = ", ".join(f"{count / 1e6:.1f} M {weight_type}" for weight_type, count in sizes.items())
    recomputed, layers = model.gradient_checkpointing, model.config.num_hidden_layers
    rows["gradient checkpointing"] = f"{recomputed} of {layers} layers" if recomputed else "off"
    report.summary(console, "Fine-tuning", rows)
    unquantized = Counter((name.split(".")[-2], reason) for name, reason in model.unquantized.items())
    for (layer, reason), count in unquantized.items():
        summary.remarks.append(f"{layer} of {count} layers stays in full precision: {reason}.")
    judged = trainer.held_out if trainer.objective.of_tokens else []
    few = report.held_out_size(sum(batch.trained_tokens for batch in judged)) if judged else None
    summary.remarks += [few] if few else []
    report.remarks(console, summary.remarks)


def _sample(model: LLaMAModel, tokenizer: Tokenizer, example: Example, train_on_prompt: bool) -> str:
    """The model's greedy answer to the prompt of a held-out example."""
    new = min(SAMPLE_TOKENS, model.config.context - 1)
    prompt, _ = encode_prompt(tokenizer, example, train_on_prompt)
    stop = tuple(end_tokens(model, tokenizer))
    shown = prompt[-(model.config.context - new) :]
    answer = model.generate(shown, max_new_tokens=new, stop=stop, generation=model.generation.plain())
    return tokenizer.decode(answer)


def _shown_prompt(tokenizer: Tokenizer, example: Example, train_on_prompt: bool) -> str:
    """What the sample answers: the question, or how a text begins."""
    prompt, is_question = encode_prompt(tokenizer, example, train_on_prompt)
    return example.question if is_question else tokenizer.decode(prompt)


def encode_prompt(tokenizer: Tokenizer, example: Example, train_on_prompt: bool = False) -> tuple[list[int], bool]:
    """The tokens of an example up to where its answer begins, and True.

    The first of a plain text, and False; so too, where all is trained, for a template that does not show where an
    answer stands.
    """
    if example.segments:
        return tokenizer.encode(example.question)[-DOCUMENT_PROMPT_TOKENS:], False
    if example.document is not None:
        return encode_document(example.document, tokenizer, DOCUMENT_PROMPT_TOKENS).tokens[:-1].tolist(), False
    try:
        sample = encode_example(example, tokenizer)
    except ConfigError:
        if not train_on_prompt:
            raise
        whole = encode_example(example, tokenizer, DOCUMENT_PROMPT_TOKENS, train_on_prompt=True)
        return whole.tokens[:-1].tolist(), False
    return sample.tokens[: int(sample.trained.argmax()) or None].tolist(), True  # all, where no answer is trained
