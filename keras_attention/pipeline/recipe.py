"""The settings that a config leaves open, chosen by the size of the text and the length of the training."""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence

import keras
import numpy as np
from keras import ops

from keras_attention.pipeline.config import RunConfig
from keras_attention.text import SubwordTokenizer, recommended_vocabulary_size
from keras_attention.text.bin_packing import MULTIPLE
from keras_attention.training import recommended_dropout, recommended_subword_dropout, recommended_weight_decay
from keras_attention.training.data_parallel import num_shards

# The paper's models keep the paper's dropout.
PRESETS_WITH_CHOSEN_DROPOUT = ("tiny", "small")
# Enough pairs of an average length that a packed row has little padding.
PAIRS_OF_A_ROW = 8
# Softmaxes that take as long as what a step does with each output of a matrix product: normalizations, activations, the
# loss, the optimizer. Measured on a CPU with models of width 128 to 512, in float32 and in mixed bfloat16.
SOFTMAXES_PER_OUTPUT = 13
# Ratio of the rates in large matrix products from which mixed bfloat16 is taken. At 1.6 to 1.8 of it, a step was 1.5
# times as fast.
MIN_GAIN_OF_BFLOAT16 = 1.3
# Five of them are before the decay of the learning rate and after the beginning: a forecast needs that many.
EVALUATIONS = 16
MIN_SECONDS_BETWEEN_EVALUATIONS = 120


def choose_vocabulary_size(config: RunConfig, pairs: Collection[tuple[str, str]]) -> RunConfig:
    """Sets the size of the vocabulary by the training text."""
    if config.vocabulary_size is not None:
        return config
    return config.replace(vocabulary_size=recommended_vocabulary_size(pairs))


def choose_batches(config: RunConfig, pairs: Sequence[tuple[str, str]], tokenizer: SubwordTokenizer) -> RunConfig:
    """Packs the pairs into rows that hold the longest one, on a backend that compiles each shape of a batch."""
    if not leaves_batches_open(config):
        return config
    sides = (tokenizer.encode(list(side)) for side in zip(*pairs, strict=True))
    lengths = 1 + np.array([[len(ids) for ids in side] for side in sides]).max(axis=0)  # with EOS
    return choose_packed_rows(config, *np.unique(lengths, return_counts=True))


def leaves_batches_open(config: RunConfig) -> bool:
    """Returns True if the backend compiles each shape of a batch, and the config does not say which there are."""
    return keras.config.backend() == "jax" and config.packed_rows is None and config.max_shapes is None


