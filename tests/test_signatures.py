"""Each signature of a reloaded export returns the same as its function in Python; bad input is one clear error."""

import functools

import numpy as np
import pytest
import saved_model
import tensorflow as tf
from tiny_translator import ODD_TEXTS, tiny_model, tiny_tokenizer, tiny_translator, words

from keras_attention.decoding import length_penalty
from keras_attention.serving.signatures import SIGNATURES

pytestmark = pytest.mark.tensorflow

TEXTS = np.array(saved_model.as_bytes(ODD_TEXTS), object)
LIMIT = 61  # tokens that the translator reads
HUGE = np.array(
    [
        b"a" * 100_000,  # one word
        b" " * 100_000,
        (words()[0] + " ").encode() * 20_000,
        "😀".encode() * 100_000,
        "ж".encode() * 100_000,  # only symbols that the vocabulary lacks
        b"\0" * 100_000,
        b"\xff" * 100_000,
        words()[1].encode(),
    ],
    object,
)
BATCHES = {"odd": TEXTS, "none": np.array([], object), "huge": HUGE}
WRONG = {
    "numbers for texts": ("serving_default", {"source": np.array([3, 5])}),
    "one text, not a list": ("serving_default", {"source": np.array(b"a", object)}),
    "texts for ids": ("decode_ids", {"ids": np.array([[b"a"]], object)}),
    "more ids than a text has": ("decode_ids", {"ids": np.full((2, 1000), 5, np.int32)}),
    "more targets than sources": ("score", {"source": TEXTS[:2], "target": TEXTS[:4]}),
    "one source for many targets": ("score", {"source": TEXTS[:1], "target": TEXTS[:3]}),
    "another signature": ("translate_worst", {"source": TEXTS[:1]}),
}


def inputs_of(signature, texts):
    ids = SIGNATURES["encode_ids"][0](tiny_translator(), tf.constant(texts, tf.string))["ids"].numpy()
    values = {"source": texts, "target": texts[::-1], "ids": ids}
    return {spec.name: values[spec.name] for spec in SIGNATURES[signature][1]}


@functools.cache
def expected(signature, batch):
    """The outputs of the function of a signature in Python, as arrays."""
    dtypes = {spec.name: spec.dtype for spec in SIGNATURES[signature][1]}
    inputs = {name: tf.constant(value, dtypes[name]) for name, value in inputs_of(signature, BATCHES[batch]).items()}
    outputs = SIGNATURES[signature][0](tiny_translator(), **inputs)
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(scope="module")
def answers():
    """The answers of the reloaded export: in Python to the odd texts, in a session to everything."""
    requests = {
        (signature, batch): (signature, inputs_of(signature, BATCHES[batch]))
        for batch in BATCHES
        for signature in SIGNATURES
    }
    requests["ids that are none"] = ("decode_ids", {"ids": np.array([[5, -1, 7], [9999, 3, 5]], np.int32)})
    requests["no ids"] = ("decode_ids", {"ids": np.zeros((3, 0), np.int32)})
    requests |= WRONG
    odd = {key: request for key, request in requests.items() if "odd" in key}
    answers = saved_model.run_in_tensorflow(saved_model.tiny_export(), list(odd.values()), list(requests.values()))
    return {
        "python": dict(zip(odd, answers[0], strict=True)),
        "session": dict(zip(requests, answers[1], strict=True)),
    }


def assert_equal_outputs(actual, wanted):
    assert not isinstance(actual, str), actual
    assert set(actual) == set(wanted)
    for name, values in wanted.items():
        assert actual[name].shape == values.shape, name
        if values.dtype == np.float32:
            np.testing.assert_allclose(actual[name], values, rtol=0, atol=1e-4)
        else:
            np.testing.assert_array_equal(actual[name], values)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_session_gives_what_python_gave_before(signature, batch, answers):
    assert_equal_outputs(answers["session"][signature, batch], expected(signature, batch))


@pytest.mark.parametrize("signature", SIGNATURES)
def test_python_gives_what_it_gave_before(signature, answers):
    assert_equal_outputs(answers["python"][signature, "odd"], expected(signature, "odd"))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("signature", SIGNATURES)
def test_there_is_one_answer_for_each_input(signature, batch):
    for name, values in expected(signature, batch).items():
        assert len(values) == len(BATCHES[batch]), name
        if values.dtype == object:
            for text in values.flat:
                text.decode()  # valid UTF-8
        elif values.dtype == np.float32:
            assert np.isfinite(values).all(), name


@pytest.mark.parametrize("request_name", WRONG)
def test_wrong_input_is_an_error_and_nothing_more(request_name, answers):
    assert isinstance(answers["session"][request_name], str)


def test_the_error_of_unequal_numbers_says_so(answers):
    for request in ("more targets than sources", "one source for many targets"):
        assert "one target for each source" in answers["session"][request]


