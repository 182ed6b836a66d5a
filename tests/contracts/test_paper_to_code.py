"""Every name in docs/paper-to-code.md exists."""

import importlib
import importlib.util
import re
from functools import reduce
from pathlib import Path

import pytest

from abmll.methods.base import Settings

TABLE = (Path(__file__).parents[2] / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(abmll\.[\w.]+)`", TABLE)))


def test_the_table_was_read() -> None:
    assert len(NAMES) > 20


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    parts = name.split(".")
    depth = max(i for i in range(1, len(parts) + 1) if _is_module(parts[:i]))
    module = importlib.import_module(".".join(parts[:depth]))

    def member(owner: object, attribute: str) -> object:
        if isinstance(owner, type) and issubclass(owner, Settings) and attribute in owner.model_fields:
            return owner.model_fields[attribute]
        return getattr(owner, attribute)

    assert reduce(member, parts[depth:], module) is not None


def _is_module(parts: list[str]) -> bool:
    try:
        return importlib.util.find_spec(".".join(parts)) is not None
    except ModuleNotFoundError:  # a name below something that is no package
        return False
