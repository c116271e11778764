"""Optional dependencies, and the extras of the distribution that install them."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

# The name on the package index, where `keras-attention` is another project.
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
    """An optional dependency is not installed; the message names the extra that installs it."""


@contextmanager
def needed_by(user: str, *extras: str) -> Iterator[None]:
    """Raises a MissingExtraError if an import in the block lacks a package, with the extras that the user needs."""
    # `extras` default to the one that installs the missing package; with all of them, one installation suffices.
    try:
        yield
    except MissingExtraError:
        raise  # from an inner block, which names the user
    except ModuleNotFoundError as error:
        owner = [extra for extra, modules in MODULES.items() if error.name in modules]
        if not owner:
            raise
        message = f"{user} needs {error.name}, which is not installed: {install_command(*(extras or owner))}"
        raise MissingExtraError(message, name=error.name) from error


def is_installed(module: str) -> bool:
    """Returns True if a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def install_command(*extras: str) -> str:
    """The shell command that installs extras."""
    return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'"
