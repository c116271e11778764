"""What an exported translator answers: one function for each of its signatures.

Every input and output has the batch B first, so that a server can join requests and split the answers, and a batch may
be empty. Strings that leave are valid UTF-8. `truncated` (B,) says of which texts only the beginning was read.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_attention.decoding import score as score_pairs
from keras_attention.serving.reading import read
from keras_attention.serving.translator import IDS, SOURCE, Translator
from keras_attention.text import PAD_ID, UNK_ID, SubwordTokenizer

TARGET = tf.TensorSpec([None], tf.string, name="target")


def translate(translator: Translator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best translation of each text: the signature `serving_default`."""
    return translator.serve(source)


def translate_nbest(translator: Translator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """As many translations of each text as there are beams: the signature `translate_nbest`."""
    return translator.serve_nbest(source)


def score(translator: Translator, source: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
    """How probable given translations are: the signature `score`.

    Args:
        translator: The translator.
        source: Texts (B,).
        target: A translation of each (B,); of one with more tokens than the search can write, the beginning is scored.

    Returns:
        `score` (B,), the log probability of the whole translation; `tokens` (B,), how many tokens that is, the end of
        sentence counted; `truncated` (B,), of either text.

    Example:
        >>> answer = score(getfixture("translator"), tf.constant(["abba", ""]), tf.constant(["", "abba"]))
        >>> int(answer["tokens"][0])
        1
    """
    same = tf.debugging.assert_equal(tf.size(source), tf.size(target), "There must be one target for each source. ")
    with tf.control_dependencies([same]):  # before any operation that would fail without saying why
        source, target = tf.identity(source), tf.identity(target)
    sources = translator.read(source)
    targets = read(translator.tokenizer, target, translator.max_target_length)
    scored = score_pairs(translator.model, sources.ids, targets.ids)
    return {
        "score": tf.reduce_sum(scored.token_log_probs, axis=1),
        "tokens": scored.lengths,
        "truncated": sources.truncated | targets.truncated,
    }


def align(translator: Translator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best translation of each text, and where the decoder looked as it wrote it: the signature `align`.

    Args:
        translator: The translator.
        source: Texts (B,).

    Returns:
        `text` and `score` (B,), as of `translate`; the pieces `source_pieces` (B, S) and `target_pieces` (B, T), each
        with its end of sentence, "" after it; `alignment` (B, T, S), as of `decoding.score`; `truncated` (B,).

    Example:
        >>> answer = align(getfixture("translator"), tf.constant(["abba"]))
        >>> answer["source_pieces"].numpy()[0, -1], answer["alignment"].shape.rank
        (b'</s>', 3)
    """
    sources = translator.read(source)
    found = translator.best(sources.ids)
    written = found.ids[:, 0]  # (B, T)
    return {
        "text": translator.texts(found)[:, 0],
        "score": found.scores[:, 0],
        "source_pieces": _pieces(translator.tokenizer, sources.ids),
        "target_pieces": _pieces(translator.tokenizer, written),
        "alignment": score_pairs(translator.model, sources.ids, written).alignment,
        "truncated": sources.truncated,
    }


def encode_ids(translator: Translator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """The token ids that the model reads, for another runtime: the signature `encode_ids`.

    Args:
        translator: The translator.
        source: Texts (B,).

    Returns:
        `ids` (B, S) int32, each row with its end of sentence, then padding; `truncated` (B,).

    Example:
        >>> encode_ids(getfixture("translator"), tf.constant([""]))["ids"].numpy().tolist()
        [[3]]
    """
    tokens = translator.read(source)
    return {"ids": tokens.ids, "truncated": tokens.truncated}


def decode_ids(translator: Translator, ids: tf.Tensor) -> dict[str, tf.Tensor]:
    """The text of token ids, from another runtime: the signature `decode_ids`.

    Args:
        translator: The translator.
        ids: Ids (B, T) int32: what follows the first end of sentence is dropped, so are padding and begin of sentence;
            an id that the vocabulary lacks shows as ``⁇``, as the unknown token does. More in a row than the model
            reads or writes are an error.

    Returns:
        `text` (B,).

    Example:
        >>> ids = encode_ids(getfixture("translator"), tf.constant(["abba"]))["ids"]
        >>> decode_ids(getfixture("translator"), ids)["text"].numpy().tolist()
        [b'abba']
    """
    most = max(translator.max_source_length, translator.max_target_length)
    rule = f"A row of ids must have at most {most}, as many as the model reads or writes; split it. Received: a row of"
    with tf.control_dependencies([tf.debugging.Assert(tf.shape(ids)[1] <= most, [rule, tf.shape(ids)[1]])]):
        ids = tf.identity(ids)
    known = (ids >= 0) & (ids < translator.tokenizer.vocabulary_size)
    return {"text": translator.tokenizer.detokenize(tf.where(known, ids, UNK_ID))}


# What a signature is called, its function and its inputs.
SIGNATURES: dict[str, tuple[Callable[..., dict[str, tf.Tensor]], list[tf.TensorSpec]]] = {
    "serving_default": (translate, [SOURCE]),
    "translate_nbest": (translate_nbest, [SOURCE]),
    "score": (score, [SOURCE, TARGET]),
    "align": (align, [SOURCE]),
    "encode_ids": (encode_ids, [SOURCE]),
    "decode_ids": (decode_ids, [IDS]),
}


def _pieces(tokenizer: SubwordTokenizer, ids: tf.Tensor) -> tf.Tensor:
    """Returns the pieces of ids, "" for padding: a table in the graph, which no server needs an operation for."""
    pieces = tokenizer.pieces(range(tokenizer.vocabulary_size))
    pieces[PAD_ID] = ""
    return tf.gather(tf.constant(pieces), ids)
