"""A trained Transformer with packed weights, for exports that run where TensorFlow is built with oneDNN.

Shapes: B sentences, S source length, K beams, M model width, N rows, F output width.
"""

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_attention.models.fused_decoder import FusedDecoder, FusedWeights
from keras_attention.models.fused_encoder import fused_encode
from keras_attention.models.fused_weights import FusedStack
from keras_attention.models.network import padding_mask
from keras_attention.models.transformer import Transformer
from keras_attention.ops.attention import cached_attention
from keras_attention.serving.packed_products import packed_bfloat16, packed_int8, quantized

PACKED_WEIGHTS = ("bfloat16", "int8")


class PackedMatrix(tf.Module):
    """y = x W + b for rows x (N, M), with W in bfloat16, or in int8 with a scale for each column."""

    def __init__(self, kernel: Any, bias: Any, weights: str):
        super().__init__()
        kernel = ops.cast(kernel, "float32")
        self.bias = None if bias is None else tf.Variable(ops.cast(bias, "float32"), trainable=False)
        self.scales = None
        if weights == "int8":
            kernel, scales = quantized(kernel)
            self.scales, self.negative_scales = (tf.Variable(each, trainable=False) for each in (scales, -scales))
        else:
            kernel = ops.cast(kernel, "bfloat16")
        self.kernel = tf.Variable(kernel, trainable=False)

    def __call__(self, x: Any, dtype: str = "float32") -> Any:
        kernel = self.kernel.read_value()
        if self.scales is None:
            no_bias = tf.zeros((kernel.shape[1],), kernel.dtype)
            y = packed_bfloat16(ops.cast(x, "bfloat16"), kernel, no_bias)
        else:
            scales = self.scales.read_value(), self.negative_scales.read_value()
            y = packed_int8(ops.cast(x, "float32"), kernel, *scales)
        y = ops.cast(y, dtype)
        return y if self.bias is None else y + ops.cast(self.bias.read_value(), dtype)


class PackedTransformer(tf.Module):
    """The encoder and the decoder of a `Transformer` with packed weights, for a `Translator`.

    Its products are those of `packed_products`; attention multiplies queries, keys and values in bfloat16, and
    everything else is computed in float32. The embeddings, whose rows are looked up, stay as they are.

    Args:
        model: A trained `Transformer`.
        weights: "bfloat16", or "int8" for weights and activations of 8 bits, with a scale for each column and row.
        keep_bfloat16: With "int8", names of matrices to keep in bfloat16, such as those that lose most quality in 8
            bits, see `pipeline.limit_bleu_loss`. A name is a path of trained weights; kernels with the same input are
            one matrix, such as "decoder/layer_0/cross_attention/key+value". That of the logits is "embedding".

    Attributes:
        matrices: The packed matrices by name.
        trained: A function that returns the model.

    Raises:
        TypeError: If `model` is another model.
        ValueError: If `weights` is unknown, a matrix to keep does not exist, or the layers have an option that fused
            weights do not support.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
        >>> packed = PackedTransformer(model, "int8")
        >>> memory, mask = packed.encode(keras.ops.array([[5, 6, 3, 0]]))
        >>> print(memory.shape, keras.ops.convert_to_numpy(mask))
        (1, 4, 64) [[ True  True  True False]]
        >>> mixed = PackedTransformer(model, "int8", keep_bfloat16=["embedding"])
        >>> mixed.matrices["embedding"].kernel.dtype.name
        'bfloat16'

    Source: Dettmers et al. 2022, "LLM.int8()", for a scale of each row and column.
    """

    can_fuse = True

    def __init__(self, model: Transformer, weights: str, keep_bfloat16: Collection[str] = ()):
        super().__init__()
        _check(model, weights)
        self.config, self.weights_form = model.config, weights
        self._keep_bfloat16 = set(keep_bfloat16)
        self.trained = lambda: model  # a function, so that an export does not contain that model too
        self._embed = model.network.embed
        self.embedding, self.positions = model.network.embedding, model.network.positions  # tracked for the export
        self.matrices: dict[str, PackedMatrix] = {}
        self._encoder = FusedStack(model.network.encoder, self._matrix)
        self._decoder = FusedWeights.of(model.network, self._matrix)
        _check_kept(keep_bfloat16, weights, self.matrices)

    @property
    def kept_bfloat16(self) -> list[str]:
        """Names of the matrices that are kept in bfloat16, in the order of the layers."""
        return [name for name in self.matrices if name in self._keep_bfloat16]

    @property
    def network(self) -> Any:
        """What a `FusedDecoder` needs of a network."""
        return SimpleNamespace(embedding=self.embedding, positions=self.positions)

    @property
    def dtype_policy(self) -> keras.DTypePolicy:
        """The policy of the keys and values."""
        return keras.DTypePolicy("bfloat16")

    def encode(self, source: Any) -> tuple[Any, Any]:
        """Runs the encoder.

        Args:
            source: Source ids (B, S), 0 for padding.

        Returns:
            The memory (B, S, M) and the padding mask (B, S).
        """
        mask = padding_mask(source)
        return fused_encode(self._encoder, self._embed(source), mask, self.dtype_policy.compute_dtype), mask

    def fused_decoder(
        self, attention: Callable[..., Any] = cached_attention, memory_dtype: str | None = None
    ) -> FusedDecoder:
        """Creates the decoder of `decoding.generate`.

        Args:
            attention: Implementation of `cached_attention`.
            memory_dtype: Dtype of the keys and values; that of the policy by default.

        Returns:
            A decoder with the packed weights.
        """
        return FusedDecoder(self, attention, memory_dtype, self._decoder)

    def _matrix(self, kernel: Any, bias: Any, name: str) -> PackedMatrix:
        """Makes a packed matrix that the module tracks."""
        self.matrices[name] = PackedMatrix(
            kernel, bias, "bfloat16" if name in self._keep_bfloat16 else self.weights_form
        )
        return self.matrices[name]


def is_packed(translator: Any) -> bool:
    """Returns True for a translator with packed weights."""
    return isinstance(getattr(translator, "model", None), PackedTransformer)


def _check(model: Any, weights: str) -> None:
    if not isinstance(model, Transformer):
        raise TypeError(f"`model` must be a Transformer. Received: a {type(model).__name__}")
    if weights not in PACKED_WEIGHTS:
        raise ValueError(f"`weights` must be one of {', '.join(PACKED_WEIGHTS)}. Received: weights={weights!r}")
    encoder_position = model.network.encoder.position
    if not model.can_fuse or (encoder_position is not None and encoder_position.has_bias):
        raise ValueError(
            "Packed weights need a model that is not quantized and whose positions add no bias to the scores: export "
            f"without `--runtime x86`. Received: positions={model.config.positions!r}"
        )


def _check_kept(keep_bfloat16: Any, weights: str, matrices: Collection[str]) -> None:
    if isinstance(keep_bfloat16, str):
        raise TypeError(f"`keep_bfloat16` is a list of names. Received: keep_bfloat16={keep_bfloat16!r}")
    if keep_bfloat16 and weights != "int8":
        raise ValueError(
            f"`keep_bfloat16` is for weights in 8 bits: leave it out. Received: weights={weights!r}, "
            f"keep_bfloat16={list(keep_bfloat16)}"
        )
    unknown = sorted(set(keep_bfloat16) - set(matrices))
    if unknown:
        raise ValueError(
            f"`keep_bfloat16` has names of matrices of the model: {', '.join(matrices)}. "
            f"Received: keep_bfloat16 with {unknown}"
        )
