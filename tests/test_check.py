"""The check of the texts of a training: every kind of fault, its lines, the cleaned copies, the command."""

import gzip
import importlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig, check_texts, draw_report, train
from keras_attention.pipeline.check.duplicates import common, repeated
from keras_attention.pipeline.check.languages import are_swapped, profile, same_language, similarity
from keras_attention.pipeline.check.problems import ERRORS, EXAMPLES, REMOVABLE, WARNINGS
from keras_attention.pipeline.trial import Trial, measure_training, trial_training
from keras_attention.text import ParallelCorpus, SubwordTokenizer, TokenBatches
from keras_attention.text.lines import read_lines, stream_lines

pytestmark = pytest.mark.tensorflow

SCAN = importlib.import_module("keras_attention.pipeline.check.scan")
TRIAL = importlib.import_module("keras_attention.pipeline.trial")
ENGLISH = re.findall(r"\w+", "the cat sat on a mat while seven dogs were walking home through green and quiet streets")
GERMAN = re.findall(
    r"\w+", "die Katze saß auf einer Matte während sieben Hunde durch grüne und ruhige Straßen nach Hause liefen"
)


def clean_pairs(number, seed=1):
    """Different pairs of English and German words, whose lengths go together."""
    random_words = random.Random(seed)
    pairs = {}
    while len(pairs) < number:
        length = random_words.randrange(3, 12)
        pair = tuple(" ".join(random_words.choices(words, k=length)) for words in (ENGLISH, GERMAN))
        pairs.setdefault(pair[0], pair)
    return list(pairs.values())


def write(folder, name, pairs, packed=False):
    """Writes pairs of texts or bytes, and returns the two paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for side, language in enumerate(("en", "de")):
        lines = [pair[side] if isinstance(pair[side], bytes) else pair[side].encode() for pair in pairs]
        data = b"".join(line + b"\n" for line in lines)
        path = folder / f"{name}.{language}"
        path.write_bytes(gzip.compress(data) if packed else data)
        paths.append(str(path))
    return tuple(paths)


def found(report):
    """The kinds of problems, with their splits and lines."""
    return {(each.kind, each.split): list(map(int, each.lines)) for each in report.problems}


def command(*arguments, given=None):
    return CliRunner().invoke(main, ["check", *map(str, arguments)], input=given)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Clean files of the three splits."""
    folder = tmp_path_factory.mktemp("clean")
    pairs = clean_pairs(223)
    parts = {"train": pairs[:151], "valid": pairs[151:192], "test": pairs[192:]}
    return {split: write(folder, split, part) for split, part in parts.items()}


@pytest.fixture
def faulty(tmp_path):
    """Files with faults of every kind that one pair can have, and the lines of each kind."""
    pairs = clean_pairs(223)
    train_pairs, valid_pairs, test_pairs = pairs[:151], pairs[151:192], pairs[192:]
    train_pairs[4] = ("", "eine Katze")
    train_pairs[9] = ("a cat", " \t")
    train_pairs[10] = ("", "")
    train_pairs[17] = ("Tom and Mary", "Tom and Mary ")
    train_pairs[23] = train_pairs[3]
    train_pairs[101] = train_pairs[3]
    train_pairs[30] = ("cat", " ".join(GERMAN))
    train_pairs[31] = (" ".join(ENGLISH), "Katze")
    train_pairs[40] = (b"caf\xe9 au lait", "Milchkaffee")
    train_pairs[41] = ("coffee", b"Kaffe\xc3")
    train_pairs[50] = valid_pairs[6]
    train_pairs[60] = tuple(f"{each.upper()}!!" for each in test_pairs[2])
    valid_pairs[11] = test_pairs[7]
    files = {
        split: write(tmp_path / "faulty", split, part)
        for split, part in (("train", train_pairs), ("valid", valid_pairs), ("test", test_pairs))
    }
    lines = {
        ("invalid_utf8", "train"): [41, 42],  # in two problems, one for each file
        ("blank", "train"): [5, 10, 11],
        ("identical_sides", "train"): [18],
        ("length_ratio", "train"): [31, 32],
        ("duplicates", "train"): [24, 102],
        ("leaks", "valid"): [7],
        ("leaks", "test"): [3, 8],  # in two problems, one for each earlier split
    }
    return files, lines


