"""Subword tokenizers, parallel corpora, and batches of token ids.

`import keras_attention.text` loads neither sentencepiece nor tensorflow-text: both are imported when a tokenizer first
needs them. TensorFlow is imported with the first name that uses it, so that reading lines does not load it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_attention.text.lines import read_lines

if TYPE_CHECKING:
    from keras_attention.text.batch_sequence import BatchSequence
    from keras_attention.text.batch_shard import BatchShard
    from keras_attention.text.batching import TokenBatches
    from keras_attention.text.corpus import ParallelCorpus
    from keras_attention.text.packing import PackedBatches
    from keras_attention.text.sentencepiece_model import BOS_ID, EOS_ID, PAD_ID, UNK_ID, recommended_vocabulary_size
    from keras_attention.text.shards import ShardedPairs
    from keras_attention.text.streamed_batches import StreamedBatches
    from keras_attention.text.tokenizer import SubwordTokenizer

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "UNK_ID",
    "BatchSequence",
    "BatchShard",
    "PackedBatches",
    "ParallelCorpus",
    "ShardedPairs",
    "StreamedBatches",
    "SubwordTokenizer",
    "TokenBatches",
    "read_lines",
    "recommended_vocabulary_size",
]

_FILES = {
    "BOS_ID": "sentencepiece_model",
    "EOS_ID": "sentencepiece_model",
    "PAD_ID": "sentencepiece_model",
    "UNK_ID": "sentencepiece_model",
    "BatchSequence": "batch_sequence",
    "BatchShard": "batch_shard",
    "PackedBatches": "packing",
    "ParallelCorpus": "corpus",
    "ShardedPairs": "shards",
    "StreamedBatches": "streamed_batches",
    "SubwordTokenizer": "tokenizer",
    "TokenBatches": "batching",
    "recommended_vocabulary_size": "sentencepiece_model",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
