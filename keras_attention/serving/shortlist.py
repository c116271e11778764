"""A vocabulary shortlist: the target pieces that a search considers for a source, learned from training text.

Shapes: B sentences, S source length, V vocabulary, C candidates, n entries of a piece, E pairs of pieces of a sentence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_attention.layers.arguments import positive_integer
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, SubwordTokenizer
from keras_attention.text.ragged_ids import RaggedIds, gather

# The search needs them at the same ids as in the vocabulary, see `candidates`.
SPECIAL_IDS = (PAD_ID, UNK_ID, BOS_ID, EOS_ID)
COMMONEST, PER_PIECE = 100, 100
# Of `train`: from the fifth on, another iteration of EM changes hardly a list.
ITERATIONS = 4
# Pairs of a source and a target piece in all sentences, which are in memory together: about 50 bytes each.
MAX_PAIRS_OF_PIECES = 20_000_000


class Shortlist(tf.Module):
    """The candidates of a search: target pieces that are likely for the pieces of a source.

    The candidates of a source are the commonest target pieces, the special ones, and for each piece of the source that
    piece itself and its likeliest translations. So the logits of a step are computed over hundreds of pieces instead of
    the vocabulary, and those of a sentence do not depend on the others of its batch.

    Args:
        translations: For each id of the vocabulary the ids of its likeliest translations (V, n), 0 for none.
        commonest: Ids that every source has, besides the special ones.

    Raises:
        ValueError: If an array has another rank, or an id is not of the vocabulary.

    Example:
        >>> translations = np.zeros((9, 1), "int32")
        >>> translations[5] = 7
        >>> shortlist = Shortlist(translations, commonest=[6])
        >>> shortlist.candidates(keras.ops.array([[5, 3], [4, 3]])).numpy().tolist()
        [[0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 3, 4, 6, 0]]

    Source: Jean et al. 2015, "On Using Very Large Target Vocabulary for Neural Machine Translation", section 3.3.
    """

    def __init__(self, translations: Any, commonest: Any):
        super().__init__(name="shortlist")
        translations, commonest = np.asarray(translations, "int32"), np.asarray(commonest, "int32")
        _check(translations, commonest)
        vocabulary_size, per_piece = translations.shape
        self.vocabulary_size = vocabulary_size
        self._number_commonest, self._per_piece = len(commonest), per_piece
        itself = np.arange(vocabulary_size, dtype="int32")[:, None]
        # Variables, as a graph with large constants takes a multiple of their memory when it is loaded.
        self._translations = tf.Variable(np.concatenate([itself, translations], axis=1), trainable=False)
        self._always = tf.Variable(np.union1d(SPECIAL_IDS, commonest).astype("int32"), trainable=False)

    @property
    def size(self) -> dict[str, int]:
        """The number of commonest pieces, and the maximum number of translations of a piece."""
        return {"commonest": self._number_commonest, "per_piece": self._per_piece}

    @classmethod
    def train(
        cls,
        pairs: Sequence[tuple[str, str]],
        tokenizer: SubwordTokenizer,
        commonest: int = COMMONEST,
        per_piece: int = PER_PIECE,
    ) -> "Shortlist":
        """Learns the translations of each piece from pairs of sentences, with IBM model 1.

        Args:
            pairs: Source and target sentences. Of much text the beginning is read: pass a random sample of it, see
                `text.ParallelCorpus.sample`.
            tokenizer: Tokenizer of the model.
            commonest: Number of the commonest target pieces, which every source has.
            per_piece: Maximum number of translations of a source piece, n; the commonest are not among them.

        Returns:
            The shortlist.

        Raises:
            ValueError: If there are no pairs, or a number is below 1.

        Example:
            >>> translator = getfixture("translator")
            >>> shortlist = Shortlist.train([("abl", "ab")], translator.tokenizer, commonest=2, per_piece=3)
            >>> shortlist.size
            {'commonest': 2, 'per_piece': 3}

        Source: Brown et al. 1993, "The Mathematics of Statistical Machine Translation", section 4.1.
        """
        positive_integer(commonest, "commonest")
        positive_integer(per_piece, "per_piece")
        if not len(pairs):
            raise ValueError("`pairs` must have at least one pair of sentences. Received: pairs of length 0")
        sources, targets = _encode(pairs, tokenizer)
        counts = np.bincount(targets.ids, minlength=tokenizer.vocabulary_size)  # (V,)
        counts[list(SPECIAL_IDS)] = 0
        order = np.argsort(-counts, kind="stable")[:commonest]
        order = order[counts[order] > 0]
        lexicon = learn_lexicon(sources, targets)
        return cls(likeliest(lexicon, tokenizer.vocabulary_size, per_piece, without=order), order)

    def candidates(self, source_ids: tf.Tensor) -> tf.Tensor:
        """Returns the candidates of sources.

        Args:
            source_ids: Token ids (B, S), padded with 0.

        Returns:
            Ids (B, C) in ascending order, then padding with 0. The special ids come first, so that each is its own
            index.
        """
        sentences = tf.shape(source_ids)[0]
        of_pieces = tf.gather(self._translations.read_value(), source_ids)  # (B, S, 1 + n)
        of_pieces = tf.reshape(of_pieces, [sentences, tf.shape(source_ids)[1] * self._translations.shape[1]])
        always = self._always.read_value()
        always = tf.broadcast_to(always, [sentences, tf.size(always)])
        ids = tf.sort(tf.concat([always, of_pieces], axis=1), axis=1)
        is_first = tf.concat([tf.ones([sentences, 1], tf.bool), ids[:, 1:] != ids[:, :-1]], axis=1)
        return tf.ragged.boolean_mask(ids, is_first).to_tensor(PAD_ID)


class Lexicon(NamedTuple):
    """The probability of each target piece given a source piece, for pairs of pieces that occur together (P,)."""

    sources: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray


def learn_lexicon(sources: RaggedIds, targets: RaggedIds, iterations: int = ITERATIONS) -> Lexicon:
    """Learns the lexicon of IBM model 1 from the ids of N pairs of sentences, by EM."""
    per_target = np.repeat(sources.lengths, targets.lengths)  # source pieces of the sentence of each target piece
    source_of = sources.ids[gather(np.repeat(sources.starts, targets.lengths), per_target)]  # (E,)
    target_of = np.repeat(targets.ids, per_target)  # (E,)
    size = int(max(source_of.max(initial=0), target_of.max(initial=0))) + 1
    keys, index = np.unique(source_of.astype(np.int64) * size + target_of, return_inverse=True)  # (P,), (E,)
    first = per_target.cumsum() - per_target
    known_sources, known_targets = np.divmod(keys, size)
    probabilities = np.ones(len(keys))
    for _ in range(iterations):
        shares = probabilities[index]
        shares /= np.repeat(np.add.reduceat(shares, first), per_target)  # of each source piece in a target piece
        counts = np.bincount(index, shares, len(keys))
        probabilities = counts / np.bincount(known_sources, counts)[known_sources]
    return Lexicon(known_sources, known_targets, probabilities)


def likeliest(lexicon: Lexicon, vocabulary_size: int, number: int, without: Any = ()) -> np.ndarray:
    """Returns the likeliest target pieces of each source piece (V, n), most likely first, 0 for none."""
    kept = ~np.isin(lexicon.targets, [*SPECIAL_IDS, *without])
    sources, targets, probabilities = (each[kept] for each in lexicon)
    order = np.lexsort((targets, -probabilities, sources))
    sources, targets = sources[order], targets[order]
    rank = np.arange(len(sources)) - np.searchsorted(sources, sources)  # among those of its source piece
    table = np.full((vocabulary_size, number), PAD_ID, "int32")
    best = rank < number
    table[sources[best], rank[best]] = targets[best]
    return table


def _encode(pairs: Sequence[tuple[str, str]], tokenizer: SubwordTokenizer) -> tuple[RaggedIds, RaggedIds]:
    """Returns the ids of the pieces of each sentence, each piece once, of as many pairs as fit into memory.

    A source has the end of sentence, which stands for the target pieces without a source; it is the word NULL of IBM
    model 1.
    """
    sources = [sorted({*ids, EOS_ID}) for ids in tokenizer.encode([source for source, _ in pairs])]
    targets = [sorted(set(ids)) for ids in tokenizer.encode([target for _, target in pairs])]
    sizes = np.cumsum([len(source) * len(target) for source, target in zip(sources, targets, strict=True)])
    count = max(1, int(np.searchsorted(sizes, MAX_PAIRS_OF_PIECES, side="right")))
    return _ragged(sources[:count]), _ragged(targets[:count])


def _ragged(sentences: Sequence[Sequence[int]]) -> RaggedIds:
    lengths = np.array([len(ids) for ids in sentences])
    return RaggedIds(
        np.concatenate([np.array(ids, np.int64) for ids in sentences]), lengths.cumsum() - lengths, lengths
    )


def _check(translations: np.ndarray, commonest: np.ndarray) -> None:
    if translations.ndim != 2 or commonest.ndim != 1:
        raise ValueError(
            "`translations` must have shape (V, n), a row for each id, and `commonest` (N,). "
            f"Received: translations.shape={translations.shape}, commonest.shape={commonest.shape}"
        )
    for name, ids in (("translations", translations), ("commonest", commonest)):
        if ids.size and not 0 <= ids.min() <= ids.max() < len(translations):
            raise ValueError(
                f"`{name}` must be ids of the vocabulary, from 0 to below {len(translations)}. "
                f"Received: {name} from {ids.min()} to {ids.max()}"
            )
