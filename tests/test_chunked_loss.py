"""The chunked loss against the loss and the metrics of whole logits."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_attention as ka
from keras_attention.training import (
    ChunkedTrainer,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Perplexity,
    chunked_cross_entropy,
    chunked_loss,
)
from tests.backends import gradients, numpy

B, T, M, V = 3, 7, 5, 11


@pytest.fixture
def case():
    random = np.random.default_rng(3)
    x = random.normal(size=(B, T, M)).astype("float32")
    embeddings = random.normal(size=(V, M)).astype("float32")
    labels = random.integers(1, V, (B, T)).astype("int32")
    labels[0, 4:] = 0
    labels[2, 1:] = 0
    labels[1, ::3] = (x @ embeddings.T)[1, ::3].argmax(axis=-1)  # some of the labels have the largest logit
    return x, embeddings, labels


def whole(x, embeddings, labels, label_smoothing=0.1):
    logits = ops.matmul(x, ops.transpose(embeddings))
    return MaskedCrossEntropy(label_smoothing=label_smoothing)(labels, logits)


def chunked(x, embeddings, labels, label_smoothing=0.1, chunk_size=4):
    sums = chunked_cross_entropy(x, embeddings, labels, label_smoothing, chunk_size=chunk_size)
    return sums.loss / ops.maximum(sums.count, 1.0)


def gradients_of(loss, x, embeddings, labels, **options):
    return gradients(lambda x, embeddings: loss(x, embeddings, labels, **options), [x, embeddings])[0]


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 21, 100])  # of 21 tokens: none, some and all of the chunks are full
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_whole_logits(case, chunk_size, label_smoothing):
    options = {"label_smoothing": label_smoothing, "chunk_size": chunk_size}
    expected = numpy(whole(*case, label_smoothing))
    np.testing.assert_allclose(numpy(chunked(*case, **options)), expected, rtol=1e-5)
    wanted = gradients_of(whole, *case, label_smoothing=label_smoothing)
    for given, expected in zip(gradients_of(chunked, *case, **options), wanted, strict=True):
        np.testing.assert_allclose(given, expected, rtol=0, atol=2e-6)


def test_the_gradient_is_scaled_by_what_comes_from_above(case):
    once = gradients_of(chunked, *case)
    thrice = gradients_of(lambda *arguments: 3 * chunked(*arguments), *case)
    for first, third in zip(once, thrice, strict=True):
        np.testing.assert_allclose(third, 3 * first, rtol=1e-5, atol=1e-7)


def test_labels_without_any_probability_lose_as_much_as_in_whole_logits(case):
    x, embeddings, labels = case
    x = 60 * x
    logits = x.reshape(-1, M) @ embeddings.T
    lowest = np.where(labels == 0, 0, logits[:, 1:].argmin(axis=-1).reshape(B, T) + 1).astype("int32")
    expected = numpy(whole(x, embeddings, lowest))
    assert expected > 100  # the smallest float32 is e to the power of -87
    np.testing.assert_allclose(numpy(chunked(x, embeddings, lowest)), expected, rtol=0.001)


def test_the_metrics_are_those_of_whole_logits(case):
    x, embeddings, labels = case
    sums = chunked_cross_entropy(*case, label_smoothing=0.1, chunk_size=4)
    logits = ops.matmul(x, ops.transpose(embeddings))
    accuracy, perplexity = MaskedAccuracy(), Perplexity()
    accuracy.update_state(labels, logits)
    perplexity.update_state(labels, logits)
    count = np.count_nonzero(labels)
    assert float(sums.count) == count
    assert 0 < float(sums.correct) < count
    np.testing.assert_allclose(float(sums.correct) / count, float(accuracy.result()), rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(float(sums.negative_log_likelihood) / count), float(perplexity.result()), rtol=1e-5
    )


def test_padding_counts_for_nothing(case):
    x, embeddings, labels = case
    changed = np.where(labels[..., None] == 0, np.float32(1e3), x)
    np.testing.assert_allclose(numpy(chunked(changed, embeddings, labels)), numpy(chunked(*case)), rtol=1e-6)
    gradient, by_embeddings = gradients_of(chunked, changed, embeddings, labels)
    assert np.all(gradient[labels == 0] == 0)
    np.testing.assert_allclose(by_embeddings, gradients_of(chunked, *case)[1], rtol=1e-5, atol=1e-6)


def test_nothing_but_padding_has_no_loss_and_no_gradient(case):
    x, embeddings, labels = case
    assert float(chunked(x, embeddings, 0 * labels)) == 0
    assert all(np.all(gradient == 0) for gradient in gradients_of(chunked, x, embeddings, 0 * labels))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_float32(case, dtype):
    def half(x, embeddings, labels):
        return chunked(ops.cast(x, dtype), ops.cast(embeddings, dtype), labels)

    np.testing.assert_allclose(numpy(half(*case)), numpy(chunked(*case)), rtol=0.01)
    for given, wanted in zip(gradients_of(half, *case), gradients_of(chunked, *case), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


def small(kind=ka.Transformer, **options):
    keras.utils.set_random_seed(5)
    model = kind.from_preset("tiny", V, num_layers=1, hidden_dim=6, intermediate_dim=5, num_heads=2, dropout=0.0)
    model.compile(
        keras.optimizers.Adam(0.01), MaskedCrossEntropy(label_smoothing=0.1), metrics=[MaskedAccuracy(), Perplexity()]
    )
    return model


def trainer_of(model, **options):
    trainer = ChunkedTrainer(model, label_smoothing=0.1, chunk_size=4, **options)
    trainer.compile(keras.optimizers.Adam(0.01))
    return trainer


def pairs(labels):
    source = np.random.default_rng(7).integers(4, V, (B, T + 4)).astype("int32")
    return {"source": source, "target": np.roll(labels, 1, axis=1)}, labels


def assert_trained_alike(one, other, history, other_history):
    assert sorted(history) == sorted(other_history)
    for name, values in history.items():
        np.testing.assert_allclose(values, other_history[name], rtol=1e-4, err_msg=name)
    for mine, wanted in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4)


def test_a_trainer_does_what_fit_does_with_whole_logits(case):
    data = pairs(case[2])
    whole_model, model = small(), small()
    trainer = trainer_of(model)
    assert len(trainer.trainable_variables) == len(model.trainable_variables)
    options = {"epochs": 3, "batch_size": B, "verbose": 0, "shuffle": False}
    wanted = whole_model.fit(*data, **options).history
    given = trainer.fit(*data, **options).history
    assert given["loss"][-1] < given["loss"][0]
    assert_trained_alike(model, whole_model, given, wanted)
    evaluated, expected = (each.evaluate(*data, verbose=0, return_dict=True) for each in (trainer, whole_model))
    for name, value in expected.items():
        np.testing.assert_allclose(evaluated[name], value, rtol=1e-4, err_msg=name)


def test_a_trainer_of_a_decoder_only(case):
    labels = case[2]
    options = {"epochs": 2, "batch_size": B, "verbose": 0, "shuffle": False}
    whole_model, model = small(ka.CausalTransformer), small(ka.CausalTransformer)
    wanted = whole_model.fit(np.roll(labels, 1, axis=1), labels, **options).history
    given = trainer_of(model).fit(np.roll(labels, 1, axis=1), labels, **options).history
    assert_trained_alike(model, whole_model, given, wanted)


@pytest.mark.parametrize("inputs", [None, "packed"])
def test_the_optimizer_is_that_of_the_model_before_the_first_step(inputs):
    """A checkpoint of the model keeps its state in the order of the model's weights."""
    model = small()
    trainer = ChunkedTrainer(model, inputs=inputs and model.packed().input)
    trainer.compile("adam")
    expected = keras.optimizers.Adam()
    expected.build(model.trainable_variables)
    assert trainer.optimizer.built
    names, wanted = ([each.name for each in optimizer.variables] for optimizer in (trainer.optimizer, expected))
    assert names == wanted


