"""Constituency trees: read from a treebank or sampled from a grammar, written as brackets, scored as EVALB does.

The examples import it: python examples/constituency_parsing.py
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from nltk import PCFG, Nonterminal, Tree, ViterbiParser, induce_pcfg
from nltk.corpus import treebank
from nltk.tokenize import SExprTokenizer

MAX_WORDS = 20  # of a sampled sentence
# The labels that EVALB, the scorer of the field, deletes with its settings COLLINS.prm.
DELETED = {"TOP", "-NONE-", ",", ":", "``", "''", "."}


def read_trees(path: str) -> list[Tree]:
    """Reads bracketed trees, of one or several lines each, from a file, or "nltk": its sample of the Penn Treebank."""
    if path == "nltk":
        trees = treebank.parsed_sents()
    else:
        trees = map(Tree.fromstring, SExprTokenizer().tokenize(Path(path).read_text(encoding="utf-8").strip()))
    cleaned = [clean(tree) for tree in trees]
    return [tree for tree in cleaned if tree and is_phrase(tree)]


def sample_trees(count: int, seed: int) -> list[Tree]:
    """Samples trees of different sentences from the grammar next to this file."""
    grammar = PCFG.fromstring(Path(__file__).with_name("attachment.pcfg").read_text(encoding="utf-8"))
    generator, trees, rules = random.Random(seed), {}, defaultdict(list)
    for rule in grammar.productions():
        rules[rule.lhs()].append(rule)

    def expand(symbol: Nonterminal | str) -> Tree | str:
        if isinstance(symbol, str):
            return symbol
        [rule] = generator.choices(rules[symbol], [rule.prob() for rule in rules[symbol]])
        return Tree(symbol.symbol().replace("PERIOD", "."), [expand(child) for child in rule.rhs()])

    while len(trees) < count:
        tree = expand(grammar.start())
        if len(tree.leaves()) <= MAX_WORDS:
            trees[tuple(tree.leaves())] = clean(tree)
    return list(trees.values())


def clean(tree: Tree) -> Tree | None:
    """Removes traces, functions ("NP-SBJ" becomes "NP") and the TOP of a single child; None if no word is left."""
    label = tree.label() if tree.label().startswith("-") else re.split("[-=]", tree.label())[0]
    if isinstance(tree[0], str):
        return None if label == "-NONE-" else Tree(label, tree[:])
    children = [child for child in map(clean, tree) if child is not None]
    is_top = label in ("", "TOP", "ROOT") and len(children) == 1
    return None if not children else children[0] if is_top else Tree(label or "TOP", children)


def tagged_words(tree: Tree) -> list[Tree]:
    """Returns the words of a tree with their tags: (DT the), (NN dog)."""
    return list(tree.subtrees(lambda node: node.height() == 2))


def to_brackets(tree: Tree) -> list[str]:
    """Returns the brackets of a tree: (S (NP (DT the) (NN dog)) (VP (VBZ sleeps))) as (S (NP DT NN )NP (VP VBZ )VP )S.

    Source: Vinyals et al. 2015, "Grammar as a Foreign Language", section 2.2, but with the tags of the words.
    """
    if tree.height() == 2:
        return [tree.label()]
    return [f"({tree.label()}", *(token for child in tree for token in to_brackets(child)), f"){tree.label()}"]


def is_bracket(token: str) -> bool:
    """Returns True for brackets, and False for tags."""
    return token.startswith(("(", ")"))


def from_brackets(tokens: Sequence[str], words: Sequence[Tree]) -> Tree:
    """Puts tagged words in the places of the tags; raises ValueError unless these are a tree of that many words."""
    tree = Tree.fromstring(" ".join(")" if token.startswith(")") else token for token in tokens))
    for position, word in zip(tree.treepositions("leaves"), words, strict=True):
        tree[position] = word
    brackets, written = (list(filter(is_bracket, each)) for each in (to_brackets(tree), tokens))
    if brackets != written or not all(map(len, tree.subtrees())):
        raise ValueError(f"Each bracket must have words and close with its label. Received: {' '.join(tokens)}")
    return tree


def labelled_spans(tree: Tree) -> Counter:
    """Counts the labelled spans of a tree in words that are no punctuation."""
    spans = Counter()

    def end_of(node: Tree, start: int) -> int:
        if node.height() == 2:
            return start + (node.label() not in DELETED)
        end = start
        for child in node:
            end = end_of(child, end)
        label = re.split("[-=]", node.label())[0]
        if end > start and label not in DELETED:
            spans["ADVP" if label == "PRT" else label, start, end] += 1  # the two count as equal
        return end

    end_of(tree, 0)
    return spans


def labelled_f1(trees: Sequence[Tree], parses: Sequence[Tree]) -> float:
    """Returns the F1 of the labelled spans of all parses together, in percent, as EVALB with COLLINS.prm."""
    pairs = [(labelled_spans(tree), labelled_spans(parse)) for tree, parse in zip(trees, parses, strict=True)]
    matched = sum((gold & parsed).total() for gold, parsed in pairs)
    return 200 * matched / sum(gold.total() + parsed.total() for gold, parsed in pairs)


def right_branching(training: Sequence[Tree], trees: Sequence[Tree]) -> list[Tree]:
    """Returns parses whose brackets all end with the sentence, labelled as the root or as most brackets in training."""
    [(root, _)] = Counter(tree.label() for tree in training).most_common(1)
    labels = Counter(node.label() for tree in training for child in tree for node in child.subtrees(is_phrase))
    [(label, _)] = labels.most_common(1)

    def bracket(words: list[Tree]) -> list[Tree]:
        return words if len(words) < 3 else [words[0], Tree(label, bracket(words[1:]))]

    return [Tree(root, bracket(tagged_words(tree))) for tree in trees]


def is_phrase(tree: Tree) -> bool:
    """Returns whether a tree is more than a tagged word."""
    return tree.height() > 2


def pcfg_parses(training: Sequence[Tree], trees: Sequence[Tree]) -> list[Tree]:
    """Returns the most likely parses under the grammar whose rules are counted in the training trees."""
    grammar = induce_pcfg(Nonterminal("S"), [rule for tree in training for rule in tree.productions()])
    parser = ViterbiParser(grammar, max_time=None)
    return [next(parser.parse(tree.leaves())) for tree in trees]
