"""Generation from a model and its inputs, as hypotheses or as a stream of tokens.

Shapes: B inputs, S source length, P prompt length, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.beam_search import Step, beam_search
from keras_attention.decoding.hypotheses import Hypotheses, average_length, length_penalty
from keras_attention.decoding.logits_processors import (
    forbid_end,
    forbid_repeats,
    force_prefix,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    scale_by_temperature,
)
from keras_attention.decoding.model_steps import check_ids, language_model, learned_positions, with_source
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.sampling import greedy, sample
from keras_attention.decoding.streaming import Streamed, compiled_step, stream_tokens
from keras_attention.layers.arguments import concrete_integer

# From the logits of the next token, the tokens before and the indices of the sentences to the logits.
LogitsProcessor = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

# The paper's limit of how many tokens longer than its input an output is.
EXTRA_LENGTH = 50


def generate(
    model: Any,
    inputs: Any,
    options: DecodingOptions | None = None,
    *,
    prefix: Any = None,
    logits_processor: LogitsProcessor | None = None,
    bos_id: int = 2,
    eos_id: int = 3,
    pad_id: int = 0,
) -> Hypotheses:
    """Generates the outputs of a model for its inputs, in a `tf.function` as one graph.

    Each token adds its log probability under the model to the score of a hypothesis, even where it is sampled with a
    temperature or from a truncated distribution. Tokens of a prefix add nothing.

    Args:
        model: A `Transformer` (or a model with its `encode`, `init_cache` and `decode_step`), or a `CausalTransformer`.
        inputs: Token ids, 0 for padding at the end: a source (B, S), eos included, or for a language model the
            prompts (B, P), without bos.
        options: Decoding options; a beam search as in the paper by default.
        prefix: Tokens that the outputs start with (B, P), padded at the end; for a model with a source.
        logits_processor: Function of the logits (R, V), the tokens before them (R, t) and the indices of their N
            sentences among the inputs, which returns the logits, with -inf for forbidden tokens. The R rows are R / N
            beams of each sentence, next to each other. With `options.num_return` samples, an index counts samples. It
            follows the constraints of the options and precedes those of sampling.
        bos_id: Token before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that pads shorter rows.

    Returns:
        `Hypotheses`, best first, or in the order of sampling. The ids of a language model start with the prompt. An
        output has at most `options.max_length` tokens; by default 50 more than the input, or `options.min_length`, and
        not more than a model with learned positions has positions.

    Raises:
        ValueError: Inputs or a prefix of another rank, a prefix for a language model, or more tokens than a model with
            learned positions has positions.
        TypeError: Inputs that are not integers.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=20)
        >>> hypotheses = generate(model, [[5, 6, 3], [7, 3, 0]], DecodingOptions(beam_size=2, max_length=4))
        >>> hypotheses.ids.shape[:2], bool((hypotheses.lengths <= 4).numpy().all())
        (TensorShape([2, 1]), True)

    Source: Vaswani et al. 2017, section 6.1.
    """
    options = options or DecodingOptions()
    inputs = check_ids(inputs, "inputs")
    prefix = None if prefix is None else check_ids(prefix, "prefix")
    copies = options.num_return if options.sample else 1
    if copies > 1:  # each sample is a sentence of its own
        inputs = tf.repeat(inputs, copies, axis=0)
        prefix = None if prefix is None else tf.repeat(prefix, copies, axis=0)
    task = _Task.of(model, inputs, options, bos_id, pad_id, prefix)
    hypotheses = beam_search(
        task.step,
        task.state,
        batch_size=tf.shape(inputs)[0],
        beam_size=options.beams,
        max_length=task.max_length,
        length_penalty=options.length_penalty,
        penalize=average_length if options.length_normalization == "average" else length_penalty,
        num_return=1 if options.sample else options.num_return,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        prompt=task.prompt,
        prefix=task.prefix,
        logits_processor=_logits_processor(options, task.prompt_lengths, eos_id, logits_processor),
        sampler=_sampler(options) if options.sample else None,
    )
    return Hypotheses(*(_group(x, copies) for x in hypotheses)) if copies > 1 else hypotheses


def stream(
    model: Any,
    inputs: Any,
    options: DecodingOptions | None = None,
    *,
    logits_processor: LogitsProcessor | None = None,
    bos_id: int = 2,
    eos_id: int = 3,
    pad_id: int = 0,
) -> Iterator[Streamed]:
    """Yields the tokens of `generate` one by one, as soon as each is chosen.

    Args:
        model: See `generate`.
        inputs: See `generate`.
        options: Decoding options; greedy by default. With several beams no token is certain before the end.
        logits_processor: See `generate`.
        bos_id: Token before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that pads shorter rows.

    Returns:
        An iterator over `Streamed`: ids, log probabilities and which inputs are done, (B,) each. Of prompts of
        different lengths it also yields the tokens from the length of the shortest on.

    Raises:
        ValueError: Options for several hypotheses of an input, or inputs of another rank.
        TypeError: Inputs that are not integers.

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
    task = _Task.of(model, check_ids(inputs, "inputs"), options, bos_id, pad_id)
    process = _logits_processor(options, task.prompt_lengths, eos_id, logits_processor)
    sampler = _sampler(options)
    sentences = tf.range(tf.size(task.prompt_lengths))

    def choose(logits: tf.Tensor, written: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        written = tf.concat([task.prompt, written], axis=1)
        position = tf.shape(written)[1]
        processed = logits if process is None else process(logits, written, sentences)
        if task.prefix is not None:
            processed = force_prefix(processed, position, task.prefix, pad_id, logits)
        ids, log_probs = greedy(processed)
        ids = sampler(processed, position, sentences) if options.sample else ids
        return tf.where(position + 1 >= task.max_length, eos_id, ids), log_probs

    prompt_length = tf.shape(task.prompt)[1]
    return stream_tokens(
        compiled_step(task.step, task.state),
        task.state,
        tf.pad(task.prompt, [[0, 0], [1, 0]], constant_values=bos_id)[:, -1],
        max_length=int(tf.reduce_max(tf.concat([task.max_length - prompt_length, [1]], 0))),
        eos_id=eos_id,
        choose=choose,
        pad_id=pad_id,
    )


class _Task(NamedTuple):
    """The step function of a call, with the tokens that its outputs start with and their maximum lengths."""

    step: Step
    state: Any
    prompt: tf.Tensor  # (B, t), the tokens that the state has read
    prefix: tf.Tensor | None  # (B, P), `prompt`, then the tokens to force
    prompt_lengths: tf.Tensor  # (B,), 0 for a model with a source
    max_length: tf.Tensor  # (B,), the prompt counted

    @classmethod
    def of(
        cls, model: Any, inputs: tf.Tensor, options: DecodingOptions, bos_id: int, pad_id: int, prefix: Any = None
    ) -> "_Task":
        lengths = tf.math.count_nonzero(inputs != pad_id, axis=1, dtype=tf.int32)  # (B,)
        if hasattr(model, "encode"):
            prompt_lengths, default_length = tf.zeros_like(lengths), lengths - 1 + EXTRA_LENGTH  # eos does not count
            prompt = inputs[:, :0]
            step, state = with_source(model, inputs, options.beams)
        else:
            if prefix is not None:
                raise ValueError(
                    "The prompts of a language model are its `inputs`: give no `prefix`. "
                    f"Received: prefix.shape={prefix.shape}"
                )
            prefix, prompt_lengths, default_length = inputs, lengths, EXTRA_LENGTH
            # The model reads all prompts at once up to the length of the shortest; further tokens are forced.
            prompt = inputs[:, : tf.reduce_min(tf.concat([lengths, tf.shape(inputs)[1:]], axis=0))]
            before = tf.pad(prompt, [[0, 0], [1, 0]], constant_values=bos_id)[:, :-1]
            step, state = language_model(model, before, options.beams)
        new_tokens = options.max_length
        if new_tokens is None:
            new_tokens = tf.maximum(default_length, options.min_length)
        max_length = prompt_lengths + new_tokens
        if learned_positions(model) is not None:
            _check_positions(learned_positions(model), options, prompt_lengths)
            max_length = tf.minimum(max_length, learned_positions(model))
        return cls(step, state, prompt, prefix, prompt_lengths, max_length)


def _check_positions(positions: int, options: DecodingOptions, prompt_lengths: tf.Tensor) -> None:
    """Checks that a model has learned the positions that the options and prompts ask for."""
    prompt = concrete_integer(tf.reduce_max(tf.concat([prompt_lengths, [0]], 0))) or 0
    if prompt + max(options.max_length or 0, options.min_length, 1) > positions:
        raise ValueError(
            "The model has not learned the positions of so long an output, its prompt included: give a smaller "
            "`max_length`, shorter prompts, or a model with more positions. "
            f"Received: max_length={options.max_length}, min_length={options.min_length}, prompt of {prompt} tokens, "
            f"model.config.max_length={positions}"
        )


def _group(x: tf.Tensor, copies: int) -> tf.Tensor:
    """Reshapes (B·n, 1, …) to (B, n, …)."""
    return tf.reshape(x, tf.concat([[tf.shape(x)[0] // copies, copies], tf.shape(x)[2:]], axis=0))


def _logits_processor(
    options: DecodingOptions, prompt_lengths: tf.Tensor, eos_id: int, last: LogitsProcessor | None
) -> LogitsProcessor | None:
    """Returns the `logits_processor` of `beam_search`, the caller's `last`, or None where all tokens are allowed."""
    processors = []
    if options.min_length > 1:

        def minimum_length(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
            rows = tf.shape(ids)[0] // tf.maximum(tf.size(sentences), 1)  # of a sentence
            min_length = tf.repeat(tf.gather(prompt_lengths, sentences) + options.min_length, rows)  # (B·K,)
            return forbid_end(logits, tf.shape(ids)[1], min_length, eos_id)

        processors.append(minimum_length)
    if options.no_repeat_ngram:

        def no_repeats(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
            return forbid_repeats(logits, ids, options.no_repeat_ngram, eos_id)

        processors.append(no_repeats)
    if last is not None:
        processors.append(last)
    if not processors:
        return None

    def process(logits: tf.Tensor, ids: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
        for processor in processors:
            logits = processor(logits, ids, sentences)
        return logits

    return process


def _sampler(options: DecodingOptions) -> Callable:
    """Returns the `sampler` of `beam_search`."""
    warpers = [partial(scale_by_temperature, temperature=options.temperature)]
    warpers += [partial(keep_top_k, k=options.top_k)] if options.top_k else []
    warpers += [partial(keep_top_p, p=options.top_p)]
    warpers += [partial(keep_min_p, p=options.min_p)]

    def sampler(logits: tf.Tensor, t: tf.Tensor, sentences: tf.Tensor) -> tf.Tensor:
        for warper in warpers:
            logits = warper(logits)
        return sample(logits, [options.seed, 0], t, sentences)[0]

    return sampler
