"""Subword sampling: random segmentations of tokenized sentences, which follow from a seed only.

SentencePiece samples as well, but from version 0.2.2 on no other process can repeat its samples, whatever the seed.
"""

import array
import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from keras_attention.extras import needed_by
from keras_attention.text.ragged_ids import RaggedIds, gather
from keras_attention.text.sentencepiece_model import EOS_ID, MODEL_TYPES, load_processor

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

_SPACE = "▁"
_NO_PIECE = -1
_NO_MERGE = np.iinfo(np.int64).max
_INDEX_BITS = 32
# Number of segmentations of a word to sample from, l of Kudo 2018.
_NUM_BEST = 64
_MAX_WORDS = 2**17  # whose segmentations are kept

Seed = int | Sequence[int]


class SubwordSampler(Protocol):
    """Random segmentations of a tokenizer."""

    def sample(self, sentences: RaggedIds, seed: Seed) -> RaggedIds:
        """Samples other ids of the same sentences."""


@functools.lru_cache(maxsize=1)  # a tokenizer that samples again and again makes it once
def subword_sampler(model: bytes, dropout: float) -> SubwordSampler:
    """Makes the sampler for a serialised SentencePiece model and a dropout above 0."""
    proto, model_type = _read(model)
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"Subword dropout needs a tokenizer whose type is one of {MODEL_TYPES}: those of other types have only one "
            f"segmentation of each text. Received: a tokenizer of type {model_type!r}"
        )
    return BpeDropout(proto, dropout) if model_type == "bpe" else UnigramSampler(proto, dropout)


def can_sample(model: bytes) -> bool:
    """Returns True if a serialised SentencePiece model has several segmentations of a text."""
    return _read(model)[1] in MODEL_TYPES


def _read(model: bytes) -> tuple["ModelProto", str]:
    """A serialised SentencePiece model and its type."""
    with needed_by("SubwordTokenizer"):
        from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    return proto, proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type).lower()


class BpeDropout:
    """Merges the letters of words anew, each time without a random part of the possible merges.

    Source: Provilkov et al. 2020, "BPE-Dropout", algorithm 1 (arXiv 1910.13267).
    """

    def __init__(self, proto: "ModelProto", dropout: float):
        self._dropout = dropout
        normal = _normal_pieces(proto)
        self._size = len(proto.pieces)
        merges = [
            (normal[text[:cut]], normal[text[cut:]], merged)
            for text, merged in normal.items()
            for cut in range(1, len(text))
            if text[:cut] in normal and text[cut:] in normal
        ]
        left, right, merged = np.array(merges, np.int64).reshape(-1, 3).T
        keys = left * self._size + right
        order = np.argsort(keys)
        # The last key stands for all pairs that are no merge.
        self._keys = np.append(keys[order], _NO_MERGE)
        self._merged = np.append(merged[order], _NO_PIECE)
        ranks = np.argsort(np.argsort([-piece.score for piece in proto.pieces], kind="stable"))  # best first
        self._ranks = np.append(ranks[merged][order], 0)
        # The letters of each piece. One whose letters are not all pieces is kept whole, as are the special ones.
        letters = [[index] for index in range(self._size)]
        for text, index in normal.items():
            if all(letter in normal for letter in text):
                letters[index] = [normal[letter] for letter in text]
        self._num_letters = np.array([len(each) for each in letters])
        self._letter_starts = self._num_letters.cumsum() - self._num_letters
        self._letters = np.concatenate(letters)
        self._starts_word = _word_starts(proto)

    def sample(self, sentences: RaggedIds, seed: Seed) -> RaggedIds:
        """Samples other ids of the same sentences."""
        random = np.random.default_rng(seed)
        ids = sentences.ids
        symbols = self._letters[gather(self._letter_starts[ids], self._num_letters[ids])]
        first = _first_of_words(symbols, self._starts_word)
        index = np.arange(len(symbols))  # of the first letter of a symbol
        pieces = np.full(len(symbols), _NO_PIECE)
        while len(symbols):
            # One merge in each word: the best of those that are not dropped, the leftmost of equals. A word without
            # any is finished.
            pairs = symbols[:-1] * self._size + symbols[1:]
            merges = np.searchsorted(self._keys, pairs)
            possible = np.flatnonzero((self._keys[merges] == pairs) & ~first[1:])
            possible = possible[random.random(len(possible)) >= self._dropout]
            order = np.full(len(symbols), _NO_MERGE)
            order[possible] = (self._ranks[merges[possible]] << _INDEX_BITS) | possible
            starts = np.flatnonzero(first)
            best = np.minimum.reduceat(order, starts)
            finished = np.repeat(best == _NO_MERGE, np.diff(starts, append=len(symbols)))
            pieces[index[finished]] = symbols[finished]
            chosen = best[best != _NO_MERGE] & ((1 << _INDEX_BITS) - 1)
            symbols[chosen] = self._merged[merges[chosen]]
            kept = ~finished
            kept[chosen + 1] = False
            symbols, first, index = symbols[kept], first[kept], index[kept]
        return RaggedIds.from_flat(pieces[pieces != _NO_PIECE].astype(np.int32))


