"""Commands that show runs: a table of them, and pictures of their curves and their attention."""

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from keras_attention.cli.group import RUN, check_output_option, main, warnings_as_notes, write_json

_STYLES = {"training": "cyan", "finished": "green", "damaged": "red", "diverged": "red", "failed": "red"}


@main.command()
@click.argument("runs", metavar="RUN...", type=RUN, nargs=-1, required=True)
@click.option("--output", "-o", type=RUN, help="Folder for the pictures; RUN/plots by default.")
@click.option("--sentence", "sentences", multiple=True, help="Source sentence whose attention to draw; repeatable.")
def plot(runs: tuple[str, ...], output: str | None, sentences: tuple[str, ...]) -> None:
    """Draws the curves of RUN, and the attention of its model, into PNG files.

    Several runs share one picture of curves, without attention. By default the sentences are short ones of the
    validation text.

    \b
    Example: keras-attention plot runs/en-de
    Several: keras-attention plot runs/small runs/base --output plots
    """
    from keras_attention.pipeline import plot_runs

    if len(runs) > 1 and output is None:
        raise click.UsageError("Several runs need a folder for their picture: pass --output.")
    if len(runs) > 1 and sentences:
        raise click.UsageError("--sentence is for one run. Received: " + ", ".join(runs))
    with warnings_as_notes():
        pictures = plot_runs(runs, output, list(sentences) or None)
    for path in pictures:
        click.echo(path)


@main.command()
@click.argument("folder", type=RUN)
@click.option("--json", "json_file", type=click.Path(), help="File for the table as JSON; - is standard output.")
def runs(folder: str, json_file: str | None) -> None:
    """Lists the runs in FOLDER and below it.

    Shows the state of each, its last step, its best BLEU and perplexity on the validation text, its speed, how its last
    training ended, and when it was last changed.

    Example: keras-attention runs runs
    """
    from keras_attention.pipeline import list_runs

    if json_file not in (None, "-"):
        check_output_option("--json", json_file, [])
    summaries = list_runs(folder)
    if json_file == "-":
        write_json("/dev/stdout", {"runs": [each.to_dict() for each in summaries]})
        return
    _print_table(folder, summaries)
    if json_file is not None:
        write_json(json_file, {"runs": [each.to_dict() for each in summaries]})


def _print_table(folder: str, summaries: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "BLEU", "perplexity", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    table.add_column("ended", overflow="fold")
    for run in summaries:
        path = Path(run.path)
        name = str(path.relative_to(folder)) if path != Path(folder) else run.path
        changed = datetime.datetime.fromisoformat(run.changed).astimezone()
        table.add_row(
            Text(name),
            Text(run.state, style=_STYLES.get(run.state, "")),
            _format(run.step, ","),
            _format(run.bleu, ".1f"),
            _format(run.perplexity, ",.2f"),
            _format(run.tokens_per_second, ",.0f"),
            f"{changed:%Y-%m-%d %H:%M}",
            Text("" if run.ended is None else run.ended),
        )
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console.width = 1000  # a file has no width, and rich would break the lines at 80 characters
    console.print(table)


def _format(value: float | None, specification: str) -> str:
    return "" if value is None else format(value, specification)
