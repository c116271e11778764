"""The same numbers as independent implementations, at float32 rounding, wherever these are right.

Keras' and KerasHub's layers exchange weights with ours as they are, torch's after transposition.
"""

import contextlib
import inspect
import logging

import keras
import numpy as np
import pytest
from backends import numpy
from tensors import LENGTHS, MEMORY_WIDTH, B, D, F, H, M, S, T, assert_close, draw, padding, randomize

import keras_attention as ka

EVEN = 12  # width of a head whose halves are rotated together
INPUTS = [(B, T, M), (B, S, MEMORY_WIDTH), (B, S, 31)]


def tails(layer):
    """The weights' paths within the layer."""
    return [weight.path.split("/", 1)[1] for weight in layer.weights]


def parameters(function):
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, each in inspect.signature(function).parameters.items() if each.kind == kinds]


def exchange(ours, theirs):
    """Yields twice, with weights sampled in one and set in the other, both ways."""
    assert [weight.shape for weight in ours.weights] == [weight.shape for weight in theirs.weights]
    for giver, taker in ((theirs, ours), (ours, theirs)):
        randomize(giver)
        taker.set_weights(giver.get_weights())
        yield


# Keras.


def pair_of(*shapes, **arguments):
    """Our layer and Keras', built for these shapes."""
    layers = [
        each(**{"num_heads": H, "key_dim": D, **arguments})
        for each in (ka.MultiHeadAttention, keras.layers.MultiHeadAttention)
    ]
    for layer in layers:
        layer(*(draw(*shape) for shape in shapes))
    assert tails(layers[0]) == tails(layers[1])
    return layers


def seen_pairs(*shape):
    """A random mask that lets each query see something, since Keras has another rule where it sees nothing."""
    pairs = np.random.rand(*shape) < 0.7
    pairs[..., 0] = True
    return pairs


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"value_dim": 19},
        {"output_shape": 23},
        {"output_shape": (5, 23)},
        {"use_bias": False},
        {"use_gate": True},
        {"use_gate": True, "value_dim": 19, "use_bias": False},
        {"sliding_window": 2},
        {"attention_axes": 1},
        {"attention_axes": (-2,)},
        {"flash_attention": False},
        {"value_dim": 19, "output_shape": (5, 23), "use_gate": True, "sliding_window": 3},
    ],
    ids=str,
)
def test_keras_attention(arguments):
    ours, theirs = pair_of(*INPUTS, **arguments)
    inputs = [draw(*shape) for shape in INPUTS]
    mask = padding(S)
    mask[:, :T] = True  # the window of each query holds a real key
    calls = [
        {},
        {"value_mask": mask},
        {"key_mask": mask},
        {"value_mask": padding(S), "key_mask": mask, "attention_mask": np.eye(T, S, dtype=bool)[None]},
        {"use_causal_mask": True},
        {"use_causal_mask": True, "value_mask": mask},
    ]
    calls[3]["value_mask"] = mask
    if "sliding_window" not in arguments:
        calls += [{"attention_mask": seen_pairs(B, T, S)}, {"attention_mask": seen_pairs(1, T, S)}]
    for _ in exchange(ours, theirs):
        for options in calls:
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))
            assert_close(ours(*inputs[:2], inputs[2], **options), ours(*inputs, **options))
            options = {**options, "return_attention_scores": True}
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))


def test_keras_attention_without_a_key():
    ours, theirs = pair_of(*INPUTS[:2])
    query, value = (draw(*shape) for shape in INPUTS[:2])
    for _ in exchange(ours, theirs):
        assert_close(ours(query, value), theirs(query, value))
        assert_close(ours(query, query[..., :MEMORY_WIDTH]), theirs(query, query[..., :MEMORY_WIDTH]))


