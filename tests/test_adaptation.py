"""Low-rank adapters, int8 matrices and frozen layers: what they change, what trains, that they survive a file."""

import keras
import numpy as np
import pytest
from tensors import MEMORY_WIDTH, B, D, F, H, M, S, T, V, draw

import keras_attention as ka
from keras_attention.layers.composite import adaptations
from keras_attention.training import ChunkedTrainer

RANK = 2
# Keras', for each layer of a user's model that holds no matrix.
NO_MATRIX = r"ignore:Layer \w+ does not have a `quantize` method implemented"
LAYERS = {
    "attention": (lambda: ka.MultiHeadAttention(H, D, use_gate=True, qk_norm=True, num_kv_heads=1), 2),
    "self_attention": (lambda: ka.MultiHeadSelfAttention(H, position=ka.AlibiBias()), 1),
    "additive_attention": (lambda: ka.AdditiveAttention(F), 2),
    "feed_forward": (lambda: ka.FeedForward(F, activation="swiglu"), 1),
    "encoder_layer": (lambda: ka.EncoderLayer(F, H, position=ka.RelativePositionBias(8, 20)), 1),
    "decoder_layer": (lambda: ka.DecoderLayer(F, H, normalization="rms"), 2),
    "encoder": (lambda: ka.Encoder(1, F, H, normalize_first=True), 1),
    "decoder": (lambda: ka.Decoder(1, F, H), 2),
}


def outputs(model, inputs):
    return keras.ops.convert_to_numpy(keras.ops.cast(model(inputs), "float32"))


def model_of(make, count):
    inputs = [keras.Input((None, width)) for width in (M, MEMORY_WIDTH)[:count]]
    layer = make()
    return layer, keras.Model(inputs, layer(*inputs)), [draw(B, T, M), draw(B, S, MEMORY_WIDTH)][:count]


def is_close(actual, expected, share=0.05):
    """Within a share of the largest number: int8 has 127 steps."""
    return np.abs(actual - expected).max() < share * np.abs(expected).max()


def move_adapters(layer):
    for weight in layer.trainable_weights:
        weight.assign(draw(*weight.shape) * 0.3)


def reload(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


@pytest.mark.parametrize("name", LAYERS)
def test_adapters_then_int8_then_a_file(name, tmp_path):
    layer, model, inputs = model_of(*LAYERS[name])
    plain, count = outputs(model, inputs), len(layer.trainable_weights)
    kernels = [weight for weight in layer.weights if weight.name == "kernel"]
    layer.enable_lora(RANK)
    np.testing.assert_allclose(outputs(model, inputs), plain, atol=1e-6)  # they start as zero
    assert {weight.name for weight in layer.trainable_weights} == {"lora_kernel_a", "lora_kernel_b"}
    assert len(layer.trainable_weights) == 2 * len(kernels) > 0
    assert len(layer.weights) == count + 2 * len(kernels)
    assert all(RANK in (weight.shape[0], weight.shape[-1]) for weight in layer.trainable_weights)

    move_adapters(layer)
    adapted = outputs(model, inputs)
    assert np.abs(adapted - plain).max() > 1e-3
    layer.quantize("int8")
    quantized = outputs(model, inputs)
    assert np.abs(quantized - adapted).max() > 1e-5
    assert is_close(quantized, adapted)
    assert [str(w.dtype) for w in layer.weights if w.name == "kernel"] == ["int8"] * len(kernels)

    again = reload(model, tmp_path)
    assert is_close(outputs(again, inputs), adapted, 0.1)  # the sums are rounded once more
    assert adaptations(again.layers[-1]) == adaptations(layer) != {}
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    assert [w.name for w in again.trainable_weights] == [w.name for w in model.trainable_weights]


@pytest.mark.parametrize("change", ["adapters", "int8"])
def test_each_alone_survives_a_file(change, tmp_path):
    layer, model, inputs = model_of(lambda: ka.FeedForward(F), 1)
    if change == "int8":
        layer.quantize("int8")
    else:
        layer.enable_lora(RANK, lora_alpha=7.0)
        move_adapters(layer)
    again = reload(model, tmp_path)
    np.testing.assert_allclose(outputs(again, inputs), outputs(model, inputs), atol=1e-5)
    assert adaptations(again.layers[-1]) == adaptations(layer)
    # A file of a file, too.
    np.testing.assert_allclose(outputs(reload(again, tmp_path), inputs), outputs(model, inputs), atol=1e-5)


def classifier(**options):
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(V, M, mask_zero=True, name="embedding")(ids)
    x = ka.PositionalEncoding(scale=False)(x)
    for i in range(2):
        x = ka.EncoderLayer(F, H, name=f"layer_{i}", **options)(x)
    y = keras.layers.Dense(1, dtype="float32")(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(ids, y)


IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0]], "int32")


