"""KerasHub's layers with our weights, decoded by its own `generate`.

Its task for pairs of sequences is that of BART. `generate`, the samplers and the seeding of the caches are KerasHub's;
only the order of the layers is written here, because BART's model differs (learned positions, more normalizations).
"""

from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from benchmarks.peers.decoding import (
    BEGIN,
    END,
    EXTRA_LENGTH,
    MODEL,
    PAD,
    TOKENIZER,
    DecodingTask,
    until_end,
    use_threads,
)
from benchmarks.tools.workers import Work, lines_of, serve
from keras_attention import PositionalEncoding, Transformer

BATCH = 32  # sentences of a file at a time
# What the parts of a layer are called here and in ours.
PARTS = {
    "self_attention_layer": "self_attention",
    "self_attention_layer_norm": "self_attention_norm",
    "cross_attention_layer_norm": "cross_attention_norm",
    "feedforward_layer_norm": "feed_forward_norm",
}
DENSE = {"feedforward_intermediate_dense": "intermediate_dense", "feedforward_output_dense": "output_dense"}
PROJECTIONS = {"query": "query_dense", "key": "key_dense", "value": "value_dense", "attention_output": "output_dense"}


class Pairs(keras_hub.models.BartSeq2SeqLM):
    """BART's task over plain layers."""

    def call_encoder(self, token_ids: Any, padding_mask: Any) -> Any:
        """Runs the encoder."""
        x = self.backbone.positions(self.backbone.token_embedding(token_ids))
        for layer in self.backbone.encoder_layers:
            x = layer(x, padding_mask=padding_mask)
        return x

    def call_decoder_with_cache(
        self,
        encoder_hidden_states: Any,
        encoder_padding_mask: Any,
        decoder_token_ids: Any,
        self_attention_cache: Any = None,
        self_attention_cache_update_index: Any = None,
        cross_attention_cache: Any = None,
        cross_attention_cache_update_index: Any = None,
    ) -> tuple[Any, ...]:
        """Runs the decoder on tokens that follow those in the cache."""
        index = self_attention_cache_update_index
        x = self.backbone.positions(self.backbone.token_embedding(decoder_token_ids), start_index=index)
        self_caches, cross_caches = [], []
        for place, layer in enumerate(self.backbone.decoder_layers):
            x, self_cache, cross_cache = layer(
                x,
                encoder_hidden_states,
                encoder_padding_mask=encoder_padding_mask,
                self_attention_cache=self_attention_cache[:, place],
                self_attention_cache_update_index=index,
                cross_attention_cache=cross_attention_cache[:, place],
                cross_attention_cache_update_index=cross_attention_cache_update_index,
            )
            self_caches.append(self_cache)
            cross_caches.append(cross_cache)
        self_attention_cache = ops.stack(self_caches, axis=1)
        if cross_attention_cache_update_index is not None:
            cross_attention_cache = ops.stack(cross_caches, axis=1)
        logits = self.backbone.token_embedding(x, reverse=True)
        return logits, x, self_attention_cache, cross_attention_cache


def build(ours: Transformer) -> keras.Model:
    """What the task is made of, with the weights of ours."""
    config = ours.config
    if config.normalize_first:
        raise ValueError("This side has no normalisation after the last layer. Received: normalize_first=True")
    sizes = {name: getattr(config, name) for name in ("intermediate_dim", "num_heads", "activation")}
    sizes["layer_norm_epsilon"] = config.layer_norm_epsilon
    names = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    embedding = keras_hub.layers.ReversibleEmbedding(config.vocabulary_size, config.hidden_dim)
    positions = PositionalEncoding()
    encoder = [keras_hub.layers.TransformerEncoder(**sizes) for _ in range(config.num_layers)]
    decoder = [keras_hub.layers.TransformerDecoder(**sizes) for _ in range(config.num_layers)]
    memory = positions(embedding(inputs["encoder_token_ids"]))
    for layer in encoder:
        memory = layer(memory, padding_mask=inputs["encoder_padding_mask"])
    x = positions(embedding(inputs["decoder_token_ids"]))
    for layer in decoder:
        x = layer(x, memory, encoder_padding_mask=inputs["encoder_padding_mask"])
    backbone = keras.Model(inputs, {"decoder_sequence_output": x})
    backbone.token_embedding, backbone.positions = embedding, positions
    backbone.encoder_layers, backbone.decoder_layers = encoder, decoder
    backbone.num_layers, backbone.num_heads, backbone.hidden_dim = (
        config.num_layers,
        config.num_heads,
        config.hidden_dim,
    )
    embedding.embeddings.assign(ours.get_layer("embedding").embeddings)
    for stack, layers in (("encoder", encoder), ("decoder", decoder)):
        for mine, layer in zip(ours.get_layer(stack).layers, layers, strict=True):
            set_weights(layer, mine)
    return backbone


