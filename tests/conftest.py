"""Fixtures of the tests of trainings and of the development server. They import what they need when they are used."""

import os
import shutil

import pytest

# XLA compiles each program for long, and the tests run it for milliseconds. Read where XLA starts, also on JAX.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture
def untranslated(monkeypatch):
    """Trainings without translations."""
    from short_trainings import leave_out_translation

    leave_out_translation(monkeypatch)


@pytest.fixture
def without_final(monkeypatch):
    """Trainings without the final model."""
    from short_trainings import leave_out_final

    leave_out_final(monkeypatch)


@pytest.fixture
def steps_only(untranslated, without_final):
    """Trainings of steps, evaluations and checkpoints only, for tests that read nothing else of them."""


@pytest.fixture
def eager(steps_only, request):
    """The same without graphs, for tests of settings, limits and files: tracing would take most of their time."""
    from short_trainings import run_eagerly

    run_eagerly(request)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the stub of a model."""
    from stub_model import write_stub

    return write_stub(tmp_path_factory.mktemp("saved_models") / "stub", version=7)


@pytest.fixture(scope="module")
def server(folder):
    """A server of the stub."""
    from served_stub import FREE

    from keras_attention.server import Server

    with Server(folder, **FREE) as running:
        yield running


@pytest.fixture
def channel(server):
    """A gRPC channel to the server."""
    import grpc

    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def make_server(folder):
    """Makes servers with limits of their own."""
    from served_stub import FREE

    from keras_attention.server import Limits, Server

    made = []

    def make(allowed_hosts=(), **limits):
        made.append(Server(folder, **FREE, allowed_hosts=allowed_hosts, limits=Limits(**limits)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def hold(monkeypatch):
    """Makes gates; at the end they are open."""
    from served_stub import Gate

    made = []

    def make(server):
        made.append(Gate(server._service, monkeypatch))
        return made[-1]

    yield make
    for each in made:
        each.open.set()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a screen; a test that needs it is skipped where it is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()
