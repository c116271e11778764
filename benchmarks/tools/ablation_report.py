"""The tables and the picture of the ablations: `python -m benchmarks.tools.ablation_report`, from their JSON file.

It also writes a summary and the tables into the page, between lines such as `<!-- tables -->` and `<!-- end of tables
-->`.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.tools.ablation_rows import BASE, ROWS, SEEDS, Row

DOCS = RESULTS.parent.parent / "docs"
IMAGE, PAGE = DOCS / "images" / "ablations.png", DOCS / "experiments" / "ablations.md"
TITLES = {
    "base": "The base model",
    "A": "Table 3, rows A: heads",
    "B": "Table 3, rows B: width of the keys",
    "C": "Table 3, rows C: size of the model",
    "D": "Table 3, rows D: dropout and label smoothing",
    "E": "Table 3, row E: learned positions",
    "scores": "The scores",
    "parts": "Parts left out",
    "order": "The order of the words",
}
MEASURES = ("perplexity", "bleu")
# A difference counts if it is larger than so many spreads of the base model's seeds.
SPREADS = 2
# In table 3 a difference of the last digit is none.
PAPER_STEP = {"perplexity": 0.015, "bleu": 0.15}


def spreads(rows: dict[str, Any]) -> dict[str, float] | None:
    """The largest minus the smallest value of the base model's seeds; None before all are trained."""
    seeds = [rows[name] for name in SEEDS if name in rows]
    if len(seeds) < len(SEEDS):
        return None
    return {
        measure: max(seed[measure] for seed in seeds) - min(seed[measure] for seed in seeds) for measure in MEASURES
    }


def reference_value(rows: dict[str, Any], reference: str, measure: str) -> float | None:
    """The value of a row to compare with; of the base model the mean of its seeds."""
    names = SEEDS if reference == BASE else (reference,)
    values = [rows[name][measure] for name in names if name in rows]
    return statistics.mean(values) if values and None not in values else None


def direction(difference: float, smallest: float, measure: str) -> str:
    """ "better", "worse", or "same" for a difference that is not above the smallest that counts."""
    if abs(difference) <= smallest:
        return "same"
    return "better" if (difference < 0) == (measure == "perplexity") else "worse"


def expected(row: Row, measure: str) -> str | None:
    """The direction in the paper: of the numbers of table 3, or of what its text says."""
    if row.paper is None:
        return row.claim
    base = ROWS[BASE].paper
    column = MEASURES.index(measure)
    return direction(row.paper[column] - base[column], PAPER_STEP[measure], measure)


def seen(name: str, rows: dict[str, Any], measure: str) -> str | None:
    """The direction here; None where something to compare with is missing."""
    smallest = spreads(rows)
    value, reference = rows[name][measure], reference_value(rows, ROWS[name].reference, measure)
    if value is None:
        return "diverged"
    if smallest is None or reference is None:
        return None
    return direction(value - reference, SPREADS * smallest[measure], measure)


def verdict(name: str, rows: dict[str, Any], measure: str) -> str:
    """Compares the directions here and in the paper, such as "worse: as in the paper"."""
    here, there = seen(name, rows, measure), expected(ROWS[name], measure)
    if here is None:
        return "–"
    if there is None:
        return here
    return f"**{here}**: as in the paper" if here == there else f"{here}; the paper: {there}"


def summary(content: dict[str, Any]) -> str:
    """Lists the rows that point where the paper points, those that do not, and those that are missing, as Markdown."""
    rows = content["rows"]
    compared = [name for name, row in ROWS.items() if name in rows and name not in SEEDS and (row.paper or row.claim)]
    lines = []
    for measure, title in zip(MEASURES, ("Perplexity", "BLEU"), strict=True):
        groups: dict[str, list[str]] = {"as in the paper": [], "no difference seen": [], "unlike the paper": []}
        for name in compared:
            here, there = seen(name, rows, measure), expected(ROWS[name], measure)
            if here is not None:
                agrees = "as in the paper" if here == there else "unlike the paper"
                groups["no difference seen" if here == "same" != there else agrees].append(f"`{name}`")
        parts = [f"{text}: {len(names)} ({', '.join(names)})" for text, names in groups.items() if names]
        lines += [f"- {title}: {'; '.join(parts)}."] if parts else []
    missing = [f"`{name}`" for name in ROWS if name not in rows]
    lines += [f"- Not trained yet: {len(missing)} of {len(ROWS)} rows ({', '.join(missing)})."] if missing else []
    return "\n".join(lines)


def tables(content: dict[str, Any]) -> str:
    """The results as Markdown, a table for each group that has some."""
    return "\n".join(line for group in TITLES for line in _table(group, content["rows"]))


