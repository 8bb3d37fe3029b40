"""Train a tokenizer and a LLaMA from scratch, of the shape and with the settings of a configuration file.

    python examples/llama2_train.py --config configs/llama2/tiny.toml

The text is the standard library's documentation unless --data names a file of examples.
"""

from pathlib import Path

from entrenar.cli.run import run

CONFIG = Path(__file__).parents[1] / "configs" / "llama2" / "tiny.toml"


def main() -> None:
    from entrenar.cli.train import main as train

    train(str(CONFIG), __doc__)


if __name__ == "__main__":
    run(main)
