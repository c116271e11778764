"""A Transformer with changed attention computes what a copy with changed weights and layers computes."""

import keras
import numpy as np
import pytest
from backends import numpy
from tensors import assert_close, largest_difference, randomize

import keras_attention as ka
from keras_attention.models import InspectedTransformer

V = 17
SMALL = {"num_layers": 2, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3}
OPTIONS = {
    "paper": {},
    "pre-norm, biases": {"normalize_first": True, "use_attention_bias": True, "num_decoder_layers": 1},
    "grouped heads": {"num_heads": 6, "num_kv_heads": 2, "key_dim": 4, "value_dim": 7, "positions": "rotary"},
    "relative": {"positions": "relative"},
}
SOURCE = np.array([[5, 6, 7, 8, 9, 11, 3], [7, 9, 6, 3, 0, 0, 0]])
TARGET = np.array([[9, 5, 6, 7, 3], [6, 7, 3, 0, 0]])
SHIFTED = np.array([[2, 9, 5, 6, 7], [2, 6, 7, 3, 0]])


def make(dtype=None, **changes):
    keras.utils.set_random_seed(3)
    model = ka.Transformer(ka.TransformerConfig(V, **{**SMALL, **changes}), dtype=dtype)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def writer():
    """A model whose translations depend on the source."""
    keras.utils.set_random_seed(12)
    model = ka.Transformer(ka.TransformerConfig(V, **SMALL, initialization="glorot"))
    for weight in model.weights:
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(weight * 2.1)
    return model


def head_masks(model, shift=0):
    """For each kind of attention, a mask of its heads that switches every third off."""
    config = model.config
    depths = {"encoder": config.num_layers, "decoder": config.decoder_depth, "cross": config.decoder_depth}
    return {
        f"{kind}_head_mask": np.add.outer(2 * np.arange(depth), np.arange(config.num_heads) + shift + kind_shift) % 3
        > 0
        for kind_shift, (kind, depth) in enumerate(depths.items())
    }


def changed_copy(model, encoder_head_mask=None, decoder_head_mask=None, cross_head_mask=None, window=None, scale=1.0):
    """The oracle: rows of W^O that are zero, W^Q times the scale, and the windows of the layers themselves."""
    copy = model.in_dtype("float32")
    encoder, decoder = copy.network.encoder.layers, copy.network.decoder.layers
    for layers, name, mask in (
        (encoder, "self_attention", encoder_head_mask),
        (decoder, "self_attention", decoder_head_mask),
        (decoder, "cross_attention", cross_head_mask),
    ):
        for index, layer in enumerate(layers):
            attention = getattr(layer, name)
            for weight in attention.weights:
                if mask is not None and "attention_output/kernel" in weight.path:
                    weight.assign(numpy(weight) * mask[index][:, None, None])
                if "/query/" in weight.path:
                    weight.assign(numpy(weight) * scale)
            if name == "self_attention":
                attention.sliding_window = window
    return copy


def layer_weights(model):
    """The weights that the layers return for SOURCE and SHIFTED, each (B, N, H, T, S), zero for padded queries."""
    memory, mask, of_encoder = model.encode(SOURCE, return_attention_scores=True)
    _, of_decoder, of_cross = model.network.decode(
        SHIFTED, memory, encoder_padding_mask=mask, training=False, return_attention_scores=True
    )
    return [
        np.stack(numpy(list(weights)), axis=1) * (ids != 0)[:, None, None, :, None]
        for weights, ids in ((of_encoder, SOURCE), (of_decoder, TARGET), (of_cross, TARGET))
    ]


def logits_of(model):
    memory, mask = model.encode(SOURCE)
    return model.decode_step(SHIFTED, model.init_cache(memory, len(SHIFTED)), mask)[0]


