"""TrainConfig: the sections of a training configuration file, each key read by the trainer."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar.adapters import presets
from entrenar.adapters.options import LoRAOptions
from entrenar.choices import DTYPES, FALLS, FORMATS, PRECISIONS, PREFERENCES, QUANTIZE, TOO_LONG
from entrenar.config import (
    ADAPTER_SECTIONS,
    BASE_KEYS,
    SECTIONS,
    check_dataclass,
    from_table,
    load_toml,
    nearest,
    one_or_several,
    option,
)
from entrenar.errors import ConfigError
from entrenar.observe.loggers import LOGGERS
from entrenar.train.synonyms import format_hint, key_hint
from entrenar.train.updates import OPTIMIZERS, check_updates, optimizer_of, schedule_of

if TYPE_CHECKING:
    from entrenar.adapters.base import AdapterConfig
    from entrenar.optim import Optimizer, Schedule

# Keys that only some optimizers and schedules look at.
ADAM = ("adamw", "adam", "schedulefree_adamw", "muon")
NO_ADAPTER = "none"  # where a kind of adapter is said: train all weights
MODEL_HELP = "GGUF file or Hugging Face directory; unset is SmolLM2-135M-Instruct, fetched once"
FORMAT_HELP = "layout of the records; auto tells it from the keys of each"
LORAPLUS_LR_EMBEDDING = 1e-6  # PEFT's default
OPTIMIZER_KEYS: dict[str, tuple[str, ...]] = {"beta1": ADAM, "beta2": ADAM, "eps": ADAM, "momentum": ("sgd", "muon")}
PREFERENCE_KEYS: dict[str, tuple[str, ...]] = {
    "beta": ("dpo", "orpo", "kto"),
    "label_smoothing": ("dpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
FALLING = ("warmup_cosine", "linear", "wsd")
SCHEDULE_KEYS: dict[str, tuple[str, ...]] = {
    "warmup_steps": (*FALLING, "constant"),
    "min_lr": (*FALLING, "cosine"),
    "decay_steps": ("wsd",),
    "decay_shape": ("wsd",),
    "schedule_steps": (*FALLING, "cosine", "constant"),
    "step_size": ("step",),
    "gamma": ("step", "exponential"),
}


class Section:
    """A section whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        check_dataclass(self, SECTION_NAMES[type(self)])


@dataclass
class Training(Section):
    """[training]: how long, how much at once, with which optimizer."""

    steps: int = option(60, help="optimizer steps", minimum=1)
    epochs: float | None = option(
        None, help="passes over the data, in the place of steps, rounded up to whole steps; unset is steps", above=0
    )
    batch_size: int = option(1, help="rows that run through the model at once", minimum=1)
    gradient_accumulation: int = option(1, help="micro-batches whose gradients make one step", minimum=1)
    sequence_length: int = option(512, help="length of a row", unit="tokens", minimum=2)
    optimizer: str = option(
        "adamw",
        help="update rule; schedulefree_adamw averages the weights and needs lr_schedule.name = constant, muon is for "
        "matrices where all weights are trained, with adamw for the rest",
        choices=OPTIMIZERS,
    )
    learning_rate: float = option(1e-3, help="peak learning rate", above=0)
    weight_decay: float = option(
        0.0, help="decay of the weights in each step, of matrices only unless decay_norms is on", minimum=0
    )
    decay_norms: bool = option(
        False, help="let weight_decay act on norms and biases too, which transformers' Trainer leaves out"
    )
    loraplus_lr_ratio: float | None = option(
        None, help="learning rate of LoRA's B over that of A (LoRA+, Hayou et al., 2024), 16 say; unset is 1", minimum=1
    )
    loraplus_lr_embedding: float = option(
        LORAPLUS_LR_EMBEDDING, help="learning rate of LoRA on the embedding under LoRA+", above=0
    )
    beta1: float = option(0.9, help="decay of Adam's mean of gradients", minimum=0, below=1)
    beta2: float = option(0.999, help="decay of Adam's mean of squares", minimum=0, below=1)
    eps: float = option(1e-8, help="added to the root in Adam's step", above=0)
    momentum: float | None = option(
        None, help="momentum of sgd (unset is 0.9) and muon (unset is 0.95)", minimum=0, below=1
    )
    max_grad_norm: float = option(1.0, help="gradients are scaled down to this joint norm", above=0)
    seed: int = option(0, help="seed of initial weights, data order and dropout", minimum=0)
    threads: int = option(0, help="threads; 0 takes what the machine and environment say", minimum=0)
    precision: str = option(
        "auto",
        help="of matrix products: highest is fp32, high 16-bit integers with scales, medium 8-bit ones over "
        "weights of up to 8 bits; auto is high where the machine has it",
        choices=("auto", *PRECISIONS),
    )
    evaluate_every: int = option(0, help="steps between held-out evaluations; 0 is before and after only", minimum=0)
    sample_every: int = option(
        0, help="steps between answers to a held-out prompt; 0 is before and after only", minimum=0
    )
    early_stopping_patience: int = option(
        0, help="evaluations in a row without a lower held-out loss after which training stops; 0 is never", minimum=0
    )
    early_stopping_threshold: float = option(
        0.0, help="what a held-out loss must be lower by than the lowest before to count (early stopping)", minimum=0
    )
    continue_adapter: str | None = option(
        None, help="folder of a PEFT adapter whose weights training begins with; its settings must be those of the run"
    )
    gradient_checkpointing: int | str = option(
        "auto",
        help="recompute layers in backward to save memory: on is all, a number that many, auto as few as let the "
        "estimate fit",
        choices=("auto", "on", "off"),
        minimum=0,
    )


