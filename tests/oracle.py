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
    """The path of a weight within a layer, such as `self_attention/query/kernel`."""
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


def attention(query: Any, key: Any, value: Any, mask: Any = None, bias: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """softmax(Q Kᵀ / √D + bias) V for one head of one sentence: (T, D), (S, D), (S, E), a mask and a bias (T, S)."""
    length, keys = len(query), len(key)
    mask = np.ones((length, keys), bool) if mask is None else np.asarray(mask, bool)
    logits = np.array([[np.dot(q, k) / math.sqrt(len(q)) for k in key] for q in query]).reshape(length, keys)
    weights = np.zeros((length, keys))
    output = np.zeros((length, np.shape(value)[1]))
    for t, (row, allowed) in enumerate(zip(logits + bias, mask, strict=True)):
        weights[t] = softmax(row, allowed)
        for s in range(keys):
            if mask[t, s]:
                output[t] += weights[t, s] * value[s]
    return output, weights


class Rotary:
    """Rotates each pair (x_i, x_{i+D/2}), read as a complex number, by exp(i p / λ^(2i/D))."""

    def __init__(self, max_wavelength: float = 10000.0):
        self.max_wavelength = max_wavelength

    def turn(self, vector: np.ndarray, position: int) -> np.ndarray:
        half = len(vector) // 2
        rotated = np.zeros(2 * half)
        for i in range(half):
            angle = position / self.max_wavelength ** (2 * i / len(vector))
            number = complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
            rotated[i], rotated[i + half] = number.real, number.imag
        return rotated

    def bias(self, weights: Weights, head: int, heads: int, query_position: int, key_position: int) -> float:
        return 0.0


class Unturned:
    """What the biases have in common."""

    def turn(self, vector: np.ndarray, position: int) -> np.ndarray:
        return vector


class Alibi(Unturned):
    """−m_h |i − j|."""

    def bias(self, weights: Weights, head: int, heads: int, query_position: int, key_position: int) -> float:
        return -alibi_slopes(heads)[head] * abs(query_position - key_position)


class Relative(Unturned):
    """b_h of the bucket of j − i."""

    def __init__(self, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True):
        self.sizes = num_buckets, max_distance, bidirectional

    def bias(self, weights: Weights, head: int, heads: int, query_position: int, key_position: int) -> float:
        return weights["position/embeddings"][relative_bucket(key_position - query_position, *self.sizes), head]


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), … for n heads; where n is no power of two, the first of the next lower power, then every
    other of the next higher."""
    exponent = math.log2(heads)
    if exponent == int(exponent):
        return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]
    lower = 2 ** int(exponent)
    return (alibi_slopes(lower) + alibi_slopes(2 * lower)[::2])[:heads]


def relative_bucket(distance: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """Half of a direction's buckets for distances of their own, half for ever longer stretches up to the maximum."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + math.floor(share * (num_buckets - exact) + 1e-9), num_buckets - 1)


def segment_positions(segment_ids: np.ndarray) -> np.ndarray:
    """Positions of one row, starting again where the number changes."""
    positions = []
    for t, segment in enumerate(segment_ids):
        positions.append(positions[-1] + 1 if t and segment == segment_ids[t - 1] else 0)
    return np.array(positions, int)


def visible(
    query_length: int,
    key_length: int,
    causal: bool = False,
    window: int | None = None,
    query_segments: Any = None,
    key_segments: Any = None,
    offset: int = 0,
) -> np.ndarray:
    """Which query of one row may see which key: (T, S); the position of the first query among the keys is `offset`."""
    mask = np.ones((query_length, key_length), bool)
    for t, s in np.ndindex(query_length, key_length):
        if causal and s > offset + t:
            mask[t, s] = False
        if window is not None and abs(offset + t - s) >= window:
            mask[t, s] = False
        if query_segments is not None and query_segments[t] != key_segments[s]:
            mask[t, s] = False
    return mask


