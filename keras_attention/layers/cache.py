"""The keys and values that attention need not compute twice.

Shapes: B batch, S key length, H heads, D head width.
"""

from typing import Any, NamedTuple

from keras import ops


class KeyValueCache(NamedTuple):
    """Projected keys and values of the positions seen so far.

    Attributes:
        key: (B, H, S, D).
        value: (B, H, S, D).

    Example:
        >>> cache = KeyValueCache(keras.ops.zeros((2, 3, 0, 5)), keras.ops.zeros((2, 3, 0, 5)))
        >>> int(cache.length)
        0
    """

    key: Any
    value: Any

    @property
    def length(self) -> Any:
        """S, the number of positions held."""
        return ops.shape(self.key)[2]

    def append(self, later: "KeyValueCache") -> "KeyValueCache":
        """These positions followed by the later ones.

        Args:
            later: Keys and values of the next positions.

        Returns:
            A new cache; this one is unchanged.

        Example:
            >>> one = KeyValueCache(keras.ops.zeros((2, 3, 1, 5)), keras.ops.zeros((2, 3, 1, 5)))
            >>> int(one.append(one).length)
            2
        """
        return KeyValueCache(
            ops.concatenate([self.key, later.key], axis=2),
            ops.concatenate([self.value, later.value], axis=2),
        )
