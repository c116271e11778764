"""The state of the fused decoder from token to token.

Shapes: B sentences, K beams, S source length, H heads, D head width, N positions of the cache: K for each token
written, one for each token of a prompt.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

# Growing a tensor copies it: at most this many tokens are copied at each step, all others once in as many steps.
NEWER_TOKENS = 8


class DecodingState(NamedTuple):
    """The caches of self- and cross-attention.

    The keys and values of all beams of a sentence are next to each other and stay where they were written: a beam sees
    those that it descends from. So beams are reordered without copying any key.

    Attributes:
        older: Keys and values of self-attention, for each layer (2, B, H, n, D).
        newer: Keys and values of the last few tokens; both together have N positions.
        visible: The positions that each beam sees in self-attention, boolean (B, N, K).
        memory: Keys and values of cross-attention, for each layer (2, B, H, S, D), zero at padding; none in a language
            model.
        memory_bias: Bias of the scores of cross-attention, (B, 1, S).
        lengths: Number of tokens so far, (B,), the same for each sentence.
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
        """The state in which each beam continues another of its sentence, `parents` (B, K)."""
        return self._replace(visible=ops.take_along_axis(self.visible, parents[:, None, :], axis=2))

    def merged(self, rows: Any) -> "DecodingState":
        """The state whose newer positions, `rows` for each token, join the older ones when there are many."""

        def join() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            older = tuple(append_positions(*pairs) for pairs in zip(self.older, self.newer, strict=True))
            return older, tuple(pair[:, :, :, :0] for pair in self.newer)

        many = ops.shape(self.newer[0])[3] >= NEWER_TOKENS * rows
        if isinstance(many, bool):  # on JAX the branches of `cond` may not differ in shape
            older, newer = join() if many else (self.older, self.newer)
        else:
            older, newer = ops.cond(many, join, lambda: (self.older, self.newer))
        return self._replace(older=older, newer=newer)

    def selected(self, sentences: Any) -> "DecodingState":
        """The state of only the sentences at the indices `sentences` (B',)."""
        pairs = (self.older, self.newer, self.memory)
        older, newer, memory = keras.tree.map_structure(lambda x: ops.take(x, sentences, axis=1), pairs)
        visible, memory_bias, lengths = (
            ops.take(x, sentences, axis=0) for x in (self.visible, self.memory_bias, self.lengths)
        )
        return DecodingState(older, newer, visible, memory, memory_bias, lengths)


def append_positions(pair: Any, more: Any) -> Any:
    """Keys and values (2, B, H, n, D) followed by those of m more positions, (2, B, H, n + m, D)."""
    return ops.concatenate([pair, more], axis=3)
