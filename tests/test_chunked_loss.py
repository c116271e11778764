"""The chunked loss against the loss and the metrics of whole logits."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_attention.training import (
    ChunkedCrossEntropy,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Perplexity,
    chunked_cross_entropy,
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


def layer_for(embeddings, **options):
    embedding = keras.layers.ReversibleEmbedding(V, M)
    embedding.build()
    embedding.set_weights([embeddings])
    return ChunkedCrossEntropy(embedding, **options)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 21, 100])  # of 21 tokens: none, some and all of the chunks are full
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_whole_logits(case, chunk_size, label_smoothing):
    options = {"label_smoothing": label_smoothing, "chunk_size": chunk_size}
    expected = numpy(whole(*case, label_smoothing))
    np.testing.assert_allclose(numpy(chunked(*case, **options)), expected, rtol=1e-5)
    np.testing.assert_allclose(numpy(layer_for(case[1], **options)(case[0], case[2])), expected, rtol=1e-5)
    wanted = gradients_of(whole, *case, label_smoothing=label_smoothing)
    for given, expected in zip(gradients_of(chunked, *case, **options), wanted, strict=True):
        np.testing.assert_allclose(given, expected, rtol=0, atol=2e-6)


def test_the_gradient_is_scaled_by_what_comes_from_above(case):
    once = gradients_of(chunked, *case)
    thrice = gradients_of(lambda *arguments: 3 * chunked(*arguments), *case)
    for first, third in zip(once, thrice, strict=True):
        np.testing.assert_allclose(third, 3 * first, rtol=1e-5, atol=1e-7)


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


def test_a_model_that_ends_in_it_trains_with_fit(case):
    x, embeddings, labels = case
    inputs, ids = keras.Input((None, M)), keras.Input((None,), dtype="int32")
    end = layer_for(embeddings, label_smoothing=0.1, chunk_size=4)
    model = keras.Model([inputs, ids], end(keras.layers.Dense(M)(inputs), ids))
    model.compile(keras.optimizers.Adam(0.05))
    history = model.fit([x, labels], epochs=8, batch_size=B, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert len(model.trainable_weights) == 3  # the embedding is trained, too
    with pytest.raises(TypeError, match="Save the model whose layers it shares"):
        model.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"label_smoothing": 1.0}, r"label_smoothing=1.0"), ({"chunk_size": 0}, r"chunk_size=0")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_for(np.zeros((V, M)), **arguments)