def check(files, **options):
    return check_texts(*files["train"], valid=files.get("valid"), test=files.get("test"), **options)


# ---- faults


def test_clean_files_have_no_problems(clean):
    report = check(clean)
    assert list(report.problems) == []
    assert [each.num_pairs for each in report.splits] == [151, 41, 31]
    sources, targets = map(read_lines, clean["train"])
    lengths = [[len(text.split()) for text in texts] for texts in (sources, targets)]
    for side, counts in zip(report.splits[0].lengths, lengths, strict=True):
        assert (side.total, side.longest) == (sum(counts), max(counts))
        assert (side.mean, side.median) == (np.mean(counts), np.median(counts))
        assert side.histogram == {
            1: 0, 2: 0, 4: sum(count <= 4 for count in counts), 8: sum(4 < count <= 8 for count in counts),
            16: sum(count > 8 for count in counts),
        }  # fmt: skip
    assert report.splits[0].longest[0]["tokens"] == max(map(max, lengths))
    assert set(report.samples) <= set(zip(sources, targets, strict=True)) and len(report.samples) == 3


def test_every_fault_is_found_with_its_lines(faulty):
    files, lines = faulty
    report = check(files)
    by_kind = {}
    for problem in report.problems:
        assert problem.level == ("error" if problem.kind in ERRORS else "warning")
        by_kind.setdefault((problem.kind, problem.split), []).extend(map(int, problem.lines))
    assert {key: sorted(numbers) for key, numbers in by_kind.items()} == lines
    assert [problem.kind for problem in report.errors] == ["invalid_utf8"] * 2
    assert {key[0] for key in lines} == set(REMOVABLE) - {"too_long"}
    assert set(by_kind) <= {(kind, split) for kind in ERRORS + WARNINGS for split in files}


def test_the_examples_name_file_and_line(faulty):
    files, _ = faulty
    report = check(files)
    text = str(report).replace(str(files["train"][0]).removesuffix("train.en"), "")
    for line in (
        "error: train.en: 1 lines are not UTF-8",
        "  train.en:41: byte 0xe9 at position 4 is not UTF-8",
        "  train.de:42: byte 0xc3 at position 6 is not UTF-8",
        "  train.en:5: blank, but train.de:5 has text",
        "  train.de:10: blank, but train.en:10 has text",
        "  train.en:11: blank, and so is train.de:11",
        "  train.en:18: the same text as train.de:18",
        "  train.en:24: the same pair as line 4",
        "  train.en:102: the same pair as line 4",
        f"  train.en:31: 3 bytes, and {len(' '.join(GERMAN).encode())} in train.de:31",
        "  valid.en:7: also in train.en:51",
        "  test.en:3: also in train.en:61",
        "  test.en:8: also in valid.en:12",
    ):
        assert line in text.splitlines(), text


def test_many_lines_are_counted_and_a_few_shown(tmp_path):
    pairs = [*clean_pairs(30), *[("", "leer")] * 12]
    report = check_texts(*write(tmp_path, "train", pairs))
    (problem,) = report.problems
    assert list(problem.lines) == list(range(31, 43))
    assert len(problem.examples) == EXAMPLES
    assert "  … and 7 more" in str(problem)


