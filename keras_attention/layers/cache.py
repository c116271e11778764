"""The keys and values that attention need not compute twice.

Shapes: B batch, S positions held, H heads of keys and values, D and E widths of a head.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_attention.layers.arguments import concrete_integer


class KeyValueCache(NamedTuple):
    """Projected keys and values of the positions seen so far; it grows with each `update`.

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
        """S, the number of positions held."""
        return ops.shape(self.key)[2]

    def update(self, key: Any, value: Any) -> "KeyValueCache":
        """These positions followed by the next ones.

        Args:
            key: Keys of the next positions (B, H, n, D).
            value: Their values (B, H, n, E).

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
        """The cache of other rows of the batch, as a beam search chooses them.

        Args:
            rows: Indices (B',) of rows, in any order and any number.

        Returns:
            A new cache with the batch B'.

        Example:
            >>> one = ops.reshape(ops.arange(2), (2, 1, 1, 1))
            >>> ops.convert_to_numpy(KeyValueCache(one, one).reorder([1, 1, 0]).key).ravel().tolist()
            [1, 1, 0]
        """
        return KeyValueCache(ops.take(self.key, rows, axis=0), ops.take(self.value, rows, axis=0))

    def filled(self) -> Any:
        """Which positions hold something: None, since all do."""
        return None


class FixedKeyValueCache(NamedTuple):
    """The same in storage of a fixed size, so that no shape changes while a sequence grows.

    A compiled loop (`jax.jit`, XLA) then compiles once. An update past the capacity raises where the length
    is known; inside a compiled function, where nothing can be raised, it fills the cache with NaN. It is for decoding:
    TensorFlow has no gradient of an update in place, so train through a `KeyValueCache`.

    Attributes:
        key: (B, H, capacity, D).
        value: (B, H, capacity, E).
        length: S, a scalar int32.

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
        """These positions followed by the next ones.

        Args:
            key: Keys of the next positions (B, H, n, D).
            value: Their values (B, H, n, E).

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
        """The cache of other rows of the batch, as a beam search chooses them.

        Args:
            rows: Indices (B',) of rows, in any order and any number.

        Returns:
            A new cache with the batch B'.
        """
        return FixedKeyValueCache(ops.take(self.key, rows, axis=0), ops.take(self.value, rows, axis=0), self.length)

    def filled(self) -> Any:
        """Which positions hold something, a mask (capacity,)."""
        return ops.arange(ops.shape(self.key)[2], dtype="int32") < self.length


def empty_cache(
    batch_size: Any, heads: int, key_dim: int, value_dim: int, capacity: int | None = None, dtype: str | None = None
) -> KeyValueCache | FixedKeyValueCache:
    """A cache before the first position.

    Args:
        batch_size: B.
        heads: H, of keys and values.
        key_dim: D.
        value_dim: E.
        capacity: Positions that it will hold at most; None for a cache that grows.
        dtype: Of keys and values.

    Returns:
        A `KeyValueCache`, or a `FixedKeyValueCache` where a capacity is given.

    Example:
        >>> print(empty_cache(2, heads=3, key_dim=5, value_dim=7).value.shape)
        (2, 3, 0, 7)
    """
    key = ops.zeros((batch_size, heads, capacity or 0, key_dim), dtype)
    value = ops.zeros((batch_size, heads, capacity or 0, value_dim), dtype)
    return KeyValueCache(key, value) if capacity is None else FixedKeyValueCache(key, value, ops.zeros((), "int32"))
