"""`torch.nn.Transformer` on a CPU, with the same batches as ours.

Departures from ours that its layers leave no choice about: biases in attention, and the dropout inside the feed-forward
network and on attention weights, which are set to none here, as in ours. Its norms after the last layers are left out.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.peers.side import LABEL_SMOOTHING, Clock, Measured, Task, main, measured
from benchmarks.tools.sentences import PAD, Sentences

EPSILON = 1e-6


class Translator(nn.Module):
    """Embedding, positions, `nn.Transformer`, and the embedding again for the logits."""

    def __init__(self, task: Task):
        super().__init__()
        width = task.hidden_dim
        self.embedding = nn.Embedding(task.vocabulary_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        sizes = (width, task.num_heads, task.intermediate_dim, task.dropout)
        options = {"layer_norm_eps": EPSILON, "batch_first": True}
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, **options), task.num_layers, enable_nested_tensor=False
        )
        decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*sizes, **options), task.num_layers)
        self.transformer = nn.Transformer(width, task.num_heads, custom_encoder=encoder, custom_decoder=decoder,
                                          batch_first=True)  # fmt: skip
        for layer in (*encoder.layers, *decoder.layers):
            layer.dropout.p = 0.0
            for attention in (layer.self_attn, getattr(layer, "multihead_attn", None)):
                if attention is not None:
                    attention.dropout = 0.0
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.dropout = nn.Dropout(task.dropout)
        self.register_buffer("positions", _positions(512, width), persistent=False)

    def forward(self, source: torch.Tensor, target: torch.Tensor, padded: bool = True) -> torch.Tensor:
        """Ids (B, S) and (B, T) to logits (B, T, V); without padding there is only the causal mask."""
        padding = source == PAD if padded else None  # (B, S), True = hidden, as torch has it
        future = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device) < 0
        x = self.transformer(
            self._embedded(source), self._embedded(target), tgt_mask=future, tgt_is_causal=True,
            src_key_padding_mask=padding, memory_key_padding_mask=padding,
        )  # fmt: skip
        return nn.functional.linear(x, self.embedding.weight)

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + self.positions[: ids.shape[1]])


def _positions(length: int, width: int) -> torch.Tensor:
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(length, width)


def run(task: Task) -> Measured:
    """Trains on the clock."""
    torch.manual_seed(1)
    sentences = Sentences.load(task.sentences)
    model = Translator(task).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: task.learning_rate(done + 1))
    clock = Clock(task)
    for index in sentences.batches[: task.warmup + task.steps]:
        source, target, labels = (torch.from_numpy(ids.astype("int64")) for ids in sentences.arrays(index))
        with torch.autocast("cpu", torch.bfloat16, enabled=task.dtype == "mixed_bfloat16"):
            logits = model(source, target)
        loss = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=PAD, label_smoothing=LABEL_SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        clock.step_ended()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return measured(task, sentences, clock, parameters, negative_log_likelihood(model, sentences))


@torch.no_grad()
def set_weights(model: Translator, weights: Iterable[np.ndarray]) -> None:
    """Gives the model the weights of ours, which keeps them in the order of the computation; other biases become 0."""
    values = (torch.from_numpy(np.asarray(value)) for value in weights)
    model.embedding.weight.copy_(next(values))
    transformer = model.transformer
    for layer in (*transformer.encoder.layers, *transformer.decoder.layers):
        attentions = [layer.self_attn, getattr(layer, "multihead_attn", None)]
        norms = [layer.norm1, layer.norm2, getattr(layer, "norm3", None)]
        for attention, norm in zip(filter(None, attentions), norms, strict=False):
            width = attention.embed_dim
            projections = [next(values).reshape(width, width).T for _ in range(3)]
            attention.in_proj_weight.copy_(torch.cat(projections))
            attention.out_proj.weight.copy_(next(values).reshape(width, width).T)
            attention.in_proj_bias.zero_()
            attention.out_proj.bias.zero_()
            _copy(norm, values)
        for linear in (layer.linear1, layer.linear2):
            linear.weight.copy_(next(values).T)
            linear.bias.copy_(next(values))
        _copy([norm for norm in norms if norm is not None][-1], values)


def _copy(norm: nn.LayerNorm, values: Iterator[torch.Tensor]) -> None:
    norm.weight.copy_(next(values))
    norm.bias.copy_(next(values))


@torch.no_grad()
def negative_log_likelihood(model: nn.Module, sentences: Sentences, count: int = 64) -> float:
    """Mean over the target tokens of the first sentences."""
    model.eval()
    ids = sentences.arrays(np.arange(min(count, len(sentences))))
    source, target, labels = (torch.from_numpy(array.astype("int64")) for array in ids)
    logits = model(source, target).float()
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD))


if __name__ == "__main__":
    main(run)