def test_the_error_of_too_many_ids_says_so(answers):
    rule = f"A row of ids must have at most {LIMIT + 49}, as many as the model reads or writes; split it"
    assert f"{rule}. Received: a row of] [1000]" in answers["session"]["more ids than a text has"]


def test_long_texts_are_cut_and_say_so():
    truncated = expected("encode_ids", "huge")["truncated"]
    assert truncated.tolist() == [True] * (len(HUGE) - 1) + [False]
    assert expected("encode_ids", "huge")["ids"].shape == (len(HUGE), LIMIT)
    for signature in ("serving_default", "translate_nbest", "align"):
        np.testing.assert_array_equal(expected(signature, "huge")["truncated"], truncated)
    np.testing.assert_array_equal(expected("score", "huge")["truncated"], truncated | truncated[::-1])
    lengths = [len(tiny_tokenizer().tokenize([text])[0]) for text in TEXTS]
    assert expected("serving_default", "odd")["truncated"].tolist() == [length >= LIMIT for length in lengths]


def test_ids_that_the_vocabulary_lacks_show_as_unknown(answers):
    piece = tiny_tokenizer().decode([[5]])[0], tiny_tokenizer().decode([[7]])[0]
    first, second = answers["session"]["ids that are none"]["text"]
    assert first.decode().split() == [*piece[0].split(), "⁇", *piece[1].split()]
    assert second.decode().strip() == "⁇"
    assert answers["session"]["no ids"]["text"].tolist() == [b"", b"", b""]


def test_the_best_of_the_best_is_the_best():
    best, nbest = expected("serving_default", "odd"), expected("translate_nbest", "odd")
    assert nbest["texts"].shape == nbest["scores"].shape == (len(TEXTS), 3)
    np.testing.assert_array_equal(nbest["texts"][:, 0], best["text"])
    np.testing.assert_allclose(nbest["scores"][:, 0], best["score"], rtol=1e-5)


def test_scores_are_the_log_probabilities_of_the_plain_model():
    source, target = words()[2], f"{words()[7]} {words()[11]}"
    outputs = SIGNATURES["score"][0](tiny_translator(), tf.constant([source]), tf.constant([target]))
    read, written = ([*tiny_tokenizer().encode([text])[0], 3] for text in (source, target))
    logits = tiny_model()({"source": np.array([read]), "target": np.array([[2, *written[:-1]]])})[0].numpy()
    log_probs = logits - np.log(np.exp(logits.astype("float64")).sum(-1, keepdims=True))
    assert outputs["tokens"].numpy().tolist() == [len(written)]
    np.testing.assert_allclose(outputs["score"][0], log_probs[range(len(written)), written].sum(), rtol=1e-4)


def test_alignment_is_of_the_best_translation():
    aligned, best = expected("align", "odd"), expected("serving_default", "odd")
    np.testing.assert_array_equal(aligned["text"], best["text"])
    np.testing.assert_allclose(aligned["score"], best["score"], rtol=1e-4)
    assert aligned["alignment"].shape == (*aligned["target_pieces"].shape, aligned["source_pieces"].shape[1])
    real = aligned["target_pieces"] != b""
    np.testing.assert_allclose(aligned["alignment"].sum(axis=2), real, atol=1e-5)
    assert (aligned["alignment"].sum(axis=1)[aligned["source_pieces"] == b""] == 0).all()
    for row, text in enumerate(ODD_TEXTS[:2]):
        pieces = tiny_tokenizer().pieces(tiny_tokenizer().encode([text])[0])
        assert [piece.decode() for piece in aligned["source_pieces"][row] if piece] == [*pieces, "</s>"]
    for text, row in zip(aligned["text"], aligned["target_pieces"], strict=True):
        written = [piece.decode() for piece in row if piece]
        assert written[-1] == "</s>" or b"</s>" not in row
        if "<unk>" not in written:
            assert "".join(written).removesuffix("</s>").replace("▁", " ").strip() == text.decode().strip()


def test_the_alignment_scores_what_the_search_scored():
    """The score of the search is that of the whole sentence, divided by the length penalty."""
    best = expected("serving_default", "odd")
    source = tiny_translator().read(tf.constant(TEXTS)).ids
    hypotheses = tiny_translator().best(source)
    from keras_attention.decoding import score

    scored = score(tiny_model(), source, hypotheses.ids[:, 0])
    np.testing.assert_array_equal(scored.lengths, hypotheses.lengths[:, 0])
    total = tf.reduce_sum(scored.token_log_probs, axis=1) / length_penalty(scored.lengths, 0.6)
    np.testing.assert_allclose(total, best["score"], rtol=1e-4)


def test_ids_are_those_of_the_tokenizer():
    ids = expected("encode_ids", "odd")["ids"]
    pieces = tiny_tokenizer().encode([words()[0]])[0]
    assert ids.dtype == np.int32
    assert ids[1].tolist() == [*pieces, 3, *[0] * (LIMIT - len(pieces) - 1)]
    assert expected("decode_ids", "odd")["text"][1].decode() == words()[0]
