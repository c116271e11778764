"""Token embedding with a tied output projection.

Shapes: B batch, T length, M model width, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import positive_integer
from keras_attention.layers.composite import QuantizableSubclass


@keras.saving.register_keras_serializable("keras_attention")
class TokenEmbedding(QuantizableSubclass, keras.layers.ReversibleEmbedding):
    """Token embedding x_t = E[id_t]; in reverse, logits = x Eᵀ.

    E is initialized from a normal distribution with standard deviation 1/√M, so that embeddings scaled by √M and logits
    both have unit variance.

    Args:
        vocabulary_size: V, the number of tokens.
        hidden_dim: M, the width of the embeddings.
        mask_zero: Whether id 0 is padding: the output then has an implicit mask.
        embeddings_initializer: Initializer for E.
        **kwargs: Arguments of `keras.layers.ReversibleEmbedding`.

    Raises:
        ValueError: A size that is not a positive integer.

    Example:
        >>> embedding = TokenEmbedding(100, 16)
        >>> x = embedding(keras.ops.array([[3, 1, 4]]))
        >>> print(x.shape, embedding(x, reverse=True).shape)
        (1, 3, 16) (1, 3, 100)

    Source: Vaswani et al. 2017, section 3.4; Press and Wolf 2016.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_dim: int,
        mask_zero: bool = False,
        embeddings_initializer: Any = None,
        **kwargs: Any,
    ):
        vocabulary_size = positive_integer(vocabulary_size, "vocabulary_size")
        hidden_dim = positive_integer(hidden_dim, "hidden_dim")
        if embeddings_initializer is None:
            embeddings_initializer = keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
        super().__init__(
            vocabulary_size,
            hidden_dim,
            mask_zero=mask_zero,
            embeddings_initializer=embeddings_initializer,
            **kwargs,
        )
        self.supports_masking = True

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        """Embeds token ids, or computes logits.

        Args:
            inputs: Token ids (B, T), integers or, as from a `keras.Input` without a dtype, whole numbers in float32 or
                float64; in reverse, vectors (B, T, M).
            reverse: Whether to compute logits.

        Returns:
            Vectors (B, T, M); in reverse, logits (B, T, V).

        Raises:
            TypeError: Ids that are text, booleans or half-precision floats; floats as wide as vectors, which have no
                mask.
            ValueError: Vectors of another width.
        """
        self._check_inputs(inputs, reverse)
        return super().call(inputs, reverse=reverse)

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> Any:
        self._check_inputs(inputs, reverse)
        return super().compute_output_spec(inputs, reverse=reverse)

    def compute_output_shape(self, input_shape: Any, reverse: bool = False) -> tuple[int | None, ...]:
        if reverse:
            self._check_vectors(input_shape)
        return tuple(super().compute_output_shape(input_shape, reverse))

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        # Keras sets the mask in `call`, which leaves out symbolic ids and quantized layers.
        return ops.not_equal(inputs, 0) if self.mask_zero and not self._may_be_vectors(inputs) else None

    def quantized_call(self, inputs: Any, reverse: bool = False) -> Any:
        outputs = super().quantized_call(inputs, reverse=reverse)
        if not (reverse and self.lora_enabled):
            return outputs
        # Keras leaves the adapter out of the logits: x (A B)ᵀ.
        low_rank = ops.matmul(ops.cast(inputs, "float32"), ops.transpose(self.lora_embeddings_b))  # (B, T, r)
        change = ops.matmul(low_rank, ops.transpose(self.lora_embeddings_a)) * (self.lora_alpha / self.lora_rank)
        return ops.cast(ops.add(outputs, change), self.compute_dtype)  # (B, T, V)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["vocabulary_size"] = config.pop("input_dim")
        config["hidden_dim"] = config.pop("output_dim")
        return config

    def _check_inputs(self, inputs: Any, reverse: bool) -> None:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype == "string":
            raise TypeError("`inputs` are token ids, to which a tokenizer converts text. Received: inputs.dtype=string")
        if reverse:
            self._check_vectors(inputs.shape)
        elif "int" not in dtype and (
            dtype not in ("float32", "float64") or (self.mask_zero and self._may_be_vectors(inputs))
        ):
            raise TypeError(
                '`inputs` are token ids: give them, or the keras.Input, dtype="int32". '
                f"Received: inputs.dtype={dtype}, inputs.shape={tuple(inputs.shape)}"
            )

    def _may_be_vectors(self, inputs: Any) -> bool:
        """Whether inputs have the dtype and the width of vectors for `reverse`."""
        return "int" not in keras.backend.standardize_dtype(inputs.dtype) and inputs.shape[-1] == self.output_dim

    def _check_vectors(self, shape: Any) -> None:
        if shape[-1] != self.output_dim:
            raise ValueError(
                f"In reverse, `inputs` are vectors of width {self.output_dim}. Received: shape {tuple(shape)}"
            )
