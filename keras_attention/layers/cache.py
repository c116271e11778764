"""Caches of keys and values, for decoding step by step.

Shapes: B batch, S cached positions, H heads of keys and values, D and E widths of a head.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_attention.layers.arguments import concrete_integer


class KeyValueCache(NamedTuple):
    """Projected keys and values of the positions so far, which grows with each `update`.

    Attributes:
        key: (B, H, S, D).
        value: (B, H, S, E).

    Example:
        >>> cache = KeyValueCache(ops.zeros((2, 3, 0, 5)), ops.zeros((2, 3, 0, 5)))
        >>> int(cache.length)
        0
    """

    key: Any
    value: Any

    @property
    def length(self) -> Any:
        """S, the number of cached positions."""
        return ops.shape(self.key)[2]

    def update(self, key: Any, value: Any) -> "KeyValueCache":
        """Appends positions.

        Args:
            key: Keys of the new positions (B, H, n, D).
            value: Values of the new positions (B, H, n, E).

        Returns:
            A new cache; this one is unchanged.

        Example:
            >>> one = ops.zeros((2, 3, 1, 5))
            >>> int(KeyValueCache(one, one).update(one, one).length)
            2
        """
        return KeyValueCache(
            ops.concatenate([self.key, key], axis=2),
            ops.concatenate([self.value, value], axis=2),
        )

    def reorder(self, rows: Any) -> "KeyValueCache":
        """Selects rows of the batch, as a beam search does.

        Args:
            rows: Indices of rows (B',), in any order.

        Returns:
            A new cache with the batch size B'.

        Example:
            >>> one = ops.reshape(ops.arange(2), (2, 1, 1, 1))
            >>> ops.convert_to_numpy(KeyValueCache(one, one).reorder([1, 1, 0]).key).ravel().tolist()
            [1, 1, 0]
        """
        return KeyValueCache(ops.take(self.key, rows, axis=0), ops.take(self.value, rows, axis=0))

    def filled(self) -> Any:
        """Mask of the positions in use: None, since all are."""
        return None


class FixedKeyValueCache(NamedTuple):
    """Projected keys and values in storage of a fixed size, so that a compiled loop (`jax.jit`, XLA) compiles once.

    An update past the capacity raises where the length is known; a compiled function, which cannot raise, fills the
    cache with NaN. TensorFlow has no gradient of an update in place: for training, use a `KeyValueCache`.

    Attributes:
        key: (B, H, capacity, D).
        value: (B, H, capacity, E).
        length: S, the number of cached positions, a scalar int32.

    Example:
        >>> cache = FixedKeyValueCache(ops.zeros((2, 3, 8, 5)), ops.zeros((2, 3, 8, 5)), ops.zeros((), "int32"))
        >>> one = ops.ones((2, 3, 1, 5))
        >>> int(cache.update(one, one).length), cache.update(one, one).key.shape[2]
        (1, 8)
    """

    key: Any
    value: Any
    length: Any

    def update(self, key: Any, value: Any) -> "FixedKeyValueCache":
        """Appends positions.

        Args:
            key: Keys of the new positions (B, H, n, D).
            value: Values of the new positions (B, H, n, E).

        Returns:
            A new cache; this one is unchanged.

        Raises:
            ValueError: The positions do not fit.
        """
        capacity, length = ops.shape(self.key)[2], self.length + ops.shape(key)[2]
        known = concrete_integer(length), concrete_integer(capacity)
        if None not in known and known[0] > known[1]:
            raise ValueError(
                "The cache is too small: make it with a larger `capacity`. "
                f"Received: capacity={known[1]}, positions to hold={known[0]}"
            )
        fits = length <= capacity
        start = (0, 0, self.length, 0)
        return FixedKeyValueCache(
            *(
                ops.where(fits, ops.slice_update(held, start, ops.cast(new, held.dtype)), float("nan"))
                for held, new in ((self.key, key), (self.value, value))
            ),
            length,
        )

    def reorder(self, rows: Any) -> "FixedKeyValueCache":
        """Selects rows of the batch, as a beam search does.

        Args:
            rows: Indices of rows (B',), in any order.

        Returns:
            A new cache with the batch size B'.
        """
        return FixedKeyValueCache(ops.take(self.key, rows, axis=0), ops.take(self.value, rows, axis=0), self.length)

    def filled(self) -> Any:
        """Mask of the positions in use (capacity,)."""
        return ops.arange(ops.shape(self.key)[2], dtype="int32") < self.length


def empty_cache(
    batch_size: Any, heads: int, key_dim: int, value_dim: int, capacity: int | None = None, dtype: str | None = None
) -> KeyValueCache | FixedKeyValueCache:
    """Creates a cache without positions; with a `capacity`, a `FixedKeyValueCache`."""
    key = ops.zeros((batch_size, heads, capacity or 0, key_dim), dtype)
    value = ops.zeros((batch_size, heads, capacity or 0, value_dim), dtype)
    return KeyValueCache(key, value) if capacity is None else FixedKeyValueCache(key, value, ops.zeros((), "int32"))
