"""Conversion of a `Transformer` for CTranslate2.

Shapes: M model width, H heads, D head width, V vocabulary. CTranslate2's matrices are (out, in), Keras' (in, out).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_attention.conversion.folder import TOKENIZER_FILE, atomic_folder
from keras_attention.conversion.model import check_installed, check_tokenizer, float32_model
from keras_attention.conversion.parity import RandomPairs, assert_close, assert_near, full_logits, pad_rows
from keras_attention.layers.feed_forward import GATED
from keras_attention.layers.normalization import LayerNorm
from keras_attention.models import Transformer
from keras_attention.ops.positions import sinusoids
from keras_attention.text import BOS_ID, EOS_ID, UNK_ID

QUANTIZATIONS = (None, "int8")
# CTranslate2 reads position vectors from a table, and raises an error for longer texts; the number of sinusoids in it.
POSITIONS = 2048
# From Keras' names to those of ctranslate2.specs.Activation.
ACTIVATIONS = {
    "relu": "RELU", "gelu": "GELU", "silu": "SWISH", "swish": "SWISH", "tanh": "Tanh", "sigmoid": "Sigmoid",
}  # fmt: skip
CONVERTED_POSITIONS = ("sinusoid", "learned", "rotary")
GREEDY_LENGTH = 13  # tokens of the translations in the check


def to_ctranslate2(
    model: Transformer, tokenizer: Any, folder: str | os.PathLike, quantization: str | None = None
) -> Path:
    """Writes a folder that `ctranslate2.Translator` loads, with the tokenizer.

    Its sources are lists of the tokenizer's pieces without begin and end; CTranslate2 adds the end. The converted model
    is checked before the folder is renamed to `folder`: log probabilities of random targets and greedy translations of
    random sources must be those of `model`; in int8, the log probabilities must be close.

    Args:
        model: The `Transformer`.
        tokenizer: The `SubwordTokenizer` that the model was trained with.
        folder: The output folder; it must not exist, or be empty.
        quantization: None for float32 weights, or "int8".

    Returns:
        The folder.

    Raises:
        TypeError: If `model` is not a `Transformer`.
        ValueError: If `folder` exists, the format does not support the model, the check fails, or ctranslate2 is not
            installed. Nothing is written then.

    Example:
        >>> import ctranslate2
        >>> translator = getfixture("translator")
        >>> folder = to_ctranslate2(translator.model, translator.tokenizer, "ctranslate2/en-de")
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.bin', 'shared_vocabulary.json', 'tokenizer.model']
        >>> converted = ctranslate2.Translator(str(folder))
        >>> pieces = translator.tokenizer.pieces(translator.tokenizer.encode(["abl ab"])[0])
        >>> len(converted.translate_batch([pieces], beam_size=4)[0].hypotheses)
        1

    Source: https://opennmt.net/CTranslate2/
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"`quantization` must be None or 'int8'. Received: quantization={quantization!r}")
    check_installed("ctranslate2")
    model = float32_model(model)
    check_tokenizer(model, tokenizer)
    with atomic_folder(folder) as temporary:
        spec = specification(model, tokenizer.pieces(range(tokenizer.vocabulary_size)))
        spec.validate()
        spec.optimize(quantization=quantization)
        spec.save(str(temporary))
        tokenizer.save(temporary / TOKENIZER_FILE)
        check(model, tokenizer, temporary, exact=quantization is None)
    return Path(folder)


def specification(model: Transformer, pieces: list[str]) -> Any:
    """Returns the `ctranslate2.specs.TransformerSpec` of a float32 model and the pieces of its vocabulary."""
    from ctranslate2.specs import TransformerSpec, common_spec
    from ctranslate2.specs.transformer_spec import TransformerDecoderSpec, TransformerEncoderSpec

    config = model.config
    activation = GATED.get(config.activation, config.activation)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`model` must have an activation of CTranslate2: {', '.join([*ACTIVATIONS, *GATED])}. "
            f"Received: model.config.activation={config.activation!r}"
        )
    attention = model.network.encoder.layers[0].self_attention
    if config.positions not in CONVERTED_POSITIONS:
        raise ValueError(
            f"CTranslate2 has no such positions: convert to ONNX or LiteRT, or train a model with one of "
            f"{', '.join(map(repr, CONVERTED_POSITIONS))}. Received: model.config.positions={config.positions!r}"
        )
    options = {
        "num_heads": config.num_heads,
        "pre_norm": config.normalize_first,
        "activation": common_spec.Activation[ACTIVATIONS[activation]],
        "ffn_glu": config.activation in GATED,
        "rms_norm": config.normalization == "rms",
        "head_dim": _head_dim(attention),
        "num_heads_kv": None if attention.num_kv_heads == config.num_heads else attention.num_kv_heads,
    }
    if config.positions == "rotary":
        options |= {"rotary_dim": attention.key_dense.kernel.shape[-1], "rotary_interleave": False}
    spec = TransformerSpec(
        TransformerEncoderSpec(config.num_layers, **options), TransformerDecoderSpec(config.decoder_depth, **options)
    )
    embeddings = _array(model.get_layer("embedding").embeddings)  # (V, M)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = embeddings
    spec.decoder.projection.weight = embeddings
    positions = sinusoids(ops.arange(POSITIONS), config.hidden_dim)  # (P, M)
    if config.positions == "learned":
        positions = model.network.positions.embeddings
    for side, layers in ((spec.encoder, model.get_layer("encoder")), (spec.decoder, model.get_layer("decoder"))):
        side.scale_embeddings = True
        if config.positions != "rotary":
            side.position_encodings.encodings = _array(positions)
        for layer_spec, layer in zip(side.layer, layers.layers, strict=True):
            _fill_layer(layer_spec, layer)
        if config.normalize_first:
            _fill_norm(side.layer_norm, layers.final_norm)
    spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = (
        pieces[special] for special in (UNK_ID, BOS_ID, EOS_ID)
    )
    spec.config.decoder_start_token = pieces[BOS_ID]
    spec.config.add_source_eos = True
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    return spec