def multi_head_attention(
    weights: Weights,
    query: Any,
    value: Any,
    key: Any = None,
    mask: Any = None,
    bias: Any = 0.0,
    position: Any = None,
    query_positions: Any = None,
    key_positions: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Concat(head_1, …, head_H) W_O for (B, T, M) and (B, S, M).

    Mask and bias broadcast to (B, H, T, S). Grouped heads, a gate and normalised queries and keys show in the
    weights. The position is one of the classes above, positions are (B, T) and (B, S), 0, 1, … by default.
    """
    key = value if key is None else key
    heads, groups = weights["query/kernel"].shape[1], weights["key/kernel"].shape[1]
    shape = (len(query), heads, query.shape[1], value.shape[1])
    mask = np.broadcast_to(True if mask is None else np.asarray(mask, bool), shape)
    bias = np.broadcast_to(np.asarray(bias, "float64"), shape)
    counted = [np.tile(np.arange(length), (len(query), 1)) for length in shape[2:]]
    query_positions = counted[0] if query_positions is None else query_positions
    key_positions = counted[1] if key_positions is None else key_positions
    output_kernel = weights["attention_output/kernel"]  # (H, E, …)
    output_bias = weights.get("attention_output/bias", np.zeros(output_kernel.shape[2:]))
    outputs = np.zeros((*query.shape[:2], *output_bias.shape)) + output_bias
    all_weights = np.zeros(shape)
    for b, h in np.ndindex(*shape[:2]):
        group = h // (heads // groups)
        queries = project(weights, "query", query[b], h)
        keys = project(weights, "key", key[b], group)
        added = bias[b, h].copy()
        if position is not None:
            queries = [position.turn(q, at) for q, at in zip(queries, query_positions[b], strict=True)]
            keys = [position.turn(k, at) for k, at in zip(keys, key_positions[b], strict=True)]
            for t, s in np.ndindex(*shape[2:]):
                added[t, s] += position.bias(weights, h, heads, query_positions[b][t], key_positions[b][s])
        values = project(weights, "value", value[b], group)
        context, all_weights[b, h] = attention(queries, keys, values, mask[b, h], added)
        if "gate/kernel" in weights:
            context = context * sigmoid(project(weights, "gate", query[b], h))
        outputs[b] += np.tensordot(context, output_kernel[h], 1)
    return outputs, all_weights


def project(weights: Weights, name: str, x: np.ndarray, head: int) -> np.ndarray:
    """x W + b of one head of one sentence, brought to unit root mean square where there is a scale for that."""
    projected = x @ weights[f"{name}/kernel"][:, head]
    if f"{name}/bias" in weights:
        projected = projected + weights[f"{name}/bias"][head]
    if f"{name}_norm/scale" in weights:
        projected = rms_norm(weights[f"{name}_norm/scale"], projected)
    return projected


def attention_over_axes(
    weights: Weights,
    query: np.ndarray,
    value: np.ndarray,
    axes: tuple[int, ...],
    value_mask: Any = None,
    pairs: Any = None,
) -> np.ndarray:
    """Attention for inputs (B, …, M) among the positions that differ only in the given axes.

    The value's mask has its axes but the width, a mask of pairs the attended axes of query and value.
    """
    outer = [axis for axis in range(query.ndim - 1) if axis not in axes]
    outputs = None
    for place in np.ndindex(*(query.shape[axis] for axis in outer)):
        where: list[Any] = [slice(None)] * (query.ndim - 1)
        for axis, index in zip(outer, place, strict=True):
            where[axis] = index
        chosen, among = query[tuple(where)], value[tuple(where)]
        rows, columns = (x.reshape(1, -1, x.shape[-1]) for x in (chosen, among))
        mask = np.ones((rows.shape[1], columns.shape[1]), bool)
        if value_mask is not None:
            mask &= value_mask[tuple(where)].reshape(1, -1)
        if pairs is not None:
            mask &= pairs.reshape(mask.shape)
        output = multi_head_attention(weights, rows, columns, mask=mask)[0]
        outputs = np.zeros((*query.shape[:-1], output.shape[-1])) if outputs is None else outputs
        outputs[tuple(where)] = output.reshape(*chosen.shape[:-1], -1)
    return outputs


def additive_attention(
    weights: Weights, query: np.ndarray, value: np.ndarray, key: Any = None, mask: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """softmax_j(v · tanh(W q_i + U k_j)) over the values; the mask broadcasts to (B, T, S)."""
    key = value if key is None else key
    shape = (len(query), query.shape[1], value.shape[1])
    mask = np.broadcast_to(True if mask is None else np.asarray(mask, bool), shape)
    outputs, all_weights = np.zeros((*shape[:2], value.shape[-1])), np.zeros(shape)
    for b, t in np.ndindex(*shape[:2]):
        logits = np.zeros(shape[2])
        for s in range(shape[2]):
            inner = np.tanh(query[b, t] @ weights["query/kernel"] + key[b, s] @ weights["key/kernel"])
            logits[s] = inner @ weights["score/kernel"][:, 0]
        all_weights[b, t] = softmax(logits, mask[b, t])
        for s in np.flatnonzero(mask[b, t]):
            outputs[b, t] += all_weights[b, t, s] * value[b, s]
    return outputs, all_weights


def layer_norm(weights: Weights, x: np.ndarray, epsilon: float) -> np.ndarray:
    """(x − mean) / √(variance + ε) · γ + β over the width; x / √(mean x² + ε) · γ where there is only a scale."""
    if "scale" in weights:
        return rms_norm(weights["scale"], x, epsilon)
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weights["gamma"] + weights["beta"]


def rms_norm(scale: np.ndarray, x: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """x / √(mean x² + ε) · γ over the width; ε as Keras has it."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp −x)."""
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function, as Keras' default has it: no approximation by tanh."""
    return x * (1 + np.vectorize(math.erf, otypes=["float64"])(x / math.sqrt(2))) / 2


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "tanh": np.tanh,
    "glu": sigmoid,
    "reglu": lambda x: np.maximum(x, 0),
    "geglu": gelu,
    "swiglu": lambda x: x * sigmoid(x),
}


