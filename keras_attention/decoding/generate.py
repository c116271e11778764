"""Generation from a model and its inputs, as hypotheses or as a stream of tokens.

Shapes: B inputs, S source length, P prompt length, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.decoding.beam_search import Step, beam_search
from keras_attention.decoding.fixed_search import number_written
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
from keras_attention.decoding.model_steps import (
    cached_step,
    check_ids,
    known_ids,
    language_model,
    learned_positions,
    with_source,
)
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.programs import compiled, pad_to_few_shapes
from keras_attention.decoding.sampling import greedy, sample, sample_at, uniform_numbers
from keras_attention.decoding.streaming import Streamed, compiled_step, stream_tokens
from keras_attention.decoding.tensors import is_tensorflow, rows_of_each, take_rows
from keras_attention.layers.arguments import concrete_integer

# From the logits of the next token, the tokens before and the indices of the sentences to the logits.
LogitsProcessor = Callable[[Any, Any, Any], Any]

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
    """Generates the outputs of a model for its inputs: in a `tf.function` as one graph, on JAX as a compiled program.

    JAX pads the inputs to powers of two, so that it compiles few programs, one for each padded shape; call this outside
    of `jax.jit`.

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
            follows the constraints of the options and precedes those of sampling. On JAX, the tokens are at the end of
            (R, L), after -1's, padding counts among the sentences, and each call compiles its own program.
        bos_id: Token before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that pads shorter rows.

    Returns:
        `Hypotheses`, best first, or in the order of sampling, padded to the longest or further. The ids of a language
        model start with the prompt. An output has at most `options.max_length` tokens; by default 50 more than the
        input, or `options.min_length`, and not more than a model with learned positions has positions.

    Raises:
        ValueError: Inputs or a prefix of another rank, a prefix for a language model, or more tokens than a model with
            learned positions has positions.
        TypeError: Inputs that are not integers.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=20)
        >>> hypotheses = generate(model, [[5, 6, 3], [7, 3, 0]], DecodingOptions(beam_size=2, max_length=4))
        >>> tuple(hypotheses.ids.shape[:2]), int(keras.ops.max(hypotheses.lengths)) <= 4
        ((2, 1), True)

    Source: Vaswani et al. 2017, section 6.1.
    """
    options = options or DecodingOptions()
    inputs = check_ids(inputs, "inputs")
    prefix = None if prefix is None else check_ids(prefix, "prefix")
    copies = options.num_return if options.sample else 1
    if copies > 1:  # each sample is a sentence of its own
        inputs = ops.repeat(inputs, copies, axis=0)
        prefix = None if prefix is None else ops.repeat(prefix, copies, axis=0)
    special = _SpecialIds(bos_id, eos_id, pad_id)
    if is_tensorflow():
        hypotheses = _search(model, inputs, prefix, options=options, special=special, logits_processor=logits_processor)
    else:
        batch = _FixedBatch.of(model, inputs, options, special, prefix)
        static = {"options": batch.options, "special": special, "capacity": batch.capacity}
        hypotheses = compiled(_search, model, logits_processor=logits_processor, **static)(*batch.arrays)
        hypotheses = _cut(hypotheses, len(inputs))
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
    special = _SpecialIds(bos_id, eos_id, pad_id)
    if not is_tensorflow():
        return _stream_fixed(model, check_ids(inputs, "inputs"), options, special, logits_processor)
    task = _Task.of(model, check_ids(inputs, "inputs"), options, special)
    process = _logits_processor(options, task.prompt_lengths, eos_id, logits_processor)
    prompt_length = ops.shape(task.prompt)[1]

    def choose(logits: Any, written: Any) -> tuple[Any, Any]:
        written = ops.concatenate([task.prompt, written], axis=1)
        return _choose(task, process, _sampler(options), special, logits, written, ops.shape(written)[1])

    return stream_tokens(
        compiled_step(task.step, task.state),
        task.state,
        ops.pad(task.prompt, [(0, 0), (1, 0)], constant_values=bos_id)[:, -1],
        max_length=max(int(ops.max(task.max_length, initial=0)) - prompt_length, 1),
        eos_id=eos_id,
        choose=choose,
        pad_id=pad_id,
    )


class _SpecialIds(NamedTuple):
    """The ids of the tokens before the first and at the end, and of padding."""

    bos: int
    eos: int
    pad: int


class _Task(NamedTuple):
    """The step function of a call, with the tokens that its outputs start with and their maximum lengths."""

    step: Step
    state: Any
    prompt: Any  # (B, t), the tokens that the state has read; with fixed shapes, then padding
    prompt_length: Any  # t, None without fixed shapes
    prefix: Any  # (B, P), `prompt`, then the tokens to force; or None
    prompt_lengths: Any  # (B,), 0 for a model with a source
    max_length: Any  # (B,), the prompt counted

    @classmethod
    def of(
        cls,
        model: Any,
        inputs: Any,
        options: DecodingOptions,
        special: _SpecialIds,
        prefix: Any = None,
        lengths: Any = None,
        capacity: int | None = None,
    ) -> "_Task":
        """Returns the task of inputs (B, S); `lengths` (B,), -1 for rows of padding, come with a `capacity`."""
        if lengths is None:
            lengths = ops.sum(ops.cast(ops.not_equal(inputs, special.pad), "int32"), axis=1)  # (B,)
        if hasattr(model, "encode"):
            prompt_lengths, default_length = ops.zeros_like(lengths), lengths - 1 + EXTRA_LENGTH  # eos does not count
            prompt, shortest = inputs[:, :0], None
            step, state = with_source(model, inputs, options.beams, capacity)
        else:
            if prefix is not None:
                raise ValueError(
                    "The prompts of a language model are its `inputs`: give no `prefix`. "
                    f"Received: prefix.shape={tuple(prefix.shape)}"
                )
            prefix, default_length = inputs, EXTRA_LENGTH
            # The model reads all prompts at once up to the length of the shortest; further tokens are forced.
            width = ops.shape(inputs)[1]
            if capacity is None:
                prompt, shortest = inputs[:, : ops.min(lengths, initial=width)], None
            else:
                shortest = ops.min(ops.where(lengths < 0, width, lengths), initial=width)
                prompt = ops.where(ops.arange(width) < shortest, inputs, special.pad)
            before = ops.pad(prompt, [(0, 0), (1, 0)], constant_values=special.bos)[:, :-1]
            step, state = language_model(model, before, options.beams, capacity, shortest)
            prompt_lengths = ops.maximum(lengths, 0)
        new_tokens = options.max_length
        if new_tokens is None:
            new_tokens = ops.maximum(default_length, options.min_length)
        max_length = prompt_lengths + new_tokens
        positions = learned_positions(model)
        if positions is not None:
            if capacity is None:
                _check_positions(positions, options, concrete_integer(ops.max(prompt_lengths, initial=0)) or 0)
            max_length = ops.minimum(max_length, positions)
        if capacity is not None:
            max_length = ops.where(lengths < 0, 1, max_length)  # padding ends at its first token
        return cls(step, state, prompt, shortest, prefix, prompt_lengths, max_length)


class _FixedBatch(NamedTuple):
    """Inputs as a program with fixed shapes takes them."""

    arrays: tuple[Any, ...]  # inputs (B, S), prefix (B, P) or None, lengths (B,), uniform numbers (B, L) or None
    options: DecodingOptions  # without what the arrays contain
    capacity: int  # tokens for which an output has room

    @classmethod
    def of(
        cls, model: Any, inputs: Any, options: DecodingOptions, special: _SpecialIds, prefix: Any = None
    ) -> "_FixedBatch":
        inputs = known_ids(inputs, "inputs", model)
        prefix = None if prefix is None else pad_to_few_shapes(known_ids(prefix, "prefix", model), special.pad)
        positions, has_source = learned_positions(model), hasattr(model, "encode")
        lengths = np.count_nonzero(inputs != special.pad, axis=1)
        # The padding of a source is 0 for every model.
        padded = pad_to_few_shapes(inputs, 0 if has_source else special.pad, positions)
        padded_lengths = np.full(len(padded), -1, "int32")
        padded_lengths[: len(inputs)] = lengths
        prompt = 0 if has_source else padded.shape[1]
        new_tokens = padded.shape[1] - 1 + EXTRA_LENGTH if has_source else EXTRA_LENGTH
        capacity = prompt + (options.max_length or max(new_tokens, options.min_length))
        if positions is not None:
            _check_positions(positions, options, 0 if has_source else int(lengths.max(initial=0)))
            capacity = min(capacity, positions)
        uniforms = None
        if options.sample:
            uniforms = np.zeros((len(padded), capacity), "float32")
            uniforms[: len(inputs)] = uniform_numbers([options.seed, 0], range(len(inputs)), 0, capacity)
            options = replace(options, seed=0)
        return cls((padded, prefix, padded_lengths, uniforms), options, capacity)


def _search(
    model: Any,
    inputs: Any,
    prefix: Any,
    lengths: Any = None,
    uniforms: Any = None,
    *,
    options: DecodingOptions,
    special: _SpecialIds,
    logits_processor: LogitsProcessor | None,
    capacity: int | None = None,
) -> Hypotheses:
    """Searches from checked inputs."""
    task = _Task.of(model, inputs, options, special, prefix, lengths, capacity)
    return beam_search(
        task.step,
        task.state,
        batch_size=ops.shape(inputs)[0],
        beam_size=options.beams,
        max_length=task.max_length,
        length_penalty=options.length_penalty,
        penalize=average_length if options.length_normalization == "average" else length_penalty,
        num_return=1 if options.sample else options.num_return,
        bos_id=special.bos,
        eos_id=special.eos,
        pad_id=special.pad,
        prompt=task.prompt,
        prefix=task.prefix,
        logits_processor=_logits_processor(options, task.prompt_lengths, special.eos, logits_processor),
        sampler=_sampler(options, uniforms) if options.sample else None,
        prompt_length=task.prompt_length,
        capacity=capacity,
    )


def _cut(hypotheses: Hypotheses, number: int) -> Hypotheses:
    """Returns the hypotheses of a `number` of inputs, as long as the longest of them."""
    longest = int(ops.max(hypotheses.lengths[:number], initial=0))
    ids, scores, lengths = (x[:number] for x in hypotheses)
    return Hypotheses(ids[:, :, :longest], scores, lengths)


def _choose(
    task: _Task,
    process: LogitsProcessor | None,
    sampler: Callable | None,
    special: _SpecialIds,
    logits: Any,
    written: Any,
    position: Any,
) -> tuple[Any, Any]:
    """Returns the next tokens of a stream (B,), and their log probabilities under the processed logits."""
    sentences = ops.arange(ops.shape(logits)[0])
    processed = logits if process is None else process(logits, written, sentences)
    if task.prefix is not None:
        processed = force_prefix(processed, position, task.prefix, special.pad, logits)
    ids, log_probs = greedy(processed)
    ids = ids if sampler is None else sampler(processed, position, sentences)
    return ops.where(position + 1 >= task.max_length, special.eos, ids), log_probs


def _check_positions(positions: int, options: DecodingOptions, prompt: int) -> None:
    """Checks that a model has learned the positions that the options and prompts of a length ask for."""
    if prompt + max(options.max_length or 0, options.min_length, 1) > positions:
        raise ValueError(
            "The model has not learned the positions of so long an output, its prompt included: give a smaller "
            "`max_length`, shorter prompts, or a model with more positions. "
            f"Received: max_length={options.max_length}, min_length={options.min_length}, prompt of {prompt} tokens, "
            f"model.config.max_length={positions}"
        )


def _group(x: Any, copies: int) -> Any:
    """Reshapes (B·n, 1, …) to (B, n, …)."""
    return ops.reshape(x, (ops.shape(x)[0] // copies, copies, *ops.shape(x)[2:]))


def _logits_processor(
    options: DecodingOptions, prompt_lengths: Any, eos_id: int, last: LogitsProcessor | None
) -> LogitsProcessor | None:
    """Returns the `logits_processor` of `beam_search`, the caller's `last`, or None where all tokens are allowed."""
    processors = []
    if options.min_length > 1:

        def minimum_length(logits: Any, ids: Any, sentences: Any) -> Any:
            rows = rows_of_each(ops.shape(ids)[0], ops.shape(sentences)[0])
            min_length = ops.repeat(take_rows(prompt_lengths, sentences) + options.min_length, rows, axis=0)  # (B·K,)
            return forbid_end(logits, number_written(ids), min_length, eos_id)

        processors.append(minimum_length)
    if options.no_repeat_ngram:

        def no_repeats(logits: Any, ids: Any, sentences: Any) -> Any:
            return forbid_repeats(logits, ids, options.no_repeat_ngram, eos_id)

        processors.append(no_repeats)
    if last is not None:
        processors.append(last)
    if not processors:
        return None

    def process(logits: Any, ids: Any, sentences: Any) -> Any:
        for processor in processors:
            logits = processor(logits, ids, sentences)
        return logits

    return process


