"""The command `keras-attention`: parses, calls, prints."""

import os
import sys
from pathlib import Path
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


@main.command()
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
def check(source: str, target: str) -> None:
    """Checks two parallel text files and says what is wrong, with line numbers.

    Example: keras-attention check train.en train.de
    """
    from keras_attention.text import ParallelCorpus

    corpus = ParallelCorpus(source, target)
    problems = corpus.problems()
    for problem in problems:
        click.echo(problem)
    click.echo(f"{len(corpus):,} pairs; {len(problems):,} lines that are left out")


@main.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--output", "-o", required=True, type=click.Path(), help="Where the model is written.")
@click.option("--vocabulary-size", default=8000, help="Number of pieces.")
@click.option("--type", "model_type", type=click.Choice(["bpe", "unigram"]), default="bpe", help="Algorithm.")
def tokenizer(files: tuple[str, ...], output: str, vocabulary_size: int, model_type: str) -> None:
    """Trains a tokenizer on text files.

    Example: keras-attention tokenizer train.en train.de --vocabulary-size 8000 -o ende.model
    """
    from keras_attention.text import SubwordTokenizer

    trained = SubwordTokenizer.train(list(files), vocabulary_size, model_type=model_type)
    trained.save(output)
    click.echo(f"{output}: {trained.vocabulary_size:,} pieces")


@main.command()
@click.argument("run", type=RUN)
@click.option("--source", type=FILE, help="Text to translate from, a sentence a line, plain or gzip.")
@click.option("--target", type=FILE, help="Its translations, line by line.")
@click.option("--valid-source", type=FILE, help="Sentences kept for validation.")
@click.option("--valid-target", type=FILE, help="Their translations.")
@click.option("--preset", type=click.Choice(["tiny", "small", "base", "big"]), default="small", help="Sizes.")
@click.option("--vocabulary-size", default=8000, help="Pieces of the tokenizer that both languages share.")
@click.option("--dtype", type=DTYPE, default="float32")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Another setting of the run's config.yaml.")
@click.option("--epochs", type=int, help="Passes over the training text, earlier ones counted in.")
@click.option("--max-steps", type=int, help="Steps, earlier ones counted in.")
@click.option("--max-minutes", type=float, help="Minutes of this command's training.")
def train(run: str, epochs: int | None, max_steps: int | None, max_minutes: float | None, **options: Any) -> None:
    """Trains a translator in the folder RUN, or goes on with the run that it holds.

    \b
    Example: keras-attention train runs/en-de --source train.en --target train.de \\
                 --valid-source dev.en --valid-target dev.de --max-minutes 30
    Go on:   keras-attention train runs/en-de --max-minutes 30
    """
    from keras_attention.pipeline import train as train_run

    config = _config(options)
    train_run(run, config, epochs=epochs, max_steps=max_steps, max_minutes=max_minutes)
    click.echo(f"{run}: trained. Next: keras-attention export {run} saved_models/{Path(run).name}")


@main.command()
@click.argument("run", type=RUN)
@click.option("--last", type=int, help="How many of the newest checkpoints; all that were kept by default.")
def average(run: str, last: int | None) -> None:
    """Averages the checkpoints that a run kept, into its checkpoint "average".

    Example: keras-attention average runs/en-de --last 5
    """
    from keras_attention.pipeline import average as average_run

    click.echo(average_run(run, last))


def _decoding_options(command: Any) -> Any:
    for option in (
        click.option("--checkpoint", type=click.Choice(["final", "average", "best", "last"]), help="Which weights."),
        click.option("--beam-size", default=4, help="Hypotheses followed at a time; 1 is greedy."),
        click.option("--length-penalty", default=0.6, help="Exponent of the length penalty."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("run", type=RUN)
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--output", "-o", type=click.Path(), help="Where the translations are written; standard output otherwise."
)
@_decoding_options
def translate(run: str, file: Any, output: str | None, **options: Any) -> None:
    """Translates a file or standard input, a line for each line.

    Example: echo "How are you?" | keras-attention translate runs/en-de
    """
    from keras_attention.pipeline import RunFolder
    from keras_attention.training import write_whole

    translator = RunFolder(run).translator(**options)
    translations = translator.translate(_lines(file.read()), progress=output is not None)
    text = "".join(f"{translation}\n" for translation in translations)
    if output is None:
        click.echo(text.encode(), nl=False)
    else:
        write_whole(Path(output), lambda path: Path(path).write_bytes(text.encode()))


@main.command()
@click.argument("run", type=RUN)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@_decoding_options
def evaluate(run: str, source: str, target: str, **options: Any) -> None:
    """Translates SOURCE and compares with TARGET: BLEU and chrF with sacreBLEU's signatures.

    The run keeps the scores for the model card of its export.

    Example: keras-attention evaluate runs/en-de test.en test.de
    """
    from keras_attention.pipeline import RunFolder, record_scores, score
    from keras_attention.text import ParallelCorpus

    sources, references = map(list, zip(*ParallelCorpus(source, target).pairs, strict=True))
    translator = RunFolder(run).translator(**options)
    scores = score(translator.translate(sources, progress=True), references)
    record_scores(run, scores, source=source, target=target, **options)
    click.echo(scores)


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=click.Path(file_okay=False))
@_decoding_options
@click.option("--weights", type=click.Choice(["bfloat16", "int8"]), help="Lighter weights; the cost in BLEU is shown.")
def export(run: str, folder: str, **options: Any) -> None:
    """Writes FOLDER/<version>/, a SavedModel from text to text that TF Serving serves.

    Beside it stand the server's settings and a README with the commands that serve it and ask it.

    Example: keras-attention export runs/en-de saved_models/en-de
    """
    from keras_attention import serving
    from keras_attention.pipeline import RunFolder, compare_weights, run_card

    translator = RunFolder(run).translator(**options)
    if options["weights"] is not None:
        click.echo(compare_weights(run, translator, RunFolder(run).translator(**{**options, "weights": None})))
    click.echo(serving.export(translator, folder, card=run_card(run, options["checkpoint"])))


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--to", "runtime", type=click.Choice(["ctranslate2", "litert", "onnx"]), required=True, help="For what.")
@click.option("--quantization", type=click.Choice(["int8"]), help="Of the weights; for ctranslate2.")
@click.option("--checkpoint", type=click.Choice(["final", "average", "best", "last"]), help="Which weights.")
def convert(run: str, folder: str, runtime: str, quantization: str | None, checkpoint: str | None) -> None:
    """Writes FOLDER, the model of RUN for another runtime, once it has been seen to compute the same.

    Example: keras-attention convert runs/en-de --to ctranslate2 --quantization int8 ctranslate2/en-de
    """
    from keras_attention import conversion
    from keras_attention.pipeline import RunFolder

    if quantization is not None and runtime != "ctranslate2":
        raise click.UsageError(f"--quantization is for --to ctranslate2. Received: --to {runtime}")
    translator = RunFolder(run).translator(checkpoint)
    options = {} if quantization is None else {"quantization": quantization}
    write = getattr(conversion, f"to_{runtime}")
    click.echo(write(translator.model, translator.tokenizer, folder, **options))


