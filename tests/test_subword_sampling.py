"""Subword sampling: segmentations of the right probabilities, epochs that repeat and differ, batches within limits."""

import collections
import functools
import gc
import hashlib
import itertools
import json
import math
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from keras_attention.text import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNK_ID,
    PackedBatches,
    ParallelCorpus,
    SubwordTokenizer,
    TokenBatches,
    pair_batches,
    sampled_ids,
)
from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.subword_sampling import can_sample

pytestmark = pytest.mark.tensorflow

SENTENCES = [
    "The cat sat on the mat.",
    "The cats that ate the rats sat on that mat.",
    "Der Fluss fließt durch tiefe Täler.",
    "Durch die Täler fließen tiefe Flüsse.",
    "東京は日本の首都です。",
]
ODD = [
    "",
    " ",
    "  two  spaces ",
    "😀 the",
    "no-break\u00a0space",
    "▁the ▁",
    "<s> </s> <pad>",
    "a\tb",
    "Ωμέγα cat Ωμέγα",
]
VOCABULARY = {"bpe": 97, "unigram": 70}
# One batch of tokens holds some pairs, not all of them; a few rows hold some too.
KINDS = [(TokenBatches, {"tokens_per_batch": 211}), (PackedBatches, {"row_length": 64, "rows_per_batch": 3})]
kinds = pytest.mark.parametrize(("kind", "options"), KINDS, ids=["by tokens", "packed"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(1)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    words += [stem + end for stem in ("flie", "schie", "gie", "schlie") for end in ("ßen", "ßt", "ße", "ßend", "ßer")]
    for language in ("en", "de"):
        lines = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(257)]
        (folder / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pairs(corpus):
    return ParallelCorpus(corpus / "train.en", corpus / "train.de").pairs


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(corpus, request):
    return trained(corpus, request.param)


@pytest.fixture(scope="module")
def bpe(corpus):
    return trained(corpus, "bpe")


def trained(corpus, model_type):
    return SubwordTokenizer.train(
        [corpus / "train.en", corpus / "train.de"], VOCABULARY[model_type], model_type=model_type
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks in the small corpora of these tests."""
    monkeypatch.setattr(sampled_ids, "_CHUNK", 31)


def test_samples_are_other_pieces_of_the_same_text(tokenizer):
    ids = tokenizer.sample(SENTENCES, dropout=0.5, seed=1)
    assert tokenizer.decode(ids) == SENTENCES
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & set(itertools.chain.from_iterable(ids))
    assert ids != tokenizer.encode(SENTENCES)
    assert tokenizer.sample([], dropout=0.5, seed=1) == []
    assert tokenizer.sample([""], dropout=0.5, seed=1) == [[]]


def test_no_dropout_gives_the_ids_of_encode(tokenizer):
    for none in (0, 0.0):
        assert tokenizer.sample(SENTENCES, dropout=none, seed=1) == tokenizer.encode(SENTENCES)


def test_more_dropout_gives_more_pieces(tokenizer):
    texts = SENTENCES * 100
    counts = [sum(map(len, tokenizer.sample(texts, dropout, seed=1))) for dropout in (0, 0.1, 0.3, 0.6, 0.99)]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("dropout", [0.1, 0.45])
@pytest.mark.parametrize("text", ["that", "Flüsse."])
def test_bpe_drops_merges_as_in_the_paper(bpe, text, dropout):
    """Against the probability of each segmentation by algorithm 1, over all sets of merges that are left."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=bpe.model)

    def outcomes(symbols):
        merges = {}
        for place, (left, right) in enumerate(itertools.pairwise(symbols)):
            merged = processor.piece_to_id(left + right)
            if merged != UNK_ID:
                merges[place] = (-processor.get_score(merged), place)
        for size in range(len(merges) + 1):
            for left in itertools.combinations(merges, size):
                probability = (1 - dropout) ** size * dropout ** (len(merges) - size)
                if not left:
                    yield symbols, probability
                    continue
                _, place = min(merges[each] for each in left)
                merged = (*symbols[:place], symbols[place] + symbols[place + 1], *symbols[place + 2 :])
                yield from ((end, probability * after) for end, after in ends_of(merged).items())

    @functools.cache
    def ends_of(symbols):
        ends = collections.Counter()
        for end, probability in outcomes(symbols):
            ends[end] += probability
        return ends

    assert_sampled(bpe, text, dropout, ends_of(tuple("▁" + text)))


def assert_sampled(tokenizer, text, dropout, probabilities):
    """Compares frequencies with probabilities, within four standard deviations of a binomial distribution."""
    count = 20_000
    assert len(probabilities) > 3
    assert sum(probabilities.values()) == pytest.approx(1)
    samples = tokenizer.sample([text] * count, dropout, seed=1)
    found = collections.Counter(tuple(tokenizer.pieces(ids)) for ids in samples)
    assert set(found) <= set(probabilities)
    for pieces, probability in probabilities.items():
        deviation = math.sqrt(probability * (1 - probability) / count)
        assert found[pieces] / count == pytest.approx(probability, abs=4 * deviation + 1 / count)


@pytest.mark.parametrize("dropout", [0.1, 0.7])
def test_unigram_samples_with_tempered_probabilities(corpus, dropout):
    """Against all segmentations of a word, each with P(x)^α, α = ln(1/p) / ln(V)."""
    tokenizer = trained(corpus, "unigram")
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)

    def segmentations(rest):
        if not rest:
            yield ()
        for end in range(1, len(rest) + 1):
            if processor.piece_to_id(rest[:end]) != UNK_ID:
                yield from ((rest[:end], *others) for others in segmentations(rest[end:]))

    exponent = math.log(1 / dropout) / math.log(VOCABULARY["unigram"])
    weights = {
        pieces: math.exp(exponent * sum(processor.get_score(processor.piece_to_id(piece)) for piece in pieces))
        for pieces in segmentations("▁thematat")
    }
    total = sum(weights.values())
    assert_sampled(tokenizer, "thematat", dropout, {pieces: weight / total for pieces, weight in weights.items()})


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_stay_as_they_are(tokenizer, text):
    ids = tokenizer.encode([text])
    # Hardly any dropout: the best segmentation.
    assert tokenizer.sample([text], 1e-300, seed=1) == ids
    for seed in range(5):
        assert tokenizer.decode(tokenizer.sample([text], 0.5, seed=seed)) == tokenizer.decode(ids)


def test_the_best_segmentations_of_a_corpus(pairs, tokenizer):
    for side in zip(*pairs, strict=True):
        assert tokenizer.sample(side, 1e-300, seed=1) == tokenizer.encode(side)


def other_model(folder, **options):
    """A SentencePiece model with settings that `SubwordTokenizer.train` does not have."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_prefix=str(folder / "other"),
        normalization_rule_name="identity",
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
        **options,
    )
    return SubwordTokenizer.load(folder / "other.model")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": True, "vocab_size": 300, "hard_vocab_limit": False, "user_defined_symbols": ["<x>", "at"]},
        {"split_by_whitespace": False, "vocab_size": 80, "hard_vocab_limit": False},
        {"treat_whitespace_as_suffix": True, "vocab_size": 80, "hard_vocab_limit": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "vocab_size": 80, "hard_vocab_limit": False},
    ],
    ids=["bytes and symbols", "pieces of several words", "spaces at the end", "spaces as they are"],
)
def test_models_of_other_kinds(tmp_path, model_type, options):
    if model_type == "bpe":
        options = {name: value for name, value in options.items() if name != "hard_vocab_limit"}
    tokenizer = other_model(tmp_path, model_type=model_type, **options)
    assert can_sample(tokenizer.model)
    texts = [*SENTENCES, "The <x> cat <x>sat 😀 that.", "  two  spaces ", ""]
    ids = tokenizer.encode(texts)
    assert tokenizer.sample(texts, 1e-300, seed=1) == ids
    for seed in range(5):
        sampled = tokenizer.sample(texts, 0.4, seed=seed)
        assert tokenizer.decode(sampled) == tokenizer.decode(ids)
        assert sampled != ids


def test_samples_follow_from_the_arguments_only(tokenizer):
    texts = SENTENCES * 20
    first, other = tokenizer.sample(texts, 0.2, seed=1), tokenizer.sample(texts, 0.2, seed=2)
    assert first != other
    tokenizer.encode(texts)
    assert tokenizer.sample(texts, 0.2, seed=1) == first
    sentencepiece.set_random_generator_seed(7)
    SubwordTokenizer(tokenizer.model).sample(texts, 0.9, seed=3)
    assert SubwordTokenizer(tokenizer.model).sample(texts, 0.2, seed=2) == other
    assert tokenizer.sample(texts, 0.2, seed=(1, 2)) != tokenizer.sample(texts, 0.2, seed=(2, 1)) != first


def test_samples_do_not_depend_on_other_threads(tokenizer):
    texts = SENTENCES * 50
    expected = [tokenizer.sample(texts, 0.2, seed=seed) for seed in range(4)]
    found = {}

    def work(seed):
        for _ in range(5):
            tokenizer.encode(texts)
            found.setdefault(seed, []).append(tokenizer.sample(texts, 0.2, seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: [expected[seed]] * 5 for seed in range(4)}


def test_wrong_arguments_of_a_sample(bpe, tmp_path):
    for dropout in (-0.1, 1, True, "much"):
        with pytest.raises(
            ValueError, match=r"`dropout` must be a number, at least 0 and below 1\. Received: dropout="
        ):
            bpe.sample(SENTENCES, dropout, seed=1)
    with pytest.raises(TypeError, match=r"`texts` must be a list of strings\. Received: texts='The cat"):
        bpe.sample(SENTENCES[0], 0.1, seed=1)
    words = other_model(tmp_path, model_type="word", vocab_size=9)
    assert not can_sample(words.model)
    assert words.sample(["The cat"], 0, seed=1) == words.encode(["The cat"])
    with pytest.raises(ValueError, match=r"Subword dropout needs a tokenizer whose type is one of .* of type 'word'"):
        words.sample(["The cat"], 0.1, seed=1)


def arrays_of(batches, epoch):
    """The arrays of each batch of an epoch, by hand."""
    made = [tf.nest.flatten(batches.batch(index, epoch)) for index in batches.plan(epoch)]
    return [[array.tolist() for array in arrays] for arrays in made]


def sides_of(batches, epoch):
    """The source and the target ids of each pair, in the order of the epoch, without BOS and EOS."""
    for index in batches.plan(epoch):
        inputs, labels = batches.batch(index, epoch)
        rows = zip(inputs["source"], labels, strict=True)
        for order, (source, target) in zip(index, rows, strict=True):
            pairs = [pair for pair in np.atleast_1d(order) if pair >= 0]
            sides = [split_at_ends(side) for side in (source, target)]
            yield from zip(pairs, *sides, strict=True)


def split_at_ends(row):
    ends = np.flatnonzero(row == EOS_ID)
    return [part[:-1].tolist() for part in np.split(row, ends + 1)[:-1]]


@kinds
def test_each_epoch_has_every_pair_once_in_pieces_of_its_own(pairs, tokenizer, kind, options):
    batches = kind.from_pairs(pairs, tokenizer, subword_dropout=0.5, **options)
    epochs = []
    for epoch in (0, 1, 2):
        assert len(batches.plan(epoch)) == len(batches)
        sides = {pair: (source, target) for pair, source, target in sides_of(batches, epoch)}
        assert len(list(sides_of(batches, epoch))) == len(sides) == len(pairs) == batches.num_pairs
        texts = [tuple(tokenizer.decode(sides[pair])) for pair in range(len(pairs))]
        assert texts == pairs
        epochs.append(sides)
    usual = [tuple(tokenizer.encode(pair)) for pair in pairs]
    for first, second in itertools.pairwise([dict(enumerate(usual)), *epochs]):
        assert sum(first[pair] != second[pair] for pair in range(len(pairs))) > len(pairs) / 2


def test_no_batch_exceeds_its_tokens(pairs, tokenizer):
    batches = TokenBatches.from_pairs(pairs, tokenizer, tokens_per_batch=211, subword_dropout=0.3)
    for epoch in range(4):
        for index in batches.plan(epoch):
            inputs, labels = batches.batch(index, epoch)
            assert 0 < len(index) * max(inputs["source"].shape[1], labels.shape[1]) <= 211
    # All of them are about as full as they may be.
    assert batches.padding < 0.35


def test_rows_are_full(pairs, tokenizer):
    batches = PackedBatches.from_pairs(pairs, tokenizer, row_length=64, rows_per_batch=3, subword_dropout=0.3)
    for epoch in range(4):
        for index in batches.plan(epoch):
            inputs, labels = batches.batch(index, epoch)
            assert inputs["source"].shape == (3, batches.source_length)
            assert labels.shape == (3, batches.target_length)
            assert np.all(np.count_nonzero(labels, axis=1) > 0)
    assert batches.padding < 0.25


@kinds
def test_the_counts_are_those_of_the_first_epoch(pairs, bpe, kind, options):
    batches = kind.from_pairs(pairs, bpe, subword_dropout=0.2, **options)
    made = [batches.batch(index, 0) for index in batches.plan(0)]
    arrays = [array for inputs, labels in made for array in (inputs["source"], labels)]
    cells, tokens = sum(array.size for array in arrays), sum(np.count_nonzero(array) for array in arrays)
    assert batches.num_tokens == tokens > kind.from_pairs(pairs, bpe, **options).num_tokens
    assert batches.padding == pytest.approx(1 - tokens / cells)


@kinds
def test_epochs_follow_from_the_seed_and_their_number(pairs, bpe, kind, options):
    def made(epoch, **changes):
        return arrays_of(kind.from_pairs(pairs, bpe, subword_dropout=0.2, **options, **changes), epoch)

    batches = kind.from_pairs(pairs, bpe, subword_dropout=0.2, **options)
    second, first = arrays_of(batches, 1), arrays_of(batches, 0)
    assert first != second
    assert (made(0), made(1)) == (first, second)
    assert made(1, seed=2) != second
    assert arrays_of(batches, 1) == second


@kinds
def test_the_dataset_takes_the_epochs_in_turn_and_resumes(pairs, bpe, kind, options):
    options = {**options, "subword_dropout": 0.2, "source_word_dropout": 0.1}

    def epochs(first, count):
        dataset = kind.from_pairs(pairs, bpe, **options).dataset(first)
        assert len(dataset) == len(kind.from_pairs(pairs, bpe, **options))
        numbers = dataset.repeat(count).as_numpy_iterator()
        made = [[array.tolist() for array in tf.nest.flatten(batch)] for batch in numbers]
        return [made[start : start + len(dataset)] for start in range(0, len(made), len(dataset))]

    whole = epochs(0, 4)
    batches = kind.from_pairs(pairs, bpe, **options)
    assert whole == [arrays_of(batches, epoch) for epoch in range(4)]
    assert epochs(2, 2) == whole[2:]


@kinds
@pytest.mark.parametrize("noise", [{}, {"subword_dropout": 0.2, "source_word_dropout": 0.1}], ids=["plain", "sampled"])
def test_the_dataset_resumes_within_an_epoch(pairs, bpe, kind, options, noise):
    """Its batches before are not made again; those after it are the same, with the same sampled pieces."""
    batches = kind.from_pairs(pairs, bpe, **options, **noise)
    whole = [arrays_of(batches, epoch) for epoch in (2, 3)]
    for first in (0, 1, len(batches) - 1):
        resumed, made = kind.from_pairs(pairs, bpe, **options, **noise), []
        make = resumed.batch
        resumed.batch = lambda *position, make=make, made=made: made.append(position[1]) or make(*position)
        dataset = resumed.dataset(2, first)
        for expected in (whole[0][first:], whole[1]):
            assert [
                [each.tolist() for each in tf.nest.flatten(batch)] for batch in dataset.as_numpy_iterator()
            ] == expected
        assert made == [2] * (len(batches) - first) + [3] * len(batches)
    for first in (-1, len(batches)):
        with pytest.raises(ValueError, match=rf"`first_batch` must be at least 0 and below .* Received: .*={first}$"):
            batches.dataset(2, first)


@kinds
def test_two_datasets_at_a_time_do_not_disturb_each_other(pairs, bpe, kind, options):
    batches = kind.from_pairs(pairs, bpe, subword_dropout=0.2, **options)
    datasets = [batches.dataset(first).as_numpy_iterator() for first in (0, 5, 3)]
    made = [
        [[array.tolist() for array in tf.nest.flatten(batch)] for batch in row] for row in zip(*datasets, strict=True)
    ]
    assert [list(each) for each in zip(*made, strict=True)] == [arrays_of(batches, epoch) for epoch in (0, 5, 3)]


def test_two_processes_agree(corpus, pairs, bpe, tmp_path):
    """The other process makes other things in another order before."""
    bpe.save(tmp_path / "tokenizer.model")
    script = f"""
import hashlib, json
from keras_attention.text import PackedBatches, ParallelCorpus, SubwordTokenizer, TokenBatches, sampled_ids
sampled_ids._CHUNK = 31
tokenizer = SubwordTokenizer.load({str(tmp_path / "tokenizer.model")!r})
pairs = ParallelCorpus({str(corpus / "train.en")!r}, {str(corpus / "train.de")!r}).pairs
tokenizer.sample(["The cat"], 0.5, seed=9)
for kind, options in ((PackedBatches, {KINDS[1][1]}), (TokenBatches, {KINDS[0][1]})):
    batches = kind.from_pairs(pairs, tokenizer, subword_dropout=0.2, source_word_dropout=0.1, **options)
    for epoch in (3, 1):
        tokenizer.encode(["The cat"])
        made = [batches.batch(index, epoch) for index in batches.plan(epoch)]
        text = json.dumps([[inputs["source"].tolist(), labels.tolist()] for inputs, labels in made])
        print("digest", hashlib.sha256(text.encode()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True
    )
    theirs = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("digest")]
    assert len(set(theirs)) == 4
    assert theirs == digests(pairs, bpe)


def digests(pairs, tokenizer):
    found = []
    for kind, options in reversed(KINDS):
        batches = kind.from_pairs(pairs, tokenizer, subword_dropout=0.2, source_word_dropout=0.1, **options)
        for epoch in (3, 1):
            made = [batches.batch(index, epoch) for index in batches.plan(epoch)]
            text = json.dumps([[inputs["source"].tolist(), labels.tolist()] for inputs, labels in made])
            found.append(hashlib.sha256(text.encode()).hexdigest())
    return found


class Letters:
    """A tokenizer whose pieces are letters, with as many of each in an epoch as `growth` says."""

    def __init__(self, growth=lambda epoch, text: 2):
        self.growth, self.encoded, self.sampled = growth, 0, []
        self.model = self

    def encode(self, texts):
        self.encoded += 1
        return [[ord(letter) for letter in text] for text in texts]

    def sample(self, sentences, seed):
        self.sampled.append((seed, len(sentences)))
        texts = ["".join(map(chr, ids)) for ids in sentences.to_lists()]
        return RaggedIds.from_lists(
            [[ord(each) for each in text for _ in range(self.growth(seed[1], text))] for text in texts]
        )


@pytest.fixture(autouse=True)
def letters_sample_themselves(monkeypatch):
    make = pair_batches.subword_sampler
    monkeypatch.setattr(
        pair_batches,
        "subword_sampler",
        lambda model, dropout: model if isinstance(model, Letters) else make(model, dropout),
    )


@kinds
def test_the_next_epoch_is_tokenized_little_by_little(kind, options):
    letters = Letters()
    pairs = [("ab", "cd")] * 1009
    batches = kind.from_pairs(pairs, letters, subword_dropout=0.1, **options)
    dataset = batches.dataset().as_numpy_iterator()
    chunks = -(-1009 // 31)
    assert len(letters.sampled) == 2 * chunks  # the first epoch, from which the number of batches follows
    counts = []
    for index in batches.plan(0):
        batches._sampled.prepare(1, share=(len(counts) + 1) / len(batches))
        batches.batch(index, 0)
        counts.append(len(letters.sampled) - 2 * chunks)
    assert np.diff(counts).max() <= 2 * (1 + chunks // len(batches))
    assert counts[-1] == 2 * chunks
    list(dataset)
    assert len(letters.sampled) == 4 * chunks, "sampled already"
    batches.plan(1)
    assert len(letters.sampled) == 4 * chunks
    # Each chunk of each side of each epoch has a seed of its own.
    assert len({seed for seed, _ in letters.sampled}) == 4 * chunks
    assert sum(count for _, count in letters.sampled) == 4 * 1009


@kinds
def test_the_dataset_samples_ahead(kind, options):
    letters = Letters()
    batches = kind.from_pairs([("ab", "cd")] * 1009, letters, subword_dropout=0.1, **options)
    list(batches.dataset())
    epochs = {seed[1] for seed, _ in letters.sampled}
    assert epochs == {0, 1}
    assert len(letters.sampled) == 4 * -(-1009 // 31)


@kinds
@pytest.mark.parametrize("dropout", [{}, {"source_word_dropout": 0.1}, {"subword_dropout": 0.1}], ids=str)
def test_texts_are_tokenized_once_and_not_kept(kind, options, dropout):
    class Text(str):
        pass

    def made():
        texts = Text("ab"), Text("cd")
        letters = Letters()
        batches = kind.from_pairs([texts], letters, **dropout, **options)
        list(batches.dataset().repeat(2))
        assert letters.encoded == 2  # the sides
        assert bool(letters.sampled) == ("subword_dropout" in dropout)
        return batches, [weakref.ref(text) for text in texts]

    batches, texts = made()
    gc.collect()
    assert [text() for text in texts] == [None, None]
    assert batches.num_pairs == 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TokenBatches, {"tokens_per_batch": 64, "max_length": 8}),
        (PackedBatches, {"row_length": 8, "rows_per_batch": 2}),
    ],
    ids=["by tokens", "packed"],
)
def test_pairs_that_become_too_long_keep_their_pieces(kind, options):
    """Also those whose source is short, and those that are in the first epoch."""
    pairs = [("abc", "d"), ("abcd", "e"), ("f", "ghij"), ("abcdefg", "k"), ("abcdefgh", "l"), ("m", "n")]
    batches = kind.from_pairs(pairs, Letters(), subword_dropout=0.1, **options)
    assert (batches.num_pairs, batches.num_left_out) == (5, 1)
    for epoch in (0, 1):
        sides = {pair: sides for pair, *sides in sides_of(batches, epoch)}
        assert sorted(sides) == [0, 1, 2, 3, 5]
        text = {pair: ["".join(map(chr, side)) for side in each] for pair, each in sides.items()}
        assert text == {0: ["aabbcc", "dd"], 1: ["abcd", "e"], 2: ["f", "ghij"], 3: ["abcdefg", "k"], 5: ["mm", "nn"]}


@kinds
def test_an_epoch_that_needs_too_many_batches_samples_less(kind, options):
    """The pairs that grow most keep their pieces, and no pair is lost."""
    growth = {0: 1, 1: 3, 2: 1}
    letters = Letters(lambda epoch, text: 2 if epoch == 3 and text.startswith("a") else growth.get(epoch, 1))
    random = np.random.default_rng(1)
    pairs = [tuple(str(random.choice(["a", "b"])) * random.integers(1, 9) for _ in range(2)) for _ in range(499)]
    batches = kind.from_pairs(pairs, letters, subword_dropout=0.1, **options)
    usual = dict(enumerate(letters.encode(side) for side in pairs))
    changed = []
    for epoch in range(4):
        assert len(batches.plan(epoch)) == len(batches)
        sides = {pair: sides for pair, *sides in sides_of(batches, epoch)}
        assert sorted(sides) == list(range(499))
        changed.append(sum(sides[pair] != usual[pair] for pair in range(499)))
        for index in batches.plan(epoch):
            inputs, labels = batches.batch(index, epoch)
            if kind is TokenBatches:
                assert len(index) * max(inputs["source"].shape[1], labels.shape[1]) <= 211
    assert changed[0] == changed[2] == 0
    assert changed[1] < 499
    assert changed[3] < 499


@kinds
def test_an_epoch_that_needs_fewer_batches_divides_full_ones(kind, options):
    letters = Letters(lambda epoch, text: 1 if epoch else 3)
    pairs = [("ab", "cde"), ("fghi", "jk"), ("lmn", "opqr")] * 97
    batches = kind.from_pairs(pairs, letters, subword_dropout=0.1, **options)
    assert len(batches) > 2 * len(kind.from_pairs(pairs, letters, **options))
    for epoch in (0, 1, 2):
        assert len(batches.plan(epoch)) == len(batches)
        assert sorted(pair for pair, *_ in sides_of(batches, epoch)) == list(range(291))
        for index in batches.plan(epoch):
            assert np.max(index) >= 0, "no batch is empty"


@kinds
def test_a_single_pair(kind, options):
    batches = kind.from_pairs([("ab", "cd")], Letters(lambda epoch, text: 1 + epoch), subword_dropout=0.1, **options)
    assert len(batches) == 1
    for epoch in range(3):
        assert list(sides_of(batches, epoch)) == [
            (0, [97] * (1 + epoch) + [98] * (1 + epoch), [99] * (1 + epoch) + [100] * (1 + epoch))
        ]


def test_rows_of_another_epoch_are_refused_where_they_are_too_long(pairs, bpe):
    batches = PackedBatches.from_pairs(pairs, bpe, row_length=64, rows_per_batch=3, subword_dropout=0.5)
    with pytest.raises(ValueError, match=r"must have at most 64 tokens a side: pass rows of `plan\(epoch\)`"):
        for rows in batches.plan(0):
            batches.batch(rows, epoch=1)


@kinds
def test_words_are_dropped_from_the_source_only(kind, options):
    ids = [[[5 + side * 100] * 7] * 499 for side in (0, 1)]
    batches = kind(*ids, source_word_dropout=0.3, **options)
    plain = kind(*ids, **options)
    seen = {}
    for epoch in (0, 1):
        sources = []
        for index, usual in zip(batches.plan(epoch), plain.plan(epoch), strict=True):
            np.testing.assert_array_equal(index, usual)
            inputs, labels = batches.batch(index, epoch)
            expected, expected_labels = plain.batch(index, epoch)
            np.testing.assert_array_equal(labels, expected_labels)
            for name in set(expected) - {"source"}:
                np.testing.assert_array_equal(inputs[name], expected[name])
            source, usual = inputs["source"], expected["source"]
            assert source.dtype == np.int32
            assert set(np.unique(source[source != usual])) <= {UNK_ID}
            assert np.all(usual[source != usual] == 5), "neither ends nor padding"
            sources.append(source)
        flat = np.concatenate([source[(source == 5) | (source == UNK_ID)] for source in sources])
        assert len(flat) == 7 * 499
        assert np.mean(flat == UNK_ID) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / len(flat)))
        seen[epoch] = flat.tolist()
    assert seen[0] != seen[1]
    again = kind(*ids, source_word_dropout=0.3, **options)
    assert arrays_of(again, 1) == arrays_of(batches, 1)
    assert arrays_of(kind(*ids, source_word_dropout=0.3, seed=2, **options), 1) != arrays_of(batches, 1)


