"""Shows which mask reaches each layer of a model, and where one is lost."""

import warnings
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_attention.testing.implicit_masks import mask_of

BATCH, LENGTH = 2, 7  # sizes of the sample inputs, where those of the model are unknown


class LayerMasks(NamedTuple):
    """The masks of one call of a layer, as `explain_masks` reports them.

    Attributes:
        layer: Name of the layer; `outer/inner` if it is inside a nested model.
        kind: Class name of the layer.
        masks: For each input tensor, the name of the layer it comes from and whether it carries a mask.
        arguments: Names of the layers whose outputs are explicit masks of this call: boolean tensors, and arguments
            named `…mask` or `…segment_ids`.
        output_mask: Whether the output carries a mask.
        warning: Where a mask is lost and how to fix it; empty if none is.

    Example:
        >>> LayerMasks("dense", "Dense", (("embedding", True),), output_mask=True).warning
        ''
    """

    layer: str
    kind: str
    masks: tuple[tuple[str, bool], ...]
    arguments: tuple[str, ...] = ()
    output_mask: bool = False
    warning: str = ""


def explain_masks(model: Any, inputs: Any = None, verbose: bool = True) -> list[LayerMasks]:
    """Runs a model once on a small padded batch and reports which mask reaches each layer.

    A mask is lost if an input carries one and the output, a sequence of the same length, does not; if a layer erases
    the mask of a tensor that later layers read; or if some inputs of a layer carry a mask and others of the same
    length do not. It is not lost if every layer that reads the output gets a mask as an argument: models such as
    `Transformer` compute masks from their ids and pass them as arguments, without implicit masks.

    Args:
        model: A functional or sequential model; it is not changed.
        inputs: Inputs of the model; by default sample ids or floats of the right shapes.
        verbose: Whether to print the report.

    Returns:
        A record for each call of a layer, in the order of the calls.

    Raises:
        TypeError: If the model has no known graph of layers.

    Example:
        >>> ids = keras.Input((None,), dtype="int32", name="ids")
        >>> x = keras.layers.Embedding(11, 8, mask_zero=True, name="embedding")(ids)
        >>> y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
        >>> records = explain_masks(keras.Model(ids, keras.layers.Add(name="add")([x, y])))
        layer      mask in                          mask out
        embedding  ids: none                        yes
        attention  embedding: yes                   yes       <- LOST
        add        embedding: none, attention: yes  no        <- LOST
        WARNING: attention (MultiHeadAttention) erases the mask of its input embedding: layers that read it ...
        WARNING: add (Add) loses the mask of attention: its output is a sequence without one (embedding has none ...
    """
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise TypeError(
            "`model` must be a functional model, or a sequential one that is built: the layers of others cannot be "
            f"traced. Received: model={model}"
        )
    recorder = _Recorder(model)
    symbols = model.inputs if isinstance(model, keras.Sequential) else model.input
    # A model of the same graph, not compiled, with a spy instead of each layer.
    spied = keras.models.clone_model(
        keras.Model(symbols, model.outputs),
        clone_function=recorder.spy,
        call_function=_call_spy,
        recursive=True,
    )
    inputs = keras.tree.map_structure(_sample, symbols) if inputs is None else inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report covers Keras' warnings about masks
        recorder.run(spied, inputs)
    records = [
        record._replace(warning="") if _has_explicit_masks_after(record, recorder.records) else record
        for record in recorder.records
    ]
    if verbose:
        print(_table(records))
    return records


