"""What the commands share: the group they belong to, the kinds of their arguments."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import click
except ImportError:
    sys.exit("The command line needs more than the library: pip install 'keras-attention[all]'")

# TensorFlow's notices about the machine are for its own developers; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)  # what `keras_attention.text.lines` reads
DTYPE = click.Choice(["float32", "mixed_bfloat16", "mixed_float16"])
RUN = click.Path(file_okay=False)


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
        except (ValueError, TypeError, FileNotFoundError) as error:
            if os.environ.get("KERAS_ATTENTION_TRACEBACK"):
                raise
            raise click.ClickException(str(error)) from error


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
