"""Commands that prepare and train a run: check text, train a tokenizer, train, average, demo."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from keras_attention.cli.group import DTYPE, FILE, RUN, TEXT, check_output_option, main, warnings_as_notes, write_json


@main.command()
@click.argument("source", type=FILE, required=False)
@click.argument("target", type=FILE, required=False)
@click.option("--valid-source", type=FILE, help="Validation sentences.")
@click.option("--valid-target", type=FILE, help="Their translations.")
@click.option("--test-source", type=FILE, help="Test sentences.")
@click.option("--test-target", type=FILE, help="Their translations.")
@click.option("--run", type=RUN, help="Run whose texts, tokenizer and settings to check, instead of SOURCE and TARGET.")
@click.option("--tokenizer", "tokenizer_file", type=FILE, help="Tokenizer, for lengths in tokens and unknown pieces.")
@click.option("--trial", is_flag=True, help="Train a few steps, for the memory and the time that a run needs.")
@click.option(
    "--preset", type=click.Choice(["tiny", "small", "base", "big"]), help="Size of the model of the trial.  [small]"
)
@click.option("--dtype", type=DTYPE, help="Keras' dtype policy of the trial.  [float32]")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="See `train`; repeatable.")
@click.option("--samples", default=3, type=click.IntRange(min=0), help="Number of training pairs to show.")
@click.option("--json", "json_file", type=click.Path(), help="File for the report as JSON; - is standard output.")
@click.option("--picture", type=click.Path(), help="PNG file for a picture of lengths and problems.")
@click.option("--fix", type=RUN, help="New folder for copies of the files without the pairs that have a problem.")
@click.pass_context
def check(
    context: click.Context,
    source: str | None,
    target: str | None,
    run: str | None,
    tokenizer_file: str | None,
    trial: bool,
    changes: Sequence[str],
    samples: int,
    json_file: str | None,
    picture: str | None,
    fix: str | None,
    **options: str | None,
) -> None:
    """Checks the text files of a training, each in one reading.

    Prints lengths, problems with line numbers, and some pairs. The exit status is 1 if training would not start, or
    would learn nothing of use, and 0 if there are no problems, or warnings only.

    \b
    Example: keras-attention check train.en train.de --valid-source dev.en --valid-target dev.de \\
                 --test-source test.en --test-target test.de --fix cleaned
    Memory:  keras-attention check train.en train.de --trial --preset base
    """
    from keras_attention.files import is_standard_output
    from keras_attention.pipeline import check_texts, draw_report, trial_training

    files = {"source": source, "target": target, **options}
    test = _pair(files, "test_source", "test_target")
    config, tokenizer = _checked_run(run, tokenizer_file, changes, trial, files)
    source, target = _pair(files, "source", "target") or _no_files()
    valid = _pair(files, "valid_source", "valid_target")
    inputs = [path for pair in ((source, target), valid, test) if pair is not None for path in pair]
    if trial and "-" in inputs:
        raise click.UsageError("--trial reads the texts again, so they must be files: save the text to a file first.")
    json_file = "/dev/stdout" if json_file == "-" else json_file
    for option, path in (("--json", json_file), ("--picture", picture)):
        if path is not None:
            check_output_option(option, path, inputs)
    max_length = None if config is None or tokenizer is None else min(config.max_length, config.tokens_per_batch)
    report = check_texts(
        source,
        target,
        valid=valid,
        test=test,
        tokenizer=tokenizer,
        max_length=max_length,
        samples=samples,
        fix=fix,
        progress=True,
    )
    to_error = json_file is not None and is_standard_output(json_file)
    click.echo(report, err=to_error)
    results = report.to_dict()
    if picture is not None:
        draw_report(report, picture)
    if trial and not report.errors:
        measured = trial_training(config, tokenizer)
        click.echo(f"\n{measured}", err=to_error)
        results["trial"] = {**dataclasses.asdict(measured), "fits": measured.fits}
    if json_file is not None:
        write_json(json_file, results)
    training = report.splits[0]
    pairs, lines = training.num_pairs, max(training.num_lines)
    blank = report.count("blank", "train")
    summary = f"{pairs:,} pairs of {lines:,} lines; {blank:,} are left out because a side is blank"
    click.echo(f"\n{summary}; errors: {len(report.errors)}, warnings: {len(report.warnings)}", err=to_error)
    context.exit(1 if report.errors else 0)


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
    from keras_attention.status_line import StatusLine
    from keras_attention.text import SubwordTokenizer

    output = "/dev/stdout" if output == "-" else output
    check_output(output, inputs=files)
    StatusLine(stderr=True).show(lambda: f"training a tokenizer of {vocabulary_size:,} pieces")
    with warnings_as_notes():
        trained = SubwordTokenizer.train(list(files), vocabulary_size, model_type=model_type)
    trained.save(output)
    click.echo(f"{output}: {trained.vocabulary_size:,} pieces", err=is_standard_output(output))


@main.command()
@click.argument("run", type=RUN)
@click.option(
    "--source",
    type=TEXT,
    help="Text to translate from, one sentence per line, plain or gzip; a pattern or a folder of many files.",
)
@click.option("--target", type=TEXT, help="Its translations, line by line, in one file or as many.")
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
@click.option(
    "--dtype",
    type=DTYPE,
    show_default="float32, or mixed_bfloat16 with --max-minutes where it is faster",
    help="Keras' dtype policy.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another setting of config.yaml, such as seed or model.num_heads; repeatable.",
)
@click.option("--from", "from_run", type=RUN, help="Run with whose tokenizer, weights and settings a new run begins.")
@click.option("--epochs", type=int, help="Passes over the training text, including earlier ones.")
@click.option("--max-steps", type=int, help="Number of steps, including earlier ones.")
@click.option("--max-minutes", type=float, help="Minutes to train in this call.")
@click.option(
    "--hosts",
    metavar="HOST:PORT",
    help="Train on several hosts with JAX: the address of the first; env for those that the environment describes.",
)
@click.option("--num-hosts", type=int, help="Number of hosts, with --hosts HOST:PORT.")
@click.option("--host", type=int, help="Index of this host, from 0, with --hosts HOST:PORT.")
@click.option("--devices", metavar="N|all", help="Number of GPUs of this machine that share each batch, or all.")
def train(
    run: str,
    epochs: int | None,
    max_steps: int | None,
    max_minutes: float | None,
    hosts: str | None,
    num_hosts: int | None,
    host: int | None,
    devices: str | None,
    **options: Any,
) -> None:
    """Trains a translator in the folder RUN.

    If RUN already holds a run, its training resumes. A new run needs four text files, or those of the run --from.

    \b
    Example: keras-attention train runs/en-de --source train.en --target train.de \\
                 --valid-source dev.en --valid-target dev.de --max-minutes 30
    Shards:  keras-attention train runs/en-de --source 'corpus/train-*.en.gz' --target 'corpus/train-*.de.gz' \\
                 --valid-source dev.en --valid-target dev.de --max-minutes 30
    Resume:  keras-attention train runs/en-de --max-minutes 30
    Adapt:   keras-attention train runs/medical --from runs/en-de --source medical.en --target medical.de \
                 --max-minutes 30
    Hosts:   KERAS_BACKEND=jax keras-attention train runs/en-de --max-minutes 30 \
                 --hosts 10.0.0.1:1234 --num-hosts 2 --host 0   (and --host 1 on the other one)
    GPUs:    keras-attention train runs/en-de --devices all --max-minutes 30
    """
    from keras_attention.pipeline import train as train_run
    from keras_attention.training.processes import is_first_process

    together = _hosts(hosts, num_hosts, host)
    config = _config(run, **options)
    count = int(devices) if devices is not None and devices.isdecimal() else devices
    limits = {"epochs": epochs, "max_steps": max_steps, "max_minutes": max_minutes}
    train_run(run, config, **limits, hosts=together, devices=count)
    if is_first_process():
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


def _hosts(address: str | None, num_hosts: int | None, host: int | None) -> Any:
    """The hosts of a training; None without --hosts."""
    from keras_attention.pipeline import Hosts

    if address not in (None, "env"):
        return Hosts(address, num_hosts, host)
    if (num_hosts, host) != (None, None):
        raise click.UsageError("--num-hosts and --host need --hosts HOST:PORT.")
    return None if address is None else Hosts()


def _pair(files: dict[str, str | None], *names: str) -> tuple[str, str] | None:
    """The two files of a split; None for neither."""
    source, target = (files[name] for name in names)
    if (source is None) != (target is None):
        missing = names[source is not None]
        option = missing.upper() if "_" not in missing else "--" + missing.replace("_", "-")
        raise click.UsageError(f"Pass both files of a pair. Missing: {option}")
    return None if source is None or target is None else (source, target)


def _checked_run(
    run: str | None, tokenizer_file: str | None, changes: Sequence[str], trial: bool, files: dict[str, str | None]
) -> tuple[Any, Any]:
    """The config and the tokenizer of a check, each None where it has none; puts the files of a run into `files`."""
    from keras_attention.pipeline import RunFolder
    from keras_attention.pipeline.setting_checks import FILES
    from keras_attention.text import SubwordTokenizer

    settings = {name: files.pop(name) for name in ("preset", "dtype")}
    if run is None and not trial and (changes or any(settings.values())):
        raise click.UsageError("--preset, --dtype and --set are for --trial or --run.")
    config, tokenizer = None, None
    if run is not None:
        if files["source"] is not None:
            raise click.UsageError("Pass SOURCE and TARGET, or --run, but not both.")
        config = _config(run, changes, **settings, **{name: files[name] for name in FILES})
        files.update({name: getattr(config, name) for name in FILES})
        if RunFolder(run).tokenizer_file.exists():
            tokenizer = RunFolder(run).tokenizer
    elif trial and files["source"] is not None and files["target"] is not None:
        # The trial of a training without validation files takes its memory for evaluations from the training files.
        defaults = {"valid_source": files["source"], "valid_target": files["target"]}
        names = {name: files[name] or defaults.get(name) for name in FILES}
        config = _config(os.devnull, changes, **settings, **names)  # the folder of no run
    if tokenizer_file is not None:
        tokenizer = SubwordTokenizer.load(tokenizer_file)
    return config, tokenizer


def _no_files() -> NoReturn:
    raise click.UsageError("Pass SOURCE and TARGET, or --run.")


def _config(run: str, changes: Sequence[str], from_run: str | None = None, **options: Any) -> Any:
    """The config of a new run, or that of the existing run with changed settings."""
    from keras_attention.pipeline import RunConfig, RunFolder
    from keras_attention.pipeline.initial_weights import config_from
    from keras_attention.pipeline.setting_checks import FILES
    from keras_attention.pipeline.yaml_settings import read_yaml

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
    if from_run is not None:
        settings["init_from"] = from_run
    folder = RunFolder(run)
    if from_run is not None and not folder.trained:
        if model:
            settings["model"] = {**RunFolder(from_run).config.model, **model}
        return config_from(from_run, **settings)
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