@dataclass
class LRSchedule(Section):
    """[lr_schedule]: the learning rate over the steps."""

    name: str = option(
        "warmup_cosine",
        help="shape",
        choices=("constant", "step", "exponential", "cosine", "warmup_cosine", "linear", "wsd"),
    )
    warmup_steps: int | None = option(
        None,
        help="steps of linear warmup (not step, exponential and cosine); unset is a tenth of the steps, at most 100",
        minimum=0,
    )
    min_lr: float = option(0.0, help="learning rate at the end (cosine, warmup_cosine, linear and wsd)", minimum=0)
    step_size: int = option(30, help="steps between decays (step)", minimum=1)
    gamma: float | None = option(
        None, help="factor of a decay (step, unset is 0.1; exponential, of every step and to be set)", above=0
    )
    decay_steps: int | None = option(
        None, help="steps at the end in which the rate falls (wsd); unset is a tenth of the steps", minimum=0
    )
    decay_shape: str = option("cosine", help="how the rate falls at the end (wsd)", choices=FALLS)
    schedule_steps: int | None = option(
        None,
        help="steps that the curve is made for, which a resumed run with more steps keeps with the number of before; "
        "unset is all steps",
        minimum=1,
    )


@dataclass
class Data(Section):
    """[data]: what is learned."""

    path: str | list[str] | None = option(
        None,
        help="examples: files (JSON, CSV, Parquet, text) or folders of texts, several with weights perhaps "
        "(a.jsonl:0.7 b.jsonl:0.3); unset is Python's documentation",
        words=True,
    )
    eval_path: str | list[str] | None = option(
        None, help="examples to evaluate on, as the path's; unset holds out held_out_fraction of the path's", words=True
    )
    format: str = option("auto", help=FORMAT_HELP, choices=tuple(FORMATS), called=format_hint)
    held_out_fraction: float = option(
        0.02, help="share of the examples kept for evaluation, at least one; 0 keeps none", minimum=0, below=1
    )
    max_examples: int = option(0, help="use at most this many examples of each file; 0 is all", minimum=0)
    packing: bool = option(True, help="put several examples into one row")
    train_on_prompt: bool = option(
        False, help="fine-tuning: train and evaluate on the prompts too, not only on the answers"
    )
    answers: str = option(
        "all", help="fine-tuning: which answers of a conversation are trained", choices=("all", "last")
    )
    too_long: str = option(
        "auto",
        help="fine-tuning: what becomes of examples longer than a row; auto splits text files and truncates others",
        choices=TOO_LONG,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = one_or_several(self.path, "data.path")
        self.eval_path = one_or_several(self.eval_path, "data.eval_path")


@dataclass
class Checkpointing(Section):
    """[checkpointing]: what is written, and how often."""

    directory: str = option("outputs/run", help="folder for the result, metrics.csv and checkpoints")
    every: int = option(0, help="steps between checkpoints; 0 writes none by steps", minimum=0)
    resume: bool = option(
        False,
        help="continue from the checkpoint in the directory, to the same bits; the number of steps may change",
    )
    minutes: float = option(
        10.0, help="minutes between checkpoints, with one at the end; 0 writes none by time", minimum=0
    )
    keep: int = option(2, help="checkpoints that are kept, the newest", minimum=1)
    overwrite: bool = option(False, help="replace what an earlier run left in the directory")
    keep_best: bool = option(
        False,
        help="keep the checkpoint of the lowest held-out loss, of the steps that are evaluated, and write its weights "
        "as the result",
    )
    compression: str = option("none", help="of checkpoints, without loss; zstd is an extra", choices=("none", "zstd"))


@dataclass
class Preferences(Section):
    """[preference]: tuning by preferences in the place of examples."""

    method: str = option(
        "none",
        help="loss over preferences: dpo and orpo of records with prompt, chosen and rejected, kto with prompt, "
        "completion and label",
        choices=PREFERENCES,
    )
    beta: float = option(0.1, help="strength: of the log-ratios (dpo, kto), of the odds ratio (orpo's lambda)", above=0)
    label_smoothing: float = option(
        0.0, help="probability that the answers of a pair are the wrong way round (dpo)", minimum=0, below=0.5
    )
    desirable_weight: float = option(1.0, help="weight of the wanted answers (kto)", above=0)
    undesirable_weight: float = option(1.0, help="weight of the unwanted answers (kto)", above=0)


@dataclass
class Observe(Section):
    """[observe]: what is seen of a run while it goes on; nothing of it changes a bit of the result."""

    trace: bool = option(False, help="export the spans of the run over OTLP, where to and how OTEL_* variables say")
    trace_layers: bool = option(False, help="trace every decoder layer too, forward, backward and recomputed")
    trace_ops: bool = option(
        False, help="trace every operation too, with shape, FLOPs, bytes and share of this machine's measured peak"
    )
    trace_file: str | None = option(
        None, help="write the spans into this file as OTLP JSON lines, which collectors read; needs no receiver"
    )
    trace_chrome: str | None = option(None, help="write the spans as a Chrome trace, which Perfetto opens")
    metrics: bool = option(False, help="export metrics over OTLP, where and how often OTEL_* variables say")
    metrics_port: int | None = option(
        None,
        help="answer Prometheus at this port of 127.0.0.1 (/metrics); 0 takes a free one",
        minimum=0,
        maximum=65535,
    )
    metrics_file: str | None = option(
        None, help="write metrics into this file (.prom) for node_exporter's textfile collector"
    )
    loggers: list[str] = option(
        factory=list, help=f"also log to these, with commas between ({', '.join(LOGGERS)}), each an extra of that name"
    )
    profile: bool = option(
        False, help="count kernels, by shape against this machine's measured peak; show where the time went at the end"
    )
    profile_out: str | None = option(
        None, help="write where the time went to this file: .pb.gz for pprof, .txt as collapsed stacks (speedscope)"
    )
    profile_every: int = option(
        0,
        help="steps between profiles in the directory (profile/steps-*.pb.gz, of those steps); 0 writes none",
        minimum=0,
    )
    loss_curve: bool = option(
        False,
        help="draw the losses, held-out ones too, as loss.png in the directory, with each evaluation (extra plot)",
    )
    monitor: bool = option(
        False, help="watch the steps and the machine: anomalies are shown with their cause, and in anomalies.jsonl"
    )
    on_spike: str = option(
        "warn",
        help="with --monitor, at a loss or gradient norm far above the usual (high): warn says it, stop ends the run, "
        "rollback goes back to the last checkpoint before it, also where the loss is not finite, and on with the data "
        "that follows the spike",
        choices=("warn", "stop", "rollback"),
    )
    verify_every: int = option(
        0,
        help="steps between those that are computed again, by other threads on other cores, to the same bits or the "
        "run ends: finds CPUs and memory that compute wrongly; 0 is never",
        minimum=0,
    )


@dataclass
class Pretrained:
    """[model] of fine-tuning: which model, and how its frozen weights are stored."""

    path: str | None = option(None, help=MODEL_HELP)
    dtype: str = option(
        "auto",
        help="of the frozen weights that are not in 4 bits; auto keeps those of 16 bits as they are stored and makes "
        "float32 of the others",
        choices=DTYPES,
    )
    quantize: str | None = option(
        None,
        help="4-bit format of the base's decoder linears; auto keeps a GGUF file's own and makes NF4 of others",
        choices=QUANTIZE[1:],
    )

    adapter: str | None = option(
        None,
        help="kind of adapter where the file has no section of one, none trains all weights; unset is qlora",
        choices=(*ADAPTER_SECTIONS, NO_ADAPTER),
    )

    def __post_init__(self) -> None:
        check_dataclass(self, "model")

    @staticmethod
    def from_file(path: str | Path) -> Pretrained:
        """These keys of [model]; ConfigError naming file and key."""
        table = load_toml(path).get("model", {})
        values = {key: table[key] for key in BASE_KEYS if key in table} if isinstance(table, dict) else {}
        try:
            return from_table(Pretrained, values, "model")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclass
class TrainConfig:
    """A whole run. `adapter` is None where the file has no section of an adapter: then every weight is trained."""

    training: Training = field(default_factory=Training)
    lr_schedule: LRSchedule = field(default_factory=LRSchedule)
    data: Data = field(default_factory=Data)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    observe: Observe = field(default_factory=Observe)
    preference: Preferences = field(default_factory=Preferences)
    adapter: AdapterConfig | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None:
            self.adapter.check_use()
        self._check_use("training", self.training.optimizer, OPTIMIZER_KEYS)
        self._check_use("lr_schedule", self.lr_schedule.name, SCHEDULE_KEYS)
        check_updates(self.training, self.lr_schedule, self.adapter)
        self._check_use("preference", self.preference.method, PREFERENCE_KEYS)
        self._check_preference()
        t, s = self.training, self.lr_schedule
        if t.decay_norms and not t.weight_decay:
            raise ConfigError("training.decay_norms is true, which has no effect without training.weight_decay.")
        if t.loraplus_lr_ratio is not None and not isinstance(self.adapter, LoRAOptions):
            raise ConfigError(
                f"training.loraplus_lr_ratio is {t.loraplus_lr_ratio}, which has no effect without LoRA adapters; "
                "leave it out."
            )
        if t.loraplus_lr_ratio is None and t.loraplus_lr_embedding != LORAPLUS_LR_EMBEDDING:
            raise ConfigError(
                f"training.loraplus_lr_embedding is {t.loraplus_lr_embedding}, which has no effect without "
                "training.loraplus_lr_ratio; leave it out."
            )
        if s.name == "exponential" and s.gamma is None:
            raise ConfigError("lr_schedule.gamma is missing; the exponential schedule needs the factor of each step.")
        self._check_lengths()
        self._check_curve()
        if t.evaluate_every and not self.data.held_out_fraction:
            raise ConfigError(
                f"training.evaluate_every is {t.evaluate_every}, and data.held_out_fraction is 0: there is nothing to "
                "evaluate on; set one of both."
            )
        if self.data.format != "auto" and self.data.path is None:
            raise ConfigError(f"data.format is {self.data.format}, which has no effect without data.path; name a file.")
        if self.data.answers == "last" and self.data.train_on_prompt:
            raise ConfigError(
                "data.answers is last, which has no effect where data.train_on_prompt trains everything; leave out one."
            )
        if self.data.eval_path is not None and self.data.held_out_fraction != Data.held_out_fraction:
            raise ConfigError(
                f"data.held_out_fraction is {self.data.held_out_fraction}, which has no effect where data.eval_path "
                "names the examples to evaluate on; leave out one."
            )
        self._check_observe()
        self._check_traces()
        self._check_monitor()
        if self.observe.verify_every > self.most_steps:
            raise ConfigError(
                f"observe.verify_every is {self.observe.verify_every}, expected at most training.steps = {t.steps}: no "
                "step would be verified."
            )
        if s.min_lr > t.learning_rate:
            raise ConfigError(
                f"lr_schedule.min_lr is {s.min_lr}, expected at most training.learning_rate = {t.learning_rate}."
            )

    @property
    def most_steps(self) -> float:
        """The steps of the run; infinity where epochs say them, which only the data can count."""
        return math.inf if self.training.epochs is not None else self.training.steps

    def counted(self, rows: int) -> TrainConfig:
        """The configuration with steps in the place of epochs, of which each has so many `rows`."""
        t = self.training
        if t.epochs is None:
            return self
        steps = math.ceil(t.epochs * rows / (t.batch_size * t.gradient_accumulation) - 1e-9)
        return replace(self, training=replace(t, steps=max(1, steps), epochs=None))

    def _check_lengths(self) -> None:
        """Keys about how long the run goes, and with what it begins, that could not do what they say."""
        t = self.training
        if t.epochs is not None and t.steps != Training().steps:
            raise ConfigError(f"training.epochs is {t.epochs}, and training.steps {t.steps}; give one of both.")
        for key, on in (
            ("training.early_stopping_patience", t.early_stopping_patience),
            ("checkpointing.keep_best", self.checkpointing.keep_best),
        ):
            if on and not 0 < t.evaluate_every <= self.most_steps:
                steps = f" of at most the {t.steps} steps of the run" if t.evaluate_every else ""
                raise ConfigError(
                    f"{key} is {str(on).lower()}, which has no effect without training.evaluate_every{steps}; set both."
                )
        if t.early_stopping_threshold and not t.early_stopping_patience:
            raise ConfigError(
                f"training.early_stopping_threshold is {t.early_stopping_threshold}, which has no effect without "
                "training.early_stopping_patience."
            )
        if t.continue_adapter is not None and self.adapter is None:
            raise ConfigError(
                f"training.continue_adapter is {t.continue_adapter}, and the run trains all weights; add the "
                "adapter's section, or leave it out."
            )

    def _check_preference(self) -> None:
        """What preferences need, and what has no effect beside them."""
        method, data = self.preference.method, self.data
        if method == "none":
            return
        if data.path is None:
            raise ConfigError(f"preference.method is {method}, and data.path is unset; name a file of preferences.")
        if method == "kto" and self.training.batch_size < 2:
            raise ConfigError(
                f"training.batch_size is {self.training.batch_size}, expected at least 2 for kto, which compares an "
                "answer with those to other prompts."
            )
        for name, default in (("format", "auto"), ("answers", "all"), ("too_long", "auto")):
            if getattr(data, name) != default:
                raise ConfigError(f"data.{name} is {getattr(data, name)}, which {method} does not use; leave it out.")
        if data.train_on_prompt or not data.packing:
            key = "train_on_prompt is true" if data.train_on_prompt else "packing is false"
            raise ConfigError(f"data.{key}, which {method} does not use; leave it out.")

    def _check_curve(self) -> None:
        """Steps of [lr_schedule] that are more than there are, or that would train nothing."""
        s, t = self.lr_schedule, self.training
        if t.epochs is not None and s.schedule_steps is None:
            return  # checked once the steps are counted
        total, of = self.schedule_steps, "training.steps" if s.schedule_steps is None else "lr_schedule.schedule_steps"
        if s.warmup_steps is not None and s.warmup_steps > total:
            raise ConfigError(f"lr_schedule.warmup_steps is {s.warmup_steps}, expected at most {of} = {total}.")
        if s.decay_steps is not None and s.decay_steps + (s.warmup_steps or 0) > total:
            raise ConfigError(
                f"lr_schedule.decay_steps is {s.decay_steps}, expected at most {total - (s.warmup_steps or 0)}: {of} "
                "without the warmup."
            )
        if total < self.most_steps and s.name in FALLING and not s.min_lr:
            raise ConfigError(
                f"lr_schedule.schedule_steps is {total}, and training.steps {t.steps}: the steps after {total} would "
                "train at a learning rate of 0; leave schedule_steps out, or set lr_schedule.min_lr."
            )

    def _check_observe(self) -> None:
        """Values of [observe] that could not do what they say."""
        file = self.observe.metrics_file
        if file is not None and not file.endswith(".prom"):
            raise ConfigError(
                f"observe.metrics_file is {file}, expected a name that ends in .prom: node_exporter reads no others."
            )
        out = self.observe.profile_out
        if out is not None and not out.endswith((".pb.gz", ".txt")):
            raise ConfigError(
                f"observe.profile_out is {out}, expected a name that ends in .pb.gz (pprof) or .txt (collapsed stacks)."
            )
        if self.observe.profile_every > self.most_steps:
            raise ConfigError(
                f"observe.profile_every is {self.observe.profile_every}, expected at most training.steps = "
                f"{self.training.steps}."
            )
        for at, name in enumerate(self.observe.loggers):
            if name not in LOGGERS:
                raise ConfigError(f"observe.loggers: {name!r} is not known; {nearest(name, LOGGERS)}")
            if name in self.observe.loggers[:at]:
                raise ConfigError(f"observe.loggers: {name} stands there twice; leave one out.")

    def _check_traces(self) -> None:
        """Spans that nobody would read."""
        o = self.observe
        for name in ("trace_layers", "trace_ops"):
            if getattr(o, name) and not (o.trace or o.trace_file or o.trace_chrome):
                raise ConfigError(
                    f"observe.{name} is true, which has no effect without a trace; set observe.trace, "
                    "observe.trace_file or observe.trace_chrome."
                )

    def _check_monitor(self) -> None:
        o, c = self.observe, self.checkpointing
        if o.on_spike != "warn" and not o.monitor:
            raise ConfigError(f"observe.on_spike is {o.on_spike}, which has no effect without observe.monitor.")
        if o.on_spike == "rollback" and not c.minutes and not 0 < c.every < self.most_steps:
            raise ConfigError(
                f"observe.on_spike is rollback, and no checkpoint is written before the end (checkpointing.every is "
                f"{c.every}, checkpointing.minutes 0); set one of both."
            )

    def _check_use(self, section: str, chosen: str, users: dict[str, tuple[str, ...]]) -> None:
        """A key that the chosen optimizer or schedule never looks at must stay as it is by default."""
        config = getattr(self, section)
        for spec in fields(config):
            value, used_by = getattr(config, spec.name), users.get(spec.name, (chosen,))
            if chosen not in used_by and value != spec.default:
                raise ConfigError(
                    f"{section}.{spec.name} is {value}, which {chosen} does not use; leave it out, or choose "
                    f"{' or '.join(used_by)}."
                )

    @staticmethod
    def from_file(path: str | Path, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> TrainConfig:
        """The training sections of a TOML file ([model] is LLaMAConfig's); ConfigError naming file, section and key.

        `defaults` are a program's own, by section: for keys that the file leaves out, of adapters only where the file
        has their section.
        """
        table = load_toml(path)
        types, known_as = section_types(table), partial(key_hint, SECTION_TYPES)
        for name, content in table.items():
            if name not in SECTIONS and not isinstance(content, dict):
                where = known_as(None, name) or "every key stands under the name of one."
                raise ConfigError(f"{path}: {name} stands under no [section]; {where}")
            if name not in SECTIONS:
                raise ConfigError(f"{path}: [{name}] is no known section; {nearest(name, SECTIONS)}")
        try:
            sections: dict[str, Any] = {
                name: from_table(types[name], presets.with_preset(name, content), name, partial(known_as, name))
                for name, content in presets.filled(table, defaults or {}).items()
                if name != "model"
            }
            adapters = [sections.pop(name) for name in ADAPTER_SECTIONS if name in sections]
            if len(adapters) > 1:
                first, second, *_ = adapters
                raise ConfigError(f"[{first.section}] and [{second.section}] are both there; keep one.")
            return TrainConfig(**sections, adapter=adapters[0] if adapters else None)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def make_optimizer(self, parameters: Any) -> Optimizer:
        """The optimizer of [training] over (name, tensor) pairs; norms and biases in a group that does not decay."""
        return optimizer_of(self.training, list(parameters))

    @property
    def schedule_steps(self) -> int:
        """The steps that the learning rate's curve is made for."""
        return self.lr_schedule.schedule_steps or self.training.steps

    def make_schedule(self, optimizer: Optimizer) -> Schedule:
        """The schedule of [lr_schedule]."""
        return schedule_of(self.lr_schedule, self.schedule_steps, optimizer)


SECTION_TYPES: dict[str, type] = {
    "training": Training,
    "lr_schedule": LRSchedule,
    "data": Data,
    "checkpointing": Checkpointing,
    "observe": Observe,
    "preference": Preferences,
}
SECTION_NAMES = {kind: name for name, kind in SECTION_TYPES.items()}
shape_hint = partial(key_hint, SECTION_TYPES, "model")  # of a key that [model] lacks


def section_types(names: Container[str] = ADAPTER_SECTIONS) -> dict[str, type]:
    """What becomes of each section but [model]; the kinds of adapters are loaded where `names` has one."""
    if not any(name in names for name in ADAPTER_SECTIONS):
        return SECTION_TYPES
    from entrenar.adapters.registry import KINDS

    return {**SECTION_TYPES, **KINDS}
