"""The command `keras-attention`, installed as a console script.

This module is next to the package because `import keras_attention` loads Keras and TensorFlow, which takes seconds. In
the process of the command, the package imports each part on first use.
"""

import sys

running = False


def main() -> None:
    """Runs the command with the arguments of this process."""
    global running
    running = True
    from keras_attention.extras import MissingExtraError

    try:
        from keras_attention.cli import run
    except MissingExtraError as error:
        sys.exit(f"Error: {error}")
    run()
