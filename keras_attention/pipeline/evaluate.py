"""BLEU and chrF as sacreBLEU computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu
from sacrebleu.metrics import BLEU, CHRF


@dataclass(frozen=True)
class Scores:
    """BLEU and chrF of a test set, with the signatures that say how they were computed.

    Attributes:
        bleu: 0 to 100.
        chrf: 0 to 100.
        bleu_signature: Of sacreBLEU.
        chrf_signature: Of sacreBLEU.
    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.1f}  {self.bleu_signature}\nchrF {self.chrf:.1f}  {self.chrf_signature}"


def score(translations: Sequence[str], references: Sequence[str]) -> Scores:
    """Compares translations with references, on raw text with sacreBLEU's default settings.

    Args:
        translations: What a system gave.
        references: What people gave, in the same order.

    Returns:
        Both scores.

    Raises:
        ValueError: Different numbers of sentences, or none.

    Example:
        >>> scores = score(["the cat sat on the mat"], ["the cat sat on the mat"])
        >>> round(scores.bleu), round(scores.chrf)
        (100, 100)

    Source: Post 2018, "A Call for Clarity in Reporting BLEU Scores".
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            "Each translation has one reference. "
            f"Received: {len(translations)} translations, {len(references)} references"
        )
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(translations, [references]).score
    chrf_score = chrf.corpus_score(translations, [references]).score
    return Scores(bleu_score, chrf_score, str(bleu.get_signature()), str(chrf.get_signature()))


def quick_bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a sample, without the warning that references look tokenised.

    Args:
        translations: What a system gave.
        references: What people gave, in the same order.

    Returns:
        0 to 100.

    Example:
        >>> quick_bleu(["nothing alike"], ["the cat sat on the mat"])
        0.0
    """
    return sacrebleu.corpus_bleu(translations, [references], force=True).score
