"""An export with `inspect`: what the signature returns, and the page on which a person changes the attention."""

import dataclasses
import importlib
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from tiny_translator import lines, tiny_model, tiny_tokenizer

pytest.importorskip("starlette", reason="needs the extra serving")

from click.testing import CliRunner
from served_stub import FREE, ask

import keras_attention as ka
from keras_attention.cli import main
from keras_attention.models import InspectedTransformer
from keras_attention.server import Server
from keras_attention.serving import Translator, export
from keras_attention.serving.inspection import inspected_lengths
from keras_attention.serving.server_files import server_files

pytestmark = pytest.mark.tensorflow

KINDS = ("encoder", "decoder", "cross")
N, H = 2, 3
TEXTS = [lines()[0], "", lines()[1], lines()[4]]
SLIDER_END = 17  # no window


@pytest.fixture(scope="module")
def translator():
    return Translator(tiny_model(), tiny_tokenizer(), beam_size=2, max_source_length=61, max_length=7)


@pytest.fixture(scope="module")
def folder(translator, tmp_path_factory):
    """An export with one other signature: each takes seconds."""
    module = importlib.import_module("keras_attention.serving.export")  # not the function of that name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SIGNATURES", {"serving_default": module.SIGNATURES["serving_default"]})
        patch.setattr("keras_attention.serving.warm_up.BATCH_SIZES", (2,))
        return export(translator, tmp_path_factory.mktemp("saved_models") / "tiny", inspect=True).parent


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder, **FREE, page=True) as running:
        yield running


def without(*heads):
    """Masks of all heads but those of some (kind, layer, head)."""
    masks = {f"{kind}_head_mask": np.ones((N, H), bool) for kind in KINDS}
    for kind, layer, head in heads:
        masks[f"{kind}_head_mask"][layer, head] = False
    return masks


CHANGES = {
    "nothing": {},
    "heads": without(("encoder", 0, 0), ("decoder", 1, 2), ("cross", 0, 1), ("cross", 1, 0)),
    "window": {"window": 2},
    "scale": {"scale": 0.3},
    "all": {**without(*((kind, 1, head) for kind in KINDS for head in range(H))), "window": 1, "scale": 0.0},
}


def in_python(translator, text, changes):
    """The translation by `generate` and the weights of the same changes in Python, as the signature returns them."""
    inspected = InspectedTransformer(translator.model, **changes)
    source = translator.read(tf.constant([text])).ids
    found = ka.decoding.generate(inspected, source, translator.options)
    ids = found.ids[:, 0, : found.lengths[0, 0]]
    weights = inspected.attention_weights(source, ids)
    return {
        "text": translator.tokenizer.detokenize(ids)[0].numpy().decode(),
        "source_pieces": translator.tokenizer.pieces(source[0].numpy().tolist()),
        "target_pieces": translator.tokenizer.pieces(ids[0].numpy().tolist()),
        "weights": {kind: getattr(weights, kind)[0].numpy() for kind in KINDS},  # (N, H, T, S)
    }


def row(text, window=-1, scale=1.0, **masks):
    masks = without() | masks
    return {"source": text, "window": window, "scale": scale, **{name: mask.tolist() for name, mask in masks.items()}}


def predict(server, rows, **replaced):
    inputs = {name: [each[name] for each in rows] for name in rows[0]}
    document = {"signature_name": "inspect", "inputs": inputs | replaced}
    return ask(server, "/v1/models/tiny:predict", document)


