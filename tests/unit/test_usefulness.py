"""Is it worth it: folds without leaks, the table against scikit-learn, and a verdict that is not easily had."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm, permutation_test
from sklearn.metrics import accuracy_score, log_loss

from abmll.calibrators.temperature import PosteriorTemperature
from abmll.errors import AbmllError
from abmll.everyday.adapt import refuse_used
from abmll.everyday.check import _with_examples, calibrated_by_folds, check_usefulness, tables_without_adapting
from abmll.everyday.labelled import Labelled, read_labelled
from abmll.everyday.session import open_run
from abmll.metrics.usefulness import (
    FREQUENCY,
    FRESH,
    HANDICAP,
    ORDER,
    PRETRAINED,
    PROMPT,
    RUN,
    RUN_SCALED,
    SCALED,
    SPREAD,
    TFIDF,
    UNIFORM,
    VECTORS,
    VERSION,
    Usefulness,
    advise,
    expected_nll,
    sign_flip_p,
    weigh,
)
from abmll.question import Question, QuestionWithExamples, Task
from abmll.systems.folds import Fold, deal
from abmll.systems.system import System
from abmll.tables.identity import clusters, distinct_keys, identity, row_keys
from abmll.tables.layouts import Layout
from abmll.text_classifiers import TfidfClassifier
from tests.everyday import asked, hold_back, place_run, texts, write_asked, write_csv, write_texts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_run(tmp_path_factory.mktemp("home"))


def rows(count: int) -> tuple[Question, ...]:
    ask = Layout(("bad", "good")).question
    return tuple(ask({"text": t, "label": x}, n, location=f"f:{n}") for n, (t, x) in enumerate(texts(count)))


def labelled_rows(questions: Sequence[Question]) -> Labelled:
    return Labelled(Layout(("bad", "good")), tuple(questions))


def dealt(questions: Sequence[Question], seed: int = 0) -> tuple[Fold, ...]:
    return deal([q.answer for q in questions], labelled_rows(questions).clusters, seed=seed)


def test_folds_answer_every_row_once_and_never_fit_to_it() -> None:
    questions = rows(23)
    folds = dealt(questions)
    assert sorted(place for fold in folds for place in fold.answered) == list(range(23))
    for fold in folds:
        assert not set(fold.fitted) & set(fold.answered)
        assert len(fold.fitted) + len(fold.answered) == 23
        assert {questions[i].answer for i in fold.fitted} == {0, 1}
        counts = np.bincount([questions[i].answer for i in fold.answered], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1


def test_trust_17_rows_that_ask_the_same_are_never_on_both_sides() -> None:
    again = tuple(Question(f"x{q.id}", q.question, q.choices, q.answer, q.context.upper() + "!") for q in rows(9))
    questions = rows(9) + again
    for fold in dealt(questions):
        fitted, answered = ({identity(questions[i]) for i in part} for part in (fold.fitted, fold.answered))
        assert not fitted & answered
    used, aside = hold_back(labelled_rows(questions), 4, seed=0)
    assert len(aside) == 4
    assert len(used.rows) == 10
    assert not {identity(q) for q in used.rows} & {identity(q) for q in aside}


def test_trust_17_nothing_is_fitted_to_the_labels_of_the_fold_it_answers() -> None:
    """Temperature and shares of a fold stay as they are, whatever the labels in it."""
    questions, table = rows(20), np.random.default_rng(0).dirichlet([1, 1], 20)
    answers, folds = np.array([q.answer for q in questions]), dealt(questions)
    before = tables_without_adapting(questions, folds, table, answers, ("bad", "good"))
    for fold in folds:
        asked, others = list(fold.answered), list(fold.fitted)
        turned = answers.copy()
        turned[asked] = 0
        after = tables_without_adapting(questions, folds, table, turned, ("bad", "good"))
        for name in (SCALED, FREQUENCY):
            np.testing.assert_array_equal(after[name][asked], before[name][asked])
            assert not np.array_equal(after[name][others], before[name][others]), "nothing is fitted at all"


def test_trust_17_systems_adapt_to_the_other_folds_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Question, ...]] = []

    adapt = System.adapt

    def adapted(system: System, task: Task, *arguments: Any) -> tuple[Question, ...]:
        seen.append(task.train)
        return adapt(system, task, *arguments)

    monkeypatch.setattr(System, "adapt", adapted)
    session = open_run(home / "runs" / "mine", {"adaptation": {"samples": 1}})
    questions = rows(6)
    check_usefulness(session, labelled_rows(questions))
    folds = dealt(questions, seed=session.config.adaptation.seed)
    others = [tuple(questions[i] for i in fold.fitted) for fold in folds]
    assert seen == [*others, (), *others, ()], "the run, the pretrained model to nothing, a fresh LoRA, the prompt"


def test_fewer_rows_are_fewer_folds() -> None:
    assert [len(dealt(rows(count))) for count in (2, 4, 5, 30)] == [2, 4, 5, 5]


def _weigh(run: np.ndarray, pretrained: np.ndarray, answers: np.ndarray) -> Usefulness:
    half = np.full_like(run, 0.5)
    named = {UNIFORM: half, FREQUENCY: half, PRETRAINED: pretrained, SCALED: pretrained, FRESH: pretrained, RUN: run}
    return weigh(named, answers, 5)


def _says(confidence: float, right: np.ndarray, answers: np.ndarray) -> np.ndarray:
    said = np.where(right, answers, 1 - answers)
    return np.where(np.arange(2) == said[:, None], confidence, 1 - confidence)


ANSWERS = np.arange(40) % 2
ALL, HALF = np.ones(40, dtype=bool), np.arange(40) < 20


def test_the_table_is_that_of_scikit_learn() -> None:
    probabilities = np.random.default_rng(0).dirichlet([1, 1], 40)
    found = _weigh(probabilities, probabilities, ANSWERS)
    (row,) = [row for row in found.rows if row.name == RUN]
    assert row.accuracy == accuracy_score(ANSWERS, probabilities.argmax(1))
    assert row.nll == pytest.approx(log_loss(ANSWERS, probabilities))
    right = int((probabilities.argmax(1) == ANSWERS).sum())
    theirs = binomtest(right, 40).proportion_ci(0.95, method="exact")
    assert row.accuracy_interval == pytest.approx((theirs.low, theirs.high))
    assert row.nll_interval.low < row.nll < row.nll_interval.high


def test_the_verdicts() -> None:
    good, poor = _says(0.8, ALL, ANSWERS), _says(0.8, HALF, ANSWERS)
    assert _weigh(good, poor, ANSWERS).verdict == "helps"
    assert "better in NLL and in accuracy" in _weigh(good, poor, ANSWERS).text[0]
    assert _weigh(poor, good, ANSWERS).verdict == "hurts"
    same = _weigh(good, good, ANSWERS)
    assert same.verdict == "no evidence"
    assert "No evidence that adapting helps" in same.text[0]
    few = _weigh(good[:4], _says(0.79, ALL, ANSWERS)[:4], ANSWERS[:4])
    assert few.verdict == "no evidence"
    assert "no difference" in few.text[1]


def test_a_run_that_beats_the_pretrained_model_but_not_a_guess_is_no_evidence() -> None:
    worst, poor = _says(0.99, HALF, ANSWERS), _says(0.9, HALF, ANSWERS)
    assert _weigh(poor, worst, ANSWERS).verdict == "no evidence"


def test_help_that_is_not_there_is_called_help_in_at_most_one_case_in_twenty() -> None:
    called = 0
    for repeat in range(50):
        rng = np.random.default_rng(repeat)
        ours, theirs = (rng.dirichlet([2, 2], 24) for _ in range(2))
        called += weigh({PRETRAINED: theirs, RUN: ours}, rng.integers(0, 2, 24), 5).verdict == "helps"
    assert called <= 5  # of 50: more than 0.05 of them is the chance of chance


def test_sign_flips_are_the_binomial_test_where_differences_are_of_one_size() -> None:
    for wins, losses in ((5, 0), (6, 2), (9, 1)):
        values = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 7)
        assert sign_flip_p(values) == pytest.approx(binomtest(wins, wins + losses).pvalue)
    assert sign_flip_p(np.zeros(5)) == sign_flip_p(np.array([1.0])) == 1.0


def test_a_guess_is_right_by_chance_whatever_the_first_label_is() -> None:
    """30 of 40 rows have the first label: a uniform guess is right on half of them all the same."""
    answers = (np.arange(40) >= 30).astype(int)
    says = _says(0.9, ALL, answers)
    found = _weigh(says, says, answers)
    assert {row.name: row.accuracy for row in found.rows}[UNIFORM] == 0.5


def test_nothing_to_weigh_is_an_error() -> None:
    with pytest.raises(AbmllError, match="nothing to weigh"):
        weigh({RUN: np.ones((1, 2))}, np.zeros(1, dtype=np.int64), 1)


def test_the_check_on_questions_with_choices_of_their_own(home: Path, tmp_path: Path) -> None:
    labelled = read_labelled(write_asked(tmp_path / "a.jsonl", asked(9)), Layout())
    labelled = Labelled(labelled.layout, labelled.rows[:8])
    session = open_run(home / "runs" / "mine", {"adaptation": {"samples": 2, "steps": 1}})
    told: list[tuple[float, int]] = []
    found = check_usefulness(session, labelled, lambda done, of: told.append((done, of)))
    assert [row.name for row in found.rows] == [UNIFORM, PRETRAINED, SCALED, PROMPT, FRESH, RUN, RUN_SCALED]
    assert found.left_out == dict.fromkeys((TFIDF, VECTORS), "each row has choices of its own")
    assert told[-1] == (12, 12)
    steps = [part / 2 for part in range(1, 11)]  # a step, and the answers, of every fold
    assert [done for done, _ in told] == [*steps, 6.0, *(6 + part for part in steps), 12.0, 12]
    uniform = next(row for row in found.rows if row.name == UNIFORM)
    assert uniform.nll == pytest.approx(np.log(4))


def test_remarks_name_what_spoils_the_rows(tmp_path: Path) -> None:
    data = [["a", "good"], ["b", "good"], ["c", "good"], ["d", "good"], ["e", "good"], ["f", "bad"], ["A", "bad"]]
    found = "\n".join(read_labelled(write_csv(tmp_path / "a.csv", ["text", "label"], data[:6]), Layout()).remarks())
    for part in ("6 labelled rows are few", "one row alone is labelled 'bad'", "one-sided: 5 of 6 rows", "right 83 %"):
        assert part in found
    found = "\n".join(read_labelled(write_csv(tmp_path / "b.csv", ["text", "label"], data), Layout()).remarks())
    assert "1 row asks the same as an earlier one" in found
    assert "two different answers" in found
    assert "b.csv:2 and" in found
    assert "b.csv:8" in found
    grouped = [[text, label, number // 2] for number, (text, label) in enumerate(texts(40))]
    found = read_labelled(write_csv(tmp_path / "g.csv", ["text", "label", "group"], grouped), Layout()).remarks()
    assert found == [
        "40 rows are of 20 groups (a text that repeats, or the column group): a group counts as one in the check, and "
        "where it is held back one row of it counts"
    ]
    three = Layout(("bad", "good", "fair"))
    assert "no row is labelled 'fair'" in "\n".join(read_labelled(tmp_path / "a.csv", three).remarks())
    cased = "\n".join(Labelled(Layout(("Bad", "bad", "good")), rows(4)).remarks())
    assert "'Bad' and 'bad' are two labels" in cased
    assert read_labelled(write_texts(tmp_path / "fine.csv", 40), Layout()).remarks() == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("text,label\na,x\nb,x\n", "every row is labelled 'x'"),
        ("text,label\na,x\n,y\nb,\n", r"a\.csv:4: label is missing"),
        ("text,label\n", "the file has no rows"),
        ("text,label\n" + "".join(f"a,{n}\n" for n in range(101)), r"a\.csv: 101 different values of 'label'"),
        ("words,label\na,x\nb,y\n", r"a\.csv:2: text is missing"),
    ],
)
def test_trust_14_labelled_rows_that_are_none_are_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(AbmllError, match=reason):
        read_labelled(tmp_path / "a.csv", Layout())


def test_held_back_rows_are_drawn_anew_by_seed_and_told_apart_from_used_ones() -> None:
    labelled = labelled_rows(rows(30))
    (used, first), (_, second) = (hold_back(labelled, 5, seed) for seed in (0, 1))
    assert {q.id for q in first} != {q.id for q in second}
    assert hold_back(labelled, 0, 0) == (labelled, ())
    refuse_used(labelled_rows(first), [identity(q) for q in used.rows])
    with pytest.raises(AbmllError, match=f"5 of the rows held back were adapted to.*{first[0].location}"):
        refuse_used(labelled_rows(first), [identity(q) for q in labelled.rows])


def test_a_verdict_is_said_with_its_numbers() -> None:
    """Each sentence, with means that scikit-learn gives too."""
    good, poor = _says(0.8, ALL, ANSWERS), _says(0.8, HALF, ANSWERS)
    helps, hurts = _weigh(good, poor, ANSWERS), _weigh(poor, good, ANSWERS)
    assert helps.text == (
        "Adapting helps: better in NLL and in accuracy than everything there is without adapting.",
        "It is better in NLL and in accuracy than a fresh LoRA fitted to the same rows.",
    )
    assert hurts.text == (
        "Adapting hurts: worse in NLL and in accuracy than the pretrained model as it is. Do not use it.",
        "A fresh LoRA fitted to the same rows is better in NLL and in accuracy.",
    )
    ours, theirs = _says(0.82, ALL, ANSWERS)[:4], _says(0.8, ALL, ANSWERS)[:4]
    gap = log_loss(ANSWERS[:4], theirs) - log_loss(ANSWERS[:4], ours)
    close, behind = _weigh(ours, theirs, ANSWERS[:4]), _weigh(theirs, ours, ANSWERS[:4])
    same = "Against a fresh LoRA fitted to the same rows there is no difference that these rows can tell."
    assert close.text == (
        f"No evidence that adapting helps: its NLL, {gap:.3f} nats below pretrained, the best without it, is too "
        "little to tell from chance by 4 rows. More rows may tell.",
        same,
    )
    assert behind.text == (
        "No evidence that adapting helps: pretrained has the lower NLL (0.198 against 0.223 nats).",
        same,
    )
    assert weigh({PRETRAINED: theirs, RUN: theirs}, ANSWERS[:4], 2).text == (
        "No evidence that adapting helps: pretrained has the lower NLL (0.223 against 0.223 nats).",
    )


def test_better_in_one_measure_and_worse_in_the_other_is_no_evidence() -> None:
    """Right more often, but certain where it is wrong."""
    right = np.arange(40) % 5 != 4
    sure, modest = _says(1 - 1e-9, right, ANSWERS), _says(0.55, np.arange(40) % 4 == 0, ANSWERS)
    found = _weigh(sure, modest, ANSWERS)
    assert found.verdict == "no evidence"
    assert found.text[0].startswith("No evidence that adapting helps: uniform has the lower NLL")


def test_nine_in_two_hundred_is_what_a_difference_in_nll_has_to_reach() -> None:
    """One of 2^n sign flips is as far out as n wins of n: .063 for 4, .031 for 5; the NLL has .045."""
    for rows, verdict in ((4, "no evidence"), (5, "helps")):
        answers = ANSWERS[:rows]
        found = _weigh(_says(0.8, ALL[:rows], answers), _says(0.7, ALL[:rows], answers), answers)
        assert found.verdict == verdict
        assert (binomtest(rows, rows, alternative="greater").pvalue <= 0.045) == (verdict == "helps")


def test_one_in_two_hundred_is_what_a_difference_in_accuracy_has_to_reach() -> None:
    """The NLL is the same; 7 wins of 7 are .008, 8 of 8 .004."""
    for wins, verdict in ((7, "no evidence"), (8, "helps")):
        answers = ANSWERS[:30]
        won = np.arange(30) < wins
        right = np.where(np.arange(2) == answers[:, None], 0.5 + 1e-13, 0.5 - 1e-13)
        run = np.where(won[:, None], right, 1 - right)
        found = weigh({PRETRAINED: 1 - right, RUN: run}, answers, 5)
        assert found.verdict == verdict
        assert "in accuracy" in found.text[0] or verdict == "no evidence"


def test_the_table_as_json_values() -> None:
    found = _weigh(_says(0.8, ALL, ANSWERS), _says(0.8, HALF, ANSWERS), ANSWERS)
    values = found.to_dict()
    assert (values["n"], values["folds"], values["verdict"]) == (40, 5, "helps")
    assert values["text"] == list(found.text)
    assert list(values["table"]) == [UNIFORM, FREQUENCY, PRETRAINED, SCALED, FRESH, RUN]
    for row in found.rows:
        assert values["table"][row.name] == {
            "accuracy": row.accuracy,
            "accuracy_interval": list(row.accuracy_interval),
            "nll": row.nll,
            "nll_interval": list(row.nll_interval),
            "not_finite": None,
            "seconds_per_1000_rows": None,
        }


@pytest.mark.parametrize("named", [{RUN: np.ones((1, 2))}, {PRETRAINED: np.ones((1, 2))}, {}])
def test_what_is_missing_is_said(named: dict[str, np.ndarray]) -> None:
    with pytest.raises(AbmllError, match=f"nothing to weigh: 1 rows of {', '.join(named) or 'no system'}$"):
        weigh(named, np.zeros(1, dtype=np.int64), 1)
    with pytest.raises(AbmllError, match=r"nothing to weigh: 0 rows of pretrained, this run$"):
        weigh({PRETRAINED: np.ones((0, 2)), RUN: np.ones((0, 2))}, np.zeros(0, dtype=np.int64), 1)


def test_many_sign_flips_are_drawn_and_still_near_the_binomial_test() -> None:
    values = np.array([1.0] * 20 + [-1.0] * 8 + [1e-13] * 5)
    assert sign_flip_p(values) == pytest.approx(binomtest(20, 28).pvalue, abs=0.006)
    assert sign_flip_p(values) == sign_flip_p(values), "the same flips each time"
    assert sign_flip_p(np.array([3.0, 0.0])) == 1.0, "one difference tells nothing"


def test_a_difference_of_three_in_a_hundred_is_told_and_one_of_five_is_not() -> None:
    """By the binomial test of wins among 11 and 10 rows: .033 and .055, where the NLL has .045 and accuracy .005."""
    for wins, losses, verdict in ((9, 2, "helps"), (8, 2, "no evidence")):
        rows = wins + losses
        won = np.arange(rows) < wins
        found = weigh(
            {PRETRAINED: _says(0.8, ~won, ANSWERS[:rows]), RUN: _says(0.8, won, ANSWERS[:rows])}, ANSWERS[:rows], 5
        )
        assert found.verdict == verdict
        p = binomtest(wins, rows, alternative="greater").pvalue
        assert (p < 0.045) == (verdict == "helps")
        assert 0.025 < p < 0.06


def test_rows_of_a_group_are_dealt_and_held_back_together() -> None:
    questions = [replace(q, group=f"g{i // 3}") for i, q in enumerate(rows(30))]
    for fold in dealt(questions):
        assert not {questions[i].group for i in fold.fitted} & {questions[i].group for i in fold.answered}
    labelled = labelled_rows(questions)
    used, aside = hold_back(labelled, 4, seed=0)
    assert len({q.group for q in aside}) == len(aside) == 4, "of a group held back one row counts"
    assert len(used.rows) == 18
    assert {q.group for q in used.rows}.isdisjoint(q.group for q in aside)
    drawn = {hold_back(labelled, 4, seed)[1][0].id for seed in range(20)}
    assert len({int(name) % 3 for name in drawn}) == 3, "any row of a group, not its first"
    with pytest.raises(AbmllError, match="9 of 10 different rows or groups"):
        hold_back(labelled, 9, seed=0)


def test_a_row_of_a_group_that_was_adapted_to_promises_nothing() -> None:
    questions = [replace(q, group=f"g{i // 3}") for i, q in enumerate(rows(9))]
    used = distinct_keys(row_keys(questions[:2]))
    with pytest.raises(AbmllError, match=r"1 of the rows held back were adapted to \(or another row of their group"):
        refuse_used(labelled_rows(questions[2:]), used)
    refuse_used(labelled_rows(questions[3:]), used)
    assert not any(q.context in key for q in questions for key in used)


def test_a_question_on_a_passage_that_was_adapted_to_promises_nothing() -> None:
    """Also where no two of the rows held back are on it, and where the rows adapted to have a group of their own."""
    on = [replace(q, question=f"{i}?", context=f"story {i // 2}") for i, q in enumerate(rows(8))]
    for used, name in ((on[:3], None), ([replace(q, group="mine") for q in on[:3]], "theirs")):
        keys = distinct_keys(labelled_rows(used).keys)
        others = [replace(q, group=name) for q in (on[3], on[4], on[6])]
        with pytest.raises(AbmllError, match="1 of the rows held back were adapted to"):
            refuse_used(labelled_rows(others), keys)
        refuse_used(labelled_rows(others[1:]), keys)
    instruction = [replace(q, question=f"{i}?", context="Answer.") for i, q in enumerate(rows(8))]
    refuse_used(labelled_rows(instruction[4:]), distinct_keys(labelled_rows(instruction[:4]).keys))


def test_a_task_that_was_saved_without_contexts_still_tells_its_rows_and_groups_apart() -> None:
    """Its hashes are those of questions, and of passages that repeat among its rows."""
    on = [replace(q, question=f"{i}?", context=f"story {i // 2}") for i, q in enumerate(rows(8))]
    keys = labelled_rows([on[0], on[1], on[4]]).keys
    before = {key for of_row in keys for key in (of_row.question, of_row.group) if key}
    with pytest.raises(AbmllError, match="1 of the rows held back were adapted to"):
        refuse_used(labelled_rows([on[2], replace(on[7], context="story  0")]), before)
    refuse_used(labelled_rows([on[2], on[5]]), before)
    assert clusters(labelled_rows([replace(q, group=str(i)) for i, q in enumerate(on)]).keys) == tuple(range(8))


def test_clusters_join_what_asks_the_same_and_what_is_of_one_group() -> None:
    first, second, third = rows(3)
    again = replace(second, id="again", group="g")
    assert clusters(row_keys([first, second, third])) == (0, 1, 2)
    assert clusters(row_keys([replace(first, group="g"), second, third, again])) == (0, 0, 2, 0)


def test_flips_and_intervals_go_by_cluster() -> None:
    """Eight clusters of five alike: as sure as eight rows, not as forty."""
    right = np.repeat(np.arange(8) < 6, 5)
    run, pretrained = _says(0.8, right, ANSWERS), _says(0.8, ~right, ANSWERS)
    half = np.full_like(run, 0.5)
    named = {UNIFORM: half, FREQUENCY: half, PRETRAINED: pretrained, SCALED: pretrained, RUN: run}
    apart, together = weigh(named, ANSWERS, 5), weigh(named, ANSWERS, 5, groups=np.repeat(np.arange(8), 5))
    assert (apart.verdict, together.verdict) == ("helps", "no evidence")
    assert (apart.clusters, together.clusters, together.to_dict()["clusters"]) == (40, 8, 8)
    (row,) = [row for row in together.rows if row.name == RUN]
    (alone,) = [row for row in apart.rows if row.name == RUN]
    assert row.accuracy == alone.accuracy
    assert np.ptp(row.nll_interval) > 1.5 * np.ptp(alone.nll_interval)
    assert np.ptp(row.accuracy_interval) > 1.5 * np.ptp(alone.accuracy_interval)


# -------------------- what else could be used, and what to use


def test_trust_17_a_temperature_is_not_learned_from_the_labels_of_the_fold_it_answers() -> None:
    questions, table = rows(20), np.random.default_rng(0).dirichlet([1, 1], 20)
    answers, folds = np.array([q.answer for q in questions]), dealt(questions)
    before = calibrated_by_folds(table, folds, answers, PosteriorTemperature())
    for fold in folds:
        asked, others = list(fold.answered), list(fold.fitted)
        turned = answers.copy()
        turned[asked] = 1 - turned[asked]
        after = calibrated_by_folds(table, folds, turned, PosteriorTemperature())
        np.testing.assert_array_equal(after[asked], before[asked])
        assert not np.allclose(after[others], before[others]), "nothing is learned at all"
    np.testing.assert_allclose(before.sum(axis=1), 1)


def test_the_temperature_of_a_fold_is_that_of_the_others_answers() -> None:
    """Answers that are right in four of five, and certain, become answers of about .8: scipy's own minimum."""
    right = np.arange(40) % 5 != 4
    sure = _says(0.999, right, ANSWERS)
    folds = (Fold(tuple(range(20, 40)), tuple(range(20))), Fold(tuple(range(20)), tuple(range(20, 40))))
    found = calibrated_by_folds(sure, folds, ANSWERS, PosteriorTemperature(sd=20.0, answer="mode"))
    assert found.max(axis=1) == pytest.approx(0.8, abs=0.01)


def test_trust_17_prompts_show_the_rows_of_the_other_folds_alone() -> None:
    questions = rows(12)
    folds = dealt(questions)
    shown = _with_examples(questions, folds, seed=0)
    for fold in folds:
        for i in fold.answered:
            assert isinstance(shown[i], QuestionWithExamples)
            assert {e.id for e in shown[i].examples} == {questions[j].id for j in fold.fitted}
            assert (shown[i].question, shown[i].context) == (questions[i].question, questions[i].context)
    orders = {tuple(e.id for e in shown[fold.answered[0]].examples) for fold in folds}
    assert any(list(order) != sorted(order, key=int) for order in orders), "not in the order of the file"


def test_the_check_on_texts_has_every_row_and_says_what_each_costs(home: Path) -> None:
    session = open_run(home / "runs" / "mine", {"adaptation": {"samples": 2, "steps": 1}})
    questions, asked = rows(12), list[str]()

    def encode(some: Sequence[str]) -> np.ndarray:
        asked.extend(some)
        return np.array([[text.count("sun"), text.count("rain"), 1.0] for text in some])

    found = check_usefulness(session, labelled_rows(questions), encode=encode)
    assert [row.name for row in found.rows] == list(ORDER)
    assert sorted(asked) == sorted(q.context for q in questions), "each text once, not once a fold"
    assert found.left_out == {}
    answers = np.array([q.answer for q in questions])
    by_name = {row.name: row for row in found.rows}
    said = np.zeros((12, 2))
    for fold in dealt(questions, seed=session.config.adaptation.seed):
        model = TfidfClassifier().fit([questions[i].context for i in fold.fitted], answers[list(fold.fitted)], 2)
        said[list(fold.answered)] = model.probabilities([questions[i].context for i in fold.answered])
    assert by_name[TFIDF].nll == pytest.approx(log_loss(answers, said))
    assert by_name[VECTORS].accuracy == 1.0
    assert all(row.seconds is not None and np.isfinite(row.seconds) for row in found.rows)
    assert by_name[RUN_SCALED].seconds == by_name[RUN].seconds > 0
    assert found.advice is not None
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["version"] == VERSION
    assert values["advice"]["choice"] == found.advice.choice
    assert set(values["advice"]["expected_nll"]) == set(ORDER) - {RUN, PRETRAINED}, "a temperature has them"


