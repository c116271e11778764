"""The translator: one output for each input, the same by itself and in a batch."""

import threading
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from saved_model import as_bytes
from tiny_translator import ODD_TEXTS, lines, tiny_model, tiny_tokenizer, tiny_translator, words

from keras_attention import Transformer
from keras_attention.decoding import length_penalty
from keras_attention.serving import Translator
from keras_attention.serving.tokenization import tokenize, tokenize_in_python

pytestmark = pytest.mark.tensorflow


class FixedModel:
    """Stands in for a `Transformer`: the next token's logits depend only on the last token."""

    def __init__(self, logits):
        self.logits = tf.constant(logits, tf.float32)  # (V, V)

    def encode(self, source):
        self.source = source
        return tf.zeros([*tf.unstack(tf.shape(source)), 1]), source != 0

    def init_cache(self, memory, batch_size):
        return FixedCache(layers=(tf.zeros([batch_size, 1]),))

    def decode_step(self, ids, cache, source_mask):
        return tf.gather(self.logits, ids), cache


class FixedCache(NamedTuple):
    layers: tuple
    cross: tuple = ()


def fixed_logits(**rows):
    """Logits (V, V) that are equal except in `rows`."""
    logits = np.zeros([tiny_tokenizer().vocabulary_size] * 2, "float32")
    for token, row in rows.items():
        logits[int(token[1:])] = row
    return logits


@pytest.fixture(scope="module")
def translator():
    return tiny_translator()


@pytest.fixture(scope="module")
def translations(translator):
    return translator(ODD_TEXTS)


def test_one_valid_output_for_each_input(translations):
    assert len(translations) == len(ODD_TEXTS)
    assert all(isinstance(text, str) for text in translations)
    assert len(set(translations)) > 5  # the outputs depend on the inputs


def test_a_batch_gives_what_its_texts_give_alone(translator, translations):
    assert [translator([text])[0] for text in ODD_TEXTS] == translations


def test_no_text(translator):
    assert translator([]) == []
    assert translator.translate([]) == []
    outputs = translator.serve_nbest(tf.constant([], tf.string))
    assert outputs["texts"].shape == outputs["scores"].shape == (0, 3)


def test_the_order_of_texts_is_kept_however_they_are_batched(translator, translations, capsys, monkeypatch):
    with pytest.warns(UserWarning, match="1 of 10 texts are longer than the 61 tokens"):
        assert translator.translate(ODD_TEXTS, tokens_per_batch=29) == translations
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("keras_attention.status_line.LOG_SECONDS", 0.0)
    assert translator.translate(ODD_TEXTS[3:5], progress=True) == translations[3:5]
    out, err = capsys.readouterr()
    assert out == "", "standard output is for translations"
    assert err.startswith("translating: 0 of 2 texts, 0:00:0")


def test_batches_hold_similar_lengths_within_the_limit(translator, monkeypatch):
    shapes = []

    def watched(self, texts, source_ids):
        np.testing.assert_array_equal(source_ids, self.read(tf.constant(texts)).ids)
        shapes.append(source_ids.shape)
        return texts

    monkeypatch.setattr(Translator, "_translate_batch", watched)
    monkeypatch.setattr("keras_attention.serving.translator.BATCHES_AT_ONCE", 1)  # so that they are seen in their order
    texts = lines(97)
    assert translator.translate(texts, tokens_per_batch=131) == texts
    assert sum(count for count, _ in shapes) == 97
    assert all(count * length <= 131 for count, length in shapes)
    lengths = [length for _, length in shapes]
    assert lengths == sorted(lengths, reverse=True)
    assert len(shapes) <= 1.2 * sum(count * length for count, length in shapes) / 131 + 1


def test_two_batches_are_translated_at_a_time(translator, monkeypatch):
    both = threading.Barrier(2, timeout=60)

    def waiting(self, texts, source_ids):
        both.wait()  # for another batch, as long as one is expected
        return [text.upper() for text in texts]

    monkeypatch.setattr(Translator, "_translate_batch", waiting)
    texts = ["a", "b", "a b a b", "b a b a"]
    assert translator.translate(texts, tokens_per_batch=1) == ["A", "B", "A B A B", "B A B A"]


