"""One suite over every calibrator, plain and learned: a new one is finished when it is green."""

import json
from dataclasses import replace

import numpy as np
import pytest

from abmll.calibrators import CALIBRATORS, Calibrator, ChoiceRows, TaskRows, calibrator, calibrator_from_dict
from abmll.errors import AbmllError
from tests.calibrators import CHANCE, ragged_rows, simulated_rows, simulated_tasks

SCALED = {"scale": {}}
PLAIN = {
    **{name: calibrator(name) for name in CALIBRATORS},
    "posterior_temperature-mode": calibrator("posterior_temperature", {"answer": "mode"}),
    "batch-scaled": calibrator("batch", SCALED),
    "contextual-scaled": calibrator("contextual", SCALED),
}


def _content_free(choices: int) -> ChoiceRows:
    return simulated_rows(7, 3, spread=0.3, choices=choices)


def _training_tasks(count: int, **settings) -> list[TaskRows]:
    tasks = simulated_tasks(count, seed=9, temperature=3.0, **settings)
    return [TaskRows(t.name, t.held_out, t.test, _content_free(4)) for t in tasks]


VARIANTS: dict[str, Calibrator] = {
    **PLAIN,
    **{f"{name}-learned": plain.meta_fit(_training_tasks(4)) for name, plain in PLAIN.items()},
}


def _zeros_and_ones() -> ChoiceRows:
    """Probabilities that are exactly 0 and 1, right and wrong."""
    with np.errstate(divide="ignore"):
        scores = np.log(np.eye(4)[np.arange(12) % 4])
    scores[np.isinf(scores)] = -1e9  # held at the floor
    return ChoiceRows.from_scores(scores, np.arange(12) % 4 * (np.arange(12) > 2), fixed_choices=True)


