"""Low-rank adapters, quantization and freezing for layers that are made of other layers, and saving all of it.

Keras adapts and quantizes a `Dense`, an `EinsumDense` or an `Embedding` once it is built. A layer that holds some of
them passes the request on, and saves what became of each. It also saves which of its sub-layers are frozen.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, Self

import keras

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.layers.shaped_layer import ShapedLayer


class QuantizableSubclass:
    """Mixin before a layer of Keras': a subclass is quantized as the layer is, where Keras would refuse it."""

    def quantize(self, mode: str | None = None, type_check: bool = False, config: Any = None) -> None:
        """See the layer.

        Args:
            mode: "int8", or another that Keras knows.
            type_check: Unused.
            config: A `keras.quantizers.QuantizationConfig` that says more than the mode.
        """
        super().quantize(mode, type_check=False, config=config)


class Composite(ShapedLayer):
    """Base of the layers that hold other layers.

    The config names the matrices that were changed and the sub-layers that were frozen one by one, and a layer made
    from it is changed alike once it is built: in a `.keras` file, before the weights are filled in.

    A subclass makes each of its sub-layers with `trainable=self.trainable`: Keras' setter reaches only those that
    exist already.
    """

    _changes: "_Changes | None" = None  # to make once the layer is built

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        layer = super().__new__(cls, *args, **kwargs)
        build = layer.build

        @functools.wraps(build)
        def build_and_change(*args: Any, **kwargs: Any) -> None:
            build(*args, **kwargs)
            layer._make_changes()

        layer.build = build_and_change  # as Keras wraps it: around all that a subclass of a subclass builds
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "trainable":
            super().__setattr__(name, value)
            return
        set_trainable(self, value)
        if self._changes is not None:
            self._changes = _Changes(self._changes.adaptations, {})

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
            **options: See the `quantize` of those layers.

        Raises:
            ValueError: The layer is not built, or is quantized already.
        """
        for _, matrix in matrices_within(self):
            matrix.quantize(mode, config=config, **options)

    def get_config(self) -> dict[str, Any]:
        changes = self._changes or _Changes(adaptations(self), trainable_flags(self))
        return {**super().get_config(), **{name: value for name, value in vars(changes).items() if value}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        arguments = dict(config)
        changes = _Changes(arguments.pop("adaptations", {}), arguments.pop("trainable_flags", {}))
        layer = super().from_config(arguments)
        layer._changes = changes
        return layer

    def build_from_config(self, config: dict[str, Any]) -> None:
        changes, self._changes = self._changes, None
        super().build_from_config(config)
        self._changes = changes
        self._make_changes()
        if "adaptations" in config:  # a file by version 0.1
            adapt(self, config["adaptations"])

    def _make_changes(self) -> None:
        changes, self._changes = self._changes, None
        if changes is not None:
            adapt(self, changes.adaptations, changes.trainable_flags)


@dataclasses.dataclass(frozen=True)
class _Changes:
    """What a layer differs in from another that was just made with its arguments."""

    adaptations: dict[str, dict[str, Any]]
    trainable_flags: dict[str, bool]


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


def set_trainable(layer: Any, value: bool) -> None:
    """Freezes or unfreezes a layer or model and everything inside.

    With TensorFlow, Keras' own `layer.trainable = True` does nothing where the layer is trainable itself and only some
    of what it holds is frozen.

    Args:
        layer: A layer or model.
        value: Whether it is trained.

    Example:
        >>> from keras_attention import FeedForward
        >>> network = FeedForward(8)
        >>> network.build((None, None, 4))
        >>> network.output_dense.trainable = False
        >>> set_trainable(network, True)
        >>> len(network.trainable_weights)
        4
    """
    for each in (layer, *(child for _, child in _sub_layers(layer))):
        keras.layers.Layer.trainable.fset(each, value)


def trainable_flags(layer: Any, path: str = "") -> dict[str, bool]:
    """Which sub-layers and weights inside a layer or model are frozen, where what holds them is not, or the reverse.

    Args:
        layer: A layer or model.
        path: Put before the names.

    Returns:
        The attribute `trainable` of each, by its path. Of a matrix with an adapter, all weights are named.

    Example:
        >>> from keras_attention import FeedForward
        >>> network = FeedForward(8)
        >>> network.build((None, None, 4))
        >>> network.output_dense.trainable = False
        >>> trainable_flags(network)
        {'output': False}
    """
    flags = {}
    for child in _children(layer):
        inside = f"{path}{child.name}"
        if child.built and not child.weights:
            continue  # dropout, say, whose name is not the same in a copy
        if child.trainable != layer.trainable:
            flags[inside] = child.trainable
        flags.update(trainable_flags(child, f"{inside}/"))
    for weight in _own_weights(layer):
        if weight.trainable != layer.trainable or getattr(layer, "lora_enabled", False):
            flags[f"{path}{weight.name}"] = weight.trainable
    return flags


def adapt(layer: Any, changes: dict[str, dict[str, Any]], flags: dict[str, bool] | None = None) -> None:
    """Does to a layer or model what `adaptations` and `trainable_flags` found in another.

    Args:
        layer: A built layer or model.
        changes: From `adaptations`.
        flags: From `trainable_flags`; None, in old files, leaves nothing but the adapters to train.
    """
    for path, child in _sub_layers(layer):
        if path in (flags or {}):
            child.trainable = flags[path]
    matrices = dict(matrices_within(layer)) if changes else {}
    for path, change in changes.items():
        if change["lora_rank"]:
            matrices[path].enable_lora(change["lora_rank"], lora_alpha=change["lora_alpha"])
        if change["quantization"]:
            matrices[path].quantize(change["quantization"])
    if flags is None and any(change["lora_rank"] for change in changes.values()):
        _freeze_all_but_adapters(layer)
    for holder_path, holder in [("", layer), *((f"{path}/", child) for path, child in _sub_layers(layer))]:
        for weight in _own_weights(holder):
            weight.trainable = (flags or {}).get(f"{holder_path}{weight.name}", weight.trainable)


def _freeze_all_but_adapters(layer: Any) -> None:
    for weight in layer.weights:  # a frozen layer may hold one that trains, which `trainable_weights` leaves out
        weight.trainable = weight.trainable and weight.name.startswith("lora_")


def _sub_layers(layer: Any, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """All layers inside, each after what holds it, with its path."""
    for child in _children(layer):
        inside = f"{path}{child.name}"
        yield inside, child
        yield from _sub_layers(child, f"{inside}/")


def _own_weights(layer: Any) -> list[Any]:
    """Those that no layer inside holds."""
    inside = {id(weight) for child in _children(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]


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
