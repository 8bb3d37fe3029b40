"""What flags are called: ours, and those of mlx-lm, TRL, transformers' Trainer, axolotl, torchtune and llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from entrenar.adapters.options import OPTIONS
from entrenar.choices import FORMATS
from entrenar.config import BASE_KEYS, names_of

# Flags that are called otherwise than their key, by section.
FLAGS = {
    "model": {"path": "model"},
    "lr_schedule": {"name": "schedule", "step_size": "lr_step_size", "gamma": "lr_gamma"},
    "data": {"path": "data", "eval_path": "eval_data"},
    "checkpointing": {
        "directory": "output",
        "every": "checkpoint_every",
        "minutes": "checkpoint_minutes",
        "keep": "checkpoint_keep",
        "compression": "checkpoint_compression",
    },
    "preference": {"method": "preference", "beta": "preference_beta"},
}
# What others call a flag; PEFT's names for the options of an adapter stand in the table of its kind.
SYNONYMS = {
    "--eval-data": "val-data valid-data validation-data test-data eval-dataset validation-file",
    "--model": "base-model model-name-or-path model-name model-id model-path pretrained-model-name-or-path hf-repo",
    "--data": "dataset datasets dataset-name train-data train-file training-data data-path train-dataset",
    "--output": "output-dir adapter-path save-dir save-path out out-dir output-directory checkpoint-dir",
    "--steps": "iters iterations max-steps num-steps max-iters train-steps num-iters",
    "--epochs": "num-epochs num-train-epochs",
    "--early-stopping-patience": "patience early-stopping",
    "--keep-best": "load-best-model-at-end save-best",
    "--continue-adapter": "lora-model-dir adapter-file init-adapter",
    "--batch-size": "batch micro-batch-size per-device-train-batch-size train-batch-size b bs ubatch-size",
    "--gradient-accumulation": "grad-accum grad-accumulation-steps gradient-accumulation-steps accumulation-steps",
    "--sequence-length": "max-seq-length sequence-len max-length seq-len seq-length ctx-size max-seq-len cutoff-len",
    "--optimizer": "optim optimiser",
    "--learning-rate": "lr",
    "--weight-decay": "wd decay",
    "--beta1": "adam-beta1",
    "--beta2": "adam-beta2",
    "--eps": "adam-epsilon adam-eps epsilon",
    "--max-grad-norm": "clip grad-clip gradient-clip gradient-clipping clip-grad-norm max-norm",
    "--seed": "random-seed data-seed",
    "--threads": "num-threads n-threads t",
    "--evaluate-every": "eval-steps steps-per-eval eval-every eval-interval eval-freq",
    "--gradient-checkpointing": "grad-checkpoint activation-checkpointing",
    "--schedule": "lr-scheduler lr-scheduler-type lr-schedule scheduler",
    "--warmup-steps": "warmup num-warmup-steps lr-warmup-steps",
    "--held-out-fraction": "val-set-size val-split test-size validation-split eval-fraction val-size",
    "--max-examples": "max-samples max-train-samples limit",
    "--packing": "sample-packing pack",
    "--train-on-prompt": "train-on-inputs train-on-input",
    "--checkpoint-every": "save-every save-steps save-interval",
    "--checkpoint-keep": "save-total-limit",
    "--resume": "resume-from-checkpoint resume-adapter-file auto-resume-from-checkpoints",
    "--overwrite": "overwrite-output-dir",
    "--rank": "lora-r lora-rank",
    "--alpha": "lora-scale",
    "--target-modules": "lora-target-modules lora-modules lora-layers lora-target-linear",
    "--use-rslora": "peft-use-rslora rslora",
    "--dtype": "torch-dtype bf16 fp16 precision-dtype",
    "--quantize-4bit": "load-in-4bit",
    "--temperature": "temp",
    "--max-tokens": "max-new-tokens n-predict num-predict",
    "--raw": "ignore-chat-template no-cnv no-conversation",
    "--file": "prompt-file",
    "--double-quantization": "bnb-4bit-use-double-quant double-quant",
}
# What others call a format of the data: axolotl's types, the names of mlx-lm, LLaMA-Factory, torchtune and TRL.
FORMAT_SYNONYMS = {
    "segments": "input_output",
    "messages": "chat_template chat openai tools conversational",
    "sharegpt": "conversation conversations",
    "alpaca": "instruction instruct",
    "prompt_completion": "completions",
    "text": "pretrain pretraining language_modeling raw",
    "text (texts without a prompt, as axolotl has them) or prompt_completion": "completion",
}
HELD_OUT = "a share of --data is held out and evaluated before and after: --held-out-fraction, --evaluate-every"
LACKING = {
    "prompt p": "the prompt stands without a flag: entrenar generate TEXT, or --file FILE",
    "val-batches test": HELD_OUT,
    "test-batches eval-strategy evaluation-strategy per-device-eval-batch-size eval-batch-size do-eval": HELD_OUT,
    "warmup-ratio": "say the number of steps with --warmup-steps",
    "load-in-8bit": "a base is kept in 4 bits (entrenar finetune --adapter qlora) or as --dtype says",
    "mask-prompt completion-only-loss assistant-only-loss": "prompts are masked unless --train-on-prompt is given",
    "adapter fine-tune-type use-peft peft finetuning-type": "entrenar finetune --adapter "
    "says which adapter, or none for all weights; entrenar train trains a model from scratch",
    "num-layers lora-num-layers": "adapters go into all blocks; --target-modules chooses the linears",
    "report-to wandb-project project-name wandb logging-dir logging-steps steps-per-report log-every": "every step is "
    "written to metrics.csv in --output",
    "save-strategy": "say how often with --checkpoint-every and --checkpoint-minutes",
    "push-to-hub hub-model-id": "what is written in --output loads in PEFT; upload it with a program for that",
    "chat-template": "the model's own template is used; put another into the model's folder as chat_template.jinja",
    "dataset-text-field text-field prompt-template": "name the keys of a record instruction and output, prompt and "
    "completion, or messages",
    "device gpu ngl n-gpu-layers device-map": "everything runs on CPUs",
    "train do-train": "training is all that the program does",
}


def hint(flag: str, flags: Collection[str]) -> str | None:
    """The sentence for a flag that another program has and this one does not; None for one that nobody knows."""
    name = flag.lstrip("-").replace("_", "-").lower()
    if f"--{name}" in flags:
        return f"it is written --{name} here."
    ours = _ours(name, flags)
    return f"it is called {ours} here." if ours else _lacking(name)


def format_hint(name: str) -> str | None:
    """The sentence for a format of the data by another program's name, of whose parts the first says it."""
    first = re.split("[.:]", name.replace("-", "_").lower())[0]  # axolotl: chat_template.default, alpaca:phi
    ours = next((ours for ours, theirs in FORMAT_SYNONYMS.items() if first in theirs.split()), first)
    return f"it is called {ours} here." if ours != first or first in FORMATS else None