def test_weights_that_are_frozen_later_stay(case):
    model = small()
    trainer = trainer_of(model)
    model.get_layer("encoder").trainable = False
    trainer.compile("adam")
    frozen, free = (model.get_layer(name).get_weights() for name in ("encoder", "decoder"))
    trainer.fit(*pairs(case[2]), batch_size=B, verbose=0)
    for before, after in zip(frozen, model.get_layer("encoder").get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert any((x != y).any() for x, y in zip(free, model.get_layer("decoder").get_weights(), strict=True))


def test_a_trainer_of_packed_rows(case):
    inputs, labels = pairs(case[2])
    segments = np.where(inputs["source"] > 0, 1, 0), np.where(inputs["target"] > 0, 1, 0)
    inputs = {**inputs, "source_segments": segments[0], "target_segments": segments[1]}
    model = small()
    trainer = trainer_of(model, inputs=model.packed().input)
    expected = float(numpy(MaskedCrossEntropy(label_smoothing=0.1)(labels, model.packed()(inputs))))
    given = trainer.fit(inputs, labels, verbose=0, batch_size=B).history
    np.testing.assert_allclose(given["loss"][0], expected, rtol=1e-5)


def test_regularizers_count(case):
    data = pairs(case[2])
    model = small()
    plain = trainer_of(model).evaluate(*data, verbose=0, return_dict=True)["loss"]
    model.get_layer("embedding").embeddings.regularizer = keras.regularizers.L2(0.5)
    trainer = trainer_of(model)
    extra = 0.5 * float(np.sum(np.square(model.get_layer("embedding").get_weights()[0])))
    np.testing.assert_allclose(trainer.evaluate(*data, verbose=0, return_dict=True)["loss"], plain + extra, rtol=1e-4)


@pytest.mark.parametrize("shape", ["(B,)", "(B, T)"])
def test_sample_weights_count_as_with_whole_logits(case, shape):
    data, weights = pairs(case[2]), np.random.default_rng(4).random((B, T))
    weights = weights[:, 0] if shape == "(B,)" else weights
    whole_model, model = small(), small()
    options = {"sample_weight": weights, "epochs": 2, "batch_size": B, "verbose": 0, "shuffle": False}
    wanted = whole_model.fit(*data, **options).history
    assert_trained_alike(model, whole_model, trainer_of(model).fit(*data, **options).history, wanted)


def test_labels_outside_the_vocabulary_count_only_where_they_are_ignored(case):
    x, embeddings, labels = case
    other = np.where(labels == 0, -100, labels)
    sums = chunked_cross_entropy(x, embeddings, other, ignore_id=-100, chunk_size=4)
    for found, wanted in zip(sums, chunked_cross_entropy(*case, chunk_size=4), strict=True):
        np.testing.assert_allclose(float(found), float(wanted), rtol=1e-6)
    with pytest.raises(ValueError, match=rf"`y_true` are token ids .* vocabulary_size={V}, a label in y_true=-100"):
        chunked_cross_entropy(x, embeddings, other)
    hidden = np.where(labels[..., None] == 0, np.float32(np.nan), x)  # what is ignored may be anything
    for found, wanted in zip(gradients_of(chunked, hidden, *case[1:]), gradients_of(chunked, *case), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_equal_logits_are_right_where_argmax_is(case):
    x, embeddings, labels = case
    assert float(chunked_cross_entropy(0 * x, embeddings, labels, chunk_size=4).correct) == 0
    first = chunked_cross_entropy(0 * x, embeddings, 0 * labels, ignore_id=None, chunk_size=4)
    assert float(first.correct) == float(first.count) == B * T


def test_a_trainer_is_not_saved():
    with pytest.raises(TypeError, match="Save the model whose weights it trains"):
        trainer_of(small()).get_config()


@pytest.mark.parametrize("name", ["loss", "loss_weights", "metrics", "weighted_metrics"])
def test_what_a_trainer_computes_is_not_chosen(name):
    value = "mse" if name == "loss" else [MaskedAccuracy()] if "metrics" in name else [2.0]
    with pytest.raises(ValueError, match=rf"A ChunkedTrainer takes no `{name}`.* Received: {name}="):
        ChunkedTrainer(small()).compile("adam", **{name: value})


def test_weights_of_classes_are_refused(case):
    trainer, (inputs, labels) = trainer_of(small()), pairs(case[2])
    for train in (trainer.fit, trainer.train_on_batch):
        with pytest.raises(
            ValueError, match=r"`class_weight` weighs whole samples.* Received: class_weight=\{1: 2.0\}"
        ):
            train(inputs, labels, class_weight={1: 2.0})


def test_a_quantized_embedding_is_refused(case):
    model = small()
    trainer = trainer_of(model)
    model.quantize("int8")
    for use in (lambda: trainer.evaluate(*pairs(case[2]), verbose=0), lambda: ChunkedTrainer(model).compile("adam")):
        with pytest.raises(ValueError, match=r"Train first, then call `model.quantize`.* quantization_mode='int8'"):
            use()


def test_the_former_module():
    assert chunked_loss.ChunkedTrainer is ChunkedTrainer
    assert chunked_loss.chunked_cross_entropy is chunked_cross_entropy
    assert chunked_loss.TokenSums.__name__ == "TokenSums"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"label_smoothing": 1.0}, r"label_smoothing=1.0"), ({"chunk_size": 0}, r"chunk_size=0")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChunkedTrainer(small(), **arguments)
