"""The progress of a training in one line: what a terminal shows at each moment, and what a log holds."""

import contextlib
import io
import math
import re
import sys
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_attention import status_line
from keras_attention.status_line import StatusLine
from keras_attention.training import ProgressLine, progress_line
from keras_attention.training.callback_state import numbers_of

WATCH = ProgressLine._watch


class Terminal(io.StringIO):
    """Standard output that is a terminal, in which `lines` are what it shows."""

    def isatty(self):
        return True

    @property
    def lines(self):
        text = re.sub(r"\x1b\[[\d;]*m", "", self.getvalue())  # colors
        shown = [line.rpartition("\r\x1b[2K")[2] for line in text.split("\n")]
        assert not any(set("\x1b\r") & set(line) for line in shown)
        return shown


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    for module in (progress_line, status_line):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(ProgressLine, "_watch", lambda *_: None)
    return clock


@contextlib.contextmanager
def as_terminal(columns=150):
    """Makes standard output a terminal; a fixture could not, since pytest replaces it before each test."""
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", terminal)
        yield terminal
        assert sys.stdout is terminal


class Fit:
    """Calls a callback as `fit` does, a batch a second after a minute of compilation."""

    def __init__(self, callback, clock, epochs=3, steps=100):
        self.callback, self.clock, self.epoch = callback, clock, 0
        self.model = SimpleNamespace(optimizer=SimpleNamespace(iterations=0))
        callback.set_model(self.model)
        callback.set_params({"epochs": epochs, "steps": steps, "verbose": "auto"})
        callback.on_train_begin()
        callback.on_epoch_begin(0)

    def train(self, first, last, loss=2.0, seconds=1.0):
        for batch in range(first, last):
            self.clock.now += 60 if self.model.optimizer.iterations == 0 else seconds
            self.model.optimizer.iterations += 1
            self.callback.on_train_batch_end(batch, {"loss": loss})

    def end_epoch(self, **logs):
        self.callback.on_epoch_end(self.epoch, logs)
        self.epoch += 1
        self.callback.on_epoch_begin(self.epoch)


def in_log(clock, **options):
    file = io.StringIO()
    return ProgressLine(console=Console(file=file, force_terminal=False), **options), file


def test_a_log_gets_a_line_a_minute_and_one_for_each_evaluation(clock):
    progress, file = in_log(clock, tokens_per_batch=700, metrics=("val_perplexity", "val_bleu"))
    fit = Fit(progress, clock)
    fit.train(0, 100, loss=2.5)
    clock.now += 30
    fit.end_epoch(val_loss=2.2, val_perplexity=9.0253, val_bleu=12.34, accuracy=0.5)
    fit.train(0, 61, loss=12345.6)
    fit.end_epoch(val_loss=2.3, val_perplexity=9.97, val_bleu=12.1)
    progress.on_train_end()
    assert file.getvalue().splitlines() == [
        "0:00:00  step 0  compiling",
        "0:01:00  step 1  loss 2.500",
        "0:02:00  step 61  700 tokens/s  loss 2.500  0:03:59 left of 3 epochs",
        "step 100: validation perplexity 9.025, BLEU 12.3, best so far",
        # 60 batches in 60 s, after 99 in 99 s and the evaluation in 30 s.
        "0:04:09  step 160  700 tokens/s  loss 12,346  BLEU 12.3  0:02:46 left of 3 epochs",
        "step 161: validation perplexity 9.970, BLEU 12.1, best at step 100",
    ]


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"minutes": 2.5, "steps": 500}, "0:00:30 left of 2.5 min"),
        ({"minutes": 0.5}, "0:00:00 left of 0.5 min"),
        ({"minutes": 30, "steps": 71}, "0:00:10 left of 71 steps"),
        ({"steps": 300}, "0:03:59 left of 300 steps"),
        ({"minutes": 30, "steps": 5000}, "0:03:59 left of 3 epochs"),
    ],
)
def test_the_time_left_is_that_of_the_first_limit(clock, limits, left):
    progress, file = in_log(clock, **limits)
    Fit(progress, clock).train(0, 61)
    assert file.getvalue().splitlines()[-1].endswith(f"  1 batches/s  loss 2.000  {left}")


