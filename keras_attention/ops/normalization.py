"""Layer normalization with a gradient in few passes.

Shapes: N rows, M model width.
"""

from typing import Any

from keras import ops


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """y = γ x̂ + β with x̂ = (x − mean) / √(variance + ε) over the last axis.

    With g = γ dy the gradient is dx = (g − mean(g) − x̂ mean(g x̂)) / √(variance + ε). Automatic differentiation reads
    and writes these tensors many more times, for little arithmetic. Means are products with a constant vector, which
    matrix kernels compute in one pass.

    Source: Ba et al. 2016, section 3, equation 4.
    """
    width = x.shape[-1]

    @ops.custom_gradient
    def normalize(rows: Any, gamma: Any, beta: Any) -> Any:
        average = ops.full((width, 1), 1 / width, rows.dtype)  # (M, 1)
        centered = rows - ops.matmul(rows, average)  # (N, M)
        scale = ops.rsqrt(ops.matmul(centered * centered, average) + epsilon)  # (N, 1)
        normalized = centered * scale  # (N, M)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream  # (N, M)
            every_row = ops.ones((1, ops.shape(rows)[0]), rows.dtype)  # (1, N)
            product = upstream * normalized  # (N, M)
            by_gamma = ops.matmul(every_row, product)[0]  # (M,)
            by_beta = ops.matmul(every_row, upstream)[0]  # (M,)
            weights = gamma[:, None] / width  # (M, 1)
            by_rows = upstream * gamma - ops.matmul(upstream, weights) - normalized * ops.matmul(product, weights)
            return by_rows * scale, by_gamma, by_beta

        return normalized * gamma + beta, gradient

    if len(x.shape) == 2:  # a decoder's step, where the time of each operation counts
        return normalize(x, gamma, beta)
    return ops.reshape(normalize(ops.reshape(x, (-1, width)), gamma, beta), ops.shape(x))