def feed_forward(weights: Weights, x: np.ndarray, activation: Any = "relu") -> np.ndarray:
    """max(0, x W_1 + b_1) W_2 + b_2; (a(x W_1 + b_1) · (x V + c)) W_2 + b_2 where there is a gate V."""
    activation = ACTIVATIONS["relu" if activation is None else activation] if not callable(activation) else activation
    inner = activation(x @ weights["intermediate/kernel"] + weights["intermediate/bias"])
    if "gate/kernel" in weights:
        inner = inner * (x @ weights["gate/kernel"] + weights["gate/bias"])
    return inner @ weights["output/kernel"] + weights["output/bias"]


def sub_layer(norm: Weights, x: np.ndarray, apply: Any, epsilon: float, normalize_first: bool) -> np.ndarray:
    """LayerNorm(x + Sublayer(x)), or x + Sublayer(LayerNorm(x))."""
    if normalize_first:
        return x + apply(layer_norm(norm, x, epsilon))
    return layer_norm(norm, x + apply(x), epsilon)


def encoder_layer(
    weights: Weights,
    x: np.ndarray,
    mask: Any = None,
    epsilon: float = 1e-5,
    normalize_first: bool = False,
    activation: Any = "relu",
    **attention_options: Any,
) -> np.ndarray:
    """Self-attention, then feed-forward; the mask broadcasts to (B, H, T, T)."""
    attend = part(weights, "self_attention")
    x = sub_layer(
        part(weights, "self_attention_norm"),
        x,
        lambda y: multi_head_attention(attend, y, y, mask=mask, **attention_options)[0],
        epsilon,
        normalize_first,
    )
    inner = part(weights, "feed_forward")
    norm = part(weights, "feed_forward_norm")
    return sub_layer(norm, x, lambda y: feed_forward(inner, y, activation), epsilon, normalize_first)


def decoder_layer(
    weights: Weights,
    x: np.ndarray,
    memory: np.ndarray | None,
    self_mask: Any = None,
    cross_mask: Any = None,
    epsilon: float = 1e-5,
    normalize_first: bool = False,
    activation: Any = "relu",
    **attention_options: Any,
) -> np.ndarray:
    """Causal self-attention, attention to the memory unless it is None, feed-forward."""
    causal = visible(x.shape[1], x.shape[1], causal=True)
    mask = causal if self_mask is None else causal & self_mask
    attend, cross = part(weights, "self_attention"), part(weights, "cross_attention")
    x = sub_layer(
        part(weights, "self_attention_norm"),
        x,
        lambda y: multi_head_attention(attend, y, y, mask=mask, **attention_options)[0],
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
    return sub_layer(norm, x, lambda y: feed_forward(inner, y, activation), epsilon, normalize_first)


def learned_positions(weights: Weights, x: np.ndarray, positions: Any, scale: bool = True) -> np.ndarray:
    """√M x_t + P_t, positions (T,) or (B, T)."""
    return x * (math.sqrt(x.shape[-1]) if scale else 1) + weights["embeddings"][np.asarray(positions)]


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
