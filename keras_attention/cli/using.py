"""Commands that use a trained run: they translate, score, export and convert."""

import os
from pathlib import Path
from typing import Any

import click

from keras_attention.cli.group import FILE, RUN, FolderPath, decoding_options, main, notes


@main.command()
@click.argument("run", type=RUN)
@click.argument("file", type=FILE, default="-")
@click.option(
    "--output", "-o", type=click.Path(), help="Where the translations are written; standard output otherwise."
)
@decoding_options
def translate(run: str, file: str, output: str | None, **options: Any) -> None:
    """Translates a file, plain or gzip, or standard input, a line for each line.

    Example: echo "How are you?" | keras-attention translate runs/en-de
    """
    from keras_attention.pipeline import RunFolder
    from keras_attention.serving import share_cores
    from keras_attention.text import read_lines

    to_file = output not in (None, "-")
    if to_file:
        _check_translations(output, file)
    share_cores()
    translator = RunFolder(run).translator(**options)  # what is wrong with the run is said before somebody types
    with notes():
        translations = translator.translate(read_lines(file), progress=to_file)
    text = "".join(f"{translation}\n" for translation in translations).encode()
    if to_file:
        _write(text, output)
    else:
        click.echo(text, nl=False)


def _check_translations(output: str, file: str) -> None:
    from keras_attention.files import check_output

    if not Path(os.path.realpath(output)).parent.is_dir():  # also of a link that leads nowhere
        raise FileNotFoundError(f"The folder of the output does not exist: make it first. Received: --output {output}")
    check_output(output, inputs=[file])


def _write(text: bytes, output: str) -> None:
    """Writes translations to a file, or to standard output where that fails: they took hours."""
    from keras_attention.files import write_atomically

    try:
        write_atomically(output, lambda path: Path(path).write_bytes(text))
    except OSError as error:
        click.echo(text, nl=False)
        raise click.ClickException(
            f"{output} could not be written, so the translations are on standard output: {error}"
        ) from error


@main.command()
@click.argument("run", type=RUN)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option(
    "--bleu-tokenize",
    metavar="NAME",
    help="Tokenizer of sacreBLEU, such as 13a, intl, zh, char or ja-mecab; by the script of TARGET otherwise.",
)
@decoding_options
def evaluate(run: str, source: str, target: str, bleu_tokenize: str | None, **options: Any) -> None:
    """Translates SOURCE and compares with TARGET: BLEU and chrF with sacreBLEU's signatures.

    Every line counts, blank ones too. The run keeps the scores for the model card of its export.

    Example: keras-attention evaluate runs/en-de test.en test.de
    """
    from keras_attention.pipeline import RunFolder, bleu_tokenizer, evaluate_translations, record_scores
    from keras_attention.serving import share_cores
    from keras_attention.text.lines import read_parallel

    if bleu_tokenize is not None:
        bleu_tokenizer([], bleu_tokenize)
    share_cores()
    translator = RunFolder(run).translator(**options)
    sources, references = read_parallel(source, target)
    tokenize = bleu_tokenizer(references, bleu_tokenize)
    for path, lines in ((source, sources), (target, references)):
        if blank := sum(not line.strip() for line in lines):
            click.echo(f"Note: {blank:,} of {len(lines):,} lines of {path} are blank; they are scored too", err=True)
    with notes():
        translations = translator.translate(sources, progress=True)
    scores = evaluate_translations(translations, references, tokenize)
    click.echo(scores)
    try:
        record_scores(run, scores, source=source, target=target, **options)
    except OSError as error:  # such as a run on a disk that cannot be written
        click.echo(f"Note: {run} does not keep these scores for its model card: {error}", err=True)


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=FolderPath())
@decoding_options
@click.option("--weights", type=click.Choice(["bfloat16", "int8"]), help="Lighter weights; the cost in BLEU is shown.")
def export(run: str, folder: str, **options: Any) -> None:
    """Writes FOLDER/<version>/, a SavedModel from text to text that TF Serving serves.

    Beside it stand the server's settings and a README with the commands that serve it and ask it.

    Example: keras-attention export runs/en-de saved_models/en-de
    """
    from keras_attention import serving
    from keras_attention.files import check_folder
    from keras_attention.pipeline import RunFolder, compare_weights, run_card
    from keras_attention.serving.model_folder import check_model_folder

    check_folder(folder)
    check_model_folder(folder)
    serving.share_cores()
    card = run_card(run, options["checkpoint"])
    translator = RunFolder(run).translator(**options)
    if options["weights"] is not None:
        click.echo(compare_weights(run, translator, RunFolder(run).translator(**{**options, "weights": None})))
    click.echo(serving.export(translator, folder, card=card))


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=FolderPath())
@click.option("--to", "runtime", type=click.Choice(["ctranslate2", "litert", "onnx"]), required=True, help="For what.")
@click.option("--quantization", type=click.Choice(["int8"]), help="Of the weights; for ctranslate2.")
@click.option("--checkpoint", type=click.Choice(["final", "average", "best", "last"]), help="Which weights.")
def convert(run: str, folder: str, runtime: str, quantization: str | None, checkpoint: str | None) -> None:
    """Writes FOLDER, the model of RUN for another runtime, once it has been seen to compute the same.

    Example: keras-attention convert runs/en-de --to ctranslate2 --quantization int8 ctranslate2/en-de
    """
    from keras_attention import conversion
    from keras_attention.files import check_folder
    from keras_attention.pipeline import RunFolder

    check_folder(Path(folder).absolute().parent)
    if quantization is not None and runtime != "ctranslate2":
        raise click.UsageError(f"--quantization is for --to ctranslate2. Received: --to {runtime}")
    translator = RunFolder(run).translator(checkpoint)
    options = {} if quantization is None else {"quantization": quantization}
    write = getattr(conversion, f"to_{runtime}")
    click.echo(write(translator.model, translator.tokenizer, folder, **options))
