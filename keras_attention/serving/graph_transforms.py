"""Makes an exported graph smaller: a process that loads it holds it in memory several times.

Keras' layers leave many constants in a graph that the same function already has, such as the axes of reshapes.
"""

from pathlib import Path
from typing import Any


def shrink_graph(path: Path) -> None:
    """Rewrites the graph of the SavedModel in a folder without redundant nodes and attributes."""
    # Imported here so that `import keras_attention.serving` stays fast.
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    file = path / "saved_model.pb"
    saved_model = SavedModel.FromString(file.read_bytes())
    for graph in saved_model.meta_graphs:
        for function in graph.graph_def.library.function:
            _merge_constants(function)
            for node in function.node_def:
                node.attr.pop("_output_shapes", None)  # a loader infers shapes
                node.attr.pop("_gradient_op_type", None)  # not exported, and Python would warn of each when it loads
    file.write_bytes(saved_model.SerializeToString())
    # The hash of the file before; loaders do not need it.
    (path / "fingerprint.pb").unlink(missing_ok=True)


def _merge_constants(function: Any) -> None:
    """Makes all consumers of equal constants read the first of them, and drops the others."""
    first_of, replaced, kept = {}, {}, []
    for node in function.node_def:
        if node.op == "Const" and not node.input:  # one with a control dependency stays
            first = first_of.setdefault((node.device, node.attr["value"].SerializeToString()), node.name)
            if first != node.name:
                replaced[node.name] = first
                continue
        kept.append(node)
    function.ClearField("node_def")
    function.node_def.extend(kept)
    for node in function.node_def:
        node.input[:] = [_renamed(name, replaced) for name in node.input]
    for output in function.ret:
        function.ret[output] = _renamed(function.ret[output], replaced)


def _renamed(reference: str, replaced: dict[str, str]) -> str:
    """Returns the reference, "name:output:0" or "^name", to the constant that is kept."""
    control = "^" * reference.startswith("^")
    name, colon, output = reference.removeprefix("^").partition(":")
    return control + replaced.get(name, name) + colon + output
