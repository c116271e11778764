"""What TensorBoard's event files hold, for the tests of those that write them."""

from pathlib import Path

import tensorflow as tf


def values_of(folder):
    """The name of the folder, the step and the value of each summary in all event files."""
    for path in sorted(Path(folder).rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                yield path.parent.name, event.step, value


def scalars_of(folder):
    """The folder, the tag, the step and the value of each scalar, sorted."""
    return sorted(
        (run, value.tag, step, tf.make_ndarray(value.tensor).item())
        for run, step, value in values_of(folder)
        if value.metadata.plugin_data.plugin_name == "scalars" and "vs_iterations" not in value.tag
    )


def everything_of(folder):
    """All values, sorted, except those that depend on the time of day."""
    return sorted(
        (run, value.tag, step, value.tensor.SerializeToString())
        for run, step, value in values_of(folder)
        if "tokens_per_second" not in value.tag and value.metadata.plugin_data.plugin_name != "hparams"
    )


def log_every_step(patch):
    """Makes runs write a point at each step."""
    from keras_attention.pipeline import summaries

    made = summaries.StepTensorBoard
    patch.setattr(summaries, "StepTensorBoard", lambda *args, **options: made(*args, **options, every=1))
