"""The runs below a folder: the state of each, how far it is, and how its training ended."""

import contextlib
import dataclasses
import datetime
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.history import read_columns
from keras_attention.pipeline.lock import is_training
from keras_attention.pipeline.recorded import ENDED, FINISHED, INTERRUPTED, STARTED
from keras_attention.pipeline.run_log import Event, read_events
from keras_attention.training.state_files import state_files

TRAINING, NOT_STARTED, DAMAGED = "training", "not started", "damaged"
# A folder with two of them holds a run, even if others are lost.
_FILES = ("config.yaml", "tokenizer.model", "fingerprints.json", "history.csv", "events.jsonl", "checkpoints")


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """The state of a run.

    Attributes:
        path: Path of its folder.
        state: "training" (now), "finished", "interrupted", "diverged", "failed", "not started" (no step has been
            saved) or "damaged".
        step: Last step that was evaluated or saved; None before the first.
        bleu: Highest BLEU on the validation sample; None before the first evaluation.
        perplexity: Lowest validation perplexity; None before the first evaluation.
        tokens_per_second: Source and target tokens per second before the last evaluation; None before the first.
        ended: Why the last training ended: the limit that it reached, a signal or an error; for a damaged run, the
            damage. None while it trains.
        changed: Time of the last change of a file, in UTC, as in 2026-03-05T14:07:31Z.

    Example:
        >>> summary = RunSummary("runs/en-de", "finished", 1200, 25.5, 9.8, 8100.0, "max_steps", "2026-03-05T14:07:31Z")
        >>> summary.to_dict()["step"]
        1200
    """

    path: str
    state: str
    step: int | None
    bleu: float | None
    perplexity: float | None
    tokens_per_second: float | None
    ended: str | None
    changed: str

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Returns the summary as a dictionary, for JSON.

        Returns:
            The attributes by name.
        """
        return dataclasses.asdict(self)


def list_runs(folder: str | Path) -> list[RunSummary]:
    """Lists the runs in a folder and below it; a damaged run is listed as such.

    Args:
        folder: A folder.

    Returns:
        The runs, sorted by path.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no run.

    Example:
        >>> import pathlib
        >>> pathlib.Path("runs", "en-de", "checkpoints").mkdir(parents=True)
        >>> _ = pathlib.Path("runs", "en-de", "history.csv").write_text("step,val_bleu\\n100,25.5\\n")
        >>> for run in list_runs("runs"):
        ...     print(run.path, run.state, run.step, run.bleu, run.ended)
        runs/en-de damaged 100 25.5 config.yaml is missing
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: name the folder of your runs. Received: folder={folder}")
    runs = [summarize(path) for path in sorted(_find(folder))]
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no run, nor does a folder below it: start one with `keras-attention train`. "
            f"Received: folder={folder}"
        )
    return runs


def _find(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if sum(name in _FILES for name in (*folders, *files)) >= 2:
            yield Path(path)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def summarize(path: Path) -> RunSummary:
    """Summarizes a run, whatever the state of its files."""
    run = RunFolder(path)
    history, damage = _read_history(run)
    damage = _damage(run) or damage
    events = _read_events(run)
    state, ended = (DAMAGED, damage) if damage else _state(run, events)
    return RunSummary(
        path=str(path),
        state=state,
        step=_last_step(run, history),
        bleu=_of(history, "val_bleu", np.max),
        perplexity=_of(history, "val_perplexity", np.min),
        tokens_per_second=_of(history, "tokens_per_second", lambda values: values[-1]),
        ended=ended,
        changed=_last_change(run),
    )


def _read_history(run: RunFolder) -> tuple[dict[str, np.ndarray], str | None]:
    """The columns of the history, and what is wrong with it."""
    if not run.history_file.exists() or _is_empty(run.history_file):
        return {}, None
    try:
        return read_columns(run.history_file), None
    except (OSError, ValueError) as error:
        earlier = "holds no evaluation" in str(error) or "earlier release" in str(error)
        return {}, None if earlier else _relative(error, run)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _damage(run: RunFolder) -> str | None:
    """What is wrong with the files that training and translation need, apart from the weights in them."""
    if not run.exists:
        return f"{run.config_file.name} is missing"
    try:
        _ = run.config
        trained = run.trained
        if trained:
            _ = run.tokenizer
    except (OSError, ValueError) as error:
        return _relative(error, run)
    for file in sorted(run.checkpoints.glob("*.keras")):
        if not zipfile.is_zipfile(file):
            return f"checkpoints/{file.name} is incomplete"
    return None


def _relative(error: Exception, run: RunFolder) -> str:
    """The message of an error in one line, with paths relative to the run."""
    return " ".join(str(error).replace(f"{run.path}{os.sep}", "").split())


def _read_events(run: RunFolder) -> list[Event]:
    try:
        return read_events(run.events_file)
    except OSError:
        return []


def _state(run: RunFolder, events: list[Event]) -> tuple[str, str | None]:
    """The state of a run, and how its last training ended."""
    if _is_training(run):
        return TRAINING, None
    last = next((event for event in reversed(events) if event.name in (STARTED, ENDED)), None)
    if last is not None and last.name == ENDED:
        return str(last.details.get("how", FINISHED)), str(last.details.get("reason", ""))
    if not run.trained:
        return NOT_STARTED, None
    if last is not None:
        return INTERRUPTED, "the process was killed"
    return (FINISHED if run.model_file("final").exists() else INTERRUPTED), None  # by an earlier release


def _is_training(run: RunFolder) -> bool:
    try:
        return is_training(run.path)
    except OSError:  # without permission to read the folder
        return False


def _last_step(run: RunFolder, history: dict[str, np.ndarray]) -> int | None:
    steps = [int(step) for step in history.get("step", ())[-1:] if np.isfinite(step)]
    for file in state_files(run.checkpoints)[-1:]:
        with contextlib.suppress(ValueError):
            steps.append(int(file.stem.rpartition("-")[2]))
    return max(steps, default=None)


def _of(history: dict[str, np.ndarray], name: str, choose: Callable[[np.ndarray], float]) -> float | None:
    values = history.get(name, np.array([]))
    values = values[np.isfinite(values)]
    return float(choose(values)) if len(values) else None


def _last_change(run: RunFolder) -> str:
    """The time of the last change of a file that training writes."""
    files = [run.config_file, run.history_file, run.events_file]
    times = [0.0]
    for file in (*files, *run.checkpoints.glob("*")):
        with contextlib.suppress(OSError):  # missing, or removed since
            times.append(file.stat().st_mtime)
    return datetime.datetime.fromtimestamp(max(times), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
