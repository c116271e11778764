"""Positional encodings, which are added to the embeddings.

Shapes: B batch, T length, M model width.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import concrete_integer, positive_integer, positive_number
from keras_attention.layers.inputs import check_sequence, check_shape, start_position
from keras_attention.layers.shaped_layer import ShapedLayer
from keras_attention.ops.masks import check_segments_fit, segment_positions
from keras_attention.ops.positions import sinusoids


class AddedPositions(ShapedLayer):
    """Base: y_t = √M x_t + P(t), with position vectors P of a subclass.

    One layer both scales and adds, because `x * 2` and `x + y` of Keras tensors lose the mask.

    Args:
        scale: Whether to multiply the inputs by √M, as in the paper.
        **kwargs: Base layer arguments, such as `name` and `dtype`.
    """

    def __init__(self, scale: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.scale = scale

    def build(self, inputs_shape: Any) -> None:
        check_shape(inputs_shape, "inputs")

    def compute_output_shape(self, inputs_shape: Any) -> tuple[int | None, ...]:
        check_shape(inputs_shape, "inputs")
        return tuple(inputs_shape)

    def position_vectors(self, positions: Any, width: int) -> Any:
        """P(t) for integer positions (T,) or (B, T): float32 (T, M) or (B, T, M)."""
        raise TypeError(f"{type(self).__name__} must define `position_vectors(positions, width)`")

    def call(self, inputs: Any, start_index: Any = 0, segment_ids: Any = None) -> Any:
        """Scales and adds.

        Args:
            inputs: Embeddings (B, T, M).
            start_index: Position of the first token, for decoding step by step.
            segment_ids: Integers (B, T), one number for each sequence of a packed row: positions restart in each.

        Returns:
            (B, T, M), in the compute dtype.
        """
        inputs = check_sequence(inputs, "inputs")
        start_index = start_position(start_index)
        width = inputs.shape[-1]
        if segment_ids is not None:
            check_segments_fit(segment_ids, "segment_ids", *inputs.shape[:2])
        if segment_ids is None:
            positions = ops.arange(ops.shape(inputs)[1], dtype="int32")  # (T,)
        else:
            positions = segment_positions(segment_ids)  # (B, T)
        vectors = self.position_vectors(positions + start_index, width)  # (T, M) or (B, T, M)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))  # (B, T, M)
        x = x * width**0.5 if self.scale else x
        return ops.cast(x + ops.cast(vectors, x.dtype), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("keras_attention")
class PositionalEncoding(AddedPositions):
    """Sinusoidal positional encoding: y_t = √M x_t + PE(t), for sequences of any length.

    KerasHub's `SinePositionEncoding` returns only PE(t), and adding it loses the mask of x: instead of
    `x + SinePositionEncoding()(x)`, use `PositionalEncoding(scale=False)(x)`.

    Args:
        max_wavelength: 10000 in the paper.
        scale: Whether to multiply the inputs by √M, as in the paper.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: A `max_wavelength` that is not above zero.

    Example:
        >>> x = keras.ops.zeros((2, 3, 4))
        >>> keras.ops.convert_to_numpy(PositionalEncoding()(x)[0, 0]).tolist()
        [0.0, 1.0, 0.0, 1.0]

    Source: Vaswani et al. 2017, sections 3.4 and 3.5.
    """

    def __init__(self, max_wavelength: float = 10000.0, scale: bool = True, **kwargs: Any):
        super().__init__(scale, **kwargs)
        self.max_wavelength = positive_number(max_wavelength, "max_wavelength")

    def position_vectors(self, positions: Any, width: int) -> Any:
        return sinusoids(positions, width, self.max_wavelength)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


@keras.saving.register_keras_serializable("keras_attention")
class NoPositionalEncoding(AddedPositions):
    """y_t = √M x_t, for models whose attention layers have the positions."""

    def position_vectors(self, positions: Any, width: int) -> Any:
        return ops.zeros((), "float32")


@keras.saving.register_keras_serializable("keras_attention")
class LearnedPositionalEncoding(AddedPositions):
    """Learned positional encoding: y_t = √M x_t + P_t, with a vector for each position.

    Args:
        max_length: Number of positions.
        embeddings_initializer: Initializer for P; normal with standard deviation 1/√M by default.
        scale: Whether to multiply the inputs by √M, as in the paper; BERT does not.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: An input longer than `max_length`. Inside a compiled function, where its length is unknown, the
            output is NaN past the last position.

    Example:
        >>> print(LearnedPositionalEncoding(max_length=8)(keras.ops.zeros((2, 3, 4))).shape)
        (2, 3, 4)

    Source: Vaswani et al. 2017, table 3, row (E).
    """

    def __init__(self, max_length: int, embeddings_initializer: Any = None, scale: bool = True, **kwargs: Any):
        super().__init__(scale, **kwargs)
        self.max_length = positive_integer(max_length, "max_length")
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, inputs_shape: Any) -> None:
        super().build(inputs_shape)
        initializer = self.embeddings_initializer or keras.initializers.RandomNormal(stddev=inputs_shape[-1] ** -0.5)
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.max_length, inputs_shape[-1]), initializer=initializer, autocast=False
        )

    def call(self, inputs: Any, start_index: Any = 0, segment_ids: Any = None) -> Any:
        start_index = start_position(start_index)
        if inputs.shape[-1] != self.embeddings.shape[-1]:
            raise ValueError(
                f"The layer was built for inputs of width {self.embeddings.shape[-1]}. "
                f"Received: inputs.shape={tuple(inputs.shape)}"
            )
        length, start = concrete_integer(inputs.shape[1]), concrete_integer(start_index)
        if getattr(inputs, "is_meta", False):
            length = None  # torch substitutes a number for an unknown length
        if segment_ids is None and None not in (length, start) and start + length > self.max_length:
            raise ValueError(
                f"`inputs` reach past the last learned position: give `max_length` {start + length} or more, or "
                f"use PositionalEncoding. Received: length={length}, start_index={start}, max_length={self.max_length}"
            )
        return super().call(inputs, start_index, segment_ids)

    def position_vectors(self, positions: Any, width: int) -> Any:
        known = ops.minimum(positions, self.max_length - 1)
        vectors = ops.take(self.embeddings, known, axis=0)  # (T, M) or (B, T, M)
        return ops.where(positions[..., None] < self.max_length, vectors, float("nan"))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }
