"""Text in, token batches out: subword tokenizers, parallel corpora, batching by tokens.

``import keras_attention.text`` loads neither sentencepiece nor tensorflow-text: both are imported when
a tokenizer first needs them.
"""

from keras_attention.text.batching import TokenBatches
from keras_attention.text.corpus import ParallelCorpus, read_lines
from keras_attention.text.packing import PackedBatches
from keras_attention.text.sentencepiece_model import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from keras_attention.text.tokenizer import SubwordTokenizer

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "UNK_ID",
    "PackedBatches",
    "ParallelCorpus",
    "SubwordTokenizer",
    "TokenBatches",
    "read_lines",
]