@pytest.mark.filterwarnings(NO_MATRIX)
def test_a_model_of_layers_is_quantized_and_keeps_its_masks(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = classifier()
        plain = outputs(model, IDS)
        model.get_layer("layer_0").enable_lora(RANK, pattern="self_attention/(query|value)")
        model.quantize("int8")
        again = reload(model, tmp_path)
    finally:
        keras.config.set_dtype_policy(before)
    assert len(adaptations(model.get_layer("layer_0"))) == 6
    assert adaptations(again) == adaptations(model)
    assert "int8" in {str(w.dtype) for w in again.get_layer("embedding").weights}
    size = np.abs(outputs(model, IDS)).max()
    assert np.abs(outputs(model, IDS) - plain).max() < max(0.1 * size, 0.05)
    np.testing.assert_allclose(outputs(again, IDS), outputs(model, IDS), atol=0.03)
    alone = outputs(again, IDS[1:, :2])  # the quantized embedding still makes the mask
    np.testing.assert_allclose(outputs(again, IDS)[1:], alone, atol=0.03)


def test_the_transformer_is_adapted_quantized_and_decodes(tmp_path):
    model = ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1)
    inputs = {"source": IDS, "target": IDS[:, :3]}
    plain = outputs(model, inputs)
    model.enable_lora(RANK, pattern="embedding|attention")
    move_adapters(model)
    assert len(adaptations(model)) == 13
    assert {weight.name.rpartition("_")[0] for weight in model.trainable_weights} == {"lora_kernel", "lora_embeddings"}
    adapted = outputs(model, inputs)
    assert np.abs(adapted - plain).max() > 0.1
    model.quantize("int8")
    quantized = outputs(model, inputs)
    assert is_close(quantized, adapted)
    again = reload(model, tmp_path)
    assert is_close(outputs(again, inputs), adapted, 0.1)
    assert len(again.trainable_weights) == len(model.trainable_weights) == 26
    memory, mask = model.encode(IDS)
    step, _ = model.decode_step(IDS[:, :3], model.init_cache(memory, 2), mask)
    np.testing.assert_allclose(step, quantized, atol=0.1 * np.abs(quantized).max())


def test_only_the_thin_matrices_learn():
    model = classifier(dropout=0.1)
    for name in ("layer_0", "layer_1"):
        model.get_layer(name).enable_lora(RANK, lora_alpha=4)
    model.get_layer("embedding").trainable = False
    model.layers[-1].trainable = False
    model.compile("sgd", "mse")
    before = model.get_weights()
    model.fit(IDS, np.array([[1.0], [-1.0]]), epochs=2, verbose=0)
    pairs = zip(model.weights, before, model.get_weights(), strict=True)
    moved = {weight.path for weight, old, new in pairs if not np.array_equal(old, new)}
    assert moved == {weight.path for weight in model.weights if weight.name.startswith("lora_")}
    assert len(moved) == 2 * 2 * 6


