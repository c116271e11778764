"""A Transformer whose token ids are indices of the candidates of each source, for a search over a shortlist.

Shapes: B sentences, S source length, K beams, C candidates, M model width.
"""

from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

from keras_attention.decoding.logits_processors import NEG_INF
from keras_attention.text import PAD_ID


class ShortlistedState(NamedTuple):
    """The state of a decoder, with the candidates of each sentence.

    Attributes:
        decoder: State of the `FusedDecoder`.
        candidates: Ids of the vocabulary (B, C), padded with 0.
        kernels: The vectors of the candidates as columns (B, M, C), by which the hidden states are multiplied.
    """

    starts_with_one_row = True

    decoder: Any
    candidates: Any
    kernels: Any

    def reordered(self, parents: Any) -> "ShortlistedState":
        """Returns the state in which each beam continues another of its sentence, `parents` (B, K)."""
        return self._replace(decoder=self.decoder.reordered(parents))

    def selected(self, sentences: Any) -> "ShortlistedState":
        """Returns the state of only the sentences at the indices `sentences` (B',)."""
        candidates, kernels = (tf.gather(each, sentences) for each in self[1:])
        return ShortlistedState(self.decoder.selected(sentences), candidates, kernels)


class ShortlistedTransformer:
    """A `Transformer` or a `PackedTransformer` for `decoding.generate`, which writes indices of candidates.

    The special ids are the first candidates of every source, and so the same as in the vocabulary.
    """

    can_fuse = True

    def __init__(self, model: Any, candidates: tf.Tensor):
        self.model, self.candidates, self.config = model, candidates, model.config

    def encode(self, source: Any) -> tuple[Any, Any]:
        """Runs the encoder on ids of the vocabulary (B, S)."""
        return self.model.encode(source)

    def fused_decoder(self, attention: Any, memory_dtype: str | None) -> "ShortlistedDecoder":
        """Creates the decoder of `decoding.generate`."""
        return ShortlistedDecoder(self.model, self.candidates, attention, memory_dtype)


class ShortlistedDecoder:
    """Decodes one token of several beams, with logits over the candidates of their sentence."""

    def __init__(self, model: Any, candidates: tf.Tensor, attention: Any, memory_dtype: str | None):
        self.candidates = candidates
        self.decoder = model.fused_decoder(attention, memory_dtype)
        self.decoder.logits = lambda hidden: hidden  # those of the vocabulary are not needed
        self.embeddings = ops.convert_to_tensor(model.network.embedding.embeddings)  # (V, M)
        self.dtype = model.dtype_policy.compute_dtype

    def read(self, source: tf.Tensor, beams: int) -> ShortlistedState:
        """Returns the state before the first target token, for a source (B, S) in ids of the vocabulary."""
        vectors = tf.cast(tf.gather(self.embeddings, self.candidates), self.dtype)  # (B, C, M)
        kernels = tf.transpose(vectors, [0, 2, 1])  # once, as a product with a transposed matrix is slower
        return ShortlistedState(self.decoder.read(source, beams), self.candidates, kernels)

    def step(self, ids: tf.Tensor, state: ShortlistedState) -> tuple[tf.Tensor, ShortlistedState]:
        """Decodes the last token of each beam (B·K,), or of each sentence, to logits (B·K, C) and the new state."""
        candidates, kernels = state.candidates, state.kernels
        sentences, number = tf.unstack(tf.shape(candidates))
        rows = tf.size(ids) // sentences  # of a sentence: K, or one for all
        tokens = tf.gather(candidates, tf.reshape(ids, [sentences, rows]), batch_dims=1)
        hidden, decoder = self.decoder.step(tf.reshape(tokens, [-1]), state.decoder)  # (B·K, M)
        hidden = tf.reshape(tf.cast(hidden, kernels.dtype), [sentences, rows, self.embeddings.shape[1]])
        logits = tf.cast(tf.matmul(hidden, kernels), tf.float32)  # (B, K, C)
        is_padding = (candidates == PAD_ID) & (tf.range(number) > PAD_ID)  # (B, C)
        logits = tf.where(is_padding[:, None], NEG_INF, logits)
        return tf.reshape(logits, [sentences * rows, number]), state._replace(decoder=decoder)