def test_unknown_pieces_and_long_pairs_need_a_tokenizer(tmp_path, clean):
    tokenizer = SubwordTokenizer.train(clean["train"], vocabulary_size=100)
    pairs = clean_pairs(37)
    pairs[5] = ("a cat ☃", "die ☃ ☃ Katze")
    pairs[8] = ("the § cat", "die Katze")
    pairs[20] = (" ".join(ENGLISH[:3] * 30), " ".join(GERMAN[:3] * 30))
    report = check_texts(*write(tmp_path, "train", pairs), tokenizer=tokenizer, max_length=60)
    assert found(report) == {("too_long", "train"): [21], ("unknown_pieces", "train"): [6, 9]}
    unknown = next(each for each in report.problems if each.kind == "unknown_pieces")
    assert unknown.message.endswith("2 pairs with pieces that the tokenizer does not know: '☃' (3), '§' (1)")
    ids = [tokenizer.encode([pair[side] for pair in pairs]) for side in (0, 1)]
    assert [side.total for side in report.splits[0].lengths] == [sum(map(len, side)) for side in ids]
    assert report.splits[0].unknown_pieces == sum(each.count(1) for side in ids for each in side)
    assert report.unit == "tokens"
    # EOS is one token more: with room for it, the pair is trained.
    longest = max(len(side[20]) for side in ids)
    for room, too_long in ((0, True), (1, False)):
        report = check_texts(*write(tmp_path, "train", pairs), tokenizer=tokenizer, max_length=longest + room)
        assert (("too_long", "train") in found(report)) is too_long


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_different_lengths(tmp_path, packed):
    pairs = clean_pairs(41)
    source, _ = write(tmp_path, "train", pairs, packed)
    _, target = write(tmp_path, "other", pairs[:-3], packed)
    (problem,) = check_texts(source, target).errors
    assert problem.kind == "line_counts"
    assert problem.message == (
        f"the numbers of lines differ: 41 in {source} and 38 in {target}; line N of one file must translate line N of "
        "the other"
    )


def test_empty_files_and_files_without_pairs(tmp_path):
    source, _ = write(tmp_path, "train", clean_pairs(3))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "packed").write_bytes(gzip.compress(b""))
    for empty in ("empty", "packed"):
        (problem,) = check_texts(source, tmp_path / empty).errors
        assert (problem.kind, problem.message) == ("empty_file", f"{tmp_path / empty}: the file is empty")
    (tmp_path / "blank").write_bytes(b"\n \n\t\n")
    report = check_texts(source, tmp_path / "blank")
    assert [problem.kind for problem in report.errors] == ["no_pairs"]
    assert ("blank", "train") in found(report)
    assert str(report)


def test_identical_and_swapped_files(tmp_path, clean):
    source, target = clean["train"]
    assert [problem.kind for problem in check_texts(source, source).problems] == ["identical_files"]
    report = check_texts(source, target, valid=clean["valid"][::-1], test=clean["test"])
    (problem,) = report.errors
    assert (problem.kind, problem.split) == ("swapped_files", "valid")
    assert f"{clean['valid'][0]} in that of {source}" in problem.message
    # Both sides in one language, but different texts.
    report = check_texts(source, clean["train"][0], valid=clean["valid"])
    assert not [each for each in report.errors if each.kind == "swapped_files"]
    paraphrases = [(source, f"{source.partition(' ')[2]} {source.split()[0]} too") for source, _ in clean_pairs(60)]
    other = write(tmp_path, "english", paraphrases)
    assert [problem.kind for problem in check_texts(*other).problems] == ["same_language"]


def test_shifted_lines_show_in_the_lengths(tmp_path):
    sources, targets = zip(*clean_pairs(211), strict=True)
    shifted = list(zip(sources, targets[1:] + targets[:1], strict=True))
    kinds = [problem.kind for problem in check_texts(*write(tmp_path, "train", shifted)).problems]
    assert "unrelated_lengths" in kinds and set(kinds) <= {"unrelated_lengths", "length_ratio"}


def test_swapped_languages_are_recognized_in_a_few_lines():
    pairs = make_pairs("de", 60)
    swapped = [pair[::-1] for pair in pairs[40:]]
    assert are_swapped(swapped, pairs[:40]) and not are_swapped(pairs[40:], pairs[:40])
    assert same_language(pairs) is None
    same = [(pair[0], other[0]) for pair, other in zip(pairs, pairs[30:] + pairs[:30], strict=True)]
    assert not are_swapped(same, same)
    assert similarity(profile(["a"]), profile([])) == 0.0
    assert similarity(profile(["cats"]), profile(["cats", "cats"])) == pytest.approx(1.0)