CASES = {
    "labels": simulated_rows(0, 20),
    "two labels": simulated_rows(1, 20, choices=2),
    "by chance": simulated_rows(2, 20, temperature=CHANCE, spread=8.0),
    "one row": simulated_rows(3, 1),
    "all right": simulated_rows(4, 20, temperature=1e-9),
    "all wrong": simulated_rows(5, 20, temperature=-1e-9),
    "zeros and ones": _zeros_and_ones(),
    "all equal": ChoiceRows.from_scores(np.zeros((6, 4)), np.arange(6) % 4, fixed_choices=True),
    "ragged": ragged_rows(6, 20),
    "one choice": ChoiceRows.from_scores(np.zeros((3, 1)), np.zeros(3, dtype=np.int64), fixed_choices=True),
    "nothing": ChoiceRows.from_scores(np.zeros((0, 4)), fixed_choices=True),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def every_variant_on(*cases: str) -> pytest.MarkDecorator:
    """Each variant with each of the cases whose choices are fixed, if it needs that."""
    pairs = [(v, c) for v in VARIANTS for c in cases if CASES[c].fixed_choices or not VARIANTS[v].needs_fixed_choices]
    return pytest.mark.parametrize(("variant", "case"), pairs)


def answer(made: Calibrator, held_out: ChoiceRows, rows: ChoiceRows) -> np.ndarray:
    """Calibrated answers."""
    return made.fit(held_out, _content_free(held_out.log_probabilities.shape[1])).apply(rows)


def _test_rows(case: str) -> ChoiceRows:
    if case == "ragged":
        return ragged_rows(11, 30)
    return simulated_rows(12, 30, spread=4.0, choices=CASES[case].log_probabilities.shape[1])


@every_variant_on(*CASES)
def test_answers_are_finite_and_sum_to_one(variant: str, case: str) -> None:
    for rows in (_test_rows(case), CASES[case]):
        answers = answer(VARIANTS[variant], CASES[case], rows)
        assert answers.shape == rows.log_probabilities.shape
        assert np.isfinite(answers).all()
        assert (answers >= 0).all()
        assert answers.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
        assert (answers[~rows.real] == 0).all()


@every_variant_on(*CASES)
def test_the_most_probable_choice_stays_so_where_that_is_said(variant: str, case: str) -> None:
    made, rows = VARIANTS[variant], _test_rows(case)
    answers = answer(made, CASES[case], rows)
    top = answers[np.arange(len(rows)), rows.log_probabilities.argmax(axis=1)]
    assert (top >= answers.max(axis=1) * (1 - 1e-12)).all() or not made.keeps_order


def test_what_may_change_the_order_does() -> None:
    """Else `keeps_order` would be wrong in the other direction."""
    rows, held_out = simulated_rows(12, 400, spread=0.3), simulated_rows(13, 200, bias=np.array([3.0, 0.0, 0.0, 0.0]))
    for variant, made in VARIANTS.items():
        before, after = rows.log_probabilities.argmax(axis=1), answer(made, held_out, rows).argmax(axis=1)
        assert made.keeps_order == (before == after).all(), variant


@every_variant_on("labels", "ragged")
def test_the_order_of_rows_is_irrelevant(variant: str, case: str) -> None:
    made, held_out, rows = VARIANTS[variant], CASES[case], _test_rows(case)
    turned = answer(made, _take(held_out, slice(None, None, -1)), _take(rows, slice(None, None, -1)))
    assert turned[::-1] == pytest.approx(answer(made, held_out, rows), abs=1e-6)


@every_variant_on("labels", "ragged")
def test_a_row_alone_is_answered_alike_unless_transductive(variant: str, case: str) -> None:
    made, held_out, rows = VARIANTS[variant], CASES[case], _test_rows(case)
    together, alone = answer(made, held_out, rows), answer(made, held_out, _take(rows, slice(0, 1)))
    depends = not np.allclose(together[0], alone[0], atol=1e-10)
    untaught = made.name == "thermometer" and not made.centre  # a constant, before it has seen tasks
    assert depends == (made.transductive and not untaught)


def _take(rows: ChoiceRows, part: slice) -> ChoiceRows:
    return ChoiceRows(rows.log_probabilities[part], rows.answers[part], rows.fixed_choices)


@every_variant_on("labels", "ragged")
def test_the_answers_of_test_rows_are_never_looked_at(variant: str, case: str) -> None:
    made, held_out, rows = VARIANTS[variant], CASES[case], _test_rows(case)
    hidden = replace(rows, answers=np.full(len(rows), -1))
    assert (answer(made, held_out, hidden) == answer(made, held_out, rows)).all()


@every_variant
def test_rows_without_an_answer_teach_nothing_of_answers(variant: str) -> None:
    made, held_out, rows = VARIANTS[variant], CASES["labels"], _test_rows("labels")
    unknown = ChoiceRows(held_out.log_probabilities, np.full(20, -1), True)
    nothing = answer(made, CASES["nothing"], rows)
    assert answer(made, unknown, rows) == pytest.approx(nothing, abs=1e-12)


@every_variant
def test_it_is_deterministic_and_survives_json(variant: str) -> None:
    made = VARIANTS[variant]
    text = json.dumps(made.to_dict(), allow_nan=False)
    again = calibrator_from_dict(json.loads(text))
    assert again == made
    assert type(again) is type(made)
    held_out, rows = CASES["labels"], _test_rows("labels")
    assert (answer(again, held_out, rows) == answer(made, held_out, rows)).all()


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_few_tasks_are_enough_to_learn_from(name: str, count: int) -> None:
    plain, tasks = PLAIN[name], _training_tasks(count)
    learned = plain.meta_fit(tasks)
    assert learned == plain.meta_fit(tasks)
    assert calibrator_from_dict(learned.to_dict()) == learned  # so every number is finite, and in its range
    if count == 0:
        assert learned == plain
    answers = answer(learned, CASES["labels"], _test_rows("labels"))
    assert answers.sum(axis=1) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_the_order_of_tasks_is_irrelevant(name: str) -> None:
    tasks = _training_tasks(5)
    made = [PLAIN[name].meta_fit(order) for order in (tasks, tasks[::-1])]
    answers = [answer(m, CASES["labels"], _test_rows("labels")) for m in made]
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_tasks_that_cannot_teach_are_left_out(name: str) -> None:
    ragged = TaskRows("ragged", ragged_rows(0, 0), ragged_rows(1, 0))
    assert PLAIN[name].meta_fit([ragged]) == PLAIN[name]


def test_needs_are_refused_by_name() -> None:
    ragged, labels = CASES["ragged"], CASES["labels"]
    for name in ("batch", "contextual"):
        with pytest.raises(AbmllError, match=f"calibrator '{name}' needs fixed choices"):
            calibrator(name).fit(ragged, _content_free(4))
    with pytest.raises(AbmllError, match="calibrator 'contextual' needs the answers to inputs without content"):
        calibrator("contextual").fit(labels)
    with pytest.raises(AbmllError, match="no content-free rows"):
        calibrator("contextual").fit(labels, CASES["nothing"])
    fitted = calibrator("contextual").fit(labels, _content_free(4))
    with pytest.raises(AbmllError, match="a shift needs fixed ones"):
        fitted.apply(ragged)
    with pytest.raises(AbmllError, match="rows of 2 choices, and a prior over 4"):
        fitted.apply(CASES["two labels"])


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(AbmllError, match="Did you mean 'temperature'"):
        calibrator("temprature")
    with pytest.raises(AbmllError, match="posterior_temperature, sigma"):
        calibrator("posterior_temperature", {"sigma": 1.0})
    for bad in (0.0, -1.0, float("nan"), float("inf"), "wide"):
        with pytest.raises(AbmllError, match="posterior_temperature, sd"):
            calibrator("posterior_temperature", {"sd": bad})


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"calibrator": "none"},
        {"calibrator": "none", "version": 2, "settings": {}},
        {"calibrator": "none", "version": 1, "settings": []},
        {"calibrator": "nothing", "version": 1, "settings": {}},
        {"calibrator": "vector_scaling", "version": 1, "settings": {"scale": {"mu": float("nan")}}},
        {"calibrator": "thermometer", "version": 1, "settings": {"centre": [0.0], "spread": [], "coefficients": [1.0]}},
        {
            "calibrator": "thermometer",
            "version": 1,
            "settings": {key: [0] for key in ("centre", "spread", "coefficients")},
        },
    ],
)
def test_what_is_no_calibrator_is_refused(value: object) -> None:
    with pytest.raises(AbmllError):
        calibrator_from_dict(value)
