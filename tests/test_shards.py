"""Text in shards: the right files belong together, each pair is in one batch, few pairs are in memory, runs resume."""

import dataclasses
import gc
import gzip
import importlib
import itertools
import weakref

import numpy as np
import pytest
from click.testing import CliRunner

from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.extras import is_installed
from keras_attention.pipeline import RunConfig, RunFolder, train
from keras_attention.pipeline.recipe import choose_batches, choose_packed_rows
from keras_attention.pipeline.run_data import RunData
from keras_attention.pipeline.skipped_batch import save_skipped_batch
from keras_attention.pipeline.trial import _put_first
from keras_attention.text import (
    BatchSequence,
    PackedBatches,
    ParallelCorpus,
    ShardedPairs,
    StreamedBatches,
    SubwordTokenizer,
    TokenBatches,
)
from keras_attention.text import tokenizer as tokenizer_module
from keras_attention.text.shards import Piece
from keras_attention.text.token_lengths import TokenLengths

BUFFER = 101
KINDS = {
    "by tokens": (TokenBatches, {"tokens_per_batch": 307, "max_length": 31}),
    "few shapes": (TokenBatches, {"tokens_per_batch": 307, "max_length": 31, "max_shapes": 3}),
    "packed": (PackedBatches, {"row_length": 37, "rows_per_batch": 3}),
}
NOISE = {"subword_dropout": 0.3, "source_word_dropout": 0.1}
CUTS = (0, 97, 98, 190, 290, 367)  # one shard has one line


def write_shards(folder, pairs, cuts=CUTS):
    folder.mkdir(exist_ok=True)
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        for side, language in enumerate(("en", "de")):
            data = "".join(f"{pair[side]}\n" for pair in pairs[start:end]).encode()
            packed = number % 2 == 0
            (folder / f"train-{number}.{language}").write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return str(folder / "train-*.en"), str(folder / "train-*.de")


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def text():
    """367 pairs, all different; one is blank on a side, and one is too long."""
    pairs = [(f"{source} {number}", target) for number, (source, target) in enumerate(make_pairs("de", 367))]
    pairs[5], pairs[200] = ("blank", "\u3000"), ("long " * 40, "lang " * 40)
    return pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory, text):
    return write_shards(tmp_path_factory.mktemp("shards") / "train", text)


@pytest.fixture(scope="module")
def pairs(files):
    return ShardedPairs(*files)


@pytest.fixture(scope="module")
def tokenizer(pairs):
    return SubwordTokenizer.train([file for shard in pairs.files for file in shard], vocabulary_size=200)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def streamed(pairs, tokenizer, kind):
    class_, options = kind
    return StreamedBatches(pairs, tokenizer, class_, buffer_size=BUFFER, **options)


def pairs_in(batch):
    """The pairs of ids in a batch, with EOS."""
    inputs, labels = batch
    rows = zip(inputs["source"], labels, strict=True)
    return [pair for row in rows for pair in zip(*map(_sentences, row), strict=True)]


def _sentences(row):
    ids = row[row != 0].tolist()
    ends = [0, *(index + 1 for index, piece in enumerate(ids) if piece == 3)]
    return [tuple(ids[start:end]) for start, end in itertools.pairwise(ends)]


def batches_of(batches, epoch):
    return [batches.batch(index, epoch) for index in batches.plan(epoch)]


def assert_equal(batch, other):
    for array, second in zip((*batch[0].values(), batch[1]), (*other[0].values(), other[1]), strict=True):
        np.testing.assert_array_equal(array, second)


def test_shards_hold_the_pairs_of_one_file(tmp_path, pairs, text):
    write(tmp_path, all_en="\n".join(source for source, _ in text), all_de="\n".join(target for _, target in text))
    corpus = ParallelCorpus(tmp_path / "all.en", tmp_path / "all.de")
    assert list(pairs) == list(pairs.pairs) == corpus.pairs
    assert len(pairs) == len(corpus) == 366
    assert pairs.num_lines == [97, 1, 92, 100, 77]
    assert pairs.summary().endswith("366 pairs of 367 lines in 5 shards, left out: 1 (blank on a side)")
    one = ShardedPairs(tmp_path / "all.en", tmp_path / "all.de")
    assert list(one) == corpus.pairs


