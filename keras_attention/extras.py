"""The packages that only some uses need, and the extras of the distribution that install them."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

# The name on the package index: `keras-attention` is another project's there.
DISTRIBUTION = "keras-attention-transformer"

# The modules that each extra installs; a test compares them with pyproject.toml.
MODULES = {
    "text": ("tensorflow_text", "sentencepiece", "sacrebleu", "babel"),
    "tensorboard": ("tensorboard",),
    "serving": ("tensorflow_serving", "grpc", "starlette", "uvicorn", "prometheus_client"),
    "cli": ("click", "rich", "yaml", "matplotlib"),
    "convert": ("ctranslate2", "onnx", "onnxruntime", "tf2onnx", "ai_edge_litert"),
}


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed; the message names the extra that installs it."""


@contextmanager
def needed_by(user: str, *extras: str) -> Iterator[None]:
    """Names the extras to install if an import in the block fails because a package is missing.

    Args:
        user: The name of the feature that needs the packages.
        *extras: All that it needs, so that one installation suffices; the missing package's own by default.

    Yields:
        Nothing.

    Raises:
        MissingExtraError: If a package that an extra installs is missing.

    Example:
        >>> with needed_by("A server", "serving", "text"):
        ...     raise ModuleNotFoundError("No module named 'grpc'", name="grpc")
        Traceback (most recent call last):
        keras_attention.extras.MissingExtraError: A server needs grpc, which is not installed:
            pip install 'keras-attention-transformer[serving,text]'
    """
    try:
        yield
    except MissingExtraError:
        raise  # says already who needs it
    except ModuleNotFoundError as error:
        owner = [extra for extra, modules in MODULES.items() if error.name in modules]
        if not owner:
            raise
        message = f"{user} needs {error.name}, which is not installed: {install_command(*(extras or owner))}"
        raise MissingExtraError(message, name=error.name) from error


def is_installed(module: str) -> bool:
    """Whether a package can be found, without importing it.

    Args:
        module: The name that a program imports.

    Returns:
        Whether it is found.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def install_command(*extras: str) -> str:
    """The command that installs extras.

    Args:
        *extras: Names of extras.

    Returns:
        The command, for a shell.

    Example:
        >>> install_command("text", "serving")
        "pip install 'keras-attention-transformer[text,serving]'"
    """
    return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'"
