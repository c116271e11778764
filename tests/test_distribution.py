"""Training on several devices and hosts: the losses are those of one, and a run ends and resumes on all of them."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import one_distribution
import pytest

from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig, RunFolder
from keras_attention.pipeline.hosts import HEARTBEAT_SECONDS
from keras_attention.pipeline.run_log import read_events

pytest.importorskip("jax", reason="needs jax")
pytestmark = pytest.mark.tensorflow  # on any backend, the programs that it starts run on JAX

# Float32 has 24 bits, and the losses are below 8.
ROUNDING = 8 * 2.0**-22
SETTINGS = [
    "--preset=tiny", "--vocabulary-size=200", "--set=evaluate_every=5", "--set=score_sentences=5",
    "--set=tokens_per_batch=512", "--set=packed_rows=6", "--set=row_length=72", "--set=model.dropout=0.1",
    "--set=model.num_layers=1", "--set=keep_checkpoints=2",
]  # fmt: skip


def start(program, output, *arguments):
    """Starts a program on JAX, which prints into a file."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests"), environment.get("PYTHONPATH", "")])
    with open(output, "w") as file:
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT, env=environment
        )


def free_address():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


def losses_of_eight_devices(folder, dropout):
    """The results of one process with eight devices."""
    process = start([one_distribution.__file__], folder / "eight.txt", folder / "eight.npz", 8, dropout)
    assert process.wait() == 0, (folder / "eight.txt").read_text()
    return dict(np.load(folder / "eight.npz"))


def losses_of_two_hosts(folder, dropout):
    """The results of each of two processes with one device."""
    address, hosts = free_address(), []
    for host in range(2):
        results = folder / f"host{host}.npz"
        arguments = [results, 1, dropout, address, 2, host]
        hosts.append((results, start([one_distribution.__file__], folder / f"host{host}.txt", *arguments)))
    for host, (_, process) in enumerate(hosts):
        assert process.wait() == 0, (folder / f"host{host}.txt").read_text()
    return [dict(np.load(results)) for results, _ in hosts]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return losses_of_eight_devices(tmp_path_factory.mktemp("eight"), 0.1)


@pytest.mark.parametrize("kind", ["data", "model/(2, 4)", "model/(4, 2)"])
def test_eight_devices_have_the_losses_of_one(eight, kind):
    assert eight["one"].shape == (one_distribution.STEPS,)
    assert eight["one"][-1] < 0.9 * eight["one"][0]
    np.testing.assert_allclose(eight[kind], eight["one"], rtol=0, atol=ROUNDING)


