"""What each part of the Transformer is worth: rows of the paper's table 3 and others, at a size that a CPU trains.

`python -m benchmarks.ablations train.en train.de dev.en dev.de` trains each row of `tools/ablation_rows.py` for as many
steps on the same text and writes it to `benchmarks/results/ablations.json` before it trains the next; called again, it
trains the rows that are missing. `python -m benchmarks.tools.ablation_report` makes the tables and the picture of the
page from that file.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras

from benchmarks.harness import RESULTS, machine
from benchmarks.tools.ablated import make_model
from benchmarks.tools.ablation_report import MEASURES, tables, verdict
from benchmarks.tools.ablation_rows import ROWS, Row
from keras_attention import TransformerConfig
from keras_attention.files import write_atomically
from keras_attention.pipeline.evaluate import corpus_bleu
from keras_attention.serving import Translator
from keras_attention.text import ParallelCorpus, SubwordTokenizer, TokenBatches
from keras_attention.training import ChunkedTrainer, paper_optimizer

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Setting:
    """What all rows share: the base model of table 3, a quarter as wide and half as deep, and its training."""

    num_layers: int = 3
    hidden_dim: int = 128
    intermediate_dim: int = 512
    num_heads: int = 8
    dropout: float = 0.1
    label_smoothing: float = 0.1
    vocabulary_size: int = 4_000
    pairs: int = 30_000
    max_length: int = 64
    tokens_per_batch: int = 1_024
    steps: int = 1_000
    warmup_steps: int = 300
    rate: float = 0.002  # the highest of the base model
    scored_sentences: int = 500

    def config(self, **changes: Any) -> TransformerConfig:
        """The sizes of a model."""
        names = ("num_layers", "hidden_dim", "intermediate_dim", "num_heads", "dropout", "vocabulary_size")
        return TransformerConfig(**{**{name: getattr(self, name) for name in names}, **changes})

    @property
    def rate_scale(self) -> float:
        """The factor on the paper's schedule."""
        return self.rate * (self.hidden_dim * self.warmup_steps) ** 0.5


def shuffle_words(pairs: Pairs, seed: int = 1) -> Pairs:
    """The pairs with the words of each source in random order."""
    generator = random.Random(seed)
    words = [source.split() for source, _ in pairs]
    return [
        (" ".join(generator.sample(each, len(each))), target) for each, (_, target) in zip(words, pairs, strict=True)
    ]


@dataclass(frozen=True)
class Texts:
    """What every row reads."""

    tokenizer: SubwordTokenizer
    train: Pairs
    dev: Pairs
    scored: Pairs

    @classmethod
    def read(cls, files: Sequence[str], setting: Setting) -> "Texts":
        """Reads the files, and trains the tokenizer on those of the training text."""
        train, dev = ParallelCorpus(*files[:2]), ParallelCorpus(*files[2:])
        return cls(
            SubwordTokenizer.train(files[:2], setting.vocabulary_size),
            train.sample(min(setting.pairs, len(train)), seed=1),
            dev.pairs,
            dev.sample(min(setting.scored_sentences, len(dev)), seed=1),
        )

    def shuffled(self) -> "Texts":
        """The same texts with the words of each source in random order."""
        return replace(self, **{name: shuffle_words(getattr(self, name)) for name in ("train", "dev", "scored")})


