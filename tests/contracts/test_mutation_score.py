"""The mutation score that is committed: its counts add up, the bar is reached, every survivor has its reason."""

import json
from typing import Any

import pytest

from tests.mutation.groups import HERE, Group, read_groups, read_reasons

VALUES, GROUPS = read_groups()
SCORES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (HERE / "results").glob("*.json")}
FINAL = "score"
"""Drawn after the tests were written; `before` is the draw whose survivors they were written by, without them."""


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_group_has_modules_and_tests(group: Group) -> None:
    assert group.module_files()
    assert group.test_files()


@pytest.mark.parametrize("name", SCORES)
def test_the_counts_of_a_score_add_up(name: str) -> None:
    for row in SCORES[name]["groups"].values():
        assert row["drawn"] == row["killed"] + row["equivalent"] + row["survived"] <= row["population"]
        assert row["timeouts"] <= row["killed"]
        assert len(row["survivors"]) == row["equivalent"] + row["survived"]
        assert row["score"] == pytest.approx((row["killed"] + row["equivalent"]) / row["drawn"], abs=1e-4)
        assert sum(survivor["equivalent"] for survivor in row["survivors"]) == row["equivalent"]


def test_nine_in_ten_mutants_of_a_fresh_draw_die_in_every_group() -> None:
    rows: dict[str, Any] = SCORES[FINAL]["groups"]
    for group in GROUPS:
        if not group.reported:
            assert rows[group.name]["score"] >= VALUES["least"], group.name
            assert rows[group.name]["seed"] != SCORES["before"]["groups"][group.name]["seed"]


def test_every_survivor_has_a_reason() -> None:
    for row in SCORES[FINAL]["groups"].values():
        assert not [survivor["at"] for survivor in row["survivors"] if not survivor["reason"]]
    rows = [row for score in SCORES.values() for row in score["groups"].values()]
    survivors = {(s["at"].rsplit(":", 1)[0], s["was"], s["now"]) for row in rows for s in row["survivors"]}
    for reason in read_reasons():
        assert len({"equivalent", "left"} & reason.keys()) == 1, reason
        assert (reason["file"], reason["was"], reason["now"]) in survivors, f"of no survivor: {reason}"
