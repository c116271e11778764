"""TF Serving's JSON: requests to arrays, arrays to responses."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_attention.server.errors import RequestError
from keras_attention.server.signature import Arrays, Signature

MAX_LEVELS = 32


class JsonRequest(NamedTuple):
    """A request: a signature, its inputs, and whether the response is row by row."""

    signature: Signature
    inputs: Arrays
    by_row: bool


def read_request(body: bytes, find_signature: Callable[[str], Signature], max_rows: int = 256) -> JsonRequest:
    """Reads the body of a `:predict` request, `instances` by row or `inputs` by name; shapes are not checked yet."""
    # https://www.tensorflow.org/tfx/serving/api_rest
    document = _parse(body)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _wrong(f"'signature_name' key must be a string value. Received: {_short(name)}")
    signature = find_signature(name)
    keys = [key for key in ("instances", "inputs") if key in document]
    if not keys:
        raise _wrong("Missing 'inputs' or 'instances' key")
    if len(keys) == 2:
        raise _wrong("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    _check_rows(document[keys[0]], max_rows)
    columns = _columns(document["instances"], signature) if keys == ["instances"] else document["inputs"]
    if not isinstance(columns, dict) or _is_base64(columns):
        columns = {_only_input(signature, keys[0]): columns}
    for column in columns.values():
        _check_rows(column, max_rows)
    inputs = {name: _array(columns[name], signature, name) for name in columns if name in signature.inputs}
    # An unknown name is kept, for the error of the signature's check.
    unknown = {name: np.zeros(0) for name in columns if name not in signature.inputs}
    return JsonRequest(signature, inputs | unknown, keys == ["instances"])


def write_response(outputs: Arrays, by_row: bool) -> bytes:
    """Returns the JSON of a response, with `predictions` (row by row) or `outputs` (by output)."""
    names = [_dump(name) + b": " for name in outputs]
    if not by_row:
        values = [_text(name, array) for name, array in outputs.items()]
        return b'{"outputs": %s}' % (values[0] if len(values) == 1 else _object(names, values))
    if len({array.shape[:1] for array in outputs.values()}) != 1 or any(not array.ndim for array in outputs.values()):
        shapes = {name: array.shape for name, array in outputs.items()}
        raise _wrong(f"These outputs have no common rows; send 'inputs', not 'instances': {shapes}")
    rows = zip(*(_row_texts(name, array) for name, array in outputs.items()), strict=True)
    texts = [row[0] if len(row) == 1 else _object(names, row) for row in rows]
    return b'{"predictions": [%s]}' % b", ".join(texts)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_names)
    except UnicodeDecodeError as error:
        raise _wrong(f'JSON Parse error: not UTF-8 ({error.reason}); send bytes as {{"b64": ...}}') from error
    except RecursionError as error:
        raise _wrong("JSON Parse error: too many levels") from error
    except ValueError as error:
        raise _wrong(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise _wrong(f"JSON Value: {_short(document)} Is not object")
    return document


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the entries of an object; raises for a repeated name, of which a dict would drop values."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {_short(next(name for name in names if names.count(name) > 1))} occurs twice")
    return entries


def _check_rows(rows: Any, most: int) -> None:
    if isinstance(rows, list) and len(rows) > most:
        raise _wrong(f"A request may have {most} rows; send several. Received: {len(rows)} rows")


def _columns(instances: Any, signature: Signature) -> dict[str, list]:
    """Transposes rows to a list for each input."""
    if not isinstance(instances, list):
        raise _wrong(f"Excepting 'instances' to be an list/array. Received: {_short(instances)}")
    if not instances:
        raise _wrong("No values in 'instances' array")
    named = [isinstance(row, dict) and not _is_base64(row) for row in instances]
    if not any(named):
        return {_only_input(signature, "instances"): instances}
    names = list(instances[named.index(True)])
    for index, row in enumerate(instances):
        if not named[index] or set(row) != set(names):
            raise _wrong(
                f"Failed to process element: {index} of 'instances' list. JSON object: {_short(row)} "
                f"keys must be equal to: {','.join(sorted(signature.inputs))}"
            )
    return {name: [row[name] for row in instances] for name in names}


def _only_input(signature: Signature, key: str) -> str:
    if len(signature.inputs) > 1:
        raise _wrong(
            f"{key} is a plain value/list, but expecting an object as multiple input tensors required: "
            f"{', '.join(sorted(signature.inputs))}"
        )
    return next(iter(signature.inputs))


def _array(value: Any, signature: Signature, name: str) -> np.ndarray:
    """Converts nested lists to an array of the input's dtype."""
    dtype = signature.inputs[name].dtype
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    flat: list = []
    try:
        if len(shape) > MAX_LEVELS:
            raise ValueError(f"more than {MAX_LEVELS} levels of lists")
        _flatten(value, shape, 0, dtype, _plain_types(dtype), flat)
        array = np.empty(len(flat), object if dtype == tf.string else dtype.as_numpy_dtype)
        with np.errstate(over="raise"):  # an error, not infinity, for a number beyond the dtype
            array[:] = flat
        return array.reshape(shape)
    except (ValueError, ArithmeticError) as error:
        raise _wrong(f"Signature '{signature.name}', input '{name}': {error}") from error


