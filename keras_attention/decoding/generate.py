"""From a model and its inputs to hypotheses, as the options say.

Shapes: B inputs, S source length, P prompt length, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding import logits as rules_of
from keras_attention.decoding.beam_search import Hypotheses, beam_search
from keras_attention.decoding.length_penalty import average_length, length_penalty
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.sampling import sample

# The paper's limit on the output: the length of the input and this many tokens.
EXTRA_LENGTH = 50


class CachedState(NamedTuple):
    """The caches of a model that has no state for beams of its own.

    Attributes:
        layers: Of self-attention, B·K rows, reordered with the beams.
        cross: Of cross-attention, B rows, which the beams of a sentence share.
        mask: Padding mask of the source, B rows.
    """

    layers: Any
    cross: Any
    mask: Any

    def reordered(self, parents: tf.Tensor) -> "CachedState":
        """The state where each beam continues another.

        Args:
            parents: Which (B, K).

        Returns:
            A new state.
        """
        batch, beams = tf.unstack(tf.shape(parents))
        rows = tf.reshape(tf.range(batch)[:, None] * beams + parents, [-1])
        return self._replace(layers=_rows(self.layers, rows))

    def selected(self, sentences: tf.Tensor) -> "CachedState":
        """The state of some of the sentences.

        Args:
            sentences: Their places (B',).

        Returns:
            A new state.
        """
        held = tf.nest.flatten(self.layers)[0]
        beams = tf.shape(held)[0] // tf.maximum(tf.shape(self.mask)[0], 1)
        rows = tf.reshape(sentences[:, None] * beams + tf.range(beams), [-1])
        return CachedState(_rows(self.layers, rows), _rows(self.cross, sentences), _rows(self.mask, sentences))


def generate(
    model: Any,
    inputs: Any,
    options: DecodingOptions | None = None,
    *,
    prefix: Any = None,
    bos_id: int = 2,
    eos_id: int = 3,
    pad_id: int = 0,
) -> Hypotheses:
    """Writes what a model makes of its inputs; in a `tf.function`, all of it is one graph.

    Tokens of a prefix are given: they cost a hypothesis nothing. All others cost their log probability under the model,
    also where they were drawn from a distribution that was cooled or cut.

    Args:
        model: A `Transformer` (or what has its `encode`, `init_cache` and `decode_step`), or a `CausalTransformer`.
        inputs: Token ids, int32, 0 for padding at the end: the source (B, S), eos included, or for a language model the
            prompts (B, P), without bos.
        options: What is asked for; a beam search as in the paper by default.
        prefix: Tokens that the outputs start with (B, P), for a model with a source.
        bos_id: Token that stands before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that fills up shorter rows.

    Returns:
        `Hypotheses`, best first, drawn ones as they were drawn. The ids of a language model start with the prompt. An
        output has at most `options.max_length` tokens, or 50 more than the input.

    Raises:
        ValueError: Inputs or a prefix of another rank, or a prefix for a language model.
        TypeError: Inputs that are no integers.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=20)
        >>> found = generate(model, [[5, 6, 3], [7, 3, 0]], DecodingOptions(beam_size=2, max_length=4))
        >>> found.ids.shape[:2], bool((found.lengths <= 4).numpy().all())
        (TensorShape([2, 1]), True)

    Source: Vaswani et al. 2017, section 6.1.
    """
    options = options or DecodingOptions()
    inputs = _checked(inputs, "inputs")
    lengths = tf.math.count_nonzero(inputs != pad_id, axis=1, dtype=tf.int32)  # (B,)
    copies = options.num_return if options.sample else 1
    if copies > 1:  # each draw is a sentence of its own
        inputs, lengths = tf.repeat(inputs, copies, axis=0), tf.repeat(lengths, copies)
    if hasattr(model, "encode"):
        prefix = None if prefix is None else tf.repeat(_checked(prefix, "prefix"), copies, axis=0)
        given, room = tf.zeros_like(lengths), lengths - 1 + EXTRA_LENGTH  # eos does not count
        step, state = _with_source(model, inputs, options.beams)
    else:
        if prefix is not None:
            raise ValueError("A language model's prefix is its prompt: give it as `inputs`. Received: `prefix`, too")
        prefix, given, room = inputs, lengths, EXTRA_LENGTH
        step, state = _language_model(model, tf.shape(inputs)[0], options.beams)
    found = beam_search(
        step,
        state,
        batch_size=tf.shape(inputs)[0],
        beam_size=options.beams,
        max_length=given + (room if options.max_length is None else options.max_length),
        length_penalty=options.length_penalty,
        penalize=average_length if options.length_normalization == "average" else length_penalty,
        num_return=1 if options.sample else options.num_return,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        prefix=prefix,
        rules=_rules(options, given, eos_id),
        draw=_draw(options) if options.sample else None,
    )
    return Hypotheses(*(_grouped(x, copies) for x in found)) if copies > 1 else found


def _with_source(model: Any, source: tf.Tensor, beams: int) -> tuple[Callable, Any]:
    """Returns the step of a model that reads a source, and its first state."""
    if getattr(model, "can_fuse", False):
        decoder = model.fused_decoder()
        return decoder.step, decoder.read(source, beams)
    memory, mask = model.encode(source)  # (B, S, M), (B, S)
    cache = model.init_cache(memory, tf.shape(source)[0] * beams)

    def step(ids: tf.Tensor, state: CachedState) -> tuple[tf.Tensor, CachedState]:
        # The loop forgets how many heads there are.
        cross = tf.nest.map_structure(
            lambda x, as_made: tf.ensure_shape(x, [None, *as_made.shape[1:]]), state.cross, cache.cross
        )
        held = cache._replace(layers=state.layers, cross=cross)
        logits, grown = model.decode_step(ids[:, None], held, state.mask)
        return logits[:, 0], state._replace(layers=grown.layers)

    return step, CachedState(cache.layers, cache.cross, mask)


def _language_model(model: Any, batch_size: tf.Tensor, beams: int) -> tuple[Callable, Any]:
    """Returns the step of a model that only goes on, and its first state."""
    if getattr(model, "can_fuse", False):
        decoder = model.fused_decoder()
        return decoder.step, decoder.start(batch_size, beams)
    cache = model.init_cache(batch_size * beams)

    def step(ids: tf.Tensor, layers: Any) -> tuple[tf.Tensor, Any]:
        logits, grown = model.decode_step(ids[:, None], cache._replace(layers=layers))
        return logits[:, 0], grown.layers

    return step, cache.layers


def _rules(options: DecodingOptions, given: tf.Tensor, eos_id: int) -> Callable | None:
    """Returns what forbids tokens, or None where all are allowed."""
    rules = []
    if options.min_length > 1:

        def not_yet(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
            least = tf.repeat(tf.gather(given, sentences) + options.min_length, options.beams)  # (B·K,)
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


def _draw(options: DecodingOptions) -> Callable:
    """Returns what draws a token of each row."""
    cuts = [partial(rules_of.cool, temperature=options.temperature)]
    cuts += [partial(rules_of.keep_top_k, k=options.top_k)] if options.top_k else []
    cuts += [partial(rules_of.keep_top_p, p=options.top_p)]
    cuts += [partial(rules_of.keep_min_p, p=options.min_p)]

    def draw(logits: tf.Tensor, t: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
        for cut in cuts:
            logits = cut(logits)
        return sample(logits, [options.seed, 0], t, sentences)[0]

    return draw


def _checked(ids: Any, name: str) -> tf.Tensor:
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise TypeError(f"`{name}` are token ids, which a tokenizer makes of text. Received: dtype={ids.dtype.name}")
    if ids.shape.rank != 2:
        raise ValueError(f"`{name}` has two axes, sentences and tokens. Received: shape={tuple(ids.shape)}")
    return tf.cast(ids, tf.int32)


def _rows(nest: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), nest)


def _grouped(x: tf.Tensor, copies: int) -> tf.Tensor:
    """Returns (B·n, 1, …) as (B, n, …)."""
    return tf.reshape(x, tf.concat([[tf.shape(x)[0] // copies, copies], tf.shape(x)[2:]], axis=0))
