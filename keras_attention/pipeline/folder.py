"""The folder of a training run: what lies where in it."""

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
from keras_attention.pipeline.config import FILES, RunConfig
from keras_attention.serving import Translator
from keras_attention.text import SubwordTokenizer
from keras_attention.training import weight_files

# What the weights of a translator may be, beside those that were trained.
WEIGHTS = (None, "bfloat16", "int8")
CHECKPOINTS = ("final", "average", "best", "last")


class RunFolder:
    """`config.yaml`, `tokenizer.model`, `history.csv`, `logs/` for TensorBoard and `checkpoints/`.

    `fingerprints.json` has the SHA-256 of the tokenizer and of the text files that the weights were trained with, so
    that no other ones are used with them.

    Args:
        path: The folder; it need not exist yet.

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
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    @property
    def trained(self) -> bool:
        """Whether there is a checkpoint, so that training resumes."""
        if self.model_file("last").exists():
            return True
        found = [path.name for path in map(self.model_file, CHECKPOINTS) if path.exists()]
        if found:
            raise ValueError(
                f"Training resumes from {self.model_file('last')}, which is missing, and does not replace the "
                f"checkpoints that are left: remove them, or take another folder. Received: {', '.join(found)}"
            )
        return False

    def start(self, config: RunConfig, tokenizer: SubwordTokenizer | None = None) -> None:
        """Makes the folder, or keeps the settings with which a run that it holds resumes.

        Args:
            config: What is to be trained.
            tokenizer: Trained on the texts of the config.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None and not self.trained:
            for path in self.weights:  # of a run that was cut off at its first checkpoint
                path.unlink()
            write_atomically(self.tokenizer_file, tokenizer.save)
            self._record_fingerprints(config)
        elif tokenizer is not None and not self.fingerprints_file.exists():
            self._record_fingerprints(config)
        if not self.trained or config != self.config:
            config.save(self.config_file)

    def check_places(self) -> None:
        """Checks, before hours of training, that its files can be written.

        Raises:
            ValueError: A file or a folder is in the way, or may not be written.
        """
        for folder in (self.checkpoints, self.logs):
            check_folder(folder)
        check_output(self.history_file)

    def check_texts(self, config: RunConfig) -> None:
        """Checks that the texts are those that the checkpoints were trained with.

        Args:
            config: With the paths of the texts.

        Raises:
            FileNotFoundError: A text is missing.
            ValueError: A text is another.
        """
        fingerprints = self._fingerprints()
        for name in FILES:
            path = getattr(config, name)
            if name in fingerprints and fingerprints[name] != sha256(path):
                raise ValueError(
                    f"The text has changed since the run in {self.path} began: put the file from before back, or "
                    f"train in another folder. Received: {name}={path!r}"
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
        """The weights that can be averaged, the oldest first."""
        return weight_files(self.checkpoints)

    def model_file(self, checkpoint: str) -> Path:
        """Where a checkpoint lies.

        Args:
            checkpoint: "final" (what training ended with: the average or the best), "average", "best" (by
                validation loss) or "last".

        Returns:
            A path, whether or not the file exists.

        Raises:
            ValueError: Another name.
        """
        if checkpoint not in CHECKPOINTS:
            raise ValueError(f"`checkpoint` is one of {', '.join(CHECKPOINTS)}. Received: checkpoint={checkpoint!r}")
        return self.checkpoints / f"{checkpoint}.keras"

    def translator(
        self,
        checkpoint: str | None = None,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        weights: str | None = None,
    ) -> Translator:
        """Loads a checkpoint and the tokenizer.

        Args:
            checkpoint: See `model_file`; by default the first of them that exists.
            beam_size: Hypotheses followed at a time.
            length_penalty: The exponent of the length penalty.
            weights: "bfloat16" or "int8" for lighter ones than were trained.

        Returns:
            A translator.

        Raises:
            FileNotFoundError: No run here, or no such checkpoint.
            ValueError: Other weights, or an option out of its range.
        """
        DecodingOptions(beam_size=beam_size, length_penalty=length_penalty)  # checked before the weights are read
        self._check()
        if weights not in WEIGHTS:
            raise ValueError(f"`weights` is one of {', '.join(map(str, WEIGHTS))}. Received: weights={weights!r}")
        tokenizer = self.tokenizer
        file = self.checkpoint_file(checkpoint)
        if checkpoint is None and file != self.model_file("final"):
            print(f"{self.path} has not finished training: using its checkpoint {file.stem}", file=sys.stderr)
        model = self.load(file, compile=False)
        if weights == "bfloat16":
            model = model.in_dtype(weights)
        elif weights == "int8":
            model.quantize(weights)
        return Translator(model, tokenizer, beam_size=beam_size, length_penalty=length_penalty)

    def checkpoint_file(self, checkpoint: str | None = None) -> Path:
        """Finds a checkpoint.

        Args:
            checkpoint: See `model_file`; by default the first of them that exists.

        Returns:
            The path of a file.

        Raises:
            FileNotFoundError: No such checkpoint.
        """
        found = [name for name in CHECKPOINTS if self.model_file(name).exists()]
        if not found:
            raise FileNotFoundError(f"{self.path} has no checkpoint yet: train it. Received: checkpoint={checkpoint!r}")
        chosen = self.model_file(found[0] if checkpoint is None else checkpoint)
        if not chosen.exists():
            raise FileNotFoundError(
                f"{self.path} has no checkpoint of this name, only {', '.join(found)}: choose one of them, or train "
                f"to the end. Received: checkpoint={checkpoint!r}"
            )
        return chosen

    def load(self, file: Path, compile: bool = True) -> Any:
        """Reads a checkpoint, and sees that it is of the model that the config describes.

        Args:
            file: One of the run's checkpoints.
            compile: Whether with the optimizer.

        Returns:
            The model.

        Raises:
            ValueError: The file is damaged, or holds another model.
        """
        config = self.config
        try:
            open(file, "rb").close()  # `is_zipfile` does not tell a file that may not be read
            if not zipfile.is_zipfile(file):
                raise ValueError("it is not a zip file, or was cut off")
            model = keras.models.load_model(file, compile=compile)
        except PermissionError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            others = [name for name in CHECKPOINTS if self.model_file(name).exists() and name != file.stem]
            raise ValueError(
                f"{file} is damaged: {' '.join(str(error).split())[:200]}. "
                f"Other checkpoints of the run: {', '.join(others) or 'none'}"
            ) from error
        theirs, ours = model.config.to_dict(), config.transformer().to_dict()
        differing = [
            f"{name}: {theirs[name]!r} there, {ours[name]!r} here" for name in ours if ours[name] != theirs[name]
        ]
        if model.dtype_policy.name != config.dtype:
            differing.append(f"dtype: {model.dtype_policy.name!r} there, {config.dtype!r} here")
        if differing:
            raise ValueError(
                f"{file} and {self.config_file} are not of one run: put the config from before back. "
                f"Received: {'; '.join(differing)}"
            )
        return model

    def _check(self) -> None:
        if not self.exists:
            if self.checkpoints.exists():
                raise FileNotFoundError(
                    f"{self.config_file} is missing, though the run has checkpoints: put the file back, or take "
                    "another folder"
                )
            raise FileNotFoundError(
                f"{self.path} is not the folder of a training run: it has no config.yaml. "
                "Start one with `keras-attention train`"
            )

    def _check_tokenizer(self) -> None:
        if not self.tokenizer_file.exists():
            raise FileNotFoundError(
                f"{self.tokenizer_file} is missing, and the weights of the run mean nothing with another tokenizer: "
                "put the file back, or train in another folder"
            )
        found = sha256(self.tokenizer_file)
        if self._fingerprints().get("tokenizer", found) != found:
            raise ValueError(
                f"{self.tokenizer_file} is not the tokenizer that the run was trained with: put that one back. "
                f"Received: SHA-256 {found}"
            )

    def _record_fingerprints(self, config: RunConfig) -> None:
        files = {"tokenizer": self.tokenizer_file, **{name: getattr(config, name) for name in FILES}}
        text = json.dumps({name: sha256(file) for name, file in files.items()}, indent=2) + "\n"
        write_atomically(self.fingerprints_file, lambda path: Path(path).write_text(text, encoding="utf-8"))

    def _fingerprints(self) -> dict[str, str]:
        """Those of when training began; none in the folder of a release that did not keep them."""
        if not self.fingerprints_file.exists():
            return {}
        damaged = f"{self.fingerprints_file} is damaged: put the file from before back, or remove it"
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