def choose_packed_rows(config: RunConfig, lengths: np.ndarray, counts: np.ndarray) -> RunConfig:
    """Packs the pairs into rows that hold the longest one, for these lengths (K,) of numbers of pairs (K,)."""
    limit = min(config.max_length, config.tokens_per_batch)
    fits = lengths <= limit
    lengths, counts = (lengths[fits], counts[fits]) if fits.any() else (np.array([limit]), np.array([1]))
    needed = max(int(lengths.max()), round(PAIRS_OF_A_ROW * float(counts @ lengths / counts.sum())))
    row_length = min(limit, -(-needed // MULTIPLE) * MULTIPLE)
    devices = num_shards()  # with the same number of rows each
    rows = max(1, config.tokens_per_batch // row_length // devices) * devices
    return config.replace(packed_rows=rows, row_length=row_length)


def choose_dtype(config: RunConfig, minutes: float | None) -> RunConfig:
    """Sets the dtype: float32, or for a limit of time mixed bfloat16, if this machine makes more steps with it."""
    if config.dtype is not None:
        return config
    config, faster = (config.replace(dtype=dtype) for dtype in ("float32", "mixed_bfloat16"))
    if minutes is None:
        return config
    ratio = matrix_rate(faster) / matrix_rate(config)
    if ratio < MIN_GAIN_OF_BFLOAT16:
        return config
    print(f"dtype: mixed_bfloat16, in which matrix products are {ratio:.1f} times as fast as in float32")
    return faster


def choose_by_length(config: RunConfig, steps_per_epoch: float, steps: int | None, minutes: float | None) -> RunConfig:
    """Sets what the length of a training decides: dtype, dropouts, weight decay and the steps between evaluations.

    The training ends at the first of two limits, or, in several calls, at the `total_steps` of the config.
    """
    config = choose_dtype(config, minutes)
    has_choice = config.preset in PRESETS_WITH_CHOSEN_DROPOUT
    chooses_dropout = has_choice and "dropout" not in config.model
    # A consistency loss takes the place of subword dropout, and R-Drop needs some dropout.
    chooses_subwords = has_choice and config.subword_dropout is None and config.consistency is None
    chooses_decay = config.optimizer == "muon" and config.weight_decay is None
    if not (chooses_dropout or chooses_subwords or chooses_decay) and config.evaluate_every is not None:
        return config
    seconds = estimate_step_seconds(config)
    limits = [steps, None if minutes is None else max(1, round(60 * minutes / seconds))]
    expected = config.total_steps or min(limit for limit in limits if limit is not None)
    epochs, width = expected / steps_per_epoch, config.transformer().hidden_dim
    if chooses_decay:
        config = config.replace(weight_decay=recommended_weight_decay(epochs, expected, width))
        print(f"weight decay: {config.weight_decay:g}, for about {epochs:.1f} passes over the text")
    if chooses_subwords:
        config = config.replace(subword_dropout=recommended_subword_dropout(epochs, width))
        if config.subword_dropout:
            print(f"subword dropout: {config.subword_dropout:g}, for about {epochs:.1f} passes over the text")
    if chooses_dropout:
        dropout = recommended_dropout(epochs, width, config.subword_dropout or 0.0)
        print(f"dropout: {dropout:g}, for about {epochs:.1f} passes over the text")
        config = config.replace(model={**config.model, "dropout": dropout})
    if config.evaluate_every is None:
        apart = max(expected // EVALUATIONS, round(MIN_SECONDS_BETWEEN_EVALUATIONS / seconds))
        config = config.replace(evaluate_every=max(1, min(apart, expected)))
    return config


def adopt_choices(config: RunConfig, run_config: RunConfig) -> RunConfig:
    """Sets what a config leaves open as it was chosen when the run began."""
    values = dataclasses.asdict(run_config)
    chosen = ("vocabulary_size", "dtype", "weight_decay", "subword_dropout", "evaluate_every")
    open_settings = {name: values[name] for name in chosen if getattr(config, name) is None}
    if config.packed_rows is None and config.max_shapes is None:
        open_settings |= {name: values[name] for name in ("packed_rows", "row_length", "max_shapes")}
    dropout = {"dropout": run_config.model["dropout"]} if "dropout" in run_config.model else {}
    return config.replace(**open_settings, model={**dropout, **config.model})


def estimate_step_seconds(config: RunConfig) -> float:
    """Estimates the seconds of a training step, from its operations and the rates of this machine."""
    model, passes = config.transformer(), 1 if config.consistency is None else 2
    tokens = passes * config.gradient_accumulation * config.tokens_per_batch
    # Forward and backward, each weight takes part in three multiplications and additions of each token.
    products = 6 * model.num_parameters * tokens / matrix_rate(config)
    # Where matrix units make the products fast, the rest of a step takes most of its time.
    outputs = model.num_parameters / model.hidden_dim * tokens
    return (products + SOFTMAXES_PER_OUTPUT * outputs / softmax_rate()) / num_shards()


def matrix_rate(config: RunConfig, seconds: float = 0.1) -> float:
    """Measures the floating-point operations per second of a matrix product of the size of a training step's."""
    model = config.transformer()
    dtype = keras.dtype_policies.get(config.dtype).compute_dtype
    rows, width, inner = config.tokens_per_batch, model.hidden_dim, model.intermediate_dim
    x, kernel = ops.ones((rows, width), dtype), ops.ones((width, inner), dtype)
    return 2 * rows * width * inner / fastest_seconds(lambda: ops.matmul(x, kernel), seconds)


def softmax_rate(seconds: float = 0.1) -> float:
    """Measures the numbers per second of a softmax, which is elementwise work and reads and writes memory."""
    rows = columns = 2048  # 16 MB, more than the cache of a core
    logits = ops.ones((rows, columns))
    return rows * columns / fastest_seconds(lambda: ops.softmax(logits), seconds)


def fastest_seconds(operation: Callable[[], object], seconds: float, repeats: int = 5) -> float:
    """Measures the seconds of an operation on matrices, in several repetitions of about `seconds`."""

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            y = operation()
        float(y[0, 0])  # waits for the result
        return (time.perf_counter() - started) / count

    run(1)
    once = run(1)
    count = max(1, round(seconds / max(once, 1e-6)))
    # Other work on the machine only makes operations slower. One that takes long by itself is not repeated.
    return once if once > 2 * seconds else min(run(count) for _ in range(repeats))
