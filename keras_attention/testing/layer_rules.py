"""The rules of layers on sequences, as checks of any Keras layer."""

import inspect
import itertools
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.testing.implicit_masks import mask_of, with_mask

HALF_TOLERANCES = {"mixed_float16": 0.01, "mixed_bfloat16": 0.05}  # of the largest output
BASE_ARGUMENTS = {"name": "other_name", "trainable": False, "dtype": "mixed_bfloat16"}


def check_layer(
    layer_class: type,
    init: Mapping[str, Any] | None = None,
    inputs: Any = (),
    call: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    leave_out: Sequence[str] = (),
) -> None:
    """Checks that a layer keeps the rules of layers on sequences, with noise added to its initial weights.

    The rules, by their names in `RULES`:

    - config: `get_config` has every argument, and `from_config` makes a layer with the same outputs.
    - file: the layer can be saved in a `.keras` file and loaded, with the same config and outputs.
    - symbolic: in a functional model, the structure, shapes and dtypes of the outputs are those of a call.
    - caller_masks: a call leaves the implicit masks of the inputs as they are.
    - mask_flow: an output sequence carries the mask of the first input.
    - padding: the outputs of a padded sentence equal those of the trimmed one, whatever the padding holds.
    - dropout: it changes the outputs in training only.
    - half: float16 and bfloat16 follow float32, and stay finite for inputs 30 times as large.
    - warnings: none is printed.

    Args:
        layer_class: The class of the layer.
        init: Arguments of its constructor.
        inputs: An array (B, T, …), or several: a sequence of them, or a mapping from argument names of `call`. The
            float arrays carry implicit masks.
        call: Other arguments of `call`.
        tolerance: The largest difference allowed between outputs that should be equal.
        leave_out: Names of rules, of `RULES`, to skip.

    Raises:
        AssertionError: If the layer breaks a rule; the message names the rule and the size of the difference.
        ValueError: If a name in `leave_out` is not a rule, or if `inputs` are not batches of sequences.

    Example:
        >>> x = np.random.normal(size=(2, 5, 8)).astype("float32")
        >>> check_layer(ka.EncoderLayer, {"intermediate_dim": 16, "num_heads": 2}, x)
        >>> check_layer(keras.layers.MultiHeadAttention, {"num_heads": 2, "key_dim": 4}, {"query": x, "value": x})
        Traceback (most recent call last):
        AssertionError: MultiHeadAttention breaks the rule "caller_masks": ...
    """
    unknown = set(leave_out) - set(RULES)
    if unknown:
        raise ValueError(f"`leave_out` takes names of {', '.join(RULES)}. Received: leave_out={list(leave_out)!r}")
    # Only the rule "warnings" reports warnings, even where they are errors.
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
    """A rule is broken; the message says how."""


class _Case:
    """A layer and the inputs to check it with."""

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
                f"Received: inputs of shapes {[x.shape for x in self.inputs]}"
            )
        self.sizes = {size for x in self.inputs for size in x.shape[:2]}
        # Sequences of equal length share a mask. Of others, different rows are padded, so that no mask fits another.
        lengths = list(dict.fromkeys(x.shape[1] for x in self.inputs))
        self.masks = [
            _padding_mask(*x.shape[:2], first=lengths.index(x.shape[1])) if x.dtype.kind == "f" else None
            for x in self.inputs
        ]
        self.layer = layer_class(**init)
        self.outputs(self.layer)
        self._add_noise()

    def outputs(self, layer: Any, inputs: Any = None, **options: Any) -> list[Any]:
        """The outputs of a call, as a flat list."""
        return keras.tree.flatten(self.structure(layer, inputs, **options))

    def structure(self, layer: Any, inputs: Any = None, **options: Any) -> Any:
        """The output of a call, in the structure that the layer returns."""
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
        """A copy with the same weights and changes of its config."""
        other = self.layer_class.from_config({**self.layer.get_config(), **changes})
        self.outputs(other)
        other.set_weights(self.layer.get_weights())
        return other

    def symbols(self, known: bool) -> list[Any]:
        """Symbolic inputs, with known or unknown batch size and lengths."""
        return [
            keras.KerasTensor(x.shape if known else (None, None, *x.shape[2:]), dtype=x.dtype.name) for x in self.inputs
        ]

    def fits(self, shape: Sequence[int | None], expected: Sequence[int], known: bool) -> bool:
        """Whether a symbolic shape is the expected one; only batch size and lengths may be None, if not `known`."""
        return len(shape) == len(expected) and all(
            size == other or (size is None and not known and other in self.sizes)
            for size, other in zip(shape, expected, strict=True)
        )

    def same(self, what: str, actual: Sequence[Any], expected: Sequence[Any]) -> None:
        """Checks that outputs are equal."""
        for one, other in zip(actual, expected, strict=True):
            difference = _difference(one, other)
            if not difference <= self.tolerance:
                raise _Broken(f"{what} by up to {difference:.3g}, where {self.tolerance:.3g} is allowed")

    def _add_noise(self) -> None:
        numbers = np.random.default_rng(1)
        for weight in self.layer.trainable_weights:
            if "float" in keras.backend.standardize_dtype(weight.dtype):
                weight.assign(weight + numbers.normal(size=weight.shape).astype("float32") * 0.1)


