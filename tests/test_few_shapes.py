"""Batches of few shapes: each pair is in one, padding is small, and padding rows change neither loss nor gradients."""

import itertools

import keras
import numpy as np
import pytest
from backends import numpy

import keras_attention as ka
from keras_attention.text import PackedBatches, SubwordTokenizer, TokenBatches
from keras_attention.text.shape_ladder import ladder
from keras_attention.training import ChunkedTrainer, MaskedAccuracy, MaskedCrossEntropy, Perplexity

BUDGET = 151


@pytest.fixture(scope="module")
def ids():
    """1009 pairs of related lengths, most of them short; each id occurs once."""
    random = np.random.default_rng(1)
    source_lengths = random.geometric(0.15, 1009).clip(0, 40)
    target_lengths = np.clip(source_lengths + random.integers(-3, 4, 1009), 0, None)
    fresh = iter(range(4, 1_000_000))
    return tuple([[next(fresh) for _ in range(n)] for n in lengths] for lengths in (source_lengths, target_lengths))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_the_lengths_are_those_of_the_least_padding(count):
    widths = np.random.default_rng(2).integers(1, 14, 97) ** 2 // 9 + 1
    present = np.unique(widths)

    def cells(lengths):
        return sum(int(lengths[np.searchsorted(lengths, width)]) for width in widths)

    choices = [np.array([*each, present[-1]]) for each in itertools.combinations(present[:-1], min(count, 7) - 1)]
    lengths = ladder(widths, count)
    assert lengths.tolist() == sorted(set(lengths.tolist()) & set(present.tolist()))
    assert len(lengths) == min(count, len(present))
    if count <= 7:
        assert cells(lengths) == min(map(cells, choices))
    else:
        assert lengths.tolist() == present.tolist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_pair_is_once_in_a_batch_of_one_of_the_shapes(ids, shuffle):
    batches = TokenBatches(*ids, tokens_per_batch=BUDGET, max_shapes=4, shuffle=shuffle)
    assert len(batches.shapes) == 4
    assert all(rows == BUDGET // length for rows, length in batches.shapes)
    for epoch in (0, 2):
        plan, cells = batches.plan(epoch), 0
        assert len(plan) == len(batches)
        assert sorted(np.concatenate(plan)) == list(range(1009))
        for index in plan:
            inputs, labels = batches.batch(index, epoch)
            assert labels.shape == inputs["source"].shape == inputs["target"].shape
            assert labels.shape in batches.shapes
            assert [row[row != 0].tolist()[:-1] for row in labels[: len(index)]] == [ids[1][i] for i in index]
            assert [row[row != 0].tolist()[:-1] for row in inputs["source"][: len(index)]] == [ids[0][i] for i in index]
            for array in (*inputs.values(), labels):
                assert not array[len(index) :].any()
            cells += 2 * labels.size
        assert batches.padding == pytest.approx(1 - batches.num_tokens / cells)
        counts = batches.token_counts(epoch)
        assert counts.sum(axis=0).tolist() == [batches.num_tokens, cells]
    assert "in 4 shapes, padding: " in batches.summary()


def test_more_shapes_have_less_padding(ids):
    padding = [TokenBatches(*ids, tokens_per_batch=BUDGET, max_shapes=count).padding for count in (1, 3, 8)]
    assert padding == sorted(padding, reverse=True)
    assert padding[-1] < 0.25 < padding[0]


def test_few_batches_are_not_full():
    """Pairs that do not fill a batch of their length join longer ones: all padding rows would fit into one batch."""
    lengths = np.repeat([2, 4, 6, 8], 97)
    ids = [[[5] * (length - 1) for length in lengths]] * 2
    batches = TokenBatches(*ids, tokens_per_batch=64, max_shapes=4)
    shapes = [(*batches.batch(index)[1].shape, len(index)) for index in batches.plan(0)]
    assert len(set(shapes)) > 4
    assert 0 < sum((rows - pairs) * length for rows, length, pairs in shapes) < 64


def test_batches_with_subword_dropout_keep_the_shapes(tmp_path):
    pairs = [(f"the {a} of {b} by {a}{b}", f"{b} der {a}") for a in ("house", "letters") for b in range(97)]
    path = tmp_path / "text"
    path.write_text("\n".join(side for pair in pairs for side in pair), encoding="utf-8")
    tokenizer = SubwordTokenizer.train([path], 70)
    options = {"tokens_per_batch": 400, "max_shapes": 3, "source_word_dropout": 0.2, "seed": 3}
    batches, again = (TokenBatches.from_pairs(pairs, tokenizer, subword_dropout=0.3, **options) for _ in range(2))
    lengths = set()
    for epoch in range(4):
        plan = batches.plan(epoch)
        assert len(plan) == len(batches)
        assert sorted(np.concatenate(plan)) == list(range(len(pairs)))
        for index, same in zip(plan, again.plan(epoch), strict=True):
            inputs, labels = batches.batch(index, epoch)
            assert labels.shape in batches.shapes
            np.testing.assert_array_equal(inputs["source"], again.batch(same, epoch)[0]["source"])
            lengths.add(int((labels[0] != 0).sum()))
    assert len(lengths) > 3
    assert batches.fingerprint() == again.fingerprint()


def test_the_number_of_shapes_is_part_of_the_data_of_a_run(ids):
    plain, few, fewer = (TokenBatches(*ids, max_shapes=count) for count in (None, 3, 2))
    assert "max_shapes" not in plain.fingerprint()  # as before there were any
    assert few.fingerprint() != fewer.fingerprint()
    assert plain.batch_of_each_shape() == []
    with pytest.raises(ValueError, match=r"`max_shapes` must be at least 1\. Received: max_shapes=0"):
        TokenBatches(*ids, max_shapes=0)


def test_a_batch_of_each_shape_has_the_inputs_of_training(ids):
    token_batches = TokenBatches(*ids, tokens_per_batch=BUDGET, max_shapes=3)
    for batches in (token_batches, PackedBatches(*ids, row_length=48, rows_per_batch=2)):
        empty = keras.tree.map_structure(lambda x: (x.shape, str(x.dtype)), batches.batch_of_each_shape())
        seen = [batches.batch(index) for index in batches.plan(0)]
        for each in keras.tree.map_structure(lambda x: (x.shape, str(x.dtype)), seen):
            assert each in empty
        assert not any(array.any() for array in keras.tree.flatten(batches.batch_of_each_shape()))


def _whole(model):
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=MaskedCrossEntropy(label_smoothing=0.1),
        metrics=[MaskedAccuracy(), Perplexity()],
    )
    return model


