"""What is added to the scores of attention: the caller's bias and that of the positions.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any, NamedTuple

import keras
from keras import ops


class ScoreBias(NamedTuple):
    """Both biases, in as few numbers as they come in.

    Attributes:
        given: The caller's, broadcastable to (B, H, T, S), or None.
        position: The strategy of the layer, or None.
        query_positions: (T,) or (B, T).
        key_positions: (S,) or (B, S).
        offset: Position of the first query among the keys, or None where the distance of two positions is not that of
            their places.
    """

    given: Any = None
    position: Any = None
    query_positions: Any = None
    key_positions: Any = None
    offset: Any = None

    @property
    def is_linear(self) -> bool:
        """Whether it is said by numbers of keys and of distances, without one for each pair."""
        by_key = self.given is None or len(self.given.shape) < 2 or self.given.shape[-2] == 1
        by_distance = self.position is None or (self.offset is not None and self.position.is_by_distance)
        return by_key and by_distance

    def of_pairs(self) -> Any:
        """The bias of each pair.

        Returns:
            Broadcastable to (B, H, T, S), or None.
        """
        by_position = self.position and self.position.bias(self.query_positions, self.key_positions)
        if self.given is None or by_position is None:
            return by_position if self.given is None else self.given
        dtype = keras.backend.result_type(self.given.dtype, by_position.dtype)
        return ops.cast(self.given, dtype) + ops.cast(by_position, dtype)

    def of_distances(self) -> Any:
        """The part that depends on the distance alone.

        Returns:
            (H, T + S - 1), that of the longest way back first, or None.
        """
        if self.position is None:
            return None
        queries, keys = (ops.shape(x)[-1] for x in (self.query_positions, self.key_positions))
        places = ops.arange(queries + keys - 1, dtype="int32") - (queries - 1)
        return self.position.bias_of_distance(places - self.offset)
