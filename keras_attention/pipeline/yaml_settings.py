"""Settings as YAML: a plain word is text unless it is a number as in Python, true, false or null."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml


def read_yaml(text: str) -> Any:
    """Returns the value that YAML text describes, or raises a ValueError."""
    # YAML 1.1, which PyYAML reads, also treats `1:30` as 90, `017` as 15 and `no` as False, but `1e-3` as text.
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


def yaml_text(settings: Mapping[str, Any]) -> str:
    """Returns settings as YAML, in their order."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses duplicate names, of which PyYAML ignores all but the last."""
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"`{name}` is given twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


# The dumper also keeps the resolvers of YAML 1.1, so it quotes text that either version would not read as text.
for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for each in (_Loader, _Dumper):
        each.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), first)
