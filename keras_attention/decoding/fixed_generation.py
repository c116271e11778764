"""Generation with programs of fixed shapes, on JAX and torch: see `programs.py`.

Shapes: B inputs, S source length, P prompt length, V vocabulary, L room for tokens.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.decoding.hypotheses import Hypotheses
from keras_attention.decoding.model_steps import cached_step, known_ids, learned_positions
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.programs import compiled, pad_to_few_shapes
from keras_attention.decoding.sampling import uniform_numbers
from keras_attention.decoding.streaming import Streamed, stream_tokens
from keras_attention.decoding.task import (
    EXTRA_LENGTH,
    LogitsProcessor,
    SpecialIds,
    Task,
    check_positions,
    choose_tokens,
    processor_of,
    sampler_of,
    search,
)


def generate_fixed(
    model: Any,
    inputs: Any,
    prefix: Any,
    options: DecodingOptions,
    special: SpecialIds,
    logits_processor: LogitsProcessor | None,
) -> Hypotheses:
    """Computes `generate` from checked ids."""
    batch = FixedBatch.of(model, inputs, options, special, prefix)
    static = {"options": batch.options, "special": special, "capacity": batch.capacity}
    hypotheses = compiled(search, model, logits_processor=logits_processor, **static)(*batch.arrays)
    longest = int(ops.max(hypotheses.lengths[: len(inputs)], initial=0))
    ids, scores, lengths = (x[: len(inputs)] for x in hypotheses)
    return Hypotheses(ids[:, :, :longest], scores, lengths)


def stream_fixed(
    model: Any, inputs: Any, options: DecodingOptions, special: SpecialIds, last: LogitsProcessor | None
) -> Iterator[Streamed]:
    """Computes `stream` with programs of fixed shapes."""
    if len(inputs) == 0:
        return iter(())
    batch = FixedBatch.of(model, inputs, options, special)
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


class FixedBatch(NamedTuple):
    """Inputs as a program with fixed shapes takes them."""

    arrays: tuple[Any, ...]  # inputs (B, S), prefix (B, P) or None, lengths (B,), uniform numbers (B, L) or None
    options: DecodingOptions  # without what the arrays contain
    capacity: int  # tokens for which an output has room

    @classmethod
    def of(
        cls, model: Any, inputs: Any, options: DecodingOptions, special: SpecialIds, prefix: Any = None
    ) -> "FixedBatch":
        inputs = known_ids(inputs, "inputs", model)
        prefix = None if prefix is None else pad_to_few_shapes(known_ids(prefix, "prefix", model), special.pad, model)
        positions, has_source = learned_positions(model), hasattr(model, "encode")
        lengths = np.count_nonzero(inputs != special.pad, axis=1)
        # The padding of a source is 0 for every model.
        padded = pad_to_few_shapes(inputs, 0 if has_source else special.pad, model)
        padded_lengths = np.full(len(padded), -1, "int32")
        padded_lengths[: len(inputs)] = lengths
        prompt = 0 if has_source else padded.shape[1]
        new_tokens = padded.shape[1] - 1 + EXTRA_LENGTH if has_source else EXTRA_LENGTH
        capacity = prompt + (options.max_length or max(new_tokens, options.min_length))
        if positions is not None:
            check_positions(positions, options, 0 if has_source else int(lengths.max(initial=0)))
            capacity = min(capacity, positions)
        uniforms = None
        if options.sample:
            uniforms = np.zeros((len(padded), capacity), "float32")
            uniforms[: len(inputs)] = uniform_numbers([options.seed, 0], range(len(inputs)), 0, capacity)
            options = replace(options, seed=0)
        return cls((padded, prefix, padded_lengths, uniforms), options, capacity)


def _start(
    model: Any,
    inputs: Any,
    prefix: Any,
    lengths: Any,
    uniforms: Any,
    *,
    options: DecodingOptions,
    special: SpecialIds,
    capacity: int,
) -> tuple[Any, ...]:
    """Returns the state of a stream before its first token, the last token before it, and the arrays of the task."""
    task = Task.of(model, inputs, options, special, prefix, lengths, capacity)
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
    special: SpecialIds,
    logits_processor: LogitsProcessor | None,
) -> tuple[Any, Any]:
    """Chooses the tokens of a stream, from the arrays of its task."""
    task = Task(None, None, *arrays)
    process = processor_of(options, task.prompt_lengths, special.eos, logits_processor)
    return choose_tokens(task, process, sampler_of(options, uniforms), special, logits, written, position)


def _as_array(x: Any) -> np.ndarray | None:
    """Returns a tensor as an array; None stays None."""
    return None if x is None else ops.convert_to_numpy(x)
