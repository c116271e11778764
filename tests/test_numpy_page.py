"""The page that writes the Transformer in NumPy: its listings run, print what it says, and equal the layers."""

import ast
import contextlib
import io
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_attention as ka

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]

PAGE = (Path(__file__).parent.parent / "docs" / "numpy.md").read_text(encoding="utf-8")
# Each listing, and the text that follows it at once.
LISTINGS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, flags=re.DOTALL | re.MULTILINE)
SHAPE = r"\(([\w.·]+(?:, [\w.·]+)*),?\)"


def check_shape(sizes: dict, value, shape: str) -> None:
    """Compares a shape such as "B, T, M" with an array; a letter has one size within a call of a function."""
    letters, dims = shape.split(", "), list(np.shape(value))
    if letters[0] == "...":
        letters, dims = letters[1:], dims[len(dims) - len(letters) + 1 :]
    assert len(letters) == len(dims), f"({shape}) is {np.shape(value)}"
    for letter, dim in zip(letters, dims, strict=True):
        known = int(letter) if letter.isdigit() else sizes.setdefault(letter, dim)
        assert dim == known, f"({shape}) is {np.shape(value)}, where {letter} is {known}"


class ShapeComments(ast.NodeTransformer):
    """Turns the shapes that comments name into checks."""

    def __init__(self, listing: str):
        self.lines = listing.splitlines()
        self.count = 0

    def comment(self, node: ast.AST) -> str:
        return self.lines[node.end_lineno - 1].partition("#")[2]

    def checks(self, node: ast.AST, pairs) -> list[ast.stmt]:
        """Statements that check pairs of an expression and its shape."""
        self.count += len(pairs)
        source = "\n".join(f"check_shape(sizes, {value}, {shape!r})" for value, shape in pairs)
        return ast.parse(source).body

    def named(self, line: str) -> list[tuple[str, str]]:
        return re.findall(rf"(\w+) {SHAPE}", line.partition("#")[2])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        start = ast.parse("sizes = {}").body + self.checks(node, self.named(self.lines[node.lineno - 1]))
        self.generic_visit(node)
        node.body = start + node.body
        return node

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        named = self.named(self.lines[node.end_lineno - 1])
        if named:
            return [node, *self.checks(node, named)]
        shapes = re.findall(SHAPE, self.comment(node))
        target = node.targets[0]
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        if not shapes or len(shapes) != len(names):
            assert not shapes or isinstance(node.value, ast.ListComp), ast.unparse(node)
            return [node]
        return [node, *self.checks(node, [(ast.unparse(n), s) for n, s in zip(names, shapes, strict=True)])]

    def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
        shapes = re.findall(SHAPE, self.comment(node))
        if not shapes:
            return [node]
        values = ["result"] if len(shapes) == 1 else [f"result[{i}]" for i in range(len(shapes))]
        first, last = ast.parse("def f():\n    result = 0\n    return result").body[0].body
        first.value = node.value
        return [first, *self.checks(node, list(zip(values, shapes, strict=True))), last]


@pytest.fixture(scope="module")
def page():
    """The names that the listings define, what each printed, and the number of shapes that were checked."""
    names, printed, count = {"check_shape": check_shape, "sizes": {}}, [], 0
    for listing, _ in LISTINGS:
        shapes = ShapeComments(listing)
        tree = ast.fix_missing_locations(shapes.visit(ast.parse(listing)))
        names["sizes"].clear()  # those outside of functions, of this listing
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(tree, "numpy.md", "exec"), names)
        printed.append(output.getvalue())
        count += shapes.count
    return names, printed, count


def test_listings_print_what_the_page_says(page):
    _, printed, _ = page
    assert len(LISTINGS) >= 12
    assert printed == [text for _, text in LISTINGS]


def test_comments_have_the_shapes(page):
    *_, count = page
    assert count > 70


@pytest.mark.parametrize(
    "listing",
    [
        "def f(x):  # x (T, M, M)\n    return x\n",
        "def f(x):  # x (T, M)\n    y = x.T  # (T, M)\n    return y\n",
        "def f(x):  # x (T, M)\n    y, z = x, x  # (T, M), (M, T)\n    return y\n",
        "def f(x):  # x (T, M)\n    return x.T  # (T, M)\n",
        "def f(x):  # x (..., T, 2)\n    return x\n",
    ],
)
def test_a_wrong_shape_comment_is_noticed(listing):
    names = {"check_shape": check_shape}
    tree = ShapeComments(listing).visit(ast.parse(listing))
    exec(compile(ast.fix_missing_locations(tree), "listing", "exec"), names)
    with pytest.raises(AssertionError, match=r"^\([\w., ]+\) is \(\d, \d\)"):
        names["f"](np.zeros((2, 3)))


