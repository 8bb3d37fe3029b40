"""Training: configuration, loop, evaluation, memory, fine-tuning from files to files."""

from entrenar.train.callbacks import Callback
from entrenar.train.config import TrainConfig
from entrenar.train.evaluate import Evaluation, evaluate
from entrenar.train.finetune import finetune
from entrenar.train.pretrain import pretrain
from entrenar.train.run import Result
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer

__all__ = [
    "Callback",
    "Evaluation",
    "Result",
    "StepReport",
    "TrainConfig",
    "Trainer",
    "evaluate",
    "finetune",
    "pretrain",
]
