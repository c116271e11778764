"""The sizes of a Transformer and the named presets."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from keras_attention.layers.arguments import (
    Errors,
    boolean,
    check_heads_share,
    fraction,
    one_of,
    positive_integer,
    positive_number,
)
from keras_attention.layers.feed_forward import GATED, feed_forward_activation
from keras_attention.layers.initializers import INITIALIZATIONS
from keras_attention.layers.normalization import NORMALIZATIONS
from keras_attention.layers.position_bias import RelativePositionBias, RotaryPosition

POSITIONS = ("sinusoid", "learned", "rotary", "alibi", "relative")


def check_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns attributes of a `TransformerConfig`, each checked by itself; one error names all that are wrong."""
    checked, errors = {}, Errors()
    for name, value in attributes.items():
        with errors.collected():
            checked[name] = None if value is None and name in _OPTIONAL else _CHECKS[name](value, name)
    errors.raise_all()
    return checked


def _activation(value: Any, name: str) -> Any:
    feed_forward_activation(value)
    return value


_OPTIONAL = ("num_decoder_layers", "key_dim", "value_dim", "max_length", "num_kv_heads")
_SIZES = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "num_heads")
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys((*_SIZES, *_OPTIONAL), positive_integer),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), fraction),
    **dict.fromkeys(("normalize_first", "use_attention_bias", "remat"), boolean),
    "layer_norm_epsilon": positive_number,
    "activation": _activation,
    "normalization": lambda value, name: one_of(value, name, tuple(NORMALIZATIONS)),
    "initialization": lambda value, name: one_of(value, name, tuple(INITIALIZATIONS)),
    "positions": lambda value, name: one_of(value, name, POSITIONS),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes and options of a Transformer; the defaults are the paper's base model.

    Attributes:
        vocabulary_size: Number of tokens of the vocabulary (V), which source and target share.
        num_layers: Number of encoder layers and of decoder layers (N).
        hidden_dim: Width of the model (d_model).
        intermediate_dim: Inner width of the feed-forward networks (d_ff).
        num_heads: Number of attention heads (h).
        dropout: Dropout rate (P_drop) of each sub-layer's output and of the sums of embeddings and positions.
        attention_dropout: Dropout rate of the attention weights.
        activation_dropout: Dropout rate of the inner activations of the feed-forward networks.
        activation: Activation of the feed-forward networks.
        normalize_first: Whether to use pre-norm instead of the paper's post-norm.
        layer_norm_epsilon: Constant that layer normalization adds to the variance.
        use_attention_bias: Whether the attention projections have a bias.
        remat: Whether training recomputes each layer's activations in the backward pass instead of keeping them, which
            takes less memory and more time.
        num_decoder_layers: Number of decoder layers of a `Transformer`; `num_layers` by default. Decoding is faster
            with a deep encoder and a shallow decoder (Kasai et al. 2021).
        key_dim: Width of each head's queries and keys (d_k); `hidden_dim / num_heads` by default.
        value_dim: Width of each head's values (d_v); d_k by default.
        positions: Where the positions come from: "sinusoid", as in the paper, or "learned", as in row E of its table 3,
            are added to the embeddings; "rotary", "alibi" and "relative" are those of `RotaryPosition`, `AlibiBias` and
            `RelativePositionBias` in each self-attention layer, and nothing is added.
        max_length: Number of learned positions, the maximum length of a source and of a target; for "learned" only.
        num_kv_heads: Number of heads of keys and values, each shared by several query heads; h by default. Fewer of
            them make the caches of decoding smaller (Ainslie et al. 2023).
        normalization: "layer" as in the paper, or "rms" for RMS normalization.
        initialization: Where the layers start: "residual_branch", with small sub-layers, see
            `ResidualBranchInitializer`; "alternating_signs", with these and scales 1, −1, 1, … in the last
            normalization, for trainings of one or two passes over the text; or "glorot", Keras' default, with which
            models learn more slowly.

    Raises:
        ValueError: A size out of its range, heads that do not divide the width, or an unknown activation.

    Example:
        >>> TransformerConfig(vocabulary_size=37000).num_parameters
        63045632

    Source: Vaswani et al. 2017, table 3.
    """

    vocabulary_size: int
    num_layers: int = 6
    hidden_dim: int = 512
    intermediate_dim: int = 2048
    num_heads: int = 8
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: str = "relu"
    normalize_first: bool = False
    layer_norm_epsilon: float = 1e-6
    use_attention_bias: bool = False
    remat: bool = False
    num_decoder_layers: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    positions: str = "sinusoid"
    max_length: int | None = None
    num_kv_heads: int | None = None
    normalization: str = "layer"
    initialization: str = "residual_branch"

    def __post_init__(self) -> None:
        for name, value in check_attributes(vars(self)).items():
            self._set(name, value)
        check_heads_share(self.num_heads, self.num_kv_heads or self.num_heads)
        if (self.positions == "learned") != (self.max_length is not None):
            raise ValueError(
                "`max_length` is the number of learned positions: give it with positions='learned', and only then. "
                f"Received: positions={self.positions!r}, max_length={self.max_length}"
            )
        if self.key_dim is None and self.hidden_dim % self.num_heads:
            raise ValueError(
                "`num_heads` must divide `hidden_dim`; or give `key_dim`. "
                f"Received: num_heads={self.num_heads}, hidden_dim={self.hidden_dim}"
            )
        if self.positions == "rotary":
            RotaryPosition().check_head_dim(self._head_dims[0])

    @classmethod
    def from_preset(cls, preset: str, vocabulary_size: int, **changes: Any) -> "TransformerConfig":
        """Returns the config of a preset, with changes.

        Args:
            preset: "tiny", "small", "base" or "big", the last two of the paper; or another row of its table 3, a name
                of `TABLE_3`.
            vocabulary_size: Number of tokens of the vocabulary (V).
            **changes: Attributes that differ from the preset.

        Returns:
            A config.

        Raises:
            ValueError: An unknown preset.

        Example:
            >>> TransformerConfig.from_preset("small", vocabulary_size=8000, dropout=0.2).dropout
            0.2
            >>> TransformerConfig.from_preset("table3-b-dk16", vocabulary_size=37000).key_dim
            16
        """
        presets = {**PRESETS, **TABLE_3}
        if preset not in presets:
            raise ValueError(f"`preset` is one of {', '.join(presets)}. Received: preset={preset!r}")
        return cls(**{**presets[preset], "vocabulary_size": vocabulary_size, **changes})

    @property
    def decoder_depth(self) -> int:
        """Number of decoder layers of a `Transformer`: `num_decoder_layers`, or `num_layers`."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def num_parameters(self) -> int:
        """Number of weights of a `Transformer`: the tied embedding, the encoder layers and the decoder layers."""
        attention, feed_forward, norm = self._layer_parameters
        encoder_layer = attention + self._position_parameters + feed_forward + 2 * norm
        decoder_layer = encoder_layer + attention + norm
        final_norms = 2 * norm if self.normalize_first else 0
        encoder, decoder = self.num_layers * encoder_layer, self.decoder_depth * decoder_layer
        return self._embedding_parameters + encoder + decoder + final_norms

    @property
    def num_causal_parameters(self) -> int:
        """Number of weights of a `CausalTransformer`: the tied embedding, then N layers without a memory."""
        attention, feed_forward, norm = self._layer_parameters
        final_norm = norm if self.normalize_first else 0
        layer = attention + self._position_parameters + feed_forward + 2 * norm
        return self._embedding_parameters + self.num_layers * layer + final_norm

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a Python number, which YAML and JSON can hold

    @property
    def _embedding_parameters(self) -> int:
        """Number of weights of the token embedding and of the learned positions."""
        return (self.vocabulary_size + (self.max_length or 0)) * self.hidden_dim

    @property
    def _layer_parameters(self) -> tuple[int, int, int]:
        """Number of weights of an attention layer, of a feed-forward network and of a normalization."""
        width, inner, heads = self.hidden_dim, self.intermediate_dim, self.num_heads
        key_dim, value_dim = self._head_dims
        projected = heads * key_dim + (self.num_kv_heads or heads) * (key_dim + value_dim)  # queries, keys and values
        attention = (projected + heads * value_dim) * width
        attention += projected + width if self.use_attention_bias else 0
        inward = 2 if self.activation in GATED else 1  # projections to the inner width
        feed_forward = inward * (width * inner + inner) + inner * width + width
        norm = width if self.normalization == "rms" else 2 * width
        return attention, feed_forward, norm

    @property
    def _head_dims(self) -> tuple[int, int]:
        """Widths of a head's queries and keys, and of its values."""
        key_dim = self.hidden_dim // self.num_heads if self.key_dim is None else self.key_dim
        return key_dim, self.value_dim or key_dim

    @property
    def _position_parameters(self) -> int:
        """Number of weights of the positions of a self-attention layer."""
        return RelativePositionBias().num_buckets * self.num_heads if self.positions == "relative" else 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes as a dictionary of plain values.

        Returns:
            Keyword arguments of the constructor.

        Example:
            >>> TransformerConfig(**TransformerConfig(100).to_dict()) == TransformerConfig(100)
            True
        """
        return dataclasses.asdict(self)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 256, "num_heads": 4},
    "small": {"num_layers": 3, "hidden_dim": 256, "intermediate_dim": 1024, "num_heads": 4},
    "base": {"num_layers": 6, "hidden_dim": 512, "intermediate_dim": 2048, "num_heads": 8},
    "big": {"num_layers": 6, "hidden_dim": 1024, "intermediate_dim": 4096, "num_heads": 16, "dropout": 0.3},
}

# By row of table 3 of the paper: h, d_k and d_v (A), d_k (B), N, d_model and d_ff (C), P_drop (D), positions (E). The
# widths of a head follow from d_model / h, except in B. Label smoothing (D) is a setting of the loss.
TABLE_3: dict[str, dict[str, Any]] = {
    row: {**PRESETS["base"], **changes}
    for row, changes in {
        "table3-a-h1": {"num_heads": 1},
        "table3-a-h4": {"num_heads": 4},
        "table3-a-h16": {"num_heads": 16},
        "table3-a-h32": {"num_heads": 32},
        "table3-b-dk16": {"key_dim": 16, "value_dim": 64},
        "table3-b-dk32": {"key_dim": 32, "value_dim": 64},
        "table3-c-n2": {"num_layers": 2},
        "table3-c-n4": {"num_layers": 4},
        "table3-c-n8": {"num_layers": 8},
        "table3-c-dmodel256": {"hidden_dim": 256},
        "table3-c-dmodel1024": {"hidden_dim": 1024},
        "table3-c-dff1024": {"intermediate_dim": 1024},
        "table3-c-dff4096": {"intermediate_dim": 4096},
        "table3-d-dropout0": {"dropout": 0.0},
        "table3-d-dropout0.2": {"dropout": 0.2},
        "table3-e-learned": {"positions": "learned", "max_length": 512},
    }.items()
}
