"""benchmarks/own: which rows are drawn, how a cell is answered and written, and what the answers come to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, log_loss

from abmll.calibrators import TaskRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import ModelConfig
from abmll.metrics.usefulness import FREQUENCY, PRETRAINED, PROMPT, RUN, RUN_SCALED, SCALED, TFIDF, UNIFORM
from abmll.models import random_model
from abmll.systems.folds import deal
from abmll.text_classifiers import TfidfClassifier
from benchmarks.own.advice import advised
from benchmarks.own.answers import Answers, read_answers, rows_of, with_learned_priors
from benchmarks.own.cells import answer_entries, ask, claimed, not_finite_entries, write_cell
from benchmarks.own.cheap import RememberedVectors, cheap_answers
from benchmarks.own.draws import ASK, Cell, LabelledSet, cells_of, read_set
from benchmarks.own.models import Bench, answers_of, most_tokens, own_config
from benchmarks.own.results import results_of, write_results
from benchmarks.own.tables import END, START

FEW, MANY = ("good", "bad", "neutral"), tuple(f"intent {i}" for i in range(27))


def write_set(folder: Path, name: str, labels: tuple[str, ...], per_label: int = 12) -> LabelledSet:
    for part in ("train", "test"):
        rows = [{"text": f"{part} {i} says {label}", "label": label} for i in range(per_label) for label in labels]
        (folder / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_set(folder, name, most_test=9)


def said(probabilities: list[list[float]], right: list[int], own: list[list[float]], of_own: list[int]) -> Answers:
    return Answers(np.array(probabilities), np.array(own), np.array(right), np.array(of_own), (1.0, 2.0))


def test_rows_are_drawn_with_every_label_in_them(tmp_path: Path) -> None:
    few, many = write_set(tmp_path, "cold", FEW), write_set(tmp_path, "banking77", MANY)
    assert few.sizes == (20, 60)
    assert many.sizes == (2, 5)
    drawn = few.drawn(Cell("cold", 20, 0))
    assert len({row.id for row in drawn}) == 20
    assert {row.answer for row in drawn} == {0, 1, 2}
    counts = np.bincount([row.answer or 0 for row in many.drawn(Cell("banking77", 5, 1))])
    assert counts.tolist() == [5] * 27
    assert few.drawn(Cell("cold", 20, 0)) == drawn
    assert few.drawn(Cell("cold", 20, 1)) != drawn
    assert len(few.test) == 9


def test_the_smaller_size_of_all_sets_comes_first(tmp_path: Path) -> None:
    cells = cells_of([write_set(tmp_path, "cold", FEW), write_set(tmp_path, "banking77", MANY)], draws=2)
    assert [(c.size, c.draw) for c in cells[:4]] == [(2, 0), (20, 0), (2, 1), (20, 1)]
    assert {c.size for c in cells[4:]} == {5, 60}


def test_a_cell_is_one_process_s_and_stays_once_it_is_written(tmp_path: Path) -> None:
    cell = Cell("cold", 20, 0)
    with claimed(tmp_path, cell) as mine, claimed(tmp_path, cell) as theirs:
        assert (mine, theirs) == (True, False)
    with claimed(tmp_path, cell) as again:
        assert again
        write_cell(tmp_path, cell, {"a": np.zeros(2)})
    with claimed(tmp_path, cell) as after:
        assert not after


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    table, right = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50)
    scores = said(table.tolist(), right.tolist(), table[:20].tolist(), right[:20].tolist()).scores()
    assert scores["accuracy"] == pytest.approx(accuracy_score(right, table.argmax(1)))
    assert scores["nll"] == pytest.approx(log_loss(right, table, labels=range(4)))
    assert scores["nll_uniform"] == pytest.approx(np.log(4))


def test_the_posterior_temperature_is_that_of_a_fine_grid() -> None:
    rng = np.random.default_rng(1)
    table, right = rng.dirichlet(np.full(3, 0.2), 40), rng.integers(0, 3, 40)
    answers = said(table.tolist(), right.tolist(), table[:20].tolist(), right[:20].tolist())
    logs = np.log(np.maximum(table, 1e-300))
    grid = np.linspace(-8, 10, 4001)
    scaled = logs[None] / np.exp(grid)[:, None, None]
    scaled -= np.log(np.exp(scaled - scaled.max(2, keepdims=True)).sum(2, keepdims=True)) + scaled.max(2, keepdims=True)
    weights = norm.logpdf(grid, 1.0, 1.5) + scaled[:, np.arange(20), right[:20]].sum(1)
    weights = np.exp(weights - weights.max())
    expected = np.tensordot(weights / weights.sum(), np.exp(scaled), 1)
    np.testing.assert_allclose(answers.calibrated, expected, atol=2e-3)


def test_the_prior_of_a_set_is_learned_from_the_other_sets() -> None:
    """Whatever a set says itself; the other systems keep the weak one, and what is not finite teaches nothing."""
    rng, found = np.random.default_rng(2), {}
    for name in ("a", "b", "c", "d"):
        table, right = rng.dirichlet(np.full(3, 0.3), 30), rng.integers(0, 3, 30)
        answers = said(table.tolist(), right.tolist(), table.tolist(), right.tolist())
        found |= {(f"q {system}", Cell(name, 20, 0)): answers for system in ("adapted", "prompt")}
    broken = replace(found["q adapted", Cell("d", 20, 0)], not_finite="why", own=np.eye(3)[[0] * 30])
    found["q adapted", Cell("d", 20, 0)] = broken
    learned = with_learned_priors(found)
    of_a = learned["q adapted", Cell("a", 20, 0)]
    assert learned["q prompt", Cell("a", 20, 0)].prior == PosteriorTemperature()
    assert of_a.prior not in (PosteriorTemperature(), learned["q adapted", Cell("b", 20, 0)].prior)
    rows = [found["q adapted", Cell(name, 20, 0)] for name in ("b", "c")]
    tasks = [TaskRows("", rows_of(r.own, r.own_answers), rows_of(r.test, r.test_answers)) for r in rows]
    assert of_a.prior == PosteriorTemperature().meta_fit(tasks)
    sure = replace(found["q adapted", Cell("a", 20, 0)], own=np.eye(3)[[1] * 30])
    changed = with_learned_priors(found | {("q adapted", Cell("a", 20, 0)): sure})
    assert changed["q adapted", Cell("a", 20, 0)].prior == of_a.prior


def test_cheap_answers_are_out_of_fold_and_of_all_rows(tmp_path: Path) -> None:
    asked = ask(write_set(tmp_path, "cold", FEW), Cell("cold", 20, 0))
    vectors = RememberedVectors(lambda texts: np.array([[len(t), t.count("o"), 1.0] for t in texts]))
    found = cheap_answers(asked, vectors)
    texts, answers = [row.context for row in asked.labelled], found["own_answers"].astype(int)
    whole = TfidfClassifier().fit(texts, answers, 3).probabilities([row.context for row in asked.test])
    np.testing.assert_allclose(found["tf-idf.test"], whole, atol=1e-6)
    fold = asked.folds[0]
    others = TfidfClassifier().fit([texts[i] for i in fold.fitted], answers[list(fold.fitted)], 3)
    expected = others.probabilities([texts[i] for i in fold.answered])
    np.testing.assert_allclose(found["tf-idf.own"][list(fold.answered)], expected, atol=1e-6)
    assert found["sentence vectors.test"].shape == (9, 3)
    assert found["sentence vectors.seconds"][1] > 0


def test_a_model_answers_by_both_likelihoods_and_what_is_not_finite_is_a_result(tmp_path: Path) -> None:
    few, many = write_set(tmp_path, "cold", FEW), write_set(tmp_path, "banking77", MANY)
    model = ModelConfig(shape="tiny-llama", device="cpu")
    bench = Bench(random_model("tiny-llama", device="cpu"), own_config(model, {"adaptation": {"steps": 1}}), 256)
    first = answers_of(bench, ask(few, Cell("cold", 20, 0)))
    asked = ask(many, Cell("banking77", 2, 0))
    small = replace(asked, labelled=asked.labelled[:6], folds=deal([0] * 6, range(6)), test=asked.test[:2])
    assert str(answers_of(bench, small, ["as it is"])["likelihood"]) == "cloze"
    again = answers_of(bench, ask(few, Cell("cold", 20, 0)))
    for name in ("as it is", "prompt", "adapted"):
        np.testing.assert_allclose(first[f"{name}.test"].sum(1), 1, atol=1e-5)
        assert first[f"{name}.own"].shape == (20, 3)
        np.testing.assert_allclose(first[f"{name}.test"], again[f"{name}.test"], atol=1e-6)
    assert not np.allclose(first["as it is.test"], first["prompt.test"])
    bench = Bench(
        random_model("tiny-llama", device="cpu"),
        own_config(model, {"method": {"inner_lr": 1e30}, "adapter": {"alpha": 1e30}}),
        256,
    )
    broken = answers_of(bench, ask(few, Cell("cold", 20, 0)), ["as it is", "adapted"])
    assert "not finite" in str(broken["adapted.not_finite"])
    assert "adapted.test" not in broken
    assert "as it is.test" in broken


def test_logits_of_many_labels_make_a_pass_smaller() -> None:
    tokens = most_tokens(0.8, 151_936, 3 << 30, 16384)
    assert tokens * 0.8 * 151_936 * 10 <= 3 << 30 < (tokens + 1) * 0.8 * 151_936 * 10
    assert most_tokens(0.01, 49_152, 3 << 30, 16384) == 16384


def write_answers(folder: Path, base: str, cell: Cell, systems: dict[str, Answers | str]) -> None:
    arrays = {}
    for name, answers in systems.items():
        if isinstance(answers, str):
            arrays |= not_finite_entries(name, answers)
            continue
        arrays |= answer_entries(name, answers.own, answers.test, answers.seconds)
        arrays |= {"test_answers": answers.test_answers, "own_answers": answers.own_answers}
    write_cell(folder / base, cell, arrays)


def by_skill(skill: float, seed: int) -> Answers:
    """Two labels, 20 labelled and 40 test rows; the right one has a logit that is higher by about `skill`."""
    rng = np.random.default_rng(seed)
    right = np.tile([0, 1], 30)
    logits = skill * np.eye(2)[right] + rng.normal(size=(60, 2))
    table = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Answers(table[:40], table[40:], right[:40], right[40:], (1.0, 2.0))


def write_all(folder: Path) -> None:
    for draw in range(3):
        for size in (20, 60):
            cell = Cell("cold", size, draw)
            cheap = {"tf-idf": by_skill(0.5, draw), "sentence vectors": by_skill(1.0, 10 + draw)}
            write_answers(folder, "cheap", cell, cheap)
            base = {"as it is": by_skill(0.2, 20 + draw), "prompt": by_skill(0.4, 30 + draw)}
            write_answers(folder, "q", cell, {**base, "adapted": by_skill(4.0, 40 + draw)})


def test_results_compare_the_same_draws_and_count_what_is_ahead(tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "q" / "cold-20-2.npz").unlink()
    results = results_of({(s, c): a for s, c, a in read_answers(tmp_path)}, "q")
    summary, few = results["summary"], results["sets"]["cold"]["few"]
    assert (summary["sets_won_nll_20"], summary["sets_compared"], summary["base"]) == (1, 1, "q")
    assert (few["q adapted"]["draws"], few["cheap tf-idf"]["draws"]) == (2, 3)
    pair = summary["against_others"]["cold"]
    ours, theirs = ([by_skill(skill, seed + draw) for draw in (0, 1)] for skill, seed in ((4.0, 40), (1.0, 10)))
    assert pair["accuracy"] == pytest.approx(np.mean([accuracy_score(a.test_answers, a.test.argmax(1)) for a in ours]))
    stated = np.mean([log_loss(a.test_answers, a.test) for a in theirs])
    scaled = np.mean([log_loss(a.test_answers, a.calibrated) for a in theirs])
    assert pair["best_in_nll"] == "cheap sentence vectors"
    assert pair["nll_of_others"] == pytest.approx(min(stated, scaled), abs=1e-5)
    assert summary["mean_accuracy_lead_20"] == pytest.approx(pair["accuracy"] - pair["accuracy_of_others"])


def test_the_advice_is_weighed_against_the_best_in_hindsight(tmp_path: Path) -> None:
    write_all(tmp_path)
    cell = Cell("cold", 20, 0)
    answers = {s: a for s, c, a in read_answers(tmp_path) if c == cell}
    found = advised(cell, answers, "q")
    assert found is not None
    assert found.choice == RUN_SCALED
    assert found.nll.keys() >= {UNIFORM, FREQUENCY, TFIDF, PRETRAINED, SCALED, PROMPT, RUN, RUN_SCALED}
    ours = by_skill(4.0, 40)
    assert found.nll[RUN] == pytest.approx(log_loss(ours.test_answers, ours.test), abs=1e-5)
    assert found.nll[RUN_SCALED] == pytest.approx(log_loss(ours.test_answers, ours.calibrated), abs=1e-5)
    assert found.nll[FREQUENCY] == pytest.approx(np.log(2))
    assert found.regret == pytest.approx(found.nll[RUN_SCALED] - min(found.nll.values()))
    assert advised(cell, {name: a for name, a in answers.items() if name != "q adapted"}, "q") is None


def test_what_is_not_finite_counts_as_a_guess_and_is_nobody_s_choice(tmp_path: Path) -> None:
    cell = Cell("cold", 20, 0)
    write_answers(tmp_path, "q", cell, {"as it is": by_skill(1.0, 0), "adapted": "a loss is not finite"})
    found = {s: a for s, _, a in read_answers(tmp_path)}
    assert found["q adapted"].scores()["nll"] == pytest.approx(np.log(2))
    advice = advised(cell, found, "q")
    assert advice is not None
    assert RUN not in advice.nll
    assert advice.verdict == "not finite"
    results = results_of({(s, cell): a for s, a in found.items()}, "q")
    assert results["sets"]["cold"]["few"]["q adapted"]["not_finite"] == 1
    assert results["sets"]["cold"]["few"]["q adapted"]["seconds_per_1000"] is None


def test_results_are_written_with_a_figure_and_between_the_readme_s_comments(tmp_path: Path) -> None:
    write_all(tmp_path / "answers")
    (tmp_path / "README.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_results(tmp_path / "answers", "q", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    assert text.count("| cold |") == 3
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["base"] == "q"
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((tmp_path / "results.json").read_text())["sets"]) <= set(ASK)