@main.command()
@click.option("--locale", default="fr", help="Any CLDR locale: fr, de, es, ja, ...")
@click.option("--minutes", default=3.0, help="The most minutes of training.")
@click.option("--folder", type=RUN, default=None, help="Where the run lies; runs/demo-LOCALE by default.")
@click.option("--dtype", type=DTYPE, default="float32")
def demo(locale: str, minutes: float, folder: str | None, dtype: str) -> None:
    """Trains, evaluates, draws and exports a small translator of dates, times, numbers and amounts.

    Example: keras-attention demo --locale de
    """
    from keras_attention.demo import run_demo

    run_demo(locale, minutes, folder or f"runs/demo-{locale}", dtype)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--host", default="127.0.0.1", help="Where it listens; 0.0.0.0 lets other machines in.")
@click.option("--rest-port", default=8501, help="Port of REST; 0 is any free one.")
@click.option("--grpc-port", default=8500, help="Port of gRPC; 0 is any free one.")
@click.option("--page", is_flag=True, help="Also serve a page at / to type and see translations.")
def serve(folder: str, **options: Any) -> None:
    """Serves the newest version in FOLDER as TF Serving does, for development.

    REST and gRPC are those of TF Serving, so a client does not see a difference. For production, use TF Serving.

    Example: keras-attention serve saved_models/en-de --page
    """
    try:
        from keras_attention.serving import server

        server.serve(folder, ready=lambda running: _say_where(running, options["page"]), **options)
    except ImportError as error:
        message = f"serve needs more than the library: pip install 'keras-attention[serving,text]' ({error})"
        raise click.ClickException(message) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _say_where(server: Any, page: bool) -> None:
    click.echo(f"{server.model_name}, version {server.version}. For development; TF Serving is for production.")
    click.echo(f"REST  {server.url}/v1/models/{server.model_name}")
    click.echo(f"gRPC  grpc://{server.address}/{server.model_name}")
    if page:
        click.echo(f"Page  {server.url}/")


@main.command()
@click.argument("url")
@click.argument("texts", nargs=-1)
def ask(url: str, texts: tuple[str, ...]) -> None:
    """Asks a served model to translate TEXTS, or standard input line by line.

    URL is http://HOST:PORT/v1/models/NAME, or grpc://HOST:PORT/NAME.

    Example: keras-attention ask http://localhost:8501/v1/models/en-de "How are you?"
    """
    import warnings

    from keras_attention.serving.client import ServingError, connect

    lines = list(texts) or _lines(sys.stdin.buffer.read())
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            with connect(url) as client:
                translations = client.translate(lines)
        except (ServingError, ImportError) as error:
            raise click.ClickException(str(error)) from error
    for note in notes:
        click.echo(f"Note: {note.message}", err=True)
    click.echo("".join(f"{translation}\n" for translation in translations).encode(), nl=False)


def _lines(content: bytes) -> list[bytes]:
    """The lines of a text, whatever ends them."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _config(options: dict[str, Any]) -> Any:
    """The config of a new run; None where no text files are given, to go on with an existing one."""
    import dataclasses

    import yaml

    from keras_attention.pipeline import RunConfig

    files = ("source", "target", "valid_source", "valid_target")
    missing = ["--" + name.replace("_", "-") for name in files if options[name] is None]
    if len(missing) == len(files):
        return None
    if missing:
        raise click.UsageError(f"A new run needs four text files. Missing: {', '.join(missing)}")
    known = [field.name for field in dataclasses.fields(RunConfig)]
    changes = {}
    for change in options.pop("changes"):
        name, equals, value = change.partition("=")
        if not equals or name not in known:
            raise click.UsageError(f"--set takes NAME=VALUE with a name among {', '.join(known)}. Received: {change}")
        changes[name] = yaml.safe_load(value)
    return RunConfig.from_preset(**{**options, **changes})
