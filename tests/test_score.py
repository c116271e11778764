"""Scores of translations: the log probabilities of the plain model, and its alignment."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_attention import Transformer, TransformerConfig
from keras_attention.decoding import Scored, ScoringResult, score

pytestmark = pytest.mark.tensorflow

VOCABULARY = 23
SOURCE = np.array([[5, 7, 11, 13, 3, 0, 0], [6, 3, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4, 3]])  # S = 7
TARGET = np.array([[4, 4, 9, 3, 0], [3, 0, 0, 0, 0], [10, 11, 12, 13, 3]])  # T = 5
LENGTHS = [4, 1, 5]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(5)
    config = TransformerConfig(
        vocabulary_size=VOCABULARY, num_layers=2, hidden_dim=12, intermediate_dim=19, num_heads=3, dropout=0.3
    )
    model = Transformer(config)
    for weight in model.weights:  # larger weights: the outputs depend more on the inputs
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(weight * 2.3)
    return model


@pytest.fixture(scope="module")
def scored(model):
    return score(model, SOURCE, TARGET)


def test_log_probabilities_are_those_of_the_plain_model(model, scored):
    read = np.concatenate([np.full((3, 1), 2), TARGET[:, :-1]], axis=1)
    logits = model({"source": SOURCE, "target": read}).numpy().astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(log_probs, TARGET[:, :, None], axis=2)[:, :, 0]
    expected[TARGET == 0] = 0
    assert scored.token_log_probs.dtype == tf.float32
    np.testing.assert_allclose(scored.token_log_probs, expected, rtol=1e-4, atol=1e-5)
    assert scored.lengths.numpy().tolist() == LENGTHS


def test_alignment_is_what_the_last_layer_shows_token_by_token(model, scored):
    """Against one token at a time through the cache, where no later token can have a part."""
    memory, mask = model.encode(SOURCE)
    cache = model.init_cache(memory, 3)
    read = np.concatenate([np.full((3, 1), 2), TARGET[:, :-1]], axis=1)
    for t in range(5):
        _, cache, weights = model.decode_step(read[:, t : t + 1], cache, mask, return_attention_scores=True)
        expected = np.mean(weights[-1].numpy(), axis=1)[:, 0]  # (B, S), heads averaged
        expected[TARGET[:, t] == 0] = 0
        np.testing.assert_allclose(scored.alignment[:, t], expected, atol=1e-5)


def test_alignment_is_a_distribution_over_the_source(scored):
    alignment = scored.alignment.numpy()
    assert alignment.shape == (3, 5, 7)
    np.testing.assert_allclose(alignment.sum(axis=2), TARGET != 0, atol=1e-5)
    assert (alignment[:2, :, 5:] == 0).all()  # source padding
    assert np.ptp(alignment[2, 0]) > 0.01  # it looks somewhere


def test_a_batch_gives_what_single_pairs_give(model, scored):
    for row in range(3):
        source, target = SOURCE[row : row + 1], TARGET[row : row + 1]
        source, target = source[:, : (source != 0).sum()], target[:, : LENGTHS[row]]
        single = score(model, source, target)
        length, read = target.shape[1], source.shape[1]
        np.testing.assert_allclose(scored.token_log_probs[row, :length], single.token_log_probs[0], atol=1e-5)
        np.testing.assert_allclose(scored.alignment[row, :length, :read], single.alignment[0], atol=1e-5)


def test_other_special_ids(model, scored):
    changed = score(model, SOURCE, TARGET, bos_id=17)
    assert np.abs(changed.token_log_probs - scored.token_log_probs).max() > 0.01
    unpadded = score(model, SOURCE, np.where(TARGET == 0, 22, TARGET), pad_id=22)
    np.testing.assert_allclose(unpadded.token_log_probs, scored.token_log_probs, atol=1e-5)


def test_a_graph_of_unknown_shapes_and_nothing_at_all(model, scored):
    ids = tf.TensorSpec([None, None], tf.int64)
    graph = tf.function(lambda source, target: score(model, source, target), input_signature=[ids, ids])
    np.testing.assert_allclose(graph(SOURCE, TARGET).token_log_probs, scored.token_log_probs, atol=1e-5)
    nothing = graph(np.zeros((0, 7), int), np.zeros((0, 5), int))
    assert [x.shape for x in nothing] == [(0, 5), (0, 5, 7), (0,)]
    no_tokens = graph(SOURCE, np.zeros((3, 0), int))
    assert [x.shape for x in no_tokens] == [(3, 0), (3, 0, 7), (3,)]
    for rows in (1, 6):  # neither one source for all targets, nor several targets for each
        with pytest.raises(tf.errors.InvalidArgumentError, match="one target for each source"):
            graph(SOURCE[:rows], np.resize(TARGET, (6 // rows, 5)))


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        (
            SOURCE,
            TARGET[:2],
            ValueError,
            r"one target for each source\. Received: source_ids\.shape=\(3, 7\), target_ids\.shape=\(2, 5\)",
        ),
        (
            SOURCE[0],
            TARGET,
            ValueError,
            r"`source_ids` must have shape \(B, length\).*Received: source_ids\.shape=\(7,\)",
        ),
        (SOURCE, TARGET[None], ValueError, r"`target_ids` must have shape .*Received: target_ids\.shape=\(1, 3, 5\)"),
        (SOURCE, TARGET / 2, TypeError, r"`target_ids` must be integers.*Received: target_ids\.dtype=float64"),
        (tf.constant([["a"]]), TARGET, TypeError, "`source_ids` must be integers"),
        (SOURCE, [[True]], TypeError, r"`target_ids` must be integers.*Received: target_ids\.dtype=bool"),
    ],
)
def test_bad_ids(model, source, target, error, message):
    with pytest.raises(error, match=message):
        score(model, source, target)


def test_ids_that_the_vocabulary_lacks(model):
    with pytest.raises(tf.errors.InvalidArgumentError):
        score(model, SOURCE, np.where(TARGET == 9, VOCABULARY, TARGET))


def test_the_name_of_version_0_1_remains(scored):
    assert Scored is ScoringResult
    assert isinstance(scored, Scored)
