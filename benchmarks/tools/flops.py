"""How many multiplications and additions the matrix products of a training step take, counted exactly."""

import numpy as np


def forward_multiply_adds(
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    *,
    num_layers: int,
    hidden_dim: int,
    intermediate_dim: int,
    vocabulary_size: int,
) -> int:
    """Multiply-adds of the matrix products of one forward pass over the real tokens only.

    For a pair of s source and t target tokens, with N layers of width M, inner width F and V pieces:

    - the encoder: four projections of M² and two of M·F for each source token, and s² scores and s² sums of values,
      each M long;
    - the decoder: the same for each target token, with t·(t + 1)/2 visible pairs of positions; then queries and outputs
      of cross-attention for each target token, keys and values for each source token, s·t pairs;
    - the logits: M·V for each target token.

    Other work of a program (padding, masked pairs) is not counted as useful.

    Args:
        source_lengths: (N,) of the pairs, ends counted.
        target_lengths: (N,).
        num_layers: N, of the encoder and of the decoder.
        hidden_dim: M.
        intermediate_dim: F.
        vocabulary_size: V.

    Returns:
        A number of multiply-adds.

    Source: Vaswani et al. 2017, table 1 and section 3.
    """
    s, t = (np.asarray(lengths, "int64") for lengths in (source_lengths, target_lengths))
    projection, inner = hidden_dim**2, 2 * hidden_dim * intermediate_dim
    encoder = s * (4 * projection + inner) + 2 * hidden_dim * s**2
    self_attention = t * 4 * projection + 2 * hidden_dim * (t * (t + 1) // 2)
    cross_attention = (t + s) * 2 * projection + 2 * hidden_dim * s * t
    decoder = self_attention + cross_attention + t * inner
    logits = t * hidden_dim * vocabulary_size
    return int((num_layers * (encoder + decoder) + logits).sum())


def training_flops(source_lengths: np.ndarray, target_lengths: np.ndarray, **sizes: int) -> int:
    """Floating-point operations of forward and backward pass: each product comes back as two, one for each factor.

    Args:
        source_lengths: As of `forward_multiply_adds`.
        target_lengths: As of `forward_multiply_adds`.
        **sizes: As of `forward_multiply_adds`.

    Returns:
        A number of operations, two for each multiply-add.
    """
    return 2 * 3 * forward_multiply_adds(source_lengths, target_lengths, **sizes)
