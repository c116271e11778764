"""Long attention in PyTorch: linear layers and `scaled_dot_product_attention`, flash attention on a CPU too."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers.long_attention import LongAttention, LongAttentionTask
from benchmarks.tools.workers import serve


class Attention(nn.Module):
    """Multi-head self-attention with the weights of the task."""

    def __init__(self, task: LongAttentionTask):
        super().__init__()
        self.heads = task.heads
        names = ("query", "key", "value", "output")
        for name, kernel, bias in zip(names, task.weights()[::2], task.weights()[1::2], strict=True):
            layer = nn.Linear(task.width, task.width)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(kernel.reshape(task.width, task.width).T))
                layer.bias.copy_(torch.from_numpy(bias.reshape(-1)))
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attends from each position to those before, (1, T, M) to (1, T, M)."""
        heads = [
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        y = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)  # (1, H, T, D)
        return self.output(y.transpose(1, 2).flatten(2))


def prepare(task: LongAttentionTask) -> LongAttention:
    """Builds the layers."""
    torch.set_num_threads(task.threads)
    attention = Attention(task)
    shapes = [weight.shape for weight in task.weights()]

    def step_of(sequence: np.ndarray) -> Callable[[], list[np.ndarray]]:
        x = torch.from_numpy(sequence).requires_grad_()

        def step() -> list[np.ndarray]:
            attention.zero_grad()
            x.grad = None
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                y = attention(x)
                y.square().mean().backward()
            gradients = [parameter.grad for parameter in attention.parameters()]  # weight and bias in turn
            in_shape = [gradient.T.numpy().reshape(shape) for gradient, shape in zip(gradients, shapes, strict=True)]
            return [y.detach().numpy(), x.grad.numpy(), *in_shape]

        return step

    return LongAttention(task, step_of)


if __name__ == "__main__":
    serve(lambda task: prepare(LongAttentionTask(**task)))
