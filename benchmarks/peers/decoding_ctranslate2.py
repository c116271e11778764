"""CTranslate2 with the same weights: threads that work on one batch together, or on one each for a file."""

import json

import ctranslate2

from benchmarks.peers.decoding import TOKENIZER, DecodingTask
from benchmarks.tools.workers import Work, lines_of, serve


class CTranslate2:
    """The side; `options["weights"]` is "float32" or "int8"."""

    def __init__(self, task: DecodingTask):
        self.task = task
        self.folder = task.path(task.options["weights"])
        self.translators = {}  # by batches at a time
        self.translator = self._translator(task.at_once)
        self.pieces = json.loads((self.folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self.ids = {piece: place for place, piece in enumerate(self.pieces)}

    def search(self, sentences: int, beam: int, length: int) -> Work:
        """Exactly `length` tokens for each source."""
        sources = self._sources(sentences)
        options = {"beam_size": beam, "length_penalty": 0.6, "max_batch_size": -(-sentences // self.task.at_once)}
        options |= {"min_decoding_length": length, "max_decoding_length": length}
        return Work(
            lambda: self.translator.translate_batch(sources, **options),
            lambda found: [self._ids(each.hypotheses[0]) for each in found],
        )

    def ending(self, sentences: int, beam: int, length: int) -> Work:
        """Of the hypotheses of `length` - 1 tokens, those that are the best with an end: the rule of ours."""
        sources = self._sources(sentences)
        options = {"beam_size": beam, "num_hypotheses": beam, "length_penalty": 0}
        options |= {"min_decoding_length": length - 1, "max_decoding_length": length - 1}

        def run() -> list[list[str]]:
            best = []
            for source, each in zip(sources, self.translator.translate_batch(sources, **options), strict=True):
                scores = self.translator.score_batch([source] * beam, each.hypotheses)
                worth = [sum(score.log_probs) for score in scores]
                best.append(each.hypotheses[worth.index(max(worth))])
            return best

        return Work(run, lambda found: [self._ids(tokens) for tokens in found])

    def translate(
        self, file: str, beam: int, length_penalty: float, tokens_per_batch: int, batches_at_once: int
    ) -> Work:
        """All lines of a file, text to text, in its own batches, limited in tokens, several at a time."""
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(self.task.path(TOKENIZER)))
        lines, translator = lines_of(file), self._translator(batches_at_once)
        options = {"beam_size": beam, "length_penalty": length_penalty, "min_decoding_length": 0}
        options |= {"max_batch_size": tokens_per_batch, "batch_type": "tokens"}

        def run() -> list[str]:
            sources = processor.encode(lines, out_type=str)
            return processor.decode([each.hypotheses[0] for each in translator.translate_batch(sources, **options)])

        return Work(run, list)

    def _translator(self, at_once: int) -> ctranslate2.Translator:
        if at_once not in self.translators:
            threads = {"inter_threads": at_once, "intra_threads": max(1, self.task.threads // at_once)}
            self.translators[at_once] = ctranslate2.Translator(str(self.folder), device="cpu", **threads)
        return self.translators[at_once]

    def _sources(self, count: int) -> list[list[str]]:
        """Without their ends, which it adds."""
        return [[self.pieces[each] for each in row[:-1]] for row in self.task.sources(count).tolist()]

    def _ids(self, tokens: list[str]) -> list[int]:
        return [self.ids[token] for token in tokens]


if __name__ == "__main__":
    serve(lambda task: CTranslate2(DecodingTask(**task)))