def train_row(row: Row, texts: Texts, setting: Setting) -> dict[str, Any]:
    """Trains a row and returns its perplexity and BLEU of the dev text."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(row.seed)
    setting = replace(setting, vocabulary_size=texts.tokenizer.vocabulary_size)
    config = setting.config(**row.config)
    model = make_model(config, row.parts)
    smoothing = setting.label_smoothing if row.label_smoothing is None else row.label_smoothing
    trainer = ChunkedTrainer(model, label_smoothing=smoothing)
    # A model of another width has another rate, by the paper's schedule.
    trainer.compile(paper_optimizer(config, setting.warmup_steps, setting.rate_scale, total_steps=setting.steps))
    ordered, shuffled = texts, texts.shuffled()
    own, other = (shuffled, ordered) if row.is_shuffled else (ordered, shuffled)
    batches = token_batches(own.train, texts.tokenizer, setting, row.seed)
    print("   ", batches.summary(), flush=True)
    # Each repetition is the next epoch.
    trainer.fit(batches.dataset().repeat().take(setting.steps), shuffle=False, verbose=0)
    translator = Translator(model, texts.tokenizer, beam_size=1, max_source_length=setting.max_length)
    result = {"parameters": model.count_params(), **evaluate(trainer, translator, own, setting)}
    if row.reads_shuffled:
        result["other_order"] = evaluate(trainer, translator, other, setting)
    return result


def token_batches(pairs: Pairs, tokenizer: SubwordTokenizer, setting: Setting, seed: int, **options: Any) -> Any:
    """Batches of pairs."""
    sizes = {"tokens_per_batch": setting.tokens_per_batch, "max_length": setting.max_length}
    return TokenBatches.from_pairs(pairs, tokenizer, **sizes, seed=seed, **options)


def evaluate(trainer: ChunkedTrainer, translator: Translator, texts: Texts, setting: Setting) -> dict[str, Any]:
    """The perplexity of the dev text and the BLEU of some of it, greedy; both None where training diverged."""
    batches = token_batches(texts.dev, texts.tokenizer, setting, seed=1, shuffle=False)
    perplexity = trainer.evaluate(batches.dataset(), verbose=0, return_dict=True)["perplexity"]
    if not math.isfinite(perplexity):
        return {"perplexity": None, "bleu": None}
    sources, references = map(list, zip(*texts.scored, strict=True))
    return {
        "perplexity": round(perplexity, 4),
        "bleu": round(corpus_bleu(translator.translate(sources), references), 3),
    }


def load(path: Path, setting: Setting, files: Sequence[str]) -> dict[str, Any]:
    """The results so far, or an empty file of them; an error where they are of another setting."""
    names = [Path(file).name for file in files]
    content = {"benchmark": path.stem, "setting": asdict(setting), "texts": names, "rows": {}}
    if not path.exists():
        return content
    written = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{key}: {written.get(key)} there, {content[key]} now"
        for key in ("setting", "texts")
        if written.get(key) != content[key]
    ]
    if differing:
        raise SystemExit(
            f"{path} holds rows of another setting, which cannot be compared: give another --name. "
            f"Received: {'; '.join(differing)}"
        )
    return written


def run(files: Sequence[str], names: Sequence[str], setting: Setting, path: Path) -> dict[str, Any]:
    """Trains the rows that the file lacks, and writes each to it."""
    content = load(path, setting, files)
    missing = [name for name in names if name not in content["rows"]]
    texts = Texts.read(files, setting) if missing else None
    for number, name in enumerate(missing, start=1):
        print(f"{number}/{len(missing)} {name}: {ROWS[name].text}", flush=True)
        result = train_row(ROWS[name], texts, setting)
        # Read again, since another process may have trained other rows.
        content = load(path, setting, files)
        content |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
        content["rows"][name] = result
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(path, lambda file, text=text: Path(file).write_text(text, encoding="utf-8"))
        verdicts = (f"{each} {result[each]} ({verdict(name, content['rows'], each)})" for each in MEASURES)
        print("   ", ", ".join(verdicts), flush=True)
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parser().parse_args(arguments)
    names = list(ROWS) if options.rows is None else options.rows.split(",")
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise SystemExit(f"`--rows` are of {', '.join(ROWS)}. Received: rows={','.join(unknown)}")
    setting = replace(Setting(), steps=options.steps, warmup_steps=options.warmup_steps, rate=options.rate)
    print(tables(run(options.texts, names, setting, RESULTS / f"{options.name}.json")))


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs=4, metavar="text", help="training source and target, dev source and target")
    parser.add_argument("--rows", help="comma-separated, such as base,a-h1 (all)")
    parser.add_argument("--steps", type=int, default=Setting().steps, help="of each row (%(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=Setting().warmup_steps, help="(%(default)s)")
    parser.add_argument("--rate", type=float, default=Setting().rate, help="highest of the base model (%(default)s)")
    parser.add_argument("--name", default="ablations", help="name of the JSON file in benchmarks/results (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