def _sampler(options: DecodingOptions, uniforms: Any = None) -> Callable | None:
    """Returns the `sampler` of `beam_search`, with random numbers (B, L) of each step, or TensorFlow's own."""
    if not options.sample:
        return None
    warpers = [partial(scale_by_temperature, temperature=options.temperature)]
    warpers += [partial(keep_top_k, k=options.top_k)] if options.top_k else []
    warpers += [partial(keep_top_p, p=options.top_p)]
    warpers += [partial(keep_min_p, p=options.min_p)]

    def sampler(logits: Any, t: Any, sentences: Any) -> Any:
        for warper in warpers:
            logits = warper(logits)
        if uniforms is None:
            return sample(logits, [options.seed, 0], t, sentences)[0]
        return sample_at(logits, ops.take(uniforms, t, axis=1))[0]

    return sampler


def _stream_fixed(
    model: Any, inputs: Any, options: DecodingOptions, special: _SpecialIds, last: LogitsProcessor | None
) -> Iterator[Streamed]:
    """Computes `stream` with programs of fixed shapes."""
    batch = _FixedBatch.of(model, inputs, options, special)
    static = {"options": batch.options, "special": special, "capacity": batch.capacity}
    state, last_ids, arrays = compiled(_start, model, **static)(*batch.arrays)
    prompt, length, _, _, max_length = keras.tree.map_structure(_as_array, arrays)
    prompt = prompt[:, : 0 if length is None else length]

    choose_from = compiled(_choose_fixed, model, options=batch.options, special=special, logits_processor=last)

    def choose(logits: Any, written: Any) -> tuple[Any, Any]:
        written = np.concatenate([prompt, ops.convert_to_numpy(written)], axis=1)
        position = written.shape[1]
        if keras.backend.backend() == "jax":  # one shape for all steps
            written = np.pad(written, [(0, 0), (batch.capacity - position, 0)], constant_values=-1)
        each = logits, written, np.int32(position), arrays, batch.arrays[3]
        return choose_from(*each)

    tokens = stream_tokens(
        compiled(_step, model),
        state,
        last_ids,
        max_length=max(int(max_length.max(initial=0)) - prompt.shape[1], 1),
        eos_id=special.eos,
        choose=choose,
        pad_id=special.pad,
    )
    number = len(inputs)
    return (Streamed(*(x[:number] for x in token)) for token in tokens)