def _config(case: _Case) -> None:
    config = case.layer.get_config()
    lost = [name for name in case.init if name not in config]
    if lost:
        raise _Broken(f"get_config lacks the arguments {', '.join(lost)}, which were {_shown(case.init, lost)}")
    like = case.layer_class.from_config(config)
    case.outputs(like)  # Keras shows how the layers within a layer were built
    _same_config("from_config(get_config())", like.get_config(), config)
    shapes = [[tuple(weight.shape) for weight in layer.weights] for layer in (case.layer, like)]
    if shapes[0] != shapes[1]:
        raise _Broken(f"the layer made from the config has weights of {shapes[1]}, the first one of {shapes[0]}")
    like.set_weights(case.layer.get_weights())
    case.same("the layer made from the config differs", case.outputs(like), case.outputs(case.layer))
    other = case.layer_class.from_config({**config, **BASE_ARGUMENTS})
    shown = {"name": other.name, "trainable": other.trainable, "dtype": other.dtype_policy.name}
    ignored = [name for name in BASE_ARGUMENTS if shown[name] != BASE_ARGUMENTS[name]]
    if ignored:
        raise _Broken(f"from_config ignores {_shown(BASE_ARGUMENTS, ignored)}: pass **kwargs to super().__init__")


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
                f"it cannot be saved in a .keras file and loaded again: {_first_line(error)} "
                "(keras.saving.register_keras_serializable registers a class for files)"
            ) from error
    _same_config("a .keras file", *(each.get_layer(layer.name).get_config() for each in (reloaded, model)))
    outputs = [keras.tree.flatten(each(case.inputs)) for each in (reloaded, model)]
    case.same("after a .keras file the outputs differ", *outputs)


def _same_config(what: str, actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    changed = [name for name in expected if repr(expected[name]) != repr(actual.get(name))]
    if changed:
        raise _Broken(f"{what} changes {_shown(expected, changed)} to {_shown(actual, changed)}")


def _symbolic(case: _Case) -> None:
    eager = case.structure(case.layer)
    for known in (True, False):
        symbolic = case.structure(case.layer, case.symbols(known))
        try:
            keras.tree.assert_same_structure(symbolic, eager)
        except (TypeError, ValueError) as error:
            raise _Broken(
                f"a functional model gets {_nested(symbolic)}, a call returns {_nested(eager)} "
                "(* for each tensor), which should have the same structure"
            ) from error
        for one, other in zip(keras.tree.flatten(symbolic), keras.tree.flatten(eager), strict=True):
            _same_kind(case, one, other, known)
    if case.layer_class.compute_output_shape is not keras.layers.Layer.compute_output_shape:
        expected = tuple(keras.tree.flatten(eager)[0].shape)
        for layer, known in itertools.product(
            (case.layer_class.from_config(case.layer.get_config()), case.layer), (True, False)
        ):
            built = "built" if layer.built else "not built yet"
            shape = _computed_shape(case, layer, known)
            if not case.fits(shape, expected, known):
                raise _Broken(
                    f"compute_output_shape returns {shape} ({built}, {_sizes(known)}), "
                    f"the shape of a call is {expected}"
                )


def _computed_shape(case: _Case, layer: Any, known: bool) -> tuple[Any, ...]:
    """The shape of the first output by `compute_output_shape`."""
    names = case.names or tuple(inspect.signature(layer.call).parameters)
    inputs = [tuple(x.shape) for x in case.symbols(known)]
    shapes = {f"{name}_shape": shape for name, shape in zip(names, inputs, strict=False)}
    first, *others = inspect.signature(layer.compute_output_shape).parameters
    output = layer.compute_output_shape(
        shapes.get(first, inputs[0]), **{name: shapes[name] for name in others if name in shapes}
    )
    return tuple(output[0] if isinstance(output[0], list | tuple) else output)


def _same_kind(case: _Case, symbol: Any, tensor: Any, known: bool) -> None:
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in (symbol, tensor)]
    if dtypes[0] != dtypes[1]:
        raise _Broken(f"the dtype in a functional model is {dtypes[0]}, that of a call is {dtypes[1]}")
    shape, expected = tuple(symbol.shape), tuple(tensor.shape)
    if not case.fits(shape, expected, known):
        raise _Broken(f"the shape in a functional model is {shape}, that of a call is {expected} ({_sizes(known)})")


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
        trimmed = [x[row : row + 1, :real] for x, real in zip(case.inputs, lengths, strict=True)]
        expected = case.outputs(case.layer, trimmed)[0]
        real = np.s_[row : row + 1, : lengths[0]] if _is_sequence(output, length) else np.s_[row : row + 1]
        where = f"row {row}, whose mask has {lengths} real positions,"
        case.same(f"{where} trimmed to these and padded, differ", [_numpy(output)[real]], [expected])
        case.same(f"{where} changes with what its padding holds", [_numpy(changed)[real]], [_numpy(output)[real]])


