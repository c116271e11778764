"""A training that is interrupted at any moment ends with the weights of one that is not."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_attention.text import PackedBatches, TokenBatches
from keras_attention.training import (
    DecayToLimit,
    ExponentialMovingAverage,
    InverseSqrtSchedule,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Muon,
    ResumableRun,
    ResumableTensorBoard,
    state_files,
)
from keras_attention.training.epoch_logs import remove_later_logs

pytestmark = pytest.mark.tensorflow

VOCABULARY = 23
EVERY_BATCH = 1e-9  # minutes
EPOCHS = 2
BATCHES = 5  # in an epoch


def make_ids(seed, count=37):
    random = np.random.default_rng(seed)
    return [random.integers(4, VOCABULARY, random.integers(1, 11)).tolist() for _ in range(count)]


def token_batches(**changes):
    options = {"tokens_per_batch": 89, "source_word_dropout": 0.1, **changes}
    return TokenBatches(make_ids(5), make_ids(6), **options)


def packed_batches(**changes):
    return PackedBatches(make_ids(5), make_ids(6), **{"row_length": 23, "rows_per_batch": 3, **changes})


def make_model(optimizer=None, packed=False, width=7, run_eagerly=True, **options):
    """A small model that is quick to build, and without a graph quick to start."""
    keras.utils.set_random_seed(3)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("source", "target")}
    source, target = (keras.layers.Embedding(VOCABULARY, width)(inputs[name]) for name in ("source", "target"))
    hidden = target + keras.ops.mean(source, axis=1, keepdims=True)
    if packed:
        names = ("source_segments", "target_segments")
        inputs.update((name, keras.Input((None,), dtype="int32", name=name)) for name in names)
        counts = keras.ops.cast(keras.ops.max(inputs["source_segments"], axis=1, keepdims=True), "float32")
        hidden = hidden * keras.ops.expand_dims(counts - keras.ops.cast(inputs["target_segments"], "float32"), -1)
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(11, activation="relu")(hidden))
    model = keras.Model(inputs, keras.layers.Dense(VOCABULARY)(hidden))
    options = {"loss": MaskedCrossEntropy(label_smoothing=0.1), "metrics": [MaskedAccuracy()], **options}
    model.compile(optimizer or keras.optimizers.Adam(0.01), run_eagerly=run_eagerly, **options)
    return model


class Killed(Exception):
    """Ends the process of a test, as far as the training can tell."""


class KillAfter(keras.callbacks.Callback):
    """Ends a training after a number of batches of this `fit`."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise Killed


class SignalAt(keras.callbacks.Callback):
    """Sends signals to its own process within a batch of this `fit`."""

    def __init__(self, batch, *numbers):
        super().__init__()
        self.batch, self.numbers = batch, numbers

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            for number in self.numbers:
                signal.raise_signal(number)  # in this thread


def fit(model, run, *others, epochs=EPOCHS, **options):
    arguments = {"initial_epoch": run.initial_epoch, "steps_per_epoch": run.steps_per_epoch, **options}
    callbacks = [*run.callbacks, run, *others]
    return model.fit(run.dataset(), epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **arguments)


def state_of(model):
    variables = {id(each): each for each in (*model.variables, *model.optimizer.variables)}
    return [keras.ops.convert_to_numpy(each) for each in variables.values()]


