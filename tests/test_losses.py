"""The loss and the metrics against NumPy, by themselves and in `fit`."""

import keras
import numpy as np
import oracle
import pytest
from backends import compiled, dtype_of, gradient, numpy, weighted_sum

import keras_attention as ka
from keras_attention.testing.implicit_masks import mask_of
from keras_attention.training import MaskedAccuracy, MaskedCrossEntropy, Perplexity, token_cross_entropy
from keras_attention.training.labels import multiply_no_nan

B, T, V = 3, 5, 11


def batch(scale=3.0):
    """Labels with padding, one of them all padding, and logits."""
    labels = np.random.randint(1, V, (B, T)).astype("int32")
    labels[0, 3:], labels[2] = 0, 0
    return labels, (np.random.normal(size=(B, T, V)) * scale).astype("float32")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
def test_token_losses_equal_the_formula(label_smoothing):
    labels, logits = batch()
    losses = token_cross_entropy(labels, logits, label_smoothing)
    assert dtype_of(losses) == "float32"
    np.testing.assert_allclose(numpy(losses), oracle.token_losses(labels, logits, label_smoothing), rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "sentences", "tokens"])
def test_loss_is_the_mean_over_real_tokens(label_smoothing, weights):
    labels, logits = batch()
    weights = {"none": None, "sentences": np.random.rand(B), "tokens": np.random.rand(B, T)}[weights]
    loss = MaskedCrossEntropy(label_smoothing=label_smoothing)(labels, logits, weights)
    if weights is None or weights.ndim == 1:
        weights = np.ones((B, 1)) if weights is None else weights[:, None]
    expected = oracle.smoothed_cross_entropy(labels, logits, label_smoothing, weights)
    np.testing.assert_allclose(numpy(loss), expected, rtol=1e-5)


def weights_like(labels):
    """Sample weights of every shape, each with the weights of the tokens that they mean."""
    random = np.random.default_rng(3)
    sentences, tokens = random.random((len(labels), 1)), random.random(labels.shape)
    return {
        "none": (None, None),
        "scalar": (0.5, 0.5 * np.ones(labels.shape)),
        "(B,)": (sentences[:, 0], sentences),
        "(B, 1)": (sentences, sentences),
        "(B, T)": (tokens, tokens),
        "(B, T, 1)": (tokens[..., None], tokens),
        "zero": (0 * tokens, 0 * tokens),
    }


SHAPES = list(weights_like(np.ones((B, T))))


@pytest.mark.parametrize("ignore_id", [0, 4, -100, 99])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None])
def test_the_numbers_are_those_of_keras(reduction, masked, ignore_id):
    labels, logits = batch()
    labels[labels == 4] = 5
    labels[labels == 0] = ignore_id
    if masked:  # one of the real tokens is hidden
        logits[1, 2] = -999
        logits = keras.layers.Masking(-999)(logits)
    for shape, (given, tokens) in weights_like(labels).items():
        tokens = None if tokens is None else np.broadcast_to(tokens, labels.shape).copy()
        oracle_loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=ignore_id, reduction=reduction)
        expected = numpy(oracle_loss(labels, logits, tokens))
        loss = MaskedCrossEntropy(ignore_id=ignore_id, reduction=reduction)
        found = numpy(loss(labels[..., None] if shape == "(B,)" else labels, logits, given))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=shape)
        assert found.shape == expected.shape


def test_a_label_that_is_ignored_needs_no_place_in_the_vocabulary():
    labels, logits = np.array([[3, 2, -100, -100]]), batch()[1][:1, :4]
    found = gradient(lambda logits: MaskedCrossEntropy(ignore_id=-100)(labels, logits), logits)
    wanted = gradient(lambda logits: MaskedCrossEntropy()(np.array([[3, 2, 0, 0]]), logits), logits)
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    metrics = Perplexity(ignore_id=-100), Perplexity()
    metrics[0].update_state(labels, logits)
    metrics[1].update_state(labels[:, :2], logits[:, :2])
    np.testing.assert_allclose(float(metrics[0].result()), float(metrics[1].result()), rtol=1e-6)


def test_no_label_is_padding_where_there_is_no_id_for_it():
    labels, logits = batch()
    found = MaskedCrossEntropy(ignore_id=None)(labels, logits)
    np.testing.assert_allclose(float(found), oracle.token_losses(labels, logits).mean(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(B, 0), (0, T), (0, 0)])