def _table(group: str, rows: dict[str, Any]) -> Iterator[str]:
    is_order = group == "order"
    names = [n for n, row in ROWS.items() if n in rows and (row.reads_shuffled if is_order else row.group == group)]
    if not names:
        return
    yield f"### {TITLES[group]}\n"
    if is_order:
        yield from _order(names, rows)
        return
    is_base, has_paper = group == "base", ROWS[names[0]].paper is not None
    heading = ["row", "", "weights", "perplexity", "BLEU"]
    heading += [] if is_base else ["compared with", "perplexity is", "BLEU is"]
    heading += ["in the paper"] if has_paper else []
    yield _line(heading)
    yield _line(["---"] * len(heading))
    for name in names:
        row, result = ROWS[name], rows[name]
        cells = [f"`{name}`", row.text, f"{result['parameters']:,}", *(_number(result[each]) for each in MEASURES)]
        cells += [] if is_base else [f"`{row.reference}`", *(verdict(name, rows, each) for each in MEASURES)]
        cells += ["{}, {}".format(*row.paper)] if row.paper else []
        yield _line(cells)
    spread = spreads(rows)
    if is_base and spread:
        yield _line(["", "largest − smallest", "", *(_number(spread[each]) for each in MEASURES), ""])
    yield ""


def _order(names: list[str], rows: dict[str, Any]) -> Iterator[str]:
    """Perplexity and BLEU of models that read the words of the source in their order, and in a random one."""
    heading = [
        "row",
        "positions",
        "trained on",
        "reads words in order: perplexity",
        "BLEU",
        "shuffled: perplexity",
        "BLEU",
    ]
    heading += ["compared with", "perplexity is", "BLEU is"]
    yield _line(heading)
    yield _line(["---"] * len(heading))
    for name in names:
        row, result = ROWS[name], rows[name]
        own, other = ([_number(each[measure]) for measure in MEASURES] for each in (result, result["other_order"]))
        positions = "sinusoids" if name == BASE else row.text.partition(",")[0].removesuffix(" positions")
        cells = [f"`{name}`", positions, "shuffled words" if row.is_shuffled else "ordered words"]
        cells += other + own if row.is_shuffled else own + other
        cells += [f"`{row.reference}`", *(verdict(name, rows, each) for each in MEASURES)]
        yield _line(cells if name != BASE else [*cells[:-3], "", "", ""])
    yield ""


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:,.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(content: dict[str, Any], image: Path = IMAGE) -> Path:
    """Draws the perplexity of each row next to the range of the base model's seeds.

    Args:
        content: Content of the JSON file.
        image: Where the PNG goes.

    Returns:
        Its path.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    rows = content["rows"]
    names = [name for name in ROWS if name in rows and name not in SEEDS[1:]]
    finite = [(name, rows[name]["perplexity"]) for name in names if rows[name]["perplexity"] is not None]
    colors = dict(zip(TITLES, pyplot.colormaps["tab10"].colors, strict=False))
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.26 * len(finite)), layout="constrained", facecolor="white")
    for index, (name, value) in enumerate(finite):
        axes.plot(value, index, "o", color=colors[ROWS[name].group])
        axes.annotate(f"{value:.1f}", (value, index), (6, 0), textcoords="offset points", va="center", fontsize=7)
    seeds = [rows[name]["perplexity"] for name in SEEDS if name in rows]
    if seeds:
        axes.axvspan(min(seeds), max(seeds), color="0.85", zorder=0, label="seeds of the base model")
        axes.legend(frameon=False, loc="upper right")
    labels = [f"{name}: {ROWS[name].text}" for name, _ in finite]
    axes.set_yticks(range(len(finite)), labels, fontsize=7)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set(xlabel="perplexity of the dev text (lower is better)", xscale="log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=130)
    pyplot.close(figure)
    return image


def write_page(content: dict[str, Any], page: Path = PAGE) -> Path:
    """Writes the summary and the tables into the page, and returns its path."""
    text = page.read_text(encoding="utf-8")
    for name, block in (("summary", summary(content)), ("tables", tables(content))):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if not 0 <= text.find(start) < text.find(end):
            raise SystemExit(f"{page} must contain the lines {start.strip()} and {end}")
        before, after = text.partition(start)[0], text.partition(end)[2]
        text = f"{before}{start}\n{block.strip()}\n\n{end}{after}"
    page.write_text(text, encoding="utf-8")
    return page


def main() -> None:
    """Writes the tables and draws the picture."""
    path = RESULTS / "ablations.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run python -m benchmarks.ablations first")
    content = json.loads(path.read_text(encoding="utf-8"))
    print(write_page(content), draw(content), sep="\n")


if __name__ == "__main__":
    main()
