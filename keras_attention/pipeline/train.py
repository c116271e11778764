"""Training from two text files to checkpoints, and going on where a run stopped."""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_attention.extras import install_command, is_installed
from keras_attention.files import write_atomically
from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.models import Transformer
from keras_attention.pipeline.config import FILES, RunConfig, count
from keras_attention.pipeline.evaluate import corpus_bleu
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.lock import training_lock
from keras_attention.serving import Translator
from keras_attention.text import PackedBatches, ParallelCorpus, SubwordTokenizer, TokenBatches
from keras_attention.text.lines import STANDARD_INPUT, is_file
from keras_attention.training import (
    Checkpoints,
    ChunkedTrainer,
    EpochMetrics,
    FailOnDivergence,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Perplexity,
    StopAfter,
    Throughput,
    average_checkpoints,
    keep_freed_memory,
)
from keras_attention.training.presets import OPTIMIZERS

# Settings that a run may be resumed with, though it began with others: they change no weight. A text that is moved is
# the same text, which `RunFolder.check_texts` sees to.
MAY_CHANGE = (*FILES, "keep_checkpoints", "score_sentences")
# `fit` wants a number of epochs; with a limit in minutes alone, more than it can reach.
UNLIMITED = 9999


def train(
    folder: str | Path,
    config: RunConfig | None = None,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_minutes: float | None = None,
) -> Transformer:
    """Trains a translator, or goes on with the run that the folder holds.

    One "epoch" of the progress bar is `config.evaluate_every` steps: after each come the validation loss, BLEU
    on a sample and a checkpoint. Training ends at the first limit or at `config.total_steps`; then the kept
    checkpoints are averaged, and `final.keras` is the average or the best single one, whichever has the lower
    validation loss. Everything is checked before anything is written; a folder without a checkpoint takes a new config.

    Args:
        folder: Where the run lies.
        config: What to train; None resumes an existing run. A run that is resumed may get other `keep_checkpoints` and
            `score_sentences`, and other paths of the same texts.
        epochs: Passes over the training data, those of earlier calls counted in.
        max_steps: Steps, those of earlier calls counted in.
        max_minutes: Minutes of this call.

    Returns:
        The final model.

    Raises:
        FileNotFoundError: No config was given and the folder holds no run, or a file of it is missing.
        ValueError: The folder holds a run with another config or with files that do not belong together, another
            process trains in it, no limit was given, or the texts are not usable.
        FloatingPointError: Training diverged. The checkpoints from before remain.
    """
    epochs, max_steps = (
        None if value is None else count(value, name) for name, value in (("epochs", epochs), ("max_steps", max_steps))
    )
    max_minutes = None if max_minutes is None else positive_number(max_minutes, "max_minutes")
    run = RunFolder(folder)
    config = run.config if config is None else config
    if epochs is None and max_steps is None and max_minutes is None and config.total_steps is None:
        raise ValueError(
            "Give a limit: `epochs`, `max_steps`, `max_minutes`, or `total_steps` in the config. Received: none of them"
        )
    with training_lock(run.path):
        run.check_places()
        _agree(run, config)
        keras.utils.set_random_seed(config.seed)
        texts = _Texts.read(config, run.tokenizer if run.trained else None)
        print(texts.batches.summary())
        print(f"validation: {texts.valid_batches.summary()}")
        model = _load(run, config) if run.trained else _build(config)
        run.start(config, texts.tokenizer)

        steps = None if epochs is None else max(1, epochs * len(texts.batches) // config.gradient_accumulation)
        limits = [max_steps, config.total_steps, steps]
        limit = min((value for value in limits if value is not None), default=None)
        try:
            step = int(model.optimizer.iterations)
            if limit is None or step < limit:
                _fit(model, run, config, texts, limit, max_minutes)
            else:
                print(f"nothing to train: step {step:,} is not before the limit of {limit:,} steps")
            return _finish(model, run, texts.valid_batches.dataset())
        except OSError as error:
            if error.errno and error.filename is None:
                raise OSError(error.errno, error.strerror, str(run.path)) from error
            raise
        except FloatingPointError as error:
            kept = (
                "keeps the checkpoints from before; train with other settings in another folder"
                if run.trained
                else "has no checkpoint, so it takes other settings, such as a lower `learning_rate_scale`"
            )
            raise FloatingPointError(f"{run.path} {kept}. {error}") from error


def average(folder: str | Path, last: int | None = None) -> Path:
    """Averages the weights that a run kept, as `train` does at its end.

    Args:
        folder: The run.
        last: How many of the newest; all that were kept by default.

    Returns:
        The path of `average.keras`.

    Raises:
        FileNotFoundError: No run here, or none of its weights were kept yet.
        ValueError: `last` is more than were kept, or below 1.
    """
    run = RunFolder(folder)
    kept = run.weights
    if not kept:
        raise FileNotFoundError(f"{run.checkpoints} has no step-*.weights.h5 to average: train {run.path} further")
    last = len(kept) if last is None else positive_integer(last, "last")
    if last > len(kept):
        raise ValueError(f"{run.path} kept {len(kept)} checkpoints. Received: last={last}")
    if run.model_file("last").exists():
        model = run.load(run.model_file("last"), compile=False)
    else:
        model = Transformer(run.config.transformer(), dtype=run.config.dtype)
    average_checkpoints(model, kept[-last:])
    write_atomically(run.model_file("average"), model.save)
    return run.model_file("average")


@dataclass(frozen=True)
class _Texts:
    """What the text files of a run become."""

    tokenizer: SubwordTokenizer
    batches: TokenBatches | PackedBatches
    valid_batches: TokenBatches
    sample: list[tuple[str, str]]

    @classmethod
    def read(cls, config: RunConfig, tokenizer: SubwordTokenizer | None) -> "_Texts":
        _check_files(config)
        corpus = ParallelCorpus(config.source, config.target)
        valid_corpus = ParallelCorpus(config.valid_source, config.valid_target)
        for each in (corpus, valid_corpus):
            print(each.summary())
        if tokenizer is None:
            print(f"training a tokenizer of {config.vocabulary_size:,} pieces")
            files = [config.source, config.target]
            tokenizer = SubwordTokenizer.train(files, config.vocabulary_size, split_digits=config.split_digits)
        options = {"tokens_per_batch": config.tokens_per_batch, "max_length": config.max_length, "seed": config.seed}
        return cls(
            tokenizer,
            TokenBatches.from_pairs(corpus.pairs, tokenizer, **options)
            if config.packed_rows is None
            else PackedBatches.from_pairs(
                corpus.pairs,
                tokenizer,
                row_length=config.max_length,
                rows_per_batch=config.packed_rows,
                seed=config.seed,
            ),
            TokenBatches.from_pairs(valid_corpus.pairs, tokenizer, **options, shuffle=False),
            valid_corpus.sample(min(config.score_sentences, len(valid_corpus)), seed=config.seed),
        )


def _check_files(config: RunConfig) -> None:
    for name in ("source", "target", "valid_source", "valid_target"):
        path = getattr(config, name)
        if path == STANDARD_INPUT or (Path(path).exists() and not is_file(path)):
            raise ValueError(
                "A run reads its texts again when it resumes, so they must be files: write the text to a file first. "
                f"Received: {name}={path!r}"
            )


def _agree(run: RunFolder, config: RunConfig) -> None:
    """Checks the config, and the texts that it names, against those of a run that has checkpoints."""
    if not run.trained:
        return
    check_settings(run, config)
    run.check_texts(config)


def check_settings(run: RunFolder, config: RunConfig) -> None:
    """Checks that a run that has checkpoints can be resumed with a config."""
    old, new = dataclasses.asdict(run.config), dataclasses.asdict(config)
    differing = [
        f"{name}: {old[name]!r} there, {new[name]!r} given"
        for name in old
        if name not in MAY_CHANGE and old[name] != new[name]
    ]
    if differing:
        raise ValueError(
            f"{run.path} holds a run with another config; resume it without these settings, or train in another "
            f"folder. Differing: {'; '.join(differing)}"
        )


def _build(config: RunConfig) -> Transformer:
    model = Transformer(config.transformer(), dtype=config.dtype)
    model.compile(
        _optimizer(config),
        loss=MaskedCrossEntropy(label_smoothing=config.label_smoothing),
        metrics=[MaskedAccuracy(), Perplexity()],
    )
    return model


def _optimizer(config: RunConfig) -> keras.optimizers.Optimizer:
    return OPTIMIZERS[config.optimizer](
        config.transformer(),
        config.warmup_steps,
        config.learning_rate_scale,
        total_steps=config.total_steps,
        gradient_accumulation_steps=config.gradient_accumulation,
    )


def _trainer(model: Transformer, config: RunConfig) -> ChunkedTrainer:
    """What `fit` is called on: the model's weights and optimizer, without the logits of a whole batch."""
    inputs = None if config.packed_rows is None else model.packed().input
    trainer = ChunkedTrainer(model, config.label_smoothing, inputs)
    trainer.compile(model.optimizer)
    return trainer


class _CheckpointsOf(Checkpoints):
    """Keeps a model that has the weights of the one that is trained; drops what was made of earlier ones."""

    def __init__(self, model: keras.Model, folder: Path, keep: int):
        super().__init__(folder, keep)
        self.kept = model

    def set_model(self, model: keras.Model) -> None:
        super().set_model(self.kept)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name in ("final", "average"):
            (self.folder / f"{name}.keras").unlink(missing_ok=True)
        super().on_epoch_end(epoch, logs)


def _load(run: RunFolder, config: RunConfig) -> Transformer:
    """The model of the last checkpoint, with its optimizer."""
    file = run.model_file("last")
    model = run.load(file)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of the one that scales a float16 loss
    theirs, ours = optimizer.get_config(), _optimizer(config).get_config()
    differing = [name for name in ours if name != "name" and theirs.get(name) != ours[name]]
    if differing:
        raise ValueError(
            f"{file} was not trained with the optimizer and the schedule of {run.config_file}: put the config from "
            f"before back. Received: other values of {', '.join(differing)}"
        )
    print(f"going on from step {int(model.optimizer.iterations):,}")
    return model


def _fit(
    model: Transformer,
    run: RunFolder,
    config: RunConfig,
    texts: _Texts,
    limit: int | None,
    max_minutes: float | None,
) -> None:
    keep_freed_memory()
    step = int(model.optimizer.iterations)
    first_round = step // config.evaluate_every
    translator = Translator(model, texts.tokenizer, beam_size=1)
    sources, references = map(list, zip(*texts.sample, strict=True))
    valid_data = texts.valid_batches.dataset()

    def validate() -> Mapping[str, float]:
        results = model.evaluate(valid_data, verbose=0, return_dict=True)
        return {f"val_{name}": value for name, value in results.items()}

    def bleu() -> Mapping[str, float]:
        return {"val_bleu": corpus_bleu(translator.translate(sources), references)}

    throughput = Throughput(texts.batches.num_tokens / len(texts.batches))
    history = keras.callbacks.CSVLogger(str(run.history_file), append=step > 0)
    try:
        _trainer(model, config).fit(
            texts.batches.dataset(first_epoch=step * config.gradient_accumulation // len(texts.batches)).repeat(),
            steps_per_epoch=config.evaluate_every * config.gradient_accumulation,
            initial_epoch=first_round,
            epochs=UNLIMITED if limit is None else first_round + -(-(limit - step) // config.evaluate_every),
            shuffle=False,  # the batches are, by their seed and epoch
            callbacks=[
                StopAfter(steps=limit, minutes=max_minutes),
                throughput,
                EpochMetrics(validate),
                FailOnDivergence(),  # before anything is written
                EpochMetrics(bleu),
                *_tensorboard(run),
                history,
                _CheckpointsOf(model, run.checkpoints, keep=config.keep_checkpoints),
            ],
        )
    finally:
        history.on_train_end()  # Keras leaves its file open where training ends with an error
    print(f"{int(model.optimizer.iterations) - step:,} steps, {throughput.summary()}")


def _tensorboard(run: RunFolder) -> list[keras.callbacks.Callback]:
    # Keras' callback imports it only when training begins.
    if not is_installed("tensorboard"):
        print(f"no TensorBoard logs: {install_command('tensorboard')} to have them")
        return []
    return [keras.callbacks.TensorBoard(str(run.logs))]


def _finish(model: Transformer, run: RunFolder, data: tf.data.Dataset) -> Transformer:
    """Writes `average.keras`, and as `final.keras` the average or the best, whichever validates better."""
    average(run.path)
    losses = {}
    for name in ("best", "average"):
        if not run.model_file(name).exists():
            continue  # cut off before the first best one was written
        model.set_weights(run.load(run.model_file(name), compile=False).get_weights())
        results = model.evaluate(data, verbose=0, return_dict=True)
        print(f"validation perplexity of the {name} checkpoint: {results['perplexity']:.3f}")
        if math.isfinite(results["perplexity"]):
            losses[name] = results["loss"]
    if not losses:
        raise FloatingPointError(
            "Training diverged: no checkpoint has a finite validation perplexity. Use a lower learning rate or a "
            f"longer warm-up. Received: perplexity={results['perplexity']}"
        )
    write_atomically(
        run.model_file("final"),
        lambda path: shutil.copyfile(run.model_file(min(losses, key=losses.get)), path),
    )
    return run.load(run.model_file("final"), compile=False)