def test_a_folder_is_all_its_files(tmp_path, text):
    for side, language in enumerate(("en", "de")):
        (tmp_path / language).mkdir()
        for number in (1, 2, 10):
            (tmp_path / language / f"{language}.{number:02d}").write_text(f"{text[number][side]}\n", encoding="utf-8")
    (tmp_path / "en" / ".hidden").write_text("x\n")
    assert list(ShardedPairs(tmp_path / "en", tmp_path / "de")) == [text[1], text[2], text[10]]


def test_pieces_are_lines_of_shards(pairs, text):
    pieces = [Piece(0, 3, 4), Piece(0, 90, 7), Piece(1, 0, 1), Piece(4, 10, 2)]
    lines = list(pairs.lines(pieces))
    assert lines == [*text[3:7], *text[90:97], text[97], *text[300:302]]


def test_a_sample_is_of_the_pairs(pairs):
    sample = pairs.sample(50, seed=3)
    assert len(set(sample)) == 50 and set(sample) < set(pairs)
    assert sample == pairs.sample(50, seed=3) != pairs.sample(50, seed=4)
    assert pairs.sample(366) == list(pairs)
    with pytest.raises(ValueError, match=r"`count` must be in 0\.\.366\. Received: count=367"):
        pairs.sample(367)


def test_hosts_read_disjoint_parts_of_the_whole(tmp_path, monkeypatch, files, pairs, tokenizer):
    parts = [ShardedPairs(*files, shard=(index, 3)) for index in range(3)]
    for _ in range(2):  # hosts that share a folder keep the numbers of tokens of each part
        kept = {TokenLengths(part, tokenizer, tmp_path).checksum for part in parts}
        assert len(kept) == 3 and len(list(tmp_path.iterdir())) == 6
        monkeypatch.setattr(SubwordTokenizer, "encode", None)
    monkeypatch.undo()
    assert [len(part.files) for part in parts] == [2, 2, 1]
    assert sorted(pair for part in parts for pair in part) == sorted(pairs)
    assert sum(map(len, parts)) == len(pairs)
    made = [StreamedBatches(part, tokenizer, buffer_size=BUFFER, tokens_per_batch=307, max_length=60) for part in parts]
    together = StreamedBatches(pairs, tokenizer, buffer_size=BUFFER, tokens_per_batch=307, max_length=60)
    in_batches = [pair for each in made for batch in batches_of(each, 2) for pair in pairs_in(batch)]
    assert sorted(in_batches) == sorted(pair for batch in batches_of(together, 0) for pair in pairs_in(batch))
    for shard in ((3, 3), (-1, 3), (0, 6), (0, 0)):
        with pytest.raises(
            ValueError, match=rf"`shard` must be \(index, count\).*shards, 5:.* Received: shard=\({shard[0]}"
        ):
            ShardedPairs(*files, shard=shard)


def test_shards_without_a_counterpart(tmp_path):
    write(tmp_path, a0_en="x\n", a1_en="x\n", a2_en="x\n", a0_de="y\n", a2_de="y\n")
    source, target = str(tmp_path / "a*.en"), str(tmp_path / "a*.de")
    with pytest.raises(ValueError, match=r"but .*a1\.en has none\. Received: 3 files for source=.* and 2 for target="):
        ShardedPairs(source, target)
    write(tmp_path, a3_de="y\n", a4_de="y\n")
    with pytest.raises(ValueError, match=r"but .*a1\.en has none\. Received: 3 files for source=.* and 4 for target="):
        ShardedPairs(source, target)
    (tmp_path / "a4.de").unlink()
    with pytest.raises(ValueError, match=r"of number 2 have different numbers .* Received: .*a1\.en and .*a2\.de"):
        ShardedPairs(source, target)
    for missing in (tmp_path / "b*.en", tmp_path / "b.en"):
        with pytest.raises(FileNotFoundError, match=r"No text file at .*b\*?\.en"):
            ShardedPairs(missing, target)