def test_thin_matrices_learn_beside_int8_ones():
    layer, model, inputs = model_of(lambda: ka.EncoderLayer(F, H), 1)
    layer.quantize("int8")
    layer.enable_lora(RANK)
    move_adapters(layer)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.get_weights()
    model.fit(inputs[0], draw(B, T, M), verbose=0)
    pairs = zip(layer.weights, before, layer.get_weights(), strict=True)
    moved = [weight.name for weight, old, new in pairs if np.all(np.isfinite(new)) and not np.array_equal(old, new)]
    assert sorted(moved) == ["lora_kernel_a"] * 6 + ["lora_kernel_b"] * 6


def test_a_pattern_chooses_the_matrices():
    layer, _, _ = model_of(lambda: ka.EncoderLayer(F, H), 1)
    layer.enable_lora(RANK, pattern="query|value")
    assert set(adaptations(layer)) == {"self_attention/query", "self_attention/value"}
    layer.enable_lora(3, pattern="feed_forward")
    changed = adaptations(layer)
    assert {path: change["lora_rank"] for path, change in changed.items()} == {
        "self_attention/query": RANK,
        "self_attention/value": RANK,
        "feed_forward/intermediate": 3,
        "feed_forward/output": 3,
    }
    assert all(weight.name.startswith("lora_") for weight in layer.trainable_weights)


@pytest.mark.parametrize("reverse", [False, True], ids=["vectors", "logits"])
def test_an_int8_embedding_keeps_its_adapter_in_both_directions(reverse):
    layer = ka.TokenEmbedding(V, M)
    x = draw(B, T, M) if reverse else IDS
    layer(IDS)
    layer.enable_lora(RANK)
    move_adapters(layer)
    adapted = keras.ops.convert_to_numpy(layer(x, reverse=reverse))
    layer.quantize("int8")
    assert is_close(keras.ops.convert_to_numpy(layer(x, reverse=reverse)), adapted)


def test_a_trainable_adapted_model_is_loaded_as_it_was(tmp_path):
    model = ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1)
    model.trainable = False
    again = reload(model, tmp_path)
    assert again.trainable is False
    assert again.trainable_weights == []


def trained(model):
    return [weight.trainable for weight in model.weights]


def flags(layer):
    """The attribute `trainable` of the layers of an encoder layer."""
    attention = layer.self_attention
    parts = attention, attention.query_dense, layer.self_attention_norm, layer.feed_forward.output_dense
    return [each.trainable for each in parts]


def with_optimizer(model):
    """Compiled, with an optimizer as training leaves it."""
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables[2:]:
        variable.assign(draw(*variable.shape))
    return model


@pytest.mark.filterwarnings("error::UserWarning")  # Keras' warning that it skips the optimizer's state
@pytest.mark.parametrize("name", LAYERS)
def test_sub_layers_frozen_one_by_one_stay_frozen(name, tmp_path):
    layer, model, _ = model_of(*LAYERS[name])
    holders = [weight.path.rpartition("/")[0] for weight in layer.weights]
    some = set(sorted(set(holders))[::2])
    for weight, holder in zip(layer.weights, holders, strict=True):
        weight.trainable = holder not in some
    before = trained(model)
    assert set(before) == {True, False}
    again = reload(with_optimizer(model), tmp_path)
    for variable, expected in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (variable, expected)))
    copies = (
        again,
        keras.models.clone_model(model),
        keras.models.clone_model(again),
        model.from_config(model.get_config()),
    )
    for copy in copies:
        assert trained(copy) == before
        for value in (True, False, True):
            copy.layers[-1].trainable = value
            assert set(trained(copy)) == {value}


