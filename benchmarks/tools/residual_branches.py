"""Published ways to start the residual branches of a post-norm Transformer, put into this library's layers.

For a sub-layer f, N encoder and M decoder layers, and gains on Glorot's initializer:

| method | sub-layer | starts |
| --- | --- | --- |
| admin | LayerNorm(ω ⊙ x + f(x)) | ω² = 1 + the variances of the branches before, measured on one batch |
| deepnorm | LayerNorm(α x + f(x)) | α by depth; gain β by depth for W_V, W_O, W_1 and W_2 |
| rezero | x + a f(x) | a = 0 |
| t_fixup | x + f(x) | gain by depth for W_V, W_O, W_1, W_2 and the embeddings |

Sources: Liu et al. 2020 (Admin), section 4.2; Wang et al. 2022 (DeepNet), figure 2; Bachlechner et al. 2020 (ReZero),
section 5; Huang et al. 2020 (T-Fixup), section 3.2.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import keras
from keras import ops

from keras_attention import DecoderLayer, TransformerConfig
from keras_attention.layers.block import Block

BRANCH = ("value", "attention_output", "intermediate", "output")


@contextmanager
def residual_branches(method: str, config: TransformerConfig) -> Iterator[Callable[[keras.Model, Any], None]]:
    """Layers that are made and run inside have the residual branches of a method.

    Args:
        method: One of `METHODS`.
        config: Of the model, with `initialization="glorot"`.

    Yields:
        A function that lets a model start by the method; Admin measures its branches on the inputs.

    Raises:
        ValueError: If there is no such method, or the config is of a pre-norm model.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}. Received: method={method!r}")
    if config.normalize_first:
        raise ValueError(f"{method} is for post-norm: use normalize_first=False. Received: normalize_first=True")
    changes, start = METHODS[method](config.num_layers, config.decoder_depth)
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.enter_context(mock.patch.object(Block, name, change))
        yield start


# The methods of `Block` that change, and what sets the weights of a model on some inputs.
Method = tuple[dict[str, Callable[..., Any]], Callable[[keras.Model, Any], None]]


def _admin(n: int, m: int) -> Method:
    variances: dict[str, float] = {}  # of each stack up to the sub-layer that is measured

    def norm(block: Block, name: str) -> AdminNormalization:
        return AdminNormalization(epsilon=block.layer_norm_epsilon, name=name, dtype=block.dtype_policy)

    def add_and_norm(block: Block, norm: AdminNormalization, x: Any, y: Any, training: bool | None) -> Any:
        if variances:
            norm.skip_scale.assign(ops.full_like(norm.skip_scale, variances[_side(block)] ** 0.5))
            variances[_side(block)] += float(ops.var(y))
        return norm(norm.skip_scale * x + block.residual_dropout(y, training=training))

    def start(model: keras.Model, inputs: Any) -> None:
        variances.update(encoder=1.0, decoder=1.0)
        model(inputs)
        variances.clear()

    return {"_norm": norm, "_add_and_norm": add_and_norm}, start


def _deepnorm(n: int, m: int) -> Method:
    alpha = {"encoder": 0.81 * (n**4 * m) ** (1 / 16), "decoder": (3 * m) ** (1 / 4)}

    def add_and_norm(block: Block, norm: keras.layers.Layer, x: Any, y: Any, training: bool | None) -> Any:
        return norm(alpha[_side(block)] * x + block.residual_dropout(y, training=training))

    start = _gains(encoder=0.87 * (n**4 * m) ** (-1 / 16), decoder=(12 * m) ** (-1 / 4))
    return {"_add_and_norm": add_and_norm}, start


def _rezero(n: int, m: int) -> Method:
    def add(block: Block, rezero: ReZero, x: Any, y: Any, training: bool | None) -> Any:
        return x + rezero.scale * block.residual_dropout(y, training=training)

    return {"_norm": lambda block, name: ReZero(name), "_add_and_norm": add}, _gains()


def _t_fixup(n: int, m: int) -> Method:
    start = _gains(encoder=0.67 * n ** (-1 / 4), decoder=(9 * m) ** (-1 / 4), embedding=(9 * n) ** (-1 / 4))
    return {"_norm": lambda block, name: keras.layers.Identity(name=name)}, start


METHODS = {"admin": _admin, "deepnorm": _deepnorm, "rezero": _rezero, "t_fixup": _t_fixup}


class AdminNormalization(keras.layers.LayerNormalization):
    """Layer normalization with the weight ω of the skip connection before it."""

    def build(self, inputs_shape: Any) -> None:
        super().build(inputs_shape)
        self.skip_scale = self.add_weight((inputs_shape[-1],), "ones", name="skip_scale")


class ReZero(keras.layers.Layer):
    """The number a of a sub-layer, where a normalization was."""

    def __init__(self, name: str):
        super().__init__(name=name)
        self.scale = self.add_weight((), "zeros", name="scale")

    def call(self, inputs: Any) -> Any:
        return inputs


def _gains(encoder: float = 1.0, decoder: float = 1.0, embedding: float = 1.0) -> Callable[[keras.Model, Any], None]:
    """Multiplies W_V, W_O, W_1 and W_2 of encoder and decoder, and the embeddings."""
    gains = {"encoder": encoder, "decoder": decoder, "embedding": embedding}

    def start(model: keras.Model, inputs: Any) -> None:
        for weight in model.trainable_weights:
            parts = weight.path.split("/")  # such as "encoder/layer_0/feed_forward/output/kernel"
            if parts[-1] == "embeddings" or (parts[-1] == "kernel" and parts[-2] in BRANCH):
                weight.assign(weight * gains[parts[0]])

    return start


def _side(block: Block) -> str:
    return "decoder" if isinstance(block, DecoderLayer) else "encoder"
