"""Tasks too small for what is asked of them are refused by name, before the model is loaded."""

from pathlib import Path

import pytest

from tests.survival.children import command, in_child
from tests.survival.places import place_comparison
from tests.tiny import tiny_tasks, write_tasks


@pytest.mark.parametrize(
    ("rows", "message"), [(0, "no train rows"), (1, "tiny9 (1)"), (2, "tiny9 (2)"), (5, "tiny9 (5)")]
)
def test_trust_18_a_training_task_smaller_than_support_and_query(rows: int, message: str, tmp_path: Path) -> None:
    place = place_comparison(tmp_path)
    write_tasks(place / "train", (tiny_tasks(10, n_rows=max(rows, 1), n_test=0)[9],))
    (place / "train" / "tiny9.test.jsonl").unlink()
    if not rows:
        (place / "train" / "tiny9.train.jsonl").write_text("")
    child = in_child(command(place, "train", "train.yaml", "-o", "run"), place / "said.txt")
    assert child.wait() == 2, child.text()
    assert "Traceback" not in child.text()
    assert "loading" not in child.text()
    if rows:
        assert message in child.text()
        assert "needs 6 train rows" in child.text()
    else:
        assert "tiny9" in child.text()


@pytest.mark.parametrize(
    ("rows", "tests", "message"), [(1, 3, "has 1 train rows, adaptation wants 6"), (8, 0, "no test rows")]
)
def test_trust_18_an_unseen_task_too_small_to_adapt_to_or_score(
    rows: int, tests: int, message: str, tmp_path: Path
) -> None:
    place = place_comparison(tmp_path)
    write_tasks(place / "unseen", (tiny_tasks(10, n_rows=rows, n_test=tests)[9],))
    if not tests:
        (place / "unseen" / "tiny9.test.jsonl").unlink()
    child = in_child(command(place, "compare", "compare.yaml", "-o", "out"), place / "said.txt")
    assert child.wait() == 2, child.text()
    assert message in child.text()
    assert "Traceback" not in child.text()
    assert "loading" not in child.text()
