"""The command `keras-attention` as a process: what it loads, what it writes to standard error."""

import contextlib
import http.server
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("keras", "tensorflow", "numpy", "tensorflow_text", "sentencepiece", "sacrebleu", "matplotlib", "grpc")
# What the console script runs, and what it loaded.
CONSOLE_SCRIPT = f"""if True:
    import atexit, sys
    from keras_attention_command import main
    atexit.register(lambda: print("loaded:", [name for name in {HEAVY} if name in sys.modules]))
    sys.exit(main())
"""
NOTICES = [
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
    b"I0000 00:00:1795741638.496536    8527 port.cc:153] oneDNN custom operations are on.\n",
    b"W0000 00:00:1795741638.496913    8527 gpu_device.cc:2342] Cannot dlopen some GPU libraries.\n",
    b"2026-01-02 03:04:05.678901: I tensorflow/core/platform/cpu_feature_guard.cc:182] This TensorFlow binary ...\n",
    b"To enable the following instructions: AVX2 FMA, rebuild TensorFlow with the appropriate compiler flags.\n",
    b"E0000 00:00:1795741672.952262    8703 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: "
    b"Failed call to cuInit: UNKNOWN ERROR (303)\n",
    b"E0000 00:00:1795741798.297886   10169 util.cc:131] oneDNN supports DT_INT64 only on platforms with AVX-512. "
    b"Falling back to the default Eigen-based implementation if present.\n",
    b"normalizer.cc(51) LOG(INFO) precompiled_charsmap is empty. use identity normalization.\n",
]
WORDS = [
    b"E0000 00:00:1795741672.952262    8703 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_UNKNOWN\n",
    b"E0000 00:00:1795741672.952262    8703 gpu_device.cc:1] Out of memory\n",
    b"F0000 00:00:1795741672.952262    8703 cpu_feature_guard.cc:86] Your CPU has no AVX\n",
    b"\n",
    b"  I0000 is indented: \xff\n",
    b" 10%\r 20%\r",
    b"100%\n",
    b"Killed",
]


def keras_attention(*arguments, **options):
    command = [sys.executable, "-c", CONSOLE_SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def loaded(done) -> list[str]:
    return done.stdout.rpartition("loaded: ")[2].strip()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["demo", "--help"], 0),
        (["nosuch"], 2),
        (["train"], 2),
        (["check", "nowhere.en", "nowhere.de"], 2),
        (["convert", "run", "folder", "--to", "cobol"], 2),
    ],
)
def test_help_and_wrong_arguments_load_nothing_heavy(arguments, code):
    done = keras_attention(*arguments)
    assert (done.returncode, loaded(done)) == (code, "[]"), done.stderr
    assert bool(done.stderr) == (code == 2)


def test_the_shell_completes_words_without_loading_anything_heavy():
    asked = {"_KERAS_ATTENTION_COMPLETE": "bash_complete", "COMP_WORDS": "keras-attention trans", "COMP_CWORD": "1"}
    done = keras_attention(env={**os.environ, **asked})
    assert done.stdout.splitlines()[0] == "plain,translate"
    assert (loaded(done), done.stderr) == ("[]", "")


def test_python_m_loads_nothing_heavy_either():
    command = [sys.executable, "-X", "importtime", "-m", "keras_attention", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: keras-attention ")
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in names
    assert not names & set(HEAVY)


class Translations(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]["source"]
        outputs = {"text": [text.upper() for text in texts], "score": [-1.0] * len(texts)}
        body = json.dumps({"outputs": outputs}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_ask_over_rest_needs_the_standard_library_only():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Translations) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            done = keras_attention("ask", f"http://127.0.0.1:{server.server_port}/v1/models/en-de", "one", "two")
        finally:
            server.shutdown()
            thread.join()
    assert done.stdout.splitlines() == ["ONE", "TWO", "loaded: []"]
    assert done.stderr == ""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for language, text in (("en", "a b c\n"), ("de", "d e f\n")):
        (folder / f"train.{language}").write_text(text * 5, encoding="utf-8")
    return folder / "train.en", folder / "train.de"


@pytest.mark.parametrize(
    ("arguments", "closed", "message"),
    [
        (
            ["ask", "http://localhost:1/v1/models/m", "a"],
            ">&-",
            "Standard output is closed, so the result would be lost",
        ),
        (["train", "run", "--max-steps", "1"], ">&-", "Standard output is closed"),
        (["ask", "http://localhost:1/v1/models/m"], "<&-", "Standard input is closed: name a file"),
    ],
)
def test_closed_streams_are_one_line(arguments, closed, message):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", CONSOLE_SCRIPT, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(f"Error: {message}")


def test_a_command_writes_nothing_of_tensorflow_to_standard_error(texts):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = keras_attention("check", *texts, env=environment)
    assert "5 pairs" in done.stdout
    assert "'tensorflow'" in loaded(done)
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--verbose", "check"], ["check", "--verbose"]])
def test_verbose_leaves_standard_error_as_it_is(arguments, texts):
    from click.testing import CliRunner

    from keras_attention.cli import group, main

    suppressed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "suppress_notices", lambda: suppressed.append(True) or contextlib.nullcontext())
        for given in (arguments, ["check"]):
            done = CliRunner().invoke(main, [*given, *map(str, texts)], obj=group.OWN_PROCESS)
            assert done.exit_code == 0, done.output
    assert suppressed == [True]  # of the second


