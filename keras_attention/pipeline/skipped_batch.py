"""A batch that was skipped, as a file for inspection and as an event in the log of the run."""

from pathlib import Path

import numpy as np

from keras_attention.files import write_atomically
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.run_data import RunData
from keras_attention.pipeline.run_log import add_event
from keras_attention.text import PackedBatches, StreamedBatches, SubwordTokenizer, TokenBatches

KEEP = 10


def record_skipped_batch(run: RunFolder, data: RunData, number: int, step: int) -> Path | str:
    """Saves a batch and adds an event; the training goes on if the disk is full."""
    try:
        path = save_skipped_batch(run.path / "skipped", number, data.batches, data.tokenizer)
        add_event(run.events_file, "skipped", step, batch=path)
    except OSError as error:
        return f"no file ({error})"
    return path


def save_skipped_batch(
    folder: Path, number: int, batches: TokenBatches | PackedBatches | StreamedBatches, tokenizer: SubwordTokenizer
) -> Path:
    """Writes a batch, counted from the beginning of the training, with its ids and text; keeps the last files."""
    epoch, index = divmod(number, len(batches))
    inputs, labels = batches.batch(batches.plan(epoch)[index], epoch)
    texts = {f"{name}_text": np.array(tokenizer.decode(inputs[name].tolist())) for name in ("source", "target")}
    arrays = {**inputs, "labels": labels, **texts, "epoch": np.int64(epoch), "index": np.int64(index)}
    path = folder / f"batch-{number:08d}.npz"
    folder.mkdir(exist_ok=True)
    write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
    for each in sorted(folder.glob("batch-*.npz"))[:-KEEP]:
        each.unlink()
    return path