def test_it_returns_what_python_says_for_each_text_and_its_own_changes(server, translator):
    rows = [(text, changes) for text in TEXTS for changes in CHANGES.values()]
    status, response = predict(server, [row(text, **changes) for text, changes in rows])
    assert status == 200, response
    outputs = response["outputs"]
    for index in range(0, len(rows), len(CHANGES) - 1):  # each change, and each text
        expected = in_python(translator, *rows[index])
        source, target = len(expected["source_pieces"]), len(expected["target_pieces"])
        assert outputs["text"][index] == expected["text"]
        for side in ("source_pieces", "target_pieces"):
            assert [piece for piece in outputs[side][index] if piece] == expected[side]
        for kind, shape in zip(KINDS, ((source, source), (target, target), (target, source)), strict=True):
            weights = np.array(outputs[f"{kind}_weights"][index])
            np.testing.assert_allclose(weights[..., : shape[0], : shape[1]], expected["weights"][kind], atol=1e-5)
            # Padding of the batch neither looks nor is looked at.
            np.testing.assert_allclose(weights.sum(), N * H * shape[0], rtol=1e-4)
    assert len(set(outputs["text"])) > 2 * len(TEXTS)  # the changes change the translations
    plain = ask(server, "/v1/models/tiny:predict", {"inputs": {"source": TEXTS}})[1]["outputs"]
    assert outputs["text"][:: len(CHANGES)] == plain["text"]
    np.testing.assert_allclose(outputs["score"][:: len(CHANGES)], plain["score"], rtol=1e-4)
    assert not any(outputs["truncated"])


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {"encoder_head_mask": np.ones((1, N, H + 1), bool).tolist()},
            r"'encoder_head_mask' takes shape \(any, 2, 3\)",
        ),
        ({"decoder_head_mask": [[True, True]]}, r"'decoder_head_mask' takes shape \(any, 2, 3\). Received: \(1, 2\)"),
        ({"cross_head_mask": np.full((1, N, H), 0.5).tolist()}, "'cross_head_mask': .*0.5"),
        ({"cross_head_mask": np.ones((2, N, H), bool).tolist()}, "the same number of rows.*'cross_head_mask': 2"),
        ({"window": [0]}, r"`window` must be 1 or more, or -1 for no window. Received:\] \[0\]"),
        ({"window": [-2]}, r"`window` must be 1 or more, or -1 for no window. Received:\] \[-2\]"),
        ({"window": [2.5]}, "'window': .*2.5"),
        ({"window": [10**12]}, "'window'"),
        ({"scale": [-1]}, r"`scale` must be a number from 0 to 100. Received:\] \[-1\]"),
        ({"scale": [float("nan")]}, r"`scale` must be a number from 0 to 100. Received:\] \[nan\]"),
        ({"scale": [float("inf")]}, r"`scale` must be a number from 0 to 100. Received:\] \[inf\]"),
        ({"scale": ["two"]}, "'scale': .*two"),
        ({"scale": 1.0}, r"'scale' takes shape \(any\)"),
        ({"other": [1]}, r"Unknown: \['other'\]"),
    ],
)
def test_wrong_changes_are_refused(server, replaced, message):
    status, response = predict(server, [row(TEXTS[0])], **replaced)
    assert status == 400
    assert re.search(message, response["error"]), response["error"]
    assert predict(server, [row(TEXTS[0])])[0] == 200


def test_a_session_of_another_server_checks_the_rows(server, translator):
    """TensorFlow Serving does not compare the numbers of rows."""
    model = server._service.model
    inputs = {name: np.array([value], object if name == "source" else None) for name, value in row(TEXTS[0]).items()}
    inputs["source"] = np.array([b"a", b"b"], object)
    inputs |= {"scale": np.ones(1, np.float32), "window": np.full(1, -1, np.int32)}
    with pytest.raises(Exception, match="Each input must have a row for each source"):
        model.run(model.signature("inspect"), inputs)


def test_the_weights_of_all_heads_count_towards_the_limit_of_a_request(server):
    signature = server._service.model.signature("inspect")
    assert signature.heads == 3 * N * H
    assert server._service.model.signature("").heads == 1
    assert server._service.model.cells(signature, {"source": np.array([b"abcd"] * 5, object)}) == 5 * 5 * 7 * 18