def test_a_chat_has_no_place_for_examples_and_no_encoder_makes_no_vectors(home: Path) -> None:
    session = open_run(home / "runs" / "mine", {"adaptation": {"samples": 1, "steps": 1}})
    text = session.config.likelihood.model_copy(update={"template": "chat"})
    session = replace(session, config=session.config.model_copy(update={"likelihood": text}))
    session.base.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    found = check_usefulness(session, labelled_rows(rows(8)))
    assert found.left_out == {
        PROMPT: "likelihood.template=chat has no place for examples",
        VECTORS: "no encoder was named (--vectors)",
    }
    assert not {PROMPT, VECTORS} & {row.name for row in found.rows}


def _losses(**means: float) -> dict[str, np.ndarray]:
    names = {"run": RUN_SCALED, "tfidf": TFIDF, "prompt": PROMPT, "vectors": VECTORS}
    return {names[name]: np.full(40, mean) + 1e-9 * np.arange(40) for name, mean in means.items()}


ALONE = np.arange(40)


def test_the_advice_is_the_lowest_nll_where_rows_agree() -> None:
    for best in ("run", "tfidf", "prompt", "vectors"):
        losses = _losses(**({"run": 0.6, "tfidf": 0.6, "prompt": 0.6, "vectors": 0.6} | {best: 0.5}))
        (name,) = [name for name, values in losses.items() if values.mean() < 0.55]
        found = advise(losses, ALONE, {})
        assert found.choice == name
        assert found.expected[name] == pytest.approx(0.5, abs=1e-6)
        assert found.alike == ()


