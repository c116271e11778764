"""The position from which a run resumes."""

from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.run_data import RunData
from keras_attention.training import ResumableRun


def run_state(run: RunFolder, config: RunConfig, data: RunData, step: int) -> ResumableRun:
    """The position of the run, by its newest state, or by the step of its last checkpoint if it has no such state."""
    batches_per_step = config.gradient_accumulation
    state = ResumableRun(
        run.checkpoints,
        data.batches,
        minutes=config.checkpoint_minutes,
        steps_per_epoch=config.evaluate_every * batches_per_step,
    )
    # A process that is killed between the checkpoint of an evaluation and its state leaves a checkpoint that is newer
    # by the steps between two evaluations at most; a version without states leaves one that is newer by more.
    apart = max(config.evaluate_every, run.config.evaluate_every or 1) if run.exists else 0
    if state.batch > 0 and step > state.step + apart:
        print(
            f"warning: {run.model_file('last')} is of step {step:,}, but the newest state of step {state.step:,}, as "
            "after a training with an earlier version: the run resumes from the checkpoint"
        )
        state.discard()
    if state.batch == 0:
        state.step, state.batch, state.epoch = step, step * batches_per_step, -(-step // config.evaluate_every)
    return state
