"""Reading and checking parallel text."""

import ast
import gzip
import io
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from keras_attention.text import ParallelCorpus, SubwordTokenizer, read_lines


def write(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\n\ntwo\n\n", ["one", "", "two", ""]),
        ("one\u2028still\x0bone\x85\rtwo\n".encode(), ["one\u2028still\x0bone\x85\rtwo"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        ("one\n\ufefftwo\n".encode(), ["one", "\ufefftwo"]),
        (b"one\0two\n", ["one\0two"]),
        (b"  kept \n", ["  kept "]),
        (b"\n", [""]),
        (b"", []),
    ],
)
def test_lines_end_at_line_feeds_only(tmp_path, data, lines):
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed").write_bytes(gzip.compress(data))
    assert read_lines(tmp_path / "plain") == lines
    assert read_lines(str(tmp_path / "packed")) == lines


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No text file at .*missing"):
        read_lines(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="No text file at "):
        read_lines(tmp_path)
    (tmp_path / "latin").write_bytes("eins\nzwei\nfünf\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin:3: byte 0xfc is not UTF-8\. Convert the file, .*iconv"):
        read_lines(tmp_path / "latin")
    (tmp_path / "wide").write_bytes("eins\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"wide:1: byte 0xff is not UTF-8"):
        read_lines(tmp_path / "wide")
    for encoding, byte in (("utf-16-be", "fe"), ("utf-32-le", "ff"), ("utf-32-be", "fe")):
        (tmp_path / "wide").write_bytes("\ufeffeins\n".encode(encoding))
        name = encoding[:6].upper()
        with pytest.raises(
            ValueError, match=rf"wide:1: byte 0x{byte} is not UTF-8: .* with `iconv -f {name} -t UTF-8`"
        ):
            read_lines(tmp_path / "wide")
    (tmp_path / "zeros").write_bytes(b"one\0\0\0\0\n")
    with pytest.raises(ValueError, match=r"zeros: more than a third of the bytes are zero"):
        read_lines(tmp_path / "zeros")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfone\ntw\xff\n")
    with pytest.raises(ValueError, match=r"marked:2: byte 0xff is not UTF-8"):
        read_lines(tmp_path / "marked")
    (tmp_path / "twice.gz").write_bytes(gzip.compress(gzip.compress(b"one\n")))
    with pytest.raises(ValueError, match=r"is not UTF-8\. The file is compressed: unpack it with gzip first"):
        read_lines(tmp_path / "twice.gz")
    (tmp_path / "other.xz").write_bytes(b"\xfd7zXZ\0\0\x04")
    with pytest.raises(ValueError, match=r"The file is compressed: unpack it with xz first"):
        read_lines(tmp_path / "other.xz")
    for name, data in (("zip", b"PK\3\4" + bytes(9)), ("tar", b"one".ljust(257, b"\0") + b"ustar\0")):
        (tmp_path / "archive").write_bytes(data)
        with pytest.raises(ValueError, match=rf"compressed: unpack it with (un)?{name} first"):
            read_lines(tmp_path / "archive")
    packed = gzip.compress(b"one\n" * 1000)
    for damaged in (packed[:-7], packed[:20] + b"\xff\xff" + packed[22:]):
        (tmp_path / "damaged.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.gz: damaged gzip file"):
            read_lines(tmp_path / "damaged.gz")


class Pipe:
    """A named pipe into which a thread writes once."""

    def __init__(self, path, data):
        os.mkfifo(path)
        self.path = path
        self.writer = threading.Thread(target=path.write_bytes, args=[data])

    def __enter__(self):
        self.writer.start()
        return self.path

    def __exit__(self, *_):
        self.writer.join()


@pytest.mark.parametrize("text", ["eins\nzwei\n", "Привет мир, как дела\n", "这是上海。\n第二行\n", "one line"])
@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_wide_characters_without_a_mark_are_named(tmp_path, text, encoding):
    (tmp_path / "wide").write_bytes(text.encode(encoding))
    with pytest.raises(
        ValueError, match=rf"wide: not UTF-8, but probably {encoding}, .* `iconv -f {encoding} -t UTF-8"
    ):
        read_lines(tmp_path / "wide")


@pytest.mark.parametrize("text", ["a\0b\nccccc\n", "a\0\nbcd\0\n", "Привет\0мир\n", "one two\0three\n" * 50])
def test_zero_bytes_in_lines_are_text(tmp_path, text):
    (tmp_path / "text").write_bytes(text.encode())
    assert read_lines(tmp_path / "text") == text.split("\n")[:-1]


@pytest.mark.parametrize("form", [bytes, gzip.compress])
def test_pipes_and_standard_input_are_read_as_files_are(tmp_path, monkeypatch, form):
    def given(data):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(form(data))))
        return "-"

    data = b"\xef\xbb\xbfa b\r\nb a b"
    assert read_lines(given(data)) == ["a b", "b a b"]
    with Pipe(tmp_path / "one", form(data)) as pipe, Pipe(tmp_path / "two", form(b"c\nd")) as other:
        assert ParallelCorpus(pipe, str(other)).pairs == [("a b", "c"), ("b a b", "d")]
    with Pipe(tmp_path / "three", form(data)) as pipe:
        assert ParallelCorpus(pipe, given(b"c\nd")).pairs == [("a b", "c"), ("b a b", "d")]
    (tmp_path / "plain").write_bytes(data)
    model = SubwordTokenizer.train(tmp_path / "plain", vocabulary_size=7).model
    assert SubwordTokenizer.train(given(data), vocabulary_size=7).model == model
    with Pipe(tmp_path / "four", form(data)) as pipe:
        assert SubwordTokenizer.train([pipe], vocabulary_size=7).model == model
    with pytest.raises(ValueError, match=r"standard input:2: byte 0xe4 is not UTF-8"):
        read_lines(given(b"one\n\xe4\n"))
    with pytest.raises(ValueError, match=r"Received: 1 lines in standard input and 2 in .*plain"):
        ParallelCorpus(given(b"one\n"), tmp_path / "plain")


