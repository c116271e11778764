"""What lighter weights cost in BLEU."""

from pathlib import Path

from keras_attention.pipeline.evaluate import quick_bleu
from keras_attention.pipeline.folder import RunFolder
from keras_attention.serving import Translator
from keras_attention.text import ParallelCorpus


def compare_weights(run: str | Path, lighter: Translator, trained: Translator) -> str:
    """Translates the run's validation sample with both.

    Args:
        run: The run's folder.
        lighter: With the weights to export.
        trained: With the weights as they were trained.

    Returns:
        A line that says the BLEU of both and the difference.

    Raises:
        FileNotFoundError: The validation texts are no longer there.
    """
    config = RunFolder(run).config
    corpus = ParallelCorpus(config.valid_source, config.valid_target)
    pairs = corpus.sample(min(config.score_sentences, len(corpus)), seed=config.seed)
    sources, references = map(list, zip(*pairs, strict=True))
    before, after = (quick_bleu(each.translate(sources), references) for each in (trained, lighter))
    return (
        f"BLEU of {len(pairs)} validation sentences: {after:.2f}, with the trained weights {before:.2f} "
        f"({after - before:+.2f})"
    )