def test_a_row_or_two_do_not_move_the_advice_from_the_favourite() -> None:
    """TF-IDF has the lower mean by one row of twenty, which the run got badly wrong."""
    run, tfidf = np.full(20, 0.5), np.full(20, 0.55)
    run[3] = 9.0
    assert tfidf.mean() < run.mean()
    found = advise({RUN_SCALED: run, TFIDF: tfidf}, np.arange(20), {RUN_SCALED: 9.0, TFIDF: 0.01})
    assert found.choice == RUN_SCALED
    assert found.alike == (TFIDF,)
    assert found.text == (
        "Advice: use this run + temperature: the lowest NLL to be expected (0.925 nats), 9 s per 1,000 rows.",
        f"The cheapest that these rows cannot tell from it: TF-IDF + regression ({found.expected[TFIDF]:.3f} nats "
        "expected, 0.01 s per 1,000 rows).",
    )
    many = advise({RUN_SCALED: np.tile(run, 30), TFIDF: np.tile(tfidf, 30)}, np.arange(600), {})
    assert many.choice == TFIDF


def test_expected_nll_is_the_posterior_mean_of_normals() -> None:
    """By Bayes' rule on a grid."""
    rng = np.random.default_rng(0)
    losses = {RUN_SCALED: rng.normal(0.7, 0.3, 30), TFIDF: rng.normal(0.9, 0.4, 30)}
    difference = losses[TFIDF] - losses[RUN_SCALED]
    grid = np.linspace(-3, 3, 20_001)
    prior = norm.pdf(grid, HANDICAP[TFIDF], SPREAD)
    weights = prior * norm.pdf(difference.mean(), grid, difference.std(ddof=1) / np.sqrt(30))
    found = expected_nll(losses, np.arange(30))
    assert found[RUN_SCALED] == pytest.approx(losses[RUN_SCALED].mean())
    assert found[TFIDF] - found[RUN_SCALED] == pytest.approx((grid * weights).sum() / weights.sum(), abs=1e-5)
    groups = np.arange(30) // 10
    sums = np.bincount(groups, difference - difference.mean())
    weight = SPREAD**2 / (SPREAD**2 + (sums**2).sum() / 30**2 * 3 / 2)
    drawn = weight * difference.mean() + (1 - weight) * HANDICAP[TFIDF]
    together = expected_nll(losses, groups)
    assert together[TFIDF] - together[RUN_SCALED] == pytest.approx(drawn)


