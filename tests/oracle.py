"""The paper's formulas in NumPy and float64, to compare the library with.

Written from the formulas, one sentence, one head and one position at a time, so that an axis mixed up in
the library is not mixed up here too. Weights come as dictionaries by path, as `weights_of` gives them.

Shapes: B batch, T query/target length, S key/source length, M model width, H heads, D head width, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]


def weights_of(layer: Any) -> dict[str, np.ndarray]:
    """The weights of a layer in float64, by their path within it."""
    return {path_within(layer, weight): np.asarray(weight, "float64") for weight in layer.weights}


def path_within(layer: Any, weight: Any) -> str:
    """Where a weight stands in a layer, such as `self_attention/query/kernel`."""
    _, separator, path = f"/{weight.path}".partition(f"/{layer.name}/")
    assert separator, f"{weight.path} does not name its layer, {layer.name}"
    return path


def part(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """The weights of one sub-layer."""
    return {path.removeprefix(f"{name}/"): value for path, value in weights.items() if path.startswith(f"{name}/")}


def softmax(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax of one row among the allowed entries; zeros where none is."""
    weights = np.zeros_like(logits)
    if allowed.any():
        exponentials = np.exp(logits[allowed] - logits[allowed].max())
        weights[allowed] = exponentials / exponentials.sum()
    return weights


