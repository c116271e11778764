"""Our layers among Keras' own, as people put them together."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensors import B, H, M, S, T, V, assert_close, draw, padding

import keras_attention as ka

CLASSES = 3


def classifier(**options):
    """Embedding, two encoder layers, pooling and a dense layer."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(V, M, mask_zero=True)(ids)
    x = ka.PositionalEncoding()(x)
    for _ in range(2):
        x = ka.EncoderLayer(intermediate_dim=19, num_heads=H, **options)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, keras.layers.Dense(CLASSES)(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_first": True, "normalization": "rms", "activation": "swiglu"},
        {"num_kv_heads": 1, "qk_norm": True, "position": ka.AlibiBias()},
        {"position": ka.RelativePositionBias(num_buckets=8, max_distance=20), "dropout": 0.1},
    ],
    ids=["paper", "pre-norm", "shared heads", "biases"],
)
def test_a_classifier_learns_and_padding_never_changes_what_it_says(options):
    model = classifier(**options)
    # The class of a sentence is its first token's remainder.
    ids = np.random.randint(1, V, (96, T)).astype("int32")
    ids[::2, -2:] = 0
    labels = ids[:, 0] % CLASSES
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first, *_, last = model.fit(ids, labels, batch_size=32, epochs=6, verbose=0).history["loss"]
    assert last < 0.7 * first
    answers = model.predict(ids, verbose=0)
    assert_close(model.predict(np.pad(ids, ((0, 0), (0, 6))), verbose=0), answers)
    for row in (0, 1):
        assert_close(model.predict(ids[row : row + 1][:, ids[row] != 0], verbose=0), answers[row : row + 1])


def test_weights_come_out_of_symbolic_and_exported_models_as_from_eager_ones(tmp_path):
    source, target = keras.Input((None, M), name="source"), keras.Input((None, M), name="target")
    sizes = {"num_layers": 2, "intermediate_dim": 19, "num_heads": H}
    encoder, decoder = ka.Encoder(**sizes), ka.Decoder(**sizes)
    memory, encoder_weights = encoder(source, return_attention_scores=True)
    x, self_weights, cross_weights = decoder(target, memory, return_attention_scores=True)
    outputs = [x, *encoder_weights, *self_weights, *cross_weights]
    model = keras.Model([source, target], outputs)
    assert [output.shape[-2:] for output in outputs] == [(None, M)] + [(None, None)] * 6

    inputs = [draw(B, S, M), draw(B, T, M)]
    eager_memory, eager_encoder = encoder(inputs[0], return_attention_scores=True)
    eager = decoder(inputs[1], eager_memory, return_attention_scores=True)
    expected = [eager[0], *eager_encoder, *eager[1], *eager[2]]
    assert [each.shape for each in expected[1::2]] == [(B, H, S, S), (B, H, T, T), (B, H, T, S)]
    assert_close(model(inputs), expected)

    model.export(tmp_path / "export", verbose=False)
    reloaded = tf.saved_model.load(tmp_path / "export")
    served = reloaded.serve([tf.constant(each) for each in inputs])
    assert_close([np.asarray(each) for each in served], [np.asarray(each) for each in expected])


def test_packed_sequences_are_what_they_are_alone():
    """Three sequences in one row, and the same three each in a row of its own."""
    embed = keras.layers.Embedding(V, M)
    positions = ka.PositionalEncoding()
    encoder = ka.Encoder(2, 19, H, position=ka.RelativePositionBias(num_buckets=8, max_distance=20))
    lengths = [2, 5, 3]
    sequences = [np.random.randint(1, V, (1, length)) for length in lengths]
    packed = np.concatenate(sequences, axis=1)
    segments = np.repeat([[1, 2, 3]], lengths, axis=1).astype("int32")
    output = encoder(positions(embed(packed), segment_ids=segments), segment_ids=segments)
    start = 0
    for ids in sequences:
        alone = encoder(positions(embed(ids)))
        assert_close(output[:, start : start + ids.shape[1]], alone)
        start += ids.shape[1]


