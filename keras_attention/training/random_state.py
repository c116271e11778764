"""The random numbers of dropout on torch, which Keras takes from torch instead of variables of the layers."""

from collections.abc import Mapping

import keras
import numpy as np


def random_state() -> dict[str, np.ndarray]:
    """The state of torch's generators, by name; empty on another backend."""
    if keras.config.backend() != "torch":
        return {}
    import torch

    states = {"random/cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state().numpy()
    return states


def restore_random_state(arrays: Mapping[str, np.ndarray]) -> None:
    """Sets torch's generators to a state of `random_state`, as far as the arrays have one."""
    if keras.config.backend() != "torch":
        return
    import torch

    if "random/cpu" in arrays:
        torch.set_rng_state(torch.from_numpy(arrays["random/cpu"]))
    if "random/cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(arrays["random/cuda"]))
