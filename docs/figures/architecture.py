"""Figure 1 of the paper with the file of each box: `python docs/figures/architecture.py`, or `make figures`."""

from pathlib import Path

IMAGE = Path(__file__).parent.parent / "images" / "architecture.png"

# Each box from the bottom up: the paper's words and the file in keras_attention/.
EMBEDDING = ("Embedding", "layers/embedding.py")
POSITIONS = ("Positional\nEncoding", "layers/positions.py")
ADD_AND_NORM = ("Add & Norm", "layers/block.py")
FEED_FORWARD = ("Feed\nForward", "layers/feed_forward.py")
ENCODER_LAYER = [
    ("Multi-Head\nAttention", "layers/attention.py"),
    ADD_AND_NORM,
    FEED_FORWARD,
    ADD_AND_NORM,
]
DECODER_LAYER = [
    ("Masked\nMulti-Head\nAttention", "layers/attention.py"),
    ADD_AND_NORM,
    ("Multi-Head\nAttention", "layers/attention.py"),
    ADD_AND_NORM,
    FEED_FORWARD,
    ADD_AND_NORM,
]
OUTPUT = [("Linear", "layers/embedding.py"), ("Softmax", "training/losses.py\ndecoding/beam_search.py")]
STACK_FILES = {"encoder": "layers/encoder.py", "decoder": "layers/decoder.py"}

COLOURS = {
    "Embedding": "#fadfe0",
    "Positional": "#ffffff",
    "Add & Norm": "#f3f5c3",
    "Feed": "#c5e4f7",
    "Multi-Head": "#fbe2bd",
    "Masked": "#fbe2bd",
    "Linear": "#dddfef",
    "Softmax": "#cfe8d5",
}
WIDTH, LINE, GAP, MARGIN = 3.4, 0.32, 0.28, 0.35


def boxes() -> list[tuple[str, str]]:
    """Every box of the figure: its words and its file or files."""
    return [EMBEDDING, POSITIONS, *ENCODER_LAYER, *DECODER_LAYER, *OUTPUT]


def height(words: str, files: str) -> float:
    return LINE * (1 + words.count("\n") + 1 + files.count("\n")) + 0.16


class Column:
    """Boxes drawn one above the other, joined by arrows."""

    def __init__(self, axes, x: float, y: float = 0.0):
        self.axes, self.x, self.y = axes, x, y

    def arrow(self, length: float = GAP) -> None:
        start, self.y = self.y, self.y + length
        self.axes.annotate(
            "", (self.x, self.y), (self.x, start), arrowprops={"arrowstyle": "->", "color": "#444", "lw": 1}
        )

    def box(self, words: str, files: str) -> float:
        """Draws a box above the last; returns the height of its centre."""
        from matplotlib.patches import FancyBboxPatch

        tall = height(words, files)
        colour = next(colour for name, colour in COLOURS.items() if words.startswith(name))
        corner = (self.x - WIDTH / 2, self.y)
        self.axes.add_patch(
            FancyBboxPatch(corner, WIDTH, tall, "round,pad=0,rounding_size=0.12", facecolor=colour, edgecolor="#444")
        )
        centre = self.y + tall / 2
        split = LINE * (1 + files.count("\n"))
        self.axes.text(self.x, self.y + (tall + split) / 2, words, ha="center", va="center", fontsize=9.5)
        self.axes.text(
            self.x, self.y + split / 2 + 0.06, files, ha="center", va="center", fontsize=7, family="monospace",
            color="#3f51b5",
        )  # fmt: skip
        self.y += tall
        return centre

    def label(self, words: str) -> None:
        self.axes.text(self.x, self.y - 0.08, words, ha="center", va="top", fontsize=9.5)

    def stack(self, layer: list[tuple[str, str]], side: str, file: str) -> list[float]:
        """Draws the boxes of a layer inside a frame; returns the heights of their centres."""
        from matplotlib.patches import FancyBboxPatch

        self.arrow(GAP + MARGIN)
        bottom = self.y - MARGIN
        centres = []
        for number, (words, files) in enumerate(layer):
            if number and words != "Add & Norm":
                self.arrow()
            centres.append(self.box(words, files))
        self.y += MARGIN
        left = self.x - WIDTH / 2 - MARGIN
        frame = FancyBboxPatch(
            (left, bottom), WIDTH + 2 * MARGIN, self.y - bottom, "round,pad=0,rounding_size=0.2", facecolor="none",
            edgecolor="#888", linestyle="--",
        )  # fmt: skip
        self.axes.add_patch(frame)
        towards = -1 if side == "left" else 1
        edge = self.x + towards * (WIDTH / 2 + MARGIN + 0.15)
        self.axes.text(
            edge, (bottom + self.y) / 2, f"N ×\n{file}", ha="right" if towards < 0 else "left",
            va="center", fontsize=8.5, family="monospace", color="#3f51b5",
        )  # fmt: skip
        return centres


def draw(image: Path = IMAGE) -> Path:
    """Draws the figure and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.5, 8.6), layout="constrained")
    encoder, decoder = Column(axes, 0.0), Column(axes, WIDTH + 2.2)
    for column, words in ((encoder, "source"), (decoder, "target, shifted right")):
        column.label(words)
        column.arrow(0.3)
        column.box(*EMBEDDING)
        column.arrow()
        column.box(*POSITIONS)
    encoder.stack(ENCODER_LAYER, "left", STACK_FILES["encoder"])
    centres = decoder.stack(DECODER_LAYER, "right", STACK_FILES["decoder"])
    for words, files in OUTPUT:
        decoder.arrow()
        decoder.box(words, files)
    decoder.arrow()
    axes.text(decoder.x, decoder.y + 0.08, "probabilities", ha="center", va="bottom", fontsize=9.5)
    # The memory: from the top of the encoder to the attention over it.
    middle, top = (encoder.x + decoder.x) / 2, encoder.y + 0.3
    axes.plot([encoder.x, encoder.x, middle, middle], [encoder.y, top, top, centres[2]], color="#444", lw=1)
    axes.annotate(
        "", (decoder.x - WIDTH / 2, centres[2]), (middle, centres[2]),
        arrowprops={"arrowstyle": "->", "color": "#444", "lw": 1, "shrinkA": 0},
    )  # fmt: skip
    axes.text(middle - 0.08, top + 0.08, "memory", ha="center", va="bottom", fontsize=9.5)
    axes.set_xlim(encoder.x - WIDTH / 2 - 3.0, decoder.x + WIDTH / 2 + 3.0)
    axes.set_ylim(-0.5, decoder.y + 0.5)
    axes.axis("off")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=130)
    pyplot.close(figure)
    return image


if __name__ == "__main__":
    print(draw())
