"""Several hosts: the rows of each, their description, and errors where they do nothing."""

import re
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import BACKEND
from click.testing import CliRunner

import keras_attention as ka
from keras_attention.cli import main
from keras_attention.pipeline import Hosts, train
from keras_attention.pipeline.hosts import check_same, of_first_host
from keras_attention.text import BatchShard, PackedBatches, TokenBatches
from keras_attention.training import data_parallel

LAST_WORDS = Path(ka.__file__).parent / "pipeline" / "last_words.py"
IDS = [[[5 + n % 3] * (1 + n % 7) for n in range(40)], [[6 + n % 2] * (1 + n % 5) for n in range(40)]]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("num_shards, num_devices", [(1, 3), (2, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("kind", ["packed", "tokens", "ladder"])
def test_shards_together_are_the_rows_of_the_batch(kind, num_shards, num_devices, dropout):
    if kind == "packed":
        batches = PackedBatches(*IDS, row_length=17, rows_per_batch=5, source_word_dropout=dropout)
    else:
        max_shapes = 3 if kind == "ladder" else None
        batches = TokenBatches(*IDS, tokens_per_batch=40, max_shapes=max_shapes, source_word_dropout=dropout)
    shards = [BatchShard(batches, index, num_shards, num_devices) for index in range(num_shards)]
    assert {len(shard) for shard in shards} == {len(batches)}
    for epoch in (0, 1):
        for index in batches.plan(epoch):
            whole, labels = batches.batch(index, epoch)
            parts = [shard.batch(index, epoch) for shard in shards]
            for name, expected in (*whole.items(), ("labels", labels)):
                rows = [part[1] if name == "labels" else part[0][name] for part in parts]
                assert len({each.shape for each in rows}) == 1
                assert len(rows[0]) % num_devices == 0
                rows = np.concatenate(rows)
                assert len(rows) - len(expected) < num_shards * num_devices
                np.testing.assert_array_equal(rows[: len(expected)], expected)
                assert not rows[len(expected) :].any()


def test_a_shard_resumes_where_the_whole_batches_do():
    batches = PackedBatches(*IDS, row_length=17, rows_per_batch=4)
    shard = BatchShard(batches, index=1, num_shards=2)
    resumed = iter(shard.dataset(first_epoch=1, first_batch=1).repeat())
    for epoch, number in ((1, 1), (1, 2)):
        inputs, labels = next(resumed)
        whole, whole_labels = batches.batch(batches.plan(epoch)[number], epoch)
        np.testing.assert_array_equal(inputs["source"], whole["source"][2:])
        np.testing.assert_array_equal(labels, whole_labels[2:])
    assert shard.fingerprint() == batches.fingerprint()


def test_a_shard_has_the_shapes_of_its_batches():
    batches = TokenBatches(*IDS, tokens_per_batch=40, max_shapes=3)
    shard = BatchShard(batches, index=0, num_shards=2, num_devices=2)
    shapes = {labels.shape for _, labels in shard.batch_of_each_shape()}
    assert shapes == {(-(-rows // 4) * 2, length) for rows, length in batches.shapes}
    assert {shard.batch(index)[1].shape for index in batches.plan(0)} <= shapes


@pytest.mark.parametrize("arguments", [(2, 2), (-1, 2), (0, 0), (0, 1, 0)])
def test_numbers_of_a_shard_are_checked(arguments):
    with pytest.raises(ValueError, match="Received: "):
        BatchShard(PackedBatches(*IDS), *arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("10.0.0.1:1234",), "or none of them .* Received: coordinator='10.0.0.1:1234', num_hosts=None, host=None"),
        (("10.0.0.1", 2, 0), "a port, such as 10.0.0.1:1234. Received: coordinator='10.0.0.1'"),
        (("10.0.0.1:1234", 2, 2), "below `num_hosts`. Received: .*host=2"),
        (("10.0.0.1:1234", 2, -1), "below `num_hosts`. Received: .*host=-1"),
    ],
)
def test_hosts_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Hosts(*arguments)


def test_hosts_of_the_environment(monkeypatch):
    assert Hosts.from_environment() == Hosts()
    for name, value in (("JOB_ADDRESSES", "a:1,b:1"), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "1")):
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    assert Hosts.from_environment() == Hosts("a:1", 2, 1)
    monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "2")
    with pytest.raises(ValueError, match=r"Received: .*KERAS_DISTRIBUTION_PROCESS_ID='2'"):
        Hosts.from_environment()


@pytest.mark.skipif(BACKEND == "jax", reason="is about the other backends")
def test_other_backends_than_jax_say_what_to_do(tmp_path):
    config = ka.pipeline.RunConfig("a", "b", "c", "d")
    expected = f"needs JAX.*set KERAS_BACKEND=jax.*Received: KERAS_BACKEND={BACKEND}"
    with pytest.raises(ValueError, match=f"`hosts` {expected}"):
        train(tmp_path / "run", config, max_steps=1, hosts=Hosts())
    with pytest.raises(ValueError, match=expected):
        data_parallel()
    with pytest.raises(ValueError, match=f"`layout_map` {expected}"):
        ka.Transformer.layout_map(None)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is about TensorFlow")
def test_a_distribution_of_keras_does_nothing_on_tensorflow_and_says_so():
    distribution = keras.distribution.DataParallel()
    with distribution.scope(), pytest.raises(ValueError, match=r"A keras.distribution needs JAX.*MirroredStrategy"):
        ka.Transformer.from_preset("tiny", vocabulary_size=10)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num-hosts=2"], "--num-hosts and --host need --hosts HOST:PORT"),
        (["--hosts=env", "--host=0"], "--num-hosts and --host need --hosts HOST:PORT"),
        (["--hosts=a:1", "--num-hosts=2"], "Give the address of the first host"),
        (["--hosts=a:1", "--num-hosts=2", "--host=0"], "`hosts` needs JAX"),
    ],
)
@pytest.mark.skipif(BACKEND == "jax", reason="connects on JAX")
def test_the_command_checks_hosts(tmp_path, options, message):
    files = []
    for name in ("source", "target", "valid-source", "valid-target"):
        (tmp_path / name).write_text("a\n", encoding="utf-8")
        files.append(f"--{name}={tmp_path / name}")
    result = CliRunner().invoke(main, ["train", str(tmp_path / "run"), *files, "--max-steps=1", *options])
    assert result.exit_code != 0
    assert re.search(re.escape(message), result.output)


def test_one_process_agrees_with_itself():
    config = ka.pipeline.RunConfig("a", "b", "c", "d", model={"dropout": 0.1})
    assert of_first_host(config) == config
    check_same([{"a": 1}, 2])


@pytest.mark.parametrize(
    "end, is_printed",
    [
        ("os.abort()", True),
        ("os.kill(os.getpid(), 9)", True),
        ("1 / 0", True),
        ("sys.exit(143)", False),
        ("pass", False),
    ],
)
def test_last_words_of_a_process(end, is_printed, tmp_path):
    program = f"""
import os, runpy, sys
with runpy.run_path({str(LAST_WORDS)!r})["last_words"]("These are the last words."):
    {end}
"""
    with open(tmp_path / "errors.txt", "w") as file:
        subprocess.run([sys.executable, "-I", "-c", program], stderr=file, check=False)
    deadline = time.monotonic() + (10 if is_printed else 0.3)
    while time.monotonic() < deadline and "last words." not in (tmp_path / "errors.txt").read_text():
        time.sleep(0.02)
    assert (tmp_path / "errors.txt").read_text().endswith("These are the last words.\n") == is_printed
