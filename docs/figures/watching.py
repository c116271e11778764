"""Takes the pictures of how to watch a training, into docs/images: those of `keras-attention plot`, and of TensorBoard.

They show the run of `make demo`. Without the run, or without Chromium, the pictures stay as they are.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import IMAGES, is_possible, open_page, save, wait_for

# All elements of the page, those of web components too.
ELEMENTS = """
const found = [];
const visit = node => {
  if (node.nodeType === Node.ELEMENT_NODE) found.push(node);
  if (node.shadowRoot) visit(node.shadowRoot);
  node.childNodes.forEach(visit);
};
visit(document.body);
"""
TEXT = ELEMENTS + "return found.map(e => e.shadowRoot ? '' : e.innerText || '').join(' ');"
WIDEST = ELEMENTS + "return Math.max(0, ...found.filter(e => e.nodeName === 'IMG').map(e => e.naturalWidth));"
CURVES = ["steps/accuracy", "steps/bleu"]
PAGES = {
    "curves": ("?tagFilter=^steps#timeseries", CURVES),
    "translations": ("#text", ["translations", "reference"]),
    "weights": ("?tagFilter=cross_attention#histograms", ["cross_attention"]),
    "embeddings": ("#projector", ["Points:"]),
}


@contextmanager
def tensorboard(run: str) -> Iterator[str]:
    """The address of TensorBoard with a run."""
    command = [sys.executable, "-m", "tensorboard.main", "--port", "0", "--host", "127.0.0.1", "--load_fast=false"]
    with subprocess.Popen([*command, "--logdir", run], stderr=subprocess.PIPE, text=True) as server:
        for line in server.stderr:
            address = re.search(r"http://127.0.0.1:\d+/", line)
            if address:
                break
        try:
            yield address[0]
        finally:
            server.terminate()


def take(address: str, name: str, texts: list[str]) -> Any:
    """Takes a picture of a page of TensorBoard."""
    driver = open_page(address, 1100, 760)
    wait_for(driver, lambda: all(each in driver.execute_script(TEXT) for each in texts))
    wait_for(driver, lambda: driver.execute_script("return document.getAnimations().length") == 0)
    save(driver, f"tensorboard-{name}.png")
    driver.quit()


def save_attention(run: str) -> None:
    """Saves the last picture of cross-attention among the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(run) / "logs" / "validation"))
    events.Reload()
    width, height, picture = events.Tensors("attention/cross/1")[-1].tensor_proto.string_val
    (IMAGES / "tensorboard-attention.png").write_bytes(picture)
    print(IMAGES / "tensorboard-attention.png", f"{int(width)} × {int(height)}")


def main(run: str) -> None:
    """Draws a run, and takes the pictures of TensorBoard with it."""
    from keras_attention.pipeline import plot_runs

    with tempfile.TemporaryDirectory() as folder:
        for path in plot_runs([run], folder, ["Sunday, March 5, 2026"]):
            shutil.copy(path, IMAGES / f"run-{path.name.replace('-1', '')}")
    save_attention(run)
    with tensorboard(run) as address:
        for name, (page, texts) in PAGES.items():
            take(f"{address}{page}", name, texts)


if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo-fr"
    if is_possible(run):
        main(run)
