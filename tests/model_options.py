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
}
# Those that a language model has too.
CAUSAL_OPTIONS = {name: options for name, options in OPTIONS.items() if "num_decoder_layers" not in options}


def logits_by_the_formulas(model: Any, target: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
    """The logits (B, T, V) of a model for target ids, and source ids if it has an encoder, in float64."""
    weights = {weight.path: numpy(weight).astype("float64") for weight in model.weights}
    config = model.config
    options = {"epsilon": config.layer_norm_epsilon, "normalize_first": config.normalize_first}

    def embed(ids: np.ndarray) -> np.ndarray:
        x = weights["embedding/embeddings"][ids]
        if config.positions == "learned":
            return oracle.learned_positions(oracle.part(weights, "positions"), x, range(ids.shape[1]))
        return x * np.sqrt(config.hidden_dim) + oracle.sinusoids(range(ids.shape[1]), config.hidden_dim)

    def finish(side: str, x: np.ndarray) -> np.ndarray:
        norm = oracle.part(weights, f"{side}/final_norm")
        return oracle.layer_norm(norm, x, options["epsilon"]) if norm else x

    memory, mask, decoder_layers = None, None, config.num_layers
    if source is not None:
        memory, mask = embed(source), (source != 0)[:, None, None]
        for i in range(config.num_layers):
            memory = oracle.encoder_layer(oracle.part(weights, f"encoder/layer_{i}"), memory, mask, **options)
        memory = finish("encoder", memory)
        decoder_layers = config.num_decoder_layers or config.num_layers
    x = embed(target)
    for i in range(decoder_layers):
        x = oracle.decoder_layer(oracle.part(weights, f"decoder/layer_{i}"), x, memory, cross_mask=mask, **options)
    return finish("decoder", x) @ weights["embedding/embeddings"].T
