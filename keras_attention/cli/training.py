"""Commands that prepare and train a run: check text, train a tokenizer, train, average, demo."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from keras_attention.cli.group import DTYPE, FILE, RUN, main, warnings_as_notes


@main.command()
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
def check(source: str, target: str) -> None:
    """Checks two parallel text files.

    Lists their problems with line numbers.

    Example: keras-attention check train.en train.de
    """
    from keras_attention.text import ParallelCorpus

    corpus = ParallelCorpus(source, target)
    problems = corpus.problems()
    for problem in problems:
        click.echo(problem)
    blank = len(problems)
    click.echo(f"{len(corpus):,} pairs of {corpus.num_lines:,} lines; {blank:,} are left out because a side is blank")


@main.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--output", "-o", required=True, type=click.Path(), help="File for the tokenizer; - is standard output.")
@click.option("--vocabulary-size", default=8000, help="Number of pieces.")
@click.option(
    "--type", "model_type", type=click.Choice(["bpe", "unigram"]), default="bpe", help="Byte pair encoding or unigram."
)
def tokenizer(files: tuple[str, ...], output: str, vocabulary_size: int, model_type: str) -> None:
    """Trains a subword tokenizer on text files.

    Example: keras-attention tokenizer train.en train.de -o ende.model
    """
    from keras_attention.files import check_output, is_standard_output
    from keras_attention.text import SubwordTokenizer

    output = "/dev/stdout" if output == "-" else output
    check_output(output, inputs=files)
    with warnings_as_notes():
        trained = SubwordTokenizer.train(list(files), vocabulary_size, model_type=model_type)
    trained.save(output)
    click.echo(f"{output}: {trained.vocabulary_size:,} pieces", err=is_standard_output(output))


@main.command()
@click.argument("run", type=RUN)
@click.option("--source", type=FILE, help="Text to translate from, one sentence per line, plain or gzip.")
@click.option("--target", type=FILE, help="Its translations, line by line.")
@click.option("--valid-source", type=FILE, help="Validation sentences.")
@click.option("--valid-target", type=FILE, help="Their translations.")
@click.option(
    "--preset", type=click.Choice(["tiny", "small", "base", "big"]), show_default="small", help="Size of the model."
)
@click.option(
    "--vocabulary-size",
    type=int,
    show_default="by the size of the text",
    help="Number of pieces of the tokenizer, for both languages.",
)
@click.option("--dtype", type=DTYPE, show_default="float32", help="Keras' dtype policy.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another setting of config.yaml, such as seed or model.num_heads; repeatable.",
)
@click.option("--epochs", type=int, help="Passes over the training text, including earlier ones.")
@click.option("--max-steps", type=int, help="Number of steps, including earlier ones.")
@click.option("--max-minutes", type=float, help="Minutes to train in this call.")
def train(run: str, epochs: int | None, max_steps: int | None, max_minutes: float | None, **options: Any) -> None:
    """Trains a translator in the folder RUN.

    If RUN already holds a run, its training resumes. A new run needs four text files.

    \b
    Example: keras-attention train runs/en-de --source train.en --target train.de \\
                 --valid-source dev.en --valid-target dev.de --max-minutes 30
    Resume:  keras-attention train runs/en-de --max-minutes 30
    """
    from keras_attention.pipeline import train as train_run

    config = _config(run, **options)
    train_run(run, config, epochs=epochs, max_steps=max_steps, max_minutes=max_minutes)
    click.echo(f"{run}: trained. Next: keras-attention export {run} saved_models/{Path(run).name}")


@main.command()
@click.argument("run", type=RUN)
@click.option("--last", type=int, help="Number of newest checkpoints to average; all that the run has kept by default.")
def average(run: str, last: int | None) -> None:
    """Averages the last checkpoints of RUN.

    Writes the checkpoint "average", and prints its path.

    Example: keras-attention average runs/en-de --last 5
    """
    from keras_attention.pipeline import average as average_run

    click.echo(average_run(run, last))


@main.command()
@click.option("--locale", default="fr", help="CLDR locale to translate to: fr, de, es, ja, ...")
@click.option("--minutes", default=3.0, help="Maximum minutes of training.")
@click.option("--folder", type=RUN, default=None, help="Folder of the run; runs/demo-LOCALE by default.")
@click.option("--dtype", type=DTYPE, default="float32", help="Keras' dtype policy.")
def demo(locale: str, minutes: float, folder: str | None, dtype: str) -> None:
    """Trains, evaluates and exports a small translator.

    It translates dates, times, numbers and amounts of money from English to another language, and needs no data.

    Example: keras-attention demo --locale de
    """
    from keras_attention.demo import run_demo

    run_demo(locale, minutes, folder or f"runs/demo-{locale}", dtype)


def _config(run: str, changes: Sequence[str], **options: Any) -> Any:
    """The config of a new run, or that of the existing run with changed settings."""
    from keras_attention.pipeline import RunConfig, RunFolder
    from keras_attention.pipeline.config import FILES, read_yaml

    settings = {name: value for name, value in options.items() if value is not None}
    model = {}  # attributes of the setting `model`
    for change in changes:
        name, equals, value = change.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--set takes NAME=VALUE. Received: --set {change}")
        group, attribute = (model, name.removeprefix("model.")) if name.startswith("model.") else (settings, name)
        if attribute in group or (group is model and "model" in settings) or (name == "model" and model):
            raise click.UsageError(f"Pass each setting once: `{name}` is set twice. Received: --set {change}")
        try:
            group[attribute] = read_yaml(value)
        except ValueError as error:
            raise click.UsageError(
                f"--set takes a YAML value, but this is {error}. Received: --set {change}"
            ) from error
    folder = RunFolder(run)
    missing = ["--" + name.replace("_", "-") for name in FILES if name not in settings]
    if folder.trained or len(missing) == len(FILES):
        if model:
            settings["model"] = {**folder.config.model, **model}
        return folder.config.replace(**settings)
    if model:
        settings["model"] = model
    if missing:
        raise click.UsageError(f"A new run needs four text files. Missing: {', '.join(missing)}")
    return RunConfig.from_preset(**{"preset": "small", **settings})