def _flatten(value: Any, shape: list[int], level: int, dtype: tf.DType, plain: set[type], flat: list) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise ValueError(f"JSON Value: {_short(value)} found at incorrect level: {level + 1}")
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise ValueError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise ValueError(f"Encountered list at unexpected size: {len(value)} expected size: {shape[level]}")
    if level == len(shape) - 1 and plain.issuperset(map(type, value)):  # fast for a long list
        flat.extend(text.encode("utf-8") for text in value) if dtype == tf.string else flat.extend(value)
        return
    for each in value:
        _flatten(each, shape, level + 1, dtype, plain, flat)


def _element(value: Any, dtype: tf.DType) -> Any:
    if dtype == tf.string and _is_base64(value):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"Unable to base64 decode {_short(value)}") from error
    if type(value) not in _plain_types(dtype):
        kind = type(value).__name__
        raise ValueError(f"JSON Value: {_short(value)} Type: {kind} is not of expected type: {dtype.name}")
    return value.encode("utf-8") if isinstance(value, str) else value


def _plain_types(dtype: tf.DType) -> set[type]:
    """Returns the Python types of JSON values of a dtype."""
    return {tf.string: {str}, tf.bool: {bool}}.get(dtype, {int} if dtype.is_integer else {int, float})


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _text(name: str, array: np.ndarray) -> bytes:
    return b"[%s]" % b", ".join(_row_texts(name, array)) if array.ndim > 1 else _dump(_values(name, array))


def _row_texts(name: str, array: np.ndarray) -> list[bytes]:
    """Writes row by row, as Python's numbers take much more memory than their text."""
    if array.ndim > 1:
        return [_dump(_values(name, row)) for row in array]
    return [_dump(value) for value in _values(name, array)]


def _object(names: list[bytes], values: Iterable[bytes]) -> bytes:
    return b"{%s}" % b", ".join(name + value for name, value in zip(names, values, strict=True))


def _values(name: str, array: np.ndarray) -> Any:
    array = np.asarray(array)
    if array.dtype == object:
        code = _to_base64 if name.endswith("_bytes") else _to_utf8
        return np.asarray(np.frompyfunc(code, 1, 1)(array), object).tolist()
    if tf.as_dtype(array.dtype).is_floating:
        # The shortest decimals of the same number: 0.2, not 0.20000000298.
        return array.astype(np.float64).tolist() if array.dtype == np.float64 else _shortest(array)
    if array.dtype.kind in "biu":
        return array.tolist()
    raise RequestError("UNIMPLEMENTED", f"Output '{name}' of dtype {array.dtype} has no form in JSON")


def _shortest(array: np.ndarray) -> Any:
    return array.astype(np.float32).astype("U").astype(np.float64).tolist()


def _to_utf8(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _to_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8")


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "…"
    return text if len(text) <= 100 else text[:100] + "…"


def _wrong(message: str) -> RequestError:
    return RequestError("INVALID_ARGUMENT", message)
