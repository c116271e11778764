"""Takes the pictures of how to watch a training, into docs/images: those of `keras-attention plot`, and of TensorBoard.

They show the run of `make demo`. Without the run, or without Chromium, the pictures stay as they are.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import IMAGES, is_possible, open_page, save, wait_for

# The texts of the page, those of web components and frames too. A tag may be in two elements.
TEXT = """
const texts = [];
const visit = node => {
  if (node.nodeType === Node.TEXT_NODE) texts.push(node.data.trim());
  if (node.shadowRoot) visit(node.shadowRoot);
  if (node.nodeName === "IFRAME") visit(node.contentDocument.body);
  if (!["SCRIPT", "STYLE"].includes(node.nodeName)) node.childNodes.forEach(visit);
};
visit(document.body);
return texts.join("");
"""
# The page of each picture, and what it shows when it is complete.
PAGES = {
    "curves": ("?tagFilter=^steps#timeseries", ["steps/accuracy", "steps/bleu"]),
    "translations": ("#text", ["translations", "reference"]),
    "weights": ("#histograms", ["weights/decoder/layer_0/cross_attention/query/kernel"]),
    "embeddings": ("#projector", ["vocabulary.tsv", "Points:"]),
}
WIDTH, HEIGHT = 1500, 900
DRAWING_SECONDS = 4  # charts are drawn after their texts, in a short animation


@contextmanager
def tensorboard(run: str) -> Iterator[str]:
    """The address of TensorBoard with a run."""
    command = [sys.executable, "-m", "tensorboard.main", "--port", "0", "--host", "127.0.0.1", "--load_fast=false"]
    with subprocess.Popen([*command, "--logdir", run], stderr=subprocess.PIPE, text=True) as server:
        addresses = (re.search(r"http://127.0.0.1:\d+/", line) for line in server.stderr)
        try:
            yield next(address[0] for address in addresses if address)
        finally:
            server.terminate()


def take(url: str, name: str, texts: list[str]) -> None:
    """Takes a picture of a page of TensorBoard."""
    driver = open_page(url, WIDTH, HEIGHT)
    wait_for(driver, lambda: all(each in driver.execute_script(TEXT) for each in texts))
    time.sleep(DRAWING_SECONDS)
    save(driver, f"tensorboard-{name}.png")
    driver.quit()


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
    if is_possible(run):
        draw_plots(run)
        save_attention(run)
        with tensorboard(run) as address:
            for name, (page, texts) in PAGES.items():
                take(f"{address}{page}", name, texts)
