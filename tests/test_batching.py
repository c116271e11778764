"""Batches by tokens: the budget holds, nothing is lost, an epoch repeats itself and differs from the next."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_attention.text import BOS_ID, EOS_ID, PAD_ID, BatchSequence, ParallelCorpus, SubwordTokenizer, TokenBatches

pytestmark = pytest.mark.tensorflow

TATOEBA = Path(__file__).parents[2] / "shared" / "data" / "tatoeba-en-de"
BUDGET = 151


@pytest.fixture
def ids():
    """1009 pairs of related lengths; each id occurs once, so that a misplaced one is seen."""
    random = np.random.default_rng(1)
    source_lengths = random.integers(1, 41, 1009)
    target_lengths = np.clip(source_lengths + random.integers(-5, 6, 1009), 1, None)
    fresh = iter(range(4, 1_000_000))
    return tuple([[next(fresh) for _ in range(n)] for n in lengths] for lengths in (source_lengths, target_lengths))


@pytest.fixture
def batches(ids):
    return TokenBatches(*ids, tokens_per_batch=BUDGET)


def lengths_of(ids, index):
    return [(len(ids[0][i]) + 1, len(ids[1][i]) + 1) for i in index]


def test_batches_stay_within_the_budget_and_are_full(ids, batches):
    for index in batches.plan(0):
        widest = max(max(pair) for pair in lengths_of(ids, index))
        assert len(index) * widest <= BUDGET
    # In sorted order one more pair never fits.
    plan = TokenBatches(*ids, tokens_per_batch=BUDGET, shuffle=False).plan(0)
    for index, following in itertools.pairwise(plan):
        grown = lengths_of(ids, [*index, following[0]])
        assert len(grown) * max(max(pair) for pair in grown) > BUDGET


def test_an_epoch_has_every_pair_once(batches):
    for epoch in (0, 3):
        plan = batches.plan(epoch)
        assert len(plan) == len(batches)
        assert sorted(np.concatenate(plan)) == list(range(1009))


def test_the_order_follows_from_seed_and_epoch(ids, batches):
    def flat(seed, epoch):
        return np.concatenate(TokenBatches(*ids, tokens_per_batch=BUDGET, seed=seed).plan(epoch)).tolist()

    assert flat(1, 2) == flat(1, 2) == np.concatenate(batches.plan(2)).tolist()
    assert flat(1, 2) != flat(1, 3)
    assert flat(1, 2) != flat(2, 2)
    # Not only the order of the batches changes, their content does.
    assert {frozenset(index) for index in batches.plan(0)} != {frozenset(index) for index in batches.plan(1)}


def test_without_shuffling_every_epoch_is_the_same_from_short_to_long(ids):
    batches = TokenBatches(*ids, tokens_per_batch=BUDGET, shuffle=False)
    first, second = (np.concatenate(batches.plan(epoch)).tolist() for epoch in (0, 1))
    assert first == second
    targets = [pair[1] for pair in lengths_of(ids, first)]
    assert targets == sorted(targets)


def test_a_batch_against_a_plain_loop(ids, batches):
    for index in batches.plan(0)[:23]:
        inputs, labels = batches.batch(index)
        widths = np.max(lengths_of(ids, index), axis=0)
        assert inputs["source"].shape == (len(index), widths[0])
        assert inputs["target"].shape == labels.shape == (len(index), widths[1])
        for row, i in enumerate(index):
            source, target = ids[0][i], ids[1][i]
            padding = [[PAD_ID] * (width - len(side) - 1) for width, side in zip(widths, (source, target), strict=True)]
            assert inputs["source"][row].tolist() == [*source, EOS_ID, *padding[0]]
            assert inputs["target"][row].tolist() == [BOS_ID, *target, *padding[1]]
            assert labels[row].tolist() == [*target, EOS_ID, *padding[1]]


def test_counts_are_those_of_the_batches(batches):
    arrays = [array for index in batches.plan(5) for array in (lambda b: (b[0]["source"], b[1]))(batches.batch(index))]
    cells, tokens = sum(array.size for array in arrays), sum(np.count_nonzero(array) for array in arrays)
    assert batches.num_tokens == tokens
    assert batches.padding == pytest.approx(1 - tokens / cells)
    assert batches.num_pairs == 1009


def test_pairs_without_pieces_still_have_an_end():
    inputs, labels = TokenBatches([[], [5]], [[6], []]).batch([0, 1])
    assert inputs["source"].tolist() == [[EOS_ID, PAD_ID], [5, EOS_ID]]
    assert inputs["target"].tolist() == [[BOS_ID, 6], [BOS_ID, PAD_ID]]
    assert labels.tolist() == [[6, EOS_ID], [EOS_ID, PAD_ID]]


def test_pairs_that_are_too_long_are_left_out_and_counted(ids):
    batches = TokenBatches(*ids, tokens_per_batch=BUDGET, max_length=19)
    kept = [i for i, pair in enumerate(lengths_of(ids, range(1009))) if max(pair) <= 19]
    assert 0 < len(kept) < 1009
    assert sorted(np.concatenate(batches.plan(0))) == kept
    assert (batches.num_pairs, batches.num_left_out) == (len(kept), 1009 - len(kept))
    # A pair that exceeds the budget by itself cannot be used either.
    assert TokenBatches(*ids, tokens_per_batch=19).num_left_out == batches.num_left_out


def test_dataset_specification(batches):
    dataset = batches.dataset()
    assert len(dataset) == len(batches)
    spec = tf.TensorSpec((None, None), tf.int32)
    assert dataset.element_spec == ({"source": spec, "target": spec}, spec)


def test_each_iteration_is_the_next_epoch(batches):
    def rows(index):
        return batches.batch(index)[1].tolist()

    dataset, resumed = batches.dataset(), batches.dataset(first_epoch=1)
    epochs = [[labels.tolist() for _, labels in data.as_numpy_iterator()] for data in (dataset, dataset, resumed)]
    assert epochs[0] == [rows(index) for index in batches.plan(0)]
    assert epochs[1] == epochs[2] == [rows(index) for index in batches.plan(1)]


def test_a_sequence_has_the_batches_of_the_dataset(batches):
    """It takes the place of the dataset where TensorFlow is not installed."""
    dataset, sequence = batches.dataset(first_epoch=1, first_batch=2), BatchSequence(batches, 1, 2)
    for _ in range(2):
        expected = list(dataset.as_numpy_iterator())
        result = [sequence[index] for index in range(len(sequence))]
        assert len(result) == len(expected)
        keras.tree.map_structure(np.testing.assert_array_equal, result, expected)
        sequence.on_epoch_end()


def test_fit_sees_the_epochs_in_turn(batches):
    seen = []

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(), initializer="ones")

        def train_step(self, data):
            tf.py_function(lambda labels: seen.append(labels.numpy().tolist()), [data[1]], [])
            return {"loss": tf.constant(0.0)}

    model = Recorder()
    model.compile(optimizer="sgd")
    model.fit(batches.dataset(), epochs=2, shuffle=False, verbose=0)
    planned = [index for epoch in (0, 1) for index in batches.plan(epoch)]
    assert seen == [batches.batch(index)[1].tolist() for index in planned]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens_per_batch": 0}, "`tokens_per_batch` must be at least 1. Received: tokens_per_batch=0"),
        ({"max_length": 0}, "`max_length` must be at least 1. Received: max_length=0"),
        ({"seed": -1}, "`seed` must not be negative. Received: seed=-1"),
        ({"max_length": 2}, "of 2 pairs none has at most 2 tokens a side. Received: max_length=2"),
        ({"tokens_per_batch": 2}, "of 2 pairs none has at most 2 tokens a side. .*tokens_per_batch=2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenBatches([[5, 6], [7]], [[8], [9, 10]], **arguments)


def test_other_errors():
    with pytest.raises(ValueError, match="Received: 2 in `source_ids`, 1 in `target_ids`"):
        TokenBatches([[5], [6]], [[7]])
    with pytest.raises(ValueError, match="No pair to train on: of 0 pairs"):
        TokenBatches([], [])
    batches = TokenBatches([[5]], [[6]])
    with pytest.raises(ValueError, match=r"must not be negative\. Received: epoch=-1"):
        batches.plan(-1)
    with pytest.raises(ValueError, match=r"must not be negative\. Received: first_epoch=-1"):
        batches.dataset(first_epoch=-1)


@pytest.mark.skipif(not TATOEBA.is_dir(), reason=f"the Tatoeba corpus is not at {TATOEBA}")
def test_little_padding_on_sentences_of_people(tmp_path):
    dev = [TATOEBA / "dev.en", TATOEBA / "dev.de"]
    tokenizer = SubwordTokenizer.train(dev, vocabulary_size=2000)
    corpus = ParallelCorpus(TATOEBA / "train.en.gz", TATOEBA / "train.de.gz")
    batches = TokenBatches.from_pairs(corpus.sample(40_009), tokenizer, tokens_per_batch=4096)
    assert batches.num_left_out == 0
    assert batches.padding <= 0.05


def test_no_two_of_seed_and_epoch_share_an_order(ids):
    orders = {
        np.concatenate(TokenBatches(*ids, tokens_per_batch=BUDGET, seed=seed).plan(epoch)).tobytes()
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_lengths_of_the_source_rise_and_fall_in_turn(ids):
    plan = TokenBatches(*ids, tokens_per_batch=BUDGET, shuffle=False).plan(0)
    found = lengths_of(ids, np.concatenate(plan))
    assert found == sorted(found, key=lambda pair: (pair[1], -pair[0] if pair[1] % 2 else pair[0]))
    # The cuts are the same in every epoch, whichever pairs of equal lengths are between them.
    shuffled = TokenBatches(*ids, tokens_per_batch=BUDGET).plan(0)
    assert sorted(lengths_of(ids, index) for index in shuffled) == sorted(lengths_of(ids, index) for index in plan)


def test_the_order_of_batches_is_shuffled_too(ids, batches):
    widths = [max(pair[1] for pair in lengths_of(ids, index)) for index in batches.plan(0)]
    assert widths != sorted(widths)


def test_the_least_that_is_allowed():
    batches = TokenBatches([[], []], [[], []], tokens_per_batch=1, max_length=1, seed=0)
    assert [len(index) for index in batches.plan(0)] == [1, 1]
    assert (batches.num_pairs, batches.num_left_out, batches.padding) == (2, 0, 0.0)


def test_defaults_are_4096_tokens_of_256_at_most_shuffled_by_seed_1():
    row = [5] * 255
    for batches in (
        TokenBatches([row] * 17 + [[5] * 256], [[7]] * 18),
        TokenBatches.from_pairs([("x" * 255, "y")] * 17 + [("x" * 256, "y")], Letters()),
    ):
        assert [len(index) for index in TokenBatches([row] * 17, [[7]] * 17, shuffle=False).plan(0)] == [16, 1]
        assert sorted(len(index) for index in batches.plan(0)) == [1, 16]
        assert (batches.num_left_out, batches.max_length, batches.tokens_per_batch) == (1, 256, 4096)
        assert (batches.seed, batches.shuffle) == (1, True)


class Letters:
    """A tokenizer whose pieces are letters."""

    def encode(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


@pytest.mark.parametrize(
    "options",
    [{"tokens_per_batch": 8}, {"max_length": 3}, {"seed": 5}, {"shuffle": False}],
    ids=str,
)
def test_pairs_of_texts_make_the_batches_of_their_pieces(options):
    pairs = [("ab", "c"), ("d", "efg"), ("hi", "k"), ("l", "m"), ("no", "p"), ("q", "r")]
    sides = [Letters().encode(side) for side in zip(*pairs, strict=True)]
    found = TokenBatches.from_pairs(pairs, Letters(), **options)
    expected = TokenBatches(*sides, **options)
    assert [index.tolist() for index in found.plan(3)] == [index.tolist() for index in expected.plan(3)]
    inputs, _ = found.batch([1])
    assert inputs["source"].tolist() == [[ord("d"), EOS_ID]]
    assert found.summary() == expected.summary()
