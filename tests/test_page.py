"""The translation page in a real browser without a screen."""

import http.client
import re

import pytest
import tensorflow as tf
from stub_model import MOST_WORDS, write_stub

pytest.importorskip("starlette", reason="needs the extra serving")
pytest.importorskip("selenium", reason="needs selenium")

from opened_page import Page
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from keras_attention.server import Server

pytestmark = pytest.mark.tensorflow
# A name that would keep the page's script from ending.
NAME = "<!--<script>"
# A text that would run a script if the page took it for HTML.
SCRIPT = "<img/src=x/onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stub(tmp_path_factory.mktemp("saved_models") / NAME)


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder, rest_port=0, grpc_port=0, page=True) as running:
        yield running


@pytest.fixture
def page(browser, server):
    opened = Page(browser, server)
    yield opened
    assert opened.complaints() == []


def test_translates_while_a_person_types(page, server):
    assert page.browser.title == f"Translate: {server.model_name}"
    assert not page.shown("#others")
    page.write("one two")
    page.wait_for_translation("TWO ONE")
    page.wait(lambda: page.texts("#target-words button") == ["TWO", "ONE"])
    assert page.texts("#nbest li span") == ["TWO ONE", "TWO ONE?", "TWO ONE!"]
    assert page.texts("#nbest data") == ["−1.000", "−2.250", "−3.000"]
    page.element("#source").send_keys(" three")
    page.wait_for_translation("THREE TWO ONE")
    page.write("")
    page.wait_for_translation("")
    assert not page.shown("#others")
    assert not page.shown("#attention")


def test_pointing_at_a_word_shows_where_the_model_looked(page):
    page.write("one two three")
    page.wait(lambda: page.texts("#target-words button") == ["THREE", "TWO", "ONE"])
    assert page.texts("#source-words button") == ["one", "two", "three"]
    first = page.browser.find_elements(By.CSS_SELECTOR, "#target-words button")[0]
    webdriver.ActionChains(page.browser).move_to_element(first).perform()
    # The pieces of a word read are added, 0.6 and 0.3; those of the word written have the same look.
    page.wait(lambda: page.element("#said").text == "“THREE” looked at “three” 90%")
    assert page.texts("#source-words button.seen") == ["three"]
    assert len(page.browser.find_elements(By.CSS_SELECTOR, "#map path")) == 1
    webdriver.ActionChains(page.browser).move_to_element(page.element("h1")).perform()
    page.wait(lambda: page.element("#said").text == "")
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#map path")


def test_the_keyboard_reaches_every_word(page):
    page.write("one two")
    page.wait(lambda: page.texts("#target-words button") == ["TWO", "ONE"])
    said = []
    box = page.element("#source")
    for _ in range(4):
        (box if not said else page.browser.switch_to.active_element).send_keys(Keys.TAB)
        page.wait(lambda: page.element("#said").text)
        said.append(page.element("#said").text)
    assert said == [
        "“one” was looked at for “ONE” 90%",
        "“two” was looked at for “TWO” 90%",
        "“TWO” looked at “two” 90%",
        "“ONE” looked at “one” 90%",
    ]
    names = [page.element(f"#{id_}").accessible_name for id_ in ("source", "attention", "others", "source-words")]
    assert names[0] == "Text"
    assert all(names)
    assert page.element("#translation").get_attribute("aria-live") == "polite"


def test_a_text_that_was_cut_is_said(page):
    page.write("w " * MOST_WORDS)
    page.wait_for_translation(" ".join("W" * MOST_WORDS))
    assert not page.shown("#note")
    page.write("w " * (MOST_WORDS + 1))
    page.wait(lambda: page.shown("#note"))
    page.write("w")
    page.wait(lambda: not page.shown("#note"))


def test_texts_are_never_taken_for_html(page, server):
    page.write(SCRIPT)
    page.wait_for_translation(SCRIPT.upper())
    page.wait(lambda: page.shown("#attention"))
    assert page.browser.title == f"Translate: {server.model_name}"
    assert page.texts("#nbest li span")[0] == SCRIPT.upper()


def test_only_the_last_text_is_shown(browser, server):
    """The answer to an earlier text comes when a later one has been typed: it is not shown."""
    page = Page(browser, server)
    # The browser's own `fetch`, but answers to "late" come when the test says so.
    browser.execute_script("""
        const ask = window.fetch;
        window.held = [];
        window.aborted = 0;
        window.fetch = (url, options) => {
          options.signal.addEventListener("abort", () => { window.aborted += 1; });
          const late = JSON.parse(options.body).inputs.source[0] === "late";
          const free = late ? new Promise((resolve) => window.held.push(resolve)) : Promise.resolve();
          return free.then(() => ask(url, {...options, signal: undefined}));
        };
    """)
    page.write("late")
    page.wait(lambda: browser.execute_script("return window.held.length") == 1)
    page.write("new one")
    page.wait_for_translation("ONE NEW")
    assert browser.execute_script("return window.aborted") >= 1
    browser.execute_async_script("""
        window.held[0]();
        window.fetch("v1/models/x", {body: '{"inputs": {"source": [""]}}', signal: new AbortController().signal,
                     method: "POST"}).then(() => setTimeout(arguments[0], 100));
    """)
    assert page.element("#translation").text == "ONE NEW"
    assert page.texts("#target-words button") == ["ONE", "NEW"]
    page.complaints()  # of the path x, which the test asked for


def test_a_server_that_is_away_is_said_and_asked_again(browser, folder):
    with Server(folder, rest_port=0, grpc_port=0, page=True) as gone:
        page = Page(browser, gone)
        page.write("a b")
        page.wait_for_translation("B A")
        port = gone.rest_port
    page.write("c d")
    page.wait(lambda: page.shown("#error"))
    assert page.element("#error span").text == "The server does not answer. Is it still running?"
    assert page.element("#error").get_attribute("role") == "alert"
    with Server(folder, rest_port=port, grpc_port=0, page=True):
        page.element("#error button").click()
        page.wait_for_translation("D C")
        assert not page.shown("#error")
    page.complaints()  # of the server that was away


def test_what_the_server_refuses_is_said(browser, tmp_path):
    folder = write_stub(tmp_path / "stub", translate_nbest=broken_nbest)
    with Server(folder, rest_port=0, grpc_port=0, page=True) as server:
        page = Page(browser, server)
        page.write("not a number")
        page.wait(lambda: page.shown("#error"))
        assert "no usable probabilities" in page.element("#error span").text
        page.write("bad")
        page.wait(lambda: "The server refuses: Signature" in page.element("#error span").text)
    page.complaints()


def broken_nbest(source):
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(source != "bad"), ["a bad text"])]):
        texts = tf.stack([source, source], axis=1)
    return {"texts": texts, "scores": tf.fill(tf.shape(texts), float("nan"))}


def test_the_page_loads_nothing_else(server):
    connection = http.client.HTTPConnection(server.host, server.rest_port)
    connection.request("GET", "/")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"""(src|href)=(?!"data:,")""", text)
    assert NAME not in text