def test_keras_attention_with_implicit_masks():
    ours, theirs = pair_of(*INPUTS[:2])
    query, value = draw(B, T, M), draw(B, S, MEMORY_WIDTH)
    query[~padding(T)], value[~padding(S)] = 0, 0
    masking = keras.layers.Masking()
    for _ in exchange(ours, theirs):
        found = ours(masking(query), masking(value))
        expected = theirs(masking(query), masking(value))
        np.testing.assert_array_equal(found._keras_mask, expected._keras_mask)
        # A masked query has another rule in each.
        assert_close(found[padding(T)], expected[padding(T)])


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ([(B, 3, T, M), (B, 3, S, MEMORY_WIDTH)], (2,)),
        ([(B, 3, T, M), (B, 3, S, MEMORY_WIDTH)], 2),
        ([(B, T, 3, M), (B, S, 3, MEMORY_WIDTH)], (1,)),
        ([(B, T, 3, M), (B, T, S, MEMORY_WIDTH)], (-2,)),
        ([(B, 3, T, M), (B, 2, S, MEMORY_WIDTH)], (1, 2)),
        ([(B, 3, T, M), (B, 2, S, MEMORY_WIDTH)], None),
        ([(B, 2, 3, T, M), (B, 5, 3, S, MEMORY_WIDTH)], (1, 3)),
        ([(B, 2, 3, T, M), (B, 2, 3, T, MEMORY_WIDTH)], (2, 3)),
    ],
    ids=str,
)
def test_keras_attention_over_axes(shapes, axes):
    ours, theirs = pair_of(*shapes, attention_axes=axes, use_gate=True)
    inputs = [draw(*shape) for shape in shapes]
    rank = len(shapes[0])
    attended = tuple(range(1, rank - 1)) if axes is None else tuple(a % rank for a in np.atleast_1d(axes))
    pairs = seen_pairs(*(shape[axis] for shape in shapes for axis in attended))
    pairs = pairs[(None,) * (rank - 1 - len(attended))]
    for _ in exchange(ours, theirs):
        for options in ({}, {"attention_mask": pairs}):
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))
            options["return_attention_scores"] = True
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))


def test_keras_attention_over_one_axis_of_five():
    # Keras takes the softmax of a tensor of six axes, which TensorFlow has not on every processor: its layer gets the
    # first two axes as one.
    shapes = (B, 2, 3, T, M), (B, 2, 3, S, MEMORY_WIDTH)
    ours = ka.MultiHeadAttention(H, D, attention_axes=(3,), use_gate=True)
    _, theirs = pair_of(*((2 * B, *shape[2:]) for shape in shapes), attention_axes=(2,), use_gate=True)
    inputs = [draw(*shape) for shape in shapes]
    ours(*inputs)
    merged = [x.reshape(2 * B, *x.shape[2:]) for x in inputs]
    pairs = seen_pairs(T, S)
    for _ in exchange(ours, theirs):
        for mask in (None, pairs):
            options = {"return_attention_scores": True}
            given = ours(*inputs, attention_mask=None if mask is None else mask[None, None, None], **options)
            expected = theirs(*merged, attention_mask=None if mask is None else mask[None, None], **options)
            assert_close(given, tuple(numpy(x).reshape(B, 2, *x.shape[1:]) for x in expected))


@pytest.mark.parametrize("use_gate", [False, True])
def test_keras_attention_regularizers_and_constraints(use_gate):
    arguments = {
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "activity_regularizer": keras.regularizers.L2(0.03),
        "kernel_constraint": "max_norm",
        "bias_constraint": "non_neg",
        "use_gate": use_gate,
    }
    ours, theirs = pair_of(*INPUTS, **arguments)
    inputs = [draw(*shape) for shape in INPUTS]
    for _ in exchange(ours, theirs):
        losses = []
        for layer in (ours, theirs):
            layer(*inputs)
            losses.append([float(numpy(loss)) for loss in layer.losses])
        np.testing.assert_allclose(sorted(losses[0]), sorted(losses[1]), rtol=1e-5)
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        assert type(one.constraint) is type(other.constraint)
        assert type(one.regularizer) is type(other.regularizer)
        assert_close(one.constraint(one), other.constraint(other))


