"""What the commands share: the group they belong to, the kinds of their arguments."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from keras_attention import __version__
from keras_attention.cli.notices import left_out
from keras_attention.extras import MissingExtraError

FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)  # what `keras_attention.text.lines` reads
DTYPE = click.Choice(["float32", "mixed_bfloat16", "mixed_float16"])
RUN = click.Path(file_okay=False)

# Click's object of a command that may redirect this process's standard error.
OWN_PROCESS = object()
_VERBOSE = f"{__name__}.verbose"


def _verbose_option() -> click.Option:
    """The option `--verbose`, accepted before and after the name of a command."""

    def remember(context: click.Context, _: click.Parameter, given: bool) -> None:
        context.meta[_VERBOSE] = given or context.meta.get(_VERBOSE, False)

    words = "Also show what TensorFlow and others print about themselves."
    return click.Option(["--verbose"], is_flag=True, expose_value=False, callback=remember, help=words)


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
            ClickException: In place of the errors the library raises on bad input.
        """
        if ctx.obj is OWN_PROCESS and not ctx.meta[_VERBOSE]:
            ctx.with_resource(left_out())
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, FileNotFoundError, MissingExtraError) as error:
            if os.environ.get("KERAS_ATTENTION_TRACEBACK"):
                raise
            raise click.ClickException(str(error)) from error


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
