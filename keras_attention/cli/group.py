"""The group of all commands, their common options and types of arguments, and how they report errors."""

import errno
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from keras_attention import __version__
from keras_attention.cli.notices import suppress_notices
from keras_attention.extras import MissingExtraError


class FolderPath(click.Path):
    """The path of a folder, but not an empty one, such as an unset shell variable: it would be the current folder."""

    name = "directory"

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses an empty name."""
        if value == "":
            self.fail("The path is empty: pass the path of a folder.", param, ctx)
        return super().convert(value, param, ctx)


class TextPath(click.Path):
    """The path of a text file, or a pattern or a folder for text in many files."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses a pattern or a folder without files."""
        from keras_attention.text.shards import is_sharded, shard_files

        if not value or not is_sharded(value):
            return super().convert(value, param, ctx)
        try:
            shard_files(value)
        except FileNotFoundError as error:
            self.fail(f"{error}.", param, ctx)
        return value


FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)  # as `keras_attention.text.lines` reads it
TEXT = TextPath()
DTYPE = click.Choice(["float32", "mixed_bfloat16", "mixed_float16"])
RUN = FolderPath()

# The context object of a command that may redirect the standard error of its process.
OWN_PROCESS = object()
_VERBOSE = f"{__name__}.verbose"


def _verbose_option() -> click.Option:
    """The option `--verbose`, which may come before or after the name of a command."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_VERBOSE] = value or context.meta.get(_VERBOSE, False)

    text = "Also show the log messages of TensorFlow and other libraries."
    return click.Option(["--verbose"], is_flag=True, expose_value=False, callback=remember, help=text)


REMEDIES = {
    errno.ENOENT: "check its name",
    errno.ENOSPC: "free some space on this disk, or choose a folder on another",
    errno.EDQUOT: "your quota on this disk is used up: free some of it, or choose a folder on another",
    errno.EACCES: "choose a file or folder that you may read and write, or change its permissions",
    errno.EPERM: "choose a file or folder that you may read and write, or change its permissions",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENOTDIR: "a file is where a folder must be: name another folder, or move the file away",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "a symbolic link leads back to itself: remove it, or name another",
    errno.EEXIST: "a file is where a folder must be: name another folder, or move the file away",
}


class Command(click.Command):
    """A command that reports expected errors in one line, without a traceback."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params.append(_verbose_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        if sys.stdout is None:
            raise click.ClickException(
                "Standard output is closed, so the result would be lost: redirect it to a file, or to /dev/null"
            )
        if ctx.obj is OWN_PROCESS and not ctx.meta[_VERBOSE]:
            ctx.with_resource(suppress_notices())
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted", err=True)
            ctx.exit(128 + signal.SIGINT)  # as shells report a process that the signal ended
        except _expected_errors() as error:
            if os.environ.get("KERAS_ATTENTION_TRACEBACK") or isinstance(error, BrokenPipeError):
                raise  # Click exits quietly when the reader has closed the pipe
            raise click.ClickException(_on_one_line(_describe(error))) from error


def _expected_errors() -> tuple[type[Exception], ...]:
    """The errors of the library, of the disk and, if it was imported, of TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    tensorflow_errors = () if tensorflow is None else (tensorflow.errors.OpError,)
    return (ValueError, TypeError, FloatingPointError, OSError, MemoryError, MissingExtraError, *tensorflow_errors)


def _on_one_line(message: str) -> str:
    """Escapes line feeds and control characters, which a file name may contain."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in message)


def _describe(error: Exception) -> str:
    """The message of an error, with the file's name and a remedy."""
    if type(error).__module__.startswith("tensorflow"):
        numbers = [number for number in REMEDIES if os.strerror(number) in str(error)]
        message = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).split())  # without names of operations
        return f"{message}; {REMEDIES[numbers[0]]}" if numbers else message
    if isinstance(error, MemoryError):
        return (
            f"There is not enough memory{f' ({error})' if str(error) else ''}: use a smaller model or smaller batches"
        )
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    name = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno)
    return f"{name}{error.strerror}{'' if remedy is None else f'; {remedy}'}"


class Group(click.Group):
    """A group of commands of the class `Command`."""

    command_class = Command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """Trains, evaluates, exports and serves translators built with keras_attention.

    RUN is the folder of a training run. The tutorial in the documentation shows the Python call behind each command.
    """


main.params.append(_verbose_option())


def run() -> None:
    """Runs the command as the only program of this process."""
    main(prog_name="keras-attention", obj=OWN_PROCESS)


CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Choice(["final", "average", "ema", "best", "last"]),
    help="Checkpoint of the run; the first of these that exists by default.",
)


def decoding_options(command: Any) -> Any:
    """Adds the options of commands that translate."""
    for option in (  # the last is listed first
        click.option("--length-penalty", default=0.6, help="Exponent of the length penalty; 0 turns it off."),
        click.option("--beam-size", default=4, help="Number of beams; 1 is greedy search."),
        CHECKPOINT,
    ):
        command = option(command)
    return command


def check_output_option(option: str, output: str, inputs: Sequence[str]) -> None:
    """Checks, before any work, that the file of an option can be written, and that it replaces no input."""
    from keras_attention.files import check_output

    if not Path(os.path.realpath(output)).parent.is_dir():  # also of a broken link
        raise FileNotFoundError(f"The folder of the output does not exist: make it first. Received: {option} {output}")
    check_output(output, inputs=inputs)


def write_json(output: str, results: dict[str, Any]) -> None:
    """Writes the results of a command as JSON."""
    from keras_attention.files import write_atomically

    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_atomically(output, lambda path: Path(path).write_text(text, encoding="utf-8"))


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Prints the library's warnings as notes, one line each on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        show = warnings.showwarning

        def print_note(message: Any, category: type[Warning], *location: Any) -> None:
            if category is UserWarning:
                click.echo(f"Note: {message}", err=True)
            else:
                show(message, category, *location)

        warnings.showwarning = print_note
        yield
