from entrenar.autograd.tensor import Tensor

def zeros_like(t: Tensor) -> Tensor: ...
def sgd_step(
    p: Tensor,
    g: Tensor,
    buffer: Tensor | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None: ...
def adam_step(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None: ...
def sum_squares(t: Tensor) -> float: ...
def scale_(t: Tensor, factor: float) -> None: ...
def clamp_(t: Tensor, limit: float) -> None: ...
