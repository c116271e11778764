"""Positions inside attention: strategies for the argument `position`, and the bias that they and a caller add.

Shapes: B batch, T query length, S key length, H heads, D head width.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.ops.positions import alibi_slopes, distance_buckets, rotate


class AttentionPosition(keras.layers.Layer):
    """Base: rotates queries and keys, or adds to the scores, by position. This class does neither."""

    def build(self, heads_shape: Any) -> None:
        """Builds for queries of shape (B, H, T, D)."""

    def check_head_dim(self, head_dim: int) -> None:
        """Checks that the strategy supports heads of width D."""

    def rotate(self, x: Any, positions: Any) -> Any:
        """Encodes the positions, (T,) or (B, T), in queries or keys (B, H, T, D)."""
        return x

    def bias(self, query_positions: Any, key_positions: Any) -> Any:
        """Bias of the scaled scores, for positions (T,) or (B, T) and (S,) or (B, S).

        A strategy may define this method instead of `bias_of_distance`; attention then stores a number for each pair.

        Args:
            query_positions: Positions of the queries, (T,) or (B, T).
            key_positions: Positions of the keys, (S,) or (B, S).

        Returns:
            Float32 or wider, broadcastable to (B, H, T, S), or None.
        """
        if _is_base(self, "bias_of_distance"):
            return None
        biases = self.bias_of_distance(_distances(query_positions, key_positions))  # (H, B or 1, T, S)
        return ops.swapaxes(biases, 0, 1)

    def bias_of_distance(self, distances: Any) -> Any:
        """Bias of the scaled scores where it depends only on the distance.

        Args:
            distances: Position of the key minus position of the query, integers of any shape.

        Returns:
            Float32 or wider, (H, …) for distances (…), or None.
        """
        return None

    @property
    def has_bias(self) -> bool:
        """Whether the strategy adds to the scores."""
        return not (_is_base(self, "bias") and _is_base(self, "bias_of_distance"))

    @property
    def is_by_distance(self) -> bool:
        """Whether `bias_of_distance` defines the whole bias."""
        return _is_base(self, "bias")

    def get_config(self) -> dict[str, Any]:
        # The config that Keras derives where a class defines none loses a policy given as `dtype`.
        return super().get_config()


@keras.saving.register_keras_serializable("keras_attention")
class RotaryPosition(AttentionPosition):
    """Rotary positions: queries and keys are rotated by angles that grow with position, so q_i · k_j depends on i − j.

    Args:
        max_wavelength: 10000 in the paper.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: A `max_wavelength` that is not above zero, or heads of odd width.

    Example:
        >>> from keras_attention import MultiHeadSelfAttention
        >>> attention = MultiHeadSelfAttention(num_heads=2, position=RotaryPosition())
        >>> print(attention(ops.ones((3, 5, 16))).shape)
        (3, 5, 16)

    Source: Su et al. 2021 (RoFormer), section 3.
    """

    def __init__(self, max_wavelength: float = 10000.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.max_wavelength = positive_number(max_wavelength, "max_wavelength")

    def build(self, heads_shape: Any) -> None:
        self.check_head_dim(heads_shape[-1])

    def check_head_dim(self, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"RotaryPosition rotates pairs, so `key_dim` must be even. Received: key_dim={head_dim}")

    def rotate(self, x: Any, positions: Any) -> Any:
        return rotate(x, positions, self.max_wavelength)

    turn = rotate  # the name in version 0.1

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


@keras.saving.register_keras_serializable("keras_attention")
class AlibiBias(AttentionPosition):
    """ALiBi: score_ij − m_h |i − j|, which falls with distance, with a slope m_h for each head.

    Example:
        >>> alibi = AlibiBias()
        >>> alibi.build((None, 2, None, 8))
        >>> ops.convert_to_numpy(alibi.bias(ops.arange(1), ops.arange(3)))[0, 0]
        array([[-0.    , -0.0625, -0.125 ]], dtype=float32)

    Source: Press et al. 2021 (ALiBi), section 3.
    """

    def build(self, heads_shape: Any) -> None:
        self.slopes = alibi_slopes(heads_shape[1])

    def bias_of_distance(self, distances: Any) -> Any:
        distances = ops.cast(ops.abs(distances), "float32")
        slopes = ops.convert_to_tensor(self.slopes, "float32")
        return -ops.reshape(slopes, (-1, *(1,) * len(distances.shape))) * distances  # (H, …)


@keras.saving.register_keras_serializable("keras_attention")
class RelativePositionBias(AttentionPosition):
    """T5's relative positions: score_ij + b_h(j − i), with a learned b for each head and bucket of distances.

    Args:
        num_buckets: Number of biases that each head learns.
        max_distance: Distances from here on share a bucket.
        bidirectional: False for causal attention: all buckets are then for the keys before the query.
        embeddings_initializer: Initializer for the biases.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: A size that is not a positive integer, fewer than four buckets, or a `max_distance` no larger
            than the distances with buckets of their own.

    Example:
        >>> bias = RelativePositionBias(num_buckets=8, max_distance=20)
        >>> bias.build((None, 2, None, 16))
        >>> print(bias.bias(ops.arange(3), ops.arange(5)).shape)
        (1, 2, 3, 5)

    Source: Raffel et al. 2019 (T5), section 2.1.
    """

    def __init__(
        self,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        embeddings_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_buckets = positive_integer(num_buckets, "num_buckets")
        self.max_distance = positive_integer(max_distance, "max_distance")
        self.bidirectional = bidirectional
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        if num_buckets < 4 or max_distance <= num_buckets // (4 if bidirectional else 2):
            raise ValueError(
                "Half of the buckets of a direction hold one distance each, the rest those up to `max_distance`: give "
                "at least 4 buckets and a `max_distance` above the first half. "
                f"Received: num_buckets={num_buckets}, max_distance={max_distance}, bidirectional={bidirectional}"
            )

    def build(self, heads_shape: Any) -> None:
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.num_buckets, heads_shape[1]), initializer=self.embeddings_initializer
        )

    def bias_of_distance(self, distances: Any) -> Any:
        buckets = distance_buckets(distances, self.num_buckets, self.max_distance, self.bidirectional)
        embeddings = ops.cast(self.embeddings, keras.backend.result_type(self.embeddings.dtype, "float32"))
        return ops.moveaxis(ops.take(embeddings, buckets, axis=0), -1, 0)  # (H, …)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


def clone_position(position: Any, name: str, trainable: bool = True, **changes: Any) -> Any:
    """Copies a strategy, a layer or its serialized config, for a layer of its own; None stays None."""
    if position is None:
        return None
    if isinstance(position, dict):
        position = keras.saving.deserialize_keras_object(position)
    if isinstance(position, type) or not (hasattr(position, "rotate") and hasattr(position, "bias")):
        raise TypeError(
            f"`{name}` is an object such as RotaryPosition(), AlibiBias() or RelativePositionBias(). "
            f"Received: {name}={position!r}"
        )
    if getattr(type(position), "turn", RotaryPosition.turn) is not RotaryPosition.turn:
        raise TypeError(
            f"`{name}` must define `rotate`, which was called `turn` in version 0.1: rename the method. "
            f"Received: {name}={position!r}"
        )
    copy = type(position).from_config({**position.get_config(), "name": name, **changes})
    if not trainable:
        copy.trainable = False
    return copy


class ScoreBias(NamedTuple):
    """The bias of the caller and that of the positions, before they are added to the scores.

    Attributes:
        attention_bias: The caller's, broadcastable to (B, H, T, S), or None.
        position: The strategy of the layer, or None.
        query_positions: (T,) or (B, T).
        key_positions: (S,) or (B, S).
        offset: Position of the first query among the keys, or None where they are packed differently.
    """

    attention_bias: Any = None
    position: Any = None
    query_positions: Any = None
    key_positions: Any = None
    offset: Any = None

    @property
    def is_linear(self) -> bool:
        """Whether terms of each key and each distance define it, without one for each pair."""
        bias = self.attention_bias
        by_key = bias is None or len(bias.shape) < 2 or bias.shape[-2] == 1
        by_distance = self.position is None or (self.offset is not None and self.position.is_by_distance)
        return by_key and by_distance

    def of_pairs(self) -> Any:
        """The sum, broadcastable to (B, H, T, S), or None."""
        by_position = self.position and self.position.bias(self.query_positions, self.key_positions)
        if self.attention_bias is None or by_position is None:
            return by_position if self.attention_bias is None else self.attention_bias
        dtype = keras.backend.result_type(self.attention_bias.dtype, by_position.dtype)
        return ops.cast(self.attention_bias, dtype) + ops.cast(by_position, dtype)

    def of_distances(self) -> Any:
        """The bias of each distance j − i, from 1 − T to S − 1, (H, T + S − 1), or None."""
        if self.position is None:
            return None
        queries, keys = (ops.shape(x)[-1] for x in (self.query_positions, self.key_positions))
        distances = ops.arange(queries + keys - 1, dtype="int32") - (queries - 1)
        return self.position.bias_of_distance(distances - self.offset)


def _distances(query_positions: Any, key_positions: Any) -> Any:
    """Key position minus query position, (B or 1, T, S)."""
    queries, keys = (
        x if len(x.shape) == 2 else x[None] for x in map(ops.convert_to_tensor, (query_positions, key_positions))
    )
    return keys[:, None, :] - queries[:, :, None]


def _is_base(position: AttentionPosition, method: str) -> bool:
    return getattr(type(position), method) is getattr(AttentionPosition, method)
