"""The consistency losses against whole logits, and what each pass of a trainer sees."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_attention as ka
from keras_attention.training import ChunkedTrainer, MaskedAccuracy, Perplexity, chunked_cross_entropy, consistency
from keras_attention.training.consistency import TokenCutoff, pass_weights
from tests.backends import gradients, numpy

B, T, S, M, V = 3, 7, 13, 5, 11
KINDS = ["rdrop", "simcut"]


@pytest.fixture
def case():
    random = np.random.default_rng(3)
    first, second = random.normal(size=(2, B, T, M)).astype("float32")
    embeddings = random.normal(size=(V, M)).astype("float32")
    labels = random.integers(1, V, (B, T)).astype("int32")
    labels[0, 4:] = 0
    labels[2, 1:] = 0
    return first, second, embeddings, labels


def whole(first, second, embeddings, labels, kind="rdrop", weight=None, label_smoothing=0.1, sample_weight=None):
    """The loss of the papers, in float32, from all logits."""
    mask = (labels != 0).astype("float32")
    weights = mask if sample_weight is None else mask * sample_weight
    targets = (1 - label_smoothing) * np.eye(V, dtype="float32")[labels] + np.float32(label_smoothing / V)
    weights, targets = ops.convert_to_tensor(weights), ops.convert_to_tensor(targets)
    p, q = (ops.log_softmax(ops.matmul(x, ops.transpose(embeddings))) for x in (first, second))

    def cross_entropy(log_probabilities):
        return -ops.sum(targets * log_probabilities, axis=-1)

    def divergence(p, q):
        return ops.sum(ops.exp(p) * (p - q), axis=-1)

    if kind == "rdrop":
        both = divergence(p, q) + divergence(q, p)
        losses = (cross_entropy(p) + cross_entropy(q) + (weight or 5) / 2 * both) / 2
    else:
        losses = cross_entropy(p) + (weight or 3) * divergence(p, q)
    return ops.sum(losses * weights) / max(mask.sum(), 1)


def chunked(
    first, second, embeddings, labels, kind="rdrop", weight=None, label_smoothing=0.1, chunk_size=8, sample_weight=None
):
    sums = chunked_cross_entropy(
        first,
        embeddings,
        labels,
        label_smoothing,
        chunk_size=chunk_size,
        sample_weight=sample_weight,
        second_pass=second,
        consistency=kind,
        consistency_weight=weight,
    )
    return sums.loss / ops.maximum(sums.count, 1.0)


def gradients_of(loss, *case, **options):
    *inputs, labels = case
    return gradients(lambda *inputs: loss(*inputs, labels, **options), inputs)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [1, 8, 14, 42, 100])  # of 21 tokens in each pass: one, 4, 7 and all in a chunk
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_whole_logits(case, kind, chunk_size, label_smoothing):
    options = {"kind": kind, "label_smoothing": label_smoothing}
    expected = numpy(whole(*case, **options))
    np.testing.assert_allclose(numpy(chunked(*case, chunk_size=chunk_size, **options)), expected, rtol=1e-5)
    wanted = gradients_of(whole, *case, **options)
    computed = gradients_of(chunked, *case, chunk_size=chunk_size, **options)
    for mine, expected in zip(computed, wanted, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_that_of_the_papers_or_chosen(case, kind):
    chosen = {"kind": kind, "weight": 0.7}
    np.testing.assert_allclose(numpy(chunked(*case, **chosen)), numpy(whole(*case, **chosen)), rtol=1e-5)
    assert pass_weights("rdrop") == pass_weights("rdrop", 5)
    assert pass_weights("simcut") == pass_weights("simcut", 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_weights_weigh_both_terms(case, kind):
    weights = np.random.default_rng(5).uniform(0, 2, (B, T)).astype("float32")
    weights[1, 2] = 0
    options = {"kind": kind, "sample_weight": weights}
    np.testing.assert_allclose(numpy(chunked(*case, **options)), numpy(whole(*case, **options)), rtol=1e-5)
    for mine, wanted in zip(
        gradients_of(chunked, *case, **options), gradients_of(whole, *case, **options), strict=True
    ):
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_counts_for_nothing(case, kind):
    first, second, embeddings, labels = case
    padding = labels[..., None] == 0
    changed = np.where(padding, np.float32(1e3), first), np.where(padding, np.float32(np.nan), second)
    case, changed = (*case[:2], embeddings, labels), (*changed, embeddings, labels)
    np.testing.assert_array_equal(numpy(chunked(*changed, kind=kind)), numpy(chunked(*case, kind=kind)))
    by_first, by_second, by_embeddings = gradients_of(chunked, *changed, kind=kind)
    assert np.all(by_first[labels == 0] == 0)
    assert np.all(by_second[labels == 0] == 0)
    np.testing.assert_array_equal(by_embeddings, gradients_of(chunked, *case, kind=kind)[2])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_passes_have_no_divergence(case, kind):
    first, _, embeddings, labels = case
    plain = chunked_cross_entropy(first, embeddings, labels, 0.1, chunk_size=8)
    np.testing.assert_allclose(
        numpy(chunked(first, first, embeddings, labels, kind)), float(plain.loss / plain.count), rtol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_metrics_are_those_of_the_first_pass(case, kind):
    first, second, embeddings, labels = case
    plain = chunked_cross_entropy(first, embeddings, labels, 0.1, chunk_size=8)
    sums = chunked_cross_entropy(first, embeddings, labels, 0.1, chunk_size=8, second_pass=second, consistency=kind)
    for name in ("negative_log_likelihood", "correct", "count"):
        np.testing.assert_allclose(float(getattr(sums, name)), float(getattr(plain, name)), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_without_any_overlap_have_a_finite_loss(case, kind):
    first, second, embeddings, labels = case
    far = 60 * first, -60 * second, embeddings, labels
    expected = numpy(whole(*far, kind=kind))
    assert expected > 100
    np.testing.assert_allclose(numpy(chunked(*far, kind=kind)), expected, rtol=1e-3)
    for mine, wanted in zip(gradients_of(chunked, *far, kind=kind), gradients_of(whole, *far, kind=kind), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_float32(case, kind, dtype):
    def half(first, second, embeddings, labels):
        return chunked(*(ops.cast(x, dtype) for x in (first, second, embeddings)), labels, kind)

    np.testing.assert_allclose(numpy(half(*case)), numpy(chunked(*case, kind=kind)), rtol=0.01)
    for mine, wanted in zip(gradients_of(half, *case), gradients_of(chunked, *case, kind=kind), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=0.03 * np.abs(wanted).max())


def test_no_more_logits_at_once_than_without(case, monkeypatch):
    rows = []
    matmul = ops.matmul

    def seen(x, y):
        if y.shape[-1] == V:
            rows.append(x.shape[0])
        return matmul(x, y)

    monkeypatch.setattr(ops, "matmul", seen)
    chunked(*case, chunk_size=8)
    assert set(rows) == {8}


def small(kind=ka.Transformer, dropout=0.0, **options):
    keras.utils.set_random_seed(5)
    return kind.from_preset(
        "tiny", V, num_layers=1, hidden_dim=6, intermediate_dim=5, num_heads=2, dropout=dropout, **options
    )


def trainer_of(model, **options):
    trainer = ChunkedTrainer(model, label_smoothing=0.1, chunk_size=8, **options)
    trainer.compile(keras.optimizers.Adam(0.01))
    return trainer


def pairs(labels):
    source = np.random.default_rng(7).integers(4, V, (B, S)).astype("int32")
    return {"source": source, "target": np.roll(labels, 1, axis=1)}, labels


def packed(inputs):
    segments = {f"{name}_segments": np.where(ids > 0, 1, 0).astype("int32") for name, ids in inputs.items()}
    return {**inputs, **segments}


FIT = {"epochs": 2, "batch_size": B, "verbose": 0, "shuffle": False}


def test_two_passes_without_dropout_train_like_one(case):
    data = pairs(case[3])
    one, two = small(), small()
    wanted = trainer_of(one).fit(*data, **FIT).history
    history = trainer_of(two, consistency="rdrop").fit(*data, **FIT).history
    assert sorted(history) == sorted(wanted) == ["accuracy", "loss", "perplexity"]
    for name, values in wanted.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
    for mine, expected in zip(two.get_weights(), one.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", ["pairs", "packed", "language model"])
def test_a_step_has_the_loss_of_both_passes_and_the_metrics_of_the_first(case, kind, inputs, monkeypatch):
    monkeypatch.setattr(consistency, "CUTOFF_RATE", 0.5)
    data, labels = pairs(case[3])
    if inputs == "language model":
        model, data = small(ka.CausalTransformer, dropout=0.3), data["target"]
        trainer = trainer_of(model, consistency=kind)
    else:
        model = small(dropout=0.3)
        trainer = trainer_of(model, consistency=kind, inputs=model.packed().input if inputs == "packed" else None)
        data = packed(data) if inputs == "packed" else data
    trainer.optimizer.learning_rate = 0.0
    x = trainer(data, training=True)
    assert tuple(x.shape) == (2 * B, T, 6)
    first, second = numpy(ops.split(x, 2))
    embeddings = numpy(model.get_layer("embedding").embeddings)
    assert np.abs(first - second)[labels > 0].max() > 0.01
    np.testing.assert_allclose(
        numpy(trainer.compute_loss(data, labels, x, training=True)),
        numpy(whole(first, second, embeddings, labels, kind)),
        rtol=1e-5,
    )
    accuracy, perplexity = MaskedAccuracy(), Perplexity()
    for each in (accuracy, perplexity):
        each.update_state(labels, ops.matmul(first, ops.transpose(embeddings)))
    np.testing.assert_allclose(float(trainer.accuracy.result()), float(accuracy.result()), rtol=1e-6)
    np.testing.assert_allclose(float(trainer.perplexity.result()), float(perplexity.result()), rtol=1e-5)
    assert np.isfinite(trainer.fit(data, labels, **FIT).history["loss"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_has_one_pass_without_noise(case, kind):
    data = pairs(case[3])
    model = small(dropout=0.3)
    wanted, results = (
        trainer_of(model, consistency=each).evaluate(*data, verbose=0, return_dict=True) for each in (None, kind)
    )
    assert results == wanted
    trainer = trainer_of(model, consistency=kind)
    np.testing.assert_array_equal(numpy(trainer(data[0], training=False)), numpy(trainer_of(model)(data[0])))


def test_only_the_second_pass_is_cut_off(case, monkeypatch):
    """With nearly all tokens cut off, the second pass is that of a model whose embeddings are zero."""
    monkeypatch.setattr(consistency, "CUTOFF_RATE", 1 - 1e-6)
    data, _ = pairs(case[3])
    model = small()
    first, second = numpy(ops.split(trainer_of(model, consistency="simcut")(data, training=True), 2))
    plain = trainer_of(model)
    np.testing.assert_allclose(first, numpy(plain(data)), atol=1e-6)
    model.get_layer("embedding").embeddings.assign(np.zeros((V, 6)))
    np.testing.assert_allclose(second, numpy(plain(data)), atol=1e-6)


def test_tokens_are_cut_off_whole_and_at_the_rate():
    layer = TokenCutoff(0.2)
    x = np.random.default_rng(1).normal(size=(2 * 31, 29, M)).astype("float32")
    cut = numpy(layer(x, training=True))
    np.testing.assert_array_equal(cut[:31], x[:31])
    is_cut = (cut[31:] == 0).all(axis=-1)
    np.testing.assert_array_equal(cut[31:][~is_cut], x[31:][~is_cut])
    assert abs(is_cut.mean() - 0.2) < 0.05  # of 899 tokens
    assert (is_cut != (numpy(layer(x, training=True))[31:] == 0).all(axis=-1)).any()
    np.testing.assert_array_equal(numpy(layer(x)), x)


@pytest.mark.parametrize("inputs", [None, "packed"])
def test_the_optimizer_has_the_order_of_the_models_weights(inputs):
    """A checkpoint of the model keeps its state in the order of the model's weights."""
    model = small()
    trainer = trainer_of(model, consistency="simcut", inputs=inputs and model.packed().input)
    expected = keras.optimizers.Adam()
    expected.build(model.trainable_variables)
    names, wanted = ([each.name for each in optimizer.variables] for optimizer in (trainer.optimizer, expected))
    assert names == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(case, kind, dtype):
    model = small(dropout=0.3, dtype=dtype)
    trainer = trainer_of(model, consistency=kind)
    before = model.get_weights()
    history = trainer.fit(*pairs(case[3]), **FIT).history
    assert np.isfinite(history["loss"]).all()
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"consistency": "r-drop"}, r"`consistency` is one of 'rdrop', 'simcut'. Received: consistency='r-drop'"),
        ({"consistency": "rdrop", "consistency_weight": 0}, r"`consistency_weight` must be a number above zero"),
        (
            {"consistency_weight": 2.0},
            r"set `consistency` to .* Received: consistency_weight=2.0 with consistency=None",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChunkedTrainer(small(), **arguments)


def test_a_second_pass_and_a_kind_go_together(case):
    first, second, embeddings, labels = case
    for options in ({"second_pass": second}, {"consistency": "rdrop"}):
        with pytest.raises(ValueError, match=r"give both `second_pass` and `consistency`, or neither. Received: .*"):
            chunked_cross_entropy(first, embeddings, labels, **options)