@pytest.mark.parametrize(
    ("shared", "texts", "tokens_per_batch", "sizes"),
    [
        (True, 1, 4096, [1]),
        (True, 5, 4096, [2, 3]),
        (True, 5, 4, [1, 1, 1, 1, 1]),  # batches of 2, 2 and 1
        (True, 7, 4, [1, 2, 2, 2]),  # enough batches for all cores
        (False, 5, 4096, [5]),
    ],
)
def test_few_batches_are_halved_where_each_has_its_own_cores(
    translator, monkeypatch, shared, texts, tokens_per_batch, sizes
):
    seen = []

    def watched(self, texts, source_ids):
        seen.append(len(texts))
        return [text.upper() for text in texts]

    monkeypatch.setattr(Translator, "_translate_batch", watched)
    monkeypatch.setattr("keras_attention.serving.translator.cores_are_shared", lambda: shared)
    sources = (["a", "b"] * 4)[:texts]
    assert translator.translate(sources, tokens_per_batch) == [text.upper() for text in sources]
    assert sorted(seen) == sizes


def test_the_graph_is_made_in_the_thread_that_asks():
    """Keras' settings are thread-local, such as the dtype policy."""
    threads = []

    class Watched(FixedModel):
        def encode(self, source):
            threads.append(threading.current_thread())
            return super().encode(source)

    Translator(Watched(fixed_logits()), tiny_tokenizer()).translate(["a", "b"], tokens_per_batch=1)
    assert set(threads) == {threading.current_thread()}


def test_every_text_is_tokenised_once(monkeypatch):
    translator = Translator(FixedModel(fixed_logits()), tiny_tokenizer())
    read, seen = translator.read, []
    monkeypatch.setattr(translator, "read", lambda source: seen.append(source.shape) or read(source), raising=False)
    assert translator.translate(["a", "b", "a b a b"], tokens_per_batch=1) == translator(["a", "b", "a b a b"])
    assert seen == [(3,), (3,)]


def test_an_error_in_a_batch_reaches_the_caller(translator, monkeypatch):
    def failing(self, texts, source_ids):
        raise ValueError(f"no translation of {texts}")

    monkeypatch.setattr(Translator, "_translate_batch", failing)
    with pytest.raises(ValueError, match=r"no translation of \['a b a b'\]"):
        translator.translate(["a", "b", "a b a b"], tokens_per_batch=1)


def test_lone_surrogates_count_as_bad_bytes(translator):
    text, as_bytes = "\ud800 " + words()[1], b"\xed\xa0\x80 " + words()[1].encode()
    assert translator([text]) == translator([as_bytes])


@pytest.mark.parametrize("limit", [2, 5, 61])
def test_texts_have_the_same_ids_in_python(limit):
    """JAX and torch tokenize in Python."""
    broken = [
        b"\xff" * 16 * 5,
        b"\xf0\x9f" * 1000,
        b"\xed\xa0\x80 a",
        b"a \xe2\x80",
        "é".encode() * 16 * limit + b"\xc3",
    ]
    texts = as_bytes([*lines(300), *ODD_TEXTS]) + broken
    expected = tokenize(tiny_tokenizer(), tf.constant(texts), limit)
    for graph, python in zip(expected, tokenize_in_python(tiny_tokenizer(), texts, limit), strict=True):
        np.testing.assert_array_equal(python, graph)


def test_the_best_of_the_best_is_the_best(translator, translations):
    texts = tf.constant([t if isinstance(t, bytes) else t.encode() for t in ODD_TEXTS])
    best, nbest = translator.serve(texts), translator.serve_nbest(texts)
    assert nbest["texts"].shape == nbest["scores"].shape == (len(ODD_TEXTS), 3)
    assert (nbest["texts"][:, 0] == best["text"]).numpy().all()
    assert [text.decode() for text in best["text"].numpy()] == translations
    np.testing.assert_allclose(nbest["scores"][:, 0], best["score"], rtol=1e-5)
    assert (np.diff(nbest["scores"]) <= 0).all()


