"""What both clients do: batches, signatures, a look at the answers."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_attention.client.retries import ServingError, ask_again

Text = str | bytes


class Translation(NamedTuple):
    """A translation and its score, the length-penalised log-probability."""

    text: str
    score: float


class Score(NamedTuple):
    """The log-probability of a target and how many tokens it has, the end of sentence counted."""

    score: float
    tokens: int


class Alignment(NamedTuple):
    """A translation and where the model looked: `weights[t][s]` for each target and source piece."""

    text: str
    score: float
    source_pieces: list[str]
    target_pieces: list[str]
    weights: list[list[float]]


class Client(ABC):
    """Asks a served translator; see `RestClient` and `GrpcClient`.

    Args:
        model: The model's name on the server.
        version: Its version; the newest by default.
        timeout: Seconds that the server has for one request.
        retries: How often a request is sent again when the server is away or busy.
        batch_size: The most texts of one request.

    Raises:
        ValueError: If a number is out of its range or the name is empty.
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
        least = {"timeout": (timeout, 0.001), "retries": (retries, 0), "batch_size": (batch_size, 1)}
        for name, (value, minimum) in least.items():
            if not value >= minimum:
                raise ValueError(f"{name} must be {minimum} or more. Received: {name}={value}")
        self.model = model
        self.version = version
        self.timeout = timeout
        self.retries = retries
        self.batch_size = batch_size

    def translate(self, texts: Sequence[Text]) -> list[str]:
        """Translates texts; warns of those of which only the beginning was read.

        Args:
            texts: The texts; as bytes where they may not be UTF-8.

        Returns:
            The best translation of each.

        Raises:
            ServingError: If the server is not reached or gives no answer.
        """
        found = self._ask("serving_default", {"source": texts}, ("text", "score"))
        _check_numbers(found["score"])
        return found["text"]

    def translate_nbest(self, texts: Sequence[Text]) -> list[list[Translation]]:
        """Gives several translations of each text; warns of texts of which only the beginning was read.

        Args:
            texts: The texts; as bytes where they may not be UTF-8.

        Returns:
            The translations of each, best first.

        Raises:
            ServingError: If the server is not reached or gives no answer.
        """
        found = self._ask("translate_nbest", {"source": texts}, ("texts", "scores"))
        _check_numbers([scores[0] for scores in found["scores"] if scores])
        return [
            [Translation(*pair) for pair in zip(*both, strict=True)]
            for both in zip(found["texts"], found["scores"], strict=True)
        ]

    def score(self, sources: Sequence[Text], targets: Sequence[Text]) -> list[Score]:
        """Scores given translations; warns of texts of which only the beginning was read.

        Args:
            sources: The texts.
            targets: A translation of each.

        Returns:
            The log-probability of each target given its source.

        Raises:
            ValueError: If there are not as many targets as sources.
            ServingError: If the server is not reached or gives no answer.
        """
        if len(sources) != len(targets):
            raise ValueError(
                f"targets must be as many as sources. Received: {len(targets)} targets, {len(sources)} sources"
            )
        found = self._ask("score", {"source": sources, "target": targets}, ("score", "tokens"))
        _check_numbers(found["score"])
        return [Score(*pair) for pair in zip(found["score"], found["tokens"], strict=True)]

    def align(self, text: Text) -> Alignment:
        """Translates a text and says which of its pieces the model looked at for each piece it wrote.

        Args:
            text: One text.

        Returns:
            The translation, the pieces and the weights between them.

        Raises:
            ServingError: If the server is not reached or gives no answer.
        """
        names = ("text", "score", "source_pieces", "target_pieces", "alignment")
        row = {name: values[0] for name, values in self._ask("align", {"source": [text]}, names).items()}
        _check_numbers([row["score"]])
        source, target = _unpadded(row["source_pieces"]), _unpadded(row["target_pieces"])
        weights = [columns[: len(source)] for columns in row["alignment"][: len(target)]]
        return Alignment(row["text"], row["score"], source, target, weights)

    def status(self) -> dict[int, str]:
        """Asks which versions of the model the server has.

        Returns:
            The state of each, "AVAILABLE" where it answers.

        Raises:
            ServingError: If the server is not reached or does not have the model.
        """
        return ask_again(self._status, self.retries)

    def close(self) -> None:
        """Ends the connection."""
        return None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def _predict(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, list]:
        """Sends one request; gives a list for each output."""

    @abstractmethod
    def _status(self) -> dict[int, str]:
        """Asks once for the state of each version."""

    def _ask(self, signature: str, inputs: dict[str, Sequence[Text]], outputs: tuple[str, ...]) -> dict[str, list]:
        """Asks in batches; gives one value for each text and output."""
        encoded = {name: _encode(name, texts) for name, texts in inputs.items()}
        number = len(next(iter(encoded.values())))
        found: dict[str, list] = {name: [] for name in (*outputs, "truncated")}
        for start in range(0, number, self.batch_size):
            batch = {name: texts[start : start + self.batch_size] for name, texts in encoded.items()}
            answer = ask_again(lambda batch=batch: self._predict(signature, batch), self.retries)
            rows = min(self.batch_size, number - start)
            answer.setdefault("truncated", [False] * rows)
            for name, values in found.items():
                if len(answer.get(name, ())) != rows:
                    got = {key: len(value) for key, value in answer.items()}
                    raise ServingError(f"Model {self.model}, signature {signature}: {rows} texts in, but out: {got}")
                values += answer[name]
        _warn_of_truncated(found.pop("truncated"))
        return found


def _encode(name: str, texts: Sequence[Text]) -> list[bytes]:
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a list of texts; write [text] for one. Received: {texts!r:.80}")
    wrong = [text for text in texts if not isinstance(text, str | bytes)]
    if wrong:
        raise TypeError(f"{name}: each text must be str or bytes. Received: {wrong[0]!r:.80}")
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]


def _unpadded(pieces: list[str]) -> list[str]:
    """Without the empty pieces at the end of a row that shared a batch with longer ones."""
    length = max((place for place, piece in enumerate(pieces, 1) if piece), default=0)
    return pieces[:length]


def _check_numbers(scores: list[float]) -> None:
    broken = [place for place, score in enumerate(scores) if math.isnan(score)]
    if broken:
        raise ServingError(
            f"The model gives no usable probabilities for texts {broken}: its weights probably hold NaN. "
            "Serve an earlier version"
        )


def _warn_of_truncated(truncated: list[bool]) -> None:
    places = [place for place, cut in enumerate(truncated) if cut]
    if places:
        warnings.warn(f"Texts {places} are longer than the model reads: only their beginning counted", stacklevel=4)
