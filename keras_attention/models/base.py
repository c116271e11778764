"""The base of the models: presets, adapters, quantization, saving."""

from collections.abc import Callable
from typing import Any, Self

import keras

from keras_attention.layers import (
    AlibiBias,
    LearnedPositionalEncoding,
    PositionalEncoding,
    RelativePositionBias,
    RotaryPosition,
)
from keras_attention.layers.composite import (
    adapt,
    adaptations,
    enable_lora,
    matrices_within,
    set_trainable,
    trainable_flags,
)
from keras_attention.layers.initializers import INITIALIZATIONS
from keras_attention.layers.positions import AddedPositions, NoPositionalEncoding
from keras_attention.layers.replicas import WithoutSampleBatch
from keras_attention.models.config import TransformerConfig
from keras_attention.models.fused_decoder import FusedDecoder
from keras_attention.models.layout import check_distribution, layout_map
from keras_attention.models.network import Network
from keras_attention.ops.attention import cached_attention


class ConfiguredModel(WithoutSampleBatch, keras.Model):
    """Base of the functional models that a `TransformerConfig` defines; a subclass creates the layers.

    Args:
        config: Sizes of the model.
        dtype_policy: Dtype policy of all layers.
        network: Layers of the model.
        **kwargs: `inputs`, `outputs`, `name` and the like.
    """

    def __init__(self, config: TransformerConfig, dtype_policy: Any, network: Network, **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config
        self.dtype_policy = dtype_policy
        self.network = network
        if config.initialization == "alternating_signs":
            network.alternate_signs()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":
            set_trainable(self, value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def from_preset(cls, preset: str, vocabulary_size: int, dtype: Any = None, **changes: Any) -> Self:
        """Creates a model with the sizes of a preset.

        Args:
            preset: "tiny", "small", "base", "big" or a name of `TABLE_3`.
            vocabulary_size: Number of tokens of the vocabulary (V).
            dtype: See the constructor.
            **changes: Attributes of `TransformerConfig` that differ from the preset.

        Returns:
            An untrained model.

        Raises:
            ValueError: An unknown preset.

        Example:
            >>> ka.Transformer.from_preset("tiny", vocabulary_size=100, num_layers=1).config.num_layers
            1
        """
        return cls(TransformerConfig.from_preset(preset, vocabulary_size, **changes), dtype=dtype)

    @staticmethod
    def layout_map(
        device_mesh: keras.distribution.DeviceMesh, model_axis: str = "model"
    ) -> keras.distribution.LayoutMap:
        """Returns the layouts with which several devices hold a part of a model each, on JAX.

        The heads of attention, the inner width of feed-forward layers and the vocabulary of the embedding are divided;
        the devices exchange two sums for each layer. The other weights are on every device. Build the model within the
        scope of a `keras.distribution.ModelParallel`. To change a layout, delete its key and set another.

        Args:
            device_mesh: Devices, with an axis for the parts of a batch, first, and one for the parts of the model.
            model_axis: Name of the axis of the mesh for the parts of the model. The number of its devices divides
                `num_heads`, `num_kv_heads`, `intermediate_dim` and `vocabulary_size`.

        Returns:
            The layouts, for `keras.distribution.ModelParallel`.

        Raises:
            ValueError: If the mesh has no such axis, or the backend is not JAX.

        Example:
            >>> if keras.config.backend() == "jax":
            ...     devices = keras.distribution.list_devices()[:1]
            ...     mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices)
            ...     layouts = ka.Transformer.layout_map(mesh)
            ...     with keras.distribution.ModelParallel(layout_map=layouts, auto_shard_dataset=False).scope():
            ...         model = ka.Transformer.from_preset("tiny", vocabulary_size=100)

        Source: Shoeybi et al. 2019, "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model
        Parallelism", section 3.
        """
        return layout_map(device_mesh, model_axis)

    def enable_lora(self, rank: int, lora_alpha: float | None = None, pattern: str = "") -> None:
        """Freezes the model and adds a trainable low-rank product to each matrix.

        The optimizer of a compiled model is reset, because other weights are trained from then on.

        Args:
            rank: Rank of the products.
            lora_alpha: The products are scaled by `lora_alpha / rank`; the rank by default.
            pattern: Regular expression that the path of a matrix must match, such as "attention/(query|value)".

        Raises:
            ValueError: The pattern matches no matrix, or a matrix has LoRA weights already.

        Example:
            >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
            >>> model.enable_lora(rank=2, pattern="query|value")
            >>> len(model.trainable_weights)
            24

        Source: Hu et al. 2021 (LoRA), section 4.
        """
        enable_lora(self, rank, lora_alpha, pattern)
        self._renew_optimizer()

    def quantize(self, mode: str | None = None, config: Any = None, filters: Any = None, **options: Any) -> None:
        """Quantizes the matrices, with a scale for each column.

        The optimizer of a compiled model is reset, without moments of the matrices.

        Args:
            mode: "int8", or another mode of Keras.
            config: A `keras.quantizers.QuantizationConfig` instead of a mode.
            filters: Layers to quantize, see `keras.Model.quantize`; by default all that have a matrix.
            **options: See `keras.Model.quantize`.
        """
        # Without a filter Keras warns of every layer that cannot be quantized.
        matrices = [id(matrix) for _, matrix in matrices_within(self)]
        filters = (lambda layer: id(layer) in matrices) if filters is None else filters
        super().quantize(mode, config=config, filters=filters, **options)
        self._renew_optimizer()

    def _renew_optimizer(self) -> None:
        """Creates the optimizer again with state for the weights that are trained now, as loading a file does."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None and optimizer.built:
            self.optimizer = type(optimizer).from_config(optimizer.get_config())
            self.optimizer.build(self.trainable_variables)
            self.make_train_function(force=True)

    def in_dtype(self, dtype: Any) -> Self:
        """Copies the model to another dtype.

        Args:
            dtype: Dtype or policy, such as "bfloat16", which halves the size of the weights.

        Returns:
            A model with the same weights.

        Example:
            >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
            >>> {str(keras.backend.standardize_dtype(weight.dtype)) for weight in model.in_dtype("bfloat16").weights}
            {'bfloat16'}
        """
        copy = type(self).from_config({**self.get_config(), "dtype": dtype})
        copy.set_weights([keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32")) for weight in self.weights])
        return copy

    @property
    def can_fuse(self) -> bool:
        """Whether `fused_decoder` supports the model: its weights are not quantized, its positions add no bias."""
        position = self.network.decoder.position
        has_bias = position is not None and position.has_bias
        return not has_bias and not any(matrix.quantization_mode for _, matrix in matrices_within(self))

    def fused_decoder(
        self, attention: Callable[..., Any] = cached_attention, memory_dtype: str | None = None
    ) -> FusedDecoder:
        """Creates the decoder of `decoding.generate`, which computes the numbers of `decode_step` faster.

        Args:
            attention: Implementation of `cached_attention`.
            memory_dtype: Dtype of the keys and values; the model's compute dtype by default.

        Returns:
            A decoder with the current weights.
        """
        return FusedDecoder(self, attention, memory_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
            "trainable": self.trainable,
            "adaptations": adaptations(self),
            "trainable_flags": trainable_flags(self),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        arguments = dict(config)
        arguments["config"] = TransformerConfig(**arguments["config"])
        trainable, changes = arguments.pop("trainable", True), arguments.pop("adaptations", {})
        flags = arguments.pop("trainable_flags", None)
        model = cls(**arguments)
        model.trainable = trainable  # before the flags of its layers
        adapt(model, changes, flags)
        return model


def check_config(config: TransformerConfig) -> TransformerConfig:
    """Returns the config, or raises a TypeError where it is something else, such as a dictionary."""
    if not isinstance(config, TransformerConfig):
        raise TypeError(f"`config` is a TransformerConfig, such as TransformerConfig(8000). Received: {config=}")
    check_distribution(config)
    return config


def positional_encoding(config: TransformerConfig, dtype: Any) -> AddedPositions:
    """Returns the layer that scales the embeddings and adds the positions."""
    if config.positions == "learned":
        return LearnedPositionalEncoding(config.max_length, dtype=dtype, name="positions")
    layer_class = PositionalEncoding if config.positions == "sinusoid" else NoPositionalEncoding
    return layer_class(dtype=dtype, name="positions")


def attention_position(config: TransformerConfig, bidirectional: bool) -> Any:
    """Returns the positions of the self-attention layers of an encoder, or of a decoder, or None."""
    positions = {
        "rotary": RotaryPosition,
        "alibi": AlibiBias,
        "relative": lambda: RelativePositionBias(bidirectional=bidirectional),
    }
    return positions[config.positions]() if config.positions in positions else None


def encoder_arguments(config: TransformerConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `Encoder`."""
    others = ("vocabulary_size", "hidden_dim", "num_decoder_layers", "positions", "max_length", "initialization")
    arguments = {name: value for name, value in config.to_dict().items() if name not in others}
    position = attention_position(config, bidirectional=True)
    return {**arguments, "position": position, "kernel_initializer": INITIALIZATIONS[config.initialization]()}


def decoder_arguments(config: TransformerConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `Decoder`."""
    position = attention_position(config, bidirectional=False)
    return {**encoder_arguments(config), "num_layers": config.decoder_depth, "position": position}