def assert_same(model, other):
    assert len(state_of(model)) == len(state_of(other)) > 10
    for mine, theirs in zip(state_of(model), state_of(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The model and the run of a training without an interruption."""
    model, run = make_model(), ResumableRun(tmp_path_factory.mktemp("whole"), token_batches())
    fit(model, run)
    return model, run


def assert_ends_as(whole, folder):
    """A new process resumes in the folder, and ends as the training without an interruption."""
    model, run = make_model(), ResumableRun(folder, token_batches())
    fit(model, run)
    assert_same(model, whole[0])
    assert run.history == whole[1].history
    return run


def interrupt(folder, batches, **options):
    """A process that is killed after a number of batches."""
    with pytest.raises(Killed):
        fit(make_model(), ResumableRun(folder, token_batches(), minutes=EVERY_BATCH, **options), KillAfter(batches))


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam, accumulated": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "muon": lambda: Muon(0.01),
    "muon, accumulated": lambda: Muon(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make_data", [token_batches, packed_batches])
def test_interrupted_after_every_other_batch_it_ends_as_without(tmp_path, make_data, optimizer):
    """Also within the batches of a step, and between the last batch of an epoch and its end."""

    def parts(folder):
        ema = ExponentialMovingAverage(0.9, update_every=2)
        run = ResumableRun(folder, make_data(), minutes=EVERY_BATCH, callbacks=[ema])
        return make_model(OPTIMIZERS[optimizer](), packed=make_data is packed_batches), run, ema

    def rate():
        return DecayToLimit(InverseSqrtSchedule(hidden_dim=7, warmup_steps=3), steps=7)

    model, run, ema = parts(tmp_path / "whole")
    assert run.steps_per_epoch == len(run.data)
    fit(model, run, rate())
    stops = []
    while True:
        other, resumed, others_ema = parts(tmp_path / "parts")
        try:
            fit(other, resumed, rate(), KillAfter(2))
            break
        except Killed:
            stops.append(resumed.batch)
    batches = EPOCHS * run.steps_per_epoch
    assert stops == sorted(stops)
    assert len(set(stops)) >= batches // 2
    assert_same(other, model)
    assert resumed.history == run.history
    assert len(run.history["loss"]) == len(run.history["accuracy"]) == EPOCHS
    with ema.applied(), others_ema.applied():
        assert_same(other, model)


@pytest.mark.parametrize("batches", range(1, EPOCHS * BATCHES + 1))
def test_killed_after_any_batch_it_ends_as_without(tmp_path, whole, batches):
    """States are only those at the ends of epochs, so that batches are trained again."""
    assert whole[1].steps_per_epoch == BATCHES
    with pytest.raises(Killed):
        fit(make_model(), ResumableRun(tmp_path, token_batches()), KillAfter(batches))
    run = assert_ends_as(whole, tmp_path)
    assert (run.batch, run.epoch) == (EPOCHS * BATCHES, EPOCHS)


def rows_of(file):
    return list(csv.reader(file.read_text().splitlines()))


def events(folder):
    """The tags, steps and values of the scalars in all event files."""
    found = []
    for path in sorted(Path(folder).rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            found += [
                (path.parent.name, value.tag, event.step, tf.make_ndarray(value.tensor).item())
                for value in event.summary.value
                if value.metadata.plugin_data.plugin_name == "scalars" and "vs_iterations" not in value.tag
            ]
    return sorted(found)


def test_callbacks_logs_and_validation_resume(tmp_path):
    """Early stopping with the best weights, a falling learning rate, a CSV file, TensorBoard."""
    epochs = 9

    def parts(folder):
        folder.mkdir(exist_ok=True)
        callbacks = [
            keras.callbacks.EarlyStopping(patience=2, min_delta=0.5, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.5, factor=0.5),
            keras.callbacks.CSVLogger(folder / "log.csv", append=True),
            ResumableTensorBoard(folder / "logs"),
        ]
        return make_model(), ResumableRun(folder / "states", token_batches(), minutes=EVERY_BATCH, callbacks=callbacks)

    validation = {"validation_data": token_batches(shuffle=False, source_word_dropout=0.0).dataset()}
    model, run = parts(tmp_path / "whole")
    fit(model, run, epochs=epochs, **validation)
    assert 2 < run.epoch < epochs, "the training ends early"
    rates = run.history["learning_rate"]
    assert rates[-1] < rates[0]
    stops = []
    while True:
        other, resumed = parts(tmp_path / "parts")
        try:
            fit(other, resumed, KillAfter(BATCHES + 2), epochs=epochs, **validation)
            break
        except Killed:
            stops.append(resumed.batch)
            resumed.callbacks[2].on_train_end()  # closes its file, as the end of a process does
    assert len(stops) > 1
    assert_same(other, model)
    assert resumed.history == run.history
    assert set(run.history) == {"accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"}
    rows, others = (rows_of(tmp_path / name / "log.csv") for name in ("whole", "parts"))
    assert others == rows
    assert [row[0] for row in rows[1:]] == [str(epoch) for epoch in range(run.epoch)]
    assert events(tmp_path / "parts") == events(tmp_path / "whole")
    assert [step for _, tag, step, _ in events(tmp_path / "whole") if tag == "epoch_loss"] == 2 * list(range(run.epoch))

    again, ended = parts(tmp_path / "parts")
    fit(again, ended, epochs=epochs, **validation)
    for mine, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)  # those of the best epoch, without another one
    assert ended.history == run.history


def test_a_csv_file_loses_the_rows_of_later_epochs_and_an_incomplete_one(tmp_path):
    file = tmp_path / "log.csv"
    callback = keras.callbacks.CSVLogger(file, append=True)
    interrupt(tmp_path, BATCHES + 1)
    file.write_text("epoch,loss,note\n0,2.5,a\n1,2.4,b\n2,2")
    run = ResumableRun(tmp_path, token_batches(), callbacks=[callback])
    run.set_model(make_model())
    assert rows_of(file) == [["epoch", "loss", "note"], ["0", "2.5", "a"]]
    file.write_text("other\n1\n")
    run = ResumableRun(tmp_path, token_batches(), callbacks=[callback])
    run.set_model(make_model())
    assert file.read_text() == "other\n1\n"


def test_an_event_file_that_is_cut_off_loses_its_incomplete_record(tmp_path):
    def logs():
        return ResumableTensorBoard(tmp_path / "logs")

    fit(make_model(), ResumableRun(tmp_path, token_batches(), callbacks=[logs()]))
    before = events(tmp_path)
    (path,) = tmp_path.rglob("events.out.tfevents.*")
    content = path.read_bytes()
    remove_later_logs(logs(), epoch=EPOCHS, step=99)
    assert path.read_bytes() == content
    path.write_bytes(content[:-5])
    remove_later_logs(logs(), epoch=EPOCHS - 1, step=BATCHES)
    assert events(tmp_path) == [each for each in before if each[2] < EPOCHS - 1]
    assert len(events(tmp_path)) * EPOCHS == len(before)


def damage_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_middle,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"text"),
    ],
    ids=["a bit", "cut off", "empty", "other"],
)
def test_a_damaged_state_is_skipped_with_a_warning(tmp_path, whole, damage):
    interrupt(tmp_path, 4)
    earlier, newest = state_files.state_files(tmp_path)
    assert (earlier.name, newest.name) == ("state-00000003.npz", "state-00000004.npz")
    damage(newest)
    with pytest.warns(UserWarning, match=r"state-00000004\.npz is damaged, so training does not resume from it: \w"):
        run = ResumableRun(tmp_path, token_batches())
    assert run.batch == 3
    fit(make_model(), run, epochs=1)  # removes the damaged file
    assert [path.name for path in state_files.state_files(tmp_path)] == ["state-00000003.npz", "state-00000005.npz"]
    assert_ends_as(whole, tmp_path)


def test_only_damaged_states_are_refused(tmp_path):
    interrupt(tmp_path, 2)
    for path in state_files.state_files(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"only damaged files: .*Received: state-00000001"):
        ResumableRun(tmp_path, token_batches())


def test_a_state_of_a_later_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(state_files, "VERSION", 2)
    interrupt(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"written by another version of keras_attention.* Received: version=2"):
        ResumableRun(tmp_path, token_batches())


def test_killed_while_it_writes_a_state(tmp_path, whole, monkeypatch):
    """What is left of that file is removed."""
    interrupt(tmp_path, 3)
    left = tmp_path / ".writing-01234567-state-00000004.npz"

    def half(file, **members):
        left.write_bytes(b"half a file")
        raise Killed

    monkeypatch.setattr(state_files.np, "savez", half)
    with pytest.raises(Killed):
        fit(make_model(), ResumableRun(tmp_path, token_batches(), minutes=EVERY_BATCH))
    monkeypatch.undo()
    assert left.exists()
    assert ResumableRun(tmp_path, token_batches()).batch == 3
    assert_ends_as(whole, tmp_path)
    assert not list(tmp_path.glob(".writing-*"))


def test_a_full_disk_leaves_the_earlier_states(tmp_path, whole, monkeypatch):
    interrupt(tmp_path, 3)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(state_files.np, "savez", full)
    with pytest.raises(OSError, match=r"No space left on device: .*state-00000004\.npz") as error:
        fit(make_model(), ResumableRun(tmp_path, token_batches(), minutes=EVERY_BATCH))
    monkeypatch.undo()
    (note,) = error.value.__notes__
    assert "Earlier states remain: state-00000002.npz, state-00000003.npz" in note
    assert_ends_as(whole, tmp_path)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of signals are as before a test, also after a `fit` that ended with an error."""
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.fixture
def ctrl_c():
    """Python's handler of Ctrl-C, which a process in the background may not have."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["Ctrl-C", "SIGTERM"]
)
@pytest.mark.parametrize("batch", [2, BATCHES - 1], ids=["within an epoch", "in its last batch"])
def test_a_signal_saves_a_state(ctrl_c, tmp_path, whole, capsys, number, error, batch):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error) as raised:
        fit(make_model(), ResumableRun(tmp_path, token_batches()), SignalAt(batch, number))
    if error is SystemExit:
        assert raised.value.code == 143
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    name = f"state-{batch + 1:08d}.npz"
    assert [path.name for path in state_files.state_files(tmp_path)] == [name]
    printed = capsys.readouterr().out
    assert f"{number.name}: training stops after this step, with its state saved. Again: at once." in printed
    assert f"Stopped at step {batch + 1}, saved in {tmp_path / name}. To resume, run the same again." in printed
    assert_ends_as(whole, tmp_path)


def test_a_second_signal_acts_at_once(ctrl_c, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), ResumableRun(tmp_path, token_batches()), SignalAt(2, signal.SIGINT, signal.SIGINT))
    assert not state_files.state_files(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_after_a_training_act_at_once(ctrl_c, tmp_path):
    interrupt(tmp_path, 1)  # `fit` ends without `on_train_end`
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupt(tmp_path, 1)
    fit(make_model(), ResumableRun(tmp_path, token_batches()))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_number_of_states_is_kept(tmp_path):
    fit(make_model(), ResumableRun(tmp_path, token_batches(), minutes=EVERY_BATCH, keep=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{step:08d}.npz" for step in (8, 9, 10)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"seed": 2}}, r"of a training on other data: .* Received: seed: 1 in the state, 2 now$"),
        ({"data": {"tokens_per_batch": 83}}, r"tokens_per_batch: 89 in the state, 83 now; steps_per_epoch: 5 in the"),
        ({"optimizer": Muon}, r"training with another optimizer: .* Received: optimizer: 'Adam' in the state, 'Muon'"),
        (
            {"optimizer": lambda: keras.optimizers.Adam(0.01, beta_1=0.8)},
            r"Received: beta_1: 0.9 in the state, 0.8 now$",
        ),
        ({"model": {"width": 5}}, r"state of another model: .*embeddings \(23, 7\) float32 in the state, .*\(23, 5\)"),
        ({"model": {"metrics": []}}, r"state of another metrics: .* in the state, no variable now"),
        ({"fit": {"steps_per_epoch": 4}}, r"`steps_per_epoch=run.steps_per_epoch` to `fit`. .*=4, expected 5"),
        ({"fit": {"initial_epoch": 1}}, r"`initial_epoch=run.initial_epoch` to `fit`. Received: initial_epoch=1"),
        ({"model": {"steps_per_execution": 2}}, r"must divide the 5 steps of an epoch. .*steps_per_execution=2"),
        ({"run": {"keep": 0}}, r"`keep` must be a positive integer. Received: keep=0"),
        ({"run": {"minutes": 0}}, r"`minutes` must be a number above zero. Received: minutes=0"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, changes, message):
    interrupt(tmp_path, 2)
    optimizer = changes.get("optimizer", lambda: keras.optimizers.Adam(0.01))()
    with pytest.raises(ValueError, match=message):
        fit(
            make_model(optimizer, **changes.get("model", {})),
            ResumableRun(tmp_path, token_batches(**changes.get("data", {})), **changes.get("run", {})),
            **changes.get("fit", {}),
        )


def test_epochs_of_another_length_end_at_its_multiples(tmp_path, whole):
    interrupt(tmp_path, 4)
    model, run = make_model(), ResumableRun(tmp_path, token_batches(), steps_per_epoch=3)
    ends = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: stops.append((epoch, run.batch)))
    stops = []
    fit(model, run, ends, epochs=3)
    assert stops == [(0, 6), (1, 9), (2, 12)]
    assert len(run.history["loss"]) == 3
    _, other = make_model(), ResumableRun(tmp_path, token_batches(), steps_per_epoch=5)
    assert (other.batch, other.initial_epoch) == (12, 3)


def test_a_discarded_state_is_not_used(tmp_path, whole):
    interrupt(tmp_path, 4)
    model, run = make_model(), ResumableRun(tmp_path, token_batches())
    run.discard()
    assert (run.batch, run.step, run.epoch, run.history) == (0, 0, 0, {})
    fit(model, run)
    assert_same(model, whole[0])


def test_callbacks_are_those_of_fit(tmp_path):
    run = ResumableRun(tmp_path, token_batches(), callbacks=[keras.callbacks.EarlyStopping()])
    with pytest.raises(ValueError, match=r"callbacks of a ResumableRun to `fit` too. .* without \['EarlyStopping'\]"):
        make_model().fit(run.dataset(), steps_per_epoch=BATCHES, shuffle=False, callbacks=[run], verbose=0)


def test_another_learning_rate_is_used(tmp_path):
    interrupt(tmp_path, 2)
    model = make_model(keras.optimizers.Adam(0.002))
    run = ResumableRun(tmp_path, token_batches())
    run.set_model(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.002)
    assert int(model.optimizer.iterations) == 2


def test_bfloat16_weights_resume(tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = make_model()
        fit(model, ResumableRun(tmp_path, token_batches()), epochs=1)
        other = make_model()
        ResumableRun(tmp_path, token_batches()).set_model(other)
    finally:
        keras.config.set_dtype_policy(policy)
    assert model.dtype == "bfloat16"
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(np.float32(mine), np.float32(theirs))


def test_two_calls_of_fit_are_one_training(tmp_path, whole):
    """The history is that of both, in one process too."""
    model, run = make_model(), ResumableRun(tmp_path, token_batches())
    fit(model, run, epochs=1)
    fit(model, run)
    assert_same(model, whole[0])
    assert run.history == whole[1].history


# A process that trains, writes a state after each batch, and kills itself: in the last batch, or half-way through the
# state that follows it.
SCRIPT = """
import os, signal, sys
import numpy as np, keras
from keras_attention.training import ResumableRun, state_files
from tests.test_resumable_run import EVERY_BATCH, fit, make_model, state_of, token_batches
folder, batches, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
run = ResumableRun(folder + "/states", token_batches(), minutes=EVERY_BATCH)
model = make_model(run_eagerly=False)
count, savez = [run.batch], np.savez

def kill(file=None, **members):
    if file is not None and moment == "writing" and run.batch >= batches:
        file.write(b"PK" + bytes(5000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(file, **members)

def begin(batch, logs):
    if moment == "batch" and run.batch >= batches:
        os.kill(os.getpid(), signal.SIGKILL)

state_files.np.savez = kill
fit(model, run, keras.callbacks.LambdaCallback(on_train_batch_begin=begin))
savez(folder + "/end.npz", *state_of(model), loss=run.history["loss"])
"""


def run_script(folder, batches, moment):
    folder.mkdir(exist_ok=True)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(batches), moment]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)


def assert_end(folder, done):
    """The last process ended as one without an interruption, here in this process."""
    assert done.returncode == 0, done.stderr[-3000:]
    model, run = make_model(run_eagerly=False), ResumableRun(folder / "other", token_batches())
    fit(model, run)
    with np.load(folder / "end.npz") as end:
        assert end["loss"].tolist() == run.history["loss"]
        for index, value in enumerate(state_of(model)):
            np.testing.assert_array_equal(end[f"arr_{index}"], value)
    assert not list((folder / "states").glob(".writing-*"))


def test_a_killed_process_resumes(tmp_path):
    """Half-way through writing a state, after which the state before it counts."""
    done = run_script(tmp_path, 7, "writing")
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert len(list((tmp_path / "states").glob(".writing-*"))) == 1
    assert ResumableRun(tmp_path / "states", token_batches()).batch == 6
    assert_end(tmp_path, run_script(tmp_path, 99, "never"))


@pytest.mark.slow
def test_a_process_killed_at_ten_random_moments_resumes(tmp_path):
    random = np.random.default_rng(11)
    moments = random.permutation(["writing"] * 3 + ["batch"] * 7)
    batches = np.sort(random.integers(1, EPOCHS * BATCHES, len(moments)))
    for number, moment in zip(batches, moments, strict=True):
        done = run_script(tmp_path, number, moment)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert_end(tmp_path, run_script(tmp_path, 99, "never"))
