"""Optimizer, batch size, learning rate and dropout, for `compile` and for the runs of the command line."""

import math
from typing import Any

import keras

from keras_attention.layers.arguments import fraction, one_of, positive_integer, positive_number
from keras_attention.training.muon import muon_optimizer
from keras_attention.training.schedules import paper_optimizer

OPTIMIZERS = {"adam": paper_optimizer, "muon": muon_optimizer}

# "tiny" and "small" have the settings with the best validation loss after a short training on a CPU; the others have
# the paper's.
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"optimizer": "adam", "tokens_per_batch": 512, "warmup_steps": 300, "learning_rate_scale": 0.42},
    "small": {"optimizer": "muon", "tokens_per_batch": 2048, "warmup_steps": 200, "learning_rate_scale": 1.5},
    "base": {"optimizer": "adam", "tokens_per_batch": 25000, "warmup_steps": 4000, "learning_rate_scale": 1.0},
    "big": {"optimizer": "adam", "tokens_per_batch": 25000, "warmup_steps": 4000, "learning_rate_scale": 1.0},
}

# Layers of "small", whose learning rate suits models of at most this depth.
DEPTH = 4


def preset_learning_rate_scale(preset: str, config: Any) -> float:
    """The scale of the learning rate of a preset: with Muon √(4/N) of it for N layers, if there are more than 4."""
    settings = TRAINING_PRESETS[preset]
    if settings["optimizer"] != "muon":
        return settings["learning_rate_scale"]
    depth = max(config.num_layers, config.decoder_depth)
    return settings["learning_rate_scale"] * min(1.0, (DEPTH / depth) ** 0.5)


def preset_optimizer(
    preset: str,
    config: Any,
    total_steps: int | None = None,
    gradient_accumulation_steps: int = 1,
    epochs: float | None = None,
) -> keras.optimizers.Optimizer:
    """Returns the optimizer and the learning rate of a preset, as `keras-attention train` uses them.

    | preset | optimizer | tokens per batch | warm-up steps | scale of the learning rate |
    | --- | --- | --- | --- | --- |
    | "tiny" | Adam | 512 | 300 | 0.42 |
    | "small" | Muon | 2,048 | 200 | 1.5 |
    | "base", "big" | Adam | 25,000 | 4,000 | 1 |

    Each row belongs together: another batch size needs another learning rate. Deeper models learn with lower rates of
    Muon: for N > 4 layers of the encoder or the decoder, whichever has more, the scale of "small" is 1.5 · √(4/N).

    Args:
        preset: "tiny", "small", "base" or "big".
        config: Config of the model, `model.config`.
        total_steps: See `InverseSqrtSchedule`.
        gradient_accumulation_steps: See `paper_optimizer`.
        epochs: Passes over the training text in `total_steps`, for the `recommended_weight_decay` of Muon; None for no
            decay.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: If the preset is unknown, a number of steps or epochs is not above zero, or `epochs` are given
            without `total_steps`.

    Example:
        >>> from keras_attention import TransformerConfig
        >>> config = TransformerConfig.from_preset("small", vocabulary_size=8000)
        >>> type(preset_optimizer("small", config)).__name__
        'Muon'

    Source: Vaswani et al. 2017, section 5.3, for "base" and "big".
    """
    one_of(preset, "preset", tuple(TRAINING_PRESETS))
    settings = TRAINING_PRESETS[preset]
    if epochs is not None and total_steps is None:
        raise ValueError(f"`epochs` are those of `total_steps`: give both. Received: epochs={epochs}, total_steps=None")
    decay = None if epochs is None else recommended_weight_decay(epochs, total_steps, config.hidden_dim)
    return OPTIMIZERS[settings["optimizer"]](
        config,
        settings["warmup_steps"],
        preset_learning_rate_scale(preset, config),
        total_steps=total_steps,
        gradient_accumulation_steps=gradient_accumulation_steps,
        weight_decay=decay if settings["optimizer"] == "muon" else None,
    )


# Passes over the text up to which a model of this width needs no dropout, and its largest dropout.
FREE_EPOCHS, WIDTH, MAX_DROPOUT = 5, 256, 0.3
# Its dropout from which on segmentations are sampled, too, and the largest dropout of those.
MIN_DROPOUT, MAX_SUBWORD_DROPOUT = 0.1, 0.1


