"""The end of a run: the average of its last checkpoints, and the final model."""

import math
import shutil
from pathlib import Path
from typing import Any

from keras_attention.files import write_atomically
from keras_attention.layers.arguments import positive_integer
from keras_attention.models import Transformer
from keras_attention.pipeline.folder import RunFolder
from keras_attention.status_line import StatusLine
from keras_attention.training import average_checkpoints
from keras_attention.training.callbacks import ema_file
from keras_attention.training.scalars import step_of


def average(folder: str | Path, last: int | None = None) -> Path:
    """Averages the last checkpoints of a run, as `train` does at its end.

    Args:
        folder: Folder of the run.
        last: Number of checkpoints to average, the newest first; None for all that the run has kept.

    Returns:
        The path of `average.keras`.

    Raises:
        FileNotFoundError: If the folder holds no run, or no weights to average.
        ValueError: If `last` is below 1, or above the number of kept checkpoints.
    """
    run = RunFolder(folder)
    kept = run.weights
    if not kept:
        raise FileNotFoundError(f"{run.checkpoints} has no step-*.weights.h5 to average: train {run.path} further")
    last = len(kept) if last is None else positive_integer(last, "last")
    if last > len(kept):
        raise ValueError(
            f"`last` must be at most {len(kept)}: {run.path} kept {len(kept)} checkpoints. Received: last={last}"
        )
    if run.model_file("last").exists():
        model = run.load(run.model_file("last"), compile=False)
    else:
        model = Transformer(run.config.transformer(), dtype=run.config.dtype)
    average_checkpoints(model, kept[-last:])
    write_atomically(run.model_file("average"), model.save)
    return run.model_file("average")


def write_final_model(model: Transformer, run: RunFolder, data: Any) -> Transformer:
    """Writes `average.keras`, `ema.keras` for `config.ema`, and `final.keras`, the best of these and `best.keras`."""
    line = StatusLine()
    line.show(lambda: "averaging checkpoints")
    average(run.path)
    if run.config.ema is not None:
        last = run.load(run.model_file("last"), compile=False)
        average_checkpoints(last, [ema_file(run.checkpoints, step_of(model.optimizer))])
        write_atomically(run.model_file("ema"), last.save)
    losses = {}
    for name in ("best", "average", "ema"):
        if not run.model_file(name).exists():
            continue  # interrupted before the first best checkpoint was written
        line.show(lambda name=name: f"evaluating the {name} checkpoint", at_once=True)
        model.set_weights(run.load(run.model_file(name), compile=False).get_weights())
        results = model.evaluate(data, verbose=0, return_dict=True)
        print(f"validation perplexity of the {name} checkpoint: {results['perplexity']:.3f}")
        if math.isfinite(results["perplexity"]):
            losses[name] = results["loss"]
    if not losses:
        raise FloatingPointError(
            "Training diverged: no checkpoint has a finite validation perplexity. Use a lower learning rate or a "
            f"longer warm-up. Received: perplexity={results['perplexity']}"
        )
    write_atomically(
        run.model_file("final"),
        lambda path: shutil.copyfile(run.model_file(min(losses, key=losses.get)), path),
    )
    return run.load(run.model_file("final"), compile=False)
