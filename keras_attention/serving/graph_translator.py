"""A translator on TensorFlow: the graphs from text to text that an export contains."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from keras_attention.decoding import Hypotheses, generate
from keras_attention.serving import translator
from keras_attention.serving.shortlist import Shortlist
from keras_attention.serving.shortlisted_transformer import ShortlistedTransformer
from keras_attention.serving.tokenization import Tokens, tokenize
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

SOURCE = tf.TensorSpec([None], tf.string, name="source")
IDS = tf.TensorSpec([None, None], tf.int32, name="ids")


class GraphTranslator(translator.Translator, tf.Module):
    """Translates text as `Translator` does, with graphs from text to text that an export contains.

    Args:
        *args: Arguments of `Translator`.
        shortlist: Pieces to which the search is limited, those of each source; all of the vocabulary by default. The
            scores are then log probabilities among these pieces.
        **kwargs: Keyword arguments of `Translator`.

    Raises:
        ValueError: If the shortlist is for another vocabulary, or the model cannot be fused; see also `Translator`.

    Example:
        >>> translator = getfixture("translator")
        >>> sorted(translator.serve(["abl ab"]))
        ['score', 'text', 'truncated']
    """

    def __init__(self, *args: Any, shortlist: Shortlist | None = None, **kwargs: Any):
        tf.Module.__init__(self, name="translator")
        super().__init__(*args, **kwargs)
        if shortlist is not None:
            _check_shortlist(shortlist, self.model, self.tokenizer)
        self._shortlist = shortlist

    @property
    def shortlist(self) -> Shortlist | None:
        """The shortlist of the search, or None."""
        return self._shortlist

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

    def search(self, source_ids: tf.Tensor, num_return: int) -> Hypotheses:
        """Searches for translations, among the candidates of the shortlist if there is one.

        Args:
            source_ids: Token ids (B, S), from `read`.
            num_return: Number of translations of each text, n.

        Returns:
            `Hypotheses` with ids (B, n, T), best first.
        """
        if self.shortlist is None:
            return super().search(source_ids, num_return)
        options = replace(self.options, num_return=num_return)
        candidates = self.shortlist.candidates(source_ids)  # (B, C)
        copies = num_return if options.sample else 1  # `generate` repeats the sources of several samples
        model = ShortlistedTransformer(self.model, tf.repeat(candidates, copies, axis=0))
        found = generate(model, source_ids, options, bos_id=BOS_ID, eos_id=EOS_ID, pad_id=PAD_ID)
        return found._replace(ids=tf.gather(candidates, found.ids, batch_dims=1))  # from indices of candidates

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "shortlist": self.shortlist}

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


def _check_shortlist(shortlist: Shortlist, model: Any, tokenizer: Any) -> None:
    """Raises if a search with this model cannot use the shortlist."""
    if not isinstance(shortlist, Shortlist):
        raise TypeError(f"`shortlist` must be a Shortlist. Received: shortlist={shortlist!r:.200}")
    if shortlist.vocabulary_size != tokenizer.vocabulary_size:
        raise ValueError(
            "`shortlist` must be for the pieces of the tokenizer: train it with that tokenizer. Received: "
            f"shortlist.vocabulary_size={shortlist.vocabulary_size}, "
            f"tokenizer.vocabulary_size={tokenizer.vocabulary_size}"
        )
    if not getattr(model, "can_fuse", False):
        raise ValueError(
            "A shortlist needs a model that is not quantized and whose positions add no bias to the scores: leave it "
            f"out, or pack the weights with `PackedTransformer`. Received: model={model!r:.200}"
        )
