"""What the commands share: the group they belong to, the kinds of their arguments."""

import errno
import os
import re
import sys
from typing import Any

try:
    import click
except ImportError:
    sys.exit("The command line needs more than the library: pip install 'keras-attention[all]'")

# TensorFlow's notices about the machine are for its own developers; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FILE = click.Path(exists=True, dir_okay=False)
DTYPE = click.Choice(["float32", "mixed_bfloat16", "mixed_float16"])
RUN = click.Path(file_okay=False)


REMEDIES = {
    errno.ENOENT: "there is no such file: check its name",
    errno.ENOSPC: "free some space on this disk, or choose a folder on another",
    errno.EDQUOT: "your quota on this disk is used up: free some of it, or choose a folder on another",
    errno.EACCES: "take a file or folder that you may read and write, or change its permissions",
    errno.EPERM: "take a file or folder that you may read and write, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENOTDIR: "a file is where a folder must be: name another folder, or move the file away",
    errno.EEXIST: "a file is where a folder must be: name another folder, or move the file away",
}


class Command(click.Command):
    """A command whose expected errors are one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command.

        Args:
            ctx: Click's context.

        Returns:
            What the command returns.

        Raises:
            ClickException: In place of the errors the library raises on bad input.
        """
        try:
            return super().invoke(ctx)
        except _expected_errors() as error:
            if os.environ.get("KERAS_ATTENTION_TRACEBACK") or isinstance(error, BrokenPipeError):
                raise  # Click ends quietly where nobody reads on
            raise click.ClickException(_describe(error)) from error


def _expected_errors() -> tuple[type[Exception], ...]:
    """Those of the library and of the disk, TensorFlow's among them where it was needed at all."""
    tensorflow = sys.modules.get("tensorflow")
    theirs = () if tensorflow is None else (tensorflow.errors.OpError,)
    return (ValueError, TypeError, FloatingPointError, OSError, *theirs)


def _describe(error: Exception) -> str:
    """One line that names the file and says how to fix it."""
    if type(error).__module__.startswith("tensorflow"):
        known = [number for number in REMEDIES if os.strerror(number) in str(error)]
        message = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).split())  # without the operation's own names
        return f"{message}; {REMEDIES[known[0]]}" if known else message
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno)
    return f"{where}{error.strerror}{'' if remedy is None else f'; {remedy}'}"


class Group(click.Group):
    """Commands that are `Command`s."""

    command_class = Command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="keras-attention")
def main() -> None:
    """Trains, evaluates, exports and runs translators built on keras_attention.

    Each command is a short Python call, which the tutorial in the documentation shows.
    """


def decoding_options(command: Any) -> Any:
    """Adds the options of commands that translate.

    Args:
        command: The function behind a command.

    Returns:
        The same.
    """
    for option in (
        click.option("--checkpoint", type=click.Choice(["final", "average", "best", "last"]), help="Which weights."),
        click.option("--beam-size", default=4, help="Hypotheses followed at a time; 1 is greedy."),
        click.option("--length-penalty", default=0.6, help="Exponent of the length penalty."),
    ):
        command = option(command)
    return command


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a text, whatever ends them.

    Args:
        content: The text.

    Returns:
        The lines without their ends.
    """
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]
