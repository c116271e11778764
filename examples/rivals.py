"""Recurrent and convolutional translators against the Transformer: same text, batches, loss and training time.

Run it: python examples/rivals.py train.en train.de dev.en dev.de test.en test.de --minutes 5

Five models of the same number of parameters, four of them of Keras' own recurrent and convolutional layers, learn the
same batches for the same time. A table has their BLEU, perplexity and speed; a picture has the BLEU by the length of
the source. With `--tune` first, each has the learning rate with the lowest perplexity of a sweep that is equally long
for all. `--smoke` takes seconds and needs no files.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import sacrebleu
import tensorflow as tf
from keras import layers, ops

import keras_attention as ka
from keras_attention.demo import make_pairs, split_pairs
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

Pair = tuple[str, str]
WIDTH, UNITS = 128, 176  # of embeddings and convolutions, of recurrent layers
MAX_LENGTH = 256
# Source tokens up to which a sentence belongs to a bucket; the last bucket has the longer ones.
BUCKETS = (10, 20, 30, 40)


class Ends:
    """The two ends that all models share: token ids at one, logits by the transposed embeddings at the other."""

    def __init__(self, vocabulary_size: int):
        self.inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("source", "target")}
        self.source, self.target = self.inputs.values()
        self.embedding = ka.TokenEmbedding(vocabulary_size, WIDTH)

    def embed(self, ids: Any) -> Any:
        """Embeds token ids (B, T) as vectors of unit variance (B, T, M)."""
        return self.embedding(ids) * WIDTH**0.5

    def model(self, hidden: Any) -> keras.Model:
        """The model from the token ids to the logits of hidden states (B, T, M)."""
        return keras.Model(self.inputs, self.embedding(hidden, reverse=True))


def last_state(vocabulary_size: int, attention: bool = False) -> keras.Model:
    """Two LSTM layers read the reversed source; two write the target from their last states (Sutskever et al. 2014)."""
    ends = Ends(vocabulary_size)
    source = ops.flip(ends.source, axis=1)  # the first words are the last ones read, and the padding is in front
    mask = ops.not_equal(source, PAD_ID)  # (B, S)
    memory, y, states = ends.embed(source), ends.embed(ends.target), []
    for _ in range(2):
        memory, *state = layers.LSTM(UNITS, return_sequences=True, return_state=True)(memory, mask=mask)
        states.append(state)
    for state in states:
        y = layers.LSTM(UNITS, return_sequences=True)(y, initial_state=state)  # (B, T, U)
    if attention:
        query = layers.Dense(UNITS, use_bias=False)(y)
        context = layers.Attention()([query, memory], mask=[None, mask])  # (B, T, U)
        y = layers.Concatenate()([context, y])
    return ends.model(layers.Dense(WIDTH, activation="tanh")(y))


def dot_product(vocabulary_size: int) -> keras.Model:
    """The same LSTM layers, and the last one attends to the source by dot products ("general", Luong et al. 2015)."""
    return last_state(vocabulary_size, attention=True)


def additive(vocabulary_size: int) -> keras.Model:
    """A GRU layer in each direction reads the source; two write, with additive attention between them.

    Bahdanau et al. 2015 has one writing layer, which computes the query and then reads the context in each step. With
    one layer for each, as in Wu et al. 2016, the attention of all positions is one product.
    """
    ends = Ends(vocabulary_size)
    mask = ops.not_equal(ends.source, PAD_ID)
    both_ways = layers.Bidirectional(layers.GRU(UNITS, return_sequences=True, return_state=True))
    memory, _, backward = both_ways(ends.embed(ends.source), mask=mask)  # (B, S, 2U), (B, U), (B, U)
    start = layers.Dense(UNITS, activation="tanh")(backward)
    y = layers.GRU(UNITS, return_sequences=True)(ends.embed(ends.target), initial_state=start)  # (B, T, U)
    context = ka.AdditiveAttention(UNITS)(y, memory, value_mask=mask)  # (B, T, 2U)
    y = layers.GRU(UNITS, return_sequences=True)(layers.Concatenate()([y, context]))
    return ends.model(layers.Dense(WIDTH, activation="tanh")(y))


def convolutional(vocabulary_size: int, num_layers: int = 4) -> keras.Model:
    """Convolutions with gated linear units, and attention in each layer of the decoder (Gehring et al. 2017)."""
    ends = Ends(vocabulary_size)
    mask = ops.not_equal(ends.source, PAD_ID)
    is_real = ops.cast(mask, "float32")[..., None]  # (B, S, 1)
    positions = ka.LearnedPositionalEncoding(MAX_LENGTH)
    source, target = positions(ends.embedding(ends.source)), positions(ends.embedding(ends.target))

    def gated(x: Any, padding: str) -> Any:
        return keras.activations.glu(layers.Conv1D(2 * WIDTH, 3, padding=padding)(x))

    def average(x: Any, y: Any) -> Any:
        return (x + y) * 0.5**0.5  # keeps the variance

    memory = source
    for _ in range(num_layers):  # a convolution knows no masks, so padding must be zero in front of each
        memory = average(memory, gated(memory * is_real, "same"))
    values, y = average(memory, source), target
    for _ in range(num_layers):
        hidden = gated(y, "causal")
        query = average(layers.Dense(WIDTH)(hidden), target)
        context = layers.Attention()([query, values, memory], mask=[None, mask])
        y = average(y, average(hidden, layers.Dense(WIDTH)(context)))
    return ends.model(layers.Dense(WIDTH)(y))


def transformer(vocabulary_size: int) -> keras.Model:
    """Encoder and decoder of two layers."""
    sizes = {"num_layers": 2, "hidden_dim": WIDTH, "intermediate_dim": 4 * WIDTH, "num_heads": 4, "dropout": 0.0}
    return ka.Transformer(ka.TransformerConfig(vocabulary_size, **sizes))


# How each is built, its optimizer, and its learning rate after the warm-up without a sweep.
RIVALS = {
    "last state": (last_state, "adam", 0.004),
    "additive attention": (additive, "adam", 0.004),
    "dot-product attention": (dot_product, "adam", 0.004),
    "convolutional": (convolutional, "adam", 0.002),
    "Transformer": (transformer, "adam", 0.004),
    "Transformer, Muon": (transformer, "muon", 0.004),
}


def join(pairs: Sequence[Pair], most: int, seed: int = 1) -> list[Pair]:
    """Joins pairs in random order, 1 to `most` at a time, for text with longer sentences."""
    if most == 1:
        return list(pairs)
    generator, joined = random.Random(seed), []
    rest = iter(generator.sample(list(pairs), len(pairs)))
    while several := list(itertools.islice(rest, generator.randint(1, most))):
        joined.append(tuple(" ".join(texts) for texts in zip(*several, strict=True)))
    return joined


class Data:
    """The tokenizer, the batches to train on, those for the perplexity, and the pairs to translate."""

    def __init__(self, options: argparse.Namespace):
        self.tokenizer = ka.text.SubwordTokenizer.train(options.texts[:2], options.vocabulary_size)
        files = [options.texts[start : start + 2] for start in (0, 2, 4)]
        train, dev, self.test = (join(ka.text.ParallelCorpus(*pair).pairs, options.join) for pair in files)
        sizes = {"tokens_per_batch": options.tokens_per_batch, "max_length": MAX_LENGTH}
        self.train = ka.text.TokenBatches.from_pairs(train, self.tokenizer, **sizes, seed=options.seed)
        self.dev = ka.text.TokenBatches.from_pairs(dev, self.tokenizer, **sizes, shuffle=False)
        print(self.train.summary())

    def score(self, model: keras.Model) -> dict[str, Any]:
        """BLEU of all test pairs and of each bucket, with the number of pairs in it."""
        sources, references = map(list, zip(*self.test, strict=True))
        lengths = np.array([len(ids) for ids in self.tokenizer.encode(sources)])
        translations, by_length = translate(model, self.tokenizer, sources), {}
        for low, high in zip((0, *BUCKETS), (*BUCKETS, MAX_LENGTH), strict=True):
            index = np.flatnonzero((low < lengths) & (lengths <= high))
            if len(index):
                bleu = sacrebleu.corpus_bleu([translations[i] for i in index], [[references[i] for i in index]]).score
                by_length[f"{low + 1}–{high}"] = {"pairs": len(index), "bleu": round(bleu, 2)}
        bleu = sacrebleu.corpus_bleu(translations, [references]).score
        return {"bleu": round(bleu, 2), "bleu_by_length": by_length}


def translate(
    model: keras.Model, tokenizer: ka.text.SubwordTokenizer, sources: list[str], rows: int = 100
) -> list[str]:
    """Greedy translations: each step runs the whole model again and keeps the token with the largest logit."""
    ids = tf.TensorSpec((None, None), tf.int32)

    @tf.function(input_signature=[ids, ids])
    def next_ids(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        logits = model({"source": source, "target": target}, training=False)
        return tf.argmax(logits[:, -1:], axis=-1, output_type=tf.int32)  # (B, 1)

    step = next_ids.python_function if model.run_eagerly else next_ids
    source_ids = [[*each, EOS_ID] for each in tokenizer.encode(sources)]
    order = sorted(range(len(sources)), key=lambda index: len(source_ids[index]))
    translations = {}
    for start in range(0, len(order), rows):
        index = order[start : start + rows]
        source = keras.utils.pad_sequences([source_ids[i] for i in index], padding="post")  # (B, S)
        target = np.full((len(index), 1), BOS_ID, "int32")
        while target.shape[1] < min(3 * source.shape[1] // 2 + 10, MAX_LENGTH) and not (target == EOS_ID).any(1).all():
            target = np.concatenate([target, step(source, target)], axis=1)  # (B, T)
        for i, written in zip(index, target[:, 1:].tolist(), strict=True):
            length = written.index(EOS_ID) if EOS_ID in written else len(written)
            translations[i] = tokenizer.decode([written[:length]])[0]
    return [translations[i] for i in range(len(sources))]


def train(name: str, data: Data, options: argparse.Namespace, rate: float) -> tuple[keras.Model, dict[str, Any]]:
    """Trains a new model up to a number of steps or minutes, and measures it."""
    keras.utils.set_random_seed(options.seed)
    build, optimizer, _ = RIVALS[name]
    model = build(data.tokenizer.vocabulary_size)
    adam = keras.optimizers.Adam(0.0, beta_2=0.98, epsilon=1e-9, global_clipnorm=1.0)
    model.compile(
        adam if optimizer == "adam" else ka.training.Muon(0.0),
        loss=ka.training.MaskedCrossEntropy(label_smoothing=0.1),
        metrics=[ka.training.Perplexity()],
        run_eagerly=options.smoke,  # a graph takes longer to build than a few steps
    )
    scale = rate * (WIDTH * options.warmup_steps) ** 0.5
    schedule = ka.training.InverseSqrtSchedule(WIDTH, options.warmup_steps, scale)
    limits = {"steps": options.steps, "minutes": options.minutes}
    batches = data.train.dataset().repeat()
    model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)  # builds the graph; the learning rate is still zero
    history = model.fit(
        batches,
        steps_per_epoch=options.every,
        epochs=10**6,
        shuffle=False,  # the dataset has its own order
        verbose=2,
        callbacks=[
            ka.training.StopAfter(**limits),
            ka.training.DecayToLimit(schedule, **limits),
            throughput := ka.training.Throughput(data.train.num_tokens / len(data.train)),
        ],
    ).history
    perplexity = model.evaluate(data.dev.dataset(), verbose=0, return_dict=True)["perplexity"]
    guessing = data.tokenizer.vocabulary_size  # the perplexity of a model that knows nothing, such as a diverged one
    return model, {
        "parameters": model.count_params(),
        "optimizer": optimizer,
        "rate": rate,
        "steps": throughput.steps,
        "minutes": round(throughput.seconds / 60, 2),
        "tokens_per_second": round(statistics.median(history["tokens_per_second"])),
        "loss": history["loss"],
        "perplexity": round(float(np.nan_to_num(perplexity, nan=guessing, posinf=guessing)), 3),
    }


def tune(data: Data, options: argparse.Namespace, content: dict[str, Any], save: Callable[[], None]) -> None:
    """Adds the perplexity of each model after each learning rate, until the best is neither the lowest nor highest."""
    for name in options.models:
        tried = content["tuning"]["results"].setdefault(name, {})
        rates = sorted({*options.rates, *map(float, tried)})
        while missing := [rate for rate in rates if f"{rate:g}" not in tried]:
            for rate in missing:
                print(f"{name}, learning rate {rate:g}")
                tried[f"{rate:g}"] = train(name, data, options, rate)[1]["perplexity"]
                save()
            best = best_rate(content, name)
            rates += [2 * best] * (best == max(rates)) + [best / 2] * (best == min(rates))
    rates = sorted({float(rate) for tried in content["tuning"]["results"].values() for rate in tried})
    print_table(
        ["model", *(f"{rate:g}" for rate in rates)],
        {
            name: [f"{tried[f'{rate:g}']:.1f}" if f"{rate:g}" in tried else "" for rate in rates]
            for name, tried in content["tuning"]["results"].items()
        },
    )


def best_rate(content: dict[str, Any], name: str) -> float:
    """The learning rate with the lowest perplexity in the sweep; without a sweep, the one of `RIVALS`."""
    tried = content.get("tuning", {}).get("results", {}).get(name)
    return float(min(tried, key=tried.get)) if tried else RIVALS[name][2]


def compare(data: Data, options: argparse.Namespace, content: dict[str, Any], save: Callable[[], None]) -> None:
    """Adds the results of each model, and prints them."""
    results = content["training"]["results"]
    for name in options.models:
        if name not in results:
            print(f"{name}: {RIVALS[name][0].__doc__.splitlines()[0]}")
            model, measured = train(name, data, options, best_rate(content, name))
            results[name] = measured | data.score(model)
            save()
    columns = {"parameters": ",", "rate": "g", "steps": ",", "minutes": ".1f", "tokens_per_second": ","}
    columns |= {"perplexity": ".2f", "bleu": ".1f"}
    print_table(
        ["model", *columns],
        {name: [format(each[key], form) for key, form in columns.items()] for name, each in results.items()},
    )
    lengths = {
        length: bucket["pairs"] for each in results.values() for length, bucket in each["bleu_by_length"].items()
    }
    print_table(
        ["BLEU by source tokens", *(f"{length} ({pairs} pairs)" for length, pairs in lengths.items())],
        {
            name: [f"{each['bleu_by_length'][length]['bleu']:.1f}" for length in lengths]
            for name, each in results.items()
        },
    )


def print_table(header: list[str], rows: dict[str, list[str]]) -> None:
    """Prints a table in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([name, *cells] for name, cells in rows.items())]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))


