"""Commands that write the model of a trained run for TF Serving or for another runtime."""

from pathlib import Path
from typing import Any

import click

from keras_attention.cli.group import CHECKPOINT, RUN, FolderPath, decoding_options, main


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=FolderPath())
@decoding_options
@click.option(
    "--weights",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    help="Another precision than that of the training; prints its BLEU cost.",
)
@click.option(
    "--runtime",
    type=click.Choice(["x86"]),
    help="Pack the weights for TensorFlow with oneDNN on x86-64; needs --weights.",
)
@click.option(
    "--shortlist",
    is_flag=True,
    help="Limit the search to pieces that the training text suggests for a source; prints its BLEU cost.",
)
@click.option(
    "--max-bleu-loss",
    type=float,
    default=0.5,
    show_default=True,
    help="BLEU that the weights and the shortlist may cost at most.",
)
@click.option("--inspect", is_flag=True, help="Also let the page of `serve --page` show and change the attention.")
def export(run: str, folder: str, inspect: bool, max_bleu_loss: float, **options: Any) -> None:
    """Exports RUN as a SavedModel for TF Serving.

    Writes FOLDER/<version>/, a model from text to text. FOLDER also gets the settings of the server and a README with
    the commands to serve and query the model.

    Example: keras-attention export runs/en-de saved_models/en-de
    """
    from keras_attention import serving
    from keras_attention.files import check_folder
    from keras_attention.pipeline import RunFolder, compare_weights, limit_bleu_loss, run_card
    from keras_attention.serving.model_folder import check_model_folder
    from keras_attention.status_line import StatusLine

    if options["runtime"] is not None and inspect:
        raise click.UsageError("--inspect needs the trained weights: leave out --runtime, or --inspect.")
    if options["runtime"] is not None and options["weights"] in (None, "float32"):
        raise click.UsageError("--runtime packs weights of lower precision: give --weights int8 or --weights bfloat16.")
    if options["shortlist"] and inspect:
        raise click.UsageError("--inspect searches the whole vocabulary: leave out --shortlist, or --inspect.")
    if options["shortlist"] and options["weights"] == "int8" and options["runtime"] is None:
        raise click.UsageError("--shortlist with --weights int8 needs packed weights: give --runtime x86 too.")
    check_folder(folder)
    check_model_folder(folder)
    serving.share_cores()
    card = run_card(run, options["checkpoint"])
    line = StatusLine(stderr=True)
    line.show(lambda: f"loading {run}")
    translator = RunFolder(run).translator(**options)
    if options["weights"] is not None or options["shortlist"]:
        trained = RunFolder(run).translator(**{**options, "weights": None, "runtime": None, "shortlist": False})
        if (options["weights"], options["runtime"]) == ("int8", "x86"):
            translator = limit_bleu_loss(run, translator, trained, max_bleu_loss, report=click.echo)
        else:
            click.echo(compare_weights(run, translator, trained, max_bleu_loss))
    line.show(lambda: "exporting", at_once=True)
    click.echo(serving.export(translator, folder, card=card, inspect=inspect))


@main.command()
@click.argument("run", type=RUN)
@click.argument("folder", type=FolderPath())
@click.option(
    "--to", "runtime", type=click.Choice(["ctranslate2", "litert", "onnx"]), required=True, help="Target runtime."
)
@click.option("--quantization", type=click.Choice(["int8"]), help="Quantization of the weights, for ctranslate2.")
@CHECKPOINT
def convert(run: str, folder: str, runtime: str, quantization: str | None, checkpoint: str | None) -> None:
    """Converts the model of RUN to another runtime.

    Writes FOLDER after a check that the converted model computes the same as the original.

    Example: keras-attention convert runs/en-de onnx/en-de --to onnx
    """
    from keras_attention import conversion
    from keras_attention.files import check_folder
    from keras_attention.pipeline import RunFolder
    from keras_attention.status_line import StatusLine

    check_folder(Path(folder).absolute().parent)
    if quantization is not None and runtime != "ctranslate2":
        raise click.UsageError(f"--quantization is for --to ctranslate2. Received: --to {runtime}")
    line = StatusLine(stderr=True)
    line.show(lambda: f"loading {run}")
    translator = RunFolder(run).translator(checkpoint)
    line.show(lambda: f"converting to {runtime}, and comparing with the model", at_once=True)
    options = {} if quantization is None else {"quantization": quantization}
    convert_to = getattr(conversion, f"to_{runtime}")
    click.echo(convert_to(translator.model, translator.tokenizer, folder, **options))
