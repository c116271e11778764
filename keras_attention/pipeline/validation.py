"""The evaluations of a run while it trains."""

import contextlib
from collections.abc import Mapping

from keras_attention.models import Transformer
from keras_attention.pipeline.evaluate import corpus_bleu, corpus_chrf
from keras_attention.pipeline.run_data import RunData
from keras_attention.serving import Translator
from keras_attention.training import ExponentialMovingAverage, ProgressLine


class Validation:
    """The loss of the validation texts, and BLEU and chrF of a sample, by the moving average if there is one."""

    def __init__(self, model: Transformer, data: RunData, ema: ExponentialMovingAverage | None, progress: ProgressLine):
        self.averaged = contextlib.nullcontext if ema is None else ema.applied
        self.translations: list[str] = []  # of the last evaluation
        self._model, self._progress = model, progress
        self._data = data.valid_batches.dataset()
        self._translator = Translator(model, data.tokenizer, beam_size=1)
        self._sources, self._references = map(list, zip(*data.sample, strict=True))

    def loss(self) -> Mapping[str, float]:
        """Computes the loss and the metrics of all validation texts."""
        self._progress.phase("validating")
        with self.averaged():
            results = self._model.evaluate(self._data, verbose=0, return_dict=True)
        return {f"val_{name}": value for name, value in results.items()}

    def scores(self) -> Mapping[str, float]:
        """Translates the sample, and scores the translations."""
        self._progress.phase("translating for BLEU")
        with self.averaged():
            self.translations[:] = self._translator.translate(self._sources)
        return {
            "val_bleu": corpus_bleu(self.translations, self._references),
            "val_chrf": corpus_chrf(self.translations, self._references),
        }
