"""The base class of the clients: batches of texts, signatures, checks of the responses."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_attention.client.retries import ServingError, with_retries

Text = str | bytes


class Translation(NamedTuple):
    """A translation and its score, the log probability divided by the length penalty."""

    text: str
    score: float


class Score(NamedTuple):
    """The log probability of a target and its number of tokens, the end of sentence included."""

    score: float
    tokens: int


class Alignment(NamedTuple):
    """A translation and its attention weights, `weights[t][s]` for each target piece t and source piece s."""

    text: str
    score: float
    source_pieces: list[str]
    target_pieces: list[str]
    weights: list[list[float]]


class Client(ABC):
    """Base class of the clients of a served translator; see `RestClient` and `GrpcClient`.

    Args:
        model: Name of the model on the server.
        version: Version of the model; the newest by default.
        timeout: Timeout of a request in seconds.
        retries: Maximum number of retries of a request when the server is unavailable or busy.
        batch_size: Maximum number of texts of a request.

    Raises:
        ValueError: If a number is out of its range, or `model` is empty or has a slash or a colon.
    """

    def __init__(
        self,
        model: str = "en-de",
        version: int | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        batch_size: int = 32,
    ):
        if not model or "/" in model or ":" in model:
            raise ValueError(f"model must be a name without / and : in it. Received: model={model!r}")
        minima = {"timeout": (timeout, 0.001), "retries": (retries, 0), "batch_size": (batch_size, 1)}
        for name, (value, minimum) in minima.items():
            if not value >= minimum:
                raise ValueError(f"{name} must be {minimum} or more. Received: {name}={value}")
        self.model = model
        self.version = version
        self.timeout = timeout
        self.retries = retries
        self.batch_size = batch_size

    def translate(self, texts: Sequence[Text]) -> list[str]:
        """Translates texts, and warns of those of which only the beginning is read.

        Args:
            texts: The texts; bytes if they may be invalid UTF-8.

        Returns:
            The best translation of each text.

        Raises:
            ServingError: If the server is unavailable, or its response is an error or invalid.
        """
        outputs = self._predict_all("serving_default", {"source": texts}, ("text", "score"))
        _check_scores(outputs["score"])
        return outputs["text"]

    def translate_nbest(self, texts: Sequence[Text]) -> list[list[Translation]]:
        """Translates texts with several results for each, and warns of those of which only the beginning is read.

        Args:
            texts: The texts; bytes if they may be invalid UTF-8.

        Returns:
            The n best translations of each text, best first.

        Raises:
            ServingError: If the server is unavailable, or its response is an error or invalid.
        """
        outputs = self._predict_all("translate_nbest", {"source": texts}, ("texts", "scores"))
        _check_scores([scores[0] for scores in outputs["scores"] if scores])
        return [
            [Translation(*pair) for pair in zip(*row, strict=True)]
            for row in zip(outputs["texts"], outputs["scores"], strict=True)
        ]

    def score(self, sources: Sequence[Text], targets: Sequence[Text]) -> list[Score]:
        """Scores translations, and warns of texts of which only the beginning is read.

        Args:
            sources: The texts.
            targets: A translation of each text.

        Returns:
            The log probability of each target given its source.

        Raises:
            ValueError: If the numbers of targets and sources differ.
            ServingError: If the server is unavailable, or its response is an error or invalid.
        """
        if len(sources) != len(targets):
            raise ValueError(
                f"targets must be as many as sources. Received: {len(targets)} targets, {len(sources)} sources"
            )
        outputs = self._predict_all("score", {"source": sources, "target": targets}, ("score", "tokens"))
        _check_scores(outputs["score"])
        return [Score(*pair) for pair in zip(outputs["score"], outputs["tokens"], strict=True)]

    def align(self, text: Text) -> Alignment:
        """Translates a text and returns the attention weights between the pieces of both.

        Args:
            text: A text.

        Returns:
            The translation, the pieces and the weights between them.

        Raises:
            ServingError: If the server is unavailable, or its response is an error or invalid.
        """
        names = ("text", "score", "source_pieces", "target_pieces", "alignment")
        row = {name: values[0] for name, values in self._predict_all("align", {"source": [text]}, names).items()}
        _check_scores([row["score"]])
        source, target = _unpadded(row["source_pieces"]), _unpadded(row["target_pieces"])
        weights = [columns[: len(source)] for columns in row["alignment"][: len(target)]]
        return Alignment(row["text"], row["score"], source, target, weights)

    def status(self) -> dict[int, str]:
        """Returns the state of each version of the model.

        Returns:
            The states by version, "AVAILABLE" for one that is served.

        Raises:
            ServingError: If the server is unavailable or does not have the model.
        """
        return with_retries(self._status, self.retries)

    def close(self) -> None:
        """Closes the connection."""
        return None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def _predict(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, list]:
        """Sends one request and returns a list for each output."""

    @abstractmethod
    def _status(self) -> dict[int, str]:
        """Sends one request for the state of each version."""

    def _predict_all(
        self, signature: str, inputs: dict[str, Sequence[Text]], outputs: tuple[str, ...]
    ) -> dict[str, list]:
        """Sends the texts in batches and returns a list of the length of `inputs` for each output."""
        encoded = {name: _encode(name, texts) for name, texts in inputs.items()}
        number = len(next(iter(encoded.values())))
        joined: dict[str, list] = {name: [] for name in (*outputs, "truncated")}
        for start in range(0, number, self.batch_size):
            batch = {name: texts[start : start + self.batch_size] for name, texts in encoded.items()}
            response = with_retries(lambda batch=batch: self._predict(signature, batch), self.retries)
            rows = min(self.batch_size, number - start)
            response.setdefault("truncated", [False] * rows)
            for name, values in joined.items():
                if len(response.get(name, ())) != rows:
                    lengths = {key: len(value) for key, value in response.items()}
                    raise ServingError(
                        f"Model {self.model}, signature {signature}: {rows} texts in, but out: {lengths}"
                    )
                values += response[name]
        _warn_of_truncated(joined.pop("truncated"))
        return joined


def _encode(name: str, texts: Sequence[Text]) -> list[bytes]:
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a list of texts; write [text] for one. Received: {texts!r:.80}")
    for text in texts:
        if not isinstance(text, str | bytes):
            raise TypeError(f"{name}: each text must be str or bytes. Received: {text!r:.80}")
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]


def _unpadded(pieces: list[str]) -> list[str]:
    """Removes the empty pieces that pad a row to the longest of its batch."""
    length = max((count for count, piece in enumerate(pieces, 1) if piece), default=0)
    return pieces[:length]


def _check_scores(scores: list[float]) -> None:
    broken = [index for index, score in enumerate(scores) if math.isnan(score)]
    if broken:
        raise ServingError(
            f"The model gives no usable probabilities for texts {broken}: its weights probably hold NaN. "
            "Serve an earlier version"
        )


def _warn_of_truncated(truncated: list[bool]) -> None:
    indices = [index for index, cut in enumerate(truncated) if cut]
    if indices:
        warnings.warn(f"Texts {indices} are longer than the model reads: only their beginning counted", stacklevel=4)
