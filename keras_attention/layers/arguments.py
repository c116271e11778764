"""Checks of constructor arguments, with messages that say how to fix them, and small helpers for call arguments."""

import contextlib
import difflib
import functools
import math
import numbers
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import ops


class WrongSettingsError(ValueError):
    """The error of several checks, with the message of each."""

    def __init__(self, messages: Sequence[str]):
        self.messages = tuple(messages)
        numbered = " ".join(f"({number}) {message}" for number, message in enumerate(messages, 1))
        super().__init__(messages[0] if len(messages) == 1 else f"{len(messages)} settings are wrong. {numbered}")


class Errors:
    """Collects the messages of several checks, so that one error names everything that is wrong."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Adds a message, once."""
        if message not in self.messages:
            self.messages.append(message)

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Adds the messages of a ValueError in the block, instead of raising it."""
        try:
            yield
        except WrongSettingsError as error:
            for message in error.messages:
                self.add(message)
        except ValueError as error:
            self.add(str(error))

    def raise_all(self) -> None:
        """Raises an error with all messages, if there are any."""
        if self.messages:
            raise WrongSettingsError(self.messages)


def positive_integer(value: Any, name: str) -> int:
    """Returns the value if it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def positive_integers(value: Any, name: str) -> tuple[int, ...] | None:
    """Returns one or several positive integers as a tuple."""
    if value is None:
        return None
    return tuple(positive_integer(each, name) for each in (value if isinstance(value, list | tuple) else [value]))


def integers(value: Any, name: str) -> tuple[int, ...]:
    """Returns one or several integers as a tuple."""
    values = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(each, numbers.Integral) and not isinstance(each, bool) for each in values):
        raise ValueError(f"`{name}` is an integer, or several of them. Received: {name}={value!r}")
    return tuple(int(each) for each in values)


def integer_or_none(value: Any, name: str) -> int | None:
    """Returns the value if it is an integer or None, as a seed is."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise ValueError(f"`{name}` is an integer, or None. Received: {name}={value!r}")
    return None if value is None else int(value)


def fraction(value: Any, name: str) -> float:
    """Returns the value if it is a number in [0, 1), such as a dropout rate."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(f"`{name}` must be a number, at least 0 and below 1. Received: {name}={value!r}")
    return value if isinstance(value, int) else float(value)


def fraction_or_one(value: Any, name: str) -> float:
    """Returns the value if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number between 0 and 1. Received: {name}={value!r}")
    return value if isinstance(value, int) else float(value)


def positive_number(value: Any, name: str) -> float:
    """Returns the value if it is a number above zero."""
    # A Python integer may be larger than any float.
    largest = sys.float_info.max if isinstance(value, int) else math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < largest:
        raise ValueError(f"`{name}` must be a number above zero. Received: {name}={value!r}")
    return value if isinstance(value, int) else float(value)


def boolean(value: Any, name: str) -> bool:
    """Returns the value if it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return value


def known_names(names: Iterable[Any], known: Sequence[str], what: str) -> None:
    """Checks that `what` has settings of these names, and suggests the nearest for one that is unknown."""
    errors = Errors()
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else "."
            errors.add(f"{what} has no setting `{name}`{hint} There are {', '.join(known)}. Received: {name}")
    errors.raise_all()


def concrete_integer(value: Any) -> int | None:
    """Returns the value of an integer or a scalar tensor, or None where it is unknown while a function is traced."""
    if isinstance(value, numbers.Integral):
        return int(value)
    # A symbolic size in JAX is not a tensor, and a tensor on torch's device "meta" has no values.
    if not ops.is_tensor(value) or getattr(value, "is_meta", False):
        return None
    try:
        return int(value)
    except TypeError:
        return None


def one_of(value: Any, name: str, options: tuple[str, ...]) -> str:
    """Returns the value if it is one of the options."""
    if value not in options:
        raise ValueError(f"`{name}` is one of {', '.join(map(repr, options))}. Received: {name}={value!r}")
    return value


def check_heads_share(num_heads: int, num_kv_heads: int) -> None:
    """Checks that the query heads divide evenly among the heads of keys and values."""
    if num_heads % num_kv_heads:
        raise ValueError(
            f"`num_kv_heads` must divide `num_heads`. Received: num_heads={num_heads}, num_kv_heads={num_kv_heads}"
        )


def renamed_arguments(**new_names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function so that it also accepts former names of its keyword arguments."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **{new_names.get(name, name): value for name, value in kwargs.items()})

        return call

    return decorate


def clone_initializer(initializer: Any, name: str) -> Any:
    """Copies an initializer for one of several weights; with a seed, each gets its own, from the seed and its name.

    A `ResidualBranchInitializer` returns another initializer for some names.
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer  # a function of shape and dtype
    config = initializer.get_config()
    seed = config.get("seed")
    if isinstance(seed, int):
        config["seed"] = zlib.crc32(f"{seed}/{name}".encode())
    elif seed is not None:
        return initializer  # a SeedGenerator, which has a state
    copy = type(initializer).from_config(config)
    return copy.for_kernel(name) if hasattr(copy, "for_kernel") else copy


def first_given(*options: Any) -> Any:
    """Returns the first option that is not None, such as an explicit mask before an implicit one."""
    return next((option for option in options if option is not None), None)


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Returns the outputs of a layer as a tuple, a single output too."""
    return results if isinstance(results, tuple) else (results,)


def check_distributes(what: str) -> None:
    """Checks that Keras computes with JAX, the only backend on which its distributions do something."""
    backend = keras.config.backend()
    if backend != "jax":
        instead = (
            "with TensorFlow, use `tf.distribute.MirroredStrategy` for the GPUs of one host"
            if backend == "tensorflow"
            else "on torch, training uses one device"
        )
        raise ValueError(
            f"{what} needs JAX, since Keras distributes training on no other backend: set KERAS_BACKEND=jax before "
            f"Keras is imported; {instead}. Received: KERAS_BACKEND={backend}"
        )
