"""The demo: trains on phrases of CLDR, evaluates on unseen ones, draws the attention, exports and loads the model."""

from pathlib import Path

import tensorflow as tf

from keras_attention import serving
from keras_attention.demo.heat_map import draw_attention
from keras_attention.demo.phrases import Pair, make_pairs, split_pairs
from keras_attention.files import check_folder
from keras_attention.layers.arguments import positive_number
from keras_attention.pipeline import RunConfig, RunFolder, evaluate_translations, train
from keras_attention.pipeline.changes import check_settings
from keras_attention.serving.model_folder import check_model_folder

NUM_PAIRS = 20_000
NUM_VALID, NUM_TEST = 300, 500
# Large enough for months, currencies and units to become pieces; digits are pieces of their own.
VOCABULARY_SIZE = 400
TOTAL_STEPS = 2800


def run_demo(
    locale: str = "fr", minutes: float = 3.0, folder: str | Path = "runs/demo", dtype: str = "float32"
) -> float:
    """Trains a translator of dates, times, numbers and amounts of money from English to another locale.

    Args:
        locale: CLDR locale.
        minutes: Maximum minutes of training.
        folder: Folder of the run, which resumes if it exists.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".

    Returns:
        The fraction of unseen test phrases that are translated exactly.

    Raises:
        ValueError: If the locale is unknown, `minutes` is not positive, or a folder is not writable.
    """
    positive_number(minutes, "minutes")
    pairs, test_pairs = split_pairs(make_pairs(locale, NUM_PAIRS), NUM_TEST)
    folder, exported = Path(folder), Path("saved_models") / f"demo-{locale}"
    check_folder(folder)
    pairs, valid_pairs = split_pairs(pairs, NUM_VALID)
    config = RunConfig.from_preset(
        "tiny",
        source=folder / "data" / "train.en",
        target=folder / "data" / f"train.{locale}",
        valid_source=folder / "data" / "valid.en",
        valid_target=folder / "data" / f"valid.{locale}",
        vocabulary_size=VOCABULARY_SIZE,
        split_digits=True,
        dtype=dtype,
        # The phrases follow rules, without noise, and are too many to memorize: no regularization is needed.
        model={"dropout": 0.0},
        label_smoothing=0.0,
        total_steps=TOTAL_STEPS,
        evaluate_every=200,
        keep_checkpoints=5,
        score_sentences=50,
    )
    _check_folders(RunFolder(folder), config, exported)
    print(f"{len(pairs):,} training phrases, such as:")
    _show(pairs[:4])
    for source, target, part in (
        (config.source, config.target, pairs),
        (config.valid_source, config.valid_target, valid_pairs),
    ):
        _write(Path(source), part, 0)
        _write(Path(target), part, 1)
    train(folder, config, max_minutes=minutes)
    translator = RunFolder(folder).translator()
    exact = _measure(translator, test_pairs)
    longest = max((english for english, _ in test_pairs), key=len)
    _draw(translator, longest, folder / "attention.png")
    _export_and_load(translator, exported, [longest, "March 5, 2026", "$1,250.50"])
    return exact


def _check_folders(run: RunFolder, config: RunConfig, exported: Path) -> None:
    """Checks, before anything is replaced, that the run can resume and that the model can be exported."""
    if run.trained:
        check_settings(run, config)
        earlier, target = Path(run.config.target).name, Path(config.target).name
        if earlier != target:
            raise ValueError(f"{run.path} holds a run with {earlier}: choose another folder. Received: {target}")
    check_model_folder(exported)
    check_folder(exported)


def _write(path: Path, pairs: list[Pair], side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")


def _measure(translator: serving.Translator, pairs: list[Pair]) -> float:
    sources, references = map(list, zip(*pairs, strict=True))
    translations = translator.translate(sources, progress=True)
    exact = sum(a == b for a, b in zip(translations, references, strict=True)) / len(pairs)
    print(f"\n{len(pairs)} unseen phrases: {exact:.1%} translated exactly")
    print(evaluate_translations(translations, references))
    return exact


def _draw(translator: serving.Translator, text: str, path: Path) -> None:
    draw_attention(translator, text, path)
    print(f"\nattention of the translation of “{text}”: {path}")


def _export_and_load(translator: serving.Translator, folder: Path, texts: list[str]) -> None:
    version = serving.export(translator, folder)
    print(f"\nexported to {version}; the loaded model translates:")
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    answers = served(source=tf.constant(texts))["text"].numpy()
    _show([(english, answer.decode()) for english, answer in zip(texts, answers, strict=True)])


def _show(pairs: list[Pair]) -> None:
    for english, other in pairs:
        print(f"  {english}  →  {other}")