def draw(results: dict[str, Any], image: str) -> None:
    """Draws BLEU by the length of the source."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained", facecolor="white")
    for (name, each), marker in zip(results.items(), "osd^*x", strict=False):
        by_length = each["bleu_by_length"]
        axes.plot(list(by_length), [bucket["bleu"] for bucket in by_length.values()], marker=marker, label=name)
    axes.set(xlabel="tokens of the source", ylabel="BLEU", ylim=(0, None))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(image, dpi=130)
    pyplot.close(figure)


def write_smoke_files(folder: str) -> list[str]:
    """Writes short pairs of dates, numbers and so on for training, and some for both tests; returns the files."""
    pairs = [pair for pair in make_pairs("de", 1000) if len(pair[0]) < 12]
    training, testing = split_pairs(pairs, test_count=5)
    files = []
    for name, pairs in (("train", training), ("dev", testing), ("test", testing)):
        for side, language in enumerate(("en", "de")):
            files.append(f"{folder}/{name}.{language}")
            Path(files[-1]).write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return files


def machine() -> dict[str, Any]:
    """Describes what the times were measured on."""
    cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 1)
    return {"cores": cores, "load": load, "system": platform.platform(), "tensorflow": tf.__version__}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Tunes or compares the models, resumes what the JSON file already has, and returns its content."""
    path, part = Path(options.output), "tuning" if options.tune else "training"
    names = ("join", "vocabulary_size", "tokens_per_batch", "warmup_steps", "steps", "minutes", "seed")
    setting = {"texts": [Path(text).name for text in options.texts]}
    setting |= {name: getattr(options, name) for name in names}
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if content.setdefault(part, {"setting": setting, "results": {}})["setting"] != setting:
        raise SystemExit(f"{path} has results of another setting, {content[part]['setting']}: give another --output")

    def save() -> None:
        content[part] |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    data = Data(options)
    ka.training.keep_freed_memory()
    (tune if options.tune else compare)(data, options, content, save)
    if options.image and not options.tune:
        draw(content[part]["results"], options.image)
    return content


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the content of the JSON file."""
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            small = {"vocabulary_size": 300, "tokens_per_batch": 256, "steps": 4, "every": 1, "warmup_steps": 1}
            vars(options).update(small, texts=write_smoke_files(folder))
        if len(options.texts) != 6 or (options.steps is None and options.minutes is None):
            parser().error("give six texts, and --steps or --minutes; or --smoke")
        return run(options)


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", metavar="text", help="train.en train.de dev.en dev.de test.en test.de")
    parser.add_argument("--steps", type=int, help="of each training")
    parser.add_argument("--minutes", type=float, help="of each training")
    parser.add_argument("--tune", action="store_true", help="try learning rates instead")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[0.002, 0.004, 0.008], help="first of the sweep (%(default)s)"
    )
    parser.add_argument("--models", nargs="+", default=list(RIVALS), choices=list(RIVALS), metavar="name", help="all")
    parser.add_argument("--join", type=int, default=1, help="most pairs to join into one (%(default)s)")
    parser.add_argument("--vocabulary-size", type=int, default=4000, help="(%(default)s)")
    parser.add_argument("--tokens-per-batch", type=int, default=2048, help="on either side (%(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between printed losses (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--output", default="rivals.json", help="results, which a second call resumes (%(default)s)")
    parser.add_argument("--image", help="PNG to draw")
    parser.add_argument("--smoke", action="store_true", help="a few steps on made pairs")
    return parser


if __name__ == "__main__":
    main()
