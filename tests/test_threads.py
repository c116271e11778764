"""Threads of TensorFlow, which settles them once: each case is a process of its own."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from keras_attention.cli import main

pytestmark = pytest.mark.tensorflow

SHARED = """
import os
import tensorflow as tf
from keras_attention.serving import share_cores, threads
os.sched_getaffinity = lambda process: range({there})
{before}
share_cores({cores})
print(tf.config.threading.get_intra_op_parallelism_threads(), threads.cores_are_shared())
"""
COMPUTED, CHOSEN = "tf.ones(3)", "tf.config.threading.set_intra_op_parallelism_threads(5)"


@pytest.mark.parametrize(
    ("before", "there", "cores", "variables", "expected"),
    [
        ("", 7, "", {}, "3 True"),
        ("", 11, 7, {}, "3 True"),
        ("", 1, "", {}, "1 False"),
        (COMPUTED, 7, "", {}, "0 False"),
        (CHOSEN, 7, "", {}, "5 True"),
        (CHOSEN, 5, "", {}, "5 False"),
        ("", 7, "", {"TF_NUM_INTRAOP_THREADS": "2"}, "0 False"),
    ],
)
def test_each_batch_has_its_share_of_the_cores(before, there, cores, variables, expected):
    outside = {name: value for name, value in os.environ.items() if name != "TF_NUM_INTRAOP_THREADS"}
    quiet = {**outside, "TF_CPP_MIN_LOG_LEVEL": "3", **variables}
    code = SHARED.format(before=before, there=there, cores=cores)
    result = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
    assert result.stdout == f"{expected}\n", result.stderr


@pytest.mark.parametrize("name", ["translate", "evaluate", "export"])
def test_commands_share_cores_among_batches(name, tmp_path, monkeypatch):
    """Before they load a run, of which there is none here."""
    calls = []
    monkeypatch.setattr("keras_attention.serving.share_cores", lambda: calls.append(1))
    (tmp_path / "text").write_text("a b\n", encoding="utf-8")
    files = {"translate": ["text"], "evaluate": ["text", "text"], "export": ["exported"]}[name]
    result = CliRunner().invoke(main, [name, str(tmp_path), *(str(tmp_path / file) for file in files)])
    assert "is not the folder of a training run" in result.output
    assert len(calls) == 1