def test_without_a_limit_no_time_is_left(clock):
    progress, file = in_log(clock)
    Fit(progress, clock, steps=None).train(0, 61)
    assert file.getvalue().splitlines()[-1].endswith("1 batches/s  loss 2.000")


def test_the_speed_is_that_of_the_last_half_minute(clock):
    progress, file = in_log(clock)
    fit = Fit(progress, clock)
    fit.train(0, 1000, seconds=0.01)
    fit.train(1000, 1060, seconds=1.0)
    assert "  1 batches/s" in file.getvalue().splitlines()[-1]


def test_a_terminal_shows_one_line_that_is_replaced(clock):
    with as_terminal() as terminal:
        progress = ProgressLine(minutes=30, tokens_per_batch=7000)
        fit = Fit(progress, clock)
        assert terminal.lines == ["0:00:00  step 0  compiling"]
        fit.train(0, 7)
        assert terminal.lines == ["0:01:06  step 7  7,000 tokens/s  loss 2.000  0:04:53 left of 3 epochs"]
        clock.now += 0.5
        progress.phase("translating")
        assert terminal.lines == ["0:01:06  step 7  translating"]
        clock.now += 5
        fit.end_epoch(val_loss=1.5)
        assert terminal.lines == ["step 7: validation loss 1.500, best so far", ""]
        progress.on_train_end()
        assert terminal.lines == ["step 7: validation loss 1.500, best so far", ""]


def test_a_terminal_is_written_to_at_most_four_times_a_second(clock):
    with as_terminal() as terminal:
        progress = ProgressLine()
        Fit(progress, clock).train(0, 1000, seconds=0.01)
        progress.close()
        assert terminal.getvalue().count("step ") <= 2 + 4 * 10


def test_a_line_is_cut_at_the_width_of_the_terminal(clock):
    with as_terminal(20) as terminal:
        progress = ProgressLine()
        Fit(progress, clock).train(0, 7)
        assert len(terminal.lines[0]) == 19 and terminal.lines[0].startswith("0:01:06  step 7")
        progress.close()


def test_what_others_print_erases_the_line_first(clock, monkeypatch):
    with as_terminal() as terminal:
        errors = Terminal()
        monkeypatch.setattr(sys, "stderr", errors)
        progress = ProgressLine()
        fit = Fit(progress, clock)
        for name in ("stdout", "stderr"):
            for number in range(100):
                clock.now += 1
                fit.train(number, number + 1)
                assert len(terminal.lines) == 1 or terminal.lines[-1], "the line is shown"
                print("note", number, file=getattr(sys, name))
                assert (sys.stdout, sys.stderr) == (terminal, errors)
        assert terminal.lines == [*(f"note {number}" for number in range(100)), ""]
        assert errors.getvalue() == "".join(f"note {number}\n" for number in range(100))