@pytest.mark.parametrize("options", OPTIONS)
def test_it_computes_what_a_changed_copy_computes(options):
    model = make(**OPTIONS[options])
    unchanged = InspectedTransformer(model)
    assert_close(logits_of(unchanged), logits_of(model))
    assert_close(list(unchanged.attention_weights(SOURCE, TARGET)), layer_weights(model))
    changes = {**head_masks(model), "window": 3, "scale": 0.4}
    inspected, copy = InspectedTransformer(model, **changes), changed_copy(model, **changes)
    # Not the cached steps of the copy, but its pass over all positions.
    assert_close(logits_of(inspected), copy({"source": SOURCE, "target": SHIFTED}), atol=1e-4, rtol=1e-4)
    assert_close(list(inspected.attention_weights(SOURCE, TARGET)), layer_weights(copy))


@pytest.mark.parametrize("change", ["encoder_head_mask", "decoder_head_mask", "cross_head_mask", "window", "scale"])
def test_each_change_changes_the_logits(model, change):
    every = {**head_masks(model), "window": 2, "scale": 0.4}
    inspected = InspectedTransformer(model, **{change: every[change]})
    assert largest_difference(logits_of(inspected), logits_of(model)) > 1e-2


def test_weights_sum_to_one_where_there_is_a_query(model):
    weights = InspectedTransformer(model, window=2, scale=0.0, **head_masks(model)).attention_weights(SOURCE, TARGET)
    for kind, ids in (("encoder", SOURCE), ("decoder", TARGET), ("cross", TARGET)):
        sums = numpy(getattr(weights, kind)).sum(-1)
        assert_close(sums, np.broadcast_to((ids != 0)[:, None, None, :], sums.shape).astype("float32"))
    # With a scale of zero all visible positions weigh the same.
    assert_close(
        weights.encoder[0, 0, 0, :3, :4], np.array([[1 / 2, 1 / 2, 0, 0], [1 / 3] * 3 + [0], [0] + [1 / 3] * 3])
    )
    assert_close(weights.cross[1, 0, 0, 0], np.array([1 / 4] * 4 + [0] * 3))


def test_steps_continue_each_other(model):
    inspected = InspectedTransformer(model, window=3, scale=1.5, **head_masks(model))
    memory, mask = inspected.encode(SOURCE)
    cache, steps = inspected.init_cache(memory, 2), []
    for first, last in ((0, 1), (1, 3), (3, 5)):
        logits, cache = inspected.decode_step(SHIFTED[:, first:last], cache, mask)
        steps.append(numpy(logits))
    assert_close(np.concatenate(steps, axis=1), logits_of(inspected))


def test_each_sentence_can_have_its_own_changes(model):
    settings = [{**head_masks(model), "window": 2, "scale": 0.5}, {**head_masks(model, 1), "window": 9, "scale": 3.0}]
    together = {name: np.stack([each[name] for each in settings]) for name in settings[0]}
    weights = InspectedTransformer(model, **together).attention_weights(SOURCE, TARGET)
    for row, changes in enumerate(settings):
        alone = InspectedTransformer(model, **changes).attention_weights(SOURCE[row : row + 1], TARGET[row : row + 1])
        assert_close([x[row] for x in weights], [x[0] for x in alone])


def test_a_large_scale_stays_finite_in_half_precision():
    inspected = InspectedTransformer(make("float16", num_layers=1), scale=100.0)
    assert all(np.isfinite(numpy(x)).all() for x in inspected.attention_weights(SOURCE, TARGET))


def brute_force(copy, source, max_length):
    """The most probable token again and again, from whole passes of the model."""
    written = [2]
    while len(written) <= max_length and written[-1] != 3:
        logits = copy({"source": np.array([source]), "target": np.array([written])})[0, -1]
        written.append(3 if len(written) == max_length else int(np.argmax(numpy(logits))))
    return written[1:]


