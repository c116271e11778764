"""The options of generation."""

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any

LENGTH_NORMALIZATIONS = ("gnmt", "average")
DEFAULT_BEAMS = 4  # the paper's


@dataclass(frozen=True)
class DecodingOptions:
    """Options of beam search and sampling.

    Attributes:
        beam_size: Number of beams, 1 for greedy decoding; 4 by default, 1 with `sample`.
        num_return: Number of hypotheses for each input; at most `beam_size` in a beam search.
        length_penalty: Exponent α of the length penalty, by which a log probability is divided.
        length_normalization: Base of the length penalty for n tokens: "gnmt" for (5 + n) / 6, as in the paper, or
            "average" for n.
        min_length: Minimum number of tokens of an output, the end of sentence counted.
        max_length: Maximum number of tokens; by default 50 more than the input.
        no_repeat_ngram: Size of the n-grams that must not occur twice; 0 allows all.
        sample: Whether to sample tokens with the probabilities of the model instead of searching.
        temperature: Divisor of the logits before sampling.
        top_k: Number of best tokens to sample from; 0 for all.
        top_p: Probability that the best tokens to sample from reach together.
        min_p: Minimum probability of the tokens to sample from, as a share of the best token's.
        seed: Seed of the sampling; it determines the tokens.

    Raises:
        ValueError: An option out of its range, or without effect because of another.

    Example:
        >>> DecodingOptions(sample=True, top_p=0.9, num_return=3).beams
        1
        >>> DecodingOptions(top_p=2.0, sample=True)
        Traceback (most recent call last):
        ValueError: `top_p` is above 0 and at most 1. Received: top_p=2.0
    """

    beam_size: int | None = None
    num_return: int = 1
    length_penalty: float = 0.6
    length_normalization: str = "gnmt"
    min_length: int = 1
    max_length: int | None = None
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("beam_size", self.beam_size is None or _is_count(self.beam_size, 1), "1 (greedy decoding) or more")
        self._check("num_return", _is_count(self.num_return, 1), "1 or more")
        self._check(
            "length_penalty",
            _is_number(self.length_penalty) and self.length_penalty >= 0,
            "0 (none) or more; the paper uses 0.6",
        )
        is_known = self.length_normalization in LENGTH_NORMALIZATIONS
        self._check("length_normalization", is_known, f"one of {', '.join(LENGTH_NORMALIZATIONS)}")
        self._check("min_length", _is_count(self.min_length, 0), "0 or more, the end of sentence counted")
        self._check("max_length", self.max_length is None or _is_count(self.max_length, 1), "1 or more")
        self._check("no_repeat_ngram", _is_count(self.no_repeat_ngram, 0), "0 (repeats are allowed) or more")
        self._check("temperature", _is_number(self.temperature) and self.temperature > 0, "a number above 0")
        self._check("top_k", _is_count(self.top_k, 0), "0 (all) or more")
        self._check("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1")
        self._check("min_p", _is_number(self.min_p) and 0 <= self.min_p <= 1, "between 0 and 1")
        self._check_together()

    def _check(self, name: str, is_valid: bool, rule: str) -> None:
        if not is_valid:
            raise ValueError(f"`{name}` is {rule}. Received: {name}={getattr(self, name)!r}")

    def _check_together(self) -> None:
        if self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(
                "`min_length` is at most `max_length`. "
                f"Received: min_length={self.min_length}, max_length={self.max_length}"
            )
        if self.sample and self.beam_size not in (None, 1):
            raise ValueError(
                "Sampling does not search: give no `beam_size` with `sample`, and `num_return` for several "
                f"outputs. Received: sample=True, beam_size={self.beam_size}"
            )
        if not self.sample and self.num_return > self.beams:
            raise ValueError(
                "`num_return` is between 1 and `beam_size`: ask for fewer hypotheses or search with more beams. "
                f"Received: num_return={self.num_return}, beam_size={self.beams}"
            )
        if not self.sample:
            for field in fields(self):
                if field.name in ("temperature", "top_k", "top_p", "min_p", "seed"):
                    is_default = getattr(self, field.name) == field.default
                    self._check(field.name, is_default, "for sampling, with `sample=True`")

    @property
    def beams(self) -> int:
        """Number of beams K of the search, 1 with `sample`."""
        if self.sample:
            return 1
        return DEFAULT_BEAMS if self.beam_size is None else self.beam_size


def _is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= minimum


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
