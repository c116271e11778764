"""Generation from a model and its inputs, as hypotheses or as a stream of tokens.

Shapes: B inputs, S source length, P prompt length, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Iterator
from typing import Any

from keras import ops

from keras_attention.decoding.fixed_generation import generate_fixed, stream_fixed
from keras_attention.decoding.hypotheses import Hypotheses
from keras_attention.decoding.model_steps import check_ids
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.streaming import Streamed, compiled_step, stream_tokens
from keras_attention.decoding.task import (
    LogitsProcessor,
    SpecialIds,
    Task,
    choose_tokens,
    processor_of,
    sampler_of,
    search,
)
from keras_attention.decoding.tensors import is_tensorflow


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
    special = SpecialIds(bos_id, eos_id, pad_id)
    if is_tensorflow():
        hypotheses = search(model, inputs, prefix, options=options, special=special, logits_processor=logits_processor)
    else:
        hypotheses = generate_fixed(model, inputs, prefix, options, special, logits_processor)
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
    special = SpecialIds(bos_id, eos_id, pad_id)
    if not is_tensorflow():
        return stream_fixed(model, check_ids(inputs, "inputs"), options, special, logits_processor)
    task = Task.of(model, check_ids(inputs, "inputs"), options, special)
    process = processor_of(options, task.prompt_lengths, eos_id, logits_processor)
    prompt_length = ops.shape(task.prompt)[1]

    def choose(logits: Any, written: Any) -> tuple[Any, Any]:
        written = ops.concatenate([task.prompt, written], axis=1)
        return choose_tokens(task, process, sampler_of(options), special, logits, written, ops.shape(written)[1])

    return stream_tokens(
        compiled_step(task.step, task.state),
        task.state,
        ops.pad(task.prompt, [(0, 0), (1, 0)], constant_values=bos_id)[:, -1],
        max_length=max(int(ops.max(task.max_length, initial=0)) - prompt_length, 1),
        eos_id=eos_id,
        choose=choose,
        pad_id=pad_id,
    )


def _group(x: Any, copies: int) -> Any:
    """Reshapes (B·n, 1, …) to (B, n, …)."""
    return ops.reshape(x, (ops.shape(x)[0] // copies, copies, *ops.shape(x)[2:]))