def test_shards_that_cannot_be_used(tmp_path):
    source, target = str(tmp_path / "a*.en"), str(tmp_path / "a*.de")
    write(tmp_path, a0_en="x\n", a1_en="x\nx\n", a0_de="y\n", a1_de="y\ny\ny\n")
    with pytest.raises(ValueError, match=r"Received: 2 lines in .*a1\.en and 3 in .*a1\.de"):
        ShardedPairs(source, target)
    write(tmp_path, a1_de="")
    with pytest.raises(ValueError, match=r"a1\.de: the file is empty"):
        ShardedPairs(source, target)
    (tmp_path / "a1.de").write_bytes("y\nü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a1\.de:2: byte 0xfc is not UTF-8\. Convert the file, .*iconv"):
        ShardedPairs(source, target)
    write(tmp_path, a0_en=" \n", a1_en="\nx\n", a1_de="y\n\n")
    with pytest.raises(ValueError, match=r"At least one line must have text in both files\. Received: source=.*a\*"):
        ShardedPairs(source, target)


@pytest.mark.parametrize("noise", [{}, {"subword_dropout": 0.3}], ids=["plain", "sampled"])
def test_each_pair_is_once_in_the_batches_of_an_epoch(pairs, tokenizer, kind, noise):
    class_, options = kind
    streamed = StreamedBatches(pairs, tokenizer, class_, buffer_size=BUFFER, **noise, **options)
    texts = [pair for pair in pairs if not pair[0].startswith("long")]
    assert (streamed.num_pairs, streamed.num_left_out) == (365, 1)
    shapes = set()
    for epoch in (0, 1, 5):
        batches = batches_of(streamed, epoch)
        assert len(batches) == len(streamed)
        ids = [pair for batch in batches for pair in pairs_in(batch)]
        decoded = zip(*(tokenizer.decode([pair[side] for pair in ids]) for side in (0, 1)), strict=True)
        assert sorted(decoded) == sorted(texts)
        shapes |= {(batch[0]["source"].shape, batch[1].shape) for batch in batches}
        tokens = sum(len(side) for pair in ids for side in pair)
        cells = sum(batch[0]["source"].size + batch[1].size for batch in batches)
        close = 0.05 if noise else 1e-9  # with noise, the counts are those of one sample
        assert streamed.token_counts(epoch).sum(axis=0) == pytest.approx([tokens, cells], rel=close)
        assert streamed.num_tokens == pytest.approx(tokens, rel=close)
        assert 1 - streamed.padding == pytest.approx(tokens / cells, rel=close)
    if class_ is PackedBatches:
        assert len(shapes) == 1
    elif "max_shapes" in options:
        assert len(shapes) <= 3
    limit = options.get("tokens_per_batch", 3 * 37)
    assert all(rows * max(width, length) <= limit for (rows, width), (_, length) in shapes)
    of_each_shape = {(batch[0]["source"].shape, batch[1].shape) for batch in streamed.batch_of_each_shape()}
    assert not of_each_shape or shapes <= of_each_shape


def test_epochs_have_other_batches_that_follow_from_the_seed(pairs, tokenizer, kind, streamed):
    class_, options = kind
    again = StreamedBatches(pairs, tokenizer, class_, buffer_size=BUFFER, **options)
    other = StreamedBatches(pairs, tokenizer, class_, buffer_size=BUFFER, seed=2, **options)
    first = batches_of(streamed, 0)
    for batch, same in zip(first, batches_of(again, 0), strict=True):
        assert_equal(batch, same)
    for different in (batches_of(streamed, 1), batches_of(other, 0)):
        assert {frozenset(pairs_in(batch)) for batch in first} != {frozenset(pairs_in(batch)) for batch in different}
    orders = [[buffer for buffer, _ in itertools.groupby(streamed.plan(epoch)[:, 0])] for epoch in range(9)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(map(tuple, orders))) > 3


def test_padding_is_nearly_that_of_text_in_memory(pairs, tokenizer, kind):
    class_, options = kind
    in_memory = class_.from_pairs(list(pairs), tokenizer, **options)
    one = StreamedBatches(pairs, tokenizer, class_, **options)
    assert (one.num_pairs, one.num_tokens, len(one)) == (in_memory.num_pairs, in_memory.num_tokens, len(in_memory))
    assert one.padding == pytest.approx(in_memory.padding, abs=0.005)
    assert one.summary().startswith(in_memory.summary().partition("padding")[0])
    assert one.summary().endswith("read in 1 buffer of up to 100,000 lines")


