"""The chart of the training benchmarks: `python -m benchmarks.tools.chart`, from their JSON files to the docs."""

import json
from pathlib import Path

from benchmarks.harness import RESULTS

IMAGE = RESULTS.parent.parent / "docs" / "images" / "training.png"
OURS_COLOUR, PEER_COLOUR = "#3f51b5", "#b0b4c3"


def draw(results: list[dict], image: Path = IMAGE) -> Path:
    """Draws tokens a second of each side, a panel for each result.

    Args:
        results: Contents of JSON files of `Rates`.
        image: Where the PNG goes.

    Returns:
        Its path.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(result["sides"]) for result in results]
    figure, panels = pyplot.subplots(
        len(results), 1, figsize=(8, 0.9 * len(results) + 0.4 * sum(heights)), height_ratios=heights, squeeze=False,
        sharex=True, layout="constrained",
    )  # fmt: skip
    for result, (panel,) in zip(results, panels, strict=True):
        sides = sorted(result["sides"], key=lambda side: result["sides"][side]["median"]["tokens_per_second"])
        rates = [result["sides"][side]["median"]["tokens_per_second"] for side in sides]
        ours = next(iter(result["sides"]))
        bars = panel.barh(sides, rates, color=[OURS_COLOUR if side == ours else PEER_COLOUR for side in sides])
        panel.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=4)
        panel.set_title(result["title"], loc="left", fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.12)
    panels[-1, 0].set_xlabel("source and target tokens a second of training, padding not counted")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=130)
    pyplot.close(figure)
    return image


def main() -> None:
    """Plots the measurements of this library and its peers."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("training-*.json"))]
    compared = [content for content in contents if len(content["sides"]) > 1]
    if not compared:
        raise SystemExit(f"{RESULTS} has no training-*.json with peers: run python -m benchmarks.training first")
    print(draw(compared))


if __name__ == "__main__":
    main()
