"""Serving: a trained model as a function from text to text, and as a SavedModel."""

from typing import TYPE_CHECKING, Any

import keras

from keras_attention.serving.threads import share_cores

if TYPE_CHECKING or keras.backend.backend() == "tensorflow":
    from keras_attention.serving.export import export
    from keras_attention.serving.graph_translator import GraphTranslator as Translator
    from keras_attention.serving.packed_transformer import PackedTransformer
    from keras_attention.serving.shortlist import Shortlist
else:
    from keras_attention.serving.translator import Translator

    def PackedTransformer(*args: Any, **kwargs: Any) -> Any:
        """Raises an error: packed weights are TensorFlow's."""
        raise RuntimeError(
            "Packed weights need TensorFlow: save the model, and pack it in a process with KERAS_BACKEND=tensorflow. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )

    class Shortlist:
        """Raises an error: a shortlist limits the searches of TensorFlow's graphs."""

        def __init__(self, *args: Any, **kwargs: Any):
            raise RuntimeError(
                "A shortlist is a part of TensorFlow's graphs: save the model, and use it in a process with "
                f"KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={keras.backend.backend()}"
            )

        @classmethod
        def train(cls, *args: Any, **kwargs: Any) -> Any:
            """Raises the same error."""
            return cls()

    def export(*args: Any, **kwargs: Any) -> Any:
        """Raises an error: a SavedModel is TensorFlow's."""
        raise RuntimeError(
            "An export is a SavedModel, which only TensorFlow writes: save the model, and export it in a process "
            f"with KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={keras.backend.backend()}"
        )


__all__ = ["PackedTransformer", "Shortlist", "Translator", "export", "share_cores"]
