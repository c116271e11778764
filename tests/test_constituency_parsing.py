"""The parsing example: trees and brackets, the score that EVALB gives, and outputs that are always trees."""

from pathlib import Path

import keras
import pytest
import tensorflow as tf

import keras_attention as ka

nltk = pytest.importorskip("nltk")
Tree = nltk.Tree

pytestmark = pytest.mark.tensorflow

EXAMPLES = Path(__file__).parent.parent / "examples"
GOLD = "(S (NP (DT the) (NN dog)) (VP (VBZ sees) (NP (DT the) (NN cat)) (PP (IN with) (NP (NN care)))) (. .))"


@pytest.fixture(scope="module")
def trees():
    """The module of the example that reads, writes and scores trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import bracketed_trees

        yield bracketed_trees


@pytest.fixture(scope="module")
def example(trees):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import constituency_parsing

        yield constituency_parsing


def test_treebank_is_read_as_parsers_are_trained_on_it(trees, tmp_path):
    file = tmp_path / "trees.mrg"
    file.write_text(
        "( (S (NP-SBJ-1 (DT The)\n    (NN dog))\n  (VP=2 (VBZ sleeps) (S (NP (-NONE- *-1))) (-RRB- -RRB-))) )\n"
        "(TOP (FRAG (NN Nobody)))\n(TOP (NN Nobody))\n(ROOT (NP (NN One)) (NP (NN two)))\n",
        encoding="utf-8",
    )
    assert [str(tree) for tree in trees.read_trees(str(file))] == [
        "(S (NP (DT The) (NN dog)) (VP (VBZ sleeps) (-RRB- -RRB-)))",
        "(FRAG (NN Nobody))",
        "(ROOT (NP (NN One)) (NP (NN two)))",
    ]


def test_brackets_and_back(trees):
    tree = Tree.fromstring(GOLD)
    brackets = trees.to_brackets(tree)
    assert " ".join(brackets) == "(S (NP DT NN )NP (VP VBZ (NP DT NN )NP (PP IN (NP NN )NP )PP )VP . )S"
    assert trees.from_brackets(brackets, trees.tagged_words(tree)) == tree
    for sampled in trees.sample_trees(50, seed=3):
        assert trees.from_brackets(trees.to_brackets(sampled), trees.tagged_words(sampled)) == sampled


@pytest.mark.parametrize(
    "brackets",
    [
        "",
        "NN NN",
        "(S NN NN",
        "(S NN NN )NP",
        "(S (NP NN NN )S )NP",
        "(S NN )S",
        "(S NN NN NN )S",
        "(S NN (NP )NP NN )S",
        "(S NN )S (S NN )S",
        "(S NN NN )S )S",
    ],
)
def test_brackets_that_are_no_tree_of_the_words_raise_an_error(trees, brackets):
    with pytest.raises(ValueError):
        trees.from_brackets(brackets.split(), [Tree("DT", ["the"]), Tree("NN", ["dog"])])


SCORES = {
    "the same": (GOLD, GOLD, 100.0),
    "a phrase attached elsewhere": (  # S NP VP NP PP NP against S NP VP NP NP PP NP, of which 6 match
        GOLD,
        "(S (NP (DT the) (NN dog)) (VP (VBZ sees) (NP (NP (DT the) (NN cat)) (PP (IN with) (NP (NN care))))) (. .))",
        100 * 2 * 6 / (6 + 7),
    ),
    "a wrong label": ("(S (NP (NN a)) (VP (VB b)))", "(S (ADJP (NN a)) (VP (VB b)))", 100 * 2 / 3),
    "punctuation elsewhere": (
        "(S (`` ``) (NP (NN a)) (, ,) (VP (VB b) (. .)))",
        "(S (NP (`` ``) (NN a) (, ,)) (VP (VB b)) (. .))",
        100.0,
    ),
    "punctuation only": ("(S (NP (NN a)) (PRN (: -)))", "(S (NP (NN a) (: -)))", 100.0),
    "particles are adverbs": ("(S (NP (NN a)) (PRT (RP b)))", "(S (NP (NN a)) (ADVP (RP b)))", 100.0),
    "the top does not count": ("(TOP (S (NP (NN a)) (VP (VB b))))", "(S (NP (NN a)) (NP (VB b)))", 100 * 2 / 3),
    "traces do not count": ("(S (NP (-NONE- *)) (VP (VB b)))", "(S (VP (VB b)))", 100.0),
    "functions do not count": ("(S-TPC (NP-SBJ=1 (NN a)) (VP (VB b)))", "(S (NP (NN a)) (VP (VB b)))", 100.0),
    "a span counts as often as it occurs": ("(S (S (S (NN a))))", "(S (S (NN a)))", 100 * 2 * 2 / (3 + 2)),
}


@pytest.mark.parametrize("name", SCORES)
def test_f1_is_that_of_evalb(trees, name):
    gold, parse, expected = SCORES[name]
    assert trees.labelled_f1([Tree.fromstring(gold)], [Tree.fromstring(parse)]) == pytest.approx(expected)


def test_f1_counts_the_spans_of_all_trees_together(trees):
    gold, parses = (
        [Tree.fromstring(pair[side]) for name, pair in SCORES.items() if name in ("the same", "a wrong label")]
        for side in (0, 1)
    )
    assert trees.labelled_f1(gold, parses) == pytest.approx(100 * (6 + 2) / (6 + 3))


def test_baselines(trees):
    training = trees.sample_trees(100, seed=5)
    gold = Tree.fromstring("(S (NP (DT the) (NN dog)) (VP (VBZ sees) (NP (DT the) (NN cat))) (. .))")
    [parse] = trees.right_branching(training, [gold])
    assert parse.pformat(margin=99) == "(S (DT the) (NP (NN dog) (NP (VBZ sees) (NP (DT the) (NP (NN cat) (. .))))))"
    [parse] = trees.pcfg_parses(training, [gold])
    assert trees.labelled_f1([gold], [parse]) == 100


def untrained(example, trees, seed):
    training = trees.sample_trees(30, seed=seed)
    vocabulary = example.Vocabulary(training)
    keras.utils.set_random_seed(seed)
    sizes = {"num_layers": 1, "hidden_dim": 22, "intermediate_dim": 34, "num_heads": 2}
    return ka.Transformer(ka.TransformerConfig(len(vocabulary.tokens), **sizes)), vocabulary, training


@pytest.mark.parametrize(("beam_size", "extra_length"), [(1, 30), (5, 4)])
def test_an_untrained_model_writes_trees_of_the_words(example, trees, monkeypatch, beam_size, extra_length):
    monkeypatch.setattr(example, "BEAM_SIZE", beam_size)
    monkeypatch.setattr(example, "EXTRA_LENGTH", extra_length)
    model, vocabulary, _ = untrained(example, trees, seed=7)
    unseen = [Tree.fromstring(GOLD), Tree("S", [Tree("NN", ["word"])]), *trees.sample_trees(4, seed=8)]
    parses = example.parse(model, vocabulary, unseen)  # an output that is no tree would raise an error
    for tree, parse in zip(unseen, parses, strict=True):
        assert parse.leaves() == tree.leaves()
        assert parse.pos() == tree.pos()
        assert len(trees.to_brackets(parse)) < len(tree.leaves()) + extra_length


def allowed(example, vocabulary, tokens, num_words):
    """The tokens that may follow others in a sentence of so many words."""
    processor = example.WellFormed(vocabulary, tf.constant([99, num_words]))
    ids = tf.constant([[vocabulary.ids[token] for token in tokens]], tf.int32)
    logits = processor(tf.zeros([1, len(vocabulary.tokens)]), tf.reshape(ids, [1, -1]), tf.constant([1]))
    return {token for token, logit in zip(vocabulary.tokens, logits[0].numpy(), strict=True) if logit == 0}


def test_only_what_a_tree_may_continue_with_is_allowed(example, trees, monkeypatch):
    vocabulary = example.Vocabulary([Tree.fromstring(GOLD)])
    opening, tags = {"(S", "(NP", "(VP", "(PP"}, {"DT", "NN", "VBZ", "IN", "."}
    for tokens, num_words, expected in (
        ("", 2, opening),
        ("(S", 2, opening | tags),  # not empty
        ("(S NN", 2, opening | tags),  # the root waits for the last word
        ("(S (NP NN", 2, opening | tags | {")NP"}),
        ("(S (NP NN )NP", 2, opening | tags),
        ("(S (NP NN )NP (VP NN", 2, {")VP"}),  # no word is left
        ("(S (NP NN )NP (VP NN )VP", 2, {")S"}),
        ("(S (NP NN )NP (VP NN )VP )S", 2, {"<eos>"}),
        ("(VP (NP NN (PP NN )PP", 3, opening | tags | {")NP"}),  # the innermost that is open
    ):
        assert allowed(example, vocabulary, tokens.split(), num_words) == expected
    monkeypatch.setattr(example, "EXTRA_LENGTH", 5)  # two brackets and the end
    assert allowed(example, vocabulary, ["(S"], 2) == opening | tags
    assert allowed(example, vocabulary, ["(S", "(NP"], 2) == tags


def test_rare_words_become_their_endings(example):
    training = [Tree.fromstring(f"(S (NN dog) (NN {word}))") for word in ("walking", "talking", "cat")]
    vocabulary = example.Vocabulary(training)
    source = Tree.fromstring("(S (NN dog) (NN cat) (NN singing) (NN x))")
    assert [vocabulary.tokens[token] for token in vocabulary.source(source)] == ["dog", "-at", "-ng", "<unk>"]


@pytest.mark.slow
def test_example_parses_unseen_sentences_better_than_the_baseline(example, capsys):
    scores = example.main(**example.SMOKE)
    printed = capsys.readouterr().out
    for name, score in scores.items():
        assert f"{name:16}{score:5.1f}\n" in printed
    assert scores["Transformer"] > scores["right-branching"] + 20
    assert scores["PCFG"] > scores["right-branching"]
