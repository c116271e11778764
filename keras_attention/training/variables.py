"""Variables of a model, a metric or an optimizer, described for a later process and restored there."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

Description = list[Any]  # the path, the shape and the dtype of a variable


def describe_variables(variables: Sequence[Any]) -> list[Description]:
    """The path, the shape and the dtype of each variable, as JSON stores them."""
    return [[variable.path, list(variable.shape), str(variable.dtype)] for variable in variables]


def check_variables(
    groups: Mapping[str, Sequence[Any]], saved: Mapping[str, Sequence[Description]], path: Path
) -> None:
    """Checks that the variables of a model are those of a saved state."""
    for group, variables in groups.items():
        old, new = (
            {index: _readable(each) for index, each in enumerate(descriptions)}
            for descriptions in (saved[group], describe_variables(variables))
        )
        changes = [f"{old.get(i, 'no variable')} in the state, {new.get(i, 'no variable')} now" for i in {**old, **new}]
        changes = [change for i, change in enumerate(changes) if old.get(i) != new.get(i)]
        if changes:
            more = f", and {len(changes) - 3} others" if len(changes) > 3 else ""
            raise ValueError(
                f"{path} is the state of another {group}: build the same one, or train in another folder. "
                f"Received: {'; '.join(changes[:3])}{more}"
            )


def restore_variables(
    group: str, variables: Sequence[Any], arrays: Mapping[str, np.ndarray], skip: Collection[str] = ()
) -> None:
    """Assigns the arrays of a group to its variables, except those with names to skip."""
    for index, variable in enumerate(variables):
        if variable.name not in skip:
            array = arrays[f"{group}/{index}"]
            if array.dtype.kind == "V":  # `.npz` files know no bfloat16
                array = array.view(ops.convert_to_numpy(variable).dtype)
            variable.assign(array)


def differences(saved: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists the entries that are not equal, with both values."""
    return [
        f"{name}: {saved.get(name)!r} in the state, {new.get(name)!r} now"
        for name in {**saved, **new}
        if saved.get(name) != new.get(name)
    ]


def _readable(description: Description) -> str:
    """A description without the numbers that Keras adds to names, which count all layers of a process."""
    path, shape, dtype = description
    path = path.replace("fused_adam", "adam")  # which have the same state
    dtype = re.sub(r"u?int[0-9]+", "integer", dtype)  # backends count steps and seeds in integers of different sizes
    return f"{re.sub(r'_[0-9]+(?=[/_]|$)', '', path)} {tuple(shape)} {dtype}"
