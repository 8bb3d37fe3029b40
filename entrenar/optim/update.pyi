from entrenar.autograd.tensor import Tensor

def zeros_like(t: Tensor) -> Tensor: ...
def sgd_step(
    entries: list[tuple[Tensor, Tensor, Tensor | None, bool]],
    *,
    gradient_scale: float,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None: ...
def adam_step(
    entries: list[tuple[Tensor, Tensor, Tensor, Tensor, int]],
    *,
    gradient_scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None: ...
def schedulefree_step(
    entries: list[tuple[Tensor, Tensor, Tensor, Tensor, int, float]],
    *,
    gradient_scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None: ...
def sum_squares(tensors: list[Tensor]) -> list[float]: ...
def scale_(t: Tensor, factor: float) -> None: ...
def clamp_(t: Tensor, limit: float) -> None: ...