def test_equal_hashes():
    hashes = np.array([7, 3, 7, 5, 3, 7])
    assert [each.tolist() for each in repeated(hashes)] == [[2, 4, 5], [0, 1, 0]]
    assert [each.tolist() for each in common(hashes, np.array([9, 3, 3, 5]))] == [[1, 3, 4], [1, 3, 1]]
    assert [each.tolist() for each in common(hashes, hashes[:0])] == [[], []]


def test_the_sample_is_random_and_repeatable(tmp_path, monkeypatch):
    monkeypatch.setattr(SCAN, "SAMPLE", 7)
    monkeypatch.setattr(SCAN, "_CHUNK", 5)
    files = write(tmp_path, "train", clean_pairs(53))
    counts = np.zeros(53)
    sources = read_lines(files[0])
    for seed in range(200):
        sample = SCAN.PairScan("train", files, seed=seed).read().sample
        assert len(set(sample)) == 7
        counts[[sources.index(source) for source, _ in sample]] += 1
    # Binomial: mean 200 · 7 / 53 = 26.4, standard deviation 4.8.
    assert counts.min() > 8 and counts.max() < 45
    assert check_texts(*files, seed=3).samples == check_texts(*files, seed=3).samples


# ---- reading


@pytest.mark.parametrize(
    "data",
    [
        b"one\ntwo\n",
        b"one\ntwo",
        b"one\r\ntwo\r",
        b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n",
        b"\n",
        b"",
        "a\u2028b\x0bc\n".encode(),
    ],
)
def test_lines_in_a_stream_are_those_of_read_lines(tmp_path, data):
    for name, stored in (("plain", data), ("packed", gzip.compress(data))):
        (tmp_path / name).write_bytes(stored)
        assert [line.decode() for line in stream_lines(tmp_path / name)] == read_lines(tmp_path / name)


def test_a_stream_tells_how_much_it_has_read(tmp_path):
    (tmp_path / "text").write_bytes(b"0123456789" * 10 + b"\n" + b"word\n" * 200_000)
    read = []
    assert sum(1 for _ in stream_lines(tmp_path / "text", read.append)) == 200_001
    size = (tmp_path / "text").stat().st_size
    assert len(read) > 100 and size - 5000 <= sum(read) <= size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("eins\n".encode("utf-16"), "text:1: byte 0xff is not UTF-8: the text is UTF-16"),
        (b"one\0\0\0\0\n", "more than a third of the bytes are zero"),
        (b"\xfd7zXZ\0\0\x04", "this is not UTF-8 text. The file is compressed: unpack it with xz first"),
        (gzip.compress(b"one\n" * 1000)[:-7], "damaged gzip file"),
        (gzip.compress(gzip.compress(b"one\n")), "unpack it with gzip first"),
    ],
    ids=["UTF-16", "zeros", "xz", "cut gzip", "gzip twice"],
)
def test_files_that_are_no_text_are_refused(tmp_path, data, message):
    good, _ = write(tmp_path, "good", clean_pairs(3))
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_texts(good, tmp_path / "text")
    result = command(good, tmp_path / "text")
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


# ---- cleaned copies


@pytest.mark.parametrize("packed", [False, True])
def test_the_cleaned_copies_are_clean(faulty, tmp_path, packed):
    files, _ = faulty
    if packed:
        for path in (path for pair in files.values() for path in pair):
            Path(path).write_bytes(gzip.compress(Path(path).read_bytes()))
    before = {path: Path(path).read_bytes() for pair in files.values() for path in pair}
    report = check(files, fix=tmp_path / "new" / "cleaned")
    assert {path: Path(path).read_bytes() for path in before} == before
    copies = {split: tuple(path.replace("faulty", "new/cleaned") for path in pair) for split, pair in files.items()}
    assert [each.files for each in report.copies] == list(copies.values())
    assert list(check(copies).problems) == []
    assert [each.removed for each in report.copies] == [
        {"invalid_utf8": 2, "blank": 3, "identical_sides": 1, "length_ratio": 2, "duplicates": 2, "leaks": 2},
        {"leaks": 1},
        {},
    ]
    assert [each.kept for each in report.copies] == [151 - 12, 41 - 1, 31]
    removed = {"train": {5, 10, 11, 18, 24, 31, 32, 41, 42, 51, 61, 102}, "valid": {12}, "test": set()}
    for split, pair in files.items():
        for path, copy in zip(pair, copies[split], strict=True):
            data = Path(path).read_bytes()
            lines = (gzip.decompress(data) if packed else data).split(b"\n")
            kept = [line.decode() for number, line in enumerate(lines[:-1], 1) if number not in removed[split]]
            assert read_lines(copy) == kept
        assert all(Path(path).read_bytes()[:2] == b"\x1f\x8b" for path in copies[split]) is packed
    assert "139 pairs kept, 12 removed (2 invalid utf8, 3 blank," in str(report)
    assert not list(tmp_path.rglob(".writing-*"))


