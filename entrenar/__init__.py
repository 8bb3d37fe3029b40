"""entrenar: fine-tune LLaMA-family models on ordinary CPUs."""
