"""What a run tells the model card of its export."""

import json
import os

import pytest

from keras_attention.pipeline import RunConfig, RunFolder, evaluate_translations, record_scores, run_card

FILES = {"source": "train.en", "target": "train.fr", "valid_source": "dev.en", "valid_target": "dev.fr"}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(RunConfig.from_preset("tiny", **FILES))
    run.checkpoints.mkdir()
    for checkpoint in ("final", "best"):
        run.model_file(checkpoint).write_text("weights")
    return run


@pytest.fixture(scope="module")
def scores():
    return evaluate_translations(["the cat sat on the mat"], ["the cat sat on a mat"])


def test_a_run_that_was_not_evaluated_tells_its_data(run):
    assert run_card(run.path) == {"data": FILES, "bleu": None}


def test_scores_come_with_their_signature_and_what_they_are_of(run, scores):
    record_scores(run.path, scores, source="test.en", beam_size=4)
    bleu = run_card(run.path)["bleu"]
    assert bleu["bleu"] == pytest.approx(scores.bleu)
    assert "version:" in bleu["signature"]
    assert (bleu["checkpoint"], bleu["source"], bleu["beam_size"]) == ("final", "test.en", 4)
    assert json.loads(json.dumps(bleu)) == bleu
    assert run_card(run.path, "final")["bleu"] == bleu


def test_scores_of_another_checkpoint_or_an_older_one_are_left_out(run, scores):
    record_scores(run.path, scores, "best")
    assert run_card(run.path)["bleu"] is None
    assert run_card(run.path, "best")["bleu"]["checkpoint"] == "best"
    os.utime(run.model_file("best"))  # copied
    assert run_card(run.path, "best")["bleu"] is not None
    run.model_file("best").write_text("trained on")
    os.utime(run.path / "scores.json")
    assert run_card(run.path, "best")["bleu"] is None


def test_scores_of_an_older_release_go_by_the_time(run, scores):
    record_scores(run.path, scores)
    file = run.path / "scores.json"
    file.write_text(
        json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "sha256"})
    )
    assert run_card(run.path)["bleu"] is not None
    recorded = file.stat().st_mtime
    os.utime(run.model_file("final"), (recorded + 1, recorded + 1))  # trained on
    assert run_card(run.path)["bleu"] is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"5", b"\xff"])
def test_scores_that_are_damaged_are_named(run, content):
    (run.path / "scores.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"scores\.json is damaged: remove it, or evaluate the run again"):
        run_card(run.path)


def test_no_run_and_no_checkpoint(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a training run"):
        run_card(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"only final, best: choose one .* Received: checkpoint='average'"):
        run_card(run.path, "average")
    for checkpoint in ("final", "best"):
        run.model_file(checkpoint).unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint yet: train it\. Received: checkpoint='average'"):
        run_card(run.path, "average")