def key_hint(types: Mapping[str, type], section: str | None, key: str) -> str | None:
    """The same for a key that a file has under a section that lacks it, or under none; `types` are of the sections
    that are neither [model] nor of an adapter."""
    from entrenar.models.config import LLaMAConfig

    keys = {home: names_of(kind) for home, kind in {**types, **OPTIONS}.items()}
    keys["model"] = [*BASE_KEYS, *names_of(LLaMAConfig)]
    name = key.replace("_", "-").lower()
    flags: dict[str, list[tuple[str, str]]] = {}
    for home, known in keys.items():
        for each in known:
            flags.setdefault(flag_of(home, each), []).append((home, each))
    found = [(home, each) for home, known in keys.items() for each in known if each == name.replace("-", "_")]
    found = found or flags.get(f"--{name}") or flags.get(_ours(name, flags) or "") or []
    if not found:
        said = _lacking(name)
        return said and re.sub(r"--[a-z-]+", lambda flag: _as_key(flags.get(flag[0], []), flag[0]), said)
    called = found[0][1]  # in each of its sections
    homes = "" if section in dict(found) else " or ".join(f"[{home}]" for home, _ in found)
    if called == key:
        return f"{'it stands' if section else 'put it'} under {homes}."
    return f"it is called {called} here{homes and ', under '}{homes}."


def flag_of(section: str, key: str) -> str:
    """The flag of a key."""
    return "--" + FLAGS.get(section, {}).get(key, key).replace("_", "-")


def _as_key(homes: Collection[tuple[str, str]], flag: str) -> str:
    """A flag as the key that it sets, but for those of [model], which a sentence gives as parts of a command line."""
    return next((f"{section}.{key}" for section, key in homes if section != "model"), flag)


def _ours(name: str, flags: Collection[str]) -> str | None:
    """Which of our flags another program calls `name`."""
    for ours, theirs in SYNONYMS.items():
        if name in theirs.split() and ours in flags:
            return ours
    from entrenar.adapters.registry import KINDS

    called = (kind.peft.settings.get(name.replace("-", "_")) for kind in KINDS.values())
    return next((f"--{key}" for key in called if key and f"--{key}" in flags), None)


def _lacking(name: str) -> str | None:
    return next((f"there is none here: {said}." for names, said in LACKING.items() if name in names.split()), None)