def test_copies_are_never_written_over_files(faulty, tmp_path):
    files, _ = faulty
    with pytest.raises(ValueError, match=r"must be new or empty: name another\. Received: fix="):
        check(files, fix=tmp_path / "faulty")
    with pytest.raises(ValueError, match="must be files: save the text to a file first"):
        check_texts("-", files["train"][1], fix=tmp_path / "cleaned")
    assert not (tmp_path / "cleaned").exists()


def test_a_failure_leaves_no_part_of_the_copies(faulty, tmp_path, monkeypatch):
    module = importlib.import_module("keras_attention.pipeline.check.fix")
    copy = module._copy

    def fail_at_the_third(path, removals, target):
        if "valid" in str(target):
            raise OSError(28, "No space left on device", str(target))
        copy(path, removals, target)

    monkeypatch.setattr(module, "_copy", fail_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        check(faulty[0], fix=tmp_path / "cleaned")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faulty"]


def test_copies_of_files_with_equal_names(tmp_path, clean):
    pairs = clean_pairs(20)
    paths = []
    for side, name in enumerate(("english", "german")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "text"
        path.write_bytes(gzip.compress("".join(pair[side] + "\n" for pair in pairs).encode()))
        paths.append(path)
    report = check_texts(*paths, fix=tmp_path / "cleaned")
    assert sorted(path.name for path in (tmp_path / "cleaned").iterdir()) == ["train.source.gz", "train.target.gz"]
    assert list(zip(*map(read_lines, report.copies[0].files), strict=True)) == pairs


def test_files_that_cannot_be_cleaned_are_named(tmp_path, clean):
    source, _ = write(tmp_path, "train", [("", "eins"), ("two", "zwei")])
    (tmp_path / "short.de").write_bytes(b"eins\n")
    report = check_texts(source, tmp_path / "short.de", valid=clean["valid"], fix=tmp_path / "cleaned")
    assert report.copies[0].files == () and "numbers of lines differ" in str(report.copies[0])
    assert report.copies[1].kept == 41
    report = check_texts(*write(tmp_path, "blank", [("", "eins"), ("same", "same"), ("x", "y")]), fix=tmp_path / "two")
    assert report.copies[0].kept == 1
    report = check_texts(*write(tmp_path, "none", [("a", "a"), ("b", "b" * 60), ("", "c")]), fix=tmp_path / "three")
    assert str(report.copies[0]) == "no cleaned copy of the train files: every pair has a problem"


# ---- the command


def test_the_command_reports_as_text_json_and_picture(faulty, tmp_path):
    files, lines = faulty
    options = ["--valid-source", "--valid-target", "--test-source", "--test-target"]
    others = [word for pair in zip(options, files["valid"] + files["test"], strict=True) for word in pair]
    outputs = ["--json", tmp_path / "report.json", "--picture", tmp_path / "report.png", "--fix", tmp_path / "cleaned"]
    result = command(*files["train"], *others, *outputs)
    assert result.exit_code == 1, result.output
    assert "146 pairs of 151 lines; 3 are left out because a side is blank; errors: 2, warnings: 7" in result.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["ok"] is False
    assert sum(len(each["lines"]) for each in report["problems"]) == sum(map(len, lines.values()))
    assert report["splits"][0]["num_pairs"] == 146
    assert [each["kept"] for each in report["copies"]] == [139, 40, 31]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    cleaned = [str(path).replace("faulty", "cleaned") for path in files["train"]]
    assert command(*cleaned).exit_code == 0


def test_json_on_standard_output_is_all_there(clean, capfd):
    result = command(*clean["train"], "--json", "-")
    assert json.loads(capfd.readouterr().out)["ok"] is True
    assert "151 pairs of 151 lines" in result.stderr


def test_standard_input_is_read_once(clean):
    data = gzip.compress(Path(clean["train"][0]).read_bytes())
    result = command("-", clean["train"][1], given=data)
    assert result.exit_code == 0 and "151 pairs" in result.output
    result = command("-", "-", given=data)
    assert result.exit_code == 1 and "can be read only once" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Pass SOURCE and TARGET, or --run."),
        (["EN"], "Pass both files of a pair. Missing: TARGET"),
        (["EN", "DE", "--valid-target", "DE"], "Pass both files of a pair. Missing: --valid-source"),
        (["EN", "DE", "--preset", "tiny"], "--preset, --dtype and --set are for --trial or --run."),
        (["-", "DE", "--trial"], "--trial reads the texts again"),
        (["EN", "DE", "--picture", "nowhere/a.png"], "The folder of the output does not exist"),
        (["EN", "DE", "--json", "EN"], "The output would replace the input"),
        (["EN", "DE", "--run", "nowhere"], "Pass SOURCE and TARGET, or --run, but not both."),
        (["--run", "nowhere"], "is not the folder of a training run"),
        (["EN", "DE", "--tokenizer", "EN"], "must be a SentencePiece model"),
    ],
)
def test_mistakes_are_refused(arguments, message, clean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = dict(zip(("EN", "DE"), clean["train"], strict=True))
    result = command(*(files.get(argument, argument) for argument in arguments), given="")
    assert result.exit_code in (1, 2) and message in result.output, result.output
    assert not list(tmp_path.iterdir())


def test_the_texts_and_the_tokenizer_of_a_run(clean, tmp_path):
    config = run_config(clean)
    run = tmp_path / "run"
    run.mkdir()
    config.save(run / "config.yaml")
    SubwordTokenizer.train(clean["train"], vocabulary_size=100).save(run / "tokenizer.model")
    result = command("--run", run, "--set", "max_length=9", "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [each["split"] for each in report["splits"]] == ["train", "valid"]
    assert report["unit"] == "tokens"
    tokenizer = SubwordTokenizer.load(run / "tokenizer.model")
    sides = [tokenizer.encode(read_lines(path)) for path in clean["train"]]
    too_long = [line for line, pair in enumerate(zip(*sides, strict=True), 1) if max(map(len, pair)) + 1 > 9]
    assert too_long == next(each["lines"] for each in report["problems"] if each["kind"] == "too_long")


def test_a_picture_of_files_without_pairs(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    draw_report(check_texts(tmp_path / "a", tmp_path / "a"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


# ---- before a training


def run_config(files, **settings):
    names = ("source", "target", "valid_source", "valid_target")
    texts = dict(zip(names, files["train"] + files["valid"], strict=True))
    model = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 48, "num_heads": 4}
    return RunConfig.from_preset(
        "tiny", **texts, **{"vocabulary_size": 100, "score_sentences": 5, "model": model, **settings}
    )


def test_errors_stop_a_training_before_anything_is_written(clean, tmp_path):
    swapped = run_config({**clean, "valid": clean["valid"][::-1]})
    with pytest.raises(ValueError, match=r"seem to be swapped: .*Swap the two\. Received: valid_source="):
        train(tmp_path / "run", swapped, max_steps=1)
    same = run_config({**clean, "train": (clean["train"][0],) * 2})
    with pytest.raises(ValueError, match=r"have the same text: .*Received: source=.*train\.en"):
        train(tmp_path / "run", same, max_steps=1)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_warnings_are_printed_before_a_training(clean, tmp_path):
    module = importlib.import_module("keras_attention.pipeline.check.before_training")
    corpora = {split: ParallelCorpus(*pair) for split, pair in clean.items()}
    files = clean["train"]
    assert module.check_before_training(corpora["train"], files, corpora["valid"], clean["valid"]) == []
    leaking = write(tmp_path, "leaking", corpora["train"].pairs[:5] + corpora["valid"].pairs[:3])
    warnings = module.check_before_training(corpora["train"], files, ParallelCorpus(*leaking), leaking)
    assert warnings == [
        f"{leaking[0]}: 5 of 8 pairs are also in {files[0]}, so that the validation looks better than it is"
    ]


# ---- the trial


def test_a_trial_measures_memory_and_time(clean, tmp_path, monkeypatch):
    tokenizer = SubwordTokenizer.train(clean["train"], vocabulary_size=100)
    monkeypatch.setattr(TRIAL, "keep_freed_memory", lambda: None)  # of this process
    trial = measure_training(run_config(clean, tokens_per_batch=200), tokenizer, tmp_path)
    assert trial.peak_bytes > 1e8 and trial.available_bytes > 1e9 and trial.fits
    assert trial.step_seconds > 0
    lengths = [[len(each) + 1 for each in tokenizer.encode(read_lines(path))] for path in clean["train"]]
    assert trial.batches_per_epoch >= max(map(sum, lengths)) / 200
    for rows, source, target in trial.shapes:
        assert rows * max(source, target) <= 200
        assert source <= max(lengths[0]) and target <= max(lengths[1])
    pairs = ParallelCorpus(*clean["train"]).pairs
    batches = TokenBatches.from_pairs(pairs, tokenizer, tokens_per_batch=200)
    inputs = [batches.batch(index)[0] for index in batches.plan(0)]
    every = [(len(each["source"]), each["source"].shape[1], each["target"].shape[1]) for each in inputs]
    for cost in (lambda b, s, t: b * (s + t), lambda b, s, t: b * (s * s + t * t + s * t), lambda b, s, t: b * t):
        assert max(cost(*shape) for shape in trial.shapes) == max(cost(*shape) for shape in every)


@pytest.mark.slow
def test_the_trial_of_packed_rows_has_their_shape(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(TRIAL, "keep_freed_memory", lambda: None)
    config = run_config(clean, packed_rows=3, max_length=64, ema=0.9)
    trial = measure_training(config, SubwordTokenizer.train(clean["train"], vocabulary_size=100), tmp_path)
    ((rows, source, target),) = trial.shapes
    assert rows == 3 and max(source, target) == 64


def test_a_trial_is_printed_with_its_lack_of_memory():
    trial = Trial(3_200_000_000, 8_000_000_000, 0.5, 600, 1_234_567, [[64, 32, 31]])
    assert str(trial) == (
        "trial: 1,234,567 parameters, largest batches (rows × source × target) 64×32×31\n"
        "  peak memory 3.20 GB of 8.00 GB\n"
        "  0.50 s per batch, 5 minutes for each pass over the text (600 batches)"
    )
    lacking = Trial(9_000_000_000, 8_000_000_000, 900.0, 600, 1, [[1, 1, 1]])
    assert "6 days for each pass" in str(lacking)
    assert str(lacking).endswith("more than the machine has: use smaller batches or a smaller model")


def test_a_trial_that_fails_says_why(clean, monkeypatch):
    config = run_config(clean)
    monkeypatch.setattr(TRIAL, "_PROGRAM", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(MemoryError, match="the trial was killed"):
        trial_training(config)
    monkeypatch.setattr(TRIAL, "_PROGRAM", "raise ValueError('the reason')")
    with pytest.raises(ValueError, match="The trial of the training ended with an error: ValueError: the reason"):
        trial_training(config)


@pytest.mark.slow
def test_the_command_forecasts_the_memory_of_a_training(clean, tmp_path):
    arguments = ["--trial", "--preset", "tiny", "--set", "vocabulary_size=100", "--json", tmp_path / "report.json"]
    result = command(*clean["train"], *arguments)
    assert result.exit_code == 0, result.output
    assert "peak memory" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["trial"]["fits"] is True