# ---- standard error without notices


def writer(end: str, lines=(), python="") -> list[str]:
    """A process that writes lines to descriptor 2, as native code does, without the notices; then ends."""
    code = f"""if True:
        import os, runpy, signal, sys
        suppress_notices = runpy.run_path({str(ROOT / "keras_attention" / "cli" / "notices.py")!r})["suppress_notices"]
        with suppress_notices():
            for line in {list(lines)!r}:
                os.write(2, line)
            {python}
            {end}
        print("after", file=sys.stderr)
    """
    return [sys.executable, "-c", code]


def test_only_notices_are_left_out_and_the_rest_keeps_its_order():
    lines = [line for pair in zip(NOTICES, WORDS, strict=True) for line in pair]
    done = subprocess.run(writer("pass", lines), capture_output=True, check=True)
    assert done.stderr == b"".join(WORDS) + b"after\n"


def test_a_notice_that_is_written_in_pieces_is_left_out():
    pieces = [bytes([byte]) for notice in NOTICES for byte in notice]
    done = subprocess.run(writer("pass", [*pieces, b"end\n"]), capture_output=True, check=True)
    assert done.stderr == b"end\nafter\n"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_the_last_words_before_a_crash_are_passed_on(end, code):
    done = subprocess.run(writer(end, [NOTICES[0], b"first\n", NOTICES[1], b"last words"]), capture_output=True)
    assert (done.returncode, done.stderr) == (code, b"first\nlast words")


def test_a_traceback_follows_what_native_code_wrote_before():
    done = subprocess.run(writer("raise ValueError('wrong')", [b"native\n", NOTICES[0]]), capture_output=True)
    first, second, *_, last = done.stderr.splitlines()
    assert (first, second) == (b"native", b"Traceback (most recent call last):")
    assert last == b"ValueError: wrong"


def test_python_still_writes_to_the_terminal():
    main, other = pty.openpty()
    python = "print(sys.stderr.isatty(), end='', file=sys.stderr); sys.stderr.write('\\r'); sys.stderr.flush()"
    try:
        subprocess.run(writer("pass", [], python), stderr=other, check=True)
    finally:
        os.close(other)
    written = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while piece := os.read(main, 1000):
            written += piece
    os.close(main)
    assert written == b"True\rafter\r\n"


def test_a_standard_error_that_is_closed_stays_so():
    command = [*writer("print(sys.stderr)")]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\nafter\n", "")


# ---- the package in that process


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        (
            ">&-",
            "Error: Standard output is closed, so the result would be lost: redirect it to a file, or to /dev/null",
        ),
        ("<&-", "Error: Standard input is closed: name a file, or redirect a text to it. Received: -"),
    ],
)
def test_a_closed_standard_stream_is_said_in_one_line(closed, message):
    command = [sys.executable, "-m", "keras_attention", "ask", "http://127.0.0.1:1/v1/models/en-de"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{message}\n")


def test_the_package_loads_its_names_on_use_in_the_process_of_the_command():
    code = """if True:
        import sys, keras_attention_command
        keras_attention_command.running = True
        import keras_attention as ka
        assert "keras" not in sys.modules
        assert set(ka.__all__) <= set(dir(ka))
        import keras_attention.client
        assert "tensorflow" not in sys.modules
        from keras_attention.serving import export
        assert ka.serving.export is export
        assert ka.serving.export.__name__ == ka.serving.export.__qualname__ == "export"
        assert ka.serving.share_cores is ka.serving.threads.share_cores
        for name in ka.__all__:
            getattr(ka, name)
        assert ka.MultiHeadAttention is ka.layers.MultiHeadAttention
        assert ka.explain_masks is ka.testing.explain_masks
        try:
            ka.nosuch
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "module 'keras_attention' has no attribute 'nosuch'\n", done.stderr


def test_a_program_has_the_classes_registered_by_the_import():
    code = """if True:
        import keras_attention, keras
        print(keras.saving.get_registered_object("keras_attention>MultiHeadAttention").__name__)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "MultiHeadAttention\n"
