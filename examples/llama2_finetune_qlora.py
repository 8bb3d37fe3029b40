"""Fine-tune a real pretrained LLaMA with QLoRA on CPUs: by default SmolLM2-135M on Python's documentation.

    python examples/llama2_finetune_qlora.py
    python examples/llama2_finetune_qlora.py --model DIRECTORY_OR_GGUF --data my_examples.jsonl --steps 200

The base stays in 4 bits (a GGUF file's own quantized values stay); the adapter that is written loads in PEFT.
"""

from entrenar.cli.run import run


def main() -> None:
    from entrenar.cli.finetune import main as finetune

    finetune(kind="qlora", description=__doc__)


if __name__ == "__main__":
    run(main)
