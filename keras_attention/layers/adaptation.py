"""Low-rank adapters and quantization for layers that are made of other layers, and saving both.

Keras adapts and quantizes a `Dense`, an `EinsumDense` or an `Embedding` once it is built. A layer that holds some of
them passes the request on, and saves what became of each.
"""

import re
from collections.abc import Iterator
from typing import Any

import keras

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.layers.shaped_layer import ShapedLayer


class QuantizableSubclass:
    """Mixin before a layer of Keras': a subclass is quantized as the layer is, where Keras would refuse it."""

    def quantize(self, mode: str | None = None, type_check: bool = False, config: Any = None) -> None:
        """As of the layer.

        Args:
            mode: "int8", or another that Keras knows.
            type_check: Unused.
            config: A `keras.quantizers.QuantizationConfig` that says more than the mode.
        """
        super().quantize(mode, type_check=False, config=config)


class Composite(ShapedLayer):
    """Base of the layers that hold other layers.

    Its build config names the matrices that were changed, so that a `.keras` file changes them again before it
    fills in the weights.
    """

    def enable_lora(self, rank: int, lora_alpha: float | None = None, pattern: str = "") -> None:
        """Freezes the layer and trains a product of two thin matrices beside each matrix inside.

        Args:
            rank: Width of the thin matrices.
            lora_alpha: Their product is scaled by `lora_alpha / rank`; the rank by default.
            pattern: Regular expression that the path of a matrix within this layer must match, such as "query|value".

        Raises:
            ValueError: The layer is not built, the pattern matches nothing, or a matrix has its thin ones already.

        Source: Hu et al. 2021 (LoRA), section 4.
        """
        enable_lora(self, rank, lora_alpha, pattern)

    def quantize(self, mode: str | None = None, config: Any = None, **options: Any) -> None:
        """Keeps the matrices inside in fewer bits, with a scale for each column.

        Args:
            mode: "int8", or another that the layers of Keras know.
            config: A `keras.quantizers.QuantizationConfig` that says more than the mode.
            **options: As of the `quantize` of those layers.

        Raises:
            ValueError: The layer is not built, or is quantized already.
        """
        for _, matrix in matrices_within(self):
            matrix.quantize(mode, config=config, **options)

    def get_build_config(self) -> dict[str, Any] | None:
        config = super().get_build_config()
        return config and {**config, "adaptations": adaptations(self)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        super().build_from_config(config)
        adapt(self, config.get("adaptations", {}))


def matrices_within(layer: Any, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """The layers inside a layer or model that Keras can adapt and quantize.

    Args:
        layer: A layer or model.
        path: Put before the names.

    Yields:
        The names on the way to each, joined by slashes, and the layer.

    Example:
        >>> from keras_attention import FeedForward
        >>> network = FeedForward(8)
        >>> network.build((None, None, 4))
        >>> [path for path, _ in matrices_within(network)]
        ['intermediate', 'output']
    """
    for child in _children(layer):
        inside = f"{path}{child.name}"
        if hasattr(child, "enable_lora") and not isinstance(child, Composite):
            yield inside, child
        else:
            yield from matrices_within(child, f"{inside}/")


def enable_lora(layer: Any, rank: int, lora_alpha: float | None = None, pattern: str = "") -> None:
    """Freezes a layer or model and trains a product of two thin matrices beside each matrix inside.

    A `.keras` file holds the sums, as with Keras' own layers: what is loaded has thin matrices of zero.

    Args:
        layer: A built layer or model.
        rank: Width of the thin matrices.
        lora_alpha: Their product is scaled by `lora_alpha / rank`; the rank by default.
        pattern: Regular expression that the path of a matrix within the layer must match.

    Raises:
        ValueError: The layer is not built, the pattern matches nothing, or a matrix has its thin ones already.

    Example:
        >>> from keras_attention import FeedForward
        >>> network = FeedForward(8)
        >>> network.build((None, None, 4))
        >>> enable_lora(network, rank=2, pattern="output")
        >>> [weight.name for weight in network.trainable_weights]
        ['lora_kernel_a', 'lora_kernel_b']
    """
    positive_integer(rank, "rank")
    if lora_alpha is not None:
        positive_number(lora_alpha, "lora_alpha")
    matrices = dict(matrices_within(layer)) if layer.built else {}
    chosen = [path for path in matrices if re.search(pattern, path)]
    if not chosen:
        raise ValueError(
            "`pattern` must match the path of a matrix in this layer, which must be built: call it once. "
            f"Received: pattern={pattern!r}, matrices={sorted(matrices)}"
        )
    adapted = [path for path in chosen if matrices[path].lora_enabled]
    if adapted:
        raise ValueError(f"A matrix is adapted once. Received: pattern={pattern!r}, adapted already={adapted}")
    for path in chosen:
        matrices[path].enable_lora(rank, lora_alpha=lora_alpha)
    _freeze_all_but_adapters(layer)


def adaptations(layer: Any) -> dict[str, dict[str, Any]]:
    """What became of the matrices inside a layer or model since it was built.

    Args:
        layer: A layer or model.

    Returns:
        For each changed matrix, by its path: the rank and scale of its adapter and its quantization.
    """
    found = {}
    for path, matrix in matrices_within(layer):
        change = {
            "lora_rank": matrix.lora_rank,
            "lora_alpha": matrix.lora_alpha if matrix.lora_rank else None,
            "quantization": matrix.quantization_mode,
        }
        if any(value is not None for value in change.values()):
            found[path] = change
    return found


def adapt(layer: Any, changes: dict[str, dict[str, Any]]) -> None:
    """Does to a layer or model what `adaptations` found in another.

    Args:
        layer: A built layer or model.
        changes: From `adaptations`.
    """
    matrices = dict(matrices_within(layer)) if changes else {}
    for path, change in changes.items():
        if change["lora_rank"]:
            matrices[path].enable_lora(change["lora_rank"], lora_alpha=change["lora_alpha"])
        if change["quantization"]:
            matrices[path].quantize(change["quantization"])
    if any(change["lora_rank"] for change in changes.values()):
        _freeze_all_but_adapters(layer)


def _freeze_all_but_adapters(layer: Any) -> None:
    for weight in layer.trainable_weights:
        weight.trainable = weight.name.startswith("lora_")


def _children(layer: Any) -> Iterator[keras.layers.Layer]:
    if isinstance(layer, keras.Model):
        yield from layer.layers
        return
    attributes = dict(vars(layer))
    if hasattr(layer, "named_children"):  # torch keeps the layers among the attributes in a place of its own
        attributes.update(layer.named_children())
    for name, value in attributes.items():
        if not name.startswith("_"):
            values = value if isinstance(value, list | tuple) else (value,)
            yield from (each for each in values if isinstance(each, keras.layers.Layer))
