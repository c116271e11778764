"""The folder of a training run: what lies where in it."""

from pathlib import Path

import keras

from keras_attention.pipeline.config import RunConfig
from keras_attention.serving import Translator
from keras_attention.text import SubwordTokenizer
from keras_attention.training import weight_files

# What the weights of a translator may be, beside those that were trained.
WEIGHTS = (None, "bfloat16", "int8")
CHECKPOINTS = ("final", "average", "best", "last")


class RunFolder:
    """`config.yaml`, `tokenizer.model`, `history.csv`, `logs/` for TensorBoard and `checkpoints/`.

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
        self.history_file = self.path / "history.csv"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    def start(self, config: RunConfig) -> None:
        """Makes the folder and writes the config, unless a run is there already.

        Args:
            config: What is to be trained.
        """
        if not self.exists:
            self.path.mkdir(parents=True, exist_ok=True)
            config.save(self.config_file)

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        self._check()
        return RunConfig.load(self.config_file)

    @property
    def tokenizer(self) -> SubwordTokenizer:
        """The tokenizer of the run."""
        self._check()
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
            checkpoint: As of `model_file`; by default the first of them that exists.
            beam_size: Hypotheses followed at a time.
            length_penalty: The exponent of the length penalty.
            weights: "bfloat16" or "int8" for lighter ones than were trained.

        Returns:
            A translator.

        Raises:
            FileNotFoundError: No run here, or no such checkpoint.
            ValueError: Other weights.
        """
        self._check()
        if weights not in WEIGHTS:
            raise ValueError(f"`weights` is one of {', '.join(map(str, WEIGHTS))}. Received: weights={weights!r}")
        names = CHECKPOINTS if checkpoint is None else (checkpoint,)
        found = [path for path in map(self.model_file, names) if path.exists()]
        if not found:
            raise FileNotFoundError(
                f"{self.path} has no checkpoint called {' or '.join(names)} yet: train it, or average its weights"
            )
        model = keras.models.load_model(found[0], compile=False)
        if weights == "bfloat16":
            model = model.in_dtype(weights)
        elif weights == "int8":
            model.quantize(weights)
        return Translator(model, self.tokenizer, beam_size=beam_size, length_penalty=length_penalty)

    def _check(self) -> None:
        if not self.exists:
            raise FileNotFoundError(
                f"{self.path} is not the folder of a training run: it has no config.yaml. "
                "Start one with `keras-attention train`"
            )
