"""Fixtures of the tests of the development server. They import what the extra `serving` installs when they are used."""

import shutil

import pytest


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
