"""Train a tokenizer and a LLaMA from scratch, of the shape and with the settings of a configuration file.

    python examples/llama2_train.py --config configs/llama2/tiny.toml
    python examples/llama2_train.py --config llama2/124m

The text is the standard library's documentation unless --data names a file of examples.
"""

from entrenar.cli.run import run


def main() -> None:
    from entrenar.cli.train import main as train

    train(description=__doc__)


if __name__ == "__main__":
    run(main)
