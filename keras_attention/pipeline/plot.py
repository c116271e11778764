"""Pictures of runs: the curves of their histories, and the attention of a trained model."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_attention.extras import needed_by
from keras_attention.files import check_folder, write_atomically
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.history import read_columns
from keras_attention.text import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SENTENCES, _MAX_TOKENS = 3, 25  # that are drawn by default
_Histories = dict[str, dict[str, np.ndarray]]


def plot_runs(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    sentences: Sequence[str] | None = None,
) -> list[Path]:
    """Draws the curves of runs and, of one run, the attention of its model into PNG files.

    `curves.png` has the perplexity of training and validation, BLEU, the learning rate and the speed over the steps of
    all runs. `attention-1.png` and so on have the cross-attention of the translations of some sentences: the mean of
    the heads of the last layer.

    Args:
        runs: Folders of runs.
        output: Folder for the pictures; None for `plots` in the folder of the only run.
        sentences: Source sentences whose attention to draw; None for some short ones of the validation text.

    Returns:
        The paths of the pictures.

    Raises:
        FileNotFoundError: If a folder holds no run, or a run has no history.
        ValueError: If there are several runs but no output folder, a history is damaged or of an earlier release, or
            a checkpoint is damaged.

    Example:
        >>> import pathlib
        >>> for name, best in (("a", 5.0), ("b", 4.0)):
        ...     pathlib.Path(name).mkdir()
        ...     _ = pathlib.Path(name, "config.yaml").write_text("preset: tiny")
        ...     rows = [f"{step},0.001,{best + 100 / step},{best + 50 / step}" for step in range(10, 100, 10)]
        ...     text = "\\n".join(["step,learning_rate,perplexity,val_perplexity", *rows])
        ...     _ = pathlib.Path(name, "history.csv").write_text(text)
        >>> [path.name for path in plot_runs(["a", "b"], "plots")]
        ['curves.png']
    """
    if not runs or (output is None and len(runs) > 1):
        raise ValueError(f"Pass a run, or several runs and an output folder. Received: runs={list(runs)}, output=None")
    folders = [RunFolder(run) for run in runs]
    for run in folders:
        if not run.exists:
            _ = run.config  # raises an error that says why
    histories = {str(run.path): read_columns(run.history_file) for run in folders}
    output = folders[0].path / "plots" if output is None else Path(output)
    check_folder(output)
    curves = _curves(histories)
    output.mkdir(parents=True, exist_ok=True)
    pictures = [_save(curves, output / "curves.png")]
    if len(folders) == 1:
        pictures += _draw_attention(folders[0], output, sentences)
    return pictures


def _figure(width: float, height: float) -> "Figure":
    with needed_by("Drawing a run", "cli"):
        from matplotlib.figure import Figure  # not pyplot, whose figures and settings are the caller's
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # it draws a box instead
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    return path


# ---- curves


def _curves(histories: _Histories) -> "Figure":
    figure = _figure(11, 8)
    (perplexity, bleu), (rate, speed) = figure.subplots(2, 2)
    _draw(perplexity, "Perplexity (dashed: training)", histories, {"val_perplexity": "-", "perplexity": "--"})
    _draw(bleu, "BLEU of the validation sample", histories, {"val_bleu": "-"})
    _draw(rate, "Learning rate", histories, {"learning_rate": "-"})
    _draw(speed, "Tokens per second", histories, {"tokens_per_second": "-"})
    _set_log_scale(perplexity)
    for axes in (bleu, rate, speed):
        axes.set_ylim(bottom=0)
    if len(histories) == 1:
        figure.suptitle(next(iter(histories)), parse_math=False)
    else:
        for handle in figure.legend(*perplexity.get_legend_handles_labels(), loc="outside upper center").get_texts():
            handle.set_parse_math(False)
    return figure


def _draw(axes: "Axes", title: str, histories: _Histories, columns: dict[str, str]) -> None:
    """Draws columns, each in its line style, a color for each run."""
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    for number, (name, history) in enumerate(histories.items()):
        for column, style in columns.items():
            values = history.get(column, np.full(len(history["step"]), np.nan))
            label = name if style == "-" else None
            axes.plot(history["step"], values, style, color=f"C{number % 10}", label=label, marker=".")
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.text(0.5, 0.5, "not in the history", ha="center", va="center", transform=axes.transAxes)


def _set_log_scale(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = np.concatenate([line.get_ydata() for line in axes.lines])
    values = values[np.isfinite(values)]
    if not len(values) or values.max() < 3 * values.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


# ---- attention


def _draw_attention(run: RunFolder, output: Path, sentences: Sequence[str] | None) -> list[Path]:
    """Draws the attention of a run's model; without a checkpoint or validation text, warns and draws nothing."""
    try:
        checkpoint = run.checkpoint_file()
        sentences = _sentences(run) if sentences is None else sentences
    except FileNotFoundError as error:
        warnings.warn(f"no attention is drawn: {error}", UserWarning, stacklevel=3)
        return []
    translator = run.translator(checkpoint.stem)
    pictures = []
    for number, sentence in enumerate(sentences, start=1):
        figure = heat_map(*translator.attention(sentence))
        figure.suptitle(f"{run.path}, {checkpoint.name}", fontsize="small", parse_math=False)
        pictures.append(_save(figure, output / f"attention-{number}.png"))
    return pictures


def _sentences(run: RunFolder) -> list[str]:
    """Some sentences of the validation text, short enough to be read in a picture."""
    path = run.config.valid_source
    if not os.path.exists(path):
        raise FileNotFoundError(f"the validation text {path} does not exist; pass sentences")
    lines = [line for line in read_lines(path) if line.strip()][:1000]
    lengths = [len(ids) for ids in run.tokenizer.encode(lines)]
    short = [line for line, length in zip(lines, lengths, strict=True) if 1 < length <= _MAX_TOKENS]
    return (short or sorted(lines, key=len))[:_SENTENCES]


def heat_map(weights: np.ndarray, target: Sequence[str], source: Sequence[str]) -> "Figure":
    """Draws attention weights (T, S) with the tokens of both sides."""
    figure = _figure(0.42 * len(source) + 1.5, 0.34 * len(target) + 1.5)
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(source)), source, rotation=60, ha="right", parse_math=False)
    axes.set_yticks(range(len(target)), target, parse_math=False)
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    figure.colorbar(image, label="attention weight", shrink=0.8)
    return figure
