"""Values of scalar variables, also of those that several devices hold copies or parts of."""

from typing import Any

import keras


def value_of(scalar: Any) -> Any:
    """The value of a scalar variable as a number of Python; `int` and `float` fail where each device has a copy."""
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(scalar)).item()


def step_of(optimizer: Any) -> int:
    """The number of steps of an optimizer so far."""
    return value_of(optimizer.iterations)
