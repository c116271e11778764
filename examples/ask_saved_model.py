"""Translates with an exported model, without keras_attention: only TensorFlow and tensorflow-text are needed.

Run it: python examples/ask_saved_model.py saved_models/demo-fr "March 5, 2026"
"""

import sys
from pathlib import Path

import tensorflow as tf
import tensorflow_text  # registers the SentencePiece ops that the model uses


def ask(folder: str, texts: list[str]) -> list[tuple[str, float]]:
    """The best translation and its score for each text, from the newest version in the folder."""
    versions = [path for path in Path(folder).iterdir() if path.name.isdecimal()]
    newest = max(versions, key=lambda path: int(path.name))
    signature = tf.saved_model.load(str(newest)).signatures["serving_default"]
    answer = signature(source=tf.constant(texts))
    return [
        (text.decode(), float(score))
        for text, score in zip(answer["text"].numpy(), answer["score"].numpy(), strict=True)
    ]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for translation, score in ask(sys.argv[1], sys.argv[2:]):
        print(f"{score:7.3f}  {translation}")
