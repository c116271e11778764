"""A run that another backend has begun: its weights, its scores, one more step and its export.

Keras takes one backend for a whole process, so this file is a program: `python one_run.py RUN SOURCE TARGET RESULTS`.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_attention.pipeline import RunFolder, train
from keras_attention.pipeline.evaluate import corpus_bleu


def bleu(run: RunFolder, sources: list[str], references: list[str]) -> float:
    """BLEU of the final model, greedily."""
    return corpus_bleu(run.translator(beam_size=1).translate(sources), references)


def resume(run: RunFolder, steps: int) -> int:
    """Trains up to a number of steps; returns those of the last checkpoint."""
    train(run.path, max_steps=steps)
    return int(keras.models.load_model(run.model_file("last")).optimizer.iterations)


def main(folder: str, source: str, target: str, results: str) -> None:
    run = RunFolder(folder)
    sources, references = (Path(path).read_text(encoding="utf-8").splitlines() for path in (source, target))
    model = run.load(run.model_file("final"), compile=False)
    found = {f"weights/{weight.path}": keras.ops.convert_to_numpy(weight) for weight in model.weights}
    found["bleu"] = bleu(run, sources, references)
    found["step"] = resume(run, 22)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        from keras_attention.serving import export

        exported = export(run.translator(beam_size=1), Path(folder) / "saved")
        serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
        found["served"] = [each.decode() for each in serve(source=tf.constant(sources))["text"].numpy()]
        found["translated"] = run.translator(beam_size=1).translate(sources)
    np.savez(results, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
