"""Commands that use a trained run: they translate, score, export and convert."""

from pathlib import Path
from typing import Any

import click

from keras_attention.cli.group import FILE, RUN, decoding_options, lines_of, main


@main.command()
@click.argument("run", type=RUN)
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--output", "-o", type=click.Path(), help="Where the translations are written; standard output otherwise."
)
@decoding_options
def translate(run: str, file: Any, output: str | None, **options: Any) -> None:
    """Translates a file or standard input, a line for each line.

    Example: echo "How are you?" | keras-attention translate runs/en-de
    """
    from keras_attention.pipeline import RunFolder
    from keras_attention.serving import share_cores
    from keras_attention.training import write_whole

    share_cores()
    translator = RunFolder(run).translator(**options)  # what is wrong with the run is said before somebody types
    translations = translator.translate(lines_of(file.read()), progress=output is not None)
    text = "".join(f"{translation}\n" for translation in translations)
    if output is None:
        click.echo(text.encode(), nl=False)
    else:
        write_whole(Path(output), lambda path: Path(path).write_bytes(text.encode()))


@main.command()
@click.argument("run", type=RUN)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@decoding_options
def evaluate(run: str, source: str, target: str, **options: Any) -> None:
    """Translates SOURCE and compares with TARGET: BLEU and chrF with sacreBLEU's signatures.

    The run keeps the scores for the model card of its export.

    Example: keras-attention evaluate runs/en-de test.en test.de
    """
    from keras_attention.pipeline import RunFolder, record_scores, score
    from keras_attention.serving import share_cores
    from keras_attention.text import ParallelCorpus

    share_cores()
    sources, references = map(list, zip(*ParallelCorpus(source, target).pairs, strict=True))
    translator = RunFolder(run).translator(**options)
    scores = score(translator.translate(sources, progress=True), references)
    click.echo(scores)
    try:
        record_scores(run, scores, source=source, target=target, **options)
    except OSError as error:  # such as a run on a disk that cannot be written
        click.echo(f"Note: {run} does not keep these scores for its model card: {error}", err=True)


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=click.Path(file_okay=False))
@decoding_options
@click.option("--weights", type=click.Choice(["bfloat16", "int8"]), help="Lighter weights; the cost in BLEU is shown.")
def export(run: str, folder: str, **options: Any) -> None:
    """Writes FOLDER/<version>/, a SavedModel from text to text that TF Serving serves.

    Beside it stand the server's settings and a README with the commands that serve it and ask it.

    Example: keras-attention export runs/en-de saved_models/en-de
    """
    from keras_attention import serving
    from keras_attention.pipeline import RunFolder, compare_weights, run_card

    serving.share_cores()
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
