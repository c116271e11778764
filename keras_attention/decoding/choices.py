"""Options as the functions that forbid and draw tokens.

Shapes: B inputs, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable
from functools import partial

import tensorflow as tf

from keras_attention.decoding import logits as rules_of
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.sampling import sample


def rules_for(options: DecodingOptions, given: tf.Tensor, eos_id: int) -> Callable | None:
    """What forbids tokens.

    Args:
        options: What was asked for.
        given: How many tokens of each output are a prompt (B,).
        eos_id: Token that ends a sentence.

    Returns:
        The `rules` of `beam_search`, or None where all tokens are allowed.
    """
    rules = []
    if options.min_length > 1:

        def not_yet(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
            rows = tf.shape(ids)[0] // tf.maximum(tf.size(sentences), 1)  # of a sentence
            least = tf.repeat(tf.gather(given, sentences) + options.min_length, rows)  # (B·K,)
            return rules_of.forbid_end(logits, tf.shape(ids)[1], least, eos_id)

        rules.append(not_yet)
    if options.no_repeat_ngram:

        def not_again(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
            return rules_of.forbid_repeats(logits, ids, options.no_repeat_ngram, eos_id)

        rules.append(not_again)
    if not rules:
        return None

    def apply(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
        for rule in rules:
            logits = rule(logits, ids, sentences)
        return logits

    return apply


def draw_for(options: DecodingOptions) -> Callable:
    """What draws a token of each row.

    Args:
        options: What was asked for.

    Returns:
        The `draw` of `beam_search`.
    """
    cuts = [partial(rules_of.cool, temperature=options.temperature)]
    cuts += [partial(rules_of.keep_top_k, k=options.top_k)] if options.top_k else []
    cuts += [partial(rules_of.keep_top_p, p=options.top_p)]
    cuts += [partial(rules_of.keep_min_p, p=options.min_p)]

    def draw(logits: tf.Tensor, t: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
        for cut in cuts:
            logits = cut(logits)
        return sample(logits, [options.seed, 0], t, sentences)[0]

    return draw
