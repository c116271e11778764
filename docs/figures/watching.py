"""Draws the pictures of a run into docs/images: those of `keras-attention plot`, and one of its logs of attention.

They show the run of `make demo`. Without it, the pictures stay as they are.
"""

import shutil
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent.parent / "images"


def draw_plots(run: str) -> None:
    """Draws curves and the attention of a sentence."""
    from keras_attention.pipeline import plot_runs

    with tempfile.TemporaryDirectory() as folder:
        for path in plot_runs([run], folder, ["Sunday, March 5, 2026"]):
            shutil.copy(path, IMAGES / f"run-{path.name.replace('-1', '')}")


def save_attention(run: str) -> None:
    """Saves the last picture of cross-attention among the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(run) / "logs" / "validation"))
    events.Reload()
    _, _, picture = events.Tensors("attention/cross/1")[-1].tensor_proto.string_val
    (IMAGES / "tensorboard-attention.png").write_bytes(picture)


if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo-fr"
    if Path(run).is_dir():
        draw_plots(run)
        save_attention(run)
    else:
        print(f"the pictures need {run}, which keras-attention demo trains")
