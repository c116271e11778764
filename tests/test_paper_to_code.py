"""The page that leads from the paper to the code names what exists, with the defaults that it has."""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest

import keras_attention as ka

pytest.importorskip("yaml", reason="needs the extra cli")
pytest.importorskip("sacrebleu", reason="needs the extra cli")

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
# The last part is about the sources of other projects.
OURS, OTHERS = PAGE.split("\n## Where other implementations differ\n")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def named(prefix: str, text: str = PAGE) -> list[str]:
    return sorted({code for code in CODE.findall(text) if code.startswith(prefix)})


def resolve(name: str):
    return functools.reduce(getattr, name.removeprefix("ka.").split("."), ka)


def value_of(node: ast.expr):
    """A literal, or a fraction such as 1/3."""
    return eval(compile(ast.Expression(node), "paper_to_code.md", "eval"), {"__builtins__": {}})


def defaults(function) -> dict:
    """The default of each argument of a function, or of a class and its bases."""
    classes = function.__mro__ if inspect.isclass(function) else ()
    found: dict = {}
    for each in [function, *(base.__init__ for base in classes if "__init__" in vars(base))]:
        for name, parameter in inspect.signature(each).parameters.items():
            found.setdefault(name, parameter.default)
    return found


@pytest.mark.parametrize("code", named("ka."))
def test_each_symbol_exists_with_its_defaults(code):
    name, _, arguments = code.partition("(")
    assert resolve(name) is not None
    if arguments:
        call = ast.parse(code, mode="eval").body
        assert call.keywords
        assert not call.args
        known = defaults(resolve(name))
        for keyword in call.keywords:
            assert keyword.arg in known, f"{name} has no argument {keyword.arg}"
            assert known[keyword.arg] == value_of(keyword.value), f"{keyword.arg} of {name} is {known[keyword.arg]}"


def test_the_page_names_the_whole_model():
    layers = {"ka.Transformer", "ka.Encoder", "ka.MultiHeadAttention", "ka.TokenEmbedding", "ka.FeedForward"}
    names = {code.partition("(")[0] for code in named("ka.")}
    assert layers <= names
    assert len(names) > 30


@pytest.mark.parametrize("code", named("tests/"))
def test_each_test_exists(code):
    path, _, name = code.partition("::")
    assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), code


def test_each_row_names_a_test():
    rows = [line for line in OURS.splitlines() if line.startswith("| ") and line.count("|") == 5]
    rows = [row for row in rows if not row.startswith(("| paper |", "| --- |"))]
    assert len(rows) > 30
    assert not [row for row in rows if not re.search(r"`tests/test_\w+\.py::test_\w+` \|$", row)]


def test_each_file_exists():
    files = {code for code in CODE.findall(OURS) if re.fullmatch(r"[\w/]+\.py", code)}
    assert len(files) >= 10
    assert not [path for path in files if not (ROOT / "keras_attention" / path).is_file()]


def test_symbols_of_the_paper_are_arguments_of_the_base_model():
    table = OURS.partition("| symbol |")[2].partition("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    config = ka.TransformerConfig.from_preset("base", vocabulary_size=37000)
    from keras_attention.pipeline import RunConfig

    run = RunConfig.from_preset("base", source="s", target="t", valid_source="vs", valid_target="vt")
    assert len(rows) == 8
    for symbol, arguments, number in rows:
        for argument in arguments.replace("`", "").split(", "):
            value = getattr(config if hasattr(config, argument) else run, argument)
            if argument in ("key_dim", "value_dim"):
                value = value or config.hidden_dim // config.num_heads
            assert value == float(number), symbol


def test_listings_run():
    names = {"ka": ka}
    for listing in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE):
        exec(compile(listing, "paper_to_code.md", "exec"), names)
    assert names["options"].beams == 21
    assert names["config"].hidden_dim == 1024


def test_each_deviation_names_its_source():
    """Every point about another project is attributed to a function, a class or an option of it."""
    points = re.split(r"\n- ", OTHERS)[1:]
    points = [point.partition("\n\n")[0] for point in points]
    assert len(points) > 30
    assert not [point for point in points if not CODE.search(point)]
    for topic in OTHERS.split("\n### ")[1:]:
        assert re.search(r"^The paper: .* Here: ", topic.replace("\n", " ").partition("  ")[2]), topic
