"""Train a tokenizer and a LLaMA from scratch, of the shape and with the settings of a configuration file.

    python examples/llama2_train.py --config configs/llama2/tiny.toml

The text is the standard library's documentation unless [data] names a file.
"""

import argparse
import dataclasses

from entrenar.cli.run import run
from entrenar.config import ArgumentParser
from entrenar.llama import LLaMAConfig
from entrenar.train import TrainConfig
from entrenar.train.scratch import train_from_scratch


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/llama2/tiny.toml", help="TOML file (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="instead of the file's training.steps")
    parser.add_argument("--output", help="instead of the file's checkpointing.directory")
    arguments = parser.parse_args()
    shape, config = LLaMAConfig.from_file(arguments.config), TrainConfig.from_file(arguments.config)
    if arguments.steps is not None:
        config.training = dataclasses.replace(config.training, steps=arguments.steps)
        if config.lr_schedule.warmup_steps > arguments.steps:
            config.lr_schedule = dataclasses.replace(config.lr_schedule, warmup_steps=arguments.steps)
    if arguments.output is not None:
        config.checkpointing = dataclasses.replace(config.checkpointing, directory=arguments.output)
    train_from_scratch(shape, config)


if __name__ == "__main__":
    run(main)
