"""The project itself: metadata, light import, public names, links, no machine's own paths."""

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import keras_attention

ROOT = Path(__file__).parent.parent
EXTRAS = {"text", "tensorboard", "serving", "cli", "convert", "examples", "test", "backends", "docs", "all"}
# Joined here so that this file does not contain what it forbids.
MACHINE_PATH = re.compile(rf"(?<![\w.~/<>-])/(?:{'|'.join(['home', 'root', 'tmp', 'work'])})/")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    command = ["git", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # A file deleted but not yet committed is still listed.
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def module_names() -> list[str]:
    modules = pkgutil.walk_packages(keras_attention.__path__, "keras_attention.")
    return ["keras_attention", *(module.name for module in modules)]


def public_names() -> list[tuple[str, str]]:
    """The names in every `__all__`; importing the modules here also shows that each imports."""
    pairs = []
    for module in map(importlib.import_module, module_names()):
        pairs += [(module.__name__, name) for name in getattr(module, "__all__", [])]
    return pairs


def in_fresh_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def heading_anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The metadata that a build gives, whether or not the package is installed here."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    built = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    return metadata.Distribution.at(folder / "keras_attention_transformer.egg-info")


def requirements(distribution, extra: str) -> set[str]:
    """What an extra installs, the extras that it names among it."""
    lines = [line for line in distribution.requires if f'extra == "{extra}"' in line]
    names = {line.partition(";")[0].strip() for line in lines}
    others = {name for name in names if name.startswith(f"{keras_attention.extras.DISTRIBUTION}[")}
    extras = [each for name in others for each in name.partition("[")[2].rstrip("]").split(",")]
    return (names - others).union(*(requirements(distribution, each) for each in extras))


def test_metadata_names_every_extra_and_the_command(distribution):
    assert distribution.metadata["Name"] == keras_attention.extras.DISTRIBUTION
    assert distribution.version == keras_attention.__version__
    assert distribution.metadata["Requires-Python"] == ">=3.11"
    assert set(distribution.metadata.get_all("Provides-Extra")) == EXTRAS
    commands = [(entry.name, entry.value) for entry in distribution.entry_points]
    assert commands == [("keras-attention", "keras_attention_command:main")]


def test_core_needs_neither_text_nor_tensorboard(distribution):
    core = [line for line in distribution.requires if "extra ==" not in line]
    assert {re.match(r"[\w-]+", line)[0] for line in core} == {"keras", "tensorflow", "numpy"}


def test_all_holds_every_feature(distribution):
    features = ("text", "tensorboard", "serving", "cli", "convert")
    each = [requirements(distribution, extra) for extra in features]
    assert all(each)
    assert requirements(distribution, "all") == set().union(*each)


def test_the_tests_install_what_builds_the_metadata(distribution):
    build_system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert set(build_system["requires"]) <= requirements(distribution, "test")


def test_import_is_light():
    heavy = ["tensorflow_text", "tensorboard", "sentencepiece", "sacrebleu", "babel", "ctranslate2", "onnx"]
    code = f"import keras_attention, sys; print([n for n in {heavy} if n in sys.modules])"
    assert in_fresh_python(code).strip() == "[]"


def test_importing_the_package_registers_every_class_that_a_file_may_name():
    code = """if True:
        import keras, keras_attention, importlib, pkgutil
        found = set(keras.saving.get_custom_objects())
        for module in pkgutil.walk_packages(keras_attention.__path__, "keras_attention."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        wanted = {name for name in keras.saving.get_custom_objects() if name.startswith("keras_attention>")}
        assert {"keras_attention>FusedAdam", "keras_attention>InverseSqrtSchedule"} <= wanted
        print(sorted(wanted - found))
    """
    assert in_fresh_python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("room", ["text", "decoding", "serving"])
def test_rooms_load_when_named(room):
    code = f"""if True:
        import keras_attention as ka, sys
        assert "keras_attention.{room}" not in sys.modules, "loaded too early"
        print(ka.{room}.__name__, "tensorflow_text" in sys.modules)
    """
    name, _ = in_fresh_python(code).split()
    assert name == f"keras_attention.{room}"


def test_typed_marker_is_there():
    assert (ROOT / "keras_attention" / "py.typed").is_file()


@pytest.mark.parametrize(("module", "name"), public_names())
def test_public_name_exists_and_is_documented(module, name):
    value = getattr(importlib.import_module(module), name)
    if callable(value) or isinstance(value, type(sys)):
        assert (value.__doc__ or "").strip(), f"{module}.{name} has no docstring"


def test_public_names_are_sorted_into_no_duplicates():
    pairs = public_names()
    assert len(pairs) == len(set(pairs))


def test_api_page_names_what_shares_a_file_name():
    # The documentation's reader takes `decoding.beam_search` for the file, so the page names the function in it.
    missing = []
    for module, name in public_names():
        room = module.partition(".")[2]
        page = ROOT / "docs" / "api" / f"{room}.md"
        if page.is_file() and (ROOT / "keras_attention" / room / f"{name}.py").is_file():
            line = f"::: {module}.{name}.{name}"
            missing += [] if line in page.read_text(encoding="utf-8") else [line]
    assert not missing


def test_documented_commands_exist():
    cli = importlib.import_module("keras_attention.cli")
    wrong = []
    for page in (path for path in tracked_files() if path.suffix == ".md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ *(?:echo .* \| )?keras-attention (\w.*)$", text, re.MULTILINE):
            name, *words = line.split()
            command = cli.main.commands.get(name)
            params = command.params if command else []
            known = {option for param in params for option in param.opts}
            given = {word.partition("=")[0] for word in words if word.startswith("-")}
            needed = [set(param.opts) for param in params if param.required and param.opts[0].startswith("-")]
            if command is None or given - known - {"--help"} or not all(given & names for names in needed):
                wrong.append(f"{page.relative_to(ROOT)}: keras-attention {line}")
    assert not wrong


def test_the_other_project_on_the_package_index_is_not_installed():
    # It has this package's name, and theirs is what pip would install.
    theirs = re.compile(r"pip install[^\n]*\bkeras-attention(?![\w-])|\bkeras-attention\[")
    texts = [
        path
        for path in tracked_files()
        if path.suffix in (".md", ".py", ".toml", ".sh", "") and path.name != "CHANGELOG.md"
    ]
    found = [path.name for path in texts if theirs.search(path.read_text(encoding="utf-8")) and path != Path(__file__)]
    assert not found


def test_links_between_pages_resolve():
    broken = []
    for page in (path for path in tracked_files() if path.suffix == ".md"):
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for link in (first or second for first, second in LINK.findall(text)):
            if re.match(r"[a-z]+:", link):
                continue  # another site's
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in heading_anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_no_file_mentions_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line)
        ]
    assert not found


def test_files_named_for_contributors_exist():
    named = set(re.findall(r"`(keras_attention/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    figure = (ROOT / "docs" / "figures" / "architecture.py").read_text(encoding="utf-8").replace("\\n", " ")
    named |= {f"keras_attention/{path}" for path in re.findall(r"[a-z]+/[a-z_]+\.py", figure) if "figures" not in path}
    assert len(named) > 40
    assert not [path for path in named if not (ROOT / path).exists()]