def test_an_interruption_leaves_the_terminal_clean(monkeypatch):
    with as_terminal() as terminal:
        monkeypatch.setattr(progress_line, "_TICK_SECONDS", 0.01)

        class Interrupt(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                raise KeyboardInterrupt

        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        progress, threads = ProgressLine(), set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            model.fit(np.ones((4, 3)), np.ones((4, 1)), callbacks=[progress, Interrupt()])
        print("Interrupted")
        assert terminal.lines == ["Interrupted", ""]
        for thread in set(threading.enumerate()) - threads:
            thread.join(timeout=10)  # it notices that `fit` has ended
            assert not thread.is_alive()


def test_a_long_phase_counts_its_time_while_fit_runs(clock, monkeypatch):
    with as_terminal() as terminal:
        monkeypatch.setattr(ProgressLine, "_watch", WATCH)
        progress = ProgressLine()
        progress.set_model(SimpleNamespace(optimizer=SimpleNamespace(iterations=0)))
        progress.phase("compiling")
        shown = []

        class Ended(threading.Event):
            def wait(self, timeout):
                shown.append(terminal.lines[-1])
                clock.now += 40
                return len(shown) > 3

        def fit():
            progress._watch(threading.get_ident(), Ended())

        fit()
        assert shown[:2] == ["0:00:00  step 0  compiling", "0:00:40  step 0  compiling  0:00:40"]
        assert shown[3] == "0:02:00  step 0  compiling  0:02:00"
        shown.clear()
        progress._watch(threading.get_ident(), Ended())  # not in `fit`
        assert terminal.lines == [""]


@pytest.mark.parametrize("variable", [None, "FORCE_COLOR"])
def test_a_file_gets_neither_escape_codes_nor_carriage_returns(monkeypatch, capsys, variable):
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 1)), validation_data=(np.ones((4, 3)), np.ones((4, 1))), epochs=2,
              callbacks=[ProgressLine()])  # fmt: skip
    model.evaluate(np.ones((4, 3)), np.ones((4, 1)), callbacks=[ProgressLine()])
    model.predict(np.ones((4, 3)), callbacks=[ProgressLine()])
    printed = capsys.readouterr().out
    assert not set("\x1b\r\b") & set(printed)
    compiling, first, second = printed.splitlines()
    assert compiling == "0:00:00  step 0  compiling"
    assert re.fullmatch(r"step 1: loss \S+, validation loss \S+, best so far", first)
    assert second.startswith("step 2: ")


def test_a_state_holds_what_a_resumed_training_shows(clock):
    progress, _ = in_log(clock)
    assert math.isinf(progress.best) and math.isnan(progress.bleu)
    fit = Fit(progress, clock)
    fit.train(0, 5)
    fit.end_epoch(val_loss=1.5, val_bleu=7.0)
    saved = {name: value for name, value in numbers_of(progress).items() if name in ("best", "best_step", "bleu")}
    assert saved == {"best": 1.5, "best_step": 5, "bleu": 7.0}
    resumed, file = in_log(clock)
    vars(resumed).update(saved)
    fit = Fit(resumed, clock)
    fit.train(0, 61)
    fit.end_epoch(val_loss=1.6)
    assert "BLEU 7.0" in file.getvalue()
    assert file.getvalue().splitlines()[-1].endswith("best at step 5")


@pytest.mark.parametrize("name", ["steps", "minutes", "tokens_per_batch"])
def test_limits_are_above_zero(name):
    with pytest.raises(ValueError, match=f"Received: {name}=0"):
        ProgressLine(**{name: 0})


def test_a_log_says_nothing_of_a_job_that_takes_less_than_a_minute(clock):
    file = io.StringIO()
    line = StatusLine(console=Console(file=file, force_terminal=False))
    for second in range(150):
        line.show(lambda second=second: f"{second} texts", at_once=True)
        clock.now += 1
    assert file.getvalue() == "60 texts\n120 texts\n"


def test_evaluation_and_prediction_have_a_line_in_a_terminal():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with as_terminal() as terminal:
        model.evaluate(np.ones((4, 3)), np.ones((4, 1)), callbacks=[ProgressLine()])
        model.predict(np.ones((4, 3)), callbacks=[ProgressLine()])
        assert terminal.lines == [""]
    for phase in ("validating", "predicting"):
        assert re.search(rf"step \S+  {phase}", re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()))


@pytest.mark.tensorflow
def test_translating_shows_the_number_of_texts_on_standard_error(clock, monkeypatch):
    from keras_attention.serving import translator

    monkeypatch.setattr(translator, "time", SimpleNamespace(monotonic=lambda: clock.now))
    shown = []
    with as_terminal() as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        for batch in translator._with_progress([np.arange(1100), np.arange(7)], 1107):
            shown.append(terminal.lines[-1])
            clock.now += len(batch)
        assert terminal.lines == [""]
        monkeypatch.setattr(sys, "stderr", log := io.StringIO())
        for batch in translator._with_progress([np.arange(50), np.arange(55), np.arange(5)], 110):
            clock.now += len(batch)
    assert shown == ["translating: 0 of 1,107 texts, 0:00:00", "translating: 1,100 of 1,107 texts, 0:18:20"]
    assert log.getvalue() == "translating: 105 of 110 texts, 0:01:45\n"