def test_keras_attention_dropout():
    """As much is dropped, and what stays is scaled as much; which weights these are is each generator's affair."""
    shapes = [(1, 997, M), (1, 13, MEMORY_WIDTH)]
    ours, theirs = pair_of(*shapes, dropout=0.3)
    inputs = [draw(*shape) for shape in shapes]
    ours.set_weights(theirs.get_weights())
    plain = numpy(ours(*inputs))
    assert_close(theirs(*inputs), plain)
    noise = [numpy(layer(*inputs, training=True)) - plain for layer in (ours, theirs)]
    np.testing.assert_allclose(np.std(noise[0]), np.std(noise[1]), rtol=0.05)
    assert np.std(noise[0]) > 0.1 * np.std(plain)
    for each in noise:
        np.testing.assert_allclose(each.mean(1), 0, atol=0.2 * np.std(each))


def test_keras_initializers_start_from_the_same_distribution():
    ours, theirs = pair_of(
        (1, T, 101), (1, S, 101), kernel_initializer="he_normal", bias_initializer="ones", key_dim=103
    )
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(np.std(one), np.std(other), rtol=0.05)


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (3, 1), (4, 4)])
def test_keras_grouped_query_attention(heads, groups):
    theirs = keras.layers.GroupQueryAttention(D, heads, groups)
    ours = ka.MultiHeadAttention(heads, D, num_kv_heads=groups)
    inputs = [draw(*shape) for shape in INPUTS]
    ours(*inputs), theirs(*inputs)
    assert tails(ours) == tails(theirs)
    for _ in exchange(ours, theirs):
        for options in ({}, {"use_causal_mask": True}, {"attention_mask": seen_pairs(B, T, S)}):
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))
            options["return_attention_scores"] = True
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))


def test_keras_additive_attention():
    """Theirs compares queries and keys as they are: W = U = 1, and v is its scale."""
    ours, theirs = ka.AdditiveAttention(M), keras.layers.AdditiveAttention()
    inputs = [draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, S, M)]
    ours(*inputs), theirs(inputs)
    randomize(theirs)
    ours.set_weights([np.eye(M), np.eye(M), theirs.get_weights()[0][:, None]])
    for mask in ({}, {"value_mask": padding(S)}):
        for causal in (False, True):
            options = {"use_causal_mask": causal, "return_attention_scores": True}
            expected = tuple(theirs(inputs, mask=[None, *mask.values()] if mask else None, **options))
            assert_close(ours(*inputs, **mask, **options), expected)


def test_keras_config_makes_our_layer():
    arguments = {"value_dim": 19, "output_shape": (23,), "use_gate": True, "sliding_window": 3, "dropout": 0.1}
    _, theirs = pair_of(*INPUTS, **arguments)
    config = theirs.get_config()
    ours = ka.MultiHeadAttention.from_config(config)
    assert {name: ours.get_config()[name] for name in arguments} == arguments
    inputs = [draw(*shape) for shape in INPUTS]
    ours(*inputs)
    ours.set_weights(theirs.get_weights())
    assert_close(ours(*inputs), theirs(*inputs))


