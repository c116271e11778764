"""What a run reads from its text files: tokenizer, batches, and sentences to score."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import keras

from keras_attention.pipeline.check import check_before_training
from keras_attention.pipeline.config import FILES, RunConfig
from keras_attention.pipeline.recipe import choose_batches, choose_vocabulary_size
from keras_attention.status_line import StatusLine
from keras_attention.text import BatchShard, PackedBatches, ParallelCorpus, SubwordTokenizer, TokenBatches
from keras_attention.text.lines import STANDARD_INPUT, is_file
from keras_attention.training.data_parallel import num_shards
from keras_attention.training.processes import num_processes, process_index

# Of the validation batches where each shape is compiled: padding costs less than compiling, since they are few.
VALIDATION_SHAPES = 4


@dataclass(frozen=True)
class RunData:
    """The tokenizer, the batches and the sample for BLEU that a run makes from its text files."""

    tokenizer: SubwordTokenizer
    batches: TokenBatches | PackedBatches | BatchShard
    valid_batches: TokenBatches | BatchShard
    sample: list[tuple[str, str]]

    @classmethod
    def read(
        cls, config: RunConfig, tokenizer: SubwordTokenizer | None, is_new: bool = False
    ) -> tuple[RunConfig, "RunData"]:
        """Reads the texts, and returns the config with the size of the vocabulary and, of a new run, of its batches."""
        _check_files(config)
        corpus = ParallelCorpus(config.source, config.target)
        valid_corpus = ParallelCorpus(config.valid_source, config.valid_target)
        for each in (corpus, valid_corpus):
            print(each.summary())
        files, valid_files = (config.source, config.target), (config.valid_source, config.valid_target)
        for warning in check_before_training(corpus, files, valid_corpus, valid_files):
            print(f"warning: {warning}")
        config = choose_vocabulary_size(config, corpus.pairs)
        if tokenizer is None:
            print(f"training a tokenizer of {config.vocabulary_size:,} pieces")
            files = [config.source, config.target]
            tokenizer = SubwordTokenizer.train(files, config.vocabulary_size, split_digits=config.split_digits)
        StatusLine().show(lambda: "encoding the texts")
        if is_new:
            config = choose_batches(config, corpus.pairs, tokenizer)
        options = {"tokens_per_batch": config.tokens_per_batch, "max_length": config.max_length, "seed": config.seed}
        noise = {"subword_dropout": config.subword_dropout, "source_word_dropout": config.source_word_dropout}
        if config.packed_rows is None:
            batches = TokenBatches.from_pairs(corpus.pairs, tokenizer, **options, **noise, max_shapes=config.max_shapes)
        else:
            sizes = {"row_length": config.row_length or config.max_length, "rows_per_batch": config.packed_rows}
            batches = PackedBatches.from_pairs(corpus.pairs, tokenizer, **sizes, **noise, seed=config.seed)
        max_shapes = VALIDATION_SHAPES if keras.config.backend() == "jax" else None
        valid_batches = TokenBatches.from_pairs(
            valid_corpus.pairs, tokenizer, **options, shuffle=False, max_shapes=max_shapes
        )
        sample = valid_corpus.sample(min(config.score_sentences, len(valid_corpus)), seed=config.seed)
        return config, cls(tokenizer, batches, valid_batches, sample)

    def of_process(self) -> "RunData":
        """The same data, with the rows of each batch that this process feeds to its devices."""
        if keras.distribution.distribution() is None:
            return self
        count = num_processes()
        batches, valid_batches = (
            BatchShard(each, process_index(), count, num_shards() // count)
            for each in (self.batches, self.valid_batches)
        )
        return dataclasses.replace(self, batches=batches, valid_batches=valid_batches)


def _check_files(config: RunConfig) -> None:
    for name in FILES:
        path = getattr(config, name)
        if path == STANDARD_INPUT or (Path(path).exists() and not is_file(path)):
            raise ValueError(
                "A run reads its texts again when it resumes, so they must be files: save the text to a file first. "
                f"Received: {name}={path!r}"
            )