def set_weights(layer: keras.layers.Layer, ours: keras.layers.Layer) -> None:
    """Gives a layer the weights of one of ours; biases of attention that ours lacks are zero."""
    for weight in layer.weights:
        part, *projection, name = weight.path.split("/")[1:]
        if part in DENSE:
            owner = getattr(ours.feed_forward, DENSE[part])
        else:
            owner = getattr(ours, PARTS.get(part, part))
            owner = getattr(owner, PROJECTIONS[projection[0]]) if projection else owner
        value = getattr(owner, name)
        weight.assign(ops.zeros(weight.shape) if value is None else value)


class KerasHub:
    """The side; `options["jit_compile"]` as of Keras' `compile`."""

    def __init__(self, task: DecodingTask):
        use_threads(task.threads)
        self.task = task
        self.backbone = build(keras.models.load_model(task.path(MODEL), compile=False))
        self.models = {}  # by beams: what a task has compiled is lost with another sampler

    def search(self, sentences: int, beam: int, length: int) -> Work:
        """Exactly `length` tokens for each source."""
        return Work(
            self._generation(self.task.sources(sentences), beam, length, stop=None),
            lambda ids: ids[:, 1:].tolist(),
        )

    def translate(self, file: str, beam: int, every: int, length: int) -> Work:
        """Some of a file's lines, one of `every`, at most `length` tokens each; its own score has no penalty."""
        from keras_attention.text import SubwordTokenizer

        tokenizer = SubwordTokenizer.load(self.task.path(TOKENIZER))
        lines = sorted(lines_of(file), key=len, reverse=True)[::every]
        batches = [lines[start : start + BATCH] for start in range(0, len(lines), BATCH)]

        def run() -> list[str]:
            texts = []
            for batch in batches:
                rows = [[*row, END] for row in tokenizer.encode(batch)]
                source = np.full((len(rows), max(map(len, rows))), PAD, "int32")
                for place, row in enumerate(rows):
                    source[place, : len(row)] = row
                limit = min(length, source.shape[1] - 1 + EXTRA_LENGTH)
                found = self._generation(source, beam, limit, stop=[END])()
                texts += tokenizer.decode(until_end(found[:, 1:].tolist()))
            return texts

        return Work(run, lambda texts: {"lines": lines, "texts": texts})

    def _generation(self, source: np.ndarray, beam: int, length: int, stop: list[int] | None) -> Callable:
        """Gives ids (B, 1 + length), from the begin on."""
        batch = len(source)
        target = np.full((batch, 1 + length), PAD, "int32")
        target[:, 0] = BEGIN
        inputs = {
            "encoder_token_ids": source,
            "encoder_padding_mask": (source != PAD).astype("int32"),
            "decoder_token_ids": target,
            "decoder_padding_mask": (target == BEGIN).astype("int32"),
        }

        if beam not in self.models:
            samplers = keras_hub.samplers
            sampler = samplers.GreedySampler() if beam == 1 else samplers.BeamSampler(num_beams=beam)
            self.models[beam] = Pairs(self.backbone)
            self.models[beam].compile(sampler=sampler, jit_compile=self.task.options["jit_compile"])
        return lambda: self.models[beam].generate(inputs, stop_token_ids=stop)["decoder_token_ids"]


if __name__ == "__main__":
    serve(lambda task: KerasHub(DecodingTask(**task)))