def attention(query: Any, key: Any, value: Any, mask: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """softmax(Q Kᵀ / √D) V for one head of one sentence: (T, D), (S, D), (S, E) and a mask (T, S)."""
    length, keys = len(query), len(key)
    mask = np.ones((length, keys), bool) if mask is None else np.asarray(mask, bool)
    logits = np.array([[np.dot(q, k) / math.sqrt(len(q)) for k in key] for q in query]).reshape(length, keys)
    weights = np.array([softmax(row, allowed) for row, allowed in zip(logits, mask, strict=True)])
    output = np.zeros((length, np.shape(value)[1]))
    for t in range(length):
        for s in range(keys):
            if mask[t, s]:
                output[t] += weights[t, s] * value[s]
    return output, weights


def multi_head_attention(
    weights: Weights, query: Any, value: Any, key: Any = None, mask: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Concat(head_1, …, head_H) W_O for (B, T, M) and (B, S, M); the mask broadcasts to (B, H, T, S)."""
    key = value if key is None else key
    kernels = {name: weights[f"{name}/kernel"] for name in ("query", "key", "value", "attention_output")}
    biases = {name: weights.get(f"{name}/bias", np.zeros(kernels[name].shape[1:])) for name in kernels}
    biases["attention_output"] = weights.get("attention_output/bias", np.zeros(kernels["attention_output"].shape[-1]))
    heads = kernels["query"].shape[1]
    shape = (len(query), heads, query.shape[1], value.shape[1])
    mask = np.broadcast_to(True if mask is None else np.asarray(mask, bool), shape)
    outputs = np.tile(biases["attention_output"], (*query.shape[:2], 1))
    all_weights = np.zeros(shape)
    for b in range(len(query)):
        for h in range(heads):
            inputs = {"query": query[b], "key": key[b], "value": value[b]}
            projected = {name: x @ kernels[name][:, h] + biases[name][h] for name, x in inputs.items()}
            context, all_weights[b, h] = attention(*projected.values(), mask[b, h])
            outputs[b] += context @ kernels["attention_output"][h]
    return outputs, all_weights


def layer_norm(weights: Weights, x: np.ndarray, epsilon: float) -> np.ndarray:
    """(x − mean) / √(variance + ε) · γ + β over the width."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weights["gamma"] + weights["beta"]


def feed_forward(weights: Weights, x: np.ndarray, activation: Any = None) -> np.ndarray:
    """max(0, x W_1 + b_1) W_2 + b_2."""
    inner = x @ weights["intermediate/kernel"] + weights["intermediate/bias"]
    inner = np.maximum(inner, 0) if activation is None else activation(inner)
    return inner @ weights["output/kernel"] + weights["output/bias"]


def sub_layer(norm: Weights, x: np.ndarray, apply: Any, epsilon: float, normalize_first: bool) -> np.ndarray:
    """LayerNorm(x + Sublayer(x)), or x + Sublayer(LayerNorm(x))."""
    if normalize_first:
        return x + apply(layer_norm(norm, x, epsilon))
    return layer_norm(norm, x + apply(x), epsilon)


def encoder_layer(
    weights: Weights, x: np.ndarray, mask: Any = None, epsilon: float = 1e-5, normalize_first: bool = False
) -> np.ndarray:
    """Self-attention, then feed-forward; the mask broadcasts to (B, H, T, T)."""
    attend = part(weights, "self_attention")
    x = sub_layer(
        part(weights, "self_attention_norm"),
        x,
        lambda y: multi_head_attention(attend, y, y, mask=mask)[0],
        epsilon,
        normalize_first,
    )
    inner = part(weights, "feed_forward")
    norm = part(weights, "feed_forward_norm")
    return sub_layer(norm, x, lambda y: feed_forward(inner, y), epsilon, normalize_first)


def decoder_layer(
    weights: Weights,
    x: np.ndarray,
    memory: np.ndarray | None,
    self_mask: Any = None,
    cross_mask: Any = None,
    epsilon: float = 1e-5,
    normalize_first: bool = False,
) -> np.ndarray:
    """Causal self-attention, attention to the memory unless it is None, feed-forward."""
    length = x.shape[1]
    causal = np.array([[s <= t for s in range(length)] for t in range(length)])
    mask = causal if self_mask is None else causal & self_mask
    attend, cross = part(weights, "self_attention"), part(weights, "cross_attention")
    x = sub_layer(
        part(weights, "self_attention_norm"),
        x,
        lambda y: multi_head_attention(attend, y, y, mask=mask)[0],
        epsilon,
        normalize_first,
    )
    if memory is not None:
        x = sub_layer(
            part(weights, "cross_attention_norm"),
            x,
            lambda y: multi_head_attention(cross, y, memory, mask=cross_mask)[0],
            epsilon,
            normalize_first,
        )
    inner = part(weights, "feed_forward")
    norm = part(weights, "feed_forward_norm")
    return sub_layer(norm, x, lambda y: feed_forward(inner, y), epsilon, normalize_first)


def sinusoids(positions: Any, dim: int, max_wavelength: float = 10000.0) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / 10000^(2i/M)), PE(pos, 2i+1) = cos of the same."""
    table = np.zeros((len(positions), dim))
    for row, position in enumerate(positions):
        for column in range(dim):
            angle = position / max_wavelength ** (2 * (column // 2) / dim)
            table[row, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


def log_softmax(row: np.ndarray) -> np.ndarray:
    """log(exp z_v / Σ exp z) of one row."""
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


def token_losses(labels: np.ndarray, logits: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
    """−Σ_v q(v) log p(v) of each token, where q is (1 − ε) at the label plus ε/V everywhere."""
    losses = np.zeros(labels.shape)
    vocabulary_size = logits.shape[-1]
    for place in np.ndindex(*labels.shape):
        target = np.full(vocabulary_size, label_smoothing / vocabulary_size)
        target[labels[place]] += 1 - label_smoothing
        losses[place] = -(target * log_softmax(logits[place].astype("float64"))).sum()
    return losses


def smoothed_cross_entropy(
    labels: np.ndarray, logits: np.ndarray, label_smoothing: float = 0.0, sample_weight: Any = 1.0, ignore_id: int = 0
) -> float:
    """Σ w_t loss_t / n over the n tokens that are not padding, 0 where there is none."""
    real = labels != ignore_id
    losses = token_losses(labels, logits, label_smoothing) * np.broadcast_to(sample_weight, labels.shape)
    return losses[real].sum() / max(real.sum(), 1)


def numeric_gradient(function: Any, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function at x, in float64."""
    x = x.astype("float64")
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        upper, lower = x.copy(), x.copy()
        upper[place] += step
        lower[place] -= step
        gradient[place] = (function(upper) - function(lower)) / (2 * step)
    return gradient
