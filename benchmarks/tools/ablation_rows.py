"""The rows of the ablations: what differs from the base model, and what the paper says of it."""

from dataclasses import dataclass, field
from typing import Any

ATTENTIONS = ("dot_product", "shared_projection", "no_projections", "additive")


@dataclass(frozen=True)
class Parts:
    """The parts of a model; the defaults are the paper's.

    Attributes:
        attention: One of `ATTENTIONS`.
        score_factor: Factor on the scores, after their division by √d_k.
        has_skips: Whether the input of a sub-layer is added to its output.
        has_norms: Whether a normalization follows each sub-layer.
        has_positions: Whether positions are added to the embeddings.
    """

    attention: str = "dot_product"
    score_factor: float = 1.0
    has_skips: bool = True
    has_norms: bool = True
    has_positions: bool = True


@dataclass(frozen=True)
class Row:
    """A model to train.

    Attributes:
        group: Its table of the page.
        text: What differs.
        config: Attributes of the config that differ from the base model.
        parts: Parts that differ; None for the library's `Transformer`.
        label_smoothing: That of the loss; None for the setting's.
        seed: Seed of the start, of dropout and of the order of the batches.
        is_shuffled: Whether the words of each source sentence are in random order, in training and evaluation.
        reads_shuffled: Whether to evaluate the model with the other order of the source words as well.
        reference: Row to compare with.
        paper: Perplexity and BLEU in table 3 of the paper.
        claim: "worse", "better" or "same" where the paper's text says how the row compares with its reference.
    """

    group: str
    text: str
    config: dict[str, Any] = field(default_factory=dict)
    parts: Parts | None = None
    label_smoothing: float | None = None
    seed: int = 1
    is_shuffled: bool = False
    reads_shuffled: bool = False
    reference: str = "base"
    paper: tuple[float, float] | None = None
    claim: str | None = None


# Sizes in a row of table 3 have the ratio to the base model that they have in the paper.
_LARGE = {"num_heads": 1, "key_dim": 256, "value_dim": 128}
_SMALL = {"key_dim": 4, "value_dim": 16}
_LEARNED = {"positions": "learned", "max_length": 128}
BASE, SEEDS = "base", ("base", "base-seed2", "base-seed3")
ROWS: dict[str, Row] = {
    "base": Row("base", "seed 1", reads_shuffled=True, paper=(4.92, 25.8)),
    "base-seed2": Row("base", "seed 2", seed=2, paper=(4.92, 25.8)),
    "base-seed3": Row("base", "seed 3", seed=3, paper=(4.92, 25.8)),
    "a-h1": Row("A", "1 head of 128", {"num_heads": 1}, paper=(5.29, 24.9)),
    "a-h4": Row("A", "4 heads of 32", {"num_heads": 4}, paper=(5.00, 25.5)),
    "a-h16": Row("A", "16 heads of 8", {"num_heads": 16}, paper=(4.91, 25.8)),
    "a-h32": Row("A", "32 heads of 4", {"num_heads": 32}, paper=(5.01, 25.4)),
    "b-dk4": Row("B", "d_k = 4", _SMALL, paper=(5.16, 25.1)),
    "b-dk8": Row("B", "d_k = 8", {"key_dim": 8, "value_dim": 16}, paper=(5.01, 25.4)),
    "c-n1": Row("C", "N = 1", {"num_layers": 1}, paper=(6.11, 23.7)),
    "c-n2": Row("C", "N = 2", {"num_layers": 2}, paper=(5.19, 25.3)),
    "c-n4": Row("C", "N = 4", {"num_layers": 4}, paper=(4.88, 25.5)),
    "c-dmodel64": Row("C", "d_model = 64, d_k = d_v = 8", {"hidden_dim": 64}, paper=(5.75, 24.5)),
    "c-dmodel256": Row("C", "d_model = 256, d_k = d_v = 32", {"hidden_dim": 256}, paper=(4.66, 26.0)),
    "c-dff256": Row("C", "d_ff = 256", {"intermediate_dim": 256}, paper=(5.12, 25.4)),
    "c-dff1024": Row("C", "d_ff = 1024", {"intermediate_dim": 1024}, paper=(4.75, 26.2)),
    "d-dropout0": Row("D", "P_drop = 0.0", {"dropout": 0.0}, paper=(5.77, 24.6)),
    "d-dropout0.2": Row("D", "P_drop = 0.2", {"dropout": 0.2}, paper=(4.95, 25.5)),
    "d-smoothing0": Row("D", "ε_ls = 0.0", label_smoothing=0.0, paper=(4.67, 25.3)),
    "d-smoothing0.2": Row("D", "ε_ls = 0.2", label_smoothing=0.2, paper=(5.47, 25.7)),
    "e-learned": Row("E", "learned positions", _LEARNED, reads_shuffled=True, paper=(4.92, 25.7)),
    "no-scaling": Row("scores", "d_k = 16, not divided by √d_k", parts=Parts(score_factor=16**0.5)),
    "inverse-scaling": Row("scores", "d_k = 16, divided by d_k", parts=Parts(score_factor=16**-0.5)),
    "no-scaling-dk4": Row(
        "scores", "d_k = 4, not divided by √d_k", _SMALL, Parts(score_factor=4**0.5), reference="b-dk4", claim="same"
    ),
    "additive-dk4": Row(
        "scores", "d_k = 4, additive", _SMALL, Parts("additive"), reference="no-scaling-dk4", claim="same"
    ),
    "dk256": Row("scores", "1 head, d_k = 256", _LARGE),
    "no-scaling-dk256": Row(
        "scores", "1 head, d_k = 256, not divided by √d_k", _LARGE, Parts(score_factor=256**0.5), reference="dk256",
        claim="worse",
    ),
    "inverse-scaling-dk256": Row(
        "scores", "1 head, d_k = 256, divided by d_k", _LARGE, Parts(score_factor=256**-0.5), reference="dk256"
    ),
    "additive-dk256": Row(
        "scores", "1 head, d_k = 256, additive", _LARGE, Parts("additive"), reference="no-scaling-dk256",
        claim="better",
    ),
    "shared-projection": Row("parts", "one projection of queries and keys", parts=Parts("shared_projection")),
    "no-projections": Row("parts", "no projections: Q = K = V = x", parts=Parts("no_projections"), claim="worse"),
    "no-skip": Row("parts", "no skip connections", parts=Parts(has_skips=False)),
    "no-normalization": Row("parts", "no normalization", parts=Parts(has_norms=False)),
    "no-positions": Row(
        "order", "no positions", parts=Parts(has_positions=False), reads_shuffled=True, claim="worse"
    ),
    "rotary": Row("order", "rotary positions", {"positions": "rotary"}, reads_shuffled=True),
    "shuffled": Row("order", "sinusoids, words shuffled", is_shuffled=True, reads_shuffled=True),
    "shuffled-learned": Row(
        "order", "learned positions, words shuffled", _LEARNED, is_shuffled=True, reads_shuffled=True,
        reference="e-learned",
    ),
    "shuffled-rotary": Row(
        "order", "rotary positions, words shuffled", {"positions": "rotary"}, is_shuffled=True, reads_shuffled=True,
        reference="rotary",
    ),
}  # fmt: skip
