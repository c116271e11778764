"""What a call asks for: the step of its model, the tokens that outputs start with, their maximum lengths, the options.

Shapes: B inputs, S source length, P prompt length, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from keras_attention.decoding.model_steps import language_model, learned_positions, with_source
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.sampling import greedy, sample, sample_at
from keras_attention.decoding.tensors import rows_of_each, take_rows
from keras_attention.layers.arguments import concrete_integer

# From the logits of the next token, the tokens before and the indices of the sentences to the logits.
LogitsProcessor = Callable[[Any, Any, Any], Any]

# The paper's limit of how many tokens longer than its input an output is.
EXTRA_LENGTH = 50


class SpecialIds(NamedTuple):
    """The ids of the tokens before the first and at the end, and of padding."""

    bos: int
    eos: int
    pad: int


class Task(NamedTuple):
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
        special: SpecialIds,
        prefix: Any = None,
        lengths: Any = None,
        capacity: int | None = None,
    ) -> "Task":
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
                check_positions(positions, options, concrete_integer(ops.max(prompt_lengths, initial=0)) or 0)
            max_length = ops.minimum(max_length, positions)
        if capacity is not None:
            max_length = ops.where(lengths < 0, 1, max_length)  # padding ends at its first token
        return cls(step, state, prompt, shortest, prefix, prompt_lengths, max_length)


def search(
    model: Any,
    inputs: Any,
    prefix: Any,
    lengths: Any = None,
    uniforms: Any = None,
    *,
    options: DecodingOptions,
    special: SpecialIds,
    logits_processor: LogitsProcessor | None,
    capacity: int | None = None,
) -> Hypotheses:
    """Searches from checked inputs."""
    task = Task.of(model, inputs, options, special, prefix, lengths, capacity)
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
        logits_processor=processor_of(options, task.prompt_lengths, special.eos, logits_processor),
        sampler=sampler_of(options, uniforms) if options.sample else None,
        prompt_length=task.prompt_length,
        capacity=capacity,
    )


def choose_tokens(
    task: Task,
    process: LogitsProcessor | None,
    sampler: Callable | None,
    special: SpecialIds,
    logits: Any,
    written: Any,
    position: Any,
) -> tuple[Any, ...]:
    """Returns the next tokens of a stream (B,), and their log probabilities under the processed logits."""
    sentences = ops.arange(ops.shape(logits)[0])
    processed = logits if process is None else process(logits, written, sentences)
    if task.prefix is not None:
        processed = force_prefix(processed, position, task.prefix, special.pad, logits)
    ids, log_probs = greedy(processed)
    ids = ids if sampler is None else sampler(processed, position, sentences)
    return ops.where(position + 1 >= task.max_length, special.eos, ids), log_probs


def check_positions(positions: int, options: DecodingOptions, prompt: int) -> None:
    """Checks that a model has learned the positions that the options and prompts of a length ask for."""
    if prompt + max(options.max_length or 0, options.min_length, 1) > positions:
        raise ValueError(
            "The model has not learned the positions of so long an output, its prompt included: give a smaller "
            "`max_length`, shorter prompts, or a model with more positions. "
            f"Received: max_length={options.max_length}, min_length={options.min_length}, prompt of {prompt} tokens, "
            f"model.config.max_length={positions}"
        )


def processor_of(
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


def sampler_of(options: DecodingOptions, uniforms: Any = None) -> Callable | None:
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