def test_the_pencil_calculates_as_the_layers_do(page):
    names, _, _ = page
    table = PAGE[PAGE.index("| key | q · k |") :].split("\n\n")[0]
    *rows, total = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    numbers = [[float(number) for cell in row for number in re.findall(r"[\d.]+", cell)] for row in rows]
    query, keys, values, mask = names["Q"][0], names["K"], names["V"], names["is_real"]
    assert len(rows) == 4
    assert [row[:4] for row in numbers] == keys.tolist()
    assert [row[4] for row in numbers] == (keys @ query).tolist()
    assert [row[5] for row in numbers] == (keys @ query / 2).tolist()
    assert [row[3] for row in rows] == ["real" if each else "padding" for each in mask]
    exponentials = np.exp(keys @ query / 2) * mask
    weights = exponentials / exponentials.sum()
    np.testing.assert_allclose([row[6] for row in numbers], exponentials, atol=6e-4)
    np.testing.assert_allclose([row[7] for row in numbers], weights, atol=6e-4)
    np.testing.assert_allclose([row[8:] for row in numbers], weights[:, None] * values, atol=6e-4)
    sums = [float(number) for cell in total for number in re.findall(r"[\d.]+", cell)]
    np.testing.assert_allclose(sums, [exponentials.sum(), 1, *weights @ values], atol=6e-4)
    output, their_weights = ka.ops.dot_product_attention(
        *(keras.ops.cast(x[None, None], "float32") for x in (query[None], keys, values)), mask=mask
    )
    np.testing.assert_allclose(output[0, 0, 0], weights @ values, rtol=1e-5)
    np.testing.assert_allclose(their_weights[0, 0, 0], weights, atol=1e-6)


def test_the_letters_have_the_sizes_of_the_table(page):
    names, _, _ = page
    table = PAGE[PAGE.index("| letter | size |") :].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    sizes = {
        letter: int(number)
        for letters, _, numbers in cells
        for letter, number in zip(letters.split(", "), numbers.split(", "), strict=True)
    }
    config, source, target = names["model"].config, names["source"], names["target"]
    assert sizes == {
        "B": len(source), "S": source.shape[1], "T": target.shape[1], "M": config.hidden_dim, "h": config.num_heads,
        "d_k": config.key_dim, "d_v": config.value_dim, "d_ff": config.intermediate_dim, "V": config.vocabulary_size,
    }  # fmt: skip


def test_memory_and_logits_are_those_of_the_model(page):
    names, _, _ = page
    assert np.ptp(names["logits"]) > 5, "logits that differ little would agree by themselves"
    np.testing.assert_allclose(names["memory"], names["their_memory"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(names["logits"], names["their_logits"], rtol=1e-6, atol=1e-5)


def test_greedy_search_is_that_of_the_library(page):
    names, _, _ = page
    outputs = names["greedy"](names["w"], names["source"], max_length=20)
    np.testing.assert_array_equal(outputs, names["theirs"].ids[:, 0])
    words = [row[row > 3][::-1] for row in names["source"]]  # the model has learned to write backwards
    assert [row[row > 3].tolist() for row in outputs] == [row.tolist() for row in words]


def test_another_model_of_the_papers_shape_has_the_same_numbers(page):
    """With d_k = d_v = M / h, and random numbers for every weight, biases and scales among them."""
    names, _, _ = page
    config = ka.TransformerConfig(23, num_layers=1, hidden_dim=14, intermediate_dim=19, num_heads=2)
    model = ka.Transformer(config)
    rng = np.random.default_rng(7)
    model.set_weights([weight + rng.normal(scale=0.3, size=weight.shape) for weight in model.get_weights()])
    source, target = rng.integers(4, 23, (3, 5)), rng.integers(4, 23, (3, 11))
    source[1, 3:] = source[2, 1:] = 0
    w = names["read_weights"](model)
    assert sum(np.size(weight) for weight in model.get_weights()) == config.num_parameters
    memory, _ = names["encode"](w, source)
    np.testing.assert_allclose(memory, model.encode(source)[0], atol=1e-5)
    logits = names["transformer"](w, source, target)
    np.testing.assert_allclose(logits, model({"source": source, "target": target}), atol=1e-5)
    # Padding changes nothing.
    np.testing.assert_allclose(names["transformer"](w, source[1:2, :3], target[1:2]), logits[1:2], atol=1e-12)