def _chunked(model):
    trainer = ChunkedTrainer(model, label_smoothing=0.1, chunk_size=7)
    trainer.compile(keras.optimizers.SGD(1.0))
    return trainer


@pytest.mark.parametrize("make", [_whole, _chunked])
def test_padding_rows_change_neither_the_loss_nor_the_gradients(make):
    ids = [[[5], [6, 7], [8, 4]], [[9, 5, 6], [7], [8, 9]]]
    plain, filled = TokenBatches(*ids), TokenBatches(*ids, tokens_per_batch=29, max_shapes=1)
    assert filled.shapes == [(7, 4)]
    results, weights = [], []
    model = ka.Transformer.from_preset("tiny", vocabulary_size=13, num_layers=1, dropout=0.0)
    before = [numpy(each) for each in model.trainable_variables]
    for batches in (plain, filled):
        for variable, value in zip(model.trainable_variables, before, strict=True):
            variable.assign(value)
        trainer = make(model)
        logs = trainer.fit(batches.dataset(), epochs=1, shuffle=False, verbose=0).history
        results.append({name: values[0] for name, values in logs.items()})
        weights.append([numpy(each) for each in model.trainable_variables])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    for old, first, second in zip(before, *weights, strict=True):
        np.testing.assert_allclose(first - old, second - old, atol=1e-6)  # the gradients
        assert np.isfinite(second).all()
    assert max(np.abs(first - old).max() for first, old in zip(weights[0], before, strict=True)) > 1e-2
