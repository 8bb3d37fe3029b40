"""Training: configuration, loop, evaluation, memory, fine-tuning from files to files."""

from entrenar.train.config import TrainConfig
from entrenar.train.evaluate import Evaluation, evaluate
from entrenar.train.finetune import finetune
from entrenar.train.trainer import StepReport, Trainer

__all__ = ["Evaluation", "StepReport", "TrainConfig", "Trainer", "evaluate", "finetune"]
