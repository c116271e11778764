"""The folder of a training run: its files, their checks, and loading a checkpoint."""

import hashlib
import json
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import keras

from keras_attention.decoding import DecodingOptions
from keras_attention.files import check_folder, check_output, write_atomically
from keras_attention.layers.arguments import one_of
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.setting_checks import FILES
from keras_attention.serving import Shortlist, Translator
from keras_attention.text import ParallelCorpus, ShardedPairs, SubwordTokenizer
from keras_attention.text.shards import is_sharded, shard_files
from keras_attention.training import weight_files
from keras_attention.training.state_files import state_files

# The dtypes to which a translator can convert the trained model; None keeps its own.
WEIGHTS = (None, "float32", "bfloat16", "int8")
RUNTIMES = (None, "x86")
# Of the training text, sampled at random for a shortlist.
SHORTLIST_SENTENCES = 200_000
CHECKPOINTS = ("final", "average", "ema", "best", "last")


class RunFolder:
    """The folder of a run: `config.yaml`, `tokenizer.model`, `history.csv`, `logs/` for TensorBoard, `checkpoints/`.

    `events.jsonl` says when the run started and how each training ended, a line of JSON for each event.
    `fingerprints.json` holds the SHA-256 of the tokenizer and of the text files with which the weights were trained, so
    that they are not used with others.

    Args:
        path: Path of the folder, which may not exist yet.

    Example:
        >>> RunFolder("runs/en-de").exists
        False
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.tokenizer_file = self.path / "tokenizer.model"
        self.fingerprints_file = self.path / "fingerprints.json"
        self.history_file = self.path / "history.csv"
        self.events_file = self.path / "events.jsonl"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.token_lengths = self.path / "shards"  # of a run whose text is in shards

    @property
    def exists(self) -> bool:
        """True if the folder holds a run."""
        return self.config_file.exists()

    @property
    def trained(self) -> bool:
        """True if the run has a checkpoint, from which training resumes."""
        if self.model_file("last").exists():
            return True
        others = [path.name for path in map(self.model_file, CHECKPOINTS) if path.exists()]
        if others:
            raise ValueError(
                f"Training resumes from {self.model_file('last')}, which is missing, and does not replace the other "
                f"checkpoints: remove them, or choose another folder. Received: {', '.join(others)}"
            )
        return bool(state_files(self.checkpoints))  # interrupted before its first evaluation

    def start(self, config: RunConfig, tokenizer: SubwordTokenizer | None = None) -> None:
        """Creates the folder of a new run, or saves the settings with which an existing run resumes.

        Args:
            config: Config of the run.
            tokenizer: Tokenizer trained on the texts of the config.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.checkpoints.glob(".writing-*"):  # of a process that was killed while it wrote
            path.unlink()
        if tokenizer is not None and not self.trained:
            # Of a run that was interrupted at its first checkpoint.
            averaged = (*self.weights, *self.checkpoints.glob("ema-*.weights.h5"))
            for path in (*averaged, *self.logs.rglob("events.out.tfevents.*")):
                path.unlink()
            write_atomically(self.tokenizer_file, tokenizer.save)
            self._record_fingerprints(config)
        elif tokenizer is not None and not self.fingerprints_file.exists():
            self._record_fingerprints(config)
        if not self.trained or config != self.config:
            config.save(self.config_file)

    def check_writable(self) -> None:
        """Checks, before hours of training, that the files of the run can be written.

        Raises:
            ValueError: If a file or a folder is in the way, or is not writable.
        """
        for folder in (self.checkpoints, self.logs):
            check_folder(folder)
        check_output(self.history_file)

    check_places = check_writable  # earlier name

    def check_texts(self, config: RunConfig) -> None:
        """Checks that the texts are those with which the checkpoints were trained.

        Args:
            config: Config with the paths of the texts.

        Raises:
            FileNotFoundError: If a text is missing.
            ValueError: If a text has changed.
        """
        fingerprints = self._fingerprints()
        for name in FILES:
            path = getattr(config, name)
            if name in fingerprints and fingerprints[name] != text_sha256(path):
                raise ValueError(
                    f"The text has changed since the run in {self.path} began: restore the earlier file, or train in "
                    f"another folder. Received: {name}={path!r}"
                )

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        self._check()
        return RunConfig.load(self.config_file)

    @property
    def tokenizer(self) -> SubwordTokenizer:
        """The tokenizer of the run."""
        self._check()
        self._check_tokenizer()
        return SubwordTokenizer.load(self.tokenizer_file)

    @property
    def weights(self) -> list[Path]:
        """The weight files that can be averaged, the oldest first."""
        return weight_files(self.checkpoints)

    def model_file(self, checkpoint: str) -> Path:
        """Returns the path of a checkpoint, whether or not the file exists.

        Args:
            checkpoint: "final" (the result of training: the one of the next three with the lowest validation loss),
                "average" (of the last checkpoints), "ema" (the moving average, of a run with `ema`), "best" (by
                validation loss) or "last".

        Returns:
            The path.

        Raises:
            ValueError: If there is no checkpoint of this name.
        """
        one_of(checkpoint, "checkpoint", CHECKPOINTS)
        return self.checkpoints / f"{checkpoint}.keras"

    def translator(
        self,
        checkpoint: str | None = None,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        weights: str | None = None,
        runtime: str | None = None,
        shortlist: bool = False,
    ) -> Translator:
        """Loads a checkpoint and the tokenizer.

        Args:
            checkpoint: See `model_file`; None for the first of them that exists.
            beam_size: Number of beams.
            length_penalty: Exponent of the length penalty.
            weights: "bfloat16" or "int8" to convert the weights to lower precision; "float32" for a model trained in
                mixed precision, to compute on any machine; None to keep it.
            runtime: "x86" for packed weights, see `serving.PackedTransformer`; None for any.
            shortlist: Whether to limit the search to a shortlist, which is learned from the run's training text.

        Returns:
            A translator.

        Raises:
            FileNotFoundError: If the folder holds no run or no such checkpoint, or a text for the shortlist is missing.
            ValueError: If an option is out of range, a file is damaged or from another run, or the model cannot have a
                shortlist.
        """
        DecodingOptions(beam_size=beam_size, length_penalty=length_penalty)  # checked before the weights are read
        self._check()
        one_of(weights, "weights", WEIGHTS)
        one_of(runtime, "runtime", RUNTIMES)
        if runtime is not None and weights in (None, "float32"):
            raise ValueError(
                "Packed weights are of lower precision: give `weights` too, bfloat16 or int8. "
                f"Received: runtime={runtime!r}, weights={weights!r}"
            )
        tokenizer = self.tokenizer
        file = self.checkpoint_file(checkpoint)
        if checkpoint is None and file != self.model_file("final"):
            print(f"{self.path} has not finished training: using its checkpoint {file.stem}", file=sys.stderr)
        model = self.load(file, compile=False)
        if runtime == "x86":
            from keras_attention.serving.packed_transformer import PackedTransformer  # needs TensorFlow

            model = PackedTransformer(model, weights)
        elif weights in ("float32", "bfloat16"):
            model = model.in_dtype(weights)
        elif weights == "int8":
            model.quantize(weights)
        options = {"shortlist": self._learn_shortlist(tokenizer)} if shortlist else {}
        return Translator(model, tokenizer, beam_size=beam_size, length_penalty=length_penalty, **options)

    def checkpoint_file(self, checkpoint: str | None = None) -> Path:
        """Finds a checkpoint that exists.

        Args:
            checkpoint: See `model_file`; None for the first of them that exists.

        Returns:
            The path of the file.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
        """
        existing = [name for name in CHECKPOINTS if self.model_file(name).exists()]
        if not existing:
            raise FileNotFoundError(f"{self.path} has no checkpoint yet: train it. Received: checkpoint={checkpoint!r}")
        file = self.model_file(existing[0] if checkpoint is None else checkpoint)
        if not file.exists():
            raise FileNotFoundError(
                f"{self.path} has no checkpoint of this name, only {', '.join(existing)}: choose one of them, or train "
                f"to the end. Received: checkpoint={checkpoint!r}"
            )
        return file

    def load(self, file: Path, compile: bool = True) -> Any:
        """Loads a checkpoint, and checks that it holds the model that the config describes.

        Args:
            file: Path of a checkpoint of the run.
            compile: Whether to load the optimizer too.

        Returns:
            The model.

        Raises:
            ValueError: If the file is damaged, or holds another model.
        """
        config = self.config
        try:
            open(file, "rb").close()  # `is_zipfile` does not raise for a file without read permission
            if not zipfile.is_zipfile(file):
                raise ValueError("it is not a zip file, or is incomplete")
            model = keras.models.load_model(file, compile=compile)
        except PermissionError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            others = [name for name in CHECKPOINTS if self.model_file(name).exists() and name != file.stem]
            raise ValueError(
                f"{file} is damaged: {' '.join(str(error).split())[:200]}. "
                f"Other checkpoints of the run: {', '.join(others) or 'none'}"
            ) from error
        in_file = {**model.config.to_dict(), "dtype": model.dtype_policy.name}
        in_config = {**config.transformer().to_dict(), "dtype": config.dtype or in_file["dtype"]}
        differing = [
            f"{name}: {in_file[name]!r} in the checkpoint, {in_config[name]!r} in the config"
            for name in in_config
            if in_config[name] != in_file[name]
        ]
        if differing:
            raise ValueError(
                f"{file} and {self.config_file} are not from the same run: restore the earlier config. "
                f"Received: {'; '.join(differing)}"
            )
        return model

    def _learn_shortlist(self, tokenizer: SubwordTokenizer) -> Shortlist:
        """Returns a shortlist from a sample of the training text."""
        config = self.config
        in_shards = is_sharded(config.source) or is_sharded(config.target)
        corpus = (ShardedPairs if in_shards else ParallelCorpus)(config.source, config.target)
        return Shortlist.train(corpus.sample(min(SHORTLIST_SENTENCES, len(corpus)), seed=config.seed), tokenizer)

    def _check(self) -> None:
        if not self.exists:
            if self.checkpoints.exists():
                raise FileNotFoundError(
                    f"{self.config_file} is missing, though the run has checkpoints: restore the file, or choose "
                    "another folder"
                )
            raise FileNotFoundError(
                f"{self.path} is not the folder of a training run: it has no config.yaml. "
                "Start one with `keras-attention train`"
            )

    def _check_tokenizer(self) -> None:
        if not self.tokenizer_file.exists():
            raise FileNotFoundError(
                f"{self.tokenizer_file} is missing, and the weights of the run are useless with another tokenizer: "
                "restore the file, or train in another folder"
            )
        fingerprint = sha256(self.tokenizer_file)
        if self._fingerprints().get("tokenizer", fingerprint) != fingerprint:
            raise ValueError(
                f"{self.tokenizer_file} is not the tokenizer that the run was trained with: restore that file. "
                f"Received: SHA-256 {fingerprint}"
            )

    def _record_fingerprints(self, config: RunConfig) -> None:
        texts = {name: text_sha256(getattr(config, name)) for name in FILES}
        text = json.dumps({"tokenizer": sha256(self.tokenizer_file), **texts}, indent=2) + "\n"
        write_atomically(self.fingerprints_file, lambda path: Path(path).write_text(text, encoding="utf-8"))

    def _fingerprints(self) -> dict[str, str]:
        """The fingerprints from the start of the training; none if an earlier release started it."""
        if not self.fingerprints_file.exists():
            return {}
        damaged = f"{self.fingerprints_file} is damaged: restore the earlier file, or remove it"
        try:
            fingerprints = json.loads(self.fingerprints_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(damaged) from error
        if not isinstance(fingerprints, dict) or set(fingerprints) != {"tokenizer", *FILES}:
            raise ValueError(damaged)
        return fingerprints


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(path: str | Path) -> str:
    """The SHA-256 of a text file; that of the fingerprints of all files of a text in shards."""
    if not is_sharded(path):
        return sha256(path)
    return hashlib.sha256("".join(map(sha256, shard_files(path))).encode()).hexdigest()
