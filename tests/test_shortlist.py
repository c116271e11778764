"""A vocabulary shortlist: its table, the search over its candidates, its export and what it refuses."""

import json
import platform

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from tiny_translator import ODD_TEXTS, lines, tiny_model, tiny_tokenizer, tiny_translator, words

import keras_attention as ka
from keras_attention.cli import main
from keras_attention.decoding import DecodingOptions, generate
from keras_attention.serving import PackedTransformer, Shortlist, Translator, export
from keras_attention.serving import shortlist as shortlist_file
from keras_attention.serving.shortlist import SPECIAL_IDS, learn_lexicon, likeliest
from keras_attention.text.ragged_ids import RaggedIds

V = tiny_tokenizer().vocabulary_size
# Of `tf.compat.v1.saved_model.load`, which is how servers load.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
PAIRS = [([5, 6], [11, 12]), ([5], [11]), ([6, 7, 8], [12, 13]), ([7], [13]), ([8, 5], [11, 14, 15])]


def lexicon_by_hand(pairs, iterations):
    """IBM model 1 by its definition: t(f | e), from a uniform start."""
    table = {(e, f): 1.0 for source, target in pairs for e in source for f in target}
    for _ in range(iterations):
        counts = dict.fromkeys(table, 0.0)
        for source, target in pairs:
            for f in target:
                total = sum(table[e, f] for e in source)
                for e in source:
                    counts[e, f] += table[e, f] / total
        totals = {e: sum(counts[pair] for pair in counts if pair[0] == e) for e, _ in table}
        table = {(e, f): counts[e, f] / totals[e] for e, f in table}
    return table


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_lexicon_is_that_of_ibm_model_1(iterations):
    with_end = [(sorted([*source, 3]), target) for source, target in PAIRS]
    sources = RaggedIds.from_lists([source for source, _ in PAIRS])  # with 3 at their ends
    flat = np.concatenate([target for _, target in PAIRS])
    lengths = np.array([len(target) for _, target in PAIRS])
    lexicon = learn_lexicon(sources, RaggedIds(flat, lengths.cumsum() - lengths, lengths), iterations)
    expected = lexicon_by_hand(with_end, iterations)
    found = {(e, f): p for e, f, p in zip(*lexicon, strict=True)}
    assert found.keys() == expected.keys()
    for pair, probability in expected.items():
        np.testing.assert_allclose(found[pair], probability, rtol=1e-6)
    table = likeliest(lexicon, 17, number=2, without=[12])
    for piece in range(17):
        best = sorted((-p, f) for (e, f), p in found.items() if e == piece and f not in (*SPECIAL_IDS, 12))
        assert table[piece].tolist() == ([f for _, f in best] + [0, 0])[:2]


def sentence_pairs(number=60):
    """Pairs whose target has the words of the source, reversed letter by letter."""
    return [(line, " ".join(word[::-1] for word in line.split())) for line in lines()[:number]]


def test_training_counts_the_pieces_of_the_text(monkeypatch):
    pairs, tokenizer = sentence_pairs(), tiny_tokenizer()
    shortlist = Shortlist.train(pairs, tokenizer, commonest=7, per_piece=5)
    assert shortlist.size == {"commonest": 7, "per_piece": 5}
    targets = [set(ids) for ids in tokenizer.encode([target for _, target in pairs])]
    counts = {piece: -sum(piece in ids for ids in targets) for piece in range(4, V)}
    commonest = sorted(counts, key=lambda piece: (counts[piece], piece))[:7]
    assert shortlist.candidates(tf.constant([[0]])).numpy()[0].tolist() == sorted([*SPECIAL_IDS, *commonest])
    # A piece has itself, and translations that occur with it.
    for piece in (5, 40, 90):
        own = set(shortlist.candidates(tf.constant([[piece]])).numpy()[0].tolist()) - {*SPECIAL_IDS, *commonest, piece}
        rows = [ids for (source, _), ids in zip(pairs, targets, strict=True) if piece in tokenizer.encode([source])[0]]
        assert len(own) <= 5
        assert own <= set().union(*rows)
    few = Shortlist.train(pairs[:3], tokenizer, 7, 5)
    monkeypatch.setattr(shortlist_file, "MAX_PAIRS_OF_PIECES", 0)
    one = Shortlist.train(pairs[:3], tokenizer, 7, 5)  # no more than the first pair
    assert (few._translations.numpy()[:, 1:] > 0).sum() > (one._translations.numpy()[:, 1:] > 0).sum() > 0


def test_candidates_are_the_union_of_each_source():
    table = np.random.default_rng(5).integers(0, 23, (23, 3)).astype("int32")
    shortlist = Shortlist(table, commonest=[19, 4])
    sources = np.array([[7, 9, 3, 0], [22, 3, 0, 0], [0, 0, 0, 0]], "int32")
    rows = [sorted({0, 1, 2, 3, 4, 19, *source, *table[source].ravel()}) for source in sources]
    width = max(map(len, rows))
    expected = [row + [0] * (width - len(row)) for row in rows]
    assert shortlist.candidates(tf.constant(sources)).numpy().tolist() == expected
    assert shortlist.candidates(tf.constant(sources[:0])).shape[0] == 0


