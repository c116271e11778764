"""What layers share about their arguments: checks, with messages that say how to mend them, and precedence."""

import zlib
from typing import Any

import keras


def positive_integer(value: Any, name: str) -> int:
    """Returns the value if it is a positive integer.

    Args:
        value: What the caller gave.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> positive_integer(8, "num_heads")
        8
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return value


def probability(value: Any, name: str) -> float:
    """Returns the value if it is a dropout rate, in [0, 1).

    Args:
        value: What the caller gave.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> probability(0.1, "dropout")
        0.1
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(
            f"`{name}` is the share of values dropped in training, at least 0 and below 1. Received: {name}={value!r}"
        )
    return value


def positive_number(value: Any, name: str) -> float:
    """Returns the value if it is a number above zero.

    Args:
        value: What the caller gave.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> positive_number(1e-6, "layer_norm_epsilon")
        1e-06
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"`{name}` must be a number above zero. Received: {name}={value!r}")
    return value


def initializer_for(name: str, initializer: Any) -> Any:
    """An initializer for one of several weights that were given the same one.

    A seeded initializer draws the same numbers at each call, so each weight gets a seed of its own, made from
    the given one and the name.

    Args:
        name: What the weight, or the layer that holds it, is called.
        initializer: From `keras.initializers.get`.

    Returns:
        An initializer of the same kind.

    Example:
        >>> seeded = keras.initializers.GlorotUniform(seed=1)
        >>> initializer_for("query", seeded).seed == initializer_for("key", seeded).seed
        False
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer  # a function of shape and dtype
    config = initializer.get_config()
    seed = config.get("seed")
    if isinstance(seed, int):
        config["seed"] = zlib.crc32(f"{seed}/{name}".encode())
    elif seed is not None:
        return initializer  # a SeedGenerator, which moves on by itself
    return type(initializer).from_config(config)


def first_given(*options: Any) -> Any:
    """The first option that is not None: an explicit mask before an implicit one.

    Args:
        *options: Tensors or None.

    Returns:
        One of them, or None where all are None.

    Example:
        >>> first_given(None, 2, 3)
        2
    """
    return next((option for option in options if option is not None), None)