def test_the_export_says_that_it_has_it(folder, tmp_path):
    card = json.loads((folder / "1" / "assets.extra" / "model_card.json").read_text(encoding="utf-8"))
    assert card["inspect"] == {"max_source_length": 61, "max_target_length": 7, "max_length": 7}
    rows = [line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == ["serving_default", "inspect"]  # those that the fixture exports
    assert "inspect" not in server_files(tmp_path / "plain")["README.md"]


def test_a_long_text_is_read_to_its_64th_token():
    translator = Translator(tiny_model(), tiny_tokenizer())
    assert inspected_lengths(translator) == {"max_source_length": 64, "max_target_length": 113, "max_length": None}


def test_a_model_that_cannot_be_inspected_is_refused(tmp_path):
    translator = Translator(InspectedTransformer(tiny_model()), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"`inspect=True` needs the translator of a `Transformer`.*Received: inspect="):
        export(translator, tmp_path / "en-de", inspect=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_passes_the_option_on(monkeypatch, tmp_path):
    exported = []
    pipeline, serving = (importlib.import_module(f"keras_attention.{room}") for room in ("pipeline", "serving"))
    monkeypatch.setattr(pipeline, "run_card", lambda run, checkpoint: {})
    monkeypatch.setattr(pipeline.RunFolder, "translator", lambda run, **options: "translator")
    monkeypatch.setattr(serving, "export", lambda *arguments, **options: exported.append(options["inspect"]))
    monkeypatch.setattr(serving, "share_cores", lambda: None)
    for options in ([], ["--inspect"]):
        result = CliRunner().invoke(main, ["export", str(tmp_path), str(tmp_path / "en-de"), *options])
        assert result.exit_code == 0, result.output
    assert exported == [False, True]


class InsidePage:
    """What a person does with the controls and sees of the weights."""

    def __init__(self, page):
        self.page = page

    def write(self, text):
        self.page.write(text)
        self.page.wait(lambda: self.page.shown("#inside"))

    def choose(self, kind, layer, head):
        self.page.browser.find_elements("css selector", "#kinds input")[KINDS.index(kind)].click()
        self.page.browser.find_elements("css selector", "#layers input")[layer].click()
        self.page.browser.find_elements("css selector", "#heads button")[head].click()

    def switch(self, kind, layer, head):
        self.choose(kind, layer, head)
        self.page.browser.find_elements("css selector", "#heads input")[head].click()

    def slide(self, name, value):
        """Moves a slider with the arrow keys."""
        from selenium.webdriver.common.keys import Keys

        slider = self.page.element(f"#{name}")
        steps = round((value - float(slider.get_attribute("value"))) / float(slider.get_attribute("step")))
        slider.send_keys((Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT) * abs(steps))

    def percent(self):
        """The table of the chosen head."""
        rows = "return [...document.querySelectorAll('#weights tbody tr')]"
        return self.page.browser.execute_script(f"{rows}.map((row) => [...row.cells].map((cell) => cell.textContent))")

    def wait_until_idle(self):
        self.page.wait(lambda: self.page.element("#changed").get_attribute("aria-busy") == "false")


@pytest.fixture
def inside(browser, server):
    from opened_page import Page

    opened = Page(browser, server)
    yield InsidePage(opened)
    assert opened.complaints() == []


def assert_shows(inside, translator, text, changes):
    """The translation and the weights of every head are those in Python."""
    expected = in_python(translator, text, changes)
    inside.wait_until_idle()
    assert inside.page.element("#changed").get_attribute("textContent") == expected["text"]
    labels = {
        "encoder": (expected["source_pieces"], expected["source_pieces"]),
        "decoder": (expected["target_pieces"], ["<s>", *expected["target_pieces"][:-1]]),
        "cross": (expected["target_pieces"], expected["source_pieces"]),
    }
    for kind, layer, head in (("encoder", 0, 1), ("decoder", 1, 2), ("cross", 1, 0)):
        inside.choose(kind, layer, head)
        shown, weights = inside.percent(), expected["weights"][kind][layer, head]
        rows, columns = labels[kind]
        assert [cells[0] for cells in shown] == rows
        keys = "return [...document.querySelectorAll('#weights thead th')].map((th) => th.textContent)"
        assert inside.page.browser.execute_script(keys) == columns
        percents = np.array([[float(cell or 0) for cell in cells[1:]] for cells in shown])
        np.testing.assert_allclose(percents, 100 * weights, atol=0.51)


def test_the_page_shows_what_python_says_of_the_same_changes(inside, translator):
    text, effects = TEXTS[0], []
    inside.write(text)
    assert_shows(inside, translator, text, {})
    assert inside.page.element("#effect").text == "Nothing is changed."
    assert not inside.page.shown("#hint")

    off = [("cross", 1, 0), ("encoder", 0, 2)]
    for head in off:
        inside.switch(*head)
    assert_shows(inside, translator, text, without(*off))
    effects.append(inside.page.element("#effect").text)
    inside.choose("encoder", 0, 2)
    assert inside.page.texts("#heads button") == ["Head 1", "Head 2", "Head 3, off"]
    assert "head 3, which is off, in percent" in inside.page.element("#caption").text

    inside.slide("window", 2)
    assert inside.page.element("#window-value").text == "positions at a distance below 2"
    assert_shows(inside, translator, text, {**without(*off), "window": 2})
    inside.slide("scale", 0.4)
    assert inside.page.element("#scale-value").text == "0.4 × 1/√dₖ"
    assert_shows(inside, translator, text, {**without(*off), "window": 2, "scale": 0.4})
    effects.append(inside.page.element("#effect").text)

    inside.page.write(TEXTS[2])  # the changes stay
    inside.page.wait(lambda: inside.page.element("#translation").text == translator([TEXTS[2]])[0])
    inside.wait_until_idle()
    assert inside.page.element("#effect").text.startswith("Changed: encoder self-attention, layer 1 without head 3")
    inside.page.element("#reset").click()
    inside.wait_until_idle()
    assert inside.page.element("#changed").text == inside.page.element("#translation").text
    assert inside.page.element("#effect").text == "Nothing is changed."
    named = "Changed: encoder self-attention, layer 1 without head 3; cross-attention, layer 2 without head 1"
    assert [effect.partition(". With it the translation ")[0] for effect in effects] == [
        named,
        f"{named}; window 2; scale 0.4",
    ]


def test_what_differs_is_marked(inside, translator):
    inside.write(TEXTS[0])
    inside.slide("scale", 0)
    inside.wait_until_idle()
    plain, changed = (
        inside.page.element(f"#{name}").get_attribute("textContent") for name in ("translation", "changed")
    )
    mark = inside.page.element("#changed mark").get_attribute("textContent")
    before, after = changed.split(mark, 1)
    assert plain != changed
    assert plain.startswith(before)
    assert plain.endswith(after)
    assert "the translation differs from the one above" in inside.page.element("#effect").text


def test_the_keyboard_reaches_every_control_and_each_has_a_name(inside):
    from selenium.webdriver.common.keys import Keys

    inside.write(TEXTS[0])
    inside.page.element("#kinds input:checked").click()
    names = []
    for _ in range(4 + 2 * H + 1):
        active = inside.page.browser.switch_to.active_element
        names.append(active.accessible_name)
        active.send_keys(Keys.TAB)
    heads = [name for head in range(1, H + 1) for name in (f"Head {head}", f"Head {head} is on")]
    assert names[:2] == ["Encoder self-attention", "1"]
    assert names[2].startswith("Window of self-attention")
    assert names[3].startswith("Scale of the scores")
    assert names[4:] == ["Undo all changes", *heads]
    groups = [
        inside.page.element(css).accessible_name for css in ("#kinds", "#layers", "#heads", "#inside", "#weights")
    ]
    assert groups[:3] == ["Attention", "Layer", "Heads of the layer"]
    assert all(groups)
    inside.page.element("#heads input").send_keys(Keys.SPACE)
    inside.wait_until_idle()
    assert "layer 1 without head 1" in inside.page.element("#effect").text


def test_nothing_is_wider_than_a_phone(inside):
    size = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    inside.page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        inside.write(" ".join(TEXTS))
        inside.wait_until_idle()
        assert inside.page.browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        inside.page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_refusal_is_shown_and_the_next_change_clears_it(inside, server, monkeypatch):
    inside.write(TEXTS[0])
    monkeypatch.setattr(server._service, "limits", dataclasses.replace(server._service.limits, request_cells=1))
    inside.slide("scale", 0.9)
    inside.page.wait(lambda: inside.page.shown("#error"))
    assert "The server refuses: A request may have 1 cells" in inside.page.element("#error span").text
    monkeypatch.undo()
    inside.slide("scale", 0.8)
    inside.page.wait(lambda: not inside.page.shown("#error"))
    inside.page.complaints()  # of the request that was refused


def test_a_plain_export_says_how_to_get_the_view(browser, tmp_path):
    from opened_page import Page
    from stub_model import write_stub

    with Server(write_stub(tmp_path / "stub"), **FREE, page=True) as plain:
        page = Page(browser, plain)
        assert "keras-attention export --inspect" in page.element("#hint").text
        page.write("one two")
        page.wait_for_translation("TWO ONE")
        assert not page.shown("#inside")
