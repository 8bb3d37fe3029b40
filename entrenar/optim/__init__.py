"""Optimizers, learning-rate schedules and gradient clipping."""

from entrenar.optim.adam import Adam, AdamW
from entrenar.optim.clip import clip_factor, clip_grad_norm, clip_grad_value, grad_norm
from entrenar.optim.muon import Muon
from entrenar.optim.optimizer import Optimizer
from entrenar.optim.schedule import (
    WSDLR,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    Schedule,
    StepLR,
    WarmupCosineLR,
)
from entrenar.optim.schedulefree import AdamWScheduleFree
from entrenar.optim.sgd import SGD

__all__ = [
    "SGD",
    "WSDLR",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LinearLR",
    "Muon",
    "Optimizer",
    "Schedule",
    "StepLR",
    "WarmupCosineLR",
    "clip_factor",
    "clip_grad_norm",
    "clip_grad_value",
    "grad_norm",
]
