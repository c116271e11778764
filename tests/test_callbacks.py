"""Callbacks in `fit`, and the average of checkpoints."""

import errno
import math
import os

import keras
import numpy as np
import pytest

from keras_attention import training
from keras_attention.training import (
    Checkpoints,
    EpochMetrics,
    FailOnDivergence,
    Score,
    StopAfter,
    Throughput,
    average_checkpoints,
    callbacks,
    weight_files,
    write_atomically,
)

STEPS = 3  # in an epoch


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)  # no graph to trace: quicker here
    return model


def fit(model, epochs, *others, **options):
    x, y = np.random.rand(STEPS, 2), np.random.rand(STEPS, 1)
    return model.fit(x, y, batch_size=1, epochs=epochs, callbacks=list(others), verbose=0, **options)


def steps_taken(model):
    return int(model.optimizer.iterations)


class Clock:
    """A clock that moves when told to, instead of the machine's."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: self.now)

    def after_each_batch(self, seconds):
        def move(batch, logs):
            self.now += seconds

        return keras.callbacks.LambdaCallback(on_train_batch_end=move)


@pytest.mark.parametrize("text", ["", "nan", "two", "\0"])
def test_a_damaged_value_of_the_best_is_named(model, tmp_path, text):
    callback = Checkpoints(tmp_path)
    callback.set_model(model)
    (tmp_path / "best.txt").write_text(text)
    callback.on_train_begin()  # a new training begins without it
    model.optimizer.iterations.assign(1)
    with pytest.raises(ValueError, match=r"best\.txt must hold the `val_loss` of best\.keras: restore the file, or"):
        callback.on_train_begin()
    (tmp_path / "best.txt").write_text("2.5")
    callback.on_train_begin()
    assert callback.best == 2.5


class Logs(keras.callbacks.Callback):
    """Puts given values into the logs, one in each epoch."""

    def __init__(self, **values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs.update({name: values[epoch] for name, values in self.values.items() if epoch < len(values)})


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_stops_after_a_number_of_steps(model, steps):
    fit(model, 5, StopAfter(steps=steps))
    assert steps_taken(model) == steps


def test_steps_of_earlier_runs_count(model):
    fit(model, 1)
    fit(model, 5, StopAfter(steps=STEPS + 2))
    assert steps_taken(model) == STEPS + 2


def test_stops_after_minutes(model, monkeypatch):
    clock = Clock(monkeypatch)
    fit(model, 5, clock.after_each_batch(31.0), StopAfter(minutes=2))
    assert steps_taken(model) == 4  # 124 seconds are the first at or above 120
    fit(model, 5, clock.after_each_batch(30.0), StopAfter(minutes=2))
    assert steps_taken(model) == 8  # the time of the first run does not count


def test_stops_at_whichever_comes_first(model, monkeypatch):
    clock = Clock(monkeypatch)
    fit(model, 5, clock.after_each_batch(60.0), StopAfter(steps=2, minutes=7))
    assert steps_taken(model) == 2
    fit(model, 5, clock.after_each_batch(60.0), StopAfter(steps=100, minutes=1))
    assert steps_taken(model) == 3


def test_no_limit_stops_nothing(model):
    fit(model, 2, StopAfter())
    assert steps_taken(model) == 2 * STEPS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StopAfter(steps=0), r"`steps` must be a positive integer. Received: steps=0"),
        (lambda: StopAfter(minutes=-1), r"`minutes` must be a number above zero. Received: minutes=-1"),
        (lambda: Checkpoints("folder", keep=0), r"`keep` must be a positive integer. Received: keep=0"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [EpochMetrics, Score, lambda bleu: Score(score=bleu)])
def test_metrics_reach_the_logs_of_each_epoch(model, make):
    values = iter([11.5, 13.0])
    history = fit(model, 2, make(lambda: {"val_bleu": next(values)})).history
    assert history["val_bleu"] == [11.5, 13.0]


def test_the_earlier_name_of_atomic_writing():
    assert training.write_whole is write_atomically


def test_throughput_counts_training_only(model, monkeypatch):
    clock = Clock(monkeypatch)

    def evaluate(epoch, logs):
        clock.now += 1000.0

    slow_evaluation = keras.callbacks.LambdaCallback(on_epoch_end=evaluate)
    history = fit(model, 2, clock.after_each_batch(0.5), slow_evaluation, Throughput(tokens_per_step=70)).history
    assert history["tokens_per_second"] == [70 / 0.5] * 2


def test_checkpoints_keep_the_last_weights_and_the_whole_model(model, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    fit(model, 4, Checkpoints(folder, keep=2))
    names = [path.name for path in weight_files(folder)]
    assert names == ["step-00000009.weights.h5", "step-00000012.weights.h5"]
    assert sorted(path.name for path in folder.iterdir()) == ["last.keras", *names]
    again = keras.models.load_model(folder / "last.keras")
    assert steps_taken(again) == 12
    for one, other in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    weights = model.get_weights()
    fit(model, 1)
    model.load_weights(weight_files(folder)[-1])
    for one, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_best_is_the_epoch_with_the_lowest_value(model, tmp_path):
    values = [3.0, math.nan, 2.0, 2.5]
    fit(model, 5, Logs(val_loss=values), Checkpoints(tmp_path))  # the fifth epoch has none
    assert steps_taken(keras.models.load_model(tmp_path / "best.keras")) == 3 * STEPS
    assert steps_taken(keras.models.load_model(tmp_path / "last.keras")) == 5 * STEPS


def test_another_entry_may_be_monitored(model, tmp_path):
    fit(model, 3, Logs(val_loss=[1, 2, 3], other=[3, 1, 2]), Checkpoints(tmp_path, monitor="other"))
    assert steps_taken(keras.models.load_model(tmp_path / "best.keras")) == 2 * STEPS


@pytest.mark.parametrize(("later", "best"), [([2.5, 2.2], 1), ([2.5, 1.5], 4)], ids=["worse", "better"])
def test_best_of_an_earlier_run_is_only_replaced_by_a_better_one(model, tmp_path, later, best):
    fit(model, 2, Logs(val_loss=[2.0, 3.0]), Checkpoints(tmp_path))
    resumed = keras.models.load_model(tmp_path / "last.keras")
    fit(resumed, 4, Logs(val_loss=[0, 0, *later]), Checkpoints(tmp_path), initial_epoch=2)
    assert steps_taken(keras.models.load_model(tmp_path / "best.keras")) == best * STEPS


def test_a_new_model_does_not_wait_for_the_best_of_an_old_one(model, tmp_path):
    fit(model, 1, Logs(val_loss=[1.0]), Checkpoints(tmp_path))
    new = keras.models.clone_model(model)
    new.compile("adam", "mse", run_eagerly=True)
    fit(new, 2, Logs(val_loss=[5.0, 4.0]), Checkpoints(tmp_path))
    assert steps_taken(keras.models.load_model(tmp_path / "best.keras")) == 2 * STEPS


def test_a_run_cut_off_while_writing_leaves_the_file_before(model, tmp_path, monkeypatch):
    fit(model, 1, Checkpoints(tmp_path))

    def half(path):
        with open(path, "wb") as file:
            file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save", half)
    with pytest.raises(KeyboardInterrupt):
        fit(model, 1, Checkpoints(tmp_path))
    assert steps_taken(keras.models.load_model(tmp_path / "last.keras")) == STEPS
    assert [path.name for path in weight_files(tmp_path)] == ["step-00000003.weights.h5", "step-00000006.weights.h5"]


def test_a_file_is_written_atomically(tmp_path):
    place = tmp_path / "note.txt"
    place.write_text("before")

    def write(path):
        assert place.read_text() == "before"
        assert path.endswith(".txt"), "what is written may depend on the ending"
        with open(path, "w") as file:
            file.write("after")

    write_atomically(place, write)
    assert place.read_text() == "after"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("kind", ["weights", "model"])
def test_average_is_the_mean_of_each_weight(model, tmp_path, kind):
    paths, values = [], []
    for i in range(3):
        model.set_weights([np.random.normal(size=weight.shape) for weight in model.weights])
        values.append(model.get_weights())
        paths.append(tmp_path / {"weights": f"{i}.weights.h5", "model": f"{i}.keras"}[kind])
        (model.save_weights if kind == "weights" else model.save)(paths[-1])
    average_checkpoints(model, paths)
    for weight, *each in zip(model.get_weights(), *values, strict=True):
        np.testing.assert_allclose(weight, np.mean(each, axis=0, dtype="float64"), rtol=1e-6)
    average_checkpoints(model, [str(paths[1])])
    for weight, expected in zip(model.get_weights(), values[1], strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_average_of_what_is_not_there_is_refused(model, tmp_path):
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"`paths` must name at least one checkpoint to average. Received: paths=\[\]$"
    ):
        average_checkpoints(model, [])
    model.save_weights(tmp_path / "there.weights.h5")
    missing = tmp_path / "missing.weights.h5"
    with pytest.raises(FileNotFoundError, match=rf"These checkpoints do not exist: {missing}$"):
        average_checkpoints(model, [tmp_path / "there.weights.h5", missing])
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["damaged", "of another model"])
def test_average_of_a_file_that_does_not_fit_changes_nothing(model, tmp_path, kind):
    before = model.get_weights()
    model.set_weights([weight + 1 for weight in before])
    model.save_weights(tmp_path / "there.weights.h5")
    model.set_weights(before)
    wrong = tmp_path / "wrong.weights.h5"
    if kind == "damaged":
        wrong.write_bytes(b"no weights")
    else:
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]).save_weights(wrong)
    with pytest.raises(
        ValueError, match=r"(?s)`paths` must be checkpoints of the same `model`.* Received: paths with .*wrong"
    ):
        average_checkpoints(model, [tmp_path / "there.weights.h5", wrong])
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
def test_average_of_quantized_weights_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 3))
    model.quantize("int8")
    model.save_weights(tmp_path / "there.weights.h5")
    with pytest.raises(
        ValueError, match=r"Average the checkpoints of the `model` before .* Received: a model with quantized"
    ):
        average_checkpoints(model, [tmp_path / "there.weights.h5"])


@pytest.mark.parametrize("name", ["loss", "val_loss", "val_perplexity"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_ends_training_before_a_checkpoint_is_written(model, tmp_path, name, value):
    values = Logs(**{name: [2.0, value, 1.0]})
    with pytest.raises(FloatingPointError, match=rf"diverged at step {2 * STEPS}.*Received: {name}={value}"):
        fit(model, 3, values, FailOnDivergence(), Checkpoints(tmp_path, monitor=name))
    for file in ("last.keras", "best.keras"):
        assert steps_taken(keras.models.load_model(tmp_path / file)) == STEPS


def test_a_loss_that_is_no_number_ends_training_at_its_step(model):
    def break_weights(batch, logs):
        model.set_weights([np.full(weight.shape, np.nan) for weight in model.get_weights()])

    breaking = keras.callbacks.LambdaCallback(on_train_batch_end=break_weights)
    with pytest.raises(FloatingPointError, match=r"diverged at step 2\..*Received: loss=nan"):
        fit(model, 3, breaking, FailOnDivergence())


def disk_is_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_noticed_before_hdf5_writes(model, tmp_path, monkeypatch):
    fit(model, 1, Checkpoints(tmp_path))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "posix_fallocate", disk_is_full)
    monkeypatch.setattr(model, "save_weights", lambda path: pytest.fail("HDF5 must not meet the full disk"))
    with pytest.raises(OSError, match=r"No space left on device: .*step-00000006\.weights\.h5") as caught:
        fit(model, 1, Checkpoints(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert sorted(tmp_path.iterdir()) == before
    assert steps_taken(keras.models.load_model(tmp_path / "last.keras")) == STEPS


def test_where_room_cannot_be_reserved_the_file_is_written(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write_atomically(tmp_path / "note.txt", lambda path: open(path, "w").close(), size=100)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("failure", [disk_is_full, lambda path: open(path).close()])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, failure):
    place = tmp_path / "note.txt"
    with pytest.raises(OSError, match=r"/note\.txt'"):
        write_atomically(place, failure)
    place.mkdir()
    with pytest.raises(IsADirectoryError, match=r"/note\.txt'"):
        write_atomically(place, lambda path: open(path, "w").close())
    assert list(tmp_path.iterdir()) == [place]


def test_a_run_cut_off_at_its_first_best_can_be_resumed(model, tmp_path, monkeypatch):
    save = model.save

    def save_last_only(path):
        if "best" in str(path):
            raise KeyboardInterrupt
        save(path)

    monkeypatch.setattr(model, "save", save_last_only)
    with pytest.raises(KeyboardInterrupt):
        fit(model, 1, Logs(val_loss=[1.0]), Checkpoints(tmp_path))
    assert steps_taken(keras.models.load_model(tmp_path / "last.keras")) == STEPS
    assert len(weight_files(tmp_path)) == 1


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"no HDF5"])
def test_damaged_weights_are_called_damaged(model, tmp_path, damage):
    file = tmp_path / "step.weights.h5"
    model.save_weights(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"step\.weights\.h5 is damaged"):
        average_checkpoints(model, [file])


def test_ten_weights_are_kept_by_default(model, tmp_path):
    fit(model, 12, Checkpoints(tmp_path))
    assert [path.name for path in weight_files(tmp_path)] == [
        f"step-{STEPS * epoch:08d}.weights.h5" for epoch in range(3, 13)
    ]


def test_an_equal_value_does_not_replace_the_best(model, tmp_path):
    fit(model, 3, Logs(val_loss=[2.0, 2.0, 2.5]), Checkpoints(tmp_path))
    assert steps_taken(keras.models.load_model(tmp_path / "best.keras")) == STEPS
    assert float((tmp_path / "best.txt").read_text()) == 2.0
    resumed = keras.models.load_model(tmp_path / "last.keras")
    fit(resumed, 1, Logs(val_loss=[2.0]), Checkpoints(tmp_path))
    assert steps_taken(keras.models.load_model(tmp_path / "best.keras")) == STEPS


def test_the_best_value_of_an_earlier_run_is_read_to_the_last_digit(model, tmp_path):
    value = 1 / 3
    fit(model, 1, Logs(val_loss=[value]), Checkpoints(tmp_path))
    resumed, checkpoints = keras.models.load_model(tmp_path / "last.keras"), Checkpoints(tmp_path)
    checkpoints.set_model(resumed)
    checkpoints.on_train_begin()
    assert checkpoints.best == value
    checkpoints.on_epoch_end(1)  # an epoch without logs is none to compare
    assert checkpoints.best == value


def test_throughput_sums_up_its_epochs(model, monkeypatch):
    clock, throughput = Clock(monkeypatch), Throughput(tokens_per_step=7000)
    fit(model, 4, clock.after_each_batch(9.0), throughput)
    assert (throughput.steps, throughput.seconds) == (4 * STEPS, 4 * STEPS * 9.0)
    assert throughput.summary() == "1.8 minutes of training, 778 source and target tokens/s"