@pytest.mark.parametrize("frozen", ["constructor", "attribute"])
def test_a_frozen_layer_does_not_move(frozen):
    layer = ka.EncoderLayer(F, H, trainable=frozen == "attribute", position=ka.RelativePositionBias(8, 20))
    layer.trainable = False
    inputs = keras.Input((None, M))
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
    before = layer.get_weights()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(draw(B, T, M), draw(B, T, 1), verbose=0)
    assert len(model.trainable_weights) == 2
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_frozen_before_they_are_built():
    frozen = ka.Encoder(3, F, H, normalize_first=True)
    frozen.layers[1].trainable = frozen.final_norm.trainable = False
    partly = ka.Encoder(2, F, H, trainable=False)
    partly.layers[1].trainable = True
    bias = ka.MultiHeadSelfAttention(H, position=ka.RelativePositionBias(8, 20, trainable=False))
    expected = {frozen: [True, False, True], partly: [False, True]}
    for encoder in (
        frozen,
        ka.Encoder.from_config(frozen.get_config()),
        partly,
        ka.Encoder.from_config(partly.get_config()),
    ):
        config = encoder.get_config()
        encoder.build((None, None, M))
        assert encoder.get_config() == config
        trains = expected[frozen if encoder.final_norm else partly]
        assert [{weight.trainable for weight in layer.weights} for layer in encoder.layers] == [
            {each} for each in trains
        ]
    assert not any(weight.trainable for weight in frozen.final_norm.weights)
    bias.build((None, None, M))
    assert [weight.name for weight in bias.weights if not weight.trainable] == ["embeddings"]
    again = ka.Encoder.from_config(frozen.get_config())
    again.trainable = True
    again.build((None, None, M))
    assert all(trained(again))


def language_model(**options):
    return ka.CausalTransformer.from_preset("tiny", vocabulary_size=V, num_layers=1, **options)


def translation_model(**options):
    return ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1, **options)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("make", [language_model, pytest.param(translation_model, marks=pytest.mark.slow)])
def test_what_is_frozen_in_a_model_stays_frozen(make, tmp_path):
    model = make(remat=True)
    block = model.get_layer("decoder").layers[0]
    model.get_layer("embedding").trainable = block.self_attention.trainable = False
    block.feed_forward.output_dense.trainable = False
    block.self_attention_norm.weights[0].trainable = False
    frozen = [weight for weight in model.weights if not weight.trainable]
    assert len(frozen) == 1 + 4 + 2 + 1
    inputs = IDS if len(model.inputs) == 1 else {"source": IDS, "target": IDS}
    for trainer in (model, ChunkedTrainer(model)):
        loss = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)} if trainer is model else {}
        trainer.compile(keras.optimizers.Adam(0.1), **loss)
        before = {id(weight): keras.ops.convert_to_numpy(weight) for weight in model.weights}
        trainer.fit(inputs, IDS, verbose=0)
        moved = [not np.array_equal(before[id(w)], keras.ops.convert_to_numpy(w)) for w in model.weights]
        assert moved == trained(model)
    again = reload(model, tmp_path)
    for variable, expected in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (variable, expected)))
    for copy in (again, keras.models.clone_model(model), model.in_dtype("bfloat16"), again.in_dtype("float32")):
        assert trained(copy) == trained(model)
        assert flags(copy.get_layer("decoder").layers[0]) == flags(block) == [False, False, True, False]
    if len(model.inputs) > 1:
        assert len(model.packed().trainable_weights) == len(model.trainable_weights)
    again.trainable = True
    assert all(trained(again))


def test_adapters_leave_frozen_what_was_frozen(tmp_path):
    layer, model, _ = model_of(lambda: ka.EncoderLayer(F, H), 1)
    layer.self_attention.trainable = False
    layer.feed_forward.output_dense.trainable = False
    layer.enable_lora(RANK)
    assert len(layer.trainable_weights) == 2  # those of the first matrix of the feed-forward network
    for weight in layer.self_attention_norm.weights:  # often trained with the adapters
        weight.trainable = True
    layer.feed_forward.output_dense.bias.trainable = True
    names = sorted(weight.name for weight in model.weights if weight.trainable)
    assert names == ["beta", "bias", "gamma", "lora_kernel_a", "lora_kernel_b"]
    again = reload(with_optimizer(model), tmp_path)
    for copy in (again, reload(again, tmp_path), keras.models.clone_model(model)):
        assert adaptations(copy.layers[-1]) == adaptations(layer)
        assert trained(copy) == trained(model)
    layer.quantize("int8")
    assert sorted(weight.name for weight in model.weights if weight.trainable) == names
    assert trained(reload(model, tmp_path)) == trained(model)