def _caller_masks(case: _Case) -> None:
    inputs = case.masked()
    before = [mask_of(x) for x in inputs]
    case.outputs(case.layer, inputs)
    for i, (x, expected) in enumerate(zip(inputs, case.masks, strict=True)):
        if expected is None:
            continue
        name, mask = case.names[i] if case.names else f"input {i}", mask_of(x)
        if mask is None:
            raise _Broken(f"it erases the mask of {name}, so that later layers that read {name} get none")
        changed = int((_numpy(mask) != expected).sum())
        if mask is not before[i] or changed:
            raise _Broken(f"it replaces the mask of {name}: {changed} of {expected.size} entries differ")


def _mask_flow(case: _Case) -> None:
    output = case.outputs(case.layer, case.masked())[0]
    if case.masks[0] is None or not _is_sequence(output, case.inputs[0].shape[1]):
        return
    mask = mask_of(output)
    if mask is None:
        raise _Broken(
            f"its output, a sequence of shape {tuple(output.shape)}, carries no mask: set self.supports_masking = True"
        )
    changed = int((_numpy(mask) != case.masks[0]).sum())
    if changed:
        raise _Broken(f"{changed} of {case.masks[0].size} entries of its output's mask differ from its first input's")


def _dropout(case: _Case) -> None:
    case.same("two calls at inference differ", case.outputs(case.layer), case.outputs(case.layer))
    rates = [
        name
        for name, value in case.layer.get_config().items()
        if ("dropout" in name or name == "rate") and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    can_train = "training" in inspect.signature(case.layer.call).parameters
    for name in rates:
        without, dropping = (case.like(**{name: rate}) for rate in (0.0, 0.5))
        expected = case.outputs(without)
        case.same(f"{name}=0.5 changes the output at inference", case.outputs(dropping), expected)
        if can_train:
            outputs = case.outputs(dropping, training=False)
            case.same(f"{name}=0.5 changes the output with training=False", outputs, expected)
            outputs = case.outputs(dropping, training=True)
            if max(map(_difference, outputs, expected)) <= 1e-3:
                raise _Broken(f"{name}=0.5 changes nothing in training")


def _half(case: _Case) -> None:
    expected = case.outputs(case.layer, case.masked())
    scaled = [x * 30 if x.dtype.kind == "f" else x for x in case.inputs]
    for policy, tolerance in HALF_TOLERANCES.items():
        half = case.like(dtype=policy)
        outputs, large = case.outputs(half, case.masked()), case.outputs(half, case.masked(scaled))
        for what, tensors in (("", outputs), (" for inputs 30 times as large", large)):
            bad = sum(int((~np.isfinite(_numpy(x))).sum()) for x in tensors)
            if bad:
                raise _Broken(f"{bad} numbers of its output in {policy} are not finite{what}")
        for one, other in zip(outputs, expected, strict=True):
            size = max(np.abs(_numpy(other)).max(initial=0), 1e-6)
            difference = _difference(one, other)
            if difference > tolerance * size:
                raise _Broken(
                    f"its output in {policy} differs from that in float32 by up to {difference:.3g}, "
                    f"where {tolerance * size:.3g} is allowed ({tolerance:.0%} of the largest)"
                )


def _warnings(case: _Case) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = case.layer_class(**case.init)
        case.outputs(layer, case.masked())
        case.outputs(layer, case.symbols(known=False))
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


def _padding_mask(batch: int, length: int, first: int) -> np.ndarray:
    """A mask (B, T): every other row, from `first` on, ends in padding."""
    real = np.where((np.arange(batch) + first) % 2, length, max(1, length // 2))
    return np.arange(length) < real[:, None]


def _wide(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))


def _is_sequence(output: Any, length: int) -> bool:
    return len(output.shape) > 2 and output.shape[1] == length


def _numpy(x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def _difference(one: Any, other: Any) -> float:
    return np.abs(_numpy(one) - _numpy(other)).max(initial=0)


def _nested(structure: Any) -> str:
    return str(keras.tree.map_structure(lambda _: "*", structure)).replace("'*'", "*")


def _sizes(known: bool) -> str:
    return "batch and lengths known" if known else "batch and lengths unknown"


def _shown(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={values.get(name)!r}" for name in names)


def _first_line(error: Any) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
