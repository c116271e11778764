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

Pair = tuple[Any, Any]  # keys and values


class DecodingState(NamedTuple):
    """What the decoder has written and read so far.

    The keys and values of all beams of a sentence lie side by side and stay where they were written: a beam sees those
    that it descends from. So beams change places without a copy of any key.

    Attributes:
        older: Keys and values of self-attention, for each layer (B, H, n, D) each.
        newer: The same of the last few tokens; the places of both together are N.
        visible: Which place each beam sees in self-attention, boolean (B, N, K).
        memory: Keys and values of cross-attention, for each layer (B, H, S, D) each, zero at padding; none in a
            language model.
        memory_bias: Added to the scores of cross-attention, (B, 1, S).
        lengths: Tokens read so far, (B,); as many for each sentence.
        equal_at_first: Says that the first step may be given one row for all beams of a sentence.
    """

    equal_at_first = True

    older: tuple[Pair, ...]
    newer: tuple[Pair, ...]
    visible: Any
    memory: tuple[Pair, ...]
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

        def join() -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
            older = tuple(extended(*pairs) for pairs in zip(self.older, self.newer, strict=True))
            return older, tuple((keys[:, :, :0], values[:, :, :0]) for keys, values in self.newer)

        places = ops.shape(self.newer[0][0])[2]
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
        return DecodingState(*keras.tree.map_structure(lambda x: ops.take(x, sentences, axis=0), tuple(self)))


def extended(pair: Pair, more: Pair) -> Pair:
    """Keys and values with others behind them.

    Args:
        pair: (B, H, n, D) each.
        more: (B, H, m, D) each.

    Returns:
        (B, H, n + m, D) each.

    Example:
        >>> keys, _ = extended((ops.zeros((2, 3, 5, 7)),) * 2, (ops.ones((2, 3, 1, 7)),) * 2)
        >>> print(keys.shape)
        (2, 3, 6, 7)
    """
    return tuple(ops.concatenate([old, new], axis=2) for old, new in zip(pair, more, strict=True))