def test_batches_drop_different_words():
    batches = TokenBatches([[5] * 39] * 8, [[6]] * 8, tokens_per_batch=80, shuffle=False, source_word_dropout=0.5)
    sources = [batches.batch(index)[0]["source"].tobytes() for index in batches.plan(0)]
    assert len(set(sources)) == len(sources) == 4


@kinds
@pytest.mark.parametrize("name", ["subword_dropout", "source_word_dropout"])
@pytest.mark.parametrize("value", [1, -0.1, True, "0.1"])
def test_a_dropout_is_a_fraction(kind, options, name, value):
    message = rf"`{name}` must be a number, at least 0 and below 1\. Received: {name}={value!r}"
    with pytest.raises(ValueError, match=message):
        kind.from_pairs([("ab", "cd")], Letters(), **{name: value}, **options)


def test_a_corpus_passes_both(corpus, pairs, bpe):
    data = ParallelCorpus(corpus / "train.en", corpus / "train.de").batches(
        bpe, tokens_per_batch=211, subword_dropout=0.2, source_word_dropout=0.1
    )
    batches = TokenBatches.from_pairs(pairs, bpe, tokens_per_batch=211, subword_dropout=0.2, source_word_dropout=0.1)
    made = [[array.tolist() for array in tf.nest.flatten(batch)] for batch in data.as_numpy_iterator()]
    assert made == arrays_of(batches, 0)
