"""A model and its tokenizer as one function from text to text."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from keras_attention.decoding import DecodingOptions, Hypotheses, generate, score
from keras_attention.decoding.generate import EXTRA_LENGTH
from keras_attention.serving.reading import Tokens, read
from keras_attention.serving.threads import BATCHES_AT_ONCE, cores_are_shared
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

SOURCE = tf.TensorSpec([None], tf.string, name="source")
IDS = tf.TensorSpec([None, None], tf.int32, name="ids")


class Translator(tf.Module):
    """Translates text with a `Transformer`, its tokenizer and beam search.

    Everything from text to text is one TensorFlow graph, so Python and the exported model give the
    same. There is one output for each input, whatever the input: an empty text, bytes that are not
    UTF-8 (each bad one counts as �), a text too long (its beginning is read: at most
    `max_source_length` tokens, and never more than 16 characters for each of these). Outputs are
    valid UTF-8. At most as many tokens as the source has and 50 more are written, as in the paper.

    Args:
        model: The `Transformer`, or another model with its `encode`, `init_cache` and `decode_step`.
        tokenizer: The `SubwordTokenizer` that the model was trained with.
        beam_size: Hypotheses followed at a time; 1 is greedy decoding.
        length_penalty: The alpha of `decoding.length_penalty`.
        max_source_length: Tokens of a text that are read, the end of sentence counted.
        **options: The other attributes of `decoding.DecodingOptions`.

    Raises:
        ValueError: If `max_source_length` has no room for a token and the end of sentence, an option is out of its
            range, or the model's vocabulary is not the tokenizer's.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("train.en").write_text("the cat sat\\nthe hat\\n", encoding="utf-8")
        >>> tokenizer = ka.text.SubwordTokenizer.train("train.en", vocabulary_size=15)
        >>> model = ka.Transformer.from_preset("tiny", tokenizer.vocabulary_size, num_layers=1)
        >>> translator = Translator(model, tokenizer, beam_size=2)
        >>> translations = translator(["the cat", "", "a hat"])  # of an untrained model
        >>> len(translations)
        3

    Source: Vaswani et al. 2017, section 6.1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        max_source_length: int = 256,
        **options: Any,
    ):
        super().__init__(name="translator")
        _check_vocabularies(model, tokenizer)
        if max_source_length < 2:
            raise ValueError(
                "max_source_length must be 2 or more: a token and the end of sentence. "
                f"Received: max_source_length={max_source_length}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self._options = DecodingOptions(**{"beam_size": beam_size, "length_penalty": length_penalty, **options})
        self._max_source_length = max_source_length

    # The graphs are built once, with these numbers in them: setting one later would do nothing.

    @property
    def options(self) -> DecodingOptions:
        """How translations are found."""
        return self._options

    @property
    def beam_size(self) -> int:
        """Hypotheses followed at a time."""
        return self.options.beams

    @property
    def length_penalty(self) -> float:
        """The alpha of the length penalty."""
        return self.options.length_penalty

    @property
    def max_source_length(self) -> int:
        """Tokens of a text that are read, the end of sentence counted."""
        return self._max_source_length

    @property
    def max_target_length(self) -> int:
        """Tokens of the longest translation that can be written, the end of sentence counted."""
        return self.options.max_length or self.max_source_length - 1 + EXTRA_LENGTH

    def __call__(self, texts: Sequence[str | bytes]) -> list[str]:
        """Translates a few texts as one batch.

        Args:
            texts: The texts; as bytes where they may not be UTF-8.

        Returns:
            The best translation of each.

        Raises:
            ValueError: If the model's output is not a number for one of them.
        """
        return self._translate_batch(texts, self.read(_as_tensor(texts)).ids)

    def translate(
        self, texts: Sequence[str | bytes], tokens_per_batch: int = 4096, progress: bool = False
    ) -> list[str]:
        """Translates many texts, such as the lines of a file; warns of those of which only the beginning is read.

        Texts of similar length share a batch, so that little of it is padding, and two batches are translated at a
        time, which is fastest after `share_cores`; the translations come in the order of the texts.

        Args:
            texts: The texts; as bytes where they may not be UTF-8.
            tokens_per_batch: The most source tokens of a batch, padding counted.
            progress: Whether to show a progress bar.

        Returns:
            The best translation of each.

        Raises:
            ValueError: If `tokens_per_batch` is below 1, or if the model's output is not a number for one of the texts.
        """
        if tokens_per_batch < 1:
            raise ValueError(
                "tokens_per_batch must be 1 or more; a text longer than that gets its own batch. "
                f"Received: tokens_per_batch={tokens_per_batch}"
            )
        source_ids, lengths, truncated = (tensor.numpy() for tensor in self.read(_as_tensor(texts)))
        _warn_of_truncated(truncated, self.max_source_length)
        batches = list(_batches(lengths, tokens_per_batch))
        if cores_are_shared() and len(batches) < 2 * BATCHES_AT_ONCE:  # so few that some cores would wait at the end
            batches = [part for batch in batches for part in _parts(batch)]

        def translate_batch(rows: np.ndarray) -> list[str]:
            return self._translate_batch([texts[row] for row in rows], source_ids[rows, : lengths[rows].max()])

        translations = [""] * len(texts)
        self._serve_ids.get_concrete_function()  # made in this thread: Keras' settings are those of a thread
        with ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:
            results = pool.map(translate_batch, batches)
            for rows in _with_progress(batches, len(texts)) if progress else batches:
                for row, translation in zip(rows, next(results), strict=True):
                    translations[row] = translation
        return translations

    def _translate_batch(self, texts: Sequence[str | bytes], source_ids: tf.Tensor | np.ndarray) -> list[str]:
        """Returns the best translations of texts, which have the ids (B, S); raises for scores that are NaN."""
        best = self._serve_ids(source_ids)
        broken = np.flatnonzero(np.isnan(best["score"].numpy()))
        if len(broken):
            raise ValueError(
                f"The model gives no usable probabilities for texts {broken.tolist()} of a batch of {len(texts)}, "
                f"such as {texts[broken[0]]!r:.80}: its weights probably hold NaN. Use an earlier checkpoint."
            )
        return [text.decode() for text in best["text"].numpy()]

    def attention(self, text: str) -> tuple[np.ndarray, list[str], list[str]]:
        """Says where the decoder looks while it writes the best translation of a text.

        Args:
            text: One text.

        Returns:
            The cross-attention weights (T, S), averaged over the heads of the last layer, the T target
            pieces and the S source pieces, each with its end of sentence.
        """
        source_ids = self.read(_as_tensor([text])).ids  # (1, S)
        found = self.best(source_ids)
        written = found.ids[:, 0, : found.lengths[0, 0]]  # (1, T), the end of sentence last
        pieces = self.tokenizer.pieces
        return (
            score(self.model, source_ids, written).alignment[0].numpy(),
            pieces(written.numpy()[0].tolist()),
            pieces(source_ids.numpy()[0].tolist()),
        )

    @tf.function(input_signature=[SOURCE], autograph=False)
    def read(self, source: tf.Tensor) -> Tokens:
        """Turns texts into what the model reads, in the graph.

        Args:
            source: Texts (B,).

        Returns:
            Ids (B, S), their lengths (B,), and whether a text was longer than what is read (B,).
        """
        return read(self.tokenizer, source, self.max_source_length)

    @tf.function(input_signature=[SOURCE], autograph=False)
    def serve(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Translates in the graph: the export's signature `serving_default`.

        Args:
            source: Texts (B,).

        Returns:
            `text` (B,), the best translations; `score` (B,), their scores; `truncated` (B,), whether
            only the beginning of a text was read.
        """
        sources = self.read(source)
        return {**self._serve_ids(sources.ids), "truncated": sources.truncated}

    @tf.function(input_signature=[SOURCE], autograph=False)
    def serve_nbest(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Gives as many translations as there are beams: the export's signature `translate_nbest`.

        Args:
            source: Texts (B,).

        Returns:
            `texts` (B, K) and `scores` (B, K), best first; `truncated` (B,).
        """
        sources = self.read(source)
        found = self.search(sources.ids, num_return=self.beam_size)
        return {"texts": self.texts(found), "scores": found.scores, "truncated": sources.truncated}

    @tf.function(input_signature=[IDS], autograph=False)
    def _serve_ids(self, source_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `text` and `score` (B,) of the best translations, from what `read` makes of texts (B, S)."""
        best = self.best(source_ids)
        return {"text": self.texts(best)[:, 0], "score": best.scores[:, 0]}

    @tf.function(input_signature=[IDS], autograph=False)
    def best(self, source_ids: tf.Tensor) -> Hypotheses:
        """Searches the best translation: one graph for all signatures that need it, as a server loads each.

        Args:
            source_ids: What `read` makes of texts (B, S).

        Returns:
            `Hypotheses` with ids (B, 1, T), scores (B, 1) and lengths (B, 1).
        """
        return self.search(source_ids, num_return=1)

    def search(self, source_ids: tf.Tensor, num_return: int) -> Hypotheses:
        """Searches translations.

        Args:
            source_ids: What `read` makes of texts (B, S).
            num_return: How many of each.

        Returns:
            `Hypotheses`, best first.
        """
        options = replace(self.options, num_return=num_return)
        return generate(self.model, source_ids, options, bos_id=BOS_ID, eos_id=EOS_ID, pad_id=PAD_ID)

    def texts(self, found: Hypotheses) -> tf.Tensor:
        """Turns hypotheses into text.

        Args:
            found: Of `search`, ids (B, n, T).

        Returns:
            Texts (B, n).
        """
        batch, number, length = tf.unstack(tf.shape(found.ids))
        texts = self.tokenizer.detokenize(tf.reshape(found.ids, [batch * number, length]))
        return tf.reshape(texts, [batch, number])


def _check_vocabularies(model: Any, tokenizer: Any) -> None:
    """Raises for a model that may write ids without a piece, or cannot read those of some pieces."""
    ids = getattr(getattr(model, "config", None), "vocabulary_size", None)  # a stand-in may have no config
    if ids is not None and ids != tokenizer.vocabulary_size:
        raise ValueError(
            f"The model has {ids} token ids, the tokenizer {tokenizer.vocabulary_size} pieces: they were not made for "
            "each other. Give the tokenizer that the model was trained with, or make a model with "
            "vocabulary_size=tokenizer.vocabulary_size. "
            f"Received: model.config.vocabulary_size={ids}, tokenizer.vocabulary_size={tokenizer.vocabulary_size}"
        )


def _as_tensor(texts: Sequence[str | bytes]) -> tf.Tensor:
    """Returns the texts (B,) as bytes; lone surrogates become bytes that are no UTF-8."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of texts; write [text] for one. Received: {texts!r:.80}")
    wrong = [place for place, text in enumerate(texts) if not isinstance(text, str | bytes)]
    if wrong:
        raise TypeError(
            "Each text must be str or bytes. "
            f"Received: {texts[wrong[0]]!r:.80} ({type(texts[wrong[0]]).__name__}) at {wrong[0]}"
        )
    encoded = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in texts]
    return tf.constant(encoded, tf.string, shape=[len(encoded)])


def _warn_of_truncated(truncated: np.ndarray, max_source_length: int) -> None:
    places = np.flatnonzero(truncated)
    if len(places):
        lines = ", ".join(str(place + 1) for place in places[:10]) + (", …" if len(places) > 10 else "")
        warnings.warn(
            f"{len(places):,} of {len(truncated):,} texts are longer than the {max_source_length:,} tokens that the "
            f"model reads: only their beginning is translated. They are, counted from 1: {lines}",
            stacklevel=3,
        )


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Yields the places of texts of similar length, the longest first.

    So the batch that needs the most memory comes first, and what is left goes ever faster.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, tokens_per_batch // lengths[order[start]])
        yield order[start:stop]
        start = stop


def _parts(batch: np.ndarray) -> list[np.ndarray]:
    """Returns the places of a batch as batches that take as long as each other."""
    parts = (batch[first::BATCHES_AT_ONCE] for first in range(BATCHES_AT_ONCE))  # of the same lengths
    return [part for part in parts if len(part)]


def _with_progress(batches: list[np.ndarray], number: int) -> Iterator[np.ndarray]:
    """Yields the batches under a progress bar of the texts done."""
    from rich.console import Console  # only the command line needs it
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:  # standard output is for what is asked for
        task = bar.add_task("translating", total=number)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
