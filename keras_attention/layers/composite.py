"""Layers of layers: LoRA, quantization and freezing of the layers inside, and saving them in the config.

Keras' `Dense`, `EinsumDense` and `Embedding` can be adapted and quantized once they are built. A composite layer does
so to those inside, and saves which were changed and which of its sub-layers are frozen.
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
    """Mixin before a Keras layer: its subclass is quantized like that layer, which Keras refuses by default."""

    def quantize(self, mode: str | None = None, type_check: bool = False, config: Any = None) -> None:
        """Quantizes without the check of the class, see `keras.layers.Layer.quantize`."""
        super().quantize(mode, type_check=False, config=config)


class Composite(ShapedLayer):
    """Base of layers that hold other layers.

    The config lists the adapted and quantized matrices and the frozen sub-layers. A layer created from it is changed in
    the same way once it is built; when a `.keras` file is loaded, before the weights are set.

    A subclass creates its sub-layers with `trainable=self.trainable`, since Keras' setter reaches only existing ones.
    """

    _changes: "_Changes | None" = None  # applied once the layer is built

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        layer = super().__new__(cls, *args, **kwargs)
        build = layer.build

        @functools.wraps(build)
        def build_and_change(*args: Any, **kwargs: Any) -> None:
            build(*args, **kwargs)
            layer._apply_changes()

        layer.build = build_and_change  # wrapped like Keras does, after the `build` of any subclass
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "trainable":
            super().__setattr__(name, value)
            return
        set_trainable(self, value)
        if self._changes is not None:
            self._changes = _Changes(self._changes.adaptations, {})

    def enable_lora(self, rank: int, lora_alpha: float | None = None, pattern: str = "") -> None:
        """Freezes the layer and adds a trainable low-rank adapter to each matrix inside.

        Args:
            rank: Rank of the adapters.
            lora_alpha: Adapters are scaled by `lora_alpha / rank`; `rank` by default.
            pattern: Regular expression that the path of a matrix in this layer must match, such as "query|value".

        Raises:
            ValueError: The layer is not built, the pattern matches nothing, or a matrix has an adapter already.

        Source: Hu et al. 2021 (LoRA), section 4.
        """
        enable_lora(self, rank, lora_alpha, pattern)

    def quantize(self, mode: str | None = None, config: Any = None, **options: Any) -> None:
        """Quantizes the matrices inside, with a scale for each column.

        Args:
            mode: "int8", or another mode of Keras' layers.
            config: A `keras.quantizers.QuantizationConfig`, with more options than a mode.
            **options: Other arguments of the `quantize` of those layers.

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
        self._apply_changes()
        if "adaptations" in config:  # the format of version 0.1
            adapt(self, config["adaptations"])

    def _apply_changes(self) -> None:
        changes, self._changes = self._changes, None
        if changes is not None:
            adapt(self, changes.adaptations, changes.trainable_flags)


@dataclasses.dataclass(frozen=True)
class _Changes:
    """Differences of a layer from one newly created with its arguments."""

    adaptations: dict[str, dict[str, Any]]
    trainable_flags: dict[str, bool]


def matrices_within(layer: Any, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields the layers inside that can be adapted and quantized, each with its path."""
    for child in _children(layer):
        inside = f"{path}{child.name}"
        if hasattr(child, "enable_lora") and not isinstance(child, Composite):
            yield inside, child
        else:
            yield from matrices_within(child, f"{inside}/")


def enable_lora(layer: Any, rank: int, lora_alpha: float | None = None, pattern: str = "") -> None:
    """Freezes a layer or model and adds low-rank adapters to the matrices inside, see `Composite.enable_lora`.

    As with Keras' own layers, a `.keras` file holds the merged matrices; a loaded model has adapters of zero.
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
    """Returns the adapter and quantization of each changed matrix in a layer or model, by path."""
    changes = {}
    for path, matrix in matrices_within(layer):
        change = {
            "lora_rank": matrix.lora_rank,
            "lora_alpha": matrix.lora_alpha if matrix.lora_rank else None,
            "quantization": matrix.quantization_mode,
        }
        if any(value is not None for value in change.values()):
            changes[path] = change
    return changes


def set_trainable(layer: Any, value: bool) -> None:
    """Freezes or unfreezes a layer or model and all layers inside.

    With TensorFlow, Keras' `layer.trainable = True` has no effect on frozen sub-layers of a trainable layer.
    """
    for each in (layer, *(child for _, child in _sub_layers(layer))):
        keras.layers.Layer.trainable.fset(each, value)


def trainable_flags(layer: Any, path: str = "") -> dict[str, bool]:
    """Returns the `trainable` of sub-layers and weights that differs from that of their parent, by path."""
    flags = {}
    for child in _children(layer):
        inside = f"{path}{child.name}"
        if child.built and not child.weights:
            continue  # such as dropout, whose name differs in a copy
        if child.trainable != layer.trainable:
            flags[inside] = child.trainable
        flags.update(trainable_flags(child, f"{inside}/"))
    for weight in _own_weights(layer):
        if weight.trainable != layer.trainable or getattr(layer, "lora_enabled", False):
            flags[f"{path}{weight.name}"] = weight.trainable
    return flags


def adapt(layer: Any, changes: dict[str, dict[str, Any]], flags: dict[str, bool] | None = None) -> None:
    """Applies `adaptations` and `trainable_flags` of another layer; flags of None, in old files, train the adapters."""
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
    for weight in layer.weights:  # `trainable_weights` of a frozen layer leaves out a trainable layer inside
        weight.trainable = weight.trainable and weight.name.startswith("lora_")


def _sub_layers(layer: Any, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields all layers inside with their paths, parents first."""
    for child in _children(layer):
        inside = f"{path}{child.name}"
        yield inside, child
        yield from _sub_layers(child, f"{inside}/")


def _own_weights(layer: Any) -> list[Any]:
    """Weights of the layer itself, without those of layers inside."""
    inside = {id(weight) for child in _children(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]


def _children(layer: Any) -> Iterator[keras.layers.Layer]:
    if isinstance(layer, keras.Model):
        yield from layer.layers
        return
    attributes = dict(vars(layer))
    if hasattr(layer, "named_children"):  # torch stores child modules separately
        attributes.update(layer.named_children())
    for name, value in attributes.items():
        if not name.startswith("_"):
            values = value if isinstance(value, list | tuple) else (value,)
            yield from (each for each in values if isinstance(each, keras.layers.Layer))
