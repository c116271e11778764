"""Writing files: atomically, through links and into pipes, checked before the work."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from keras_attention.files import check_folder, check_output, make_folder, write_atomically


def writes(text):
    def write(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    return write


def test_what_fails_leaves_the_file_from_before_and_no_other(tmp_path):
    place = tmp_path / "note.txt"
    place.write_text("before")

    def half(path):
        writes("half")(path)
        raise OSError(28, "No space left on device", path)

    with pytest.raises(OSError, match=rf"No space left on device: '{place}'"):
        write_atomically(place, half)
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    place = tmp_path / "note.txt"
    place.write_text("before")
    place.chmod(mode)
    write_atomically(place, writes("after"))
    assert place.read_text() == "after"
    assert stat.S_IMODE(place.stat().st_mode) == mode


def test_a_link_remains_and_the_file_behind_it_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    target, link, second = tmp_path / "real" / "note.txt", tmp_path / "link.txt", tmp_path / "second.txt"
    link.symlink_to("real/note.txt")
    second.symlink_to(link)
    for text in ("new", "newer"):  # the link leads nowhere at first
        write_atomically(second, writes(text))
        assert target.read_text() == text
    assert link.is_symlink()
    assert second.is_symlink()
    assert list((tmp_path / "real").iterdir()) == [target]


def test_a_link_in_a_circle_is_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_atomically(tmp_path / "a", writes("text"))


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_output(pipe)
    write_atomically(pipe, writes("through"))
    reader.join()
    assert read == ["through"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_an_open_file_is_written_where_it_is(tmp_path):
    """Such as /dev/stdout of a command in a group whose output goes to a file."""
    place = tmp_path / "all.txt"
    with open(place, "wb", buffering=0) as file:
        file.write(b"one ")
        link = tmp_path / "link"
        link.symlink_to(f"/dev/fd/{file.fileno()}")
        for name in (link, f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            check_output(name)
            write_atomically(name, writes("two "))
        file.write(b"three")
    assert place.read_text() == "one two two two three"


def test_two_at_a_time_do_not_collide(tmp_path):
    place = tmp_path / "note.txt"

    def write(path):
        writes("outer")(path)
        write_atomically(place, writes("inner"))
        assert place.read_text() == "inner"

    write_atomically(place, write)
    assert place.read_text() == "outer"
    assert list(tmp_path.iterdir()) == [place]


def test_the_longest_names_can_be_written(tmp_path):
    place = tmp_path / ("ж" * 124 + ".keras")
    write_atomically(place, lambda path: writes("x")(path) or path.endswith(".keras"))
    assert place.read_text() == "x"


def test_it_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("renamed") or replace(*paths))
    write_atomically(tmp_path / "note.txt", writes("text"))
    assert [os.path.dirname(done[0]), *done[1:]] == [str(tmp_path), "renamed", str(tmp_path)]


def test_outputs_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    text = tmp_path / "a.en"
    text.write_text("one\n")
    (tmp_path / "same.en").symlink_to(text)
    with pytest.raises(ValueError, match=rf"must be a file, but this is a folder: .* Received: {tmp_path}$"):
        check_output(tmp_path)
    for name in ("a.en", "same.en"):
        with pytest.raises(ValueError, match=rf"would replace the input {text}: name another\. Received: .*{name}"):
            check_output(tmp_path / name, inputs=["-", tmp_path / "missing", text])
    with pytest.raises(ValueError, match=rf"{text} must be a folder, but it is a file.* Received: .*/a\.en/b"):
        check_output(text / "b" / "c.de")
    with pytest.raises(ValueError, match=rf"{text} must be a folder, but it is a file.* Received: {text}$"):
        check_folder(text)
    check_output(text)
    check_output(tmp_path / "new" / "folder" / "a.de", inputs=[text])
    for name in (f"{tmp_path}/new/", f"{text}/"):
        with pytest.raises(ValueError, match=rf"must be a file, but this is a folder: .* Received: {name}$"):
            check_output(name)
    check_output("/dev/stdout", inputs=["/dev/stdin"])
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()

    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(text) and allowed(path, mode))
    with pytest.raises(ValueError, match=rf"The output is not writable: change its permissions.* Received: {text}"):
        check_output(text)
    monkeypatch.setattr(os, "access", lambda path, mode: not (str(path) == str(tmp_path) and mode & os.W_OK))
    with pytest.raises(ValueError, match=rf"The folder {tmp_path} is not writable.* Received: {tmp_path}/new"):
        check_output(tmp_path / "new" / "a.de")


def test_outputs_that_are_not_files_are_looked_at(tmp_path):
    address = os.path.relpath(tmp_path / "socket")  # its length is limited
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        with pytest.raises(ValueError, match=r"must be a file, but this is a socket: .* Received: .*socket$"):
            check_output(tmp_path / "socket")
    with open(os.devnull, "rb") as read_only, open(os.devnull, "wb") as written:
        check_output(f"/dev/fd/{written.fileno()}")
        with pytest.raises(ValueError, match=r"must be open for writing: .* Received: /dev/fd/\d+$"):
            check_output(f"/dev/fd/{read_only.fileno()}")
    with pytest.raises(ValueError, match=r"must be open for writing: .* Received: /dev/fd/99999$"):
        check_output("/dev/fd/99999")


def test_the_file_that_is_standard_input_is_an_input(tmp_path):
    (tmp_path / "a.en").write_text("one\n")
    code = "from keras_attention.files import check_output as c; import sys; c(sys.argv[1], inputs=['-'])"
    with open(tmp_path / "a.en") as given:
        done = subprocess.run(
            [sys.executable, "-c", f"import keras_attention_command as k; k.running = True; {code}", tmp_path / "a.en"],
            stdin=given,
            capture_output=True,
            text=True,
        )
    assert "The output would replace the input -: name another" in done.stderr


def test_errors_name_what_was_asked_for(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_atomically("/dev/full", writes("text" * 9999))


def test_the_folder_behind_a_link_is_made(tmp_path):
    (tmp_path / "link").symlink_to("new/folder/note.txt")
    make_folder(tmp_path / "link")
    write_atomically(tmp_path / "link", writes("text"))
    assert (tmp_path / "new" / "folder" / "note.txt").read_text() == "text"
    make_folder("/dev/stdout")
