"""The program behind the fine-tuning examples: flags from the configuration's own definition, then `finetune`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from entrenar.config import ArgumentParser, add_arguments, from_arguments
from entrenar.io.hub import fetch_default_model
from entrenar.lora.config import LoRAConfig
from entrenar.qlora.config import QLoRAConfig
from entrenar.train.config import Checkpointing, Data, LRSchedule, TrainConfig, Training
from entrenar.train.finetune import Result, finetune

FLAGS = {
    LRSchedule: {"name": "schedule", "step_size": "lr_step_size", "gamma": "lr_gamma"},
    Data: {"path": "data"},
    Checkpointing: {"directory": "output", "every": "checkpoint_every"},
}


def parser_for(adapter: LoRAConfig, output: str, description: str | None) -> ArgumentParser:
    """Flags for every key of the configuration, with these defaults."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="GGUF file or Hugging Face directory (default: SmolLM2-135M-Instruct, fetched once)"
    )
    if not isinstance(adapter, QLoRAConfig):
        parser.add_argument(
            "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the base (default: float32)"
        )
    add_arguments(parser, type(adapter), adapter)
    for section in (Training, LRSchedule, Data):
        add_arguments(parser, section, None, FLAGS.get(section))
    add_arguments(parser, Checkpointing, Checkpointing(directory=output), FLAGS[Checkpointing])
    return parser


def main(adapter: LoRAConfig, output: str, description: str | None, arguments: Sequence[str] | None = None) -> Result:
    """Parse the flags and fine-tune; `adapter` and `output` are the defaults of the program."""
    parsed = parser_for(adapter, output, description).parse_args(arguments)
    chosen = from_arguments(type(adapter), parsed)
    quantized = isinstance(chosen, QLoRAConfig) and chosen.quantize_4bit
    config = TrainConfig(
        training=from_arguments(Training, parsed),
        lr_schedule=from_arguments(LRSchedule, parsed, FLAGS[LRSchedule]),
        data=from_arguments(Data, parsed, FLAGS[Data]),
        checkpointing=from_arguments(Checkpointing, parsed, FLAGS[Checkpointing]),
        qlora=chosen if isinstance(chosen, QLoRAConfig) else None,
        lora=None if isinstance(chosen, QLoRAConfig) else chosen,
    )
    model = parsed.model or fetch_default_model()
    console = Console()
    return finetune(
        model,
        config,
        dtype=getattr(parsed, "dtype", "float32"),
        quantize=chosen.quantize if quantized and isinstance(chosen, QLoRAConfig) else None,
        console=console,
    )