def check(model: Transformer, tokenizer: Any, folder: Path, exact: bool) -> None:
    """Compares the converted model in a folder with the float32 model; `exact` for float32 weights."""
    import ctranslate2

    pairs = RandomPairs.of(model)
    sources, targets = ([tokenizer.pieces(row) for row in rows] for rows in (pairs.sources, pairs.targets))
    converted = ctranslate2.Translator(str(folder), device="cpu", inter_threads=1)
    scored = [score.log_probs for score in converted.score_batch(sources, targets)]
    actual, expected = np.concatenate(scored), np.concatenate(pairs.log_probs)
    if not exact:
        assert_near(actual, expected, "log probabilities of random targets")
        return
    assert_close(actual, expected, "log probabilities of random targets")
    ids = {piece: id_ for id_, piece in enumerate(tokenizer.pieces(range(tokenizer.vocabulary_size)))}
    greedy = converted.translate_batch(
        sources, beam_size=1, max_decoding_length=GREEDY_LENGTH, min_decoding_length=0, return_end_token=True
    )
    _check_greedy(model, pairs.source_ids, [[ids[piece] for piece in each.hypotheses[0]] for each in greedy])


def _check_greedy(model: Transformer, source_ids: np.ndarray, rows: list[list[int]]) -> None:
    """Checks that each token has the highest of the model's logits after the tokens before it."""
    target_ids = pad_rows([[BOS_ID, *row[:-1]] for row in rows])
    logits = full_logits(model, source_ids, target_ids)
    for row, steps in zip(rows, logits, strict=True):
        chosen = steps[np.arange(len(row)), row]
        assert_close(chosen, steps[: len(row)].max(-1), "logits of the tokens of a greedy translation")


def _fill_layer(spec: Any, layer: Any) -> None:
    """Copies the weights of an encoder or decoder layer."""
    _fill_attention(spec.self_attention, layer.self_attention, ["query_dense", "key_dense", "value_dense"])
    _fill_norm(spec.self_attention.layer_norm, layer.self_attention_norm)
    if hasattr(spec, "attention"):
        _fill_attention(spec.attention, layer.cross_attention, ["query_dense"], ["key_dense", "value_dense"])
        _fill_norm(spec.attention.layer_norm, layer.cross_attention_norm)
    feed_forward = layer.feed_forward
    _fill_linear(spec.ffn.linear_0, (feed_forward.intermediate_dense.kernel, feed_forward.intermediate_dense.bias))
    _fill_linear(spec.ffn.linear_1, (feed_forward.output_dense.kernel, feed_forward.output_dense.bias))
    if feed_forward.gate_dense is not None:
        _fill_linear(spec.ffn.linear_0_noact, (feed_forward.gate_dense.kernel, feed_forward.gate_dense.bias))
    _fill_norm(spec.ffn.layer_norm, layer.feed_forward_norm)


def _fill_attention(spec: Any, attention: Any, *inputs: list[str]) -> None:
    """Copies the weights of an attention layer, whose projections of the same input are stacked."""
    head_dim = _head_dim(attention)
    spec.queries_scale = np.float32(attention.key_dense.kernel.shape[-1] ** -0.5)
    for linear, names in zip(spec.linear, inputs, strict=False):
        _fill_linear(linear, *(_head_matrix(getattr(attention, name), head_dim) for name in names))
    kernel = _padded(attention.output_dense.kernel, head_dim, axis=1)  # (H, D, M)
    _fill_linear(spec.linear[-1], (kernel.reshape(-1, kernel.shape[-1]), attention.output_dense.bias))


def _head_dim(attention: Any) -> int:
    """The width of the heads of a built attention layer: CTranslate2 has one, so narrower keys or values are padded."""
    return max(dense.kernel.shape[-1] for dense in (attention.key_dense, attention.value_dense))


def _head_matrix(projection: Any, head_dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the kernel (M, H·D) and the bias (H·D,) of a projection to heads, padded to a width."""
    kernel = _padded(projection.kernel, head_dim)
    bias = None if projection.bias is None else _padded(projection.bias, head_dim).reshape(-1)
    return kernel.reshape(len(kernel), -1), bias


def _padded(values: Any, size: int, axis: int = -1) -> np.ndarray:
    array = _array(values)
    pad = np.zeros((array.ndim, 2), int)
    pad[axis, 1] = size - array.shape[axis]
    return np.pad(array, pad)


def _fill_linear(spec: Any, *matrices: tuple[Any, Any]) -> None:
    """Copies kernels (in, out) of the same input and their biases or None, stacked along the outputs."""
    kernels, biases = zip(*matrices, strict=True)
    spec.weight = np.ascontiguousarray(np.concatenate([_array(kernel).T for kernel in kernels]))  # (out, in)
    if biases[0] is not None:
        spec.bias = np.concatenate([_array(bias) for bias in biases])


def _fill_norm(spec: Any, norm: Any) -> None:
    if isinstance(norm, LayerNorm):
        spec.gamma, spec.beta = _array(norm.gamma), _array(norm.beta)
    else:
        spec.gamma = _array(norm.scale)


def _array(values: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(values), "float32")
