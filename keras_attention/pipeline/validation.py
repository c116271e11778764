"""The evaluations of a run while it trains."""

import contextlib
from collections.abc import Mapping

import keras

from keras_attention.models import Transformer
from keras_attention.pipeline.evaluate import corpus_bleu, corpus_chrf
from keras_attention.pipeline.run_data import RunData
from keras_attention.serving import Translator
from keras_attention.training import ExponentialMovingAverage, ProgressLine
from keras_attention.training.data_parallel import on_one_device


class Validation:
    """The loss of the validation texts, and BLEU and chrF of a sample, by the moving average if there is one.

    Where several devices train, each has a part of the validation texts, and one of them translates, with a copy of the
    weights. Each host translates the whole sample, so that none waits for another.
    """

    def __init__(self, model: Transformer, data: RunData, ema: ExponentialMovingAverage | None, progress: ProgressLine):
        self.averaged = contextlib.nullcontext if ema is None else ema.applied
        self.translations: list[str] = []  # of the last evaluation
        self._model, self._progress = model, progress
        self._data = data.of_process().valid_batches.dataset()
        # The model that translates, with the weights of the last evaluation.
        self.model = model if keras.distribution.distribution() is None else _copy(model)
        self._translator = Translator(self.model, data.tokenizer, beam_size=1)
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
        with self.averaged(), on_one_device():
            if self.model is not self._model:
                self.model.set_weights([keras.ops.convert_to_numpy(each) for each in self._model.weights])
            self.translations[:] = self._translator.translate(self._sources)
        return {
            "val_bleu": corpus_bleu(self.translations, self._references),
            "val_chrf": corpus_chrf(self.translations, self._references),
        }


def _copy(model: Transformer) -> Transformer:
    """A copy of a model for one device."""
    with on_one_device():
        return type(model).from_config(model.get_config())
