"""Packed weights of 8 bits whose cost in BLEU is limited: some matrices are kept in bfloat16."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_attention.pipeline.evaluate import BleuLossError, compare_weights, validation_sample
from keras_attention.serving import Translator
from keras_attention.text import BOS_ID, PAD_ID

SENTENCES_AT_ONCE = 64


def limit_bleu_loss(
    run: str | Path, packed: Translator, trained: Translator, max_loss: float, report: Callable[[str], None] = print
) -> Translator:
    """Keeps matrices of packed int8 weights in bfloat16 until BLEU falls by no more than a limit.

    The BLEU is that of the run's validation sample. If 8 bits in all matrices cost more than the limit, the 1, 2, 4, …
    matrices that 8 bits change most are kept in bfloat16, until the loss is within the limit. The change of a matrix is
    the root mean square of the error of its outputs in 8 bits, relative to that of the outputs, on the sources and
    references of the sample.

    Args:
        run: Folder of the run.
        packed: Translator of a `serving.PackedTransformer` with int8 weights.
        trained: Translator with the trained weights.
        max_loss: BLEU that the lower precision may cost at most.
        report: Function that is called with each line of the comparison.

    Returns:
        `packed`, or a translator that keeps some matrices in bfloat16.

    Raises:
        FileNotFoundError: If a validation text no longer exists.
        ValueError: If the loss is above the limit with most matrices in bfloat16, too.

    Source: Pandey et al. 2023, "A Practical Mixed Precision Algorithm for Post-Training Quantization".
    """
    last = None
    for translator in _candidates(run, packed, trained, report):
        try:
            report(compare_weights(run, translator, trained, max_loss))
        except BleuLossError as error:
            report(error.comparison)
            last = error
        else:
            return translator
    raise last


def _candidates(
    run: str | Path, packed: Translator, trained: Translator, report: Callable[[str], None]
) -> Iterator[Translator]:
    """Yields translators with more and more matrices in bfloat16, and reports which."""
    from keras_attention.serving.packed_errors import int8_errors  # needs TensorFlow
    from keras_attention.serving.packed_transformer import PackedTransformer

    yield packed
    errors = int8_errors(packed.model.trained(), _batches(run, packed))
    worst = sorted(errors, key=errors.__getitem__, reverse=True)
    count = 1
    while count < len(worst):
        kept = worst[:count]
        names = ", ".join(f"{name} ({errors[name]:.1%})" for name in kept)
        report(f"{count} of {len(worst)} matrices kept in bfloat16, with their errors in 8 bits: {names}")
        yield packed.with_model(PackedTransformer(packed.model.trained(), "int8", kept))
        count *= 2


def _batches(run: str | Path, translator: Translator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the source ids and target ids of the validation sample, the targets after a begin of sentence."""
    sources, references = validation_sample(run)
    for first in range(0, len(sources), SENTENCES_AT_ONCE):
        rows = slice(first, first + SENTENCES_AT_ONCE)
        source_ids = translator.read(np.array([text.encode() for text in sources[rows]], object)).ids
        targets = [
            [BOS_ID, *ids][: translator.max_target_length] for ids in translator.tokenizer.encode(references[rows])
        ]
        length = max(map(len, targets))
        target_ids = [ids + [PAD_ID] * (length - len(ids)) for ids in targets]
        yield np.asarray(source_ids), np.array(target_ids, "int32")
