"""`abmll tasks list | show | check | pin` as a user meets them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from abmll.cli import app, console
from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.tasks.inspection import Lengths, inspect_task
from tests.asked import asked, plant, write
from tests.fake_hub import COMMIT, FakeHub, install, put
from tests.tiny import save_tiny


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["tasks", *arguments], env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as on a wide terminal, whatever this one's width."""
    monkeypatch.setattr(console.out_console, "_width", 200)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub in a folder; no pins."""
    return install(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [asked(n) for n in range(60)]
    write(tmp_path / "mine", "lost", rows[:40], rows[40:])
    return tmp_path / "mine"


def test_list_shows_built_in_tasks_the_catalogue_and_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ABMLL_PINS", str(tmp_path / "pins.json"))
    everything = run("list").output
    for part in ("capitals", "occupations", "arc_easy", "allenai/ai2_arc ARC-Easy", "not on the hub", "CC BY-SA 4.0"):
        assert part in everything
    (line,) = [line for line in run("list", str(folder)).output.splitlines() if "lost" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")][:4] == ["lost", "40", "20", "2"]


def test_show_gives_rows_fields_source_and_licence(folder: Path) -> None:
    shown = run("show", "builtin:plurals", "--rows", "1").output
    for part in ("plurals", "84 train rows, 36 test rows", "source: built-in", "licence: Apache-2.0", "->"):
        assert part in shown
    assert shown.count("What is the plural of") == 1
    shown = run("show", str(folder)).output
    assert f"{folder}/lost.train.jsonl:1" in shown
    assert "  -> yes" in shown
    with pytest.raises(AbmllError, match="unknown built-in task 'nothing'"):
        run("show", "builtin:nothing")


def test_show_of_a_hub_set_says_where_its_layout_was_read(fake: FakeHub) -> None:
    put(fake, "copa")
    shown = run("show", "hub:copa").output
    for part in (
        "data set: aps/super_glue copa",
        "train = train, test = validation",
        "revision: not pinned",
        "It rained.",
    ):
        assert part in shown
    assert "layout read in: https://github.com/huggingface/datasets/" in shown


def test_pin_keeps_the_commit_that_list_and_show_then_tell(fake: FakeHub) -> None:
    put(fake, "copa", train=3)
    pinned = run("pin", "hub:copa").output
    assert f"aps/super_glue at {COMMIT}, 3 train rows, 1 test rows" in pinned
    assert "pins.json" in pinned
    (line,) = [line for line in run("list").output.splitlines() if " copa " in line]
    assert COMMIT[:8] in line
    assert f"revision: {COMMIT}" in run("show", "hub:copa").output


def test_check_of_clean_tasks_ends_with_0(folder: Path) -> None:
    result = run("check", str(folder))
    assert result.exit_code == 0
    assert "40 rows to train on, 0 leaks" in result.output
    assert "yes 50, no 50" in result.output


def test_trust_17_check_finds_what_train_and_compare_refuse(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    write(scored, "new", [asked(n) for n in range(100, 120)], [asked(n) for n in range(120, 130)])
    line = plant(folder / "lost.train.jsonl", asked(125, question=asked(125)["question"].replace("near", "by")))
    result = run("check", str(folder), "--scored", str(scored))
    assert result.exit_code == 1
    assert (
        f"{folder}/lost.train.jsonl:{line} (trained on): nearly the same question as {scored}/new.test.jsonl:6"
        in result.output
    )
    assert "41 rows to train on, 1 leak" in result.output


def test_check_without_tasks_to_score_holds_train_rows_against_all_test_rows(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine", "other", [asked(n) for n in range(200, 220)], [asked(3)])
    plant(folder / "other.train.jsonl", asked(205))
    result = run("check", str(folder))
    assert result.exit_code == 1
    assert (
        f"{folder}/lost.train.jsonl:4 (trained on): the same question as {folder}/other.test.jsonl:1" in result.output
    )
    assert f"{folder}/other.train.jsonl:21 (a row of an episode): the same question as" in result.output
    assert "2 leaks" in result.output


def test_check_measures_in_a_models_tokens(folder: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    rows = [asked(n, context="It was a long day. " * 20) for n in range(300, 304)]
    write(folder, "long", rows, [])
    (folder / "long.test.jsonl").unlink()
    output = run("check", str(folder), "--model", str(model), "--max-tokens", "120").output
    assert "over 120: cut, too long" in output
    (line,) = [line for line in output.splitlines() if line.startswith("│ long")]
    assert "4, 0" in line
    with pytest.raises(AbmllError, match="no such folder"):
        run("check", str(folder), "--model", "no such model")


def test_check_counts_bad_rows_that_it_is_told_to_skip(folder: Path) -> None:
    with (folder / "lost.train.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(AbmllError, match="1 bad row"):
        run("check", str(folder))
    assert "40 (1 bad rows left out)" in run("check", str(folder), "--skip-bad-rows").output


def test_data_cannot_write_in_the_tables_own_language(tmp_path: Path) -> None:
    row = {**asked(1), "question": "[red]Is[/red] it [link=x]so[/link]?", "choices": ["[b]yes", "no[/b]"], "answer": 0}
    write(tmp_path / "mine", "a", [row], [asked(2, choices=["[b]yes", "no[/b]"])])
    assert "[red]Is[/red] it [link=x]so[/link]?" in run("show", str(tmp_path / "mine")).output
    assert "[b]yes 100" in run("check", str(tmp_path / "mine")).output


def test_a_report_counts_what_is_there() -> None:
    rows = [Question(str(n), f"one two {n}", ("a", "b b", "c")[: 2 + n % 2], n % 2, "x " * n) for n in range(20)]
    report = inspect_task(Task("t", tuple(rows[:15]), tuple(rows[15:]), skipped=2), limit=15)
    assert (report.train, report.test, report.skipped, report.choices) == (15, 5, 2, (2, 3))
    assert report.answers == (0.5, 0.5)
    assert report.labels is None
    assert report.lengths == Lengths(median=14.5, most=23, longest=24, cut=9, too_long=0)
    assert inspect_task(Task("t", (rows[3], rows[3]), (rows[3],))).repeated == 1
    assert inspect_task(Task("t", (rows[3],), (rows[3],))).same == 1
    assert inspect_task(Task("empty", ())).lengths is None


def test_one_sided_answers_are_told(tmp_path: Path) -> None:
    write(tmp_path / "mine", "flat", [asked(2 * n) for n in range(30)], [asked(61)])
    assert "In flat one answer is right in more than three of four rows" in run("check", str(tmp_path / "mine")).output


def test_the_rows_file_stays_as_it_was(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run("check", str(folder))
    run("show", str(folder))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert json.loads(before["lost.train.jsonl"].split(b"\n")[0])["id"] == "0"
