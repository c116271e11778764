"""TensorBoard logs every few steps: their values, and that an interrupted training leaves those of one that is not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from events import scalars_of
from test_resumable_run import (
    BATCHES,
    EPOCHS,
    EVERY_BATCH,
    KillAfter,
    Killed,
    fit,
    make_model,
    packed_batches,
    token_batches,
)

from keras_attention.training import FusedAdam, Muon, Perplexity, ResumableRun, ResumableTensorBoard, StepTensorBoard

pytestmark = pytest.mark.tensorflow

OPTIMIZERS = {
    "adam": lambda: FusedAdam(0.01, global_clipnorm=0.01),
    "muon, accumulated": lambda: Muon(0.01, gradient_accumulation_steps=3),
}
TIMED = "steps/tokens_per_second"


def points(folder, tag, split="train"):
    """The step and the value of each point of a curve."""
    return [(step, value) for run, each, step, value in scalars_of(folder) if (run, each) == (split, tag)]


class Batches(keras.callbacks.Callback):
    """Records each batch of a training by itself: the metrics start anew at each."""

    def __init__(self):
        super().__init__()
        self.logs, self.norms = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        rows, tokens = (int(metric.count) for metric in (self.model.metrics[0], self.model.metrics[1].metrics[0]))
        self.logs.append({**logs, "rows": rows, "tokens": tokens})
        self.norms.append(float(self.model.optimizer.gradient_norm))


def train(folder, every, batches=None, epochs=EPOCHS, optimizer="adam", others=(), data=None, **options):
    """The callback, after a training in the folder, new or resumed."""
    data = data or token_batches()
    logs = StepTensorBoard(folder / "logs", every, data)
    run = ResumableRun(folder / "states", data, minutes=EVERY_BATCH, callbacks=[*others, logs])
    model = make_model(OPTIMIZERS[optimizer](), packed=hasattr(data, "row_length"), **options)
    fit(model, run, *([] if batches is None else [KillAfter(batches)]), epochs=epochs)
    return logs, model


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """The batches of a training, each by itself."""
    recorded = Batches()
    run = ResumableRun(tmp_path_factory.mktemp("batches"), token_batches())
    metrics = [Perplexity()]
    fit(make_model(OPTIMIZERS["adam"](), metrics=metrics), run, recorded)
    return recorded


def test_a_point_is_the_mean_over_the_batches_since_the_last_point(tmp_path, batches):
    train(tmp_path, every=3, metrics=[Perplexity()])
    parts = [batches.logs[first : first + 3] for first in range(0, EPOCHS * BATCHES - 2, 3)]  # one across two epochs
    losses = [np.average([b["loss"] for b in part], weights=[b["rows"] for b in part]) for part in parts]
    logs = [np.average([np.log(b["perplexity"]) for b in part], weights=[b["tokens"] for b in part]) for part in parts]
    steps, values = zip(*points(tmp_path, "steps/loss"), strict=True)
    assert steps == (3, 6, 9)
    np.testing.assert_allclose(values, losses, rtol=1e-5)
    np.testing.assert_allclose([value for _, value in points(tmp_path, "steps/perplexity")], np.exp(logs), rtol=1e-5)
    norms = [np.mean(batches.norms[first : first + 3]) for first in range(0, EPOCHS * BATCHES - 2, 3)]
    np.testing.assert_allclose([value for _, value in points(tmp_path, "steps/gradient_norm")], norms, rtol=1e-6)
    np.testing.assert_allclose([value for _, value in points(tmp_path, "steps/learning_rate")], 0.01, rtol=1e-6)
    assert len(points(tmp_path, TIMED)) == 3


def test_the_gradient_norm_is_that_of_all_gradients_before_they_are_clipped(batches):
    model, data = make_model(OPTIMIZERS["adam"]()), token_batches()
    inputs, labels = next(iter(data.dataset()))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, labels, model(inputs, training=True))
    gradients = [np.asarray(tf.convert_to_tensor(each)) for each in tape.gradient(loss, model.trainable_weights)]
    expected = np.linalg.norm(np.concatenate([each.ravel() for each in gradients]))
    assert expected > 0.01 == model.optimizer.global_clipnorm
    np.testing.assert_allclose(batches.norms[0], expected, rtol=1e-5)


@pytest.mark.parametrize("make_data", [token_batches, packed_batches])
def test_padding_and_tokens_are_those_of_the_batches(tmp_path, make_data):
    data = make_data()
    for epoch in range(2):
        counts = [
            (
                sum(int(np.count_nonzero(each)) for each in (inputs["source"], labels)),
                inputs["source"].size + labels.size,
            )
            for inputs, labels in (data.batch(index, epoch) for index in data.plan(epoch))
        ]
        assert data.token_counts(epoch).tolist() == [list(each) for each in counts]
        assert sum(tokens for tokens, _ in counts) == data.num_tokens
    train(tmp_path, every=2, data=data)
    counts = np.concatenate([data.token_counts(epoch) for epoch in range(EPOCHS)])
    expected = [1 - part.sum(axis=0)[0] / part.sum(axis=0)[1] for part in np.split(counts, range(2, len(counts), 2))]
    values = [value for _, value in points(tmp_path, "steps/padding")]
    np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-6)
    assert len(values) == len(counts) // 2


@pytest.mark.parametrize(("optimizer", "every"), [("adam", 2), ("muon, accumulated", 1)])
def test_an_interrupted_training_leaves_the_events_of_one_that_is_not(tmp_path, every, optimizer):
    """Also between the batches of a step, in which an epoch may end, and with another callback's files."""

    def arguments(folder):
        others = [ResumableTensorBoard(folder / "logs" / "epochs")]
        validated = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_loss=epoch / 8))
        return {"every": every, "optimizer": optimizer, "others": [validated, *others]}

    train(tmp_path / "whole", **arguments(tmp_path / "whole"))
    kills = 0
    while True:
        try:
            train(tmp_path / "parts", batches=BATCHES - 2, **arguments(tmp_path / "parts"))
            break
        except Killed:
            kills += 1
    assert kills > 2
    whole, parts = (
        [(*each, None if tag == TIMED else value) for *each, value in scalars_of(folder) for tag in (each[1],)]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    assert parts == whole
    assert [value for _, value in points(tmp_path / "parts", "steps/loss", "validation")] == [0, 1 / 8]
    steps = [step for step, _ in points(tmp_path / "parts", "steps/loss")]
    last = EPOCHS * BATCHES // (1 if optimizer == "adam" else 3)
    assert steps == list(range(every, last + 1, every))


def test_events_after_the_last_state_are_written_again(tmp_path):
    """States only at the ends of epochs."""

    def run(folder, *others):
        data = token_batches()
        logs = StepTensorBoard(folder / "logs", every=2, data=data)
        resumable = ResumableRun(folder / "states", data, callbacks=[logs])
        fit(make_model(OPTIMIZERS["adam"]()), resumable, *others)

    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", KillAfter(2 * BATCHES - 1))
    before = points(tmp_path / "parts", "steps/loss")
    run(tmp_path / "parts")
    assert points(tmp_path / "parts", "steps/loss") == points(tmp_path / "whole", "steps/loss")
    assert len(before) == 4
    assert len(points(tmp_path / "parts", "steps/padding")) == 5


def test_steps_in_one_execution_are_counted(tmp_path):
    train(tmp_path, every=2, run_eagerly=False, steps_per_execution=5)
    assert [step for step, _ in points(tmp_path, "steps/loss")] == [5, 10]
    counts = token_batches().token_counts(1).sum(axis=0)
    assert points(tmp_path, "steps/padding")[1][1] == pytest.approx(1 - counts[0] / counts[1])


def test_without_its_data_and_with_another_optimizer_some_scalars_are_missing(tmp_path):
    model = make_model()
    logs = StepTensorBoard(tmp_path, every=2)
    model.fit(token_batches().dataset(), callbacks=[logs], shuffle=False, verbose=0)
    names = ("loss", "accuracy", "learning_rate")
    tags = {f"{axis}{name}" for axis in ("steps/", "epoch_") for name in names}
    assert {tag for _, tag, _, _ in scalars_of(tmp_path)} == tags
    with pytest.raises(ValueError, match=r"`every` must be a positive integer. Received: every=0"):
        StepTensorBoard(tmp_path, every=0)
