"""What the commands share: the group they belong to, the kinds of their arguments."""

import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from keras_attention import __version__
from keras_attention.cli.notices import left_out
from keras_attention.extras import MissingExtraError


class FolderPath(click.Path):
    """A folder that has a name: an empty one, as of a shell variable that is not set, would be the current folder."""

    name = "directory"

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses the empty name.

        Args:
            value: The value of the option.
            param: For what.
            ctx: Click's context.

        Returns:
            The path.
        """
        if value == "":
            self.fail("It is empty: name a folder.", param, ctx)
        return super().convert(value, param, ctx)


FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)  # what `keras_attention.text.lines` reads
DTYPE = click.Choice(["float32", "mixed_bfloat16", "mixed_float16"])
RUN = FolderPath()

# Click's object of a command that may redirect this process's standard error.
OWN_PROCESS = object()
_VERBOSE = f"{__name__}.verbose"


def _verbose_option() -> click.Option:
    """The option `--verbose`, accepted before and after the name of a command."""

    def remember(context: click.Context, _: click.Parameter, given: bool) -> None:
        context.meta[_VERBOSE] = given or context.meta.get(_VERBOSE, False)

    words = "Also show what TensorFlow and others print about themselves."
    return click.Option(["--verbose"], is_flag=True, expose_value=False, callback=remember, help=words)


REMEDIES = {
    errno.ENOENT: "there is no such file: check its name",
    errno.ENOSPC: "free some space on this disk, or choose a folder on another",
    errno.EDQUOT: "your quota on this disk is used up: free some of it, or choose a folder on another",
    errno.EACCES: "take a file or folder that you may read and write, or change its permissions",
    errno.EPERM: "take a file or folder that you may read and write, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENOTDIR: "a file is where a folder must be: name another folder, or move the file away",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "a symbolic link leads back to itself: remove it, or name another",
    errno.EEXIST: "a file is where a folder must be: name another folder, or move the file away",
}


class Command(click.Command):
    """A command whose expected errors are one line, without a traceback."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params.append(_verbose_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command.

        Args:
            ctx: Click's context.

        Returns:
            What the command returns.

        Raises:
            ClickException: Instead of the errors that the library raises on bad input.
        """
        if sys.stdout is None:  # Keras' progress bar cannot do without either
            raise click.ClickException(
                "Standard output is closed, so the result would be lost: send it to a file, or to /dev/null"
            )
        if ctx.obj is OWN_PROCESS and not ctx.meta[_VERBOSE]:
            ctx.with_resource(left_out())
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted", err=True)
            ctx.exit(128 + signal.SIGINT)  # as shells report a process that the signal ended
        except _expected_errors() as error:
            if os.environ.get("KERAS_ATTENTION_TRACEBACK") or isinstance(error, BrokenPipeError):
                raise  # Click ends quietly where nobody reads on
            raise click.ClickException(_on_one_line(_describe(error))) from error


def _expected_errors() -> tuple[type[Exception], ...]:
    """Those of the library and of the disk, TensorFlow's among them where it was needed at all."""
    tensorflow = sys.modules.get("tensorflow")
    theirs = () if tensorflow is None else (tensorflow.errors.OpError,)
    return (ValueError, TypeError, FloatingPointError, OSError, MemoryError, MissingExtraError, *theirs)


def _on_one_line(message: str) -> str:
    """A name of a file can hold line feeds and what a terminal obeys."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in message)


def _describe(error: Exception) -> str:
    """One line that names the file and says how to fix it."""
    if type(error).__module__.startswith("tensorflow"):
        known = [number for number in REMEDIES if os.strerror(number) in str(error)]
        message = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).split())  # without the operation's own names
        return f"{message}; {REMEDIES[known[0]]}" if known else message
    if isinstance(error, MemoryError):
        return (
            f"There is not enough memory{f' ({error})' if str(error) else ''}: use a smaller model or smaller batches"
        )
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno)
    return f"{where}{error.strerror}{'' if remedy is None else f'; {remedy}'}"


class Group(click.Group):
    """Commands that are `Command`s."""

    command_class = Command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """Trains, evaluates, exports and runs translators built on keras_attention.

    Each command is a short Python call, which the tutorial in the documentation shows.
    """


main.params.append(_verbose_option())


def run() -> None:
    """Runs the command as the whole of this process."""
    main(prog_name="keras-attention", obj=OWN_PROCESS)


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


@contextmanager
def notes() -> Iterator[None]:
    """Shows the library's warnings to users, as lines of standard error.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        show = warnings.showwarning

        def note(message: Any, category: type[Warning], *where: Any) -> None:
            if category is UserWarning:
                click.echo(f"Note: {message}", err=True)
            else:
                show(message, category, *where)

        warnings.showwarning = note
        yield
