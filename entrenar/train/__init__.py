"""Training: configuration, loop, evaluation, memory, fine-tuning from files to files."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
HOMES = {
    "Callback": "callbacks",
    "Evaluation": "evaluate",
    "Result": "run",
    "StepReport": "step",
    "TrainConfig": "config",
    "Trainer": "trainer",
}


class _Package(ModuleType):
    """The public names, loaded when asked for: the definition of an option needs no engine.

    A file's import makes it an attribute; of `evaluate`, `finetune` and `pretrain` the function stays under the name.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{HOMES.get(name, name)}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in __all__ or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
