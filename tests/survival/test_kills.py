"""kill -9 at any moment loses the work since the last checkpoint and nothing else."""

from pathlib import Path

import pytest

from tests.survival.kills import POINTS, kill_at_random, kill_in_save


@pytest.mark.parametrize("system", ["abmll", "carries everything"])
def test_trust_07_kill_nine_at_random_moments(system: str, tmp_path: Path) -> None:
    facts = kill_at_random(tmp_path, system, kills=2)
    assert facts["most lost by one"] <= 1


@pytest.mark.parametrize("point", ["after two files", "after the marker", "while an old one is being removed"])
def test_trust_07_kill_nine_in_the_middle_of_a_save(point: str, tmp_path: Path) -> None:
    assert point in POINTS
    kill_in_save(tmp_path, point)
