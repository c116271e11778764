"""Trainings of runs without parts that a test does not read, for time."""

import importlib
import warnings


class Upper:
    """Stands in for a translator."""

    def translate(self, texts, progress=False):
        return [text.upper() for text in texts]


def leave_out_translation(patch):
    """Evaluates without translating: the scores are those of other texts."""
    patch.setattr("keras_attention.pipeline.validation.Translator", lambda *_, **__: Upper())


def leave_out_final(patch):
    """Ends without the average and the final model."""
    jobs = importlib.import_module("keras_attention.pipeline.train")  # the attribute of this name is the function
    patch.setattr(jobs, "write_final_model", lambda model, *_: model)


def run_eagerly(request):
    """Runs the functions of TensorFlow without graphs until the test ends."""
    import tensorflow as tf

    # TensorFlow warns that functions of tf.data keep their graphs; pytest restores the filters after the test.
    warnings.filterwarnings("ignore", "Even though the .tf.config.experimental_run_functions_eagerly", UserWarning)
    tf.config.run_functions_eagerly(True)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(False))
