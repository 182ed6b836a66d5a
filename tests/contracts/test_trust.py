"""docs/trust.md: every number has a row, every test that is named exists, and no row is out of date."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
ROWS = {int(number): (promise, where) for number, promise, where in ROW.findall((ROOT / "docs/trust.md").read_text())}
NUMBERS = range(1, 53)


@cache
def named_in(path: Path) -> frozenset[str]:
    """Names of the tests in a file."""
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def numbered(number: int) -> set[str]:
    """Every test whose name carries a number, wherever it is; a name may carry several."""
    every = {name for path in (ROOT / "tests").rglob("test_*.py") for name in named_in(path)}
    return {name for name in every if f"{number:02}" in re.findall(r"\d\d", numbers_of(name))}


def numbers_of(name: str) -> str:
    """The numbers that a test's name begins with.

    >>> numbers_of("test_trust_14_41_a_file_of_20_rows")
    '14_41_'
    """
    found = re.match(r"test_trust_((?:\d\d_)+)", name)
    return found[1] if found else ""


def test_every_number_has_one_row_and_no_other_is_there() -> None:
    assert list(ROWS) == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_a_row_names_is_there(number: int) -> None:
    _, where = ROWS[number]
    files = [ROOT / name for name in re.findall(r"`(tests/[\w/]+\.py)`", where)]
    names = re.findall(r"`(test_\w+)(\*?)`", where)
    if not files:
        assert where.startswith(("does not apply: ", "not yet: "))
        assert not numbered(number), "there is a test of it: the row is out of date"
        return
    there = {(name, file) for name, rest in names for file in files if _holds(file, name, bool(rest))}
    for name, _ in names:
        assert any(name == found for found, _ in there), f"no {name} in {', '.join(map(str, files))}"
    for file in files:
        assert any(file == found for _, found in there), f"{file} holds none of {', '.join(name for name, _ in names)}"


def _holds(file: Path, name: str, beginning: bool) -> bool:
    return any(test.startswith(name) if beginning else test == name for test in named_in(file))


def test_every_numbered_test_is_in_a_file_that_its_row_names_or_beside_one_that_is() -> None:
    """A number that no row knows, or one digit of a name that was mistyped, would go unnoticed otherwise."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in named_in(path):
            for number in re.findall(r"\d\d", numbers_of(name)):
                assert int(number) in NUMBERS, f"{path}: {name}"
            assert not name.startswith("test_trust_") or numbers_of(name), f"{path}: {name}: two digits"
