"""A model and its tokenizer as one function from text to text."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from keras.ops import convert_to_numpy

from keras_attention.decoding import DecodingOptions, Hypotheses, generate, score
from keras_attention.decoding.model_steps import learned_positions
from keras_attention.decoding.programs import padded_lengths
from keras_attention.decoding.task import EXTRA_LENGTH
from keras_attention.serving.threads import BATCHES_AT_ONCE, cores_are_shared
from keras_attention.serving.tokenization import Tokens, tokenize_in_python
from keras_attention.status_line import StatusLine, clock
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

MAX_SOURCE_LENGTH = 256  # tokens that are read of a text by default


class Translator:
    """Translates text with a `Transformer`, its tokenizer and beam search.

    On TensorFlow, everything from text to text is its operations, so Python and the exported model give the same
    results: there `serving.Translator` is the `GraphTranslator`. On JAX and torch, texts are tokenized in Python, to
    the same ids.
    Each input has one output: an empty text, bytes that are not UTF-8 (each invalid one is read as �), and a text that
    is too long (only its beginning is read: at most `max_source_length` tokens, and at most 16 characters for each of
    them). Outputs are valid UTF-8. A translation has at most 50 tokens more than its source, as in the paper.

    Args:
        model: The `Transformer`, or another model with its `encode`, `init_cache` and `decode_step`.
        tokenizer: The `SubwordTokenizer` that the model was trained with.
        beam_size: Number of beams; 1 is greedy decoding.
        length_penalty: The alpha of `decoding.length_penalty`.
        max_source_length: Maximum number of tokens that are read of a text, the end of sentence included; 256 by
            default, or the number of positions of a model that has learned fewer.
        **options: The other attributes of `decoding.DecodingOptions`.

    Raises:
        ValueError: If `max_source_length` is below 2, an option is out of its range, a length is above the number of
            positions that the model has learned, or the vocabularies of the model and the tokenizer differ.

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
        max_source_length: int | None = None,
        **options: Any,
    ):
        _check_vocabularies(model, tokenizer)
        positions = learned_positions(model)
        if max_source_length is None:
            max_source_length = min(MAX_SOURCE_LENGTH, positions or MAX_SOURCE_LENGTH)
        if max_source_length < 2:
            raise ValueError(
                "max_source_length must be 2 or more: a token and the end of sentence. "
                f"Received: max_source_length={max_source_length}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self._options = DecodingOptions(**{"beam_size": beam_size, "length_penalty": length_penalty, **options})
        self._max_source_length = max_source_length
        self._positions = positions
        for name, length in (("max_source_length", max_source_length), ("max_length", self.options.max_length)):
            if positions is not None and length is not None and length > positions:
                raise ValueError(
                    f"`{name}` must be at most the number of positions that the model has learned. "
                    f"Received: {name}={length}, model.config.max_length={positions}"
                )

    # Read-only: they are constants in the graphs, which are built once.

    @property
    def options(self) -> DecodingOptions:
        """The decoding options."""
        return self._options

    @property
    def beam_size(self) -> int:
        """The number of beams."""
        return self.options.beams

    @property
    def length_penalty(self) -> float:
        """The alpha of the length penalty."""
        return self.options.length_penalty

    @property
    def max_source_length(self) -> int:
        """The maximum number of tokens that are read of a text, the end of sentence included."""
        return self._max_source_length

    @property
    def max_target_length(self) -> int:
        """The maximum number of tokens of a translation, the end of sentence included."""
        longest = self.options.max_length or self.max_source_length - 1 + EXTRA_LENGTH
        return longest if self._positions is None else min(longest, self._positions)

    def with_model(self, model: Any) -> "Translator":
        """Creates a translator with the same tokenizer and options.

        Args:
            model: Its model.

        Returns:
            A new translator.
        """
        return type(self)(model, self.tokenizer, **self._settings())

    def _settings(self) -> dict[str, Any]:
        """Returns the keyword arguments that make a translator like this one."""
        return {"max_source_length": self.max_source_length, **asdict(self.options)}

    def __call__(self, texts: Sequence[str | bytes]) -> list[str]:
        """Translates texts as one batch.

        Args:
            texts: The texts; bytes if they may be invalid UTF-8.

        Returns:
            The best translation of each text.

        Raises:
            TypeError: If `texts` is a single text, or one of them is neither `str` nor `bytes`.
            ValueError: If the score of a translation is NaN.
        """
        return self._translate_batch(texts, self.read(_as_bytes(texts)).ids)

    def translate(
        self, texts: Sequence[str | bytes], tokens_per_batch: int = 4096, progress: bool = False
    ) -> list[str]:
        """Translates many texts, such as the lines of a file, and warns of those of which only the beginning is read.

        Texts of similar length share a batch, so that little of it is padding. Two batches are translated at the same
        time, which is fastest after `share_cores`. The translations are in the order of the texts.

        Args:
            texts: The texts; bytes if they may be invalid UTF-8.
            tokens_per_batch: Maximum number of source tokens of a batch, padding included.
            progress: Whether to show the number of translated texts on standard error.

        Returns:
            The best translation of each text.

        Raises:
            TypeError: If `texts` is a single text, or one of them is neither `str` nor `bytes`.
            ValueError: If `tokens_per_batch` is below 1, or the score of a translation is NaN.
        """
        if tokens_per_batch < 1:
            raise ValueError(
                "tokens_per_batch must be 1 or more; a text longer than that gets its own batch. "
                f"Received: tokens_per_batch={tokens_per_batch}"
            )
        source_ids, lengths, truncated = map(convert_to_numpy, self.read(_as_bytes(texts)))
        _warn_of_truncated(truncated, self.max_source_length)
        batches = list(_batches(padded_lengths(lengths), tokens_per_batch))
        if cores_are_shared() and len(batches) < 2 * BATCHES_AT_ONCE:  # so few that some cores would be idle
            batches = [part for batch in batches for part in _parts(batch)]

        def translate_batch(rows: np.ndarray) -> list[str]:
            return self._translate_batch([texts[row] for row in rows], source_ids[rows, : lengths[rows].max()])

        translations = [""] * len(texts)
        with self._map() as apply:
            results = iter(apply(translate_batch, batches))
            for rows in _with_progress(batches, len(texts)) if progress else batches:
                for row, translation in zip(rows, next(results), strict=True):
                    translations[row] = translation
        return translations

    def _translate_batch(self, texts: Sequence[str | bytes], source_ids: Any) -> list[str]:
        """Returns the best translations of texts with token ids (B, S); raises for scores that are NaN."""
        translations, scores = self._best_texts(source_ids)
        broken = np.flatnonzero(np.isnan(scores))
        if len(broken):
            raise ValueError(
                f"The model gives no usable probabilities for texts {broken.tolist()} of a batch of {len(texts)}, "
                f"such as {texts[broken[0]]!r:.80}: its weights probably hold NaN. Use an earlier checkpoint."
            )
        return translations

    def attention(self, text: str) -> tuple[np.ndarray, list[str], list[str]]:
        """Computes the attention weights between the best translation of a text and the text.

        Args:
            text: A text.

        Returns:
            The cross-attention weights (T, S), averaged over the heads of the last layer, the T target pieces and the
            S source pieces, each with its end of sentence.
        """
        source_ids = self.read(_as_bytes([text])).ids  # (1, S)
        best = self.best(source_ids)
        target_ids = best.ids[:, 0, : int(best.lengths[0, 0])]  # (1, T), the end of sentence last
        alignment = score(self.model, source_ids, target_ids).alignment[0]  # (T, S)
        targets, sources = (
            self.tokenizer.pieces(convert_to_numpy(ids)[0].tolist()) for ids in (target_ids, source_ids)
        )
        return convert_to_numpy(alignment), targets, sources

    def read(self, source: Sequence[bytes]) -> Tokens:
        """Tokenizes and truncates texts.

        Args:
            source: Texts (B,).

        Returns:
            Token ids (B, S), their lengths (B,), and whether each text was truncated (B,).
        """
        return tokenize_in_python(self.tokenizer, source, self.max_source_length)

    def best(self, source_ids: Any) -> Hypotheses:
        """Searches for the best translation.

        Args:
            source_ids: Token ids (B, S), from `read`.

        Returns:
            `Hypotheses` with ids (B, 1, T), scores (B, 1) and lengths (B, 1).
        """
        return self.search(source_ids, num_return=1)

    def search(self, source_ids: Any, num_return: int) -> Hypotheses:
        """Searches for translations.

        Args:
            source_ids: Token ids (B, S), from `read`.
            num_return: Number of translations of each text, n.

        Returns:
            `Hypotheses` with ids (B, n, T), best first.
        """
        options = replace(self.options, num_return=num_return)
        return generate(self.model, source_ids, options, bos_id=BOS_ID, eos_id=EOS_ID, pad_id=PAD_ID)

    def _best_texts(self, source_ids: Any) -> tuple[list[str], np.ndarray]:
        """Returns the best translations of token ids (B, S) and their scores (B,)."""
        best = self.best(source_ids)
        return self.tokenizer.decode(convert_to_numpy(best.ids)[:, 0].tolist()), convert_to_numpy(best.scores)[:, 0]

    def _map(self) -> AbstractContextManager[Callable[..., Iterator[list[str]]]]:
        """Returns the function that applies another to all batches: to one at a time, with all cores for each."""
        return nullcontext(map)


def _check_vocabularies(model: Any, tokenizer: Any) -> None:
    """Raises if the model and the tokenizer have different vocabulary sizes."""
    ids = getattr(getattr(model, "config", None), "vocabulary_size", None)  # another model may have no config
    if ids is not None and ids != tokenizer.vocabulary_size:
        raise ValueError(
            f"The model has {ids} token ids, the tokenizer {tokenizer.vocabulary_size} pieces: they were not made for "
            "each other. Give the tokenizer that the model was trained with, or make a model with "
            "vocabulary_size=tokenizer.vocabulary_size. "
            f"Received: model.config.vocabulary_size={ids}, tokenizer.vocabulary_size={tokenizer.vocabulary_size}"
        )


def _as_bytes(texts: Sequence[str | bytes]) -> np.ndarray:
    """Returns the texts (B,) as bytes; lone surrogates become invalid UTF-8."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of texts; write [text] for one. Received: {texts!r:.80}")
    for index, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise TypeError(
                f"Each text must be str or bytes. Received: {text!r:.80} ({type(text).__name__}) at {index}"
            )
    return np.array([t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in texts], dtype=object)


def _warn_of_truncated(truncated: np.ndarray, max_source_length: int) -> None:
    rows = np.flatnonzero(truncated)
    if len(rows):
        lines = ", ".join(str(row + 1) for row in rows[:10]) + (", …" if len(rows) > 10 else "")
        warnings.warn(
            f"{len(rows):,} of {len(truncated):,} texts are longer than the {max_source_length:,} tokens that the "
            f"model reads: only their beginning is translated. They are, counted from 1: {lines}",
            stacklevel=3,
        )


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Yields the indices of texts of similar length, the longest first, so that a lack of memory shows at once."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, tokens_per_batch // lengths[order[start]])
        yield order[start:stop]
        start = stop


def _parts(batch: np.ndarray) -> list[np.ndarray]:
    """Splits the indices of a batch into batches of equal cost."""
    parts = (batch[first::BATCHES_AT_ONCE] for first in range(BATCHES_AT_ONCE))  # of similar lengths
    return [part for part in parts if len(part)]


def _with_progress(batches: list[np.ndarray], number: int) -> Iterator[np.ndarray]:
    """Yields the batches and shows the number of texts that are translated."""
    line, done, started = StatusLine(stderr=True), 0, time.monotonic()  # standard output is for the translations
    for batch in batches:
        elapsed = clock(time.monotonic() - started)
        line.show(lambda done=done, elapsed=elapsed: f"translating: {done:,} of {number:,} texts, {elapsed}")
        yield batch
        done += len(batch)
    line.clear()