def everything():
    """A shortlist that has the whole vocabulary for each source."""
    return Shortlist(np.zeros((V, 1), "int32"), np.arange(V))


def restricted():
    return Shortlist.train(sentence_pairs(), tiny_tokenizer(), commonest=5, per_piece=4)


OPTIONS = {
    "beams": {"beam_size": 3},
    "greedy": {"beam_size": 1},
    "constraints": {"beam_size": 2, "min_length": 5, "no_repeat_ngram": 2, "max_length": 9},
    "sampling": {"beam_size": None, "sample": True, "seed": 3, "top_k": 9, "top_p": 0.9},
}
TEXTS = [text for text in ODD_TEXTS if len(text) < 100]


@pytest.mark.parametrize("name", ["beams", pytest.param("sampling", marks=pytest.mark.slow)])
def test_the_whole_vocabulary_gives_the_search_without_a_shortlist(name):
    plain, listed = (
        Translator(tiny_model(), tiny_tokenizer(), shortlist=each, max_source_length=61, **OPTIONS[name])
        for each in (None, everything())
    )
    ids = plain.read(plain_bytes(TEXTS)).ids
    number = min(2, plain.beam_size)
    expected, found = (tf.function(lambda x, t=each: t.search(x, number))(ids) for each in (plain, listed))
    assert found.ids.numpy().tolist() == expected.ids.numpy().tolist()
    assert found.lengths.numpy().tolist() == expected.lengths.numpy().tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)


def plain_bytes(texts):
    return tf.constant([text.encode() if isinstance(text, str) else text for text in texts])


@pytest.mark.parametrize("name", ["greedy", "constraints"])
def test_a_shortlist_is_the_full_search_without_all_other_logits(name):
    options = DecodingOptions(**{"length_penalty": 0.6, "num_return": 1, **OPTIONS[name]})
    shortlist = restricted()
    listed = Translator(tiny_model(), tiny_tokenizer(), shortlist=shortlist, max_source_length=61, **OPTIONS[name])
    ids = listed.read(plain_bytes(TEXTS)).ids
    candidates = shortlist.candidates(ids).numpy()
    allowed = np.zeros((len(TEXTS), V), bool)
    for row, each in zip(allowed, candidates, strict=True):
        row[each] = True
    assert 10 < allowed.sum(axis=1).mean() < V / 2

    def forbid_others(logits, _, sentences):
        rows = tf.shape(logits)[0] // tf.size(sentences)
        mask = tf.repeat(tf.gather(tf.constant(allowed), sentences), rows, axis=0)
        return tf.where(mask, logits, -np.inf)

    @tf.function(autograph=False)
    def oracle(ids):
        return generate(tiny_model(), ids, options, logits_processor=forbid_others)

    expected, found = oracle(ids), listed.best(ids)
    assert found.ids.numpy().tolist() == expected.ids.numpy().tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)
    whole = tiny_translator().best(ids)
    assert found.ids.numpy().tolist() != whole.ids.numpy().tolist()


def test_a_translator_with_another_model_keeps_the_options_and_the_shortlist():
    options = {"shortlist": restricted(), "max_source_length": 61, **OPTIONS["constraints"]}
    listed = Translator(tiny_model(), tiny_tokenizer(), **options)
    other = listed.with_model(tiny_model())
    assert (other.shortlist, other.max_source_length) == (listed.shortlist, 61)
    assert other.options == listed.options


def test_a_translation_does_not_depend_on_the_batch():
    translator = Translator(tiny_model(), tiny_tokenizer(), shortlist=restricted(), beam_size=3)
    assert translator(TEXTS) == [translator([text])[0] for text in TEXTS]
    assert translator([]) == []
    assert translator.translate(TEXTS, tokens_per_batch=20) == translator(TEXTS)


def test_several_samples_of_a_sentence_have_its_candidates():
    shortlist = restricted()
    translator = Translator(
        tiny_model(), tiny_tokenizer(), shortlist=shortlist, sample=True, beam_size=None, max_length=7
    )
    ids = translator.read(plain_bytes(TEXTS[:3])).ids
    found = translator.search(ids, num_return=5).ids.numpy()  # (B, 5, L)
    for row, candidates in zip(found, shortlist.candidates(ids).numpy(), strict=True):
        assert set(row.ravel()) <= set(candidates)
    assert len({tuple(row) for row in found[0]}) > 1


