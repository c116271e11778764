"""What a layer on sequences keeps, as checks of any Keras layer."""

import inspect
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.testing.implicit_masks import mask_of, with_mask

HALF_TOLERANCE = 0.05  # of the largest output


def check_layer(
    layer_class: type,
    init: Mapping[str, Any] | None = None,
    inputs: Any = (),
    call: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    leave_out: Sequence[str] = (),
) -> None:
    """Checks that a layer keeps the rules of layers on sequences, `RULES`, with weights moved from where they start.

    Args:
        layer_class: The class.
        init: Arguments of its constructor.
        inputs: An array (B, T, …), or several as a sequence or by the names of the arguments of `call`; each of
            those that hold floats is given an implicit mask.
        call: Other arguments of `call`.
        tolerance: How far outputs that should be the same may differ.
        leave_out: Names of rules that are not checked.

    Raises:
        AssertionError: The layer breaks a rule; the message names it and says by how much.
        ValueError: A name in `leave_out` that is no rule's.

    Example:
        >>> x = np.random.normal(size=(2, 5, 8)).astype("float32")
        >>> check_layer(ka.EncoderLayer, {"intermediate_dim": 16, "num_heads": 2}, x)
        >>> check_layer(keras.layers.MultiHeadAttention, {"num_heads": 2, "key_dim": 4}, {"query": x, "value": x})
        Traceback (most recent call last):
        AssertionError: MultiHeadAttention breaks the rule "caller_masks": ...
    """
    unknown = set(leave_out) - set(RULES)
    if unknown:
        raise ValueError(f"`leave_out` holds names of {', '.join(RULES)}. Received: {', '.join(sorted(unknown))}")
    # A warning of Keras' is a finding of the rule "warnings" alone, even where it would be an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = _Case(layer_class, dict(init or {}), inputs, dict(call or {}), tolerance)
        for name, rule in RULES.items():
            try:
                if name not in leave_out:
                    rule(case)
            except _Broken as broken:
                raise AssertionError(f'{layer_class.__name__} breaks the rule "{name}": {broken}') from broken.__cause__


class _Broken(Exception):
    """A rule is broken; the text says how."""


class _Case:
    """A layer, what it is called with, and what the rules do with it."""

    def __init__(self, layer_class: type, init: dict[str, Any], inputs: Any, call: dict[str, Any], tolerance: float):
        self.layer_class, self.init, self.call, self.tolerance = layer_class, init, call, tolerance
        if isinstance(inputs, Mapping):
            self.names, inputs = tuple(inputs), tuple(inputs.values())
        else:
            self.names, inputs = (), tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        self.inputs = [np.asarray(x) for x in inputs]
        if not self.inputs or any(x.ndim < 2 for x in self.inputs):
            raise ValueError(
                "`inputs` are arrays (batch, length, …), at least one. "
                f"Received: shapes {[x.shape for x in self.inputs]}"
            )
        self.masks = [_padding_mask(*x.shape[:2]) if x.dtype.kind == "f" else None for x in self.inputs]
        self.layer = layer_class(**init)
        self.outputs(self.layer)
        self._move_weights()

    def outputs(self, layer: Any, inputs: Any = None, **options: Any) -> list[Any]:
        """Calls the layer and flattens what it returns."""
        return keras.tree.flatten(self.structure(layer, inputs, **options))

    def structure(self, layer: Any, inputs: Any = None, **options: Any) -> Any:
        inputs = self.inputs if inputs is None else inputs
        options = {**self.call, **options}
        return (
            layer(**dict(zip(self.names, inputs, strict=True)), **options) if self.names else layer(*inputs, **options)
        )

    def masked(self, inputs: Any = None) -> list[Any]:
        """The inputs with their implicit masks."""
        inputs = self.inputs if inputs is None else inputs
        return [x if mask is None else with_mask(x, mask) for x, mask in zip(inputs, self.masks, strict=True)]

    def like(self, **changes: Any) -> Any:
        """A layer with the same weights and a config that differs."""
        other = self.layer_class.from_config({**self.layer.get_config(), **changes})
        self.outputs(other)
        other.set_weights(self.layer.get_weights())
        return other

    def same(self, what: str, actual: Sequence[Any], expected: Sequence[Any]) -> None:
        """Outputs that should be equal."""
        for one, other in zip(actual, expected, strict=True):
            difference = np.abs(_numpy(one) - _numpy(other)).max(initial=0)
            if not difference <= self.tolerance:
                raise _Broken(f"{what} by up to {difference:.3g}, where {self.tolerance:.3g} is allowed")

    def _move_weights(self) -> None:
        numbers = np.random.default_rng(1)
        for weight in self.layer.trainable_weights:
            if "float" in keras.backend.standardize_dtype(weight.dtype):
                weight.assign(weight + numbers.normal(size=weight.shape).astype("float32") * 0.1)


def _config(case: _Case) -> None:
    config = case.layer.get_config()
    lost = [name for name in case.init if name not in config]
    if lost:
        raise _Broken(f"get_config lacks the arguments {', '.join(lost)}, which were {_shown(case.init, lost)}")
    again = case.layer_class.from_config(config).get_config()
    changed = [name for name in config if repr(config[name]) != repr(again.get(name))]
    if changed:
        raise _Broken(f"from_config(get_config()) changes {_shown(config, changed)} to {_shown(again, changed)}")
    shapes, like = [], case.layer_class.from_config(config)
    case.outputs(like)
    for layer in (case.layer, like):
        shapes.append([tuple(weight.shape) for weight in layer.weights])
    if shapes[0] != shapes[1]:
        raise _Broken(f"the layer made from the config has weights of {shapes[1]}, the first one of {shapes[0]}")
    like.set_weights(case.layer.get_weights())
    case.same("the layer made from the config differs", case.outputs(like), case.outputs(case.layer))


def _file(case: _Case) -> None:
    inputs = [keras.Input((None, *x.shape[2:]), dtype=x.dtype.name) for x in case.inputs]
    layer = case.like()
    model = keras.Model(inputs, case.structure(layer, inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            reloaded = keras.models.load_model(path)
        except Exception as error:
            raise _Broken(
                f"a .keras file of it cannot be written and read again: {_first_line(error)} "
                "(keras.saving.register_keras_serializable names a class for files)"
            ) from error
    outputs = [keras.tree.flatten(each(case.inputs)) for each in (reloaded, model)]
    case.same("after a .keras file the outputs differ", *outputs)


def _symbolic(case: _Case) -> None:
    eager = case.structure(case.layer)
    for known in (True, False):
        symbols = [
            keras.KerasTensor(x.shape if known else (None, None, *x.shape[2:]), dtype=x.dtype.name) for x in case.inputs
        ]
        symbolic = case.structure(case.layer, symbols)
        if len(keras.tree.flatten(symbolic)) != len(keras.tree.flatten(eager)):
            count = len(keras.tree.flatten(symbolic)), len(keras.tree.flatten(eager))
            raise _Broken(f"a functional model gets {count[0]} outputs, a call gives {count[1]}")
        for one, other in zip(keras.tree.flatten(symbolic), keras.tree.flatten(eager), strict=True):
            _same_kind(one, other, known)
    if case.layer_class.compute_output_shape is not keras.layers.Layer.compute_output_shape:
        for layer in (case.layer, case.layer_class.from_config(case.layer.get_config())):
            found, expected = _computed_shape(case, layer), tuple(keras.tree.flatten(eager)[0].shape)
            if found != expected:
                built = "built" if layer.built else "not built yet"
                raise _Broken(f"compute_output_shape says {found} ({built}), the shape of a call is {expected}")


def _computed_shape(case: _Case, layer: Any) -> tuple[Any, ...]:
    """What `compute_output_shape` says of the first output."""
    names = case.names or tuple(inspect.signature(layer.call).parameters)
    shapes = {f"{name}_shape": x.shape for name, x in zip(names, case.inputs, strict=False)}
    first, *others = inspect.signature(layer.compute_output_shape).parameters
    found = layer.compute_output_shape(
        shapes.get(first, case.inputs[0].shape), **{name: shapes[name] for name in others if name in shapes}
    )
    return tuple(found[0] if isinstance(found[0], list | tuple) else found)


def _same_kind(symbol: Any, tensor: Any, known: bool) -> None:
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in (symbol, tensor)]
    if dtypes[0] != dtypes[1]:
        raise _Broken(f"the dtype in a functional model is {dtypes[0]}, that of a call is {dtypes[1]}")
    shape, expected = tuple(symbol.shape), tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        size == other or (size is None and not known) for size, other in zip(shape, expected, strict=True)
    )
    if not fits:
        raise _Broken(
            f"the shape in a functional model is {shape}, that of a call is {expected} "
            f"(batch and lengths {'known' if known else 'unknown'})"
        )


def _padding(case: _Case) -> None:
    batch, length = case.inputs[0].shape[:2]
    output = case.outputs(case.layer, case.masked())[0]
    noise = np.random.default_rng(1)
    others = [
        x if mask is None else np.where(_wide(mask, x), x, 10 * noise.normal(size=x.shape)).astype(x.dtype)
        for x, mask in zip(case.inputs, case.masks, strict=True)
    ]
    changed = case.outputs(case.layer, case.masked(others))[0]
    for row in range(batch):
        lengths = [
            x.shape[1] if mask is None else int(mask[row].sum())
            for x, mask in zip(case.inputs, case.masks, strict=True)
        ]
        alone = [x[row : row + 1, :real] for x, real in zip(case.inputs, lengths, strict=True)]
        expected = case.outputs(case.layer, alone)[0]
        real = np.s_[row : row + 1, : lengths[0]] if _is_sequence(output, length) else np.s_[row : row + 1]
        where = f"row {row}, whose mask has {lengths} real positions,"
        case.same(f"{where} trimmed to these and padded, differ", [_numpy(output)[real]], [expected])
        case.same(f"{where} changes with what its padding holds", [_numpy(changed)[real]], [_numpy(output)[real]])