def test_scores_are_those_of_the_model_on_the_whole_sentence():
    """The search in steps, with caches and beams, against one pass of the functional model."""
    text = lines()[0]
    translator = Translator(tiny_model(), tiny_tokenizer(), beam_size=3, max_length=13)
    hypotheses = translator.search(translator.read(tf.constant([text])).ids, num_return=3)
    source = [[*tiny_tokenizer().encode([text])[0], 3]]
    for ids, score, length in zip(*(x[0].numpy() for x in hypotheses[:3]), strict=True):
        target = [[2, *ids[: length - 1]]]
        logits = tiny_model()({"source": tf.constant(source), "target": tf.constant(target)})
        chosen = tf.gather(tf.nn.log_softmax(logits)[0], ids[:length], batch_dims=1)
        expected = tf.reduce_sum(chosen) / length_penalty(length, 0.6)
        np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_long_texts_are_cut_and_keep_their_end():
    translator = Translator(None, tiny_tokenizer(), max_source_length=11)
    ids, lengths, _ = translator.read(tf.constant(["", words()[0], " ".join(words())]))
    pieces = tiny_tokenizer().encode([words()[0], " ".join(words())])
    assert lengths.numpy().tolist() == [1, len(pieces[0]) + 1, 11]
    assert ids.shape == (3, 11)
    assert ids[0].numpy().tolist() == [3] + [0] * 10
    assert ids[1].numpy().tolist()[: len(pieces[0]) + 2] == [*pieces[0], 3, 0]
    assert ids[2].numpy().tolist() == [*pieces[1][:10], 3]


def test_texts_at_the_limit_are_whole_and_longer_ones_are_not():
    pieces = tiny_tokenizer().encode([" ".join(words())])[0]
    text = tiny_tokenizer().decode([pieces[:10]])[0]
    assert tiny_tokenizer().encode([text])[0] == pieces[:10]
    for limit, truncated in ((12, False), (11, False), (10, True)):
        tokens = tokenize(tiny_tokenizer(), tf.constant([text]), limit)
        assert tokens.truncated.numpy().tolist() == [truncated]
        assert tokens.ids.numpy().tolist() == [[*pieces[: min(10, limit - 1)], 3]]
        assert tokens.lengths.numpy().tolist() == [min(10, limit - 1) + 1]


def test_texts_of_which_only_the_beginning_is_read_are_named():
    translator = tiny_translator()
    long = "ab " * 997
    with pytest.warns(
        UserWarning, match=r"2 of 5 texts are longer than the \d+ tokens .* counted from 1: 2, 5$"
    ) as notes:
        translator.translate(["ab", long, "", "ab", long])
    assert len(notes) == 1
    assert notes[0].filename == __file__
    with pytest.warns(UserWarning, match=r"11 of 11 texts .*: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …$"):
        translator.translate([long] * 11)


@pytest.mark.parametrize("character", ["a", "ж", "€", "😀", "\0"])
def test_no_more_than_sixteen_characters_for_each_token_are_tokenised(character, monkeypatch):
    """Of one to four bytes; a run of characters that the vocabulary lacks is one token, however long it is."""
    seen = []
    tokenizer = tiny_tokenizer()
    tokenize_all = tokenizer.tokenize
    monkeypatch.setattr(tokenizer, "tokenize", lambda texts: seen.extend(texts.numpy()) or tokenize_all(texts))
    texts = [character * 16 * 5, character * (16 * 5 + 1), character * 100_000, (character * 99_999).encode() + b"\xff"]
    tokens = tokenize(tokenizer, tf.constant(as_bytes(texts)), 5)
    assert [text.decode() for text in seen] == [texts[0]] * 4
    cut_again = len(tokenizer.encode([texts[0]])[0]) > 4
    assert tokens.truncated.numpy().tolist() == [cut_again, True, True, True]