def recommended_dropout(epochs: float, hidden_dim: int = WIDTH, subword_dropout: float = 0.0) -> float:
    """Returns 0.1 · log₂(M/256 · epochs/5), from 0 to 0.3 · min(1, M/256): the dropout for a small model of width M.

    A model that reads each sentence only a few times cannot memorize the text, and dropout only slows its learning.
    Each time the number of passes doubles, it needs 0.1 more, and a model half as wide 0.1 less and half as much at
    most. Where the text is split into other pieces in each pass, it needs as much less as `subword_dropout`.

    Args:
        epochs: Number of passes over the training text.
        hidden_dim: The width M of the model.
        subword_dropout: Dropout of the segmentation of the training text.

    Returns:
        A dropout rate, in hundredths.

    Raises:
        ValueError: If `epochs` or `hidden_dim` is not above zero, or `subword_dropout` is not in [0, 1).

    Example:
        >>> recommended_dropout(4), recommended_dropout(10), recommended_dropout(100)
        (0.0, 0.1, 0.3)
        >>> recommended_dropout(20, hidden_dim=128), recommended_dropout(100, hidden_dim=128)
        (0.1, 0.15)
        >>> recommended_dropout(20), recommended_dropout(20, subword_dropout=0.1)
        (0.2, 0.1)
    """
    width = positive_integer(hidden_dim, "hidden_dim") / WIDTH
    doublings = math.log2(width * positive_number(epochs, "epochs") / FREE_EPOCHS)
    total = min(0.1 * doublings, MAX_DROPOUT * min(width, 1.0))
    return round(max(total - fraction(subword_dropout, "subword_dropout"), 0.0), 2)


def recommended_subword_dropout(epochs: float, hidden_dim: int = WIDTH) -> float:
    """Returns the dropout of the segmentation: what the `recommended_dropout` has above 0.1 · min(1, M/256), up to 0.1.

    A model that reads a sentence in other pieces in each pass cannot memorize them, and learns how words are spelled.
    That takes many passes: with fewer than ten, nothing is gained. Give the result to `ParallelCorpus.batches`, and to
    `recommended_dropout`, which becomes smaller by it.

    Args:
        epochs: Number of passes over the training text.
        hidden_dim: The width M of the model.

    Returns:
        A dropout rate of BPE-dropout, in hundredths.

    Raises:
        ValueError: If `epochs` or `hidden_dim` is not above zero.

    Example:
        >>> recommended_subword_dropout(10), recommended_subword_dropout(14), recommended_subword_dropout(40)
        (0.0, 0.05, 0.1)
        >>> recommended_subword_dropout(40, hidden_dim=128)
        0.1

    Source: Provilkov et al. 2020, "BPE-Dropout", for 0.1.
    """
    above = recommended_dropout(epochs, hidden_dim) - MIN_DROPOUT * min(hidden_dim / WIDTH, 1.0)
    return round(min(max(above, 0.0), MAX_SUBWORD_DROPOUT), 2)


# The number of passes from which the weight decay grows with them.
DECAY_EPOCHS = 3


def recommended_weight_decay(epochs: float, steps: int, hidden_dim: int = WIDTH) -> float:
    """Returns ½ √(M · max(3, epochs) / steps), and at most 1: the λ of Muon for a small model of width M.

    A step subtracts lr · λ · W from each matrix W, which is then about the sum of the last 1 / (lr · λ) updates. With
    a smaller λ, a model that reads each sentence many times memorizes the text; with a larger one, it forgets what it
    read. More passes over a text do not change λ, as steps / epochs are the steps of one; a text a quarter as large
    needs twice the decay.

    Args:
        epochs: Number of passes over the training text.
        steps: Number of steps of the training.
        hidden_dim: The width M of the model.

    Returns:
        λ, in hundredths.

    Raises:
        ValueError: If an argument is not above zero.

    Example:
        >>> recommended_weight_decay(epochs=1, steps=768), recommended_weight_decay(epochs=10, steps=10240)
        (0.5, 0.25)
        >>> recommended_weight_decay(epochs=20, steps=20480), recommended_weight_decay(epochs=20, steps=5120)
        (0.25, 0.5)
    """
    width, epochs = positive_integer(hidden_dim, "hidden_dim"), positive_number(epochs, "epochs")
    decay = math.sqrt(width * max(epochs, DECAY_EPOCHS) / positive_integer(steps, "steps")) / 2
    return round(min(decay, 1.0), 2)
