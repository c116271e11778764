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
from keras_attention.models import Transformer
from keras_attention.ops.positions import sinusoids
from keras_attention.text import BOS_ID, EOS_ID, UNK_ID

QUANTIZATIONS = (None, "int8")
# CTranslate2 reads position vectors from a table, and raises an error for longer texts.
POSITIONS = 2048
# From Keras' names to those of ctranslate2.specs.Activation.
ACTIVATIONS = {
    "relu": "RELU", "gelu": "GELU", "silu": "SWISH", "swish": "SWISH", "tanh": "Tanh", "sigmoid": "Sigmoid",
}  # fmt: skip
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

    config = model.config
    activation = GATED.get(config.activation, config.activation)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`model` must have an activation of CTranslate2: {', '.join([*ACTIVATIONS, *GATED])}. "
            f"Received: model.config.activation={config.activation!r}"
        )
    spec = TransformerSpec.from_config(
        (config.num_layers, config.decoder_depth),
        config.num_heads,
        pre_norm=config.normalize_first,
        activation=common_spec.Activation[ACTIVATIONS[activation]],
        ffn_glu=config.activation in GATED,
    )
    embeddings = _array(model.get_layer("embedding").embeddings)  # (V, M)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = embeddings
    spec.decoder.projection.weight = embeddings
    for side, layers in ((spec.encoder, model.get_layer("encoder")), (spec.decoder, model.get_layer("decoder"))):
        side.scale_embeddings = True
        side.position_encodings.encodings = _array(sinusoids(ops.arange(POSITIONS), config.hidden_dim))
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
    attention = layer.self_attention
    _fill_linear(spec.self_attention.linear[0], attention.query_dense, attention.key_dense, attention.value_dense)
    _fill_linear(spec.self_attention.linear[1], attention.output_dense, input_axes=2)
    _fill_norm(spec.self_attention.layer_norm, layer.self_attention_norm)
    if hasattr(spec, "attention"):
        attention = layer.cross_attention
        _fill_linear(spec.attention.linear[0], attention.query_dense)
        _fill_linear(spec.attention.linear[1], attention.key_dense, attention.value_dense)
        _fill_linear(spec.attention.linear[2], attention.output_dense, input_axes=2)
        _fill_norm(spec.attention.layer_norm, layer.cross_attention_norm)
    _fill_linear(spec.ffn.linear_0, layer.feed_forward.intermediate_dense)
    _fill_linear(spec.ffn.linear_1, layer.feed_forward.output_dense)
    if layer.feed_forward.gate_dense is not None:
        _fill_linear(spec.ffn.linear_0_noact, layer.feed_forward.gate_dense)
    _fill_norm(spec.ffn.layer_norm, layer.feed_forward_norm)


def _fill_linear(spec: Any, *projections: Any, input_axes: int = 1) -> None:
    """Copies the weights of projections of the same input, stacked along the outputs."""
    kernels = []
    for projection in projections:
        kernel = _array(projection.kernel)  # (M, H, D), (H, D, M) or (in, out)
        kernels.append(kernel.reshape(int(np.prod(kernel.shape[:input_axes])), -1).T)  # (out, in)
    spec.weight = np.ascontiguousarray(np.concatenate(kernels))
    if projections[0].bias is not None:
        spec.bias = np.concatenate([_array(projection.bias).reshape(-1) for projection in projections])


def _fill_norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = _array(norm.gamma), _array(norm.beta)


def _array(values: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(values), "float32")
