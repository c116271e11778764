"""What a run reads from its text files: tokenizer, batches, and sentences to score."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_attention.pipeline.check import check_before_training
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.recipe import (
    choose_batches,
    choose_packed_rows,
    choose_vocabulary_size,
    leaves_batches_open,
)
from keras_attention.pipeline.setting_checks import FILES
from keras_attention.status_line import StatusLine
from keras_attention.text import (
    BatchShard,
    PackedBatches,
    ParallelCorpus,
    ShardedPairs,
    StreamedBatches,
    SubwordTokenizer,
    TokenBatches,
)
from keras_attention.text.lines import STANDARD_INPUT, is_file
from keras_attention.text.shards import is_sharded, shard_files
from keras_attention.text.subword_sampling import can_sample
from keras_attention.text.token_lengths import TokenLengths
from keras_attention.training.data_parallel import num_shards
from keras_attention.training.processes import num_processes, process_index

# Of the validation batches where each shape is compiled: padding costs less than compiling, since they are few.
VALIDATION_SHAPES = 4


@dataclass(frozen=True)
class RunData:
    """The tokenizer, the batches and the sample for BLEU that a run makes from its text files."""

    tokenizer: SubwordTokenizer
    batches: TokenBatches | PackedBatches | StreamedBatches | BatchShard
    valid_batches: TokenBatches | BatchShard
    sample: list[tuple[str, str]]

    @classmethod
    def read(
        cls,
        config: RunConfig,
        tokenizer: SubwordTokenizer | None,
        choose: Callable[[RunConfig, float], RunConfig] | None = None,
        folder: Path | None = None,
    ) -> tuple[RunConfig, "RunData"]:
        """Reads the texts, and returns them with the config, in which a new run sets what is open."""
        # `choose` does so by the number of steps of a pass over the text; `folder` keeps the numbers of tokens of text
        # in shards.
        _check_files(config)
        in_shards = is_sharded(config.source) or is_sharded(config.target)
        if in_shards:
            StatusLine().show(lambda: "reading the texts")
        corpus = (ShardedPairs if in_shards else ParallelCorpus)(config.source, config.target)
        valid_corpus = ParallelCorpus(config.valid_source, config.valid_target)
        for each in (corpus, valid_corpus):
            print(each.summary())
        files, valid_files = (config.source, config.target), (config.valid_source, config.valid_target)
        if choose is not None or not in_shards:  # each of these checks reads text in shards again
            for warning in check_before_training(corpus, files, valid_corpus, valid_files):
                print(f"warning: {warning}")
        config = choose_vocabulary_size(config, corpus.pairs)
        if tokenizer is None:
            print(f"training a tokenizer of {config.vocabulary_size:,} pieces")
            texts = [file for path in files for file in shard_files(path)]
            tokenizer = SubwordTokenizer.train(texts, config.vocabulary_size, split_digits=config.split_digits)
        StatusLine().show(lambda: "encoding the texts")
        if choose is not None:
            config = _choose_rows(config, corpus, tokenizer, folder)
            # Passes are counted without subword dropout, whether it is chosen or given.
            batches = _make_batches(config.replace(subword_dropout=0.0), corpus, tokenizer, folder)
            config = _chosen(config, choose, tokenizer, batches)
        if choose is None or config.subword_dropout:
            batches = _make_batches(config, corpus, tokenizer, folder)
        max_shapes = VALIDATION_SHAPES if keras.config.backend() == "jax" else None
        valid_batches = TokenBatches.from_pairs(
            valid_corpus.pairs,
            tokenizer,
            tokens_per_batch=config.tokens_per_batch,
            max_length=config.max_length,
            seed=config.seed,
            shuffle=False,
            max_shapes=max_shapes,
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


def _chosen(
    config: RunConfig,
    choose: Callable[[RunConfig, float], RunConfig],
    tokenizer: SubwordTokenizer,
    batches: TokenBatches | PackedBatches | StreamedBatches,
) -> RunConfig:
    """The config with what the number of batches without subword dropout decides."""
    if config.subword_dropout is None and not can_sample(tokenizer.model):
        config = config.replace(subword_dropout=0.0)
    return choose(config, steps_per_pass(config, batches))


def _choose_rows(
    config: RunConfig, corpus: ParallelCorpus | ShardedPairs, tokenizer: SubwordTokenizer, folder: Path | None
) -> RunConfig:
    """Sets the size of packed rows that hold the longest pair, where the config leaves them open."""
    if not leaves_batches_open(config):
        return config
    if isinstance(corpus, ParallelCorpus):
        return choose_batches(config, corpus.pairs, tokenizer)
    lengths = TokenLengths(corpus, tokenizer, folder, config.subword_dropout or 0.0, config.seed)
    widths, counts = lengths.counts(min(config.max_length, config.tokens_per_batch))
    return choose_packed_rows(config, widths.max(axis=1), counts)


def _make_batches(
    config: RunConfig, corpus: ParallelCorpus | ShardedPairs, tokenizer: SubwordTokenizer, folder: Path | None
) -> TokenBatches | PackedBatches | StreamedBatches:
    class_, options = _batch_options(config)
    if isinstance(corpus, ParallelCorpus):
        return class_.from_pairs(corpus.pairs, tokenizer, **options)
    return StreamedBatches(corpus, tokenizer, class_, buffer_size=config.buffer_size, folder=folder, **options)


def _batch_options(config: RunConfig) -> tuple[type[TokenBatches] | type[PackedBatches], dict[str, Any]]:
    """The class of the batches of a run, and its arguments."""
    noise = {"subword_dropout": config.subword_dropout or 0.0, "source_word_dropout": config.source_word_dropout}
    shared = {**noise, "seed": config.seed}
    if config.packed_rows is not None:
        row_length = config.row_length or config.max_length
        return PackedBatches, {**shared, "row_length": row_length, "rows_per_batch": config.packed_rows}
    sizes = {"tokens_per_batch": config.tokens_per_batch, "max_length": config.max_length}
    return TokenBatches, {**shared, **sizes, "max_shapes": config.max_shapes}


def _check_files(config: RunConfig) -> None:
    for name in FILES:
        path = getattr(config, name)
        if is_sharded(path):
            if name.startswith("valid_"):
                raise ValueError(
                    "The validation text is read whole at each evaluation, so it must be one file. "
                    f"Received: {name}={path!r}"
                )
        elif path == STANDARD_INPUT or (Path(path).exists() and not is_file(path)):
            raise ValueError(
                "A run reads its texts again when it resumes, so they must be files: save the text to a file first. "
                f"Received: {name}={path!r}"
            )


def steps_per_pass(config: RunConfig, batches: TokenBatches | PackedBatches | StreamedBatches) -> float:
    """The number of optimizer steps, of one or several batches each, in a pass over the text."""
    return len(batches) / config.gradient_accumulation
