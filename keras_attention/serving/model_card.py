"""The model card of an export."""

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from keras_attention import __version__
from keras_attention.extras import DISTRIBUTION
from keras_attention.serving.graph_translator import GraphTranslator
from keras_attention.serving.inspection import inspected_lengths
from keras_attention.serving.packed_transformer import PackedTransformer, is_packed

RUNTIME = "TensorFlow 2.21 for x86-64, built with oneDNN"
PACKAGES = ("keras", "tensorflow", "tensorflow-text", "sentencepiece", "numpy")


def model_card(
    translator: GraphTranslator, name: str, more: Mapping[str, Any] | None = None, inspect: bool = False
) -> dict[str, Any]:
    """Describes a translator, except for its version; `more` has entries that only the caller knows, such as BLEU."""
    card = {
        "name": name,
        "version": None,  # known when the folder gets its number
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": None,
        "bleu": None,
        "sizes": _sizes(translator),
        "decoding": {
            **dataclasses.asdict(translator.options),
            "max_source_length": translator.max_source_length,
            "max_target_length": translator.max_target_length,
        },
        **({"inspect": inspected_lengths(translator)} if inspect else {}),
        **(_packed_weights(translator.model) if is_packed(translator) else {}),
        **({} if translator.shortlist is None else {"shortlist": translator.shortlist.size}),
        "packages": {DISTRIBUTION: __version__, **{package: _version(package) for package in PACKAGES}},
    }
    more = dict(more or {})
    taken = sorted(key for key in more if card.get(key) is not None or key == "version")
    if taken:
        raise ValueError(
            f"`card` adds to the entries that the export fills itself; leave these out. Received: card with {taken}"
        )
    try:
        json.dumps(more, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`card` must be serializable as JSON: {error}. Received: card={more!r:.200}") from error
    return card | more


def _sizes(translator: GraphTranslator) -> dict[str, Any]:
    """Returns the numbers of parameters and pieces, and the model's config."""
    config = getattr(translator.model, "config", None)
    return {
        "parameters": sum(math.prod(weight.shape) for weight in getattr(_trained(translator), "weights", ())),
        "vocabulary": translator.tokenizer.vocabulary_size,
        **({"transformer": config.to_dict()} if hasattr(config, "to_dict") else {}),
    }


def _packed_weights(model: PackedTransformer) -> dict[str, Any]:
    kept = {"kept_bfloat16": model.kept_bfloat16} if model.weights_form == "int8" else {}
    return {"runtime": RUNTIME, "weights": model.weights_form, **kept}


def _trained(translator: GraphTranslator) -> Any:
    return translator.model.trained() if is_packed(translator) else translator.model


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