def test_keras_attention_signatures():
    theirs = keras.layers.MultiHeadAttention
    for name in ("__init__", "call"):
        expected = parameters(getattr(theirs, name))
        assert parameters(getattr(ka.MultiHeadAttention, name))[: len(expected)] == expected
    defaults = {
        each: parameter.default
        for each, parameter in inspect.signature(theirs.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    ours = inspect.signature(ka.MultiHeadAttention.__init__).parameters
    assert {each: ours[each].default for each in defaults} == defaults


# KerasHub.


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub").layers


@contextlib.contextmanager
def quiet():
    """Without KerasHub's remarks on masks given twice."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


BLOCK_OPTIONS = [
    {},
    {"normalize_first": True},
    {"activation": "gelu", "layer_norm_epsilon": 0.1, "normalize_first": True},
]


@pytest.mark.parametrize("arguments", BLOCK_OPTIONS, ids=str)
def test_keras_hub_encoder(hub, arguments):
    ours, theirs = ka.EncoderLayer(F, H, **arguments), hub.TransformerEncoder(F, H, **arguments)
    x = draw(B, T, M)
    ours(x), theirs(x)
    calls = [
        {},
        {"padding_mask": padding(T)},
        {"attention_mask": seen_pairs(B, T, T)},
        {"padding_mask": padding(T), "attention_mask": np.tril(np.ones((B, T, T), bool))},
    ]
    for _ in exchange(ours, theirs):
        for options in calls:
            assert_close(ours(x, **options), theirs(x, **options))
            options = {**options, "return_attention_scores": True}
            assert_close(ours(x, **options), theirs(x, **options))


@pytest.mark.parametrize("arguments", BLOCK_OPTIONS, ids=str)
@pytest.mark.parametrize("has_memory", [False, True], ids=["alone", "memory"])
def test_keras_hub_decoder(hub, arguments, has_memory):
    ours, theirs = ka.DecoderLayer(F, H, **arguments), hub.TransformerDecoder(F, H, **arguments)
    inputs = [draw(B, T, M), draw(B, S, MEMORY_WIDTH)][: 1 + has_memory]
    ours(*inputs), theirs(*inputs)
    calls = [
        {},
        {"decoder_padding_mask": padding(T)},
        {"decoder_attention_mask": seen_pairs(B, T, T)},
        {"use_causal_mask": False},
        {"use_causal_mask": False, "decoder_attention_mask": seen_pairs(B, T, T), "decoder_padding_mask": padding(T)},
    ]
    calls[4]["decoder_attention_mask"] = np.tril(np.ones((B, T, T), bool))
    if has_memory:
        source = {"encoder_padding_mask": padding(S)}
        calls += [source, {"encoder_attention_mask": seen_pairs(B, T, S), **calls[1]}, {**source, **calls[1]}]
    for _ in exchange(ours, theirs):
        for options in calls:
            assert_close(ours(*inputs, **options), theirs(*inputs, **options))


def test_keras_hub_signatures(hub):
    own = {"self_attention_cache_update_index", "cross_attention_cache_update_index"}
    for ours, theirs in ((ka.EncoderLayer, hub.TransformerEncoder), (ka.DecoderLayer, hub.TransformerDecoder)):
        expected = [name for name in parameters(theirs.call) if name not in own]
        assert parameters(ours.call)[: len(expected)] == expected
        expected = parameters(theirs.__init__)
        assert parameters(ours.__init__)[: len(expected)] == expected
        defaults = {name: each.default for name, each in inspect.signature(theirs.__init__).parameters.items()}
        found = inspect.signature(ours.__init__).parameters
        # Ours start from `ResidualBranchInitializer`.
        assert (defaults.pop("kernel_initializer"), found["kernel_initializer"].default) == ("glorot_uniform", None)
        expected.remove("kernel_initializer")
        assert {name: found[name].default for name in expected} == {name: defaults[name] for name in expected}


@pytest.mark.parametrize("max_wavelength", [10000, 37])
@pytest.mark.parametrize("start", [0, 11])
def test_keras_hub_rotary_embedding(hub, max_wavelength, start):
    theirs = hub.RotaryEmbedding(max_wavelength=max_wavelength)
    x = draw(B, T, H, EVEN)
    turned = ka.ops.rotate(x.transpose(0, 2, 1, 3), np.arange(T) + start, max_wavelength)
    assert_close(numpy(turned).transpose(0, 2, 1, 3), theirs(x, start_index=start))
    positions = np.random.randint(0, 50, (B, T))
    turned = ka.ops.rotate(x.transpose(0, 2, 1, 3), positions, max_wavelength)
    assert_close(numpy(turned).transpose(0, 2, 1, 3), theirs(x, positions=positions))


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_keras_hub_alibi_bias(hub, heads):
    """Its bias differs from ours by a constant in each row of keys up to the query, which a softmax does not see."""
    scores = draw(B, heads, S, S)
    position = ka.AlibiBias()
    position.build((None, heads, None, D))
    ours, causal = position.bias(np.arange(S), np.arange(S)), np.tril(np.ones((S, S), bool))
    difference = numpy(hub.AlibiBias()(scores)) - scores - numpy(ours)
    for row in range(S):
        assert np.ptp(difference[:, :, row, : row + 1], axis=-1).max() < 1e-5
    assert_close(
        ka.ops.masked_softmax(scores + numpy(ours), causal),
        ka.ops.masked_softmax(numpy(hub.AlibiBias()(scores)), causal),
    )


@pytest.mark.parametrize("start", [0, 7])
def test_keras_hub_sine_position_encoding(hub, start):
    """Theirs returns only the position vectors; ours scales the embeddings and adds them, so that masks flow on."""
    x = draw(B, T, M)
    for max_wavelength in (10000, 37):
        theirs = hub.SinePositionEncoding(max_wavelength=max_wavelength)(x, start_index=start)
        for scale in (False, True):
            ours = ka.PositionalEncoding(float(max_wavelength), scale=scale)(x, start_index=start)
            assert_close(ours, x * (M**0.5 if scale else 1) + numpy(theirs), atol=1e-4)


# torch.


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def torch_attention_weights(attention, heads):
    """Kernels and biases of a torch attention in the order of ours: query, key, value, output."""
    state = {name: each.detach().numpy() for name, each in attention.state_dict().items()}
    if "in_proj_weight" in state:
        matrices = np.split(state["in_proj_weight"], 3)
    else:
        matrices = [state[f"{name}_proj_weight"] for name in "qkv"]
    width = matrices[0].shape[0]
    found = []
    biases = np.split(state["in_proj_bias"], 3) if "in_proj_bias" in state else [None] * 3
    for matrix, bias in zip(matrices, biases, strict=True):
        found.append(matrix.T.reshape(-1, heads, width // heads))
        found += [] if bias is None else [bias.reshape(heads, width // heads)]
    found.append(state["out_proj.weight"].T.reshape(heads, width // heads, width))
    return [*found, state["out_proj.bias"]] if "out_proj.bias" in state else found


def torch_norm_weights(norm):
    return [norm.weight.detach().numpy(), norm.bias.detach().numpy()]


def torch_dense_weights(*layers):
    return [each for layer in layers for each in (layer.weight.detach().numpy().T, layer.bias.detach().numpy())]


def randomize_torch(torch, module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(draw(*parameter.shape, scale=0.3)))
    return module.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 31, "vdim": MEMORY_WIDTH}], ids=["one_width", "three_widths"])
def test_torch_attention(torch, bias, sizes):
    theirs = torch.nn.MultiheadAttention(M, H, bias=bias, batch_first=True, **sizes)
    randomize_torch(torch, theirs)
    ours = ka.MultiHeadAttention(H, D, use_bias=bias)
    query, key, value = draw(B, T, M), draw(B, S, sizes.get("kdim", M)), draw(B, S, sizes.get("vdim", M))
    ours(query, value, key)
    ours.set_weights(torch_attention_weights(theirs, H))
    pairs, real = seen_pairs(T, S), padding(S)
    for options, their_options in (
        ({}, {}),
        ({"value_mask": real}, {"key_padding_mask": torch.from_numpy(~real)}),
        ({"attention_mask": pairs[None]}, {"attn_mask": torch.from_numpy(~pairs)}),
        ({"attention_bias": draw(T, S)}, {}),
    ):
        if "attention_bias" in options:
            their_options = {"attn_mask": torch.from_numpy(options["attention_bias"])}
        found = ours(query, value, key, return_attention_scores=True, **options)
        tensors = map(torch.from_numpy, (query, key, value))
        expected = theirs(*tensors, average_attn_weights=False, **their_options)
        assert_close(found, tuple(each.detach().numpy() for each in expected))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("mask", ["none", "causal", "pairs", "bias"])
def test_torch_scaled_dot_product_attention(torch, groups, mask):
    arrays = draw(B, 6, T, D), draw(B, groups, S, D), draw(B, groups, S, 19)
    pairs, bias = seen_pairs(B, 1, T, S), draw(1, 6, T, S)
    ours = {"causal": {"mask": np.tril(np.ones((T, S), bool))}, "pairs": {"mask": pairs}, "bias": {"bias": bias}}
    theirs = {
        "causal": {"is_causal": True},
        "pairs": {"attn_mask": torch.from_numpy(pairs)},
        "bias": {"attn_mask": torch.from_numpy(bias)},
    }
    found, _ = ka.ops.dot_product_attention(*arrays, **ours.get(mask, {}))
    function = torch.nn.functional.scaled_dot_product_attention
    expected = function(*map(torch.from_numpy, arrays), enable_gqa=True, **theirs.get(mask, {}))
    assert_close(found, expected.numpy())


def assert_real_close(found, expected, length):
    for b in range(B):
        assert_close(found[b, : LENGTHS[length][b]], expected[b, : LENGTHS[length][b]])


@pytest.mark.parametrize("normalize_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torch_encoder_layer(torch, normalize_first, activation):
    theirs = torch.nn.TransformerEncoderLayer(
        M, H, F, dropout=0.0, activation=activation, layer_norm_eps=1e-3, batch_first=True, norm_first=normalize_first
    )
    randomize_torch(torch, theirs)
    ours = ka.EncoderLayer(F, H, activation=activation, layer_norm_epsilon=1e-3, normalize_first=normalize_first)
    x, real, pairs = draw(B, T, M), padding(T), seen_pairs(T, T)
    ours(x)
    ours.set_weights(
        [
            *torch_attention_weights(theirs.self_attn, H),
            *torch_norm_weights(theirs.norm1),
            *torch_norm_weights(theirs.norm2),
            *torch_dense_weights(theirs.linear1, theirs.linear2),
        ]
    )
    tensor = torch.from_numpy(x)
    assert_close(ours(x), theirs(tensor).detach().numpy())
    expected = theirs(tensor, src_key_padding_mask=torch.from_numpy(~real)).detach().numpy()
    assert_real_close(ours(x, padding_mask=real), expected, T)
    expected = theirs(tensor, src_mask=torch.from_numpy(~pairs)).detach().numpy()
    assert_close(ours(x, attention_mask=pairs[None]), expected)


@pytest.mark.parametrize("normalize_first", [False, True], ids=["post_norm", "pre_norm"])
def test_torch_decoder_layer(torch, normalize_first):
    theirs = torch.nn.TransformerDecoderLayer(M, H, F, dropout=0.0, batch_first=True, norm_first=normalize_first)
    randomize_torch(torch, theirs)
    ours = ka.DecoderLayer(F, H, normalize_first=normalize_first)
    x, memory, real, source = draw(B, T, M), draw(B, S, M), padding(T), padding(S)
    ours(x, memory)
    ours.set_weights(
        [
            *torch_attention_weights(theirs.self_attn, H),
            *torch_norm_weights(theirs.norm1),
            *torch_attention_weights(theirs.multihead_attn, H),
            *torch_norm_weights(theirs.norm2),
            *torch_dense_weights(theirs.linear1, theirs.linear2),
            *torch_norm_weights(theirs.norm3),
        ]
    )
    later = torch.from_numpy(np.triu(np.ones((T, T), bool), 1))
    tensors = [torch.from_numpy(each) for each in (x, memory)]
    assert_close(ours(x, memory), theirs(*tensors, tgt_mask=later).detach().numpy())
    assert_close(ours(x, memory, use_causal_mask=False), theirs(*tensors).detach().numpy())
    expected = theirs(
        *tensors,
        tgt_mask=later,
        tgt_key_padding_mask=torch.from_numpy(~real),
        memory_key_padding_mask=torch.from_numpy(~source),
    )
    found = ours(x, memory, decoder_padding_mask=real, encoder_padding_mask=source)
    assert_real_close(found, expected.detach().numpy(), T)
