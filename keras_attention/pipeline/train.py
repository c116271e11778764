"""Training from two text files to checkpoints, and going on where a run stopped."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from keras_attention.extras import install_command, is_installed
from keras_attention.models import Transformer
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.evaluate import quick_bleu
from keras_attention.pipeline.folder import RunFolder
from keras_attention.serving import Translator
from keras_attention.text import PackedBatches, ParallelCorpus, SubwordTokenizer, TokenBatches
from keras_attention.text.lines import STANDARD_INPUT, is_file
from keras_attention.training import (
    Checkpoints,
    ChunkedTrainer,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Perplexity,
    Score,
    StopAfter,
    Throughput,
    average_checkpoints,
    keep_freed_memory,
    muon_optimizer,
    paper_optimizer,
    write_whole,
)

OPTIMIZERS = {"adam": paper_optimizer, "muon": muon_optimizer}
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
    validation loss.

    Args:
        folder: Where the run lies.
        config: What to train; None goes on with an existing run.
        epochs: Passes over the training data, those of earlier calls counted in.
        max_steps: Steps, those of earlier calls counted in.
        max_minutes: Minutes of this call.

    Returns:
        The final model.

    Raises:
        FileNotFoundError: No config was given and the folder holds no run, or a text file is missing.
        ValueError: The folder holds a run with another config, no limit was given, or the texts are not usable.
    """
    run = RunFolder(folder)
    config = run.config if config is None else _agree(run, config)
    if epochs is None and max_steps is None and max_minutes is None and config.total_steps is None:
        raise ValueError(
            "Give a limit: `epochs`, `max_steps`, `max_minutes`, or `total_steps` in the config. Received: none of them"
        )
    keras.utils.set_random_seed(config.seed)
    texts = _Texts.read(run, config)
    print(texts.batches.summary())
    print(f"validation: {texts.valid_batches.summary()}")

    model = _load(run) if run.model_file("last").exists() else _build(config)
    steps = None if epochs is None else max(1, epochs * len(texts.batches) // config.gradient_accumulation)
    limits = [max_steps, config.total_steps, steps]
    limit = min((value for value in limits if value is not None), default=None)
    if limit is None or int(model.optimizer.iterations) < limit:
        _fit(model, run, config, texts, limit, max_minutes)
    return _finish(model, run, texts.valid_batches.dataset())


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
        raise FileNotFoundError(f"{run.path} has no checkpoints yet: train it first")
    last = len(kept) if last is None else last
    if not 1 <= last <= len(kept):
        raise ValueError(f"{run.path} kept {len(kept)} checkpoints. Received: last={last}")
    model = Transformer(run.config.transformer(), dtype=run.config.dtype)
    average_checkpoints(model, kept[-last:])
    write_whole(run.model_file("average"), model.save)
    return run.model_file("average")


@dataclass(frozen=True)
class _Texts:
    """What the text files of a run become."""

    tokenizer: SubwordTokenizer
    batches: TokenBatches | PackedBatches
    valid_batches: TokenBatches
    sample: list[tuple[str, str]]

    @classmethod
    def read(cls, run: RunFolder, config: RunConfig) -> "_Texts":
        _check_files(config)
        corpus = ParallelCorpus(config.source, config.target)
        valid_corpus = ParallelCorpus(config.valid_source, config.valid_target)
        for each in (corpus, valid_corpus):
            print(each.summary())
        # Only now: text that cannot be used leaves no folder behind.
        run.start(config)
        if not run.tokenizer_file.exists():
            print(f"training a tokenizer of {config.vocabulary_size:,} pieces")
            files = [config.source, config.target]
            tokenizer = SubwordTokenizer.train(files, config.vocabulary_size, split_digits=config.split_digits)
            write_whole(run.tokenizer_file, tokenizer.save)
        tokenizer = run.tokenizer
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


def _agree(run: RunFolder, config: RunConfig) -> RunConfig:
    """The given config, checked, and against that of a run which is there already."""
    config.transformer()
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"`optimizer` is one of {', '.join(OPTIMIZERS)}. Received: optimizer={config.optimizer!r}")
    if run.exists:
        old, new = dataclasses.asdict(run.config), dataclasses.asdict(config)
        differing = [f"{name}: {old[name]!r} there, {new[name]!r} given" for name in old if old[name] != new[name]]
        if differing:
            raise ValueError(
                f"{run.path} holds a run with another config; go on with it without one, or take another folder. "
                f"Differing: {'; '.join(differing)}"
            )
    return config


def _build(config: RunConfig) -> Transformer:
    model = Transformer(config.transformer(), dtype=config.dtype)
    optimizer = OPTIMIZERS[config.optimizer](
        model.config,
        config.warmup_steps,
        config.learning_rate_scale,
        total_steps=config.total_steps,
        gradient_accumulation_steps=config.gradient_accumulation,
    )
    model.compile(
        optimizer,
        loss=MaskedCrossEntropy(label_smoothing=config.label_smoothing),
        metrics=[MaskedAccuracy(), Perplexity()],
    )
    return model


def _trainer(model: Transformer, config: RunConfig) -> ChunkedTrainer:
    """What `fit` is called on: the model's weights and optimizer, without the logits of a whole batch."""
    inputs = None if config.packed_rows is None else model.packed().input
    trainer = ChunkedTrainer(model, config.label_smoothing, inputs)
    trainer.compile(model.optimizer)
    return trainer


class _CheckpointsOf(Checkpoints):
    """Keeps a model that has the weights of the one that is trained."""

    def __init__(self, model: keras.Model, folder: Path, keep: int):
        super().__init__(folder, keep)
        self.kept = model

    def set_model(self, model: keras.Model) -> None:
        super().set_model(self.kept)


def _load(run: RunFolder) -> Transformer:
    """The model of the last checkpoint, with its optimizer."""
    model = keras.models.load_model(run.model_file("last"))
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
        return {"val_bleu": quick_bleu(translator.translate(sources), references)}

    throughput = Throughput(texts.batches.num_tokens / len(texts.batches))
    _trainer(model, config).fit(
        texts.batches.dataset(first_epoch=step * config.gradient_accumulation // len(texts.batches)).repeat(),
        steps_per_epoch=config.evaluate_every * config.gradient_accumulation,
        initial_epoch=first_round,
        epochs=UNLIMITED if limit is None else first_round + -(-(limit - step) // config.evaluate_every),
        shuffle=False,  # the batches are, by their seed and epoch
        callbacks=[
            StopAfter(steps=limit, minutes=max_minutes),
            throughput,
            Score(validate),
            Score(bleu),
            *_tensorboard(run),
            keras.callbacks.CSVLogger(str(run.history_file), append=step > 0),
            _CheckpointsOf(model, run.checkpoints, keep=config.keep_checkpoints),
        ],
    )
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
        model.set_weights(keras.models.load_model(run.model_file(name), compile=False).get_weights())
        results = model.evaluate(data, verbose=0, return_dict=True)
        losses[name] = results["loss"]
        print(f"validation perplexity of the {name} checkpoint: {results['perplexity']:.3f}")
    write_whole(
        run.model_file("final"),
        lambda path: shutil.copyfile(run.model_file(min(losses, key=losses.get)), path),
    )
    return keras.models.load_model(run.model_file("final"), compile=False)
