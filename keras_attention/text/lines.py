"""Reading lines of text from files, pipes and standard input, with Python's standard library only."""

import codecs
import contextlib
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

STANDARD_INPUT = "-"
# No UTF-8 text starts with these bytes, so the content identifies gzip, whatever the name of the file.
_GZIP = b"\x1f\x8b"
# The longer byte order marks first: that of UTF-32 starts with that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Encodings that may lack a byte order mark: name, bytes per character, index of the lowest byte.
_WIDE = (("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1))
# The part of a text by which `stream_lines` recognizes its encoding.
_HEAD = 4096
_ARCHIVES = {b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "unzip", _GZIP: "gzip"}


def read_lines(path: PathLike) -> list[str]:
    r"""Reads the lines of a UTF-8 text, plain or gzip.

    A line ends with a line feed, or a carriage return and a line feed. `str.splitlines` and text mode also split at
    characters inside sentences, such as U+2028 or a single carriage return, which would misalign two parallel files.

    Args:
        path: Path of a file or a pipe; "-" is standard input. Gzip is recognized by the content, not by the name.

    Returns:
        The lines without line ends. A byte order mark at the start is dropped.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the text is not UTF-8 (the message has the line of the first invalid byte), the file is damaged,
            or standard input is closed.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "train.fr")
        >>> _ = file.write_bytes("Ça va ?\r\nÀ\u2028demain\n".encode())
        >>> read_lines(file)
        ['Ça va ?', 'À\u2028demain']
    """
    _check_exists(path)
    name = _display_name(path)
    data = _standard_input() if _is_standard_input(path) else Path(path).read_bytes()
    if data.startswith(_GZIP):
        with _gzip_errors(name):
            data = gzip.decompress(data)
    lines = _decoded(data, name).split("\n")
    if not lines[-1]:
        lines.pop()  # after the line feed at the end
    return [line.removesuffix("\r") for line in lines]


def stream_lines(path: PathLike, advance: Callable[[int], Any] | None = None) -> Iterator[bytes]:
    """Yields the lines that `read_lines` reads, undecoded, in little memory; `advance` gets numbers of bytes read."""
    _check_exists(path)
    name = _display_name(path)
    with io.BufferedReader(_open(path), 2**16) as stored:
        packed = stored.peek(_HEAD).startswith(_GZIP)
        # Buffered, since an iteration over the file of the module `gzip` calls a Python function for each line.
        unpacked = io.BufferedReader(gzip.GzipFile(fileobj=stored), 2**16) if packed else stored
        with unpacked as text, _gzip_errors(name, packed):
            head = text.peek(_HEAD)[:_HEAD]
            _check_head(head, name)
            position = 0
            for number, line in enumerate(text):
                if advance is not None and number % 1000 == 0:
                    position, before = stored.tell(), position
                    advance(position - before)
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield line if number else line.removeprefix(codecs.BOM_UTF8)


def stream_text(path: PathLike) -> Iterator[str]:
    """Yields the lines that `read_lines` reads, in little memory."""
    for number, line in enumerate(stream_lines(path), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{_display_name(path)}:{number}: byte {line[error.start]:#04x} is not UTF-8. {_remedy(line)}"
            ) from error


def read_files(paths: Sequence[PathLike]) -> list[list[str]]:
    """Reads the lines of several texts, after a check that all of them can be read."""
    check_readable(paths)
    return [read_lines(path) for path in paths]


def check_readable(paths: Sequence[PathLike]) -> None:
    """Checks that all of several texts exist, and that none of them is a pipe that another reads."""
    for path in paths:
        _check_exists(path)
    streams = [_stream(path) for path in paths if not is_file(path)]
    if len(set(streams)) < len(streams):
        raise ValueError(
            "A pipe or standard input can be read only once: save its text to a file first. "
            f"Received: {', '.join(map(_display_name, paths))}"
        )


def read_parallel(source: PathLike, target: PathLike) -> tuple[list[str], list[str]]:
    """Reads two texts, where line N of one translates line N of the other."""
    source_lines, target_lines = read_files([source, target])
    for path, lines in ((source, source_lines), (target, target_lines)):
        if not lines:
            raise ValueError(f"{_display_name(path)}: the file is empty")
    if len(source_lines) != len(target_lines):
        raise ValueError(
            "Line N of one file must translate line N of the other, so both must have the same number of lines. "
            f"Received: {len(source_lines)} lines in {_display_name(source)} and {len(target_lines)} in "
            f"{_display_name(target)}"
        )
    return source_lines, target_lines


def is_file(path: PathLike) -> bool:
    """Returns True for a file, which can be read again, and False for a pipe or standard input."""
    return not _is_standard_input(path) and Path(path).is_file()


def is_gzip(path: PathLike) -> bool:
    """Returns True for a file that is compressed with gzip, whatever its name."""
    with open(path, "rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _is_standard_input(path: PathLike) -> bool:
    return os.fspath(path) == STANDARD_INPUT


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("Standard input is closed: name a file, or redirect a text to it. Received: -")
    return sys.stdin.buffer.read()


def _open(path: PathLike) -> Any:
    # Pipes and standard input are read whole, because a first part of their bytes may be too short to recognize gzip.
    if is_file(path):
        return open(path, "rb", buffering=0)
    return io.BytesIO(_standard_input() if _is_standard_input(path) else Path(path).read_bytes())


def _display_name(path: PathLike) -> str:
    return "standard input" if _is_standard_input(path) else os.fspath(path)


def _check_exists(path: PathLike) -> None:
    if not _is_standard_input(path) and (not Path(path).exists() or Path(path).is_dir()):
        raise FileNotFoundError(f"No text file at {os.fspath(path)}")


def _stream(path: PathLike) -> tuple[int, int]:
    """The device and inode of a pipe, which are the same under all its names."""
    status = os.stat("/dev/stdin" if _is_standard_input(path) else path)
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _gzip_errors(name: str, packed: bool = True) -> Iterator[None]:
    """Raises a ValueError for a damaged gzip file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if not packed:
            raise
        raise ValueError(f"{name}: damaged gzip file: {error}") from error


def _check_head(head: bytes, name: str) -> None:
    """Refuses a text that is in another encoding, or compressed, judging by its beginning."""
    _check_encoding(head, name)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be incomplete
    except UnicodeDecodeError:
        if (remedy := _remedy(head)).startswith("The file is compressed"):
            raise ValueError(f"{name}: this is not UTF-8 text. {remedy}") from None


def _decoded(data: bytes, name: str) -> str:
    _check_encoding(data, name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Python counts from the end of the byte order mark.
        start = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, start) + 1
        raise ValueError(f"{name}:{line}: byte {data[start]:#04x} is not UTF-8. {_remedy(data)}") from error


def _check_encoding(data: bytes, name: str) -> None:
    """Refuses UTF-16, UTF-32 and data with many zero bytes."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise ValueError(
                f"{name}:1: byte {mark.strip(bytes(1))[0]:#04x} is not UTF-8: the text is {encoding}. Convert the file "
                f"with `iconv -f {encoding} -t UTF-8`"
            )
    if encoding := _unmarked_encoding(data):
        raise ValueError(
            f"{name}: not UTF-8, but probably {encoding}, judging by its zero bytes. Convert the file with "
            f"`iconv -f {encoding} -t UTF-8`"
        )
    if 3 * data.count(b"\0") > len(data):
        raise ValueError(f"{name}: more than a third of the bytes are zero, so this is not UTF-8 text. {_remedy(data)}")


def _unmarked_encoding(data: bytes) -> str | None:
    """Detects UTF-16 or UTF-32 without a byte order mark, which can be valid UTF-8: letters and zero bytes."""
    zeros = data.count(b"\0")
    for encoding, width, low in _WIDE if zeros else ():
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        # Zero bytes can be anywhere in UTF-8, but are hardly ever the lowest byte of these encodings. Text has spaces.
        spaces = text.count(" ") + text.count("\n")
        if 4 * data[low::width].count(b"\0") <= zeros and "\0" not in text and 1000 * spaces >= len(text):
            return encoding
    return None


def _remedy(data: bytes) -> str:
    program = next((program for magic, program in _ARCHIVES.items() if data.startswith(magic)), None)
    if data[257:262] == b"ustar":
        program = "tar"
    if program is None:
        return "Convert the file, for example with `iconv -f ISO-8859-1 -t UTF-8`"
    return f"The file is compressed: unpack it with {program} first"