def _caller_masks(case: _Case) -> None:
    inputs = case.masked()
    case.outputs(case.layer, inputs)
    for i, (x, mask) in enumerate(zip(inputs, case.masks, strict=True)):
        name = case.names[i] if case.names else f"input {i}"
        after = None if mask is None else mask_of(x)
        if mask is not None and after is None:
            raise _Broken(f"it erases the mask of {name}, so that what reads {name} after it sees none")
        if mask is not None and not np.array_equal(_numpy(after), mask):
            raise _Broken(
                f"it changes {int((_numpy(after) != mask).sum())} of {mask.size} entries of the mask of {name}"
            )


def _mask_flow(case: _Case) -> None:
    output = case.outputs(case.layer, case.masked())[0]
    if case.masks[0] is None or not _is_sequence(output, case.inputs[0].shape[1]):
        return
    mask = mask_of(output)
    if mask is None:
        raise _Broken(
            f"its output, a sequence of shape {tuple(output.shape)}, carries no mask: set self.supports_masking = True"
        )
    if not np.array_equal(_numpy(mask), case.masks[0]):
        raise _Broken(
            f"the mask of its output has {int(_numpy(mask).sum())} real positions, that of its first input "
            f"{int(case.masks[0].sum())}, or others"
        )


def _dropout(case: _Case) -> None:
    case.same("two calls at inference differ", case.outputs(case.layer), case.outputs(case.layer))
    rates = [
        name
        for name, value in case.layer.get_config().items()
        if ("dropout" in name or name == "rate") and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    options = {"training": False} if "training" in inspect.signature(case.layer.call).parameters else {}
    for name in rates:
        without, dropping = (case.outputs(case.like(**{name: rate}), **options) for rate in (0.0, 0.5))
        case.same(f"{name}=0.5 changes the output at inference", dropping, without)


def _half(case: _Case) -> None:
    expected = case.outputs(case.layer)
    for policy in ("mixed_float16", "mixed_bfloat16"):
        half = case.like(dtype=policy)
        outputs = case.outputs(half)
        large = case.outputs(half, [x * 30 if x.dtype.kind == "f" else x for x in case.inputs])
        for what, tensors in (("", outputs), (" for inputs 30 times as large", large)):
            bad = sum(int((~np.isfinite(_numpy(x))).sum()) for x in tensors)
            if bad:
                raise _Broken(f"{bad} numbers of its output in {policy} are not finite{what}")
        for one, other in zip(outputs, expected, strict=True):
            size = max(np.abs(_numpy(other)).max(initial=0), 1e-6)
            difference = np.abs(_numpy(one) - _numpy(other)).max(initial=0)
            if difference > HALF_TOLERANCE * size:
                raise _Broken(
                    f"its output in {policy} differs from that in float32 by up to {difference:.3g}, "
                    f"where {HALF_TOLERANCE * size:.3g} is allowed ({HALF_TOLERANCE:.0%} of the largest)"
                )


def _warnings(case: _Case) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = case.layer_class(**case.init)
        case.outputs(layer, case.masked())
        case.outputs(layer, [keras.KerasTensor((None, None, *x.shape[2:]), dtype=x.dtype.name) for x in case.inputs])
    if caught:
        raise _Broken(f"it warns {len(caught)} times, first: {_first_line(caught[0].message)}")


RULES: dict[str, Callable[[_Case], None]] = {
    "config": _config,
    "file": _file,
    "symbolic": _symbolic,
    "caller_masks": _caller_masks,
    "mask_flow": _mask_flow,
    "padding": _padding,
    "dropout": _dropout,
    "half": _half,
    "warnings": _warnings,
}
"""The rules of `check_layer`, by name."""


def _padding_mask(batch: int, length: int) -> np.ndarray:
    """A mask (B, T): the rows of even number end in padding."""
    real = np.where(np.arange(batch) % 2, length, max(1, length // 2))
    return np.arange(length) < real[:, None]


def _wide(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))


def _is_sequence(output: Any, length: int) -> bool:
    return len(output.shape) > 2 and output.shape[1] == length


def _numpy(x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def _shown(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={values.get(name)!r}" for name in names)


def _first_line(error: Any) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
