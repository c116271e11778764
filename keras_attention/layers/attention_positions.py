"""Where positions enter attention itself: the values of the argument `position` of the attention layers.

Shapes: B batch, T query length, S key length, H heads, D head width.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.ops.positions import alibi_slopes, distance_buckets, rotate


class AttentionPosition(keras.layers.Layer):
    """Base: turns queries and keys, or adds to the scores, by position. This one does neither."""

    def build(self, heads_shape: Any) -> None:
        """Args: heads_shape: that of the queries, (B, H, T, D)."""

    def check_head_dim(self, head_dim: int) -> None:
        """Refuses a width that this strategy has no use for.

        Args:
            head_dim: D.
        """

    def turn(self, x: Any, positions: Any) -> Any:
        """What to compare in place of these queries or keys.

        Args:
            x: (B, H, T, D).
            positions: Of the T vectors, (T,) or (B, T).

        Returns:
            (B, H, T, D).
        """
        return x

    def bias(self, query_positions: Any, key_positions: Any) -> Any:
        """What to add to the scaled scores.

        A strategy may say this instead of `bias_of_distance`; attention then keeps a number for each pair.

        Args:
            query_positions: (T,) or (B, T).
            key_positions: (S,) or (B, S).

        Returns:
            Float32 or wider, broadcastable to (B, H, T, S), or None.
        """
        if _is_base(self, "bias_of_distance"):
            return None
        biases = self.bias_of_distance(_distances(query_positions, key_positions))  # (H, B or 1, T, S)
        return ops.swapaxes(biases, 0, 1)

    def bias_of_distance(self, distances: Any) -> Any:
        """What to add to the scaled scores where it depends on the distance alone.

        Args:
            distances: Position of the key minus that of the query, integers of any shape.

        Returns:
            Float32 or wider, (H, …) for distances (…), or None.
        """
        return None

    @property
    def is_by_distance(self) -> bool:
        """Whether `bias` says no more than `bias_of_distance`."""
        return _is_base(self, "bias")

    def get_config(self) -> dict[str, Any]:
        # What Keras finds out by itself where there is no `get_config` is lost with a policy as `dtype`.
        return super().get_config()


@keras.saving.register_keras_serializable("keras_attention")
class RotaryPosition(AttentionPosition):
    """q_i · k_j depends on i − j: each is rotated by an angle that grows with its position.

    Args:
        max_wavelength: 10000 in the paper.
        **kwargs: `name`, `dtype` and the like.

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
            raise ValueError(f"RotaryPosition turns pairs, so `key_dim` must be even. Received: key_dim={head_dim}")

    def turn(self, x: Any, positions: Any) -> Any:
        return rotate(x, positions, self.max_wavelength)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


@keras.saving.register_keras_serializable("keras_attention")
class AlibiBias(AttentionPosition):
    """score_ij − m_h |i − j|: attention falls with distance, at a speed m_h of each head's own.

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
    """score_ij + b_h(j − i), b learned for each head and bucket of distances.

    Args:
        num_buckets: How many numbers each head learns.
        max_distance: From here on all distances share a bucket.
        bidirectional: False where attention is causal: all buckets then serve the keys before the query.
        embeddings_initializer: Of the biases.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: Sizes that are no positive integers, or fewer than four buckets, or a `max_distance` no larger
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


def _distances(query_positions: Any, key_positions: Any) -> Any:
    """Key position minus query position, (B or 1, T, S)."""
    queries, keys = (
        x if len(x.shape) == 2 else x[None] for x in map(ops.convert_to_tensor, (query_positions, key_positions))
    )
    return keys[:, None, :] - queries[:, :, None]


def _is_base(position: AttentionPosition, method: str) -> bool:
    return getattr(type(position), method) is getattr(AttentionPosition, method)
