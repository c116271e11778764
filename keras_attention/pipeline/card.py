"""The entries of a run in the model card of its export: data files and evaluation scores."""

import json
from pathlib import Path
from typing import Any

from keras_attention.files import write_atomically
from keras_attention.pipeline.evaluate import CorpusScores
from keras_attention.pipeline.folder import RunFolder, sha256
from keras_attention.pipeline.run_log import read_events


def record_scores(run: str | Path, scores: CorpusScores, checkpoint: str | None = None, **about: Any) -> None:
    """Saves the scores of an evaluation in the run, for the model card of a later export.

    Args:
        run: Folder of the run.
        scores: Scores from `evaluate_translations`.
        checkpoint: See `RunFolder.translator`.
        **about: Files and options of the evaluation, such as `source`, `target` and `beam_size`.
    """
    folder = RunFolder(run)
    file = folder.checkpoint_file(checkpoint)
    entry = {
        "bleu": scores.bleu,
        "signature": scores.bleu_signature,
        "chrf": scores.chrf,
        "chrf_signature": scores.chrf_signature,
        "checkpoint": file.stem,
        "sha256": sha256(file),
        **about,
    }
    text = json.dumps(entry, indent=2, ensure_ascii=False) + "\n"
    write_atomically(_scores_file(folder), lambda path: Path(path).write_text(text, encoding="utf-8"))


def run_card(run: str | Path, checkpoint: str | None = None) -> dict[str, Any]:
    """Returns the `card` for `serving.export`: the text files of a run and, if they were recorded, its scores.

    Scores of another checkpoint, or of an earlier version of the checkpoint, are left out. `init_from` is the run with
    whose weights this one began, if there is one.

    Args:
        run: Folder of the run.
        checkpoint: See `RunFolder.translator`.

    Returns:
        Entries of the model card.

    Raises:
        FileNotFoundError: If the folder holds no run or no such checkpoint.
        ValueError: If the file of the scores is damaged.
    """
    folder = RunFolder(run)
    files = ("source", "target", "valid_source", "valid_target")
    started = [event.details for event in read_events(folder.events_file) if event.name == "initialized"]
    return {
        "data": {name: str(getattr(folder.config, name)) for name in files},
        "bleu": _scores(folder, folder.checkpoint_file(checkpoint)),
        **({"init_from": dict(started[-1])} if started else {}),
    }


def _scores_file(run: RunFolder) -> Path:
    return run.path / "scores.json"


def _scores(run: RunFolder, checkpoint: Path) -> dict[str, Any] | None:
    file = _scores_file(run)
    if not file.exists():
        return None
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        name = entry["checkpoint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: remove it, or evaluate the run again") from error
    if "sha256" in entry:
        same = entry.pop("sha256") == sha256(checkpoint)
    else:  # written by a release without it
        same = file.stat().st_mtime >= checkpoint.stat().st_mtime
    return entry if same and name == checkpoint.stem else None
