"""Fine-tuning from a checkpoint and examples to an adapter (or a model), with everything a user wants to see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from entrenar._kernels import cpu
from entrenar.autograd import Tensor
from entrenar.data import (
    DataLoader,
    Example,
    documentation_examples,
    encode_example,
    evaluation_batches,
    read_examples,
    split_held_out,
)
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama.budget import available_memory
from entrenar.llama.model import LLaMAModel
from entrenar.llama.weights import Checkpoint, load
from entrenar.lora.adapter import save_adapter, set_training
from entrenar.train import report
from entrenar.train.config import TrainConfig
from entrenar.train.evaluate import Evaluation, evaluate
from entrenar.train.memory import MemoryEstimate, check_budget, estimate
from entrenar.train.trainer import StepReport, Trainer

SAMPLE_TOKENS = 64


@dataclass(frozen=True)
class Result:
    """What a fine-tuning run leaves: evaluations, a sample answer before and after, and where the output is."""

    before: Evaluation
    after: Evaluation
    sample_before: str
    sample_after: str
    output: Path
    metrics: Path
    reports: list[StepReport]


def _examples(config: TrainConfig) -> tuple[list[Example], list[Example]]:
    found = documentation_examples() if config.data.path is None else read_examples(config.data.path)
    if config.data.max_examples:
        found = found[: config.data.max_examples]
    training, held_out = split_held_out(found, config.data.held_out_fraction)
    if not training or not held_out:
        raise ConfigError(
            f"{len(found)} examples leave {len(training)} to train on and {len(held_out)} to hold out; "
            "give more examples or another data.held_out_fraction."
        )
    return training, held_out


def _memory(
    config: TrainConfig, checkpoint: Checkpoint, dtype: str, quantize: str | None, checkpointing: bool
) -> MemoryEstimate:
    t = config.training
    return estimate(
        checkpoint.config,
        lora=config.adapter,
        dtype=dtype,
        quantize=quantize,
        optimizer=t.optimizer,
        batch_size=t.batch_size,
        sequence_length=t.sequence_length,
        checkpointing=checkpointing,
    )


def _plan(config: TrainConfig, checkpoint: Checkpoint, dtype: str, quantize: str | None) -> tuple[bool, MemoryEstimate]:
    """Whether to checkpoint blocks, and the estimate; MemoryBudgetError where nothing fits."""
    mode = config.training.gradient_checkpointing
    needed = _memory(config, checkpoint, dtype, quantize, mode == "on")
    use = mode == "on"
    if mode == "auto" and needed.total > available_memory():
        use = True
        needed = _memory(config, checkpoint, dtype, quantize, True)
    check_budget(needed)
    return use, needed


def _sample(model: LLaMAModel, tokenizer: Tokenizer, example: Example) -> str:
    """The model's greedy answer to the prompt of a held-out example."""
    prompt = encode_prompt(tokenizer, example)[-(model.config.max_position_embeddings - SAMPLE_TOKENS) :]
    stop = tuple(i for i in {tokenizer.eos_id, model.config.eos_token_id} if i is not None)
    set_training(model, False)
    answer = model.generate(prompt, max_new_tokens=SAMPLE_TOKENS, stop=stop)
    return tokenizer.decode(answer)


def encode_prompt(tokenizer: Tokenizer, example: Example) -> list[int]:
    """The tokens of an example up to where its answer begins."""
    sample = encode_example(example, tokenizer)
    first = int(sample.trained.argmax())
    return [int(token) for token in sample.tokens[:first]]


def _start(console: Console, config: TrainConfig, model: LLaMAModel, needed: MemoryEstimate, trainer: Trainer) -> None:
    total = sum(weight.size for _, weight in model.named_parameters())
    trainable = sum(tensor.size for _, tensor in trainer.parameters)
    kinds: dict[str, int] = {}
    for _, weight in model.named_parameters():
        kind = weight.dtype if isinstance(weight, Tensor) else weight.kind
        kinds[kind] = kinds.get(kind, 0) + weight.size
    report.facts(
        console,
        "Fine-tuning",
        {
            "threads": str(cpu.get_num_threads()),
            "SIMD tier": cpu.tier(),
            "weights": ", ".join(f"{count / 1e6:.1f} M {kind}" for kind, count in kinds.items()),
            "trainable parameters": f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)",
            "estimated peak memory": f"{report.gib(needed.total)} of {report.gib(available_memory())} available",
            "gradient checkpointing": "on" if model.gradient_checkpointing else "off",
            "data": f"{len(trainer.loader.samples):,} examples, {100 * trainer.loader.trained_fraction:.0f} % of the tokens "
            f"trained, {trainer.loader.truncated} truncated",
            "steps": f"{config.training.steps} of {config.training.batch_size * config.training.gradient_accumulation} x "
            f"{config.training.sequence_length} tokens",
        },
    )
    for name, reason in model.unquantized.items():
        console.print(f"{name} stays in full precision: {reason}.")


