"""In a comparison what is not finite is a result: its row says so, the others go on, and it is not tried again."""

import io
import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from abmll import cli
from abmll.cli import console
from abmll.config import CompareConfig, load_config
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.baselines import label_frequency
from abmll.metrics.not_finite import END, NotFinite, read_not_finite
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.question import Task
from abmll.report import render_terminal, write_report
from abmll.report.figures import pictures
from abmll.report.folder import collect
from abmll.runs.compare import run_comparison
from abmll.runs.evaluate_run import mark_training
from abmll.runs.prepare import comparison_runs
from abmll.runs.record import broken_tasks, score_run
from abmll.systems import build
from abmll.systems.folds import held_out
from abmll.systems.plans import AdaptationPlan
from abmll.systems.predict import examples_of
from tests.poison import mark, poisoned_base, poisoned_load
from tests.runs import never
from tests.systems import TASKS, tiny_base
from tests.tiny import save_tiny, tiny_tasks, write_tasks

SHORT = {"inner_steps": 1, "batch_size": 2}
PLAN = AdaptationPlan(examples=6, steps=2)
SPOILT, CLEAN = tiny_tasks(6, n_rows=20, n_test=6)[4:]
"""The first has labels of its own, the second choices that differ from row to row."""


def drawn_in_one_draw_only(task: Task) -> int:
    """A train row that draw 1 adapts to, and draw 0 does not."""
    first, second = ({q.id for q in examples_of(task, PLAN, draw)} for draw in (0, 1))
    return next(i for i, q in enumerate(task.train) if q.id in second - first)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `unseen`: of tiny4 one train row is poison, which draw 1 adapts to; no question that is asked is."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder / "train", tiny_tasks(4, n_rows=20, n_test=6))
    write_tasks(folder / "unseen", (CLEAN, mark(SPOILT, train=(drawn_in_one_draw_only(SPOILT),))))
    return folder


@pytest.fixture(scope="module")
def configure(tasks: Path) -> Callable[..., CompareConfig]:
    """Two systems that adapt, and so three rows."""

    def make(**changes: Any) -> CompareConfig:
        values: dict[str, Any] = {
            "name": "spoilt",
            "model": {"shape": "tiny"},
            "adapter": {"rank": 3, "alpha": 6.0},
            "tasks": {
                "train": {"source": str(tasks / "train")},
                "unseen": {"source": str(tasks / "unseen")},
                "leak_check": "off",
            },
            "training": {"iterations": 2},
            "adaptation": {"steps": 2, "samples": 2, "test_questions": 4, "examples": 6, "draws": 2},
            "systems": {
                "lora": {"method": {"name": "lora", **SHORT}},
                "abmll": {"method": {"name": "abmll", **SHORT}},
            },
            "seeds": [0],
            "reference": "lora",
            "curve": 1,
        }
        return CompareConfig.model_validate({**values, **changes})

    return make


