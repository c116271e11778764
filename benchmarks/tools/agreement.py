"""Whether the sides compute the same thing: asserted before they are measured, and of what they measured."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers.side import Task
from benchmarks.tools.sentences import Sentences

if TYPE_CHECKING:
    from keras_attention import Transformer

# Float32 sums in another order.
LOSS_TOLERANCE = 1e-4
# After the same steps with the same learning rates, but with other weights and other batches.
LOSS_BAND = 0.1


def assert_same_function(task: Task) -> list[str]:
    """The models that can take our weights give our loss; on a small model, in this process.

    Args:
        task: Its number of heads and of layers is kept, the widths are made small.

    Returns:
        The sides that agree with ours; torch is left out where it is not installed.

    Raises:
        AssertionError: A side gives another loss.
    """
    # Here, so that what only compares results imports none of them.
    from benchmarks.peers import keras_fit, keras_layers, ours

    small = replace(task, vocabulary_size=97, hidden_dim=8 * task.num_heads, intermediate_dim=101, dtype="float32")
    sentences = Sentences.drawn(23, small.vocabulary_size)
    model = ours.build(replace(small, options={}))
    weights = weights_in_order(model)
    loss = keras_fit.negative_log_likelihood(model, sentences)

    peer = keras_layers.build(small)
    keras_layers.set_weights(peer, weights)
    losses = {"keras": keras_fit.negative_log_likelihood(peer, sentences)}
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.peers import torch_transformer

        peer = torch_transformer.Translator(small)
        torch_transformer.set_weights(peer, weights)
        losses["torch"] = torch_transformer.negative_log_likelihood(peer, sentences)
    for side, value in losses.items():
        assert abs(value - loss) < LOSS_TOLERANCE, f"{side} gives the loss {value} where ours gives {loss}"
    return list(losses)


def weights_in_order(model: "Transformer") -> list[np.ndarray]:
    """The weights of ours in the order of the computation: in each layer, each part and then its norm."""
    parts = [model.get_layer("embedding")]
    for stack in ("encoder", "decoder"):
        for layer in model.get_layer(stack).layers:
            for name in ("self_attention", "cross_attention", "feed_forward"):
                parts += [getattr(layer, name, None), getattr(layer, f"{name}_norm", None)]
    return [np.asarray(weight) for part in parts if part is not None for weight in part.trainable_weights]


def attention_biases(task: Task) -> int:
    """How many weights the biases are that some peers have in attention: 4 · M for each of its 3 · N layers."""
    return 12 * task.hidden_dim * task.num_layers


def assert_same_work(task: Task, measured: Mapping[str, list[dict]]) -> None:
    """All sides trained as many weights, biases of attention aside, and came equally far where they took equal batches.

    Args:
        task: What they trained.
        measured: What each side measured in each round; the first side is what the others must equal.

    Raises:
        AssertionError: A side trained another model.
    """
    first = next(iter(measured.values()))[0]["parameters"]
    allowed = {first, first + attention_biases(task)}
    for side, results in measured.items():
        for result in results:
            assert result["parameters"] in allowed, f"{side} has {result['parameters']} weights, not one of {allowed}"
    losses = {side: [result["loss"] for result in results] for side, results in measured.items()}
    known = {side: float(np.mean(values)) for side, values in losses.items() if None not in values}
    middle = float(np.median(list(known.values()))) if known else 0.0
    for side, value in known.items():
        assert abs(value - middle) < LOSS_BAND * middle, f"{side} ends at the loss {value:.3f}, others at {middle:.3f}"
