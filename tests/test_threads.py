"""Threads of TensorFlow, which settles them once: each case is a process of its own."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from keras_attention.cli import main, using

pytestmark = pytest.mark.tensorflow

SHARED = """
import tensorflow as tf
from keras_attention.serving import share_cores
{before}
share_cores({cores})
print(tf.config.threading.get_intra_op_parallelism_threads())
"""
COMPUTED, CHOSEN = "tf.ones(3)", "tf.config.threading.set_intra_op_parallelism_threads(5)"


@pytest.mark.parametrize(
    ("before", "cores", "variables", "expected"),
    [
        ("", 7, {}, 3),
        ("", 1, {}, 1),
        (COMPUTED, 7, {}, 0),
        (CHOSEN, 7, {}, 5),
        ("", 7, {"TF_NUM_INTRAOP_THREADS": "2"}, 0),
    ],
)
def test_each_batch_has_its_share_of_the_cores(before, cores, variables, expected):
    outside = {name: value for name, value in os.environ.items() if name != "TF_NUM_INTRAOP_THREADS"}
    quiet = {**outside, "TF_CPP_MIN_LOG_LEVEL": "3", **variables}
    code = SHARED.format(before=before, cores=cores)
    found = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
    assert found.stdout == f"{expected}\n", found.stderr


@pytest.mark.parametrize(("lines", "expected"), [(using.MANY_LINES - 1, 0), (using.MANY_LINES, 1)])
@pytest.mark.parametrize("name", ["translate", "evaluate"])
def test_commands_share_cores_among_the_batches_of_many_lines(name, lines, expected, tmp_path, monkeypatch):
    """Before they load a checkpoint, of which there is none here."""
    calls = []
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr("keras_attention.serving.share_cores", lambda: calls.append(1))
    (tmp_path / "text").write_text("a b\n" * lines, encoding="utf-8")
    files = [str(tmp_path / "text")] * (1 if name == "translate" else 2)
    found = CliRunner().invoke(main, [name, str(tmp_path), *files])
    assert "has no checkpoint" in found.output
    assert len(calls) == expected