class UnigramSampler:
    """Samples each word from its best segmentations x, with probabilities proportional to P(x)^α.

    Source: Kudo 2018, "Subword Regularization", section 3.3 (arXiv 1804.10959), which does so for sentences.
    """

    def __init__(self, proto: "ModelProto", dropout: float):
        # With this α, one more piece, of the average probability 1 / V, multiplies a probability by the dropout.
        self._exponent = -math.log(dropout) / math.log(len(proto.pieces))
        self._processor = load_processor(proto.SerializeToString())
        self._pieces = [piece.piece for piece in proto.pieces]
        self._added_prefix = _SPACE if proto.normalizer_spec.add_dummy_prefix else ""
        self._scores = np.array([piece.score for piece in proto.pieces])
        self._normal = set(_normal_pieces(proto).values())
        self._starts_word = _word_starts(proto)
        self._segmentations = functools.lru_cache(maxsize=_MAX_WORDS)(self._find_segmentations)

    def sample(self, sentences: RaggedIds, seed: Seed) -> RaggedIds:
        """Samples other ids of the same sentences."""
        ids = sentences.ids.tolist()
        bounds = [*np.flatnonzero(_first_of_words(sentences.ids, self._starts_word)).tolist(), len(ids)]
        pieces = array.array("i")
        for start, end, number in zip(
            bounds, bounds[1:], np.random.default_rng(seed).random(len(bounds)), strict=False
        ):
            flat, ends, cumulative = self._segmentations(tuple(ids[start:end]))
            chosen = bisect.bisect(cumulative, number)
            pieces.extend(flat[ends[chosen] : ends[chosen + 1]])
        return RaggedIds.from_flat(np.array(pieces, np.int32))

    def _find_segmentations(self, word: tuple[int, ...]) -> tuple[array.array, list[int], array.array]:
        """The ids of the segmentations of a word, where each of them ends, and their cumulative probabilities."""
        best: list[Sequence[int]] = [word]
        if self._normal.issuperset(word):
            text = self._text(word)
            found = self._processor.nbest_encode_as_ids(text.removeprefix(self._added_prefix), _NUM_BEST)
            if found and self._text(found[0]) == text:  # not normalised to another
                best = [each for each in found if self._normal.issuperset(each)]
        ends = list(itertools.accumulate(map(len, best), initial=0))
        flat = array.array("i", itertools.chain.from_iterable(best))
        scores = np.add.reduceat(self._scores[np.array(flat)], ends[:-1])
        weights = np.exp(self._exponent * (scores - scores.max()))
        # The last is left out, so that rounding cannot lead past it.
        return flat, ends, array.array("d", (weights.cumsum() / weights.sum())[:-1])

    def _text(self, pieces: Sequence[int]) -> str:
        return "".join(self._pieces[piece] for piece in pieces)


def _normal_pieces(proto: "ModelProto") -> dict[str, int]:
    """The ids of the pieces of text: not those for unknown text or bytes, and no special ones."""
    return {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type == piece.NORMAL}


def _word_starts(proto: "ModelProto") -> np.ndarray:
    """Whether each piece (V,) always begins a word; none does if there are pieces of several words."""
    texts = list(_normal_pieces(proto))
    several = any(_SPACE in text[1:] for text in texts)
    return np.array([piece.piece.startswith(_SPACE) and not several for piece in proto.pieces])


def _first_of_words(ids: np.ndarray, starts_word: np.ndarray) -> np.ndarray:
    """Whether each id is the first of its word; the end of a sentence is a word of its own."""
    first = starts_word[ids] | (ids == EOS_ID)
    first[1:] |= ids[:-1] == EOS_ID
    first[:1] = True
    return first