CONFIGS = {
    "paper": {},
    "modern": {"positions": "rotary", "normalization": "rms", "normalize_first": True, "num_kv_heads": 2},
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the operations are those of x86-64")
@pytest.mark.parametrize(
    ("weights", "config"),
    [
        ("int8", "paper"),
        pytest.param(None, "modern", marks=pytest.mark.slow),
        pytest.param("bfloat16", "modern", marks=pytest.mark.slow),
    ],
)
def test_an_export_gives_the_numbers_of_the_translator(weights, config, tmp_path):
    keras.utils.set_random_seed(7)
    sizes = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 56, "num_heads": 4}
    model = ka.Transformer(ka.TransformerConfig(V, **sizes, **CONFIGS[config]))
    model = model if weights is None else PackedTransformer(model, weights)
    translator = Translator(model, tiny_tokenizer(), beam_size=2, shortlist=restricted())
    version = export(translator, tmp_path / "listed")
    texts = plain_bytes(TEXTS)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(version)).signature_def
        found = {}
        for name in ("serving_default", "translate_nbest"):
            outputs = {key: info.name for key, info in signatures[name].outputs.items()}
            found[name] = session.run(outputs, {signatures[name].inputs["source"].name: texts.numpy().tolist()})
    for name, serve in (("serving_default", translator.serve), ("translate_nbest", translator.serve_nbest)):
        for key, expected in serve(texts).items():
            if key.startswith("score"):
                np.testing.assert_allclose(found[name][key], expected, atol=1e-4)
            else:
                assert found[name][key].tolist() == expected.numpy().tolist()
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert card["shortlist"] == {"commonest": 5, "per_piece": 4}
    readme = (version.parent / "README.md").read_text()
    assert "considers only the 5 commonest pieces" in readme
    assert "at most 4 others" in readme
    if weights is None:  # those of existing translations know the whole vocabulary
        loaded = tf.saved_model.load(str(version))
        source, target = texts[:2], tf.constant([words()[40], words()[41]])
        plain = Translator(model, tiny_tokenizer(), beam_size=2)
        scores = ka.decoding.score(model, plain.read(source).ids, plain.read(target).ids).token_log_probs
        served = loaded.signatures["score"](source=source, target=target)["score"]
        np.testing.assert_allclose(served, np.sum(scores, axis=1), rtol=1e-5)


def test_an_export_without_a_shortlist_says_nothing_of_one(tmp_path):
    from keras_attention.serving.model_card import model_card
    from keras_attention.serving.server_files import server_files

    assert "shortlist" not in model_card(tiny_translator(), "plain")
    assert "shortlist" not in server_files(tmp_path)["README.md"]


def test_what_is_refused():
    tokenizer = tiny_tokenizer()
    other = Shortlist(np.zeros((9, 1), "int32"), [4])
    with pytest.raises(ValueError, match=rf"pieces of the tokenizer.*shortlist\.vocabulary_size=9, .*={V}$"):
        Translator(tiny_model(), tokenizer, shortlist=other)
    with pytest.raises(TypeError, match=r"`shortlist` must be a Shortlist\. Received: shortlist=True"):
        Translator(tiny_model(), tokenizer, shortlist=True)
    sizes = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 24, "num_heads": 2}
    alibi = ka.Transformer(ka.TransformerConfig(V, **sizes, positions="alibi"))
    with pytest.raises(ValueError, match=r"not quantized and whose positions add no bias.*Received: model="):
        Translator(alibi, tokenizer, shortlist=everything())
    with pytest.raises(ValueError, match=r"at least one pair of sentences\. Received: pairs of length 0"):
        Shortlist.train([], tokenizer)
    with pytest.raises(ValueError, match="per_piece=0"):
        Shortlist.train([("a", "b")], tokenizer, per_piece=0)
    with pytest.raises(ValueError, match=r"`commonest` must be ids.* below 5\. Received: commonest from 4 to 5"):
        Shortlist(np.zeros((5, 1), "int32"), [4, 5])
    with pytest.raises(ValueError, match=r"`translations` must be ids.*Received: translations from -1 to -1"):
        Shortlist(np.full((5, 1), -1), [4])
    with pytest.raises(ValueError, match=r"must have shape \(V, n\).*Received: translations\.shape=\(5,\)"):
        Shortlist(np.zeros(5), [4])


def test_an_export_to_look_inside_has_no_shortlist(tmp_path):
    translator = Translator(tiny_model(), tiny_tokenizer(), shortlist=everything())
    with pytest.raises(ValueError, match=r"searches the whole vocabulary.*Received: inspect=True"):
        export(translator, tmp_path / "listed", inspect=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--inspect"], "leave out --shortlist, or --inspect"), (["--weights", "int8"], "give --runtime x86 too")],
)
def test_the_command_refuses_what_does_not_go_together(tmp_path, options, message):
    done = CliRunner().invoke(main, ["export", str(tmp_path), str(tmp_path / "saved"), "--shortlist", *options])
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []
