"""A SavedModel with the signatures of an exported translator whose answers a person can work out: it writes the words
of a text backwards, in capitals. Others of its signatures are there to go wrong."""

import tensorflow as tf

MOST_WORDS = 11
TEXTS = tf.TensorSpec([None], tf.string)


def named(spec, name):
    return tf.TensorSpec(spec.shape, spec.dtype, name)


def words_of(source):
    """The words of each text (B, S), backwards and in capitals too, how many, and whether there were more."""
    ragged = tf.strings.split(source)
    lengths = tf.minimum(tf.cast(ragged.row_lengths(), tf.int32), MOST_WORDS)
    words = ragged[:, :MOST_WORDS].to_tensor("")
    backwards = tf.reverse_sequence(tf.strings.upper(words), lengths, seq_axis=1)
    return words, backwards, lengths, ragged.row_lengths() > MOST_WORDS


def joined(words):
    return tf.strings.strip(tf.strings.reduce_join(words, axis=1, separator=" "))


def serving_default(source):
    _, backwards, lengths, truncated = words_of(source)
    return {"text": joined(backwards), "score": -0.5 * tf.cast(lengths, tf.float32), "truncated": truncated}


def translate_nbest(source):
    best = serving_default(source)
    texts = tf.stack([best["text"], best["text"] + "?", best["text"] + "!"], axis=1)
    scores = tf.stack([best["score"], best["score"] - 1.25, best["score"] - 2.0], axis=1)
    return {"texts": texts, "scores": scores, "truncated": best["truncated"]}


def score(source, target):
    _, _, lengths, truncated = words_of(source)
    tokens = tf.cast(tf.strings.split(target).row_lengths(), tf.int32) + 1
    return {"score": -tf.cast(lengths * tokens, tf.float32), "tokens": tokens, "truncated": truncated}


def with_end(words, lengths):
    """Pieces (B, S + 1): each word is two, its first letter and the rest; "</s>" ends a text, "" pads it."""
    first = tf.where(words == "", "", "▁" + tf.strings.regex_replace(words, "^(.).*", r"\1"))
    rest = tf.strings.regex_replace(words, "^.", "")
    rest = tf.where((rest == "") & (words != ""), "·", rest)
    pieces = tf.reshape(tf.stack([first, rest], axis=2), [tf.shape(words)[0], -1])
    pieces = tf.concat([pieces, tf.fill([tf.shape(words)[0], 1], "")], axis=1)
    at_end = tf.range(tf.shape(pieces)[1])[None] == 2 * lengths[:, None]
    return tf.where(at_end, "</s>", pieces)


def align(source):
    """Each piece looks with 0.6 at the first piece of its word, 0.3 at the second, 0.1 at the end."""
    words, backwards, lengths, _ = words_of(source)
    source_pieces, target_pieces = with_end(words, lengths), with_end(backwards, lengths)
    place = tf.range(tf.shape(target_pieces)[1])
    read = 2 * (lengths[:, None] - 1 - place[None] // 2)  # (B, T), where the word read begins
    written = (target_pieces != "") & (target_pieces != "</s>")
    end = tf.fill(tf.shape(read), 2) * lengths[:, None]
    width = tf.shape(source_pieces)[1]
    looks = 0.6 * tf.one_hot(read, width) + 0.3 * tf.one_hot(read + 1, width) + 0.1 * tf.one_hot(end, width)
    looks = tf.where(written[:, :, None], looks, tf.one_hot(end, width))
    pieces = {"source_pieces": source_pieces, "target_pieces": target_pieces}
    best = serving_default(source)
    return {"text": best["text"], "score": best["score"], "alignment": looks, **pieces}


def echo_ids(ids):
    texts = tf.strings.reduce_join(tf.strings.as_string(ids), axis=1, separator=" ")
    return {"text": texts, "raw_bytes": b"\xff" + texts}


def add(left, right):
    return {"sum": left + right[:, None]}


def double(number):
    return {"number": 2 * number, "whole": tf.cast(number, tf.int64), "text": tf.strings.as_string(number)}


def refuse(source):
    """Fails for all texts of a batch when one of them is bad."""
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(source != "bad"), ["a bad text"])]):
        return {"text": tf.identity(source)}


def slow(source, rounds):
    """Takes about a microsecond a round."""
    total = tf.while_loop(lambda i, x: i < tf.reduce_max(rounds), lambda i, x: (i + 1, x + 1), (0, 0))[1]
    return {"text": source, "total": total + 0 * rounds}


def sideways(source):
    """Does not say that three rows come out, whatever goes in."""
    return {"text": tf.reshape(tf.stack([source, source, source]), [3 + 0 * tf.size(source), -1])}


def not_a_number(source):
    return {"text": source, "score": tf.fill(tf.shape(source), float("nan"))}


INPUTS = {
    "serving_default": {"source": TEXTS},
    "translate_nbest": {"source": TEXTS},
    "score": {"source": TEXTS, "target": TEXTS},
    "align": {"source": TEXTS},
    "echo_ids": {"ids": tf.TensorSpec([None, None], tf.int32)},
    "add": {"left": tf.TensorSpec([None, 3], tf.float32), "right": tf.TensorSpec([None], tf.float32)},
    "double": {"number": tf.TensorSpec([], tf.float32)},
    "refuse": {"source": TEXTS},
    "slow": {"source": TEXTS, "rounds": tf.TensorSpec([None], tf.int32)},
    "sideways": {"source": TEXTS},
    "not_a_number": {"source": TEXTS},
}


def write_stub(folder, version=1, **replaced):
    """Writes the SavedModel as a version of a model and returns the model's folder."""
    module, signatures = tf.Module(), {}
    for name, inputs in INPUTS.items():
        specs = [named(spec, key) for key, spec in inputs.items()]
        function = tf.function(replaced.get(name, globals()[name]), input_signature=specs, autograph=False)
        setattr(module, f"the_{name}", function)
        signatures[name] = function
    tf.saved_model.save(module, str(folder / str(version)), signatures=signatures)
    return folder
