"""How long the paper's trainings would take on 1, 8 and 64 accelerators: computed from the speed of one, not measured.

`python -m benchmarks.tools.scaling` prints the tables of the page "Scaling". All rows train on as many tokens as the
paper's steps have. Each accelerator has the batch with which `gpu-base.json` and `gpu-big.json` measured its speed, so
that more of them make larger and fewer steps. After each step all add up their gradients in float32: each sends and
receives 2 (n − 1) / n times their bytes, while it computes nothing.

Source: Vaswani et al. 2017, sections 5.1 to 5.3; Ott et al. 2018, "Scaling Neural Machine Translation", for larger
batches.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import RESULTS
from keras_attention import TransformerConfig

VOCABULARY_SIZE = 37_000
TOKENS_PER_STEP = 2 * 25_000  # source and target
STEPS = {"base": 100_000, "big": 300_000}
# Sentences of the paper's corpora, and an assumed length of both sides together.
PAIRS = {"English–German": 4_500_000, "English–French": 36_000_000}
TOKENS_PER_PAIR = 60
ACCELERATORS = (1, 8, 64)
# Assumed bytes a second: of NVLink between two of a machine, and of eight network cards of 400 Gbit/s between machines.
IN_A_MACHINE, BETWEEN_MACHINES = 450e9, 8 * 50e9
PER_MACHINE = 8


@dataclass(frozen=True)
class Scale:
    """One row of the table.

    Attributes:
        preset: "base" or "big".
        accelerators: n.
        tokens: Source and target tokens of a step.
        compute: Seconds of a step without the exchange.
        exchange: Seconds of a step in which gradients are exchanged.
    """

    preset: str
    accelerators: int
    tokens: int
    compute: float
    exchange: float

    @property
    def steps(self) -> float:
        """Steps of the training."""
        return STEPS[self.preset] * TOKENS_PER_STEP / self.tokens

    @property
    def hours(self) -> float:
        """Hours of the training."""
        return self.steps * (self.compute + self.exchange) / 3600

    @property
    def efficiency(self) -> float:
        """Share of the time in which an accelerator computes."""
        return self.compute / (self.compute + self.exchange)


def parameters(preset: str) -> int:
    """Number of weights: shared embedding, encoder, decoder."""
    config = TransformerConfig.from_preset(preset, VOCABULARY_SIZE)
    width, inner, layers = config.hidden_dim, config.intermediate_dim, config.num_layers
    attention, feed_forward, norm = 4 * width**2, 2 * width * inner + inner + width, 2 * width
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    return VOCABULARY_SIZE * width + layers * (encoder + decoder)


def measured(preset: str) -> dict:
    """What one accelerator measured."""
    return json.loads((RESULTS / f"gpu-{preset}.json").read_text(encoding="utf-8"))


def scales() -> Iterator[Scale]:
    """The rows of the table."""
    for preset in STEPS:
        content = measured(preset)
        rate = content["sides"]["keras_attention"]["median"]["tokens_per_second"]
        tokens = 2 * content["task"]["rows"] * content["task"]["row_length"]
        for count in ACCELERATORS:
            link = IN_A_MACHINE if count <= PER_MACHINE else BETWEEN_MACHINES
            exchange = 2 * (count - 1) / count * 4 * parameters(preset) / link
            yield Scale(preset, count, count * tokens, tokens / rate, exchange)


def table() -> list[str]:
    """The lines of the page."""
    lines = ["| preset | accelerators | tokens per step | steps | step, ms | exchange, ms | hours | computing |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for each in scales():
        step = 1000 * (each.compute + each.exchange)
        lines.append(
            f"| `{each.preset}` | {each.accelerators} | {each.tokens:,} | {each.steps:,.0f} | {step:.1f} "
            f"| {1000 * each.exchange:.1f} | {each.hours:.2f} | {each.efficiency:.0%} |"
        )
    return lines


def costs() -> list[str]:
    """What a training needs on any number of accelerators, as lines of the page."""
    lines = [
        "| preset | weights | operations per token | of the training | with gradients and Adam, GB | measured, GB |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for preset, steps in STEPS.items():
        side = measured(preset)["sides"]["keras_attention"]
        first, weights = side["rounds"][0], parameters(preset)
        per_token = first["flops"] / first["tokens"]
        operations = per_token * steps * TOKENS_PER_STEP
        lines.append(
            f"| `{preset}` | {weights:,} | {per_token / 1e9:.2f} × 10⁹ | {operations / 1e18:.1f} × 10¹⁸ "
            f"| {16 * weights / 1e9:.1f} | {side['median']['peak_bytes'] / 1e9:.1f} |"
        )
    return lines


def corpora() -> list[str]:
    """Passes over each corpus in the paper's steps, as lines of the page."""
    lines = [
        "| corpus | sentence pairs | tokens | passes of `base` | passes of `big` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, pairs in PAIRS.items():
        tokens = pairs * TOKENS_PER_PAIR
        passes = " | ".join(f"{steps * TOKENS_PER_STEP / tokens:.1f}" for steps in STEPS.values())
        lines.append(f"| {name} | {pairs / 1e6:g} million | {tokens / 1e9:.2f} billion | {passes} |")
    return lines


if __name__ == "__main__":
    print(*costs(), "", *table(), "", *corpora(), sep="\n")
