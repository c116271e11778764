"""A translator on TensorFlow: the graphs from text to text that an export contains."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from keras_attention.decoding import Hypotheses
from keras_attention.serving import translator
from keras_attention.serving.tokenization import Tokens, tokenize

SOURCE = tf.TensorSpec([None], tf.string, name="source")
IDS = tf.TensorSpec([None, None], tf.int32, name="ids")


class GraphTranslator(translator.Translator, tf.Module):
    """Translates text as `Translator` does, with graphs from text to text that an export contains.

    Args:
        *args: Arguments of `Translator`.
        **kwargs: Keyword arguments of `Translator`.

    Example:
        >>> translator = getfixture("translator")
        >>> sorted(translator.serve(["abl ab"]))
        ['score', 'text', 'truncated']
    """

    def __init__(self, *args: Any, **kwargs: Any):
        tf.Module.__init__(self, name="translator")
        super().__init__(*args, **kwargs)

    @tf.function(input_signature=[SOURCE], autograph=False)
    def read(self, source: tf.Tensor) -> Tokens:
        """Tokenizes and truncates texts, in the graph.

        Args:
            source: Texts (B,).

        Returns:
            Token ids (B, S), their lengths (B,), and whether each text was truncated (B,).
        """
        return tokenize(self.tokenizer, source, self.max_source_length)

    @tf.function(input_signature=[SOURCE], autograph=False)
    def serve(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Translates in the graph: the export's signature `serving_default`.

        Args:
            source: Texts (B,).

        Returns:
            `text` (B,), the best translations; `score` (B,), their scores; `truncated` (B,), whether only the beginning
            of a text was read.
        """
        sources = self.read(source)
        return {**self._serve_ids(sources.ids), "truncated": sources.truncated}

    @tf.function(input_signature=[SOURCE], autograph=False)
    def serve_nbest(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Translates in the graph, with as many results as there are beams: the export's signature `translate_nbest`.

        Args:
            source: Texts (B,).

        Returns:
            `texts` (B, K) and `scores` (B, K), best first; `truncated` (B,).
        """
        sources = self.read(source)
        hypotheses = self.search(sources.ids, num_return=self.beam_size)
        return {"texts": self.texts(hypotheses), "scores": hypotheses.scores, "truncated": sources.truncated}

    @tf.function(input_signature=[IDS], autograph=False)
    def _serve_ids(self, source_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `text` and `score` (B,) of the best translations of token ids (B, S)."""
        best = self.best(source_ids)
        return {"text": self.texts(best)[:, 0], "score": best.scores[:, 0]}

    @tf.function(input_signature=[IDS], autograph=False)
    def best(self, source_ids: tf.Tensor) -> Hypotheses:
        """Searches for the best translation: a single graph that the exported signatures share.

        Args:
            source_ids: Token ids (B, S), from `read`.

        Returns:
            `Hypotheses` with ids (B, 1, T), scores (B, 1) and lengths (B, 1).
        """
        return self.search(source_ids, num_return=1)

    def texts(self, found: Hypotheses) -> tf.Tensor:
        """Detokenizes hypotheses.

        Args:
            found: Hypotheses with ids (B, n, T), from `search`.

        Returns:
            Texts (B, n).
        """
        batch, number, length = tf.unstack(tf.shape(found.ids))
        texts = self.tokenizer.detokenize(tf.reshape(found.ids, [batch * number, length]))
        return tf.reshape(texts, [batch, number])

    def _best_texts(self, source_ids: Any) -> tuple[list[str], np.ndarray]:
        best = self._serve_ids(source_ids)
        return [text.decode() for text in best["text"].numpy()], best["score"].numpy()

    @contextmanager
    def _map(self) -> Iterator[Callable[..., Iterator[list[str]]]]:
        """Returns the function that applies another to all batches, to two at a time."""
        self._serve_ids.get_concrete_function()  # in this thread, as Keras' settings are thread-local
        with ThreadPoolExecutor(translator.BATCHES_AT_ONCE) as pool:
            yield pool.map