def test_an_empty_batch_has_no_loss(shape):
    labels, logits = np.zeros(shape, "int32"), np.zeros((*shape, V), "float32")
    for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum"):
        loss = MaskedCrossEntropy(reduction=reduction)
        assert float(loss(labels, logits, np.ones(shape))) == 0
        assert gradient(lambda logits, loss=loss: loss(labels, logits), logits).shape == (*shape, V)
    for metric, empty in ((MaskedAccuracy(), 0.0), (Perplexity(), 1.0)):
        metric.update_state(labels, logits)
        assert float(metric.result()) == empty


@pytest.mark.parametrize("label", [-1, V, 2.5, 2.0**40])
@pytest.mark.parametrize("kind", [MaskedCrossEntropy, MaskedAccuracy, Perplexity])
def test_a_label_outside_the_vocabulary_is_named(kind, label):
    labels, logits = batch()
    labels = labels.astype("float32" if isinstance(label, float) else "int32")
    labels[1, 3] = label
    measure = kind()
    with pytest.raises(ValueError, match=rf"vocabulary_size={V}, a label in y_true={str(label)[:3]}"):
        (measure if kind is MaskedCrossEntropy else measure.update_state)(labels, logits)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="compiles nothing")
def test_a_compiled_loss_of_a_label_outside_the_vocabulary_is_not_finite():
    labels, logits = batch()
    labels[1, 3] = -1
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        with pytest.raises(tf.errors.InvalidArgumentError, match="a label in y_true"):
            tf.function(MaskedCrossEntropy())(tf.constant(labels), tf.constant(logits))
        function = tf.function(MaskedCrossEntropy(), jit_compile=True)
    else:
        function = compiled(MaskedCrossEntropy())
    assert np.isnan(numpy(function(keras.ops.array(labels), keras.ops.array(logits))))