def test_bad_bytes_at_the_cut_are_bad_characters():
    tokens = tokenize(tiny_tokenizer(), tf.constant([b"\xff" * 16 * 5, b"\xf0\x9f" * 1000, b""]), 5)
    assert tokens.truncated.numpy().tolist() == [False, True, False]


def test_outputs_have_at_most_fifty_tokens_more_than_the_source():
    logits = fixed_logits()
    logits[:, 3] = -30.0  # no sentence wants to end
    translator = Translator(FixedModel(logits), tiny_tokenizer(), beam_size=2)
    hypotheses = translator.search(translator.read(tf.constant(["", words()[0]])).ids, num_return=1)
    pieces = len(tiny_tokenizer().encode([words()[0]])[0])
    assert hypotheses.lengths.numpy().tolist() == [[50], [50 + pieces]]
    assert Translator(None, None, max_source_length=pieces + 1).max_target_length == 50 + pieces


def test_a_model_that_gives_nan_is_reported():
    logits = fixed_logits(t2=np.nan)
    translator = Translator(FixedModel(logits), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"no usable probabilities for texts \[0, 1\] of a batch of 2, such as ''"):
        translator(["", "a"])
    outputs = translator.serve(tf.constant(["", "a"]))
    assert outputs["text"].numpy().tolist() == [b"", b""]
    assert np.isnan(outputs["score"]).all()


def test_one_text_is_not_a_list(translator):
    with pytest.raises(TypeError, match=r"write \[text\] for one. Received: 'guten tag'"):
        translator("guten tag")
    with pytest.raises(TypeError, match=r"must be str or bytes. Received: 7 \(int\) at 1"):
        translator(["guten tag", 7])


def test_bad_numbers(translator):
    with pytest.raises(ValueError, match="tokens_per_batch must be 1 or more"):
        translator.translate(["a"], tokens_per_batch=0)
    with pytest.raises(ValueError, match="max_source_length must be 2 or more"):
        Translator(None, None, max_source_length=1)
    with pytest.raises(AttributeError):
        translator.beam_size = 5  # the graph would not follow
    assert (translator.beam_size, translator.length_penalty) == (3, 0.6)
    assert Translator(None, None).max_source_length == 256


def test_lengths_stay_within_the_positions_that_a_model_has_learned():
    model = Transformer.from_preset(
        "tiny", tiny_tokenizer().vocabulary_size, num_layers=1, positions="learned", max_length=19
    )
    translator = Translator(model, tiny_tokenizer(), beam_size=2)
    assert (translator.max_source_length, translator.max_target_length) == (19, 19)
    assert np.isfinite(translator.serve(tf.constant([" ".join(words())]))["score"].numpy()).all()
    for name in ("max_source_length", "max_length"):
        with pytest.raises(ValueError, match=f"`{name}` must be at most .* Received: {name}=20, .*max_length=19"):
            Translator(model, tiny_tokenizer(), **{name: 20})


@pytest.mark.parametrize("more", [-1, 1])
def test_a_model_of_another_vocabulary_is_refused(more):
    pieces = tiny_tokenizer().vocabulary_size
    model = Transformer.from_preset("tiny", pieces + more, num_layers=1)
    with pytest.raises(ValueError, match=f"not made for each other.*Received: .*={pieces + more}, .*={pieces}$"):
        Translator(model, tiny_tokenizer())


def test_options_of_decoding_reach_the_search(translator):
    texts = lines()[:4]
    short = Translator(tiny_model(), tiny_tokenizer(), beam_size=3, max_source_length=61, max_length=3)
    ids = short.read(tf.constant(texts)).ids
    assert short.best(ids).lengths.numpy().max() <= 3 < translator.best(ids).lengths.numpy().max()
    sampled = Translator(tiny_model(), tiny_tokenizer(), beam_size=1, sample=True, seed=3, max_length=9)
    assert sampled(texts) == sampled(texts) != translator(texts)
    with pytest.raises(ValueError, match=r"`no_repeat_ngram`.*-1"):
        Translator(tiny_model(), tiny_tokenizer(), no_repeat_ngram=-1)
