"""Where the weights of a model are when several devices hold a part of it each (tensor parallelism).

Shapes: M model width, H heads, D head width, F feed-forward width, V vocabulary.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import check_distributes
from keras_attention.models.config import TransformerConfig

_ATTENTION, _FEED_FORWARD = r".*/(self|cross)_attention", r".*/feed_forward"
# The sizes that a mesh axis may divide: the attribute of the config, a weight, and the axis of the weight.
_DIVIDED = (
    ("vocabulary_size", "embedding/embeddings", 0),
    ("hidden_dim", "embedding/embeddings", 1),
    ("num_heads", "decoder/layer_0/self_attention/query/kernel", 1),
    ("num_kv_heads", "decoder/layer_0/self_attention/key/kernel", 1),
    ("intermediate_dim", "decoder/layer_0/feed_forward/intermediate/kernel", 1),
)


def layout_map(mesh: keras.distribution.DeviceMesh, model_axis: str = "model") -> keras.distribution.LayoutMap:
    """Returns the layouts of the weights: attention by heads, feed-forward layers by inner width, E by vocabulary."""
    check_distributes("`layout_map`")
    if model_axis not in mesh.axis_names:
        raise ValueError(
            f"`model_axis` is the axis of the mesh whose devices share the weights, one of {list(mesh.axis_names)}. "
            f"Received: model_axis={model_axis!r}"
        )
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[r"(.*/)?embedding/embeddings"] = (model_axis, None)  # (V, M)
    layouts[rf"{_ATTENTION}/(query|key|value|gate)/kernel"] = (None, model_axis, None)  # (M, H, D)
    layouts[rf"{_ATTENTION}/(query|key|value|gate)/bias"] = (model_axis, None)  # (H, D)
    layouts[rf"{_ATTENTION}/attention_output/kernel"] = (model_axis, None, None)  # (H, D, M)
    layouts[rf"{_FEED_FORWARD}/(intermediate|gate)/kernel"] = (None, model_axis)  # (M, F)
    layouts[rf"{_FEED_FORWARD}/(intermediate|gate)/bias"] = (model_axis,)  # (F,)
    layouts[rf"{_FEED_FORWARD}/output/kernel"] = (model_axis, None)  # (F, M)
    return layouts


def check_distribution(config: TransformerConfig) -> None:
    """Checks that Keras' current distribution, if there is one, can distribute a model of these sizes."""
    distribution: Any = keras.distribution.distribution()
    if distribution is None:
        return
    check_distributes("A keras.distribution")
    for name, path, axis in _DIVIDED:
        layout = distribution.get_tensor_layout(path)
        mesh_axis = None if layout is None else layout.axes[axis]
        size = getattr(config, name) or config.num_heads  # without `num_kv_heads`
        if mesh_axis is None:
            continue
        mesh = layout.device_mesh
        devices = mesh.shape[mesh.axis_names.index(mesh_axis)]
        if size % devices:
            raise ValueError(
                f"The {devices} devices of the mesh axis {mesh_axis!r} hold equal parts of a weight, so `{name}` must "
                f"be a multiple of {devices}: choose another size, another mesh, or another layout of {path}. "
                f"Received: {name}={size}"
            )
