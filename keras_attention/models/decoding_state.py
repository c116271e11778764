"""What the fused decoder carries from token to token.

Shapes: B sentences, K beams, S source length, G heads of keys and values, D head width, N places of the cache: K for
each token written, one for each token of a prompt.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

HIDDEN = -1e30  # added to scores that no query may see; finite, so that a softmax of nothing else is no 0/0


class DecodingState(NamedTuple):
    """What the decoder has written and read so far.

    The keys and values of all beams of a sentence lie side by side and stay where they were written: a beam sees those
    that it descends from. So beams change places without a copy of any key.

    Attributes:
        keys: Of self-attention, for each layer (B, G, N, D).
        values: The same.
        bias: Added to the scores of self-attention, (B, N, K): 0 where a beam sees, else `HIDDEN`.
        memory_keys: Of cross-attention, for each layer (B, G, S, D); none in a language model.
        memory_values: The same, zero at padding.
        memory_bias: Added to the scores of cross-attention, (B, 1, 1, S).
        lengths: Tokens read so far, (B,); as many for each sentence.
        equal_at_first: Says that the first step may be given one row for all beams of a sentence.
    """

    equal_at_first = True

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    bias: Any
    memory_keys: tuple[Any, ...]
    memory_values: tuple[Any, ...]
    memory_bias: Any
    lengths: Any

    def reordered(self, parents: Any) -> "DecodingState":
        """The state where each beam continues another.

        Args:
            parents: Which (B, K).

        Returns:
            A new state.
        """
        return self._replace(bias=ops.take_along_axis(self.bias, parents[:, None, :], axis=2))

    def selected(self, sentences: Any) -> "DecodingState":
        """The state of some of the sentences.

        Args:
            sentences: Their places (B',).

        Returns:
            A new state.
        """
        return DecodingState(*keras.tree.map_structure(lambda x: ops.take(x, sentences, axis=0), tuple(self)))