@pytest.mark.parametrize(
    ("labels", "logits", "weights", "message"),
    [
        ((B, T, V), (B, T, V), None, r"not one-hot.* Received: y_true.shape=\(3, 5, 11\)"),
        ((B, T, V), (B, T), None, r"`y_true` are token ids \(B, T\).* y_pred.shape=\(3, 5\)"),
        ((B, T - 1), (B, T, V), None, r"one id for each position.* Received: y_true.shape=\(3, 4\)"),
        ((B, T), (B, T, V), (T,), r"`sample_weight` is a number.* Received: sample_weight.shape=\(5,\)"),
        ((B, T), (B, T, V), (B, T, V), r"`sample_weight` is a number.* y_true.shape=\(3, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(labels, logits, weights, message):
    arguments = np.ones(labels, "float32"), np.ones(logits, "float32"), weights and np.ones(weights)
    for measure in (MaskedCrossEntropy(), MaskedAccuracy().update_state):
        with pytest.raises(ValueError, match=message):
            measure(*arguments)


def test_half_precision_losses_keep_their_labels():
    labels = np.full((2, 3), 257)  # neither bfloat16 nor float16 holds each integer
    logits = np.random.normal(size=(2, 3, 300)).astype("float32")
    half = MaskedCrossEntropy(dtype="bfloat16")(labels, logits)
    assert dtype_of(half) == "bfloat16"
    np.testing.assert_allclose(float(half), float(MaskedCrossEntropy()(labels, logits)), rtol=0.01)


def test_accuracy_of_equal_and_missing_logits_is_that_of_keras():
    random = np.random.default_rng(5)
    for share in (0.0, 0.1, 1.0):
        logits = random.integers(0, 3, (7, 5, V)).astype("float32")
        logits[random.random(logits.shape) < share] = np.nan
        labels = random.integers(0, V, (7, 5))
        ours, theirs = MaskedAccuracy(ignore_id=None), keras.metrics.SparseCategoricalAccuracy()
        for metric in (ours, theirs):
            metric.update_state(labels, logits)
        np.testing.assert_allclose(float(ours.result()), float(theirs.result()), rtol=1e-6)
    metric = MaskedAccuracy()
    metric.update_state([[1, 2]], np.zeros((1, 2, V)))
    assert float(metric.result()) == 0


def test_a_square_batch_does_not_take_sentence_weights_for_token_weights():
    labels, logits = np.random.randint(1, V, (T, T)), np.random.normal(size=(T, T, V))
    weights = [1.0, 0.0, 2.0, 0.5, 0.0]
    loss = MaskedCrossEntropy()(labels, logits, weights)
    expected = oracle.smoothed_cross_entropy(labels, logits, 0.0, np.array(weights)[:, None])
    np.testing.assert_allclose(numpy(loss), expected, rtol=1e-5)


def test_a_weight_of_zero_hides_every_value():
    values = keras.ops.array([2.0, np.nan, np.inf, -3.0])
    product = multiply_no_nan(values, keras.ops.array([3.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(numpy(product), [6.0, 0.0, 0.0, -3.0])


def test_padding_changes_nothing():
    labels, logits = batch()
    loss = MaskedCrossEntropy(label_smoothing=0.1)
    wider = np.pad(labels, ((0, 1), (0, 2))), np.pad(logits, ((0, 1), (0, 2), (0, 0)), constant_values=7.0)
    np.testing.assert_allclose(numpy(loss(*wider)), numpy(loss(labels, logits)), rtol=1e-6)
    logits[labels == 0] += 100
    np.testing.assert_allclose(numpy(loss(labels, logits)), numpy(loss(*wider)), rtol=1e-6)


def test_another_id_may_be_padding():
    labels, logits = batch()
    loss = MaskedCrossEntropy(ignore_id=4)(labels, logits)
    np.testing.assert_allclose(numpy(loss), oracle.smoothed_cross_entropy(labels, logits, ignore_id=4), rtol=1e-5)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_gradient_equals_finite_differences(label_smoothing, graph):
    labels, logits = batch()
    weights, loss = np.random.rand(B, T).astype("float32"), MaskedCrossEntropy(label_smoothing=label_smoothing)

    def total(logits):
        return loss(labels, logits, weights)

    found = gradient(compiled(total, [keras.KerasTensor((None, None, V))]) if graph else total, logits)
    expected = oracle.numeric_gradient(
        lambda z: oracle.smoothed_cross_entropy(labels, z, label_smoothing, weights), logits
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.all(found[labels == 0] == 0)
    assert np.all(np.any(found[labels != 0] != 0, axis=-1))


def test_gradient_of_token_losses_takes_any_factor():
    labels, logits = batch()
    factors = np.random.normal(size=(B, T)).astype("float32")
    found = gradient(lambda logits: weighted_sum(token_cross_entropy(labels, logits, 0.1), factors), logits)
    expected = oracle.numeric_gradient(lambda z: (oracle.token_losses(labels, z, 0.1) * factors).sum(), logits)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_but_padding_gives_zero_and_a_finite_gradient():
    labels, logits, loss = np.zeros((B, T), "int32"), batch()[1], MaskedCrossEntropy(label_smoothing=0.1)
    assert float(loss(labels, logits)) == 0
    np.testing.assert_array_equal(gradient(lambda logits: loss(labels, logits), logits), np.zeros((B, T, V)))


def test_large_logits_stay_finite():
    (labels, logits), loss = batch(scale=1e4), MaskedCrossEntropy(label_smoothing=0.1)
    expected = oracle.smoothed_cross_entropy(labels, logits, 0.1)
    np.testing.assert_allclose(numpy(loss(labels, logits)), expected, rtol=1e-5)
    assert np.all(np.isfinite(gradient(lambda logits: loss(labels, logits), logits)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_taken_as_they_are(dtype):
    labels, logits = batch()
    half = keras.ops.cast(logits, dtype)
    exact = numpy(half).astype("float32")
    loss = MaskedCrossEntropy(label_smoothing=0.1)(labels, half)
    assert dtype_of(loss) == "float32"
    np.testing.assert_allclose(numpy(loss), oracle.smoothed_cross_entropy(labels, exact, 0.1), rtol=1e-5)
    found = gradient(lambda logits: MaskedCrossEntropy()(labels, logits), half)
    assert dtype_of(found) == dtype
    expected = oracle.numeric_gradient(lambda z: oracle.smoothed_cross_entropy(labels, z), exact)
    np.testing.assert_allclose(found.astype("float32"), expected, atol=2e-3)


def test_logits_that_carry_a_mask_are_not_scaled_twice():
    labels, logits = batch()
    masked = keras.layers.Masking(mask_value=-999.0)(np.where((labels == 0)[..., None], -999, logits))
    assert not np.all(numpy(mask_of(masked)))
    for reduction in ("sum_over_batch_size", "sum"):
        loss = MaskedCrossEntropy(reduction=reduction)
        np.testing.assert_allclose(numpy(loss(labels, masked)), numpy(loss(labels, logits)), rtol=1e-6)


def test_a_sum_is_that_of_the_real_tokens():
    labels, logits = batch()
    real = labels != 0
    expected = oracle.token_losses(labels, logits, 0.1) * real
    total = MaskedCrossEntropy(0.1, reduction="sum")(labels, logits)
    np.testing.assert_allclose(float(total), expected.sum(), rtol=1e-5)
    each = MaskedCrossEntropy(0.1, reduction="none")(labels, logits)
    np.testing.assert_allclose(numpy(each), expected, atol=1e-5)


@pytest.mark.parametrize("value", [-0.1, 1.0, "0.1", True])
def test_wrong_smoothing_is_refused(value):
    with pytest.raises(
        ValueError,
        match=rf"`label_smoothing` must be a number, at least 0 and below 1. Received: label_smoothing={value!r}",
    ):
        MaskedCrossEntropy(label_smoothing=value)


def test_loss_survives_serialisation():
    loss = MaskedCrossEntropy(label_smoothing=0.2, ignore_id=4, name="other", reduction="sum")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is MaskedCrossEntropy
    assert again.get_config() == loss.get_config()
    assert again.get_config() == {"name": "other", "reduction": "sum", "label_smoothing": 0.2, "ignore_id": 4}
    labels, logits = batch()
    assert float(again(labels, logits)) == float(loss(labels, logits))


def accuracy(labels, logits, weights, ignore_id=0):
    weights = np.broadcast_to(weights, labels.shape) * (labels != ignore_id)
    return ((logits.argmax(-1) == labels) * weights).sum() / weights.sum()


def perplexity(labels, logits, weights, ignore_id=0):
    weights = np.broadcast_to(weights, labels.shape) * (labels != ignore_id)
    return np.exp((oracle.token_losses(labels, logits) * weights).sum() / weights.sum())


METRICS = [(MaskedAccuracy, accuracy), (Perplexity, perplexity)]


@pytest.mark.parametrize(("metric_class", "reference"), METRICS)
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_metrics_take_weights_of_every_shape(metric_class, reference, shape):
    labels, logits = batch()
    given, tokens = weights_like(labels)[shape]
    metric = metric_class()
    metric.update_state(labels, logits, given)
    expected = reference(labels, logits, 1.0 if tokens is None else tokens)
    np.testing.assert_allclose(float(metric.result()), expected, rtol=1e-5)


@pytest.mark.parametrize(("metric_class", "reference"), METRICS)
@pytest.mark.parametrize("weights", ["none", "sentences", "tokens"])
@pytest.mark.parametrize("ignore_id", [0, 4])
def test_metrics_are_means_over_all_batches(metric_class, reference, weights, ignore_id):
    metric, batches = metric_class(ignore_id=ignore_id), [batch(1.0), batch(1.0)]
    batches[1] = batches[1][0][:2, :4], batches[1][1][:2, :4]  # a smaller batch counts less
    labels = np.concatenate([labels.ravel() for labels, _ in batches])
    logits = np.concatenate([logits.reshape(-1, V) for _, logits in batches])
    logits[np.arange(0, len(labels), 3), labels[::3]] += 5  # some are right
    all_weights, start = [], 0
    for part, _ in batches:
        given = {"none": None, "sentences": np.random.rand(len(part)), "tokens": np.random.rand(*part.shape)}[weights]
        full = np.ones(part.shape) if given is None else np.broadcast_to(given.reshape(len(part), -1), part.shape)
        all_weights.append(full.ravel())
        now = logits[start : start + part.size].reshape(*part.shape, V)
        metric.update_state(part, now, given)
        start += part.size
    expected = reference(labels, logits, np.concatenate(all_weights), ignore_id)
    assert 0 < reference(labels, logits, 1.0, ignore_id) != 1
    np.testing.assert_allclose(numpy(metric.result()), expected, rtol=1e-5)


@pytest.mark.parametrize(("metric_class", "empty"), [(MaskedAccuracy, 0.0), (Perplexity, 1.0)])
def test_metrics_of_nothing_reset_and_serialisation(metric_class, empty):
    metric = metric_class(name="other", ignore_id=4)
    assert float(metric.result()) == empty
    labels, logits = batch()
    metric.update_state(np.full((B, T), 4), logits)
    assert float(metric.result()) == empty
    metric.update_state(labels, logits)
    assert float(metric.result()) != empty
    metric.reset_state()
    assert float(metric.result()) == empty
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(again) is metric_class
    assert again.get_config() == metric.get_config()
    assert (again.name, again.ignore_id) == ("other", 4)


def test_perplexity_is_exp_of_the_loss_without_smoothing():
    labels, logits = batch()
    metric = Perplexity()
    half = keras.ops.cast(logits, "bfloat16")
    metric.update_state(labels, half)
    loss = MaskedCrossEntropy()(labels, half)
    np.testing.assert_allclose(numpy(metric.result()), np.exp(numpy(loss)), rtol=1e-5)


@pytest.fixture(scope="module")
def language_model():
    """A plain model whose mask flows up to the loss."""
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(V, 16, mask_zero=True)(ids)
    x = ka.DecoderLayer(intermediate_dim=13, num_heads=2)(ka.PositionalEncoding()(x))
    return keras.Model(ids, keras.layers.Dense(V)(x))


@pytest.mark.parametrize("eagerly", [True, False], ids=["eager", "graph"])
def test_fit_reports_what_the_formulas_give(language_model, eagerly):
    ids, _ = batch()
    labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    weights = np.random.rand(B, T).astype("float32")
    logits = numpy(language_model(ids))
    language_model.compile(
        keras.optimizers.SGD(0.0),
        loss=MaskedCrossEntropy(label_smoothing=0.1),
        metrics=[MaskedAccuracy(), Perplexity()],
        weighted_metrics=[Perplexity(name="weighted")],
        run_eagerly=eagerly,
    )
    arguments = {"batch_size": B, "verbose": 0}
    history = language_model.fit(ids, labels, sample_weight=weights, **arguments).history
    expected = {
        "loss": oracle.smoothed_cross_entropy(labels, logits, 0.1, weights),
        "accuracy": accuracy(labels, logits, 1.0),
        "perplexity": perplexity(labels, logits, 1.0),
        "weighted": perplexity(labels, logits, weights),
    }
    assert set(history) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(history[name][0], value, rtol=1e-4, err_msg=name)
    results = language_model.evaluate(ids, labels, return_dict=True, **arguments)
    np.testing.assert_allclose(results["loss"], oracle.smoothed_cross_entropy(labels, logits, 0.1), rtol=1e-4)


def test_compiled_model_survives_a_file(language_model, tmp_path):
    ids, _ = batch()
    metrics = [MaskedAccuracy(), Perplexity()]
    language_model.compile("adam", MaskedCrossEntropy(label_smoothing=0.1), metrics=metrics, run_eagerly=True)
    language_model.fit(ids, ids, verbose=0)
    before = language_model.evaluate(ids, ids, verbose=0)
    language_model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.evaluate(ids, ids, verbose=0), before, rtol=1e-5)


@pytest.mark.parametrize("ignore_id", [1.5, "0", True, [0]])
@pytest.mark.parametrize("make", [MaskedCrossEntropy, MaskedAccuracy, Perplexity])
def test_an_ignored_label_is_an_integer_or_none(make, ignore_id):
    with pytest.raises(ValueError, match=r"`ignore_id` is an integer, or None\. Received: ignore_id="):
        make(ignore_id=ignore_id)
    assert type(make(ignore_id=np.int64(-100)).get_config()["ignore_id"]) is int  # which JSON can hold


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="other backends have no tensors of text")
def test_labels_and_weights_are_numbers():
    logits, text = keras.ops.zeros((2, 3, 5)), np.full((2, 3), "1")
    with pytest.raises(TypeError, match=r"`y_true` must have a numeric dtype\. Received: y_true\.dtype=string"):
        MaskedCrossEntropy()(text, logits)
    with pytest.raises(
        TypeError, match=r"`sample_weight` must have a numeric dtype\. Received: sample_weight\.dtype=string"
    ):
        MaskedCrossEntropy()(np.ones((2, 3)), logits, text)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's shapes may have no rank")
def test_weights_of_unknown_rank_are_named():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(None, "float32")])
    def step(weights):
        return MaskedCrossEntropy()(np.ones((2, 3)), tf.zeros((2, 3, 5)), weights)

    with pytest.raises(ValueError, match=r"`sample_weight` must have the same number of axes .* unknown rank"):
        step(tf.ones((2,)))
