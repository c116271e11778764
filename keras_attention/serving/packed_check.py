"""Whether an export with packed weights computes what it should, where servers run it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_attention.serving.graph_translator import GraphTranslator
from keras_attention.serving.packed_transformer import PackedTransformer

TEXTS = ("How are you?", "", "Good night, and thank you for everything.")
SAME_SCORE = 1e-3
# Of the largest value of the encoder's output: far above the rounding of 8 bits, far below a wrong product.
LARGEST_ERROR = 0.2


def check_packed_export(version: Path, translator: GraphTranslator) -> None:
    """Raises a RuntimeError if a SavedModel in a session does not give the translator's scores, or these are wrong."""
    packed = translator.model
    sources = translator.read(tf.constant(TEXTS)).ids
    error = encoder_error(packed, sources)
    if not error <= LARGEST_ERROR:  # NaN, too
        raise RuntimeError(
            "The encoder with packed weights differs from the trained one more than 8 bits can explain, so this "
            f"TensorFlow computes these products in another way: export without `--runtime x86`. Received: {error=:.3g}"
        )
    expected = translator.serve(tf.constant(TEXTS))["score"].numpy()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with _without_deprecation_warning():
            graph = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(version))
        loaded = graph.signature_def["serving_default"]
        feed = {loaded.inputs["source"].name: [text.encode() for text in TEXTS]}
        scores = session.run(loaded.outputs["score"].name, feed)
    if not np.allclose(scores, expected, atol=SAME_SCORE):
        raise RuntimeError(
            "The SavedModel with packed weights gives other scores in a session than in Python: export without "
            f"`--runtime x86`. Received: {scores} instead of {expected}"
        )


@contextmanager
def _without_deprecation_warning() -> Iterator[None]:
    """Silences TensorFlow, which recommends another loader than that of servers."""
    level = tf.get_logger().level
    tf.get_logger().setLevel("ERROR")
    try:
        yield
    finally:
        tf.get_logger().setLevel(level)


def encoder_error(packed: PackedTransformer, sources: tf.Tensor) -> float:
    """The largest error of the encoder with packed weights on source ids (B, S), as a share of its largest output."""
    trained, mask = (np.asarray(each) for each in packed.trained().encode(sources))
    memory = np.asarray(tf.function(packed.encode)(sources)[0])
    return float(np.abs((memory - trained)[mask]).max() / np.abs(trained[mask]).max())
