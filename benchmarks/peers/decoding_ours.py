"""Ours: a plain SavedModel from ids to ids, loaded again; `Translator` for files."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.peers.decoding import MODEL, TOKENIZER, DecodingTask, use_threads
from benchmarks.tools.workers import Work, lines_of, serve
from keras_attention.decoding import DecodingOptions, generate
from keras_attention.serving import PackedTransformer, share_cores


class Search(tf.Module):
    """Ids to ids.

    Args:
        model: A `Transformer`.
        options: Of the search.
    """

    def __init__(self, model: keras.Model, options: DecodingOptions):
        super().__init__()
        self.model, self.options = model, options

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="source")], autograph=False)
    def serve(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best hypothesis of each source, (B, L)."""
        return {"ids": generate(self.model, source, self.options).ids[:, 0]}


class Ours:
    """The side."""

    def __init__(self, task: DecodingTask):
        # `keras-attention translate` works on two batches of a text at a time.
        if task.at_once > 1 or task.path(TOKENIZER).exists():
            share_cores(task.threads)
        else:
            use_threads(task.threads)
        self.task = task
        self.model = keras.models.load_model(task.path(MODEL), compile=False)
        if task.options.get("runtime") == "x86":
            self.model = PackedTransformer(self.model, task.options["weights"])
        elif "weights" in task.options:
            self.model = self.model.in_dtype(task.options["weights"])
        self.loaded = {}  # by beams and length
        self.pool = ThreadPoolExecutor(task.at_once)

    def search(self, sentences: int, beam: int, length: int) -> Work:
        """Exactly `length` tokens for each source, the end the last of them."""
        if (beam, length) not in self.loaded:
            self.loaded[beam, length] = self._exported(beam, length)
        function = self.loaded[beam, length].signatures["serving_default"]
        parts = np.array_split(self.task.sources(sentences), min(self.task.at_once, sentences))
        parts = [tf.constant(part) for part in parts]
        return Work(
            lambda: list(self.pool.map(lambda part: function(source=part)["ids"].numpy(), parts)),
            lambda found: np.concatenate(found).tolist(),
        )

    def translate(self, file: str, beam: int, length_penalty: float) -> Work:
        """All lines of a file, text to text."""
        from keras_attention.serving import Translator
        from keras_attention.text import SubwordTokenizer

        tokenizer = SubwordTokenizer.load(self.task.path(TOKENIZER))
        # CTranslate2 divides by the length itself.
        options = {"length_penalty": length_penalty, "length_normalization": "average"}
        translator = Translator(self.model, tokenizer, beam_size=beam, **options)
        lines = lines_of(file)
        return Work(lambda: translator.translate(lines), list)

    def _exported(self, beam: int, length: int) -> object:
        options = DecodingOptions(beam, min_length=length, max_length=length)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            search = Search(self.model, options)
            archive = keras.export.ExportArchive()
            archive.track(search)
            archive.add_endpoint("serving_default", search.serve)
            archive.write_out(str(path), verbose=False)
            return tf.saved_model.load(str(path))


if __name__ == "__main__":
    serve(lambda task: Ours(DecodingTask(**task)))
