"""Constituency parsing with a Transformer (section 6.3 of the paper): words in, the brackets of their tree out.

Run it: python examples/constituency_parsing.py (sentences of a small grammar; of a treebank with --trees FILE)
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import bracketed_trees as bt
import keras
import tensorflow as tf
from nltk import Tree

import keras_attention as ka
from keras_attention.decoding import DecodingOptions, generate

SPECIAL, UNK, EOS = ["<pad>", "<unk>", "<bos>", "<eos>"], 1, 3
BEAM_SIZE, LENGTH_PENALTY, EXTRA_LENGTH = 21, 0.3, 300  # the paper's; a tree has at most 300 tokens more than words
SIZES = {"num_layers": 2, "hidden_dim": 128, "intermediate_dim": 512, "num_heads": 4}
LEARNING_RATE = 0.006  # the highest
SMOKE = dict(count=1500, num_test=20, epochs=9, num_layers=1, hidden_dim=64, intermediate_dim=128, dropout=0.0)


class Vocabulary:
    """Ids of brackets, tags and words; words that occur once in training are known by their last two letters."""

    def __init__(self, trees: Sequence[Tree]):
        counts = Counter(word for tree in trees for word in tree.leaves())
        self.frequent = {word for word, count in counts.items() if count > 1}
        targets = sorted({token for tree in trees for token in bt.to_brackets(tree)})
        self.tags = {token for token in targets if not bt.is_bracket(token)}
        self.tokens = list(dict.fromkeys([*SPECIAL, *targets, *sorted(map(self.spelled, counts))]))
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def spelled(self, word: str) -> str:
        """Returns a frequent word, or the ending of another."""
        return word if word in self.frequent else f"-{word[-2:]}"

    def source(self, tree: Tree) -> list[int]:
        """Returns the ids of the words of a tree."""
        return [self.ids.get(self.spelled(word), UNK) for word in tree.leaves()]

    def target(self, tree: Tree) -> list[int]:
        """Returns the ids of the brackets and tags of a tree."""
        return [self.ids[token] for token in bt.to_brackets(tree)]


class WellFormed:
    """A logits processor that allows only trees: brackets that match, around as many words as the source has.

    A bracket opens only while enough tokens are left to close it. Shapes: B sentences, R hypotheses, V vocabulary, t
    tokens so far.
    """

    def __init__(self, vocabulary: Vocabulary, num_words: tf.Tensor):
        tokens = vocabulary.tokens
        self.num_words = num_words  # (B,)
        self.is_word = tf.constant([token in vocabulary.tags for token in tokens])  # (V,)
        self.is_opening = tf.constant([token.startswith("(") for token in tokens])
        self.is_closing = tf.constant([token.startswith(")") for token in tokens])
        # The bracket that closes each one.
        self.closing = tf.constant([tokens.index(f"){each[1:]}") if each.startswith("(") else 0 for each in tokens])

    def __call__(self, logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
        """Returns the logits (R, V), with -inf for what no tree may continue with."""
        rows = tf.shape(logits)[0] // tf.maximum(tf.size(sentences), 1)  # of a sentence
        num_words = tf.repeat(tf.gather(self.num_words, sentences), rows)  # (R,)
        ids = tf.pad(ids, [[0, 0], [1, 0]])  # (R, 1 + t)
        opens, closes = tf.gather(self.is_opening, ids), tf.gather(self.is_closing, ids)
        depths = tf.cumsum(tf.cast(opens, tf.int32) - tf.cast(closes, tf.int32), axis=1)
        depth, position = depths[:, -1], tf.range(tf.shape(ids)[1])
        innermost = tf.reduce_max(tf.where(opens & (depths == depth[:, None]), position, 0), axis=1)  # (R,)
        closing = tf.gather(self.closing, tf.gather(ids, innermost, batch_dims=1))
        missing = num_words - tf.math.count_nonzero(tf.gather(self.is_word, ids), axis=1, dtype=tf.int32)
        shortest = missing + depth + 1  # tokens to the nearest end
        left = num_words + EXTRA_LENGTH - position[-1]  # tokens to the maximum length
        may_open = (missing > 0) & (shortest + 2 <= left)
        may_close = ~opens[:, -1] & ((depth > 1) | ((depth == 1) & (missing == 0)))
        token = tf.range(tf.shape(logits)[1])  # (V,)
        allowed = self.is_opening & may_open[:, None]  # (R, V)
        allowed |= self.is_word & ((depth > 0) & (missing > 0))[:, None]
        allowed |= (token == closing[:, None]) & may_close[:, None]
        allowed |= (token == EOS) & (shortest == 1)[:, None]
        return tf.where(allowed, logits, float("-inf"))


def train(vocabulary: Vocabulary, trees: Sequence[Tree], epochs: int, **sizes: float) -> ka.Transformer:
    """Trains a model to write the brackets of a sentence."""
    sides = [vocabulary.source(tree) for tree in trees], [vocabulary.target(tree) for tree in trees]
    data = ka.text.TokenBatches(*sides, tokens_per_batch=2048, max_length=512).dataset()
    steps = epochs * len(data)
    warmup_steps = max(1, steps // 10)
    model = ka.Transformer(ka.TransformerConfig(len(vocabulary.tokens), **{**SIZES, **sizes}))
    scale = LEARNING_RATE * (model.config.hidden_dim * warmup_steps) ** 0.5  # of the paper's schedule
    model.compile(
        ka.training.muon_optimizer(model.config, warmup_steps, scale, total_steps=steps),
        loss=ka.training.MaskedCrossEntropy(label_smoothing=0.1),
        metrics=[ka.training.MaskedAccuracy()],
    )
    model.fit(data, epochs=epochs, shuffle=False, verbose=2)
    return model


def parse(model: ka.Transformer, vocabulary: Vocabulary, trees: Sequence[Tree]) -> list[Tree]:
    """Returns parses of the words of trees; an output that is no tree of these words would raise an error."""
    longest = max(len(tree.leaves()) for tree in trees)
    options = DecodingOptions(BEAM_SIZE, length_penalty=LENGTH_PENALTY, max_length=longest + EXTRA_LENGTH)

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32)])
    def search(source: tf.Tensor) -> tf.Tensor:
        num_words = tf.math.count_nonzero(source, axis=1, dtype=tf.int32) - 1
        return generate(model, source, options, logits_processor=WellFormed(vocabulary, num_words)).ids[:, 0]

    parses = {}
    order = sorted(range(len(trees)), key=lambda index: len(trees[index].leaves()))
    for batch in (order[start : start + 32] for start in range(0, len(order), 32)):
        rows = [[*vocabulary.source(trees[index]), EOS] for index in batch]
        for index, ids in zip(batch, search(keras.utils.pad_sequences(rows, padding="post")).numpy(), strict=True):
            tokens = [vocabulary.tokens[token] for token in ids[: list(ids).index(EOS)]]
            parses[index] = bt.from_brackets(tokens, bt.tagged_words(trees[index]))
    return [parses[index] for index in range(len(trees))]


def main(
    path: str | None = None, *, epochs: int = 10, count: int = 8000, num_test: int = 200, **sizes: float
) -> dict[str, float]:
    """Trains a parser, and prints and returns the F1 of its parses of unseen sentences next to that of baselines."""
    keras.utils.set_random_seed(1)
    trees = bt.read_trees(path) if path else bt.sample_trees(count, seed=1)
    training, test = trees[:-num_test], trees[-num_test:]
    vocabulary = Vocabulary(training)
    parses = {"right-branching": bt.right_branching(training, test)}
    if path is None:  # nltk's parser is too slow for the grammar of a treebank
        parses["PCFG"] = bt.pcfg_parses(training, test)
    parses["Transformer"] = parse(train(vocabulary, training, epochs, **sizes), vocabulary, test)
    print(" ".join(test[0].leaves()), " ".join(bt.to_brackets(parses["Transformer"][0])), sep="\n")
    scores = {name: bt.labelled_f1(test, each) for name, each in parses.items()}
    print(f"F1 of {len(test)} parses, labelled")
    for name, score in scores.items():
        print(f"{name:16}{score:5.1f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", metavar="FILE", help='bracketed trees; "nltk" for its sample of the Penn Treebank')
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="a few seconds, on few sentences of the grammar")
    arguments = parser.parse_args()
    main(**SMOKE) if arguments.smoke else main(arguments.trees, epochs=arguments.epochs)
