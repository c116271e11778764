"""Values of an optimizer's variables, of which several devices may each hold a copy."""

from typing import Any

import keras


def step_of(optimizer: Any) -> int:
    """The number of steps so far; `int` of the variable itself fails where each device has a copy of it."""
    return int(keras.ops.convert_to_numpy(optimizer.iterations))
