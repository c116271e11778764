"""The program of `examples/serving_c`: lines in, translations out, without Python, for any line."""

import subprocess

import pytest
import saved_model
from tiny_translator import ODD_TEXTS, tiny_translator, words

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(not saved_model.can_build(), reason="needs a C compiler and make"),
]

LINES = [text.replace(b"\n", b" ") for text in saved_model.as_bytes(ODD_TEXTS)]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return saved_model.build_serve_c(tmp_path_factory.mktemp("program"))


def serve(program, *arguments, stdin=b""):
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=saved_model.QUIET, check=False)


def test_each_line_gets_the_translation_that_python_gives(program):
    huge = [b"a" * 100_000, b"\xff" * 2_000_000, words()[3].encode()]
    texts = [*LINES, *huge]
    # The folder of the versions; batches that do not come out even; and no end of line at the end of input.
    done = serve(program, saved_model.tiny_export().parent, 5, stdin=b"\n".join(texts))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n") == [*tiny_translator()(texts), ""]


def test_lines_are_answered_one_by_one(program):
    texts = [words()[0].encode(), b"", words()[1].encode()]
    command = [str(program), str(saved_model.tiny_export())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=saved_model.QUIET, **pipes) as process:
        for text, expected in zip(texts, tiny_translator()(texts), strict=True):
            process.stdin.write(text + b"\r\n")
            process.stdin.flush()
            assert process.stdout.readline().decode() == expected + "\n"  # before the next is sent
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_no_lines_give_no_lines(program):
    done = serve(program, saved_model.tiny_export())
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "serve MODEL [BATCH]"), (["MODEL", "0"], "BATCH of 1 or more"), (["nowhere"], "loading the model")],
)
def test_mistakes_are_reported(arguments, message, program):
    done = serve(program, *[saved_model.tiny_export() if word == "MODEL" else word for word in arguments])
    assert done.returncode == 1
    assert message in done.stderr.decode().splitlines()[-1]
    assert done.stdout == b""
