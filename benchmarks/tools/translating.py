"""A file translated by every side of the decoding benchmark, text to text."""

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import Case
from benchmarks.peers.decoding import TOKENIZER
from benchmarks.tools.speeds import share_of_equal
from benchmarks.tools.turns import in_turn
from benchmarks.tools.workers import Worker, lines_of

# What CTranslate2 may do: tokens of a batch, batches at a time. The fastest counts.
BATCHES, AT_ONCE = (1024, 2048, 4096, 8192), (1, 2)
KERASHUB_LINES = 64  # of the file; its time is scaled to all


@dataclass(frozen=True)
class Translation:
    """A file, and how it is translated.

    Attributes:
        source: The file, a sentence a line.
        target: Its translations, for BLEU, or None.
        tokenizer: The folder that holds it.
        beam: Beams.
        length_penalty: α of the score log p / nᵅ.
    """

    source: Path
    target: Path | None
    tokenizer: Path
    beam: int
    length_penalty: float

    def requests(self, workers: dict[str, Worker]) -> tuple[dict[str, dict], dict[str, list[str]]]:
        """What each side is asked for, and its answer to that; asking is also what warms it up.

        Args:
            workers: The sides.

        Returns:
            Arguments and translations by side.
        """
        asked, texts = {}, {}
        for name, worker in workers.items():
            asked[name] = {"file": str(self.source.resolve()), "beam": self.beam}
            if name == "kerashub":
                every = max(1, len(lines_of(self.source)) // KERASHUB_LINES)
                asked[name] |= {"every": every, "length": self._longest(texts)}
            else:
                asked[name]["length_penalty"] = self.length_penalty
            if name.startswith("ctranslate2"):
                asked[name] |= _fastest_batches(worker, asked[name])
            texts[name] = worker.ask("translate", **asked[name])["found"]
        return asked, texts

    def measure(self, workers: dict[str, Worker], rounds: int) -> tuple[Case, dict[str, dict]]:
        """The seconds of each side, and what else was found.

        Args:
            workers: The sides.
            rounds: Of each.

        Returns:
            A row, and findings by heading and side.
        """
        asked, texts = self.requests(workers)
        lines = lines_of(self.source)
        measured = in_turn(
            {name: lambda name=name: workers[name].ask("translate", **asked[name]) for name in workers},
            rounds,
            report=lambda line: None,
        )
        case = Case(
            f"{len(lines):,} lines, beam {self.beam}",
            {name: [each["seconds"] for each in found] for name, found in measured.items()},
        )
        found = {}
        if "kerashub" in texts:
            some = len(texts["kerashub"]["lines"])
            scaled = [seconds * len(lines) / some for seconds in case.seconds["kerashub"]]
            case = replace(case, seconds={**case.seconds, "kerashub": scaled})
            found["kerashub's time is scaled"] = {"from lines": some, "to lines": len(lines)}
        found["lines a second"] = {name: len(lines) / case.median(name) for name in workers}
        whole = {name: each for name, each in texts.items() if name != "kerashub"}
        if "ctranslate2" in whole:
            found["same translations as ctranslate2"] = {
                name: share_of_equal(each, whole["ctranslate2"]) for name, each in whole.items()
            }
        for what in ("tokens_per_batch", "batches_at_once"):
            found[what.replace("_", " ")] = {name: each[what] for name, each in asked.items() if what in each}
        if self.target is not None:
            found["BLEU"] = self._bleu(texts, lines)
        return case, found

    def _longest(self, texts: dict[str, list[str]]) -> int:
        """Tokens of the longest translation found, its end counted: a limit that costs KerasHub nothing needless."""
        from keras_attention.text import SubwordTokenizer

        tokenizer = SubwordTokenizer.load(self.tokenizer / TOKENIZER)
        found = [row for each in texts.values() for row in tokenizer.encode(each)]
        return max(map(len, found), default=127) + 1

    def _bleu(self, texts: dict[str, object], lines: list[str]) -> dict[str, float]:
        """Of each side; of KerasHub's over the lines that it translated."""
        import sacrebleu

        references = lines_of(self.target)
        of = dict(zip(lines, references, strict=True))
        scores = {}
        for name, each in texts.items():
            found, expected = (each, references)
            if name == "kerashub":
                found, expected = each["texts"], [of[line] for line in each["lines"]]
            scores[name] = sacrebleu.corpus_bleu(found, [expected]).score
        return scores


def _fastest_batches(worker: Worker, asked: dict) -> dict[str, int]:
    """The batches with which CTranslate2 is fastest on the file."""
    ways = [{"tokens_per_batch": tokens, "batches_at_once": count} for tokens in BATCHES for count in AT_ONCE]
    return min(ways, key=lambda way: worker.ask("translate", **asked, **way)["seconds"])