@pytest.mark.skipif(not is_installed("tensorflow"), reason="the dataset is TensorFlow's")
def test_a_dataset_begins_with_any_batch_and_reads_only_its_buffer(monkeypatch, pairs, tokenizer, kind):
    class_, options = kind
    streamed = StreamedBatches(pairs, tokenizer, class_, buffer_size=BUFFER, **NOISE, **options)
    expected = [batch for epoch in (3, 4) for batch in batches_of(streamed, epoch)]
    resumed = StreamedBatches(pairs, tokenizer, class_, buffer_size=BUFFER, **NOISE, **options)
    read, buffer = [], StreamedBatches.buffer
    monkeypatch.setattr(StreamedBatches, "buffer", lambda self, number: read.append(number) or buffer(self, number))
    first = len(streamed) - 2
    batches = list(resumed.dataset(3, first).repeat().take(len(streamed) + 2))
    for batch, (inputs, labels) in zip(expected[first:], batches, strict=True):
        assert_equal(batch, ({name: ids.numpy() for name, ids in inputs.items()}, labels.numpy()))
    orders = [list(dict.fromkeys(resumed.plan(epoch)[:, 0].tolist())) for epoch in (3, 4, 5)]
    needed = [orders[0][-1], *orders[1], *orders[2]]
    assert read == [number for number, _ in itertools.groupby(needed)][: len(read)]
    assert len(read) <= 1 + 4 + 2
    sequence = itertools.islice(BatchSequence(resumed, 3, first).repeat(), len(streamed) + 2)
    for batch, second in zip(expected[first:], sequence, strict=True):
        assert_equal(batch, second)
    assert resumed.dataset().cardinality() == len(resumed)


@pytest.mark.parametrize("noise", [{}, NOISE], ids=["plain", "sampled"])
def test_two_buffers_are_in_memory_and_one_is_read_in_advance(monkeypatch, pairs, tokenizer, noise):
    streamed = StreamedBatches(pairs, tokenizer, buffer_size=23, tokens_per_batch=200, max_length=31, **noise)
    alive, most, buffer = weakref.WeakSet(), [], StreamedBatches.buffer

    def watched(self, number):
        made = buffer(self, number)
        alive.add(made)
        most.append(len(alive))
        return made

    monkeypatch.setattr(StreamedBatches, "buffer", watched)
    plan = streamed.plan(0)
    gc.collect()
    gc.disable()  # buffers are freed at once, not when garbage is collected
    try:
        streamed.batch(plan[0], 0)
        next(reversed(streamed._loaded.values())).result()
        assert len(most) == 2  # the second without a batch of it
        for position in plan:
            streamed.batch(position, 0)
    finally:
        gc.enable()
    assert len(most) >= 16
    assert max(most) <= 2


def test_numbers_of_tokens_are_counted_once(tmp_path, monkeypatch, text, tokenizer):
    pairs = ShardedPairs(*write_shards(tmp_path / "text", text))
    made = StreamedBatches(pairs, tokenizer, folder=tmp_path / "lengths", buffer_size=BUFFER, max_length=60)
    assert (tmp_path / "lengths" / "token-lengths.bin").stat().st_size == 8 * 367
    encode = SubwordTokenizer.encode
    monkeypatch.setattr(SubwordTokenizer, "encode", None)
    again = StreamedBatches(pairs, tokenizer, folder=tmp_path / "lengths", buffer_size=BUFFER, max_length=60)
    assert again.fingerprint() == made.fingerprint() and len(again) == len(made)
    (tmp_path / "lengths" / "token-lengths.json").write_text("{")
    monkeypatch.setattr(SubwordTokenizer, "encode", encode)
    again = StreamedBatches(pairs, tokenizer, folder=tmp_path / "lengths", buffer_size=BUFFER, max_length=60)
    assert again.fingerprint() == made.fingerprint()
    changed = [("other words", "andere Worte"), *text[1:]]
    other = ShardedPairs(*write_shards(tmp_path / "text", changed))
    counted = StreamedBatches(other, tokenizer, folder=tmp_path / "lengths", buffer_size=BUFFER, max_length=60)
    assert counted.fingerprint()["token_ids"] != made.fingerprint()["token_ids"]
    cut = ShardedPairs(*write_shards(tmp_path / "cut", text, cuts=(0, 90, 180, 367)))
    assert StreamedBatches(cut, tokenizer, max_length=60).fingerprint() != made.fingerprint()


