"""What the fused decoder carries from token to token.

Shapes: B sentences, K beams, S source length, H heads, D head width, N places of the cache: K for each token
written, one for each token of a prompt.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

HIDDEN = -1e30  # added to scores that no query may see; finite, so that a softmax of nothing else is no 0/0
# Growing copies: so many tokens at most are copied at each step, all others when these are so many.
NEWER_TOKENS = 8


class DecodingState(NamedTuple):
    """What the decoder has written and read so far.

    The keys and values of all beams of a sentence lie side by side and stay where they were written: a beam sees those
    that it descends from. So beams change places without a copy of any key.

    Attributes:
        older: Keys and values of self-attention, for each layer (2, B, H, n, D).
        newer: The same of the last few tokens; the places of both together are N.
        visible: Which place each beam sees in self-attention, boolean (B, N, K).
        memory: Keys and values of cross-attention, for each layer (2, B, H, S, D), zero at padding; none in a language
            model.
        memory_bias: Added to the scores of cross-attention, (B, 1, S).
        lengths: Tokens read so far, (B,); as many for each sentence.
        starts_with_one_row: Whether the first step may get one row for all beams of a sentence.
    """

    starts_with_one_row = True

    older: tuple[Any, ...]
    newer: tuple[Any, ...]
    visible: Any
    memory: tuple[Any, ...]
    memory_bias: Any
    lengths: Any

    def reordered(self, parents: Any) -> "DecodingState":
        """The state where each beam continues another.

        Args:
            parents: Which (B, K).

        Returns:
            A new state.
        """
        return self._replace(visible=ops.take_along_axis(self.visible, parents[:, None, :], axis=2))

    def settled(self, rows: Any) -> "DecodingState":
        """The state whose newer places are counted among the older ones when they have become many.

        Args:
            rows: Places that each token takes.

        Returns:
            A new state.
        """

        def join() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            older = tuple(extended(*pairs) for pairs in zip(self.older, self.newer, strict=True))
            return older, tuple(pair[:, :, :, :0] for pair in self.newer)

        places = ops.shape(self.newer[0])[3]
        many = places >= NEWER_TOKENS * rows
        if isinstance(many, bool):  # outside a graph, where the branches of `cond` may not differ in shape on JAX
            older, newer = join() if many else (self.older, self.newer)
        else:
            older, newer = ops.cond(many, join, lambda: (self.older, self.newer))
        return self._replace(older=older, newer=newer)

    def selected(self, sentences: Any) -> "DecodingState":
        """The state of some of the sentences.

        Args:
            sentences: Their places (B',).

        Returns:
            A new state.
        """
        pairs = (self.older, self.newer, self.memory)
        older, newer, memory = keras.tree.map_structure(lambda x: ops.take(x, sentences, axis=1), pairs)
        visible, memory_bias, lengths = (
            ops.take(x, sentences, axis=0) for x in (self.visible, self.memory_bias, self.lengths)
        )
        return DecodingState(older, newer, visible, memory, memory_bias, lengths)


def extended(pair: Any, more: Any) -> Any:
    """Keys and values with others behind them.

    Args:
        pair: (2, B, H, n, D).
        more: (2, B, H, m, D).

    Returns:
        (2, B, H, n + m, D).

    Example:
        >>> print(extended(ops.zeros((2, 3, 5, 7, 11)), ops.ones((2, 3, 5, 1, 11))).shape)
        (2, 3, 5, 8, 11)
    """
    return ops.concatenate([pair, more], axis=3)