def _start(
    model: Any,
    inputs: Any,
    prefix: Any,
    lengths: Any,
    uniforms: Any,
    *,
    options: DecodingOptions,
    special: _SpecialIds,
    capacity: int,
) -> tuple[Any, ...]:
    """Returns the state of a stream before its first token, the last token before it, and the arrays of the task."""
    task = _Task.of(model, inputs, options, special, prefix, lengths, capacity)
    last_ids = ops.pad(task.prompt, [(0, 0), (1, 0)], constant_values=special.bos)  # (B, 1 + P)
    last_ids = ops.take(last_ids, 0 if task.prompt_length is None else task.prompt_length, axis=1)  # (B,)
    return task.state, last_ids, tuple(task[2:])


def _step(model: Any, ids: Any, state: Any) -> tuple[Any, Any]:
    """Computes a step of a stream."""
    return cached_step(model)(ids, state)


def _choose_fixed(
    model: Any,
    logits: Any,
    written: Any,
    position: Any,
    arrays: Any,
    uniforms: Any,
    *,
    options: DecodingOptions,
    special: _SpecialIds,
    logits_processor: LogitsProcessor | None,
) -> tuple[Any, Any]:
    """Chooses the tokens of a stream, from the arrays of its task."""
    task = _Task(None, None, *arrays)
    process = _logits_processor(options, task.prompt_lengths, special.eos, logits_processor)
    return _choose(task, process, _sampler(options, uniforms), special, logits, written, position)


def _as_array(x: Any) -> np.ndarray | None:
    """Returns a tensor as an array; None stays None."""
    return None if x is None else ops.convert_to_numpy(x)