def test_text_that_changes_after_it_was_counted(tmp_path, text, tokenizer):
    pairs = ShardedPairs(*write_shards(tmp_path / "text", text))
    batches = StreamedBatches(pairs, tokenizer, buffer_size=BUFFER, max_length=31)
    write_shards(tmp_path / "text", [("blank", ""), *text[1:]])
    with pytest.raises(ValueError, match=r"The text has changed since .* Received: \d+ pairs in .*train-0\.en"):
        for position in batches.plan(0):
            batches.batch(position)


def test_arguments_of_streamed_batches(pairs, tokenizer):
    for options, message in (
        ({"buffer_size": 0}, r"`buffer_size` must be a positive integer.* Received: buffer_size=0"),
        ({"subword_dropout": 1.0}, "`subword_dropout` must be .* Received: subword_dropout=1.0"),
        ({"tokens_per_batch": 0}, r"`tokens_per_batch` must be at least 1\. Received: tokens_per_batch=0"),
        ({"max_length": 2}, r"of 366 pairs none has at most 2 tokens a side\. Received: max_length=2"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamedBatches(pairs, tokenizer, **options)
    with pytest.raises(TypeError, match=r"must be TokenBatches or PackedBatches\. Received: batches=<class 'dict'>"):
        StreamedBatches(pairs, tokenizer, dict)
    batches = StreamedBatches(pairs, tokenizer)
    for call in (batches.plan, batches.token_counts):
        with pytest.raises(ValueError, match=r"`epoch` must not be negative\. Received: epoch=-1"):
            call(-1)


def test_counts_of_lengths(pairs, tokenizer):
    lengths, counts = TokenLengths(pairs, tokenizer).counts(31)
    expected = {}
    for pair in pairs:
        key = tuple(len(ids) + 1 for ids in tokenizer.encode(list(pair)))
        if max(key) <= 31:
            expected[key] = expected.get(key, 0) + 1
    assert dict(zip(map(tuple, lengths.tolist()), counts.tolist(), strict=True)) == expected


def test_a_tokenizer_is_trained_without_the_text_in_memory(monkeypatch, files, pairs):
    paths = [file for shard in pairs.files for file in shard]
    monkeypatch.setattr(tokenizer_module, "read_lines", None)
    monkeypatch.setattr(tokenizer_module, "MAX_TRAINING_LINES", 100)
    trained, train_model = [], tokenizer_module.train_model
    monkeypatch.setattr(
        tokenizer_module, "train_model", lambda lines, *rest: train_model(trained.extend(lines) or trained, *rest)
    )
    with pytest.warns(UserWarning, match="a sample of 100 of 734 lines"):
        SubwordTokenizer.train(paths, vocabulary_size=100)
    assert len(trained) == 100
    assert any(line in {target for _, target in pairs} for line in trained)


class Upper:
    """A translator that translates nothing."""

    def translate(self, sources):
        return [source.upper() for source in sources]


@pytest.fixture
def config(tmp_path, files, text, monkeypatch):
    """A small run of which nothing is translated and averaged, for time."""
    jobs = importlib.import_module("keras_attention.pipeline.train")
    monkeypatch.setattr("keras_attention.pipeline.validation.Translator", lambda *_, **__: Upper())
    monkeypatch.setattr(jobs, "write_final_model", lambda model, *_: model)
    monkeypatch.setattr(jobs, "tensorboard_callbacks", lambda *_: [])
    for side, name in enumerate(("dev.en", "dev.de")):
        lines = [pair[side] for pair in make_pairs("de", 397)[367:]]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return RunConfig.from_preset(
        "tiny",
        source=files[0],
        target=files[1],
        valid_source=str(tmp_path / "dev.en"),
        valid_target=str(tmp_path / "dev.de"),
        vocabulary_size=200,
        buffer_size=BUFFER,
        tokens_per_batch=500,
        max_length=31,
        evaluate_every=97,
        score_sentences=3,
        total_steps=19,
        model={"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "intermediate_dim": 8, "dropout": 0.2},
    )


@pytest.mark.slow
@pytest.mark.tensorflow
def test_an_interrupted_run_ends_as_one_that_is_not(tmp_path, config, capsys, monkeypatch):
    """It stops within an epoch, and resumes into the next one, for both of which buffers are read."""
    model = train(tmp_path / "whole", config)
    assert "read in 4 buffers of up to 101 lines" in capsys.readouterr().out
    train(tmp_path / "parts", config, max_steps=4)
    encode, texts = SubwordTokenizer.encode, []
    monkeypatch.setattr(SubwordTokenizer, "encode", lambda self, lines: texts.append(len(lines)) or encode(self, lines))
    batches = RunData.read(config, RunFolder(tmp_path / "parts").tokenizer, folder=tmp_path / "parts" / "shards")[
        1
    ].batches
    assert sum(texts) == 2 * 30  # only the validation text is tokenized
    assert 4 < len(batches) < 16
    parts = train(tmp_path / "parts")
    for weight, same in zip(model.weights, parts.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), same.numpy())


def test_a_run_checks_its_shards(tmp_path, config, text, tokenizer):
    source, target = write_shards(tmp_path / "text", text)
    config = config.replace(source=source, target=target)
    run = RunFolder(tmp_path / "run")
    run.start(config, tokenizer)
    moved = write_shards(tmp_path / "moved", text)
    config = config.replace(source=moved[0], target=moved[1])
    run.check_texts(config)
    write_shards(tmp_path / "moved", [("changed", text[0][1]), *text[1:]])
    with pytest.raises(ValueError, match=r"The text has changed since the run .* Received: source='.*train-\*\.en'"):
        run.check_texts(config)
    with pytest.raises(ValueError, match=r"must be one file\. Received: valid_source='.*moved'"):
        RunData.read(config.replace(valid_source=str(tmp_path / "moved")), tokenizer)


def test_a_batch_of_a_run_can_be_saved_and_its_memory_tried(tmp_path, streamed, tokenizer):
    number = len(streamed) + 2
    path = save_skipped_batch(tmp_path / "skipped", number, streamed, tokenizer)
    with np.load(path) as saved:
        inputs, labels = streamed.batch(streamed.plan(1)[2], 1)
        np.testing.assert_array_equal(saved["source"], inputs["source"])
        np.testing.assert_array_equal(saved["labels"], labels)
    shapes, count = _put_first(streamed.buffer(0))
    assert len(shapes) >= 1 and count >= 1


def test_rows_are_packed_as_for_text_in_one_file(monkeypatch, config, pairs, tokenizer, tmp_path):
    monkeypatch.setattr("keras.config.backend", lambda: "jax")
    expected = choose_batches(config, list(pairs), tokenizer)
    lengths, counts = TokenLengths(pairs, tokenizer).counts(31)
    assert choose_packed_rows(config, lengths.max(axis=1), counts) == expected
    chosen, data = RunData.read(config, tokenizer, lambda config, steps: config, tmp_path / "lengths")
    assert chosen.packed_rows == expected.packed_rows and chosen.row_length == expected.row_length
    assert len(data.batches.batch_of_each_shape()) == 1
    resumed, data = RunData.read(dataclasses.replace(chosen), tokenizer, folder=tmp_path / "lengths")
    assert resumed == chosen


def test_the_batches_are_sampled_as_a_new_run_chooses(tmp_path, config, tokenizer):
    lengths = tmp_path / "lengths"
    _, usual = RunData.read(config, tokenizer, folder=lengths)
    chosen, sampled = RunData.read(config, tokenizer, lambda config, _: config.replace(subword_dropout=0.3), lengths)
    _, resumed = RunData.read(chosen, tokenizer, folder=lengths)
    assert sampled.batches.fingerprint() == resumed.batches.fingerprint() != usual.batches.fingerprint()
    assert sampled.batches.num_tokens > 1.1 * usual.batches.num_tokens


def test_the_command_takes_patterns_and_folders(tmp_path, files):
    def output(*arguments):
        return CliRunner().invoke(main, ["train", str(tmp_path / "run"), *map(str, arguments)]).output

    assert "No text file at missing-*.en." in output("--source", "missing-*.en")
    assert "File 'missing.en' does not exist" in output("--source", "missing.en")
    (tmp_path / "empty").mkdir()
    assert f"No text file at {tmp_path / 'empty'}." in output("--target", tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "one.en").write_text("one\n")
    for source in (files[0], tmp_path / "full"):
        assert "Missing: --target, --valid-source, --valid-target" in output("--source", source)