class _Spy(keras.layers.Layer):
    """Calls another layer or operation and reports the masks of inputs and outputs to a recorder."""

    def __init__(self, wrapped: Any, recorder: "_Recorder"):
        super().__init__(autocast=False, name=wrapped.name)
        self.wrapped = wrapped
        self.recorder = recorder

    def call(self, inputs: Any, call_index: int | None = None) -> Any:
        # A sequential model calls its layers with one tensor, a functional one with the arguments of its author.
        args, kwargs = ((inputs,), {}) if call_index is None else self.recorder.arguments[call_index](inputs)
        return self.recorder.call(self.wrapped, args, kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return None  # the wrapped layer has set the mask of its output


def _call_spy(spy: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(spy, _Spy):
        return spy(*args, **kwargs)  # a model, which has spies of its own
    # Keras accepts no structure that mixes tensors with other values, so the other values are added in the call.
    flat = keras.tree.flatten((args, kwargs))
    indices = [i for i, x in enumerate(flat) if isinstance(x, keras.KerasTensor)]

    def arguments(tensors: list[Any]) -> Any:
        by_index = dict(zip(indices, tensors, strict=True))
        return keras.tree.pack_sequence_as((args, kwargs), [by_index.get(i, x) for i, x in enumerate(flat)])

    spy.recorder.arguments.append(arguments)  # passed by index, because JAX accepts no functions among tensors
    return spy([flat[i] for i in indices], call_index=len(spy.recorder.arguments) - 1)


class _Recorder:
    """Records the calls of one run of a model."""

    def __init__(self, model: Any):
        self.names = _names(model)
        self.records: list[LayerMasks] = []
        self.sources: list[tuple[Any, str]] = []  # tensors, and the names of the layers that computed them
        self.erased: dict[int, str] = {}  # ids of tensors, and the names of the layers that erased their masks
        self.arguments: list[Any] = []  # for each call, a function from its tensors to its arguments
        self.running = False

    def spy(self, operation: Any) -> _Spy:
        return _Spy(operation, self)

    def run(self, model: Any, inputs: Any) -> None:
        tensors = [keras.ops.convert_to_tensor(x) for x in keras.tree.flatten(inputs)]
        names = [x.name for x in keras.tree.flatten(model.input)]
        self.sources += zip(tensors, names, strict=True)
        self.running = True
        model(keras.tree.pack_sequence_as(inputs, tensors), training=False)

    def call(self, operation: Any, args: Any, kwargs: Any) -> Any:
        if not self.running:  # Keras infers the shapes
            return operation(*args, **kwargs)
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if keras.ops.is_tensor(x)]
        named = [x for name, x in kwargs.items() if name.endswith(("mask", "segment_ids"))]
        named = {id(x) for x in keras.tree.flatten(named)}
        explicit = [id(x) in named or keras.backend.standardize_dtype(x.dtype) == "bool" for x in tensors]
        before = [mask_of(x) for x in tensors]
        outputs = operation(*args, **kwargs)
        name = self.names.get(id(operation), operation.name)
        self._record(name, operation, tensors, before, explicit, keras.tree.flatten(outputs))
        self.sources += ((x, name) for x in keras.tree.flatten(outputs))
        return outputs

    def _record(
        self,
        name: str,
        operation: Any,
        tensors: list[Any],
        before: list[Any],
        explicit: list[bool],
        outputs: list[Any],
    ) -> None:
        sources = [self._source(x) for x in tensors]
        masks = [mask_of(x) for x in outputs]
        kind = type(operation).__name__
        warning = self._lost(name, kind, list(zip(sources, tensors, before, strict=True)), outputs, masks)
        implicit = tuple((sources[i], before[i] is not None) for i, is_mask in enumerate(explicit) if not is_mask)
        arguments = tuple(dict.fromkeys(sources[i] for i, is_mask in enumerate(explicit) if is_mask))
        self.records.append(LayerMasks(name, kind, implicit, arguments, masks[0] is not None, warning))

    def _lost(self, name: str, kind: str, inputs: list[Any], outputs: list[Any], masks: list[Any]) -> str:
        who = f"{name} ({kind})"
        masked = {source: mask for source, _, mask in inputs if mask is not None}
        erased = [source for source, x, mask in inputs if mask is not None and mask_of(x) is None]
        for source, x, mask in inputs:
            if source in erased and mask is not None:
                self.erased[id(x)] = name
        losses = []
        if erased:
            losses.append(
                f"{who} erases the mask of its input {', '.join(dict.fromkeys(erased))}: layers that read it later see "
                "none. Layers of keras_attention do not change the masks of their inputs."
            )
        lost = [
            source
            for source, x, mask in inputs
            if mask is not None and masks[0] is None and _is_same_sequence(outputs[0], x, mask)
        ]
        without = [
            f"{source} has none" + (f" since {self.erased[id(x)]} erased it" if id(x) in self.erased else "")
            for source, x, mask in inputs
            if mask is None and masked and any(_is_same_sequence(x, x, other) for other in masked.values())
        ]
        if lost:
            reason = f" ({'; '.join(without)})" if without else ""
            losses.append(
                f"{who} loses the mask of {', '.join(dict.fromkeys(lost))}: its output is a sequence without one"
                f"{reason}. Pass the mask to later layers as an argument, or do this inside a layer that keeps it."
            )
        return " ".join(losses)

    def _source(self, x: Any) -> str:
        return next((name for tensor, name in reversed(self.sources) if tensor is x), "constant")


def _has_explicit_masks_after(record: LayerMasks, records: list[LayerMasks]) -> bool:
    """Whether every layer that reads the output of one that loses a mask gets a mask as an argument."""
    if " loses the mask of " not in record.warning or " erases the mask of " in record.warning:
        return False
    open_names, seen = [record.layer], set()
    while open_names:
        name = open_names.pop()
        readers = [each for each in records if name in dict(each.masks)]
        if not readers:
            return False
        seen.add(name)
        without = {each.layer for each in readers if not each.arguments}
        if without & seen:
            return False
        open_names += without
    return True


def _is_same_sequence(output: Any, x: Any, mask: Any) -> bool:
    """Whether the output has a vector for each position of x, rather than one for the whole sequence."""
    return len(output.shape) >= len(x.shape) > 1 and tuple(output.shape[:2]) == tuple(mask.shape[:2])


def _names(model: Any, path: str = "") -> dict[int, str]:
    """Names of the operations by their `id`, with the path of the nested models around them."""
    names = {}
    operations = getattr(model, "operations", None) or model.layers
    for operation in operations:
        names[id(operation)] = path + operation.name
        if isinstance(operation, keras.Model) and getattr(operation, "inputs", None):
            names.update(_names(operation, f"{path}{operation.name}/"))
    return names


def _sample(symbol: Any) -> np.ndarray:
    """A sample batch for an input, whose first sequence ends in padding."""
    shape = [size or (LENGTH if axis else BATCH) for axis, size in enumerate(symbol.shape)]
    dtype = keras.backend.standardize_dtype(symbol.dtype)
    if "float" in dtype:
        x = np.random.default_rng(1).normal(size=shape).astype("float32")
    else:
        x = np.ones(shape, dtype if dtype in ("bool", "int64") else "int32")
    if len(shape) > 1:
        x[0, -2:] = 0
    return x


def _table(records: list[LayerMasks]) -> str:
    """The report as text: a line for each call, then the warnings."""
    rows = [("layer", "mask in", "mask out", "")]
    for record in records:
        masks = [f"{source}: {'yes' if mask else 'none'}" for source, mask in dict.fromkeys(record.masks)]
        masks += [f"argument: {source}" for source in record.arguments]
        rows.append(
            (record.layer, ", ".join(masks), "yes" if record.output_mask else "no", "<- LOST" if record.warning else "")
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    lost = [f"WARNING: {record.warning}" for record in records if record.warning]
    return "\n".join([*map(str.rstrip, lines), *(lost or ["No mask is lost."])])