def test_a_pipe_is_not_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match=rf"can be read only once: .* Received: .*pipe, .*{name}$"):
            ParallelCorpus(tmp_path / "pipe", tmp_path / name)
    with pytest.raises(ValueError, match="Received: standard input, standard input"):
        SubwordTokenizer.train(["-", "-"], vocabulary_size=7)
    with pytest.raises(FileNotFoundError, match=r"No text file at .*missing"):  # before the pipe is opened
        ParallelCorpus(tmp_path / "pipe", tmp_path / "missing")


def test_reading_lines_needs_only_the_standard_library():
    from keras_attention.text import lines

    nodes = list(ast.walk(ast.parse(Path(lines.__file__).read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_pairs_follow_the_files(tmp_path):
    source = write(tmp_path / "a", ["one", "two", "three"])
    target = write(tmp_path / "b", ["eins", "zwei", "drei"])
    corpus = ParallelCorpus(source, str(target))
    assert corpus.pairs == [("one", "eins"), ("two", "zwei"), ("three", "drei")]
    assert len(corpus) == 3
    assert corpus.problems() == []


def test_a_file_may_be_its_own_translation(tmp_path):
    path = write(tmp_path / "same", ["one", "two"])
    assert ParallelCorpus(path, path).pairs == [("one", "one"), ("two", "two")]


def test_blank_lines_are_named_and_left_out(tmp_path):
    source = write(tmp_path / "a", ["one", "", "three", " \t", "five", "\u00a0"])
    target = write(tmp_path / "b", ["eins", "zwei", "\u3000", "", "fünf", "sechs"])
    corpus = ParallelCorpus(source, target)
    assert corpus.pairs == [("one", "eins"), ("five", "fünf")]
    assert corpus.problems() == [
        f"{source}:2: blank, but {target}:2 has text",
        f"{target}:3: blank, but {source}:3 has text",
        f"{source}:4: blank, and so is {target}:4",
        f"{source}:6: blank, but {target}:6 has text",
    ]
    assert corpus.summary() == f"{source} and {target}: 2 pairs of 6 lines, left out: 4 (blank on a side)"


def test_corpora_that_cannot_be(tmp_path):
    three = write(tmp_path / "three", ["a", "b", "c"])
    two = write(tmp_path / "two", ["a", "b"])
    empty = write(tmp_path / "empty", [])
    with pytest.raises(ValueError, match=r"Received: 3 lines in .*three and 2 in .*two"):
        ParallelCorpus(three, two)
    with pytest.raises(ValueError, match="empty: the file is empty"):
        ParallelCorpus(three, empty)
    with pytest.raises(ValueError, match="empty: the file is empty"):
        ParallelCorpus(empty, three)
    with pytest.raises(FileNotFoundError, match=r"No text file at .*missing"):
        ParallelCorpus(three, tmp_path / "missing")
    with pytest.raises(
        ValueError, match=r"At least one line must have text in both files\. Received: source=.*two, target=.*half$"
    ):
        ParallelCorpus(two, write(tmp_path / "half", ["", " "]))


def test_samples_repeat_themselves(tmp_path):
    numbers = [str(number) for number in range(101)]
    corpus = ParallelCorpus(write(tmp_path / "a", numbers), write(tmp_path / "b", numbers))
    assert corpus.sample(13, seed=7) == corpus.sample(13, seed=7)
    assert corpus.sample(13, seed=7) != corpus.sample(13, seed=8)
    assert len(set(corpus.sample(101))) == 101
    assert corpus.sample(0) == []
    for count in (-1, 102):
        with pytest.raises(ValueError, match=rf"must be in 0\.\.101\. Received: count={count}"):
            corpus.sample(count)


def test_batches_print_one_line_and_pass_their_arguments_on(tmp_path, capsys):
    words = ["a b", "b a b", "a b a b a b a"]
    corpus = ParallelCorpus(write(tmp_path / "a", words), write(tmp_path / "b", words))
    tokenizer = SubwordTokenizer.train(tmp_path / "a", vocabulary_size=7)
    longest = 1 + max(len(ids) for ids in tokenizer.encode(words[:2]))
    dataset = corpus.batches(tokenizer, tokens_per_batch=longest, max_length=longest, shuffle=False)
    printed = (
        f"pairs: 2, batches: 2 of up to {longest} tokens a side, padding: 0.0%, left out: 1 (over {longest} tokens)\n"
    )
    assert capsys.readouterr().out == printed
    blank = ParallelCorpus(write(tmp_path / "c", [*words, ""]), write(tmp_path / "d", [*words, "a"]))
    blank.batches(tokenizer, tokens_per_batch=longest, max_length=longest, shuffle=False)
    assert capsys.readouterr().out == f"{blank.summary()}\n{printed}"
    assert "3 pairs of 4 lines, left out: 1 (blank on a side)" in blank.summary()
    first, second = dataset.as_numpy_iterator()
    for (inputs, labels), text in zip((first, second), words, strict=False):
        assert tokenizer.decode(inputs["source"].tolist()) == [text]
        assert tokenizer.decode(labels.tolist()) == [text]
