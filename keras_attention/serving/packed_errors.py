"""The error that 8 bits cause in each matrix product of a Transformer.

Shapes: B sentences, S source length, T target length, M input width, F output width, N rows.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_attention.models.transformer import Transformer
from keras_attention.serving.packed_transformer import PackedMatrix, PackedTransformer


class _MeasuredMatrix:
    """y = x W + b in float32, which sums the squares of its products and of their errors in 8 bits."""

    def __init__(self, kernel: Any, bias: Any, model: "_MeasuredTransformer"):
        self.kernel, self.bias = tf.cast(kernel, tf.float32), bias
        inputs = tf.TensorSpec([None, self.kernel.shape[0]], tf.float32)
        packed = PackedMatrix(kernel, None, "int8")
        self.in_8_bits = tf.function(packed.__call__, [inputs], autograph=False).get_concrete_function()
        self.packed = packed  # whose variables the function reads
        self.model = model
        self.squares = self.squared_errors = 0.0

    def __call__(self, x: tf.Tensor, dtype: str = "float32") -> tf.Tensor:
        x = tf.cast(x, tf.float32)
        product = x @ self.kernel
        errors = tf.boolean_mask(self.in_8_bits(x) - product, self.model.rows)
        self.squares += float(tf.reduce_sum(tf.square(tf.boolean_mask(product, self.model.rows))))
        self.squared_errors += float(tf.reduce_sum(tf.square(errors)))
        return tf.cast(product if self.bias is None else product + tf.cast(self.bias, tf.float32), dtype)


class _MeasuredTransformer(PackedTransformer):
    """A model whose products are measured; `rows` (N,) says which rows of the next products count."""

    def _matrix(self, kernel: Any, bias: Any, name: str) -> Any:
        self.matrices[name] = _MeasuredMatrix(kernel, bias, self)
        return self.matrices[name]


def int8_errors(model: Transformer, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Returns the relative error, in 8 bits, of the outputs of each matrix of a `PackedTransformer`, by its name.

    It is √(Σ ‖ŷ - y‖² / Σ ‖y‖²), over the rows y = x W of all source ids (B, S) and target ids (B, T) in the batches, 0
    for padding, where x is the input in float32 and ŷ the product in 8 bits. Targets begin with the begin of sentence.
    """
    measured = _MeasuredTransformer(model, "int8")
    decoder = measured.fused_decoder()
    for source_ids, target_ids in batches:
        measured.rows = np.reshape(source_ids != 0, -1)
        state = decoder.read(tf.constant(source_ids), 1)
        for ids in np.transpose(target_ids):
            measured.rows = ids != 0
            _, state = decoder.step(tf.constant(ids), state)
    return {
        name: (matrix.squared_errors / max(matrix.squares, 1e-30)) ** 0.5 for name, matrix in measured.matrices.items()
    }
