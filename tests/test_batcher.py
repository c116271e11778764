"""The queue before the model: which requests are joined, split, refused."""

import dataclasses
import threading

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serving")

import tensorflow as tf

from keras_attention.server.batcher import Batcher
from keras_attention.server.errors import RequestError
from keras_attention.server.limits import Limits
from keras_attention.server.signature import Signature

pytestmark = pytest.mark.tensorflow

ROWS = tf.TensorSpec([None, None], tf.int32)
DOUBLE = Signature("double", {"x": ROWS}, {"y": ROWS})
TRIPLE = Signature("triple", {"x": ROWS}, {"y": ROWS})
SCALAR = Signature("scalar", {"x": tf.TensorSpec([], tf.int32)}, {"y": tf.TensorSpec([], tf.int32)})
FACTOR = {"double": 2, "triple": 3, "scalar": 5}
LONG = 300  # seconds after which a test gives up


def rows(number, first=1, width=2):
    return {"x": np.arange(first, first + number * width, dtype=np.int32).reshape(number, width)}


class Gate:
    """A model that waits until it may run, and remembers the batches it got."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()
        self.batches = []

    def __call__(self, signature, inputs):
        self.entered.set()
        assert self.open.wait(LONG)
        self.batches.append((signature.name, np.asarray(inputs["x"]).shape))
        if np.any(np.asarray(inputs["x"]) < 0):
            raise RequestError("INVALID_ARGUMENT", "below zero")
        return {"y": FACTOR[signature.name] * inputs["x"]}


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def make(gate):
    """Makes batchers whose model is busy with a first request, so that what comes next waits together."""
    made = []

    def make_batcher(**limits):
        batcher = Batcher(gate, Limits(**limits))
        made.append(batcher)
        made.append(batcher.submit(TRIPLE, rows(1)))
        assert gate.entered.wait(LONG)
        return batcher

    yield make_batcher
    gate.open.set()
    for each in made:
        if isinstance(each, Batcher):
            each.close()


def test_what_waits_together_runs_together_and_each_gets_its_rows(make, gate):
    batcher = make()
    inputs = [rows(number, first) for number, first in ((2, 1), (3, 50), (0, 0), (1, 90))]
    answers = [batcher.submit(DOUBLE, each) for each in inputs]
    gate.open.set()
    for each, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer.result(LONG)["y"], 2 * each["x"])
    assert gate.batches == [("triple", (1, 2)), ("double", (6, 2))]


def test_other_signatures_and_other_widths_are_not_joined(make, gate):
    batcher = make()
    asked = [(DOUBLE, rows(2)), (TRIPLE, rows(3)), (DOUBLE, rows(1, width=5)), (DOUBLE, rows(4))]
    answers = [batcher.submit(*each) for each in asked]
    gate.open.set()
    for (signature, inputs), answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer.result(LONG)["y"], FACTOR[signature.name] * inputs["x"])
    assert gate.batches[1:] == [("double", (6, 2)), ("triple", (3, 2)), ("double", (1, 5))]


def test_a_signature_without_a_batch_runs_alone(make, gate):
    batcher = make()
    answers = [batcher.submit(SCALAR, {"x": np.int32(number).reshape(())}) for number in (3, 4)]
    gate.open.set()
    assert [answer.result(LONG)["y"] for answer in answers] == [15, 20]
    assert gate.batches[1:] == [("scalar", ()), ("scalar", ())]


def test_a_batch_is_not_larger_than_allowed_but_a_request_may_be(make, gate):
    batcher = make(batch_rows=5)
    answers = [batcher.submit(DOUBLE, rows(number)) for number in (3, 3, 7, 2)]
    gate.open.set()
    for number, answer in zip((3, 3, 7, 2), answers, strict=True):
        assert len(answer.result(LONG)["y"]) == number
    assert sorted(shape[0] for _, shape in gate.batches[1:]) == [3, 5, 7]


def test_a_batch_that_is_full_does_not_wait(gate):
    gate.open.set()
    batcher = Batcher(gate, Limits(batch_rows=3, batch_wait=LONG))
    assert len(batcher.submit(DOUBLE, rows(3)).result(LONG / 2)["y"]) == 3
    batcher.close()


def test_one_bad_request_fails_alone(make, gate):
    batcher = make()
    good, bad, other = (batcher.submit(DOUBLE, rows(2, first)) for first in (1, -10, 7))
    gate.open.set()
    assert good.result(LONG)["y"][0, 0] == 2
    assert other.result(LONG)["y"][0, 0] == 14
    with pytest.raises(RequestError, match="below zero"):
        bad.result(LONG)


def test_outputs_without_the_batch_first_are_an_error_and_not_split_wrongly():
    gate = threading.Event()

    def run(signature, inputs):
        assert gate.wait(LONG)
        return {"y": inputs["x"].T[:3]}

    batcher = Batcher(run)
    first = batcher.submit(TRIPLE, rows(1, width=3))
    answers = [batcher.submit(DOUBLE, rows(2, width=5)) for _ in range(2)]
    gate.set()
    assert first.result(LONG)["y"].shape == (3, 1)  # by itself, with nothing to split
    assert [answer.result(LONG)["y"].shape for answer in answers] == [(3, 2), (3, 2)]  # so each is run by itself
    batcher.close()


def test_a_cancelled_request_is_not_run(make, gate):
    batcher = make()
    gone, here = batcher.submit(DOUBLE, rows(2)), batcher.submit(DOUBLE, rows(3))
    assert gone.cancel()
    gate.open.set()
    assert len(here.result(LONG)["y"]) == 3
    assert gate.batches[1:] == [("double", (3, 2))]


def test_batches_of_cancelled_requests_do_not_end_the_work(make, gate):
    batcher = make(queue=2)
    gone = [batcher.submit(DOUBLE, rows(1)) for _ in range(2)]
    assert all(answer.cancel() for answer in gone)
    here = batcher.submit(DOUBLE, rows(2))  # the cancelled ones do not fill the queue
    gate.open.set()
    assert len(here.result(LONG)["y"]) == 2


def test_a_full_queue_refuses_and_says_that_it_may_be_tried_again(make, gate):
    batcher = make(queue=2)
    taken = [batcher.submit(DOUBLE, rows(1)) for _ in range(2)]
    assert batcher.waiting == 2
    with pytest.raises(RequestError, match=r"has 2 requests waiting\. Try again later") as refused:
        batcher.submit(DOUBLE, rows(1))
    assert refused.value.http_status == 503
    gate.open.set()
    assert all(len(answer.result(LONG)["y"]) == 1 for answer in taken)


def test_closing_answers_what_waits(make, gate):
    batcher = make()
    waiting = batcher.submit(DOUBLE, rows(1))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(RequestError, match="shutting down"):
        waiting.result(LONG)
    gate.open.set()
    closing.join(LONG)
    with pytest.raises(RequestError, match="shutting down"):
        batcher.submit(DOUBLE, rows(1))


def test_closing_does_not_wait_for_a_run_without_end(make, gate):
    batcher = make()
    running = batcher._running[0].response
    batcher.close(grace=0)
    with pytest.raises(RequestError, match="shutting down"):
        running.result(LONG)
    gate.open.set()
    batcher.close()  # the run ends without harm


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"the inputs are \['x'\]\. Missing: \['x'\]"),
        ({**rows(1), "z": np.zeros(1)}, r"Unknown: \['z'\]"),
        ({"x": np.zeros((1, 2), np.float32)}, "input 'x' takes int32. Received: float32"),
        ({"x": np.array([[b"1"]], object)}, "Received: string"),
        ({"x": np.zeros(3, np.int32)}, r"takes shape \(any, any\)\. Received: \(3,\)"),
        (rows(257), "may have 256 rows; send several. Received: 257 rows"),
    ],
)
def test_requests_that_do_not_fit_are_refused(gate, inputs, message):
    batcher = Batcher(gate)
    with pytest.raises(RequestError, match=message) as refused:
        batcher.submit(DOUBLE, inputs)
    assert refused.value.http_status == 400
    batcher.close()


def test_inputs_of_different_lengths_are_refused(gate):
    both = Signature("both", {"x": ROWS, "z": ROWS}, {"y": ROWS})
    batcher = Batcher(gate)
    with pytest.raises(RequestError, match=r"same number of rows. Received: \{'x': 2, 'z': 3\}"):
        batcher.submit(both, {"x": rows(2)["x"], "z": rows(3)["x"]})
    batcher.close()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0. Received: {name}=-1"):
        Limits(**{name: -1})


def test_each_run_is_told_with_its_signature_and_rows(gate):
    told = []
    batcher = Batcher(gate, observe=lambda signature, number: told.append((signature.name, number)))
    first = batcher.submit(TRIPLE, rows(1))
    assert gate.entered.wait(LONG)
    answers = [batcher.submit(DOUBLE, rows(number)) for number in (2, 3)]
    gate.open.set()
    assert [len(answer.result(LONG)["y"]) for answer in (first, *answers)] == [1, 2, 3]
    batcher.close()
    assert told == [("triple", 1), ("double", 5)]


def test_a_request_of_as_many_rows_as_allowed_and_a_queue_of_one(make, gate):
    batcher = make(request_rows=5, queue=1)
    with pytest.raises(RequestError, match=r"may have 5 rows; send several\. Received: 6 rows"):
        batcher.submit(DOUBLE, rows(6))
    most = batcher.submit(DOUBLE, rows(5))
    with pytest.raises(RequestError, match="has 1 requests waiting"):
        batcher.submit(DOUBLE, rows(1))
    gate.open.set()
    assert len(most.result(LONG)["y"]) == 5


def test_a_batch_that_takes_too_long_is_not_run_again():
    gate, entered, batches = threading.Event(), threading.Event(), []

    def run(signature, inputs):
        entered.set()
        assert gate.wait(LONG)
        batches.append(len(inputs["x"]))
        if signature is DOUBLE:
            raise RequestError("DEADLINE_EXCEEDED", "too slow")
        return {"y": inputs["x"]}

    batcher = Batcher(run)
    first = batcher.submit(TRIPLE, rows(1))
    assert entered.wait(LONG)
    answers = [batcher.submit(DOUBLE, rows(2)) for _ in range(3)]
    gate.set()
    assert len(first.result(LONG)["y"]) == 1
    for answer in answers:
        with pytest.raises(RequestError, match="too slow"):
            answer.result(LONG)
    batcher.close()
    assert batches == [1, 6]


def test_closing_twice_and_closing_nothing(gate):
    gate.open.set()
    batcher = Batcher(gate)
    assert batcher.waiting == 0
    batcher.close()
    batcher.close()
    with pytest.raises(RequestError, match=r"The server is shutting down\. Try again later") as refused:
        batcher.submit(DOUBLE, rows(1))
    assert (refused.value.code, refused.value.http_status) == ("UNAVAILABLE", 503)
