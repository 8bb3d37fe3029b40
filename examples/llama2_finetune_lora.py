"""Fine-tune a real pretrained LLaMA with LoRA over a base of 32 or 16 bits, on this machine's CPUs.

    python examples/llama2_finetune_lora.py
    python examples/llama2_finetune_lora.py --dtype bfloat16 --rank 8 --target-modules q_proj,v_proj

The adapter that is written loads in PEFT.
"""

from entrenar.cli.run import run


def main() -> None:
    from entrenar.cli.finetune import main as finetune

    finetune(kind="lora", description=__doc__)


if __name__ == "__main__":
    run(main)
