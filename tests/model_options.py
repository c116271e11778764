"""The options of a `TransformerConfig` that change its layers, and the formulas of a model with them."""

from typing import Any

import numpy as np
import oracle
from backends import numpy

# By name: what differs from a config with two layers and three heads.
OPTIONS: dict[str, dict[str, Any]] = {
    "shallow decoder": {"num_layers": 3, "num_decoder_layers": 1},
    "deep decoder": {"num_layers": 1, "num_decoder_layers": 2},
    "any key width": {"key_dim": 7, "num_heads": 5},
    "narrow keys": {"key_dim": 3, "value_dim": 7},
    "wide keys": {"key_dim": 7, "value_dim": 3},
    "learned positions": {"positions": "learned", "max_length": 29},
    "grouped heads": {"num_heads": 6, "num_kv_heads": 2, "key_dim": 5},
    "rms": {"normalization": "rms"},
    "rotary": {"positions": "rotary", "key_dim": 6},
    "alibi": {"positions": "alibi"},
    "relative": {"positions": "relative"},
    "together": {
        "num_heads": 6,
        "num_kv_heads": 2,
        "key_dim": 4,
        "value_dim": 7,
        "positions": "rotary",
        "normalization": "rms",
        "activation": "swiglu",
    },
}
# The positions of self-attention, for an encoder and for a decoder.
POSITIONS = {
    "rotary": (oracle.Rotary(), oracle.Rotary()),
    "alibi": (oracle.Alibi(), oracle.Alibi()),
    "relative": (oracle.Relative(), oracle.Relative(bidirectional=False)),
}
# Those that a language model has too.
CAUSAL_OPTIONS = {name: options for name, options in OPTIONS.items() if "num_decoder_layers" not in options}


def logits_by_the_formulas(model: Any, target: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
    """The logits (B, T, V) of a model for target ids, and source ids if it has an encoder, in float64."""
    weights = {weight.path: numpy(weight).astype("float64") for weight in model.weights}
    config = model.config
    options = {
        "epsilon": config.layer_norm_epsilon,
        "normalize_first": config.normalize_first,
        "activation": config.activation,
    }
    in_encoder, in_decoder = POSITIONS.get(config.positions, (None, None))

    def embed(ids: np.ndarray) -> np.ndarray:
        x = weights["embedding/embeddings"][ids]
        if config.positions == "learned":
            return oracle.learned_positions(oracle.part(weights, "positions"), x, range(ids.shape[1]))
        x = x * np.sqrt(config.hidden_dim)
        return x if in_encoder else x + oracle.sinusoids(range(ids.shape[1]), config.hidden_dim)

    def finish(side: str, x: np.ndarray) -> np.ndarray:
        norm = oracle.part(weights, f"{side}/final_norm")
        return oracle.layer_norm(norm, x, options["epsilon"]) if norm else x

    memory, mask, decoder_layers = None, None, config.num_layers
    if source is not None:
        memory, mask = embed(source), (source != 0)[:, None, None]
        for i in range(config.num_layers):
            layer = oracle.part(weights, f"encoder/layer_{i}")
            memory = oracle.encoder_layer(layer, memory, mask, position=in_encoder, **options)
        memory = finish("encoder", memory)
        decoder_layers = config.num_decoder_layers or config.num_layers
    x = embed(target)
    for i in range(decoder_layers):
        layer = oracle.part(weights, f"decoder/layer_{i}")
        x = oracle.decoder_layer(layer, x, memory, cross_mask=mask, position=in_decoder, **options)
    return finish("decoder", x) @ weights["embedding/embeddings"].T
