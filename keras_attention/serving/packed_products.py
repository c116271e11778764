"""Matrix products whose weights TensorFlow keeps in the layout of oneDNN, after the first call, in a plain SavedModel.

TensorFlow packs the weights of a `MatMul` at every call. Its builds with oneDNN (x86-64, Linux and Windows) have two
operations that do so once, which its own graph rewriting uses; here they are written into the graph. They have no
Python functions, so each is imported as a node. A graph that has one does not load in another build of TensorFlow.

Shapes: N rows, M input width, F output width.
"""

from typing import Any

import tensorflow as tf

Value = tf.compat.v1.AttrValue
LARGEST = 127  # of int8


def packed_bfloat16(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x W + b in bfloat16, for x (N, M), W (M, F) and b (F,), in bfloat16."""
    attributes = {
        "T": _type(tf.bfloat16),
        "num_args": Value(i=1),
        "fused_ops": _strings("BiasAdd"),
        "epsilon": Value(f=1e-4),
        "leakyrelu_alpha": Value(f=0.2),
        "is_filter_const": Value(b=True),
        "transpose_a": Value(b=False),
        "transpose_b": Value(b=False),
        "_kernel": Value(s=b"MklNameChangeOp"),
    }
    return _node("_MklNativeFusedMatMul", [x, kernel, bias], attributes)


def packed_int8(x: tf.Tensor, kernel: tf.Tensor, scales: tf.Tensor, negative_scales: tf.Tensor) -> tf.Tensor:
    """x W in int8 with a scale for each row of x, for x (N, M) in float32, and W = `kernel` · `scales` / 127.

    `kernel` (M, F) is qint8, `scales` (F,) the largest absolute value of each column of W. Their negatives are the
    other end of the range of each column; the caller stores them, so that a loop does not compute them at each step.
    """
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)  # (N, 1)
    # The range of x is part of what oneDNN caches, so it is that of x / largest, and the scales of the rows are applied
    # outside.
    rows = tf.cast(tf.round(x * tf.math.divide_no_nan(float(LARGEST), largest)), tf.int8)
    bounds = tf.constant(-1.0), tf.constant(1.0)
    no_bias = tf.zeros(scales.shape)
    inputs = [tf.bitcast(rows, tf.qint8), kernel, no_bias, *bounds, negative_scales, scales]
    attributes = {
        "Tdevice_inputs": _types(tf.qint8, tf.qint8, tf.float32),
        "Thost_inputs": _types(*[tf.float32] * 4),
        "Tdevice_outputs": _types(tf.float32),
        "Thost_outputs": _types(),
        **{name: _type(tf.qint8) for name in ("T1", "T2")},
        **{name: _type(tf.float32) for name in ("Tbias", "U", "Tout")},
        "fused_ops": _strings("BiasAdd", "Dequantize"),
        "input_quant_mode": Value(s=b"SCALED"),
        "output_quant_mode": Value(s=b"SCALED"),
        "leakyrelu_alpha": Value(f=0.2),
        **{name: Value(b=True) for name in ("is_weight_const", "is_bias_const")},
        **{name: Value(b=False) for name in ("transpose_a", "transpose_b")},
    }
    return _node("_QuantizedMatMul", inputs, attributes) * largest


def quantized(kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The qint8 matrix and the scales (F,) of a kernel (M, F) for `packed_int8`."""
    scales = tf.maximum(tf.reduce_max(tf.abs(kernel), axis=0), 1e-9)
    return tf.bitcast(tf.cast(tf.round(kernel / scales * LARGEST), tf.int8), tf.qint8), scales


def _node(operation: str, inputs: list[tf.Tensor], attributes: dict[str, Any]) -> tf.Tensor:
    """Adds an operation to the graph that is being built, and returns its first output."""
    if tf.executing_eagerly():
        return tf.function(lambda *values: _node(operation, list(values), attributes), autograph=False)(*inputs)
    inputs = [tf.identity(tensor) for tensor in inputs]  # of this graph, also where a loop's body reads from outside
    graph, names = tf.compat.v1.GraphDef(), [f"input_{index}" for index in range(len(inputs))]
    for name, tensor in zip(names, inputs, strict=True):
        graph.node.add(name=name, op="Placeholder").attr["dtype"].type = tensor.dtype.as_datatype_enum
    node = graph.node.add(name="product", op=operation, input=names)
    for name, value in attributes.items():
        node.attr[name].CopyFrom(value)
    mapped = dict(zip(names, inputs, strict=True))
    return tf.graph_util.import_graph_def(graph, input_map=mapped, return_elements=["product:0"], name="packed")[0]


def _type(dtype: tf.DType) -> Any:
    return Value(type=dtype.as_datatype_enum)


def _types(*dtypes: tf.DType) -> Any:
    return Value(list=Value.ListValue(type=[dtype.as_datatype_enum for dtype in dtypes]))


def _strings(*values: str) -> Any:
    return Value(list=Value.ListValue(s=[value.encode() for value in values]))
