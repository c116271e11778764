"""What layers share about their arguments: checks, with messages that say how to mend them, and precedence."""

import difflib
import math
import numbers
import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops


def positive_integer(value: Any, name: str) -> int:
    """Returns the value if it is a positive integer.

    Args:
        value: The value of the argument.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> positive_integer(8, "num_heads")
        8
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def positive_integers(value: Any, name: str) -> tuple[int, ...] | None:
    """Returns one or several positive integers as a tuple.

    Args:
        value: What the caller gave: an integer, a sequence of them, or None.
        name: The argument's name, for the message.

    Returns:
        A tuple, or None for None.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> positive_integers(8, "output_shape")
        (8,)
    """
    if value is None:
        return None
    return tuple(positive_integer(each, name) for each in (value if isinstance(value, list | tuple) else [value]))


def integers(value: Any, name: str) -> tuple[int, ...]:
    """Returns one or several integers as a tuple.

    Args:
        value: What the caller gave: an integer or a sequence of them.
        name: The argument's name, for the message.

    Returns:
        A tuple.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> integers(-2, "attention_axes")
        (-2,)
    """
    values = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(each, numbers.Integral) and not isinstance(each, bool) for each in values):
        raise ValueError(f"`{name}` is an integer, or several of them. Received: {name}={value!r}")
    return tuple(int(each) for each in values)


def integer_or_none(value: Any, name: str) -> int | None:
    """Returns the value if it is an integer or None, as a seed is.

    Args:
        value: The value of the argument.
        name: The argument's name, for the message.

    Returns:
        A Python integer, which a config can hold, or None.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> integer_or_none(5, "seed")
        5
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise ValueError(f"`{name}` is an integer, or None. Received: {name}={value!r}")
    return None if value is None else int(value)


def probability(value: Any, name: str) -> float:
    """Returns the value if it is a dropout rate, in [0, 1).

    Args:
        value: The value of the argument.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> probability(0.1, "dropout")
        0.1
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(
            f"`{name}` is the share of values dropped in training, at least 0 and below 1. Received: {name}={value!r}"
        )
    return value if isinstance(value, int) else float(value)


def positive_number(value: Any, name: str) -> float:
    """Returns the value if it is a number above zero.

    Args:
        value: The value of the argument.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> positive_number(1e-6, "layer_norm_epsilon")
        1e-06
    """
    # An integer of Python's may be larger than any float.
    largest = sys.float_info.max if isinstance(value, int) else math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < largest:
        raise ValueError(f"`{name}` must be a number above zero. Received: {name}={value!r}")
    return value if isinstance(value, int) else float(value)


def boolean(value: Any, name: str) -> bool:
    """Returns the value if it is True or False.

    Args:
        value: The value of the argument.
        name: The argument's name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> boolean(True, "normalize_first")
        True
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return value


def known_names(names: Iterable[Any], known: Sequence[str], what: str) -> None:
    """Checks the names of settings.

    Args:
        names: The value of the argument.
        known: The names there are.
        what: The owner of these settings, for the message.

    Raises:
        ValueError: A name is not among them; the message suggests the nearest.

    Example:
        >>> known_names(["num_layers"], ["num_heads", "num_layers"], "`model`")
    """
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else "."
            raise ValueError(f"{what} has no setting `{name}`{hint} There are {', '.join(known)}. Received: {name}")


def concrete_integer(value: Any) -> int | None:
    """The number that a scalar holds, where that is known before the program runs.

    Args:
        value: An integer, a scalar tensor, or a size that is not known yet.

    Returns:
        An integer, or None inside a function that is being traced.

    Example:
        >>> concrete_integer(keras.ops.convert_to_tensor(3))
        3
    """
    if isinstance(value, numbers.Integral):
        return int(value)
    # A size that JAX does not know yet is no tensor, and a tensor on torch's device "meta" holds nothing.
    if not ops.is_tensor(value) or getattr(value, "is_meta", False):
        return None
    try:
        return int(value)
    except TypeError:
        return None


def one_of(value: Any, name: str, options: tuple[str, ...]) -> str:
    """Returns the value if it is one of the options.

    Args:
        value: The value of the argument.
        name: The argument's name, for the message.
        options: What it may be.

    Returns:
        The value.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> one_of("rms", "normalization", ("layer", "rms"))
        'rms'
    """
    if value not in options:
        raise ValueError(f"`{name}` is one of {', '.join(map(repr, options))}. Received: {name}={value!r}")
    return value


def check_heads_share(num_heads: int, num_kv_heads: int) -> None:
    """Refuses heads of keys and values that the heads of queries cannot share evenly.

    Args:
        num_heads: H.
        num_kv_heads: G.

    Raises:
        ValueError: G does not divide H.

    Example:
        >>> check_heads_share(8, 2)
    """
    if num_heads % num_kv_heads:
        raise ValueError(
            f"`num_kv_heads` must divide `num_heads`. Received: num_heads={num_heads}, num_kv_heads={num_kv_heads}"
        )


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


def own_copy(layer: Any, name: str, trainable: bool = True, **changes: Any) -> Any:
    """A layer of its own for each layer that was given the same one as an argument.

    Args:
        layer: A layer that is not built, what `serialize_keras_object` made of one, or None.
        name: Of the copy, which its weights' paths then carry.
        trainable: False freezes the copy; True leaves it as the layer is.
        **changes: Other arguments that the copy does not take from the layer.

    Returns:
        A new layer with the same config otherwise, or None.

    Raises:
        TypeError: Something else, such as a name or a class.

    Example:
        >>> from keras_attention import RotaryPosition
        >>> own_copy(RotaryPosition(), "position").name
        'position'
    """
    if layer is None:
        return None
    if isinstance(layer, dict):
        layer = keras.saving.deserialize_keras_object(layer)
    if isinstance(layer, type) or not (hasattr(layer, "turn") and hasattr(layer, "bias")):
        raise TypeError(
            f"`{name}` is an object such as RotaryPosition(), AlibiBias() or RelativePositionBias(). "
            f"Received: {name}={layer!r}"
        )
    copy = type(layer).from_config({**layer.get_config(), "name": name, **changes})
    if not trainable:
        copy.trainable = False
    return copy


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


def as_tuple(results: Any) -> tuple[Any, ...]:
    """What a layer returned, a single item too, as a tuple.

    Args:
        results: An output, or a tuple that starts with it.

    Returns:
        A tuple.

    Example:
        >>> as_tuple(1), as_tuple((1, 2))
        ((1,), (1, 2))
    """
    return results if isinstance(results, tuple) else (results,)