def test_each_device_holds_a_part_of_the_weights(eight):
    names, vocabulary = ("hidden_dim", "intermediate_dim", "num_heads"), one_distribution.V
    width, inner, heads = (one_distribution.SIZES[name] for name in names)
    expected = {
        "embedding/embeddings": lambda parts: (vocabulary // parts, width),
        "decoder/layer_0/cross_attention/key/kernel": lambda parts: (width, heads // parts, width // heads),
        "encoder/layer_0/self_attention/attention_output/kernel": lambda parts: (heads // parts, width // heads, width),
        "encoder/layer_0/feed_forward/intermediate/kernel": lambda parts: (width, inner // parts),
        "encoder/layer_0/feed_forward/intermediate/bias": lambda parts: (inner // parts,),
        "decoder/layer_0/feed_forward/output/kernel": lambda parts: (inner // parts, width),
        "decoder/layer_0/feed_forward/output/bias": lambda parts: (width,),
    }
    for shape, parts in (("(2, 4)", 4), ("(4, 2)", 2)):
        shapes = {name.removeprefix(f"shapes/{shape}/"): tuple(each) for name, each in eight.items() if shape in name}
        for path, local in expected.items():
            assert shapes[path] == local(parts)
            moments = [each for name, each in shapes.items() if path.replace("/", "_") in name]
            assert moments == 2 * [local(parts)]


def test_a_language_model_is_divided_too(eight):
    shapes = {name: tuple(each) for name, each in eight.items() if name.startswith("shapes/causal/decoder/layer_0/")}
    found = {name.removeprefix("shapes/causal/decoder/layer_0/"): each for name, each in shapes.items()}
    assert found["self_attention/query/kernel"] == (16, 2, 4)
    assert found["self_attention/query/bias"] == (2, 4)
    assert found["self_attention/key/kernel"] == (16, 1, 4)
    assert found["self_attention/value/bias"] == (1, 4)
    assert found["self_attention/attention_output/bias"] == (16,)
    assert found["feed_forward/gate/kernel"] == found["feed_forward/intermediate/kernel"] == (16, 16)
    assert found["feed_forward/gate/bias"] == (16,)
    assert tuple(eight["shapes/causal/embedding/embeddings"]) == (12, 16)


def test_settings_that_do_not_fit_the_devices_say_so(eight):
    heads, axis, many, none = eight["errors"].tolist()
    assert "8 devices of the mesh axis 'model'" in heads and "`num_heads` must be a multiple of 8" in heads
    assert heads.endswith("Received: num_heads=4")
    assert "one of ['batch', 'model']. Received: model_axis='heads'" in axis
    assert "JAX has 8 devices here" in many and many.endswith("Received: devices=9")
    assert "devices" in none and none.endswith("Received: devices=0")


def test_two_hosts_have_the_losses_of_one(eight, tmp_path):
    first, second = losses_of_two_hosts(tmp_path, 0.1)
    np.testing.assert_array_equal(first["hosts"], second["hosts"])
    np.testing.assert_allclose(first["hosts"], eight["one"], rtol=0, atol=ROUNDING)
    assert first["config"] == second["config"] == repr(RunConfig("a", "b", "c", "d", seed=0, model={"dropout": 0.0}))
    assert first["seconds"] == second["seconds"] == 1.5
    for results in (first, second):
        differing, devices = results["errors"].tolist()
        assert differing.endswith("Received: other values on hosts [1] than on host 0")
        assert "Several hosts train with all of their devices" in devices
    assert "training on 2 hosts with 2 devices" in (tmp_path / "host0.txt").read_text()
    assert "training on" not in (tmp_path / "host1.txt").read_text()


@pytest.mark.slow
def test_losses_without_dropout(tmp_path):
    eight = losses_of_eight_devices(tmp_path, 0.0)
    kinds = {name: eight[name] for name in ("data", "model/(2, 4)", "model/(4, 2)")}
    for losses in (*kinds.values(), *(results["hosts"] for results in losses_of_two_hosts(tmp_path, 0.0))):
        np.testing.assert_allclose(losses, eight["one"], rtol=0, atol=ROUNDING)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The options of the command for four small files."""
    folder, pairs = tmp_path_factory.mktemp("texts"), make_pairs("de", 370)
    options = []
    for split, part in (("", pairs[:300]), ("valid-", pairs[300:])):
        for side, name in enumerate(("source", "target")):
            path = folder / f"{split}{name}"
            path.write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
            options.append(f"--{split}{name}={path}")
    return options


def start_training(run, count, *options):
    """Starts the command on a number of hosts; returns their processes and the files with their output."""
    address, processes = free_address(), []
    for host in range(count):
        of_hosts = [] if count == 1 else [f"--hosts={address}", f"--num-hosts={count}", f"--host={host}"]
        output = run.parent / f"{run.name}-{host}-{time.monotonic_ns()}.txt"
        processes.append((start(["-m", "keras_attention", "train"], output, run, *options, *of_hosts), output))
    return processes


def finish(processes):
    """Waits until all processes have ended without an error; returns their output."""
    for process, output in processes:
        assert process.wait(timeout=300) == 0, output.read_text()
    return [output.read_text() for _, output in processes]


def wait_for(file, processes):
    """Waits until a file exists."""
    deadline = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process, _ in processes), processes[0][1].read_text()
        time.sleep(0.1)


def history(run):
    """The rows of the history, without speeds."""
    with open(run / "history.csv", encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items() if "second" not in name}
                for row in csv.DictReader(file)]  # fmt: skip


@pytest.mark.slow
def test_a_run_on_two_hosts_equals_one_on_one_host(texts, tmp_path):
    settings = [*texts, *SETTINGS, "--set=ema=0.9", "--max-steps=10"]
    finish(start_training(tmp_path / "one", 1, *settings))
    first, second = finish(start_training(tmp_path / "two", 2, *settings))
    rows = history(tmp_path / "one"), history(tmp_path / "two")
    assert [row["step"] for row in rows[0]] == [5, 10]
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    files = [sorted(path.name for path in (tmp_path / run / "checkpoints").iterdir()) for run in ("one", "two")]
    assert files[0] == files[1]
    assert "training on 2 hosts with 2 devices" in first
    assert "step 10: validation perplexity" in first
    assert "step 10" not in second and "trained. Next" not in second
    assert [event.name for event in read_events(tmp_path / "two" / "events.jsonl")] == ["started", "ended"]
    # It resumes on any number of hosts, with the same batches. The clock of the first one ends the training of all.
    assert "resuming from step 10" in finish(start_training(tmp_path / "two", 1, "--max-steps=12"))[0]
    assert "resuming from step 12" in finish(start_training(tmp_path / "two", 2, "--max-minutes=0.05"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_other_hosts_end_soon_after_a_killed_one_and_the_run_resumes(texts, tmp_path, killed):
    run = tmp_path / "run"
    processes = start_training(run, 2, *texts, *SETTINGS, "--max-steps=100000", "--set=checkpoint_minutes=0.01")
    wait_for(run / "checkpoints" / "state-00000005.npz", processes)
    processes[killed][0].send_signal(signal.SIGKILL)
    processes[killed][0].wait()
    other, output = processes[1 - killed]
    began = time.monotonic()
    assert other.wait(timeout=60) != 0
    assert time.monotonic() - began < HEARTBEAT_SECONDS + 20
    time.sleep(1)  # the last words come after the end of the process
    message = output.read_text()
    assert f"Host {1 - killed} of 2 ended before the training did." in message
    assert message.rstrip().endswith("the run resumes from its last checkpoint.")
    steps = max(int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("state-*.npz"))
    first = finish(start_training(run, 2, f"--max-steps={steps + 3}"))[0]
    assert f"resuming from step {steps:,}" in first
    assert RunFolder(run).model_file("final").exists()


@pytest.mark.slow
def test_sigterm_to_one_host_stops_all_with_the_state_saved(texts, tmp_path):
    run = tmp_path / "run"
    processes = start_training(run, 2, *texts, *SETTINGS, "--max-steps=100000")
    wait_for(run / "checkpoints" / "state-00000005.npz", processes)
    processes[1][0].terminate()
    for process, output in processes:
        assert process.wait(timeout=60) == 128 + signal.SIGTERM, output.read_text()
        assert "ended before the training did" not in output.read_text()
    stopped = processes[0][1].read_text().split("Stopped at step ")[1].split(",")[0]
    assert f"resuming from step {stopped}" in finish(start_training(run, 2, f"--max-steps={int(stopped) + 2}"))[0]
