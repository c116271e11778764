"""Commands that translate with trained runs: translate a file, evaluate a test set, compare two runs on it."""

from pathlib import Path
from typing import Any

import click

from keras_attention.cli.group import (
    FILE,
    RUN,
    check_output_option,
    decoding_options,
    main,
    warnings_as_notes,
    write_json,
)

BLEU_TOKENIZE = click.option(
    "--bleu-tokenize",
    metavar="NAME",
    help="sacreBLEU's tokenizer, such as 13a, intl, zh, char or ja-mecab; chosen by the script of the references by "
    "default.",
)


@main.command()
@click.argument("run", type=RUN)
@click.argument("file", type=FILE, default="-")
@click.option("--output", "-o", type=click.Path(), help="File for the translations; standard output by default.")
@decoding_options
def translate(run: str, file: str, output: str | None, **options: Any) -> None:
    """Translates a text file or standard input, line by line.

    FILE is plain text or gzip.

    Example: echo "How are you?" | keras-attention translate runs/en-de
    """
    from keras_attention.pipeline import RunFolder
    from keras_attention.serving import share_cores
    from keras_attention.text import read_lines

    to_file = output not in (None, "-")
    if to_file:
        check_output_option("--output", output, [file])
    share_cores()
    translator = RunFolder(run).translator(**options)  # before reading: nobody types text for a broken run
    with warnings_as_notes():
        translations = translator.translate(read_lines(file), progress=to_file)
    text = "".join(f"{translation}\n" for translation in translations).encode()
    if to_file:
        _write(text, output)
    else:
        click.echo(text, nl=False)


def _write(text: bytes, output: str) -> None:
    """Writes translations, which may have taken hours, to a file, or to standard output if that fails."""
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
@BLEU_TOKENIZE
@decoding_options
def evaluate(run: str, source: str, target: str, bleu_tokenize: str | None, **options: Any) -> None:
    """Computes BLEU and chrF of RUN on a test set.

    Translates SOURCE, compares the translations with TARGET, and prints the scores with sacreBLEU's signatures. All
    lines count, also blank ones. The run keeps the scores for the model card of its export.

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
            click.echo(f"Note: {blank:,} of {len(lines):,} lines of {path} are blank; they count too", err=True)
    with warnings_as_notes():
        translations = translator.translate(sources, progress=True)
    scores = evaluate_translations(translations, references, tokenize)
    click.echo(scores)
    try:
        record_scores(run, scores, source=source, target=target, **options)
    except OSError as error:  # such as a run on a read-only disk
        click.echo(f"Note: the scores could not be saved in {run} for its model card: {error}", err=True)


@main.command()
@click.argument("run1", type=RUN)
@click.argument("run2", type=RUN)
@click.argument("source", type=FILE)
@click.argument("reference", type=FILE)
@click.option("--samples", default=1000, help="Number of bootstrap samples.")
@click.option("--seed", default=12345, envvar="SACREBLEU_SEED", show_envvar=True, help="Seed of the samples.")
@click.option("--json", "json_file", type=click.Path(), help="File for the results as JSON; - is standard output.")
@BLEU_TOKENIZE
@decoding_options
def compare(
    run1: str,
    run2: str,
    source: str,
    reference: str,
    samples: int,
    seed: int,
    json_file: str | None,
    bleu_tokenize: str | None,
    **options: Any,
) -> None:
    """Tests whether RUN1 or RUN2 is better on a test set.

    Translates SOURCE with both, compares the translations with REFERENCE, and prints BLEU and chrF of each and the
    p-value of their difference, from sacreBLEU's paired bootstrap resampling.

    Example: keras-attention compare runs/small runs/base test.en test.de
    """
    from keras_attention.files import is_standard_output
    from keras_attention.pipeline import compare as compare_runs
    from keras_attention.serving import share_cores

    json_file = "/dev/stdout" if json_file == "-" else json_file
    if json_file is not None:
        check_output_option("--json", json_file, [source, reference])
    share_cores()
    settings = {"tokenize": bleu_tokenize, "samples": samples, "seed": seed}
    with warnings_as_notes():
        comparison = compare_runs(run1, run2, source, reference, progress=True, **settings, **options)
    click.echo(comparison, err=json_file is not None and is_standard_output(json_file))
    if json_file is not None:
        results = {**comparison.to_dict(), "source": source, "reference": reference, **options}
        write_json(json_file, results)
