"""From a model and its inputs to hypotheses, or to tokens one by one, as the options say.

Shapes: B inputs, S source length, P prompt length, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.beam_search import Hypotheses, beam_search
from keras_attention.decoding.choices import draw_for, rules_for
from keras_attention.decoding.length_penalty import average_length, length_penalty
from keras_attention.decoding.logits import force_prefix
from keras_attention.decoding.model_steps import Step, language_model, with_source
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.sampling import greedy
from keras_attention.decoding.streaming import Streamed, compiled_step, stream_tokens

# The paper's limit on the output: the length of the input and this many tokens.
EXTRA_LENGTH = 50


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
        output has at most `options.max_length` tokens, or 50 more than the input, or `options.min_length`.

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
    prefix = None if prefix is None else _checked(prefix, "prefix")
    copies = options.num_return if options.sample else 1
    if copies > 1:  # each draw is a sentence of its own
        inputs = tf.repeat(inputs, copies, axis=0)
        prefix = None if prefix is None else tf.repeat(prefix, copies, axis=0)
    task = _Task.of(model, inputs, options, bos_id, pad_id, prefix)
    found = beam_search(
        *task.steps,
        batch_size=tf.shape(inputs)[0],
        beam_size=options.beams,
        max_length=task.limit,
        length_penalty=options.length_penalty,
        penalize=average_length if options.length_normalization == "average" else length_penalty,
        num_return=1 if options.sample else options.num_return,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        begun=task.begun,
        prefix=task.prefix,
        rules=rules_for(options, task.given, eos_id),
        draw=draw_for(options) if options.sample else None,
    )
    return Hypotheses(*(_grouped(x, copies) for x in found)) if copies > 1 else found


def stream(
    model: Any,
    inputs: Any,
    options: DecodingOptions | None = None,
    *,
    bos_id: int = 2,
    eos_id: int = 3,
    pad_id: int = 0,
) -> Iterator[Streamed]:
    """Yields the tokens of `generate` one after the other, as soon as each is chosen.

    Args:
        model: As of `generate`.
        inputs: As of `generate`.
        options: Greedy decoding by default, or drawing; a search of several beams knows no token before its end.
        bos_id: Token that stands before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that fills up shorter rows.

    Returns:
        An iterator over `Streamed`: ids, log probabilities and what is done, (B,) each. Of prompts that are longer than
        the shortest, it yields the rest, too.

    Raises:
        ValueError: Options for several hypotheses of an input, or inputs of another rank.
        TypeError: Inputs that are no integers.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=20)
        >>> tokens = list(stream(model, [[5, 6, 3]], DecodingOptions(beam_size=1, max_length=4)))
        >>> len(tokens) <= 4, tokens[-1].done.tolist()
        (True, [True])
    """
    options = options or DecodingOptions(beam_size=1)
    if options.beams > 1 or options.num_return > 1:
        raise ValueError(
            "A stream follows one hypothesis of each input: give beam_size=1 or sample=True, and num_return=1. "
            f"Received: beam_size={options.beams}, num_return={options.num_return}"
        )
    task = _Task.of(model, _checked(inputs, "inputs"), options, bos_id, pad_id)
    rules, draw = rules_for(options, task.given, eos_id), draw_for(options)
    everyone = tf.range(tf.size(task.given))

    def choose(logits: tf.Tensor, written: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        written = tf.concat([task.begun, written], axis=1)
        position = tf.shape(written)[1]
        allowed = logits if rules is None else rules(logits, written, everyone)
        if task.prefix is not None:
            allowed = force_prefix(allowed, position, task.prefix, pad_id, logits)
        ids, certainty = greedy(allowed)
        ids = draw(allowed, position, everyone) if options.sample else ids
        return tf.where(position + 1 >= task.limit, eos_id, ids), certainty

    step, state = task.steps
    begun = tf.shape(task.begun)[1]
    return stream_tokens(
        compiled_step(step, state),
        state,
        tf.pad(task.begun, [[0, 0], [1, 0]], constant_values=bos_id)[:, -1],
        max_length=int(tf.reduce_max(tf.concat([task.limit - begun, [1]], 0))),
        eos_id=eos_id,
        choose=choose,
        pad_id=pad_id,
    )


class _Task(NamedTuple):
    """What is to be written for each input."""

    steps: tuple[Step, Any]
    begun: tf.Tensor  # (B, t), what is written already
    prefix: tf.Tensor | None  # (B, P), what the outputs start with
    given: tf.Tensor  # (B,), how many tokens of an output are a prompt
    limit: tf.Tensor  # (B,), the most tokens of an output

    @classmethod
    def of(
        cls, model: Any, inputs: tf.Tensor, options: DecodingOptions, bos_id: int, pad_id: int, prefix: Any = None
    ) -> "_Task":
        lengths = tf.math.count_nonzero(inputs != pad_id, axis=1, dtype=tf.int32)  # (B,)
        if hasattr(model, "encode"):
            given, room = tf.zeros_like(lengths), lengths - 1 + EXTRA_LENGTH  # eos does not count
            begun = inputs[:, :0]
            steps = with_source(model, inputs, options.beams)
        else:
            if prefix is not None:
                raise ValueError("The prompts of a language model are its `inputs`: give no `prefix`. Received: both")
            prefix, given, room = inputs, lengths, EXTRA_LENGTH
            # All that the prompts have in length is read at once; the longer ones go on a token a step.
            begun = inputs[:, : tf.reduce_min(tf.concat([lengths, tf.shape(inputs)[1:]], axis=0))]
            before = tf.pad(begun, [[0, 0], [1, 0]], constant_values=bos_id)[:, :-1]
            steps = language_model(model, before, options.beams)
        most = tf.maximum(room, options.min_length) if options.max_length is None else options.max_length
        return cls(steps, begun, prefix, given, given + most)


def _checked(ids: Any, name: str) -> tf.Tensor:
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise TypeError(f"`{name}` are token ids, which a tokenizer makes of text. Received: dtype={ids.dtype.name}")
    if ids.shape.rank != 2:
        raise ValueError(f"`{name}` has two axes, sentences and tokens. Received: shape={tuple(ids.shape)}")
    return tf.cast(ids, tf.int32)


def _grouped(x: tf.Tensor, copies: int) -> tf.Tensor:
    """Returns (B·n, 1, …) as (B, n, …)."""
    return tf.reshape(x, tf.concat([[tf.shape(x)[0] // copies, copies], tf.shape(x)[2:]], axis=0))
