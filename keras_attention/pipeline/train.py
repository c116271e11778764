"""Training a run from text files to checkpoints, and resuming it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_attention.layers.arguments import positive_number
from keras_attention.models import Transformer
from keras_attention.pipeline.changes import changed_settings, check_changes
from keras_attention.pipeline.compilation import compile_steps
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.devices import device_scope, distributed
from keras_attention.pipeline.final_model import write_final_model
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.forecast import forecast_summary
from keras_attention.pipeline.history import HistoryWriter
from keras_attention.pipeline.hosts import Hosts, check_same, connected, of_first_host
from keras_attention.pipeline.initial_weights import adopt_tokenizer, describe_initial_weights
from keras_attention.pipeline.lock import training_lock
from keras_attention.pipeline.recipe import choose_by_length
from keras_attention.pipeline.recorded import recorded
from keras_attention.pipeline.run_data import RunData, steps_per_pass
from keras_attention.pipeline.run_log import add_event
from keras_attention.pipeline.run_model import load_model, make_trainer
from keras_attention.pipeline.run_state import run_state
from keras_attention.pipeline.setting_checks import positive_int32
from keras_attention.pipeline.skipped_batch import record_skipped_batch
from keras_attention.pipeline.summaries import tensorboard_callbacks
from keras_attention.pipeline.validation import Validation
from keras_attention.training import (
    Checkpoints,
    DecayToLimit,
    EpochMetrics,
    ExponentialMovingAverage,
    FailOnDivergence,
    InverseSqrtSchedule,
    LossSpikes,
    ProgressLine,
    ResumableRun,
    SkippedSteps,
    StopAfter,
    Throughput,
    keep_freed_memory,
)
from keras_attention.training.callbacks import ema_file
from keras_attention.training.data_parallel import on_one_device
from keras_attention.training.processes import is_first_process, num_processes
from keras_attention.training.scalars import step_of

# More epochs of `fit` than a training can reach: `StopAfter` ends it.
MAX_EPOCHS = 10**9


def train(
    folder: str | Path,
    config: RunConfig | None = None,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_minutes: float | None = None,
    hosts: Hosts | None = None,
    devices: int | str | None = None,
) -> Transformer:
    """Trains a translator, or resumes the run in the folder.

    A run that was interrupted resumes exactly: see `ResumableRun`. After every
    `config.evaluate_every` steps follow the validation loss, BLEU on a sample and a checkpoint; with `config.ema`, each
    evaluation is of the moving average. Training ends at the first limit or at `config.total_steps`,
    where the learning rate has fallen to zero. A call with a later limit raises it again, unless the config has the
    `total_steps` of all calls. With `config.patience`, it also ends after that number of evaluations without a lower
    validation loss. Then the last checkpoints are averaged, and `final.keras` is that average, the best
    checkpoint or, with `config.ema`, the moving average of the weights, whichever has the lowest validation loss. Last,
    it prints what a longer training would have reached (see `forecast_run`). Everything is checked before anything is
    written. A folder without a checkpoint accepts a new config.

    Args:
        folder: Folder of the run.
        config: Config of the run; None to resume an existing run. A run may resume with another learning rate
            (`learning_rate_scale`, `warmup_steps`, `learning_rate_decay`, `total_steps`), other values of
            `evaluate_every`, `patience`, `checkpoint_minutes`, `keep_checkpoints` and `score_sentences`, and other
            paths of the same texts.
        epochs: Passes over the training data, including those of earlier calls.
        max_steps: Number of steps, including those of earlier calls.
        max_minutes: Minutes of this call, on JAX after the steps are compiled. A new run without a dtype takes the
            faster one of `RunConfig.dtype`.
        hosts: Processes on JAX that train the run together, each of which makes this call; `Hosts()` for those that the
            environment describes. The devices of each compute a part of every batch. They share the folder of the run
            and the texts; the first one writes.
        devices: Number of devices of this machine, or "all" of them, each of which trains on a part of the rows of each
            batch: the run is that of one device, but for rounding and the random numbers of dropout. None for the one
            that the backend chooses.

    Returns:
        The final model; on other hosts than the first, the one at the last step.

    Raises:
        FileNotFoundError: If there is no config and the folder holds no run, or a file is missing.
        ValueError: If the folder holds a run with another config or with files that do not belong together, another
            process trains in it, there is no limit, the texts are not usable, there are fewer devices, or there are
            hosts on another backend than JAX.
        ConnectionError: If another host has ended. All hosts end then, and resume from the last checkpoint.
        FloatingPointError: If training diverges. The earlier checkpoints remain.
    """
    epochs, max_steps = (
        None if value is None else positive_int32(value, name)
        for name, value in (("epochs", epochs), ("max_steps", max_steps))
    )
    max_minutes = None if max_minutes is None else positive_number(max_minutes, "max_minutes")
    run = RunFolder(folder)
    config = run.config if config is None else config
    if epochs is None and max_steps is None and max_minutes is None and config.total_steps is None:
        raise ValueError(
            "Set a limit: `epochs`, `max_steps`, `max_minutes`, or `total_steps` in the config. Received: none of them"
        )
    scope = device_scope(devices, config.dtype)
    with connected(hosts), distributed(devices), _locked(run):
        config = check_changes(run, config)
        keras.utils.set_random_seed(config.seed)
        tokenizer = run.tokenizer if run.trained else None
        if config.init_from is not None and not run.trained:
            config = adopt_tokenizer(run, config)
            tokenizer = RunFolder(config.init_from).tokenizer

        def limits_of(steps_per_epoch: float) -> dict[str, int | None]:
            steps = None if epochs is None else max(1, int(epochs * steps_per_epoch))
            return {"max_steps": max_steps, "total_steps": config.total_steps, "epochs": steps}

        def choose(config: RunConfig, steps_per_epoch: float) -> RunConfig:
            limit = _first(limits_of(steps_per_epoch))
            return of_first_host(choose_by_length(config, steps_per_epoch, limit, max_minutes))

        config, data = RunData.read(config, tokenizer, None if run.trained else choose, run.token_lengths)
        print(data.batches.summary())
        print(f"validation: {data.valid_batches.summary()}")
        limits = limits_of(steps_per_pass(config, data.batches))
        limit = _first(limits)
        with scope():
            model = load_model(run, config)
        state = run_state(run, config, data.of_process(), step_of(model.optimizer))
        check_same([data.batches.fingerprint(), data.valid_batches.fingerprint(), state.batch, state.step])
        if is_first_process():
            _start(run, config, data, state.step)

        try:
            with _recorded(run, model, state.step, limits, max_minutes):
                if limit is None or state.step < limit:
                    with scope():
                        _fit(model, state, run, config, data, limit, max_minutes)
                else:
                    print(f"nothing to train: the run is at step {state.step:,}, and the limit is {limit:,} steps")
                return _finish(model, run, config, data)
        except OSError as error:
            if error.errno and error.filename is None:
                raise OSError(error.errno, error.strerror, str(run.path)) from error
            raise
        except FloatingPointError as error:
            remedy = (
                "keeps its earlier checkpoints: resume with a lower `learning_rate_scale`, or train with other "
                "settings in another folder"
                if run.trained
                else "has no checkpoint, so it accepts other settings, such as a lower `learning_rate_scale`"
            )
            raise FloatingPointError(f"{run.path} {remedy}. {error}") from error


def _first(limits: Mapping[str, int | None]) -> int | None:
    """The limit of steps that ends a training; None if only time does."""
    return min((value for value in limits.values() if value is not None), default=None)


@contextlib.contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    """Locks the folder for the process that writes in it."""
    if not is_first_process():
        yield
        return
    with training_lock(run.path):
        run.check_writable()
        yield


def _recorded(run: RunFolder, *args: Any) -> contextlib.AbstractContextManager[None]:
    return recorded(run.events_file, *args) if is_first_process() else contextlib.nullcontext()


def _finish(model: Transformer, run: RunFolder, config: RunConfig, data: RunData) -> Transformer:
    """Writes the final model and the forecast; of several hosts, the first one does, by itself."""
    if num_processes() == 1:
        model = write_final_model(model, run, data.of_process().valid_batches.dataset())
    elif is_first_process():
        with on_one_device():
            model = write_final_model(load_model(run, config), run, data.valid_batches.dataset())
    else:
        return model
    print(forecast_summary(run.path))
    return model


def _start(run: RunFolder, config: RunConfig, data: RunData, step: int) -> None:
    """Writes the config and the tokenizer, and what is new about them into the log of the run."""
    is_new, changes = not run.trained, {}
    if not is_new:
        print(f"resuming from step {step:,}")
        changes = changed_settings(run.config, config)
    run.start(config, data.tokenizer)
    if changes:
        print("changed: " + ", ".join(f"{name} from {old!r} to {new!r}" for name, (old, new) in changes.items()))
        add_event(run.events_file, "changed", step, settings=changes)
    if is_new and config.init_from is not None:
        add_event(run.events_file, "initialized", step, **describe_initial_weights(config))


def _learning_rate(config: RunConfig, limit: int | None, max_minutes: float | None) -> DecayToLimit:
    """Sets the learning rate, which falls to zero at `total_steps`, or without it where this call ends."""
    schedule = InverseSqrtSchedule(config.transformer().hidden_dim, config.warmup_steps, config.learning_rate_scale)
    if config.total_steps is not None:
        limit, max_minutes = config.total_steps, None
    return DecayToLimit(schedule, limit, max_minutes, config.learning_rate_decay)


class _ModelCheckpoints(Checkpoints):
    """Saves the model instead of its trainer, and removes the checkpoints made from earlier ones."""

    def __init__(self, model: keras.Model, folder: Path, keep: int, ema: ExponentialMovingAverage | None):
        super().__init__(folder, keep, ema=ema)
        self.saved_model = model

    def set_model(self, model: keras.Model) -> None:
        super().set_model(self.saved_model)

    def _save(self, logs: Mapping[str, Any]) -> None:
        for name in ("final", "average", "ema"):
            (self.folder / f"{name}.keras").unlink(missing_ok=True)
        super()._save(logs)


def _moving_average(model: Transformer, run: RunFolder, config: RunConfig) -> ExponentialMovingAverage | None:
    """The callback of a run with `ema`, with the average of the last checkpoint."""
    if config.ema is None:
        return None
    ema, step = ExponentialMovingAverage(config.ema), step_of(model.optimizer)
    if step > 0:
        ema.load(model, ema_file(run.checkpoints, step))
    return ema


def _fit(
    model: Transformer,
    state: ResumableRun,
    run: RunFolder,
    config: RunConfig,
    data: RunData,
    limit: int | None,
    max_minutes: float | None,
) -> None:
    keep_freed_memory()
    step = state.step
    tokens_per_batch = data.batches.num_tokens / len(data.batches)
    progress = ProgressLine(limit, max_minutes, tokens_per_batch, metrics=("val_perplexity", "val_bleu"))
    ema = _moving_average(model, run, config)
    validation = Validation(model, data, ema, progress)
    throughput = Throughput(tokens_per_batch)
    history = HistoryWriter(str(run.history_file), steps_per_pass(config, data.batches), append=state.batch > 0)
    logs = [*tensorboard_callbacks(run, config, data, validation.model, validation, state.batch), history]
    if not is_first_process():
        logs = []
    checkpoints = _ModelCheckpoints(model, run.checkpoints, keep=config.keep_checkpoints, ema=ema)
    averages = [] if ema is None else [ema]
    skipped = SkippedSteps(
        save_batch=(
            (lambda: record_skipped_batch(run, data, state.batch, step_of(model.optimizer)))
            if is_first_process()
            else None
        )
    )
    early_stopping = [] if config.patience is None else [keras.callbacks.EarlyStopping(patience=config.patience)]
    state.callbacks = [*averages, skipped, *logs, progress, checkpoints, *early_stopping]
    if state.initial_epoch > state.epoch:
        print(f"nothing to train: {_no_improvement(early_stopping[0].patience)}")
        if is_first_process():
            add_event(run.events_file, "stopped", step, reason="patience")
        return
    trainer = make_trainer(model, config)
    compile_steps(model, trainer, data.of_process())
    try:
        trainer.fit(
            state.dataset(),
            steps_per_epoch=state.steps_per_epoch,
            initial_epoch=state.epoch,
            epochs=MAX_EPOCHS,  # a limit of steps takes more epochs if batches are skipped
            shuffle=False,  # the dataset shuffles, by seed and epoch
            callbacks=[
                skipped,
                LossSpikes(),
                *averages,
                StopAfter(steps=limit, minutes=max_minutes),
                _learning_rate(config, limit, max_minutes),
                throughput,
                EpochMetrics(validation.loss),
                FailOnDivergence(),  # before anything is written
                EpochMetrics(validation.scores),
                *logs,
                progress,
                checkpoints,
                *early_stopping,
                state,
            ],
        )
    finally:
        progress.close()
        if history in logs:
            history.on_train_end()  # Keras leaves its file open where training ends with an error
    print(f"{step_of(model.optimizer) - step:,} steps, {throughput.summary()}")
    if skipped.skipped:
        print(f"skipped batches, whose loss or gradients were not finite: {skipped.skipped:,}")
    if early_stopping and early_stopping[0].wait >= config.patience:
        print(f"stopped early: {_no_improvement(config.patience)}")
        if is_first_process():
            add_event(run.events_file, "stopped", step_of(model.optimizer), reason="patience")


def _no_improvement(patience: int) -> str:
    return f"the validation loss has not improved for {patience} evaluations (`patience`)"