def test_adapters_freeze_what_trains_inside_a_frozen_layer():
    layer, model, _ = model_of(lambda: ka.EncoderLayer(F, H), 1)
    layer.trainable = False
    layer.feed_forward.trainable = True
    layer.enable_lora(RANK)
    assert {weight.name for weight in model.trainable_weights} == {"lora_kernel_a", "lora_kernel_b"}
    assert len(model.trainable_weights) == 2 * 2


def test_what_trains_inside_a_frozen_layer_trains_with_remat():
    encoder = ka.Encoder(1, F, H, remat=True, trainable=False)
    encoder.layers[0].trainable = True
    inputs = keras.Input((None, M))
    model = keras.Model(inputs, keras.layers.Dense(1)(encoder(inputs)))
    encoder.layers[0].trainable = False
    encoder.layers[0].feed_forward.trainable = True
    before = encoder.get_weights()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(draw(B, T, M), draw(B, T, 1), verbose=0)
    moved = [not np.array_equal(*pair) for pair in zip(before, encoder.get_weights(), strict=True)]
    assert moved == [weight.trainable for weight in encoder.weights]
    assert sum(moved) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda layer: ka.FeedForward(F).enable_lora(RANK),
            r"which must be built: call it once. Received: .*matrices=\[\]",
        ),
        (
            lambda layer: layer.enable_lora(RANK, pattern="keys"),
            r"pattern='keys', matrices=\['intermediate', 'output'\]",
        ),
        (lambda layer: layer.enable_lora(0), r"`rank` must be a positive integer. Received: rank=0"),
        (lambda layer: layer.enable_lora(2, lora_alpha=0), r"`lora_alpha` must be a number above zero. Received"),
        (
            lambda layer: (layer.enable_lora(2), layer.enable_lora(2)),
            r"once. Received: .*already=\['intermediate', 'outp",
        ),
        (
            lambda layer: ka.FeedForward(F).quantize("int8"),
            r"layer that isn't yet built. Layer '.*' \(of type 'FeedFor",
        ),
        (lambda layer: (layer.quantize("int8"), layer.quantize("int8")), r"Layer 'intermediate' is already quantized"),
        (lambda layer: layer.quantize("int7"), r"int7"),
    ],
)
def test_mistakes_get_a_message(make, message):
    layer, _, _ = model_of(lambda: ka.FeedForward(F), 1)
    with pytest.raises(ValueError, match=message):
        make(layer)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (ka.training.FusedAdam, "int8"),
        pytest.param(ka.training.FusedAdam, "lora", marks=pytest.mark.slow),
        pytest.param(keras.optimizers.Adam, "int8", marks=pytest.mark.slow),
        pytest.param(keras.optimizers.Adam, "lora", marks=pytest.mark.slow),
    ],
    ids=["fused-int8", "fused-lora", "keras-int8", "keras-lora"],
)
def test_a_trained_model_is_changed_saved_and_trained_on(make, change, tmp_path):
    model = ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1, hidden_dim=8, num_heads=2)
    inputs = {"source": IDS, "target": IDS[:, :3]}
    model.compile(make(0.01), ka.training.MaskedCrossEntropy())
    model.train_on_batch(inputs, IDS[:, 1:4])
    if change == "int8":
        model.quantize("int8")
    else:
        model.enable_lora(RANK)
    again = reload(model, tmp_path)  # a warning that the optimizer's state does not fit would fail
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    assert model.optimizer.learning_rate == 0.01
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    model.fit(inputs, IDS[:, 1:4], verbose=0)
    again.fit(inputs, IDS[:, 1:4], verbose=0)
    moved = [
        np.abs(keras.ops.convert_to_numpy(w) - b).max() for w, b in zip(model.trainable_weights, before, strict=True)
    ]
    assert max(moved) > 0.005
