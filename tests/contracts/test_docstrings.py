"""Every example in a docstring runs and says what comes out."""

import doctest
import importlib
import pkgutil

import pytest

import abmll
from abmll.errors import AbmllError

NAMES = [m.name for m in pkgutil.walk_packages(abmll.__path__, "abmll.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except (ImportError, AbmllError) as error:  # optional extras, and kernels where Triton is not installed
        pytest.skip(str(error))
    result = doctest.testmod(module)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples; python -m doctest shows them"
