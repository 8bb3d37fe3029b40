"""Tensors, the tape, and a small network that learns XOR: the autograd in twenty lines.

python examples/autograd_basics.py
"""

import numpy as np

from entrenar.autograd import Tensor, add, backward, linear, mean, relu, sigmoid, sum
from entrenar.optim import Adam

a = Tensor([1.0, 2.0, 3.0], requires_grad=True)
b = Tensor([4.0, 5.0, 6.0], requires_grad=True)
loss = sum(relu(add(a, b)))
backward(loss)
print("sum(relu(a + b)) =", loss.item(), " da =", a.grad.tolist(), " db =", b.grad.tolist())

rng = np.random.default_rng(0)
inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
targets = np.array([[0], [1], [1], [0]], np.float32)
w1, b1 = Tensor(rng.standard_normal((8, 2)), requires_grad=True), Tensor(np.zeros(8), requires_grad=True)
w2, b2 = Tensor(rng.standard_normal((1, 8)), requires_grad=True), Tensor(np.zeros(1), requires_grad=True)
optimizer = Adam([w1, b1, w2, b2], lr=0.05)
for step in range(301):
    prediction = sigmoid(linear(relu(linear(inputs, w1, b1)), w2, b2))
    loss = mean((prediction - targets) ** 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.5f}")
print("XOR:", [round(value, 2) for (value,) in prediction.tolist()])