def test_a_run_that_hurts_is_not_advised() -> None:
    """Better by one measure would be advised, were it not worse by the other: it is the verdict that counts."""
    good, poor = _says(0.8, ALL, ANSWERS), _says(0.8, HALF, ANSWERS)
    found = _weigh(poor, good, ANSWERS)
    assert found.verdict == "hurts"
    assert found.advice.choice not in (RUN, RUN_SCALED)
    assert RUN not in found.advice.expected


def test_the_verdict_is_about_the_run_with_its_temperature() -> None:
    good, poor = _says(0.8, ALL, ANSWERS), _says(0.8, HALF, ANSWERS)
    named = {PRETRAINED: _says(0.7, ALL, ANSWERS), RUN: poor, RUN_SCALED: good}
    assert weigh(named, ANSWERS, 5).verdict == "helps"
    for rival in (TFIDF, VECTORS, PROMPT):
        assert weigh(named | {rival: good}, ANSWERS, 5).verdict == "no evidence"


def test_nothing_finite_is_no_advice() -> None:
    assert advise({}, np.zeros(0, dtype=np.int64), {}) is None


@pytest.mark.parametrize("count", [6, 12, 20])
def test_sign_flips_are_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(-0.4, 1.0, count)
    for alternative in ("less", "two-sided"):
        theirs = permutation_test((values,), np.mean, permutation_type="samples", alternative=alternative).pvalue
        assert sign_flip_p(values, alternative) == pytest.approx(theirs, abs=1e-12 if count < 13 else 0.01)