@pytest.mark.tensorflow
def test_generate_writes_what_whole_passes_write(writer):
    options = ka.decoding.DecodingOptions(beam_size=1, max_length=7)
    plain = ka.decoding.generate(writer, SOURCE, options).ids[:, 0].numpy().tolist()
    changes = {"window": 2, "scale": 0.0, **head_masks(writer)}
    ids = ka.decoding.generate(InspectedTransformer(writer, **changes), SOURCE, options).ids[:, 0].numpy().tolist()
    copy = changed_copy(writer, **changes)
    expected = [brute_force(copy, row[row != 0], 7) for row in SOURCE]
    assert [row[: len(words)] for row, words in zip(ids, expected, strict=True)] == expected
    assert ids != plain


def ending_at(lengths):
    """A logits processor that lets each sentence have a number of tokens."""

    def process(logits, ids, sentences):
        rows = ids.shape[0] // len(sentences)
        last = np.repeat(np.take(lengths, sentences), rows) <= ids.shape[1] + 1
        return keras.ops.where(last[:, None] & (np.arange(V) != 3), -np.inf, logits)

    return process


@pytest.mark.tensorflow
def test_a_beam_search_keeps_the_changes_of_each_sentence(writer):
    """A sentence that is finished leaves the search, and its changes with it."""
    settings = [{**head_masks(writer), "scale": 2.0}, {**head_masks(writer, 1), "scale": 0.5}]
    together = {name: np.stack([each[name] for each in settings]) for name in settings[0]}
    options, lengths = ka.decoding.DecodingOptions(beam_size=3, num_return=2, max_length=7), [2, 7]
    inspected = InspectedTransformer(writer, **together)
    found = ka.decoding.generate(inspected, SOURCE, options, logits_processor=ending_at(lengths))
    for row, changes in enumerate(settings):
        copy, process = changed_copy(writer, **changes), ending_at(lengths[row : row + 1])
        expected = ka.decoding.generate(copy, SOURCE[row : row + 1], options, logits_processor=process)
        length = expected.ids.shape[2]
        assert expected.lengths.numpy().max() == lengths[row]
        np.testing.assert_array_equal(found.ids[row, :, :length], expected.ids[0])
        np.testing.assert_allclose(found.scores[row], expected.scores[0], rtol=1e-4)


@pytest.mark.tensorflow
def test_scores_and_streams_take_it_too(writer):
    changes = {"scale": 0.5, **head_masks(writer)}
    inspected, copy = InspectedTransformer(writer, **changes), changed_copy(writer, **changes)
    results = [tuple(ka.decoding.score(each, SOURCE, TARGET)) for each in (inspected, copy)]
    assert_close(results[0], results[1], atol=1e-4)
    options = ka.decoding.DecodingOptions(beam_size=1, max_length=5)
    streams = [
        [token.ids.tolist() for token in ka.decoding.stream(each, SOURCE, options)] for each in (inspected, copy)
    ]
    assert streams[0] == streams[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_head_mask": [[True, True]]}, r"`encoder_head_mask` has shape .* \(2, 3\) here.*shape=\(1, 2\)"),
        ({"cross_head_mask": [True, True, False]}, r"Received: cross_head_mask.shape=\(3,\)"),
        ({"decoder_head_mask": [[0.5, 1, 1], [1, 1, 1]]}, "decoder_head_mask"),
        ({"window": 0}, r"`window` is an integer, 1 \(only the own position\) or more, or None. Received: window=0"),
        ({"window": 2.0}, "Received: window=2.0"),
        ({"window": [[2]]}, r"Received: window=\[\[2\]\]"),
        ({"scale": -1}, r"`scale` is a number from 0 to 100; 1 changes nothing. Received: scale=-1.0"),
        ({"scale": float("nan")}, "Received: scale=nan"),
        ({"scale": [1.0, 101.0]}, r"Received: scale=\[  1. 101.\]"),
    ],
)
def test_changes_that_cannot_be_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        InspectedTransformer(model, **changes)


def test_a_language_model_is_refused():
    with pytest.raises(
        TypeError, match=r"`model` is a Transformer, with an encoder and a decoder. Received: model=<Causal"
    ):
        InspectedTransformer(ka.CausalTransformer(ka.TransformerConfig(V, **SMALL)))