@pytest.fixture(scope="module")
def finished(configure: Callable[..., CompareConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to its end; copy it before changing anything."""
    out = tmp_path_factory.mktemp("comparison")
    run_comparison(configure(), out, poisoned_base)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


PLACE = "examples-00000008"


def test_trust_19_a_broken_draw_is_a_file_and_every_other_cell_has_its_predictions(finished: Path) -> None:
    for row in ("lora", "abmll", "abmll_mean"):
        place = finished / row / "seed-0" / "predictions"
        names = {str(path.relative_to(place)) for path in place.rglob("*.json*")}
        good = {f"{PLACE}/draw-{d}/{t}.jsonl" for d, t in ((0, "tiny5"), (1, "tiny5"), (0, "tiny4"))}
        before = {f"before-adaptation/draw-0/{task}.jsonl" for task in ("tiny5", "tiny4")}
        assert names == good | before | {f"{PLACE}/draw-1/tiny4{END}"}
        found = read_not_finite(place / PLACE / "draw-1" / f"tiny4{END}")
        assert (found.asked.system, found.asked.task, found.asked.draw, found.stage) == (row, "tiny4", 1, "adapting")
        assert "the loss or a gradient is not finite" in found.why
        assert "computed in float32" in found.why


def test_trust_19_its_row_says_so_in_every_form_of_the_report(copy: Path) -> None:
    summary = write_report(copy)
    for row in ("lora", "abmll", "abmll_mean"):
        entry = summary["systems"][row]
        assert [(e["seed"], e["draw"], e["task"]) for e in entry["not_finite"]] == [(0, 1, "tiny4")]
        assert (entry["nll"], entry["accuracy"], entry["accuracy_interval"], entry["against_reference"]) == (None,) * 4
        assert entry["n"] == 8
        assert entry["cost"] is not None or row == "abmll_mean"
        assert summary["tasks"]["tiny4"][row]["not_finite"] is True
        assert np.isfinite(summary["tasks"]["tiny5"][row]["nll"])
        assert [point["not_finite"] for point in summary["curve"][row]] == [True]
    assert summary["missing"] == []
    assert any(
        line.startswith("abmll seed 0, tiny4 draw 1 after 8 examples, adapting:") for line in summary["not_finite"]
    )
    assert json.loads((copy / "results.json").read_text())["systems"]["lora"]["nll"] is None
    assert "NaN" not in (copy / "results.json").read_text()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_terminal(summary))
    for text in (console.export_text(), (copy / "table.md").read_text(), (copy / "report.html").read_text()):
        assert "not finite" in text
        assert "tiny4 draw 1" in text
    assert "Not finite, and so without scores: lora, abmll, abmll_mean." in (copy / "report.html").read_text()
    assert {path.stem for path in (copy / "figures").iterdir()} == {"cost"}


def test_trust_19_baselines_stand_beside_it_of_the_very_questions(copy: Path) -> None:
    """No system has predictions of the broken cell; its file has the questions, and the labels of its examples."""
    systems = write_report(copy)["systems"]
    guess = np.mean([np.log(len(task.test[0].choices)) for task in (CLEAN, SPOILT)])
    assert systems["uniform"]["nll"] == pytest.approx(guess)
    parts = []
    for draw in (0, 1):
        counts = np.bincount([q.answer for q in examples_of(SPOILT, PLAN, draw)], minlength=2) + 1
        parts.append(np.mean([-np.log(counts[q.answer] / counts.sum()) for q in SPOILT.test[:4]]))
    assert systems["label_frequency"]["nll"] == pytest.approx(np.mean(parts))


def test_trust_19_a_system_that_is_finite_is_scored_and_tested_as_ever(
    copy: Path, configure: Callable[..., CompareConfig]
) -> None:
    """One that takes no step and looks at no example breaks nowhere; the broken ones are not its reference."""
    still = {"method": {"name": "pretrained"}, "adaptation": {"steps": 0, "examples": 0}}
    config = configure()
    systems = {**config.systems, "still": still, "calm": {**still, "likelihood": {"temperature": 2.0}}}
    run_comparison(configure(systems=systems, reference="still"), copy, poisoned_base)
    summary = write_report(copy)
    entry = summary["systems"]["still"]
    assert np.isfinite([entry["nll"], entry["accuracy"]]).all()
    assert summary["systems"]["calm"]["against_reference"]["nll"]["n"] == 8
    assert summary["systems"]["lora"]["against_reference"] is None
    assert list(summary["reliability"]) == list(summary["risk_coverage"]) == ["still", "calm"]
    figures = {picture.name: picture for picture in pictures(summary)}
    assert figures.keys() >= {"learning_curve", "reliability", "risk_coverage", "cost"}
    assert "A cross at the foot is a point that is not finite." in figures["learning_curve"].caption
    legend = [label for label, _ in figures["learning_curve"].legend]
    assert legend[:3] == [f"{row} (not finite)" for row in ("lora", "abmll", "abmll_mean")]
    assert legend[3:] == ["still", "calm"]
    assert "Not finite, and so without scores: lora, abmll, abmll_mean." in (copy / "report.html").read_text()
    settings = read_sealed_json(copy / "comparison.json")
    write_sealed_json(copy / "comparison.json", {**settings, "reference": "lora"})
    assert not any(entry["against_reference"] for entry in write_report(copy)["systems"].values())
    assert "nothing could be tested against lora, which is not finite" in (copy / "report.html").read_text()


def test_trust_19_a_second_call_does_not_try_again_and_says_how_to(
    copy: Path, configure: Callable[..., CompareConfig], caplog: pytest.LogCaptureFixture
) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with caplog.at_level(logging.WARNING):
        run_comparison(configure(), copy, never)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    for system in ("lora", "abmll"):
        (line,) = [
            r.getMessage() for r in caplog.records if r.getMessage().startswith(f"{system} seed 0 is not finite")
        ]
        path = copy / system / "seed-0" / "predictions" / PLACE / "draw-1" / f"tiny4{END}"
        assert f"to do so delete {path}" in line
        assert "another model.dtype" in line


def test_trust_19_a_deleted_file_is_tried_again_and_nothing_else(
    copy: Path, configure: Callable[..., CompareConfig]
) -> None:
    path = copy / "lora" / "seed-0" / "predictions" / PLACE / "draw-1" / f"tiny4{END}"
    text = path.read_bytes()
    path.unlink()
    events: list[dict[str, Any]] = []
    run_comparison(configure(), copy, poisoned_base, events.append)
    assert path.read_bytes() == text
    assert [e["system"] for e in events if e["event"] == "target"] == ["lora"]
    assert not [e for e in events if e["event"] == "step"]


@pytest.mark.parametrize("gone", ["abmll", "abmll_mean"])
def test_trust_19_a_retry_leaves_no_marker_of_another_row_beside_its_predictions(
    gone: str, copy: Path, configure: Callable[..., CompareConfig]
) -> None:
    """One adaptation makes both rows of a system; the user deleted the marker of one of them."""
    folders = [copy / row / "seed-0" / "predictions" / PLACE / "draw-1" for row in ("abmll", "abmll_mean")]
    (copy / gone / "seed-0" / "predictions" / PLACE / "draw-1" / f"tiny4{END}").unlink()
    run_comparison(configure(), copy, tiny_base)
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"tiny4.jsonl", "tiny5.jsonl"}
    summary = write_report(copy)
    assert summary["systems"]["abmll"]["not_finite"] == []
    assert np.isfinite(summary["systems"]["abmll_mean"]["nll"])


def test_trust_19_training_that_breaks_leaves_no_half_of_a_cell(copy: Path) -> None:
    """Of a cell whose second row is missing the first is marked too, and its predictions go."""
    config = load_config(CompareConfig, copy / "config.yaml")
    (run,) = [run for run in comparison_runs(config, copy) if run.name == "abmll"]
    drawn, mean = (copy / row / "seed-0" / "predictions" / PLACE / "draw-0" for row in run.rows)
    (mean / "tiny5.jsonl").unlink()
    mark_training(run, NonFiniteError("broken"))
    for folder in (drawn, mean):
        assert {path.name for path in folder.iterdir()} == {f"tiny5{END}", "tiny4.jsonl"}


def test_trust_19_a_prediction_by_draws_breaks_its_own_row_alone(
    copy: Path, configure: Callable[..., CompareConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of stds that overflow; the mean weights of the same adaptation are fine."""
    real = build.System.predict

    def predict(system: build.System, questions: Any, plan: Any, place: Any) -> Any:
        if plan.sampler != "mean":
            raise NonFiniteError("the draws are not finite")
        return real(system, questions, plan, place)

    monkeypatch.setattr(build.System, "predict", predict)
    for row in ("abmll", "abmll_mean"):
        (copy / row / "seed-0" / "predictions" / PLACE / "draw-0" / "tiny5.jsonl").unlink()
    run_comparison(configure(), copy, poisoned_base)
    drawn, mean = (copy / row / "seed-0" / "predictions" / PLACE / "draw-0" for row in ("abmll", "abmll_mean"))
    found = read_not_finite(drawn / f"tiny5{END}")
    assert (found.stage, found.why) == ("predicting", "the draws are not finite")
    assert read_predictions(mean / "tiny5.jsonl").system == "abmll_mean"


def test_trust_19_training_that_breaks_is_a_result_too_and_goes_on_once_its_files_are_gone(
    tasks: Path, configure: Callable[..., CompareConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every training row of one task is poison, and `lora` trains on it; `still` does not train."""
    rows = tiny_tasks(4, n_rows=20, n_test=6)
    write_tasks(tmp_path / "train", tuple(mark(task, train=tuple(range(20))) for task in rows[:2]))
    sources = {"train": {"source": str(tmp_path / "train")}, "unseen": {"source": str(tasks / "unseen")}}
    still = {"method": {"name": "pretrained"}, "adaptation": {"steps": 0, "examples": 0}}
    systems = {"lora": {"method": {"name": "lora", **SHORT}}, "still": still}
    options = {"tasks": {**sources, "leak_check": "off"}, "systems": systems, "curve": 2}
    config = configure(**options)
    with caplog.at_level(logging.WARNING):
        run_comparison(config, tmp_path / "out", poisoned_base)
    assert "lora seed 0 is not finite" in caplog.text
    summary = write_report(tmp_path / "out")
    assert {e["stage"] for e in summary["systems"]["lora"]["not_finite"]} == {"training"}
    assert "meta-iteration 1, task" in summary["not_finite"][0]
    assert [p["not_finite"] for p in summary["curve"]["lora"]] == [True, True]
    assert np.isfinite(summary["systems"]["still"]["nll"])
    assert summary["missing"] == []
    run_comparison(config, tmp_path / "out", never)
    for path in (tmp_path / "out" / "lora").rglob(f"*{END}"):
        if "before" in str(path):
            path.unlink()
    run_comparison(config, tmp_path / "out", tiny_base)
    assert not list((tmp_path / "out" / "lora").rglob(f"*{END}")), "what training did not come to is true no more"
    assert np.isfinite(write_report(tmp_path / "out")["systems"]["lora"]["nll"])


def test_trust_19_one_seed_that_breaks_is_not_hidden_by_the_others(copy: Path) -> None:
    """A mean over the seeds that survived would flatter a system that breaks."""
    settings = read_sealed_json(copy / "comparison.json") | {"seeds": [0, 1], "draws": 1, "systems": ["lora"]}
    write_sealed_json(copy / "comparison.json", settings)
    shutil.rmtree(copy / "lora" / "seed-0" / "predictions" / PLACE / "draw-1")
    for task in ("tiny5", "tiny4"):
        other = replace(read_predictions(copy / "lora/seed-0/predictions" / PLACE / f"draw-0/{task}.jsonl"), seed=1)
        place = copy / "lora" / "seed-1" / "predictions" / PLACE / "draw-0"
        if task == "tiny5":
            other.write(place / f"{task}.jsonl")
        else:
            NotFinite(other, "adapting", "broken").write(place / f"{task}{END}")
    summary = write_report(copy)
    assert summary["systems"]["lora"]["nll"] is None
    assert [e["seed"] for e in summary["systems"]["lora"]["not_finite"]] == [1]
    assert np.isfinite(summary["systems"]["uniform"]["nll"])


def test_trust_19_a_fold_that_breaks_breaks_its_row_alone() -> None:
    def predict(asked: Any, fitted: Any) -> Any:
        good = tuple(Prediction(q.id, q.answer or 0, (0.5, 0.5)) for q in asked)
        return [good, NonFiniteError("one fold") if asked[0].id == first else good]

    examples = TASKS[0].train[:6]
    first = examples[0].id
    one, other = held_out(lambda task, plan: None, predict, TASKS[0], examples, AdaptationPlan(6, 1), 3)
    assert not isinstance(one, NonFiniteError)
    assert [p.id for p in one] == [q.id for q in examples]
    assert str(other) == "one fold"


def test_trust_19_the_model_card_gives_no_mean_over_the_tasks_that_survived(finished: Path) -> None:
    run = finished / "lora" / "seed-0"
    assert broken_tasks(run, 8) == ("tiny4",)
    assert [row.task for row in score_run(run, 8)] == ["tiny5"]
    assert "On tiny4 its numbers are not finite" in (run / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"draw": 1', '"draw": 0'), "damaged or edited"),
        (lambda text: text[:-20], "damaged"),
        (lambda text: '{"sha256": "x"}', "damaged or edited"),
        (lambda text: "{}", "not a file of format 1"),
    ],
)
def test_trust_09_a_damaged_word_of_it_is_refused(change: Callable[[str], str], message: str, copy: Path) -> None:
    path = copy / "lora" / "seed-0" / "predictions" / PLACE / "draw-1" / f"tiny4{END}"
    path.write_text(change(path.read_text()))
    with pytest.raises(AbmllError, match=message):
        collect(copy)


def test_trust_47_what_is_kept_of_it_names_rows_without_their_folders(
    tasks: Path, configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    write_tasks(tmp_path / "private", (mark(CLEAN, test=(1,)),))
    sources = {"train": {"source": str(tasks / "train")}, "unseen": {"source": str(tmp_path / "private")}}
    systems = {"still": {"method": {"name": "pretrained"}}}
    config = configure(tasks={**sources, "leak_check": "off"}, systems=systems, reference="still")
    run_comparison(config, tmp_path / "out", poisoned_base)
    write_report(tmp_path / "out")
    for file in [
        *(tmp_path / "out").rglob(f"*{END}"),
        *(tmp_path / "out" / name for name in ("table.md", "results.json")),
    ]:
        text = file.read_text()
        assert "tiny5.test.jsonl:2" in text
        assert str(tmp_path) not in text


def test_trust_19_score_has_a_row_for_it_too(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.out_console, "_width", 160)
    place = finished / "lora" / "seed-0" / "predictions" / PLACE
    monkeypatch.setattr(sys, "argv", ["abmll", "score", str(place)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│ lora")]
    assert [[cell.strip() for cell in line[:7]] for line in lines if "not finite" in "".join(line)] == [
        ["lora", "tiny4", "1", "8", "4", "not finite", "not finite"]
    ]
    assert len(lines) == 4


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    rows = (Prediction("a", 1, (0.5, 0.5)), Prediction("ü", 0, (0.5, 0.5)))
    asked = Predictions("s", "t", 3, 1, 24, rows, rows[:1], (1, 0), rows[1:], adapted=True)
    NotFinite(asked, "adapting", "why").write(tmp_path / f"t{END}")
    assert read_not_finite(tmp_path / f"t{END}") == NotFinite(asked, "adapting", "why")
    assert label_frequency(asked) is not None
    assert "groups" not in json.loads((tmp_path / f"t{END}").read_text()), "as early versions write and read it"
    grouped = replace(asked, rows=(replace(rows[0], group="g"), rows[1]))
    NotFinite(grouped, "adapting", "why").write(tmp_path / f"t{END}")
    assert read_not_finite(tmp_path / f"t{END}").asked == grouped
    value = read_sealed_json(tmp_path / f"t{END}")
    write_sealed_json(tmp_path / f"t{END}", {**value, "groups": {"test": ["g"]}})
    with pytest.raises(AbmllError, match=r"damaged \(1 groups of 2 questions\)"):
        read_not_finite(tmp_path / f"t{END}")


def test_trust_19_on_the_command_line_it_is_a_warning_and_exit_code_0(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As an overflow in a narrow dtype: everything is broken, and the report says so."""
    save_tiny(tmp_path / "model")
    write_tasks(tmp_path / "train", tiny_tasks(3, n_rows=16))
    write_tasks(tmp_path / "unseen", (mark(CLEAN, test=(0, 1, 2)),))
    recipe = {
        "name": "all",
        "model": {"source": "model", "device": "cpu", "dtype": "float16"},
        "tasks": {"train": {"source": "train"}, "unseen": {"source": "unseen"}, "leak_check": "off"},
        "training": {"iterations": 0},
        "adaptation": {"examples": 4, "steps": 0, "test_questions": 3, "samples": 2},
        "systems": {"pretrained": {"method": {"name": "pretrained"}}, "abmll": {"method": {"name": "abmll"}}},
        "reference": "pretrained",
        "curve": 1,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "load_model", poisoned_load)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["abmll", "compare", "recipe.yaml", "-o", "out"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        assert not stopped.value.code
        assert "Traceback" not in shown.err
        assert caplog.text.count("is not finite, and so in the report") == 2
        assert "computed in float16: float16 ends at 65,504, so try model.dtype=float32" in caplog.text
        caplog.clear()
        assert "not finite" in shown.out
    assert (tmp_path / "out" / "report.html").exists()