def finetune(
    model_path: str | Path,
    config: TrainConfig,
    *,
    dtype: str = "float32",
    quantize: str | None = None,
    console: Console | None = None,
) -> Result:
    """Fine-tune the checkpoint at `model_path` as `config` says and write the adapter (or model) and metrics.csv.

    `dtype` and `quantize` are those of LLaMAModel.from_pretrained. Raises EntrenarError with one clear sentence for
    everything that is wrong with the input, before training starts wherever it can be known.
    """
    console = console or Console()
    t = config.training
    if t.threads:
        cpu.set_num_threads(t.threads)
    checkpoint = Checkpoint.open(model_path)
    checkpoint.check()
    if t.sequence_length > checkpoint.config.max_position_embeddings:
        raise ConfigError(
            f"training.sequence_length is {t.sequence_length}, longer than the model's context of "
            f"{checkpoint.config.max_position_embeddings}."
        )
    tokenizer = checkpoint.tokenizer()
    training, held_out = _examples(config)
    checkpointing, needed = _plan(config, checkpoint, dtype, quantize)
    pad = tokenizer.pad_id or 0
    only = config.data.train_on_prompt
    samples = [encode_example(example, tokenizer, t.sequence_length, train_on_prompt=only) for example in training]
    loader = DataLoader(samples, t.batch_size, t.sequence_length, seed=t.seed, packing=config.data.packing, pad_id=pad)
    held_out_samples = [encode_example(example, tokenizer, t.sequence_length) for example in held_out]
    batches = list(evaluation_batches(held_out_samples, t.batch_size, t.sequence_length, config.data.packing, pad))
    model = load(checkpoint, quantize=quantize, dtype=dtype)
    if config.adapter is not None:
        config.adapter.apply(model, t.seed)
    model.gradient_checkpointing = checkpointing
    return _run(model, config, tokenizer, loader, batches, held_out[0], needed, console, str(model_path))


def _run(
    model: LLaMAModel,
    config: TrainConfig,
    tokenizer: Tokenizer,
    loader: DataLoader,
    held_out: list,
    prompt: Example,
    needed: MemoryEstimate,
    console: Console,
    base_model: str,
) -> Result:
    trainer = Trainer(model, config, loader, held_out)
    _start(console, config, model, needed, trainer)
    before = evaluate(model, held_out)
    sample_before = _sample(model, tokenizer, prompt)
    console.print(f"held-out loss before: {before.loss:.4f} (perplexity {before.perplexity:.3f})")
    with report.steps(console, config.training.steps, trainer.step) as display:
        trainer.on_step = display
        reports = trainer.run()
    after = evaluate(model, held_out)
    sample_after = _sample(model, tokenizer, prompt)
    directory = Path(config.checkpointing.directory)
    metrics = directory / "metrics.csv"
    if config.adapter is not None:
        output = directory / "adapter"
        save_adapter(model, output, base_model=base_model)
    else:
        output = directory / "model"
        model.save_pretrained(output)
        tokenizer.save(output)
    report.write_metrics(metrics, reports)
    report.comparison(console, before, after)
    question = prompt.messages[-2]["content"] if len(prompt.messages) > 1 else ""
    for title, text in (("Prompt", question), ("Before", sample_before), ("After", sample_after)):
        console.print(f"[bold]{title}:[/bold] {escape(text.strip())}")
    console.print(f"[bold]Written:[/bold] {escape(str(output))} and {escape(str(metrics))}")
    return Result(before, after, sample_before, sample_after, output, metrics, reports)
