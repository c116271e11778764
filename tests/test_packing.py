"""Packed batches: every pair is in one row, both sides are full, epochs repeat themselves and differ."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_attention.text import BOS_ID, EOS_ID, PAD_ID, PackedBatches, ParallelCorpus, SubwordTokenizer
from keras_attention.text.bin_packing import pack, row_lengths

pytestmark = pytest.mark.tensorflow

TATOEBA = Path(__file__).parents[2] / "shared" / "data" / "tatoeba-en-de"
ROW, ROWS, PAIRS = 61, 7, 1009


@pytest.fixture
def ids():
    """1009 pairs of related lengths; each id occurs once, so that a misplaced one is seen."""
    random = np.random.default_rng(1)
    source_lengths = random.integers(0, 31, PAIRS)
    target_lengths = np.clip(source_lengths + random.integers(-5, 6, PAIRS), 0, None)
    fresh = iter(range(4, 1_000_000))
    return tuple([[next(fresh) for _ in range(n)] for n in lengths] for lengths in (source_lengths, target_lengths))


@pytest.fixture
def batches(ids):
    return PackedBatches(*ids, row_length=ROW, rows_per_batch=ROWS)


def pairs_in(rows):
    return rows[rows >= 0]


def segments_of(row, segments):
    """The ids of each segment of a row, in order; the rest must be padding."""
    assert not row[segments == 0].any()
    return [row[segments == number].tolist() for number in range(1, segments.max() + 1)]


def test_a_batch_against_a_plain_loop(ids, batches):
    for rows in batches.plan(2)[:5]:
        inputs, labels = batches.batch(rows)
        assert inputs["source"].shape == inputs["source_segments"].shape == (ROWS, batches.source_length)
        assert (
            inputs["target"].shape == inputs["target_segments"].shape == labels.shape == (ROWS, batches.target_length)
        )
        for place, row in enumerate(rows):
            found = {name: each[place] for name, each in inputs.items()}
            pairs = pairs_in(row)
            expected = [[*ids[0][i], EOS_ID] for i in pairs]
            assert segments_of(found["source"], found["source_segments"]) == expected
            assert segments_of(found["target"], found["target_segments"]) == [[BOS_ID, *ids[1][i]] for i in pairs]
            assert segments_of(labels[place], found["target_segments"]) == [[*ids[1][i], EOS_ID] for i in pairs]
            for side in ("source", "target"):
                # Segments follow one another, padding comes last.
                real = found[f"{side}_segments"][found[f"{side}_segments"] > 0]
                assert np.all(np.diff(real) >= 0)
                assert not found[f"{side}_segments"][len(real) :].any()


def test_a_row_without_pairs_is_padding():
    batches = PackedBatches([[5], [6]], [[7], [8]], row_length=16, rows_per_batch=3)
    inputs, labels = batches.batch(batches.plan(0)[0])
    assert sorted(np.count_nonzero(labels, axis=1)) == [0, 2, 2]
    assert all(sorted(np.count_nonzero(each, axis=1)) == [0, 2, 2] for each in inputs.values())


def test_an_epoch_has_every_pair_once(batches):
    for epoch in (0, 3):
        plan = batches.plan(epoch)
        assert plan.shape[:2] == (len(batches), ROWS)
        assert sorted(pairs_in(plan)) == list(range(PAIRS))


def test_the_order_follows_from_seed_and_epoch(ids, batches):
    def flat(seed, epoch):
        return PackedBatches(*ids, row_length=ROW, rows_per_batch=ROWS, seed=seed).plan(epoch).tolist()

    assert flat(1, 2) == flat(1, 2) == batches.plan(2).tolist()
    assert flat(1, 2) != flat(1, 3)
    assert flat(1, 2) != flat(2, 2)
    # Not only the order of the rows changes, their content does.
    contents = [
        {frozenset(pairs_in(row)) for row in batches.plan(epoch).reshape(-1, batches.plan(0).shape[2])}
        for epoch in (0, 1)
    ]
    assert len(contents[0] & contents[1]) < len(contents[0]) / 2


def test_counts_are_those_of_the_batches(ids, batches):
    laid_out = [batches.batch(rows) for rows in batches.plan(5)]
    arrays = [array for inputs, labels in laid_out for array in (inputs["source"], labels)]
    cells, tokens = sum(array.size for array in arrays), sum(np.count_nonzero(array) for array in arrays)
    assert batches.num_tokens == tokens == sum(len(each) + 1 for side in ids for each in side)
    assert batches.padding == pytest.approx(1 - tokens / cells)
    assert (batches.num_pairs, batches.num_left_out) == (PAIRS, 0)
    assert f"pairs: 1,009, batches: {len(batches)} of 7 packed rows" in batches.summary()


def test_pairs_that_are_too_long_are_left_out_and_counted(ids):
    batches = PackedBatches(*ids, row_length=19, rows_per_batch=ROWS)
    kept = [i for i in range(PAIRS) if max(len(ids[0][i]), len(ids[1][i])) < 19]
    assert 0 < len(kept) < PAIRS
    assert sorted(pairs_in(batches.plan(0))) == kept
    assert (batches.num_pairs, batches.num_left_out) == (len(kept), PAIRS - len(kept))


def test_rows_are_as_long_as_each_side_needs():
    lengths = np.array([[2, 3], [20, 30], [10, 15]])
    assert row_lengths(lengths, 240).tolist() == [160, 240]
    assert row_lengths(lengths[:, ::-1], 240).tolist() == [240, 160]
    # A multiple of 8, never above the longest, never below a sentence.
    assert row_lengths(lengths, 31).tolist() == [24, 31]
    assert row_lengths(np.array([[9, 1], [1, 99]]), 100).tolist() == [16, 100]


@pytest.mark.parametrize("capacity", [(61, 61), (53, 97), (31, 31)], ids=str)
def test_no_row_is_over_its_length(capacity):
    lengths = np.random.default_rng(3).integers(1, 32, (499, 2))
    lengths = lengths[np.argsort(-lengths.max(1))]
    rows, num_rows = pack(lengths, np.array(capacity), multiple=5)
    assert num_rows % 5 == 0
    assert 0 <= rows.min() <= rows.max() < num_rows
    filled = np.zeros((num_rows, 2), int)
    np.add.at(filled, rows, lengths)
    assert np.all(filled <= capacity)


@pytest.mark.parametrize(("length", "rows"), [(61, 30), (31, 30), (30, 15), (1, 1)])
def test_pairs_of_one_length_take_the_rows_that_they_must(length, rows):
    assert pack(np.full((30, 2), length), np.array([61, 61]), multiple=1)[1] == rows


def test_both_sides_fill_up_where_pairs_lean_to_one():
    lengths = np.array([[30, 10], [10, 30]] * 50 + [[3, 5], [5, 3]] * 50)
    _, num_rows = pack(lengths, np.array([48, 48]), multiple=1)
    assert num_rows == 50  # the sum of either side, 2,400, fills them to the last token


def test_dataset_has_fixed_shapes(batches):
    inputs, labels = batches.dataset().element_spec
    source, target = (tf.TensorSpec((ROWS, n), tf.int32) for n in (batches.source_length, batches.target_length))
    assert inputs == {"source": source, "target": target, "source_segments": source, "target_segments": target}
    assert labels == target
    assert len(batches.dataset()) == len(batches)


def test_each_iteration_is_the_next_epoch(batches):
    def planned(epoch):
        return [batches.batch(rows)[1].tolist() for rows in batches.plan(epoch)]

    dataset, resumed = batches.dataset(), batches.dataset(first_epoch=1)
    epochs = [[labels.tolist() for _, labels in data.as_numpy_iterator()] for data in (dataset, dataset, resumed)]
    assert epochs[0] == planned(0)
    assert epochs[1] == epochs[2] == planned(1)
    inputs, _ = next(batches.dataset().as_numpy_iterator())
    expected, _ = batches.batch(batches.plan(0)[0])
    assert {name: each.tolist() for name, each in inputs.items()} == {
        name: each.tolist() for name, each in expected.items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row_length": 0}, r"`row_length` must be at least 1\. Received: row_length=0"),
        ({"rows_per_batch": 0}, r"`rows_per_batch` must be at least 1\. Received: rows_per_batch=0"),
        ({"seed": -1}, r"`seed` must not be negative\. Received: seed=-1"),
        ({"row_length": 2}, r"of 2 pairs none has at most 2 tokens a side\. Received: row_length=2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PackedBatches([[5, 6], [7]], [[8], [9, 10]], **arguments)


def test_other_errors():
    with pytest.raises(ValueError, match="Received: 2 in `source_ids`, 1 in `target_ids`"):
        PackedBatches([[5], [6]], [[7]])
    with pytest.raises(ValueError, match="No pair to train on: of 0 pairs"):
        PackedBatches([], [])
    batches = PackedBatches([[5]], [[6]])
    with pytest.raises(ValueError, match=r"must not be negative\. Received: epoch=-1"):
        batches.plan(-1)
    with pytest.raises(ValueError, match=r"must not be negative\. Received: first_epoch=-1"):
        batches.dataset(first_epoch=-1)


@pytest.mark.skipif(not TATOEBA.is_dir(), reason=f"the Tatoeba corpus is not at {TATOEBA}")
def test_hardly_any_padding_on_sentences_of_people():
    dev = [TATOEBA / "dev.en", TATOEBA / "dev.de"]
    tokenizer = SubwordTokenizer.train(dev, vocabulary_size=2000)
    corpus = ParallelCorpus(TATOEBA / "train.en.gz", TATOEBA / "train.de.gz")
    batches = PackedBatches.from_pairs(corpus.sample(40_009), tokenizer, row_length=256, rows_per_batch=16)
    assert batches.num_left_out == 0
    assert batches.padding < 0.03
    assert batches.source_length == 256 or batches.target_length == 256
    assert PAD_ID == 0


def test_no_two_of_seed_and_epoch_share_an_order(ids):
    orders = {
        PackedBatches(*ids, row_length=ROW, rows_per_batch=ROWS, seed=seed).plan(epoch).tobytes()
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_a_shuffle_exchanges_pairs_of_equal_lengths_and_whole_rows(ids, batches):
    def rows_of_lengths(epoch):
        rows = batches.plan(epoch).reshape(len(batches) * ROWS, -1)
        return [tuple((len(ids[0][i]), len(ids[1][i])) for i in pairs_in(row)) for row in rows]

    first, second = rows_of_lengths(0), rows_of_lengths(1)
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_least_that_is_allowed():
    batches = PackedBatches([[], []], [[], []], row_length=1, rows_per_batch=1, seed=0)
    assert batches.plan(0).shape == (2, 1, 1)
    assert (batches.num_pairs, batches.num_left_out, batches.padding) == (2, 0, 0.0)


class Letters:
    """A tokenizer whose pieces are letters."""

    def encode(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


def test_defaults_are_16_rows_of_256_shuffled_by_seed_1():
    for batches in (
        PackedBatches([[5] * 255, [5] * 256], [[7] * 255, [7]]),
        PackedBatches.from_pairs([("x" * 255, "y" * 255), ("x" * 256, "y")], Letters()),
    ):
        inputs, labels = batches.batch(batches.plan(0)[0])
        assert inputs["source"].shape == labels.shape == (16, 256)
        assert (batches.num_left_out, batches.row_length, batches.rows_per_batch, batches.seed) == (1, 256, 16, 1)


@pytest.mark.parametrize("options", [{"row_length": 5}, {"rows_per_batch": 2}, {"seed": 5}], ids=str)
def test_pairs_of_texts_make_the_batches_of_their_pieces(options):
    pairs = [("ab", "c"), ("d", "efg"), ("hi", "k"), ("l", "m"), ("no", "p"), ("q", "rstuv")]
    sides = [Letters().encode(side) for side in zip(*pairs, strict=True)]
    found, expected = PackedBatches.from_pairs(pairs, Letters(), **options), PackedBatches(*sides, **options)
    assert found.plan(3).tolist() == expected.plan(3).tolist()
    for mine, wanted in zip(found.batch(found.plan(3)[0]), expected.batch(expected.plan(3)[0]), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, mine, wanted)
    assert found.summary() == expected.summary()


def test_few_rows_are_left_almost_empty():
    """Of pairs of the lengths of sentences, about as many rows are filled as the tokens need."""
    random = np.random.default_rng(11)
    lengths = np.clip(random.lognormal(2.5, 0.6, 4001).astype(int), 2, 64)[:, None]
    lengths = np.clip(np.concatenate([lengths, lengths + random.integers(-4, 5, lengths.shape)], axis=1), 1, 64)
    lengths = lengths[np.argsort(-lengths.max(axis=1), kind="stable")]
    capacity = row_lengths(lengths, 128)
    _, num_rows = pack(lengths, capacity, multiple=1)
    least = int(np.ceil((lengths.sum(axis=0) / capacity).max()))
    assert least <= num_rows <= 1.02 * least
