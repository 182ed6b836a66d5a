"""Packages, files, functions and the tracked tree stay as small as they are; `tests/contracts/size.py` counts."""

from pathlib import Path
from statistics import median, quantiles

import pytest

from tests.contracts.size import (
    FILE_LINES,
    MEDIAN_LINES,
    MODULES,
    MOST_LINES,
    P90_LINES,
    TREE_MEGABYTES,
    Function,
    functions,
    functions_in,
    lines_of_files,
    modules_of_packages,
    tracked_bytes,
    with_many_parameters,
)


@pytest.fixture(scope="module")
def found() -> list[Function]:
    return functions()


def test_packages_stay_small() -> None:
    """A package of many modules holds more than one thing: verbs and rivals go into sub-packages of their own."""
    assert not {name: count for name, count in modules_of_packages().items() if count > MODULES}


def test_files_stay_short() -> None:
    assert not {name: lines for name, lines in lines_of_files().items() if lines > FILE_LINES}


def test_functions_stay_short(found: list[Function]) -> None:
    lines = [function.lines for function in found]
    assert median(lines) <= MEDIAN_LINES
    assert quantiles(lines, n=10)[-1] <= P90_LINES
    assert found[0].lines <= MOST_LINES, found[0]


def test_functions_have_few_parameters(found: list[Function]) -> None:
    assert not [f"{f.where} {f.name}: {f.parameters}" for f in with_many_parameters(found)]


def test_the_tracked_tree_stays_small() -> None:
    tracked = tracked_bytes()
    if tracked is None:
        pytest.skip("no git, or not a repository")
    largest = sorted(tracked.items(), key=lambda item: -item[1])[:10]
    assert sum(tracked.values()) <= 1e6 * TREE_MEGABYTES, largest


def test_parameters_and_lines_are_counted_as_said() -> None:
    text = (
        "class A(BaseEstimator, Mixin):\n"
        "    def __init__(self, a, b, c, d, e, f, g, *, h=1):\n"
        "        pass\n"
        "    def fit(self, a, /, b, c, d, e, f, g, *rest, h=1, **more):\n"
        "        def inner(cls, x):\n"
        "            pass\n"
        "        return inner\n"
    )
    counted = {f.name: f for f in functions_in(text, Path("a.py"))}
    assert {name: (f.lines, f.parameters) for name, f in counted.items()} == {
        "__init__": (2, 8),
        "fit": (4, 8),
        "inner": (2, 1),
    }
    assert [f.name for f in with_many_parameters(list(counted.values()))] == ["fit"]