def test_a_language_model_decodes_step_by_step_as_it_reads_at_once():
    decoder = ka.Decoder(2, 19, H, position=ka.AlibiBias(), num_kv_heads=1)
    x = draw(B, T, M)
    whole = decoder(x)
    for capacity in (None, T + 2):
        caches, steps = decoder.init_cache(B, capacity), []
        for t in range(T):
            y, caches = decoder(x[:, t : t + 1], self_attention_caches=caches)
            steps.append(y)
        assert_close(keras.ops.concatenate(steps, axis=1), whole)
    with pytest.raises(ValueError, match=r"cache is too small: .* larger `capacity`. Received: capacity=2, .* hold=3"):
        caches = decoder.init_cache(B, 2)
        for t in range(T):
            _, caches = decoder(x[:, t : t + 1], self_attention_caches=caches)


def test_padding_masks_of_both_sides_in_a_decoder_of_packed_rows():
    """Segments and padding masks go together: padding at the end of a packed row changes nothing."""
    layer = ka.DecoderLayer(19, H)
    x, memory = draw(B, T, M), draw(B, S, M)
    targets, sources = np.array([[1, 1, 2, 2, 2]] * B), np.array([[1, 1, 1, 2, 2, 2, 2]] * B)
    options = {"decoder_segment_ids": targets, "encoder_segment_ids": sources}
    output = layer(x, memory, encoder_padding_mask=padding(S), **options)
    other = np.where(padding(S)[..., None], memory, 7.0)
    assert_close(layer(x, other, encoder_padding_mask=padding(S), **options), output)
    # The second sequence by itself
    alone = layer(x[1:, 2:], memory[1:, 3:])
    assert_close(output[1:, 2:], alone)


WRAPPED = {
    "encoder layer": lambda: ka.EncoderLayer(19, H),
    "attention": lambda: ka.MultiHeadSelfAttention(H),
    "network": lambda: ka.FeedForward(19),
    "positions": lambda: ka.LearnedPositionalEncoding(S),
    "language model": lambda: ka.DecoderLayer(19, H, normalize_first=True),
}


@pytest.mark.parametrize("frames", [3, None])
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_layer_over_the_frames_of_a_video(kind, frames, tmp_path):
    layer, inputs = WRAPPED[kind](), keras.Input((frames, T, M))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    assert model.output_shape == (None, frames, T, M)
    x = draw(B, 3, T, M)
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    output = model.predict(x, verbose=0)
    assert_close(output, np.stack([layer(x[:, frame]) for frame in range(3)], axis=1))
    model.save(tmp_path / "model.keras")
    assert_close(keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0), output)


def test_implicit_masks_reach_a_layer_over_frames():
    ids = np.random.randint(1, V, (B, 3, T)).astype("int32")
    ids[1, :, 2:] = 0
    inputs = keras.Input((3, None), dtype="int32")
    x = keras.layers.Embedding(V, M, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.TimeDistributed(ka.EncoderLayer(19, H))(x))
    assert_close(model(ids)[1:, :, :2], model(ids[1:, :, :2]))


def test_a_sequential_model_says_its_shape_before_it_has_inputs():
    model = keras.Sequential([ka.PositionalEncoding(), ka.EncoderLayer(19, H), ka.Encoder(2, 19, H), ka.FeedForward(7)])
    assert model.compute_output_shape((None, T, M)) == (None, T, M)
    assert model.compute_output_spec(keras.KerasTensor((B, None, M))).shape == (B, None, M)
    assert not any(layer.built for layer in model.layers)
    assert model(draw(B, T, M)).shape == model.compute_output_shape((B, T, M)) == (B, T, M)
    embedded = keras.Sequential([ka.TokenEmbedding(V, M), ka.EncoderLayer(19, H)])
    assert embedded.compute_output_shape((B, T)) == (B, T, M)
