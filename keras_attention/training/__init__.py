"""Losses, metrics, schedules, optimizers, callbacks and checkpoint averaging, on every Keras backend."""

from keras_attention.files import write_atomically
from keras_attention.training import callbacks
from keras_attention.training.averaging import ExponentialMovingAverage, average_checkpoints
from keras_attention.training.callbacks import (
    Checkpoints,
    EpochMetrics,
    FailOnDivergence,
    StopAfter,
    Throughput,
    weight_files,
)
from keras_attention.training.chunked_cross_entropy import chunked_cross_entropy
from keras_attention.training.chunked_trainer import ChunkedTrainer
from keras_attention.training.data_parallel import data_parallel
from keras_attention.training.decay import DecayToLimit
from keras_attention.training.epoch_logs import ResumableTensorBoard
from keras_attention.training.fused_adam import FusedAdam
from keras_attention.training.losses import MaskedCrossEntropy, token_cross_entropy
from keras_attention.training.memory import keep_freed_memory
from keras_attention.training.metrics import MaskedAccuracy, Perplexity
from keras_attention.training.muon import Muon, muon_optimizer
from keras_attention.training.presets import (
    preset_optimizer,
    recommended_dropout,
    recommended_subword_dropout,
    recommended_weight_decay,
)
from keras_attention.training.progress_line import ProgressLine
from keras_attention.training.resumable_run import ResumableRun
from keras_attention.training.schedules import InverseSqrtSchedule, paper_optimizer
from keras_attention.training.skipped_steps import LossSpikes, SkippedSteps
from keras_attention.training.step_logs import StepTensorBoard

__all__ = [
    "Checkpoints",
    "ChunkedTrainer",
    "DecayToLimit",
    "EpochMetrics",
    "ExponentialMovingAverage",
    "FailOnDivergence",
    "FusedAdam",
    "InverseSqrtSchedule",
    "LossSpikes",
    "MaskedAccuracy",
    "MaskedCrossEntropy",
    "Muon",
    "Perplexity",
    "ProgressLine",
    "ResumableRun",
    "ResumableTensorBoard",
    "SkippedSteps",
    "StepTensorBoard",
    "StopAfter",
    "Throughput",
    "average_checkpoints",
    "chunked_cross_entropy",
    "data_parallel",
    "keep_freed_memory",
    "muon_optimizer",
    "paper_optimizer",
    "preset_optimizer",
    "recommended_dropout",
    "recommended_subword_dropout",
    "recommended_weight_decay",
    "token_cross_entropy",
    "weight_files",
    "write_atomically",
]

# Earlier names.
Score = callbacks.Score
write_whole = write_atomically
