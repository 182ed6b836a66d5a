"""Which batches come next: what an episode holds, how tasks are drawn, and what every system shares."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from scipy.stats import chisquare

from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.tasks.episodes import Episode, Episodes, adaptation_batches

KINDS = ["by_task", "mixed"]


def task_of(name: str, rows: int) -> Task:
    return Task(name, tuple(Question(f"{name}-{i}", "?", ("a", "b"), 0) for i in range(rows)))


TASKS = (task_of("small", 12), task_of("middle", 36), task_of("large", 72))


def episodes(kind: str, tasks: tuple[Task, ...] = TASKS, seed: int = 0, proportional: bool = False) -> Episodes:
    return Episodes(tasks, kind, batches=6, batch_size=2, seed=seed, proportional=proportional)


def ids(episode: Episode) -> list[str]:
    return [q.id for q in chain(*episode.batches)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_has_the_same_number_of_distinct_examples_for_both_kinds(kind: str) -> None:
    source = episodes(kind)
    assert source.examples == 12
    for iteration in range(50):
        episode = source.draw(iteration)
        assert [len(batch) for batch in episode.batches] == [2] * 6
        assert len(set(ids(episode))) == 12


def test_by_task_rows_are_of_the_named_task_and_mixed_rows_of_many() -> None:
    for iteration in range(50):
        episode = episodes("by_task").draw(iteration)
        assert {name.split("-")[0] for name in ids(episode)} == {episode.task}
    mixed = [episodes("mixed").draw(iteration) for iteration in range(50)]
    assert {episode.task for episode in mixed} == {"mixed"}
    assert all(len({name.split("-")[0] for name in ids(episode)}) > 1 for episode in mixed)
    first_of = Counter(ids(episode)[0].split("-")[0] for episode in mixed)
    assert len(first_of) == 3, "the order within an episode is shuffled, not sorted by task"


@pytest.mark.parametrize("kind", KINDS)
def test_trust_21_an_episode_is_a_pure_function_of_seed_iteration_and_position(kind: str) -> None:
    forwards = [episodes(kind).draw(i, p) for i in range(5) for p in range(3)]
    source = episodes(kind)
    backwards = [source.draw(i, p) for i in reversed(range(5)) for p in reversed(range(3))]
    assert forwards == backwards[::-1], "a draw depends on nothing that was drawn before"
    others = [*forwards, *(episodes(kind, seed=1).draw(i, p) for i in range(5) for p in range(3))]
    assert len({tuple(ids(episode)) for episode in others}) == 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("proportional", "shares"), [(False, (1, 1, 1)), (True, (12, 36, 72))])
def test_tasks_are_drawn_uniformly_or_by_their_size(kind: str, proportional: bool, shares: tuple[int, ...]) -> None:
    large = tuple(task_of(t.name, 100 * len(t.train)) for t in TASKS)  # so large that refusing repeats biases nothing
    source = episodes(kind, large, proportional=proportional)
    drawn = [source.draw(iteration) for iteration in range(600)]
    firsts = Counter(ids(episode)[0].split("-")[0] for episode in drawn)
    observed = [firsts[t.name] for t in large]
    expected = [600 * share / sum(shares) for share in shares]
    assert chisquare(observed, expected).pvalue > 1e-3
    swapped = [600 * share / 120 for share in (12, 36, 72)] if not proportional else [200] * 3
    assert chisquare(observed, swapped).pvalue < 1e-6, "the test could not tell the two apart"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_task_are_drawn_uniformly(kind: str) -> None:
    source = episodes(kind, (task_of("only", 30),))
    counts = Counter(chain(*(ids(source.draw(iteration)) for iteration in range(500))))
    spread = chisquare([counts[f"only-{i}"] for i in range(30)])
    assert spread.pvalue > 1e-3  # without replacement the counts are even more alike than chi-square allows for


def test_the_place_in_an_episode_says_nothing_about_the_row() -> None:
    source = episodes("mixed", (task_of("a", 15), task_of("b", 15)))
    queries = Counter(source.draw(iteration).batches[-1][-1].id for iteration in range(1500))
    assert len(queries) == 30
    assert chisquare(list(queries.values())).pvalue > 1e-3


@pytest.mark.parametrize("rows", [0, 1, 2, 11])
def test_trust_18_a_task_smaller_than_an_episode_is_named_with_what_to_do(rows: int) -> None:
    tasks = (*TASKS, task_of("tiny", rows))
    with pytest.raises(AbmllError, match=rf"needs 12 train rows; too small: tiny \({rows}\)\. Remove .*inner_steps"):
        episodes("by_task", tasks)


@pytest.mark.parametrize("rows", [1, 2, 11])
def test_trust_18_mixed_episodes_take_small_tasks_and_still_repeat_no_row(rows: int) -> None:
    source = episodes("mixed", (task_of("tiny", rows), task_of("other", 12 - rows)))
    for iteration in range(20):
        assert len(set(ids(source.draw(iteration)))) == 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tasks", [(), (task_of("a", 5), task_of("b", 6)), (*TASKS, task_of("hollow", 0))])
def test_trust_18_too_little_to_train_on_is_an_error_before_the_first_draw(kind: str, tasks: tuple[Task, ...]) -> None:
    with pytest.raises(AbmllError, match=r"no task|too small|fewer than 12 rows|no train rows .* hollow"):
        episodes(kind, tasks)


# Adaptation


def adapt(
    task: Task = TASKS[1], examples: int | None = 20, steps: int = 10, batch_size: int = 2, seed: int = 0, draw: int = 0
):
    return adaptation_batches(task, examples=examples, steps=steps, batch_size=batch_size, seed=seed, draw=draw)


def test_adaptation_examples_are_a_function_of_the_task_s_name_and_the_draw() -> None:
    assert adapt() == adapt(Task("middle", TASKS[1].train, test=TASKS[0].train, source="elsewhere"))
    variants = [adapt(), adapt(draw=1), adapt(seed=1), adapt(seed=1, draw=1), adapt(Task("other", TASKS[1].train))]
    assert len({tuple(q.id for q in chosen) for chosen, _ in variants}) == len(variants)


def test_the_examples_of_a_draw_do_not_depend_on_steps_or_batch_size() -> None:
    assert adapt()[0] == adapt(steps=3)[0] == adapt(steps=7, batch_size=5)[0]
    assert adapt(steps=3)[1] == adapt()[1][:3]


@pytest.mark.parametrize(
    ("examples", "steps", "batch_size"), [(20, 10, 2), (20, 30, 2), (7, 10, 3), (3, 2, 5), (20, 4, 2)]
)
def test_each_pass_takes_each_example_once_in_a_new_order(examples: int, steps: int, batch_size: int) -> None:
    chosen, batches = adapt(examples=examples, steps=steps, batch_size=batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * steps
    assert len(set(chosen)) == examples
    stream = list(chain(*batches))
    passes = [stream[i : i + examples] for i in range(0, len(stream), examples)]
    whole = [one for one in passes if len(one) == examples]
    assert all(set(one) == set(chosen) for one in whole)
    assert set(passes[-1]) <= set(chosen)
    assert len(set(passes[-1])) == len(passes[-1])
    if examples > 3:
        assert len({tuple(one) for one in whole}) == len(whole), "each pass is a new permutation"


def test_all_of_a_task_are_taken_where_no_number_is_given() -> None:
    chosen, batches = adapt(examples=None, steps=3)
    assert sorted(row.id for row in chosen) == sorted(row.id for row in TASKS[1].train)
    assert (chosen, batches) == adapt(examples=len(TASKS[1].train), steps=3)


def test_no_examples_mean_no_steps_and_no_steps_mean_no_batches() -> None:
    assert adapt(examples=0) == ((), [])
    assert adapt(task_of("hollow", 0), examples=0) == ((), [])
    chosen, batches = adapt(steps=0)
    assert (len(chosen), batches) == (20, [])


@pytest.mark.parametrize("rows", [0, 1, 2, 19])
def test_trust_18_too_few_rows_to_adapt_from_is_an_error(rows: int) -> None:
    with pytest.raises(AbmllError, match=rf"'tiny' has {rows} train rows, adaptation wants 20"):
        adapt(task_of("tiny", rows))


def test_a_draw_is_that_of_the_first_position_unless_another_is_said() -> None:
    source = episodes("by_task")
    assert source.draw(3) == source.draw(3, 0) != source.draw(3, 1)


def test_what_is_wrong_with_tasks_is_said_with_every_name_and_number() -> None:
    for tasks, kind, text in (
        ((), "mixed", "tasks.train names no task to meta-train on"),
        (
            (task_of("a", 3), *TASKS, task_of("b", 11)),
            "by_task",
            "an episode of 6 batches of 2 needs 12 train rows; too small: a (3), b (11). "
            "Remove them or lower method.inner_steps or method.batch_size",
        ),
        (
            (task_of("a", 0), *TASKS, task_of("b", 0)),
            "mixed",
            "no train rows to meta-train on in a, b. Remove them from tasks.train",
        ),
        ((task_of("a", 5), task_of("b", 6)), "mixed", "the meta-training tasks have fewer than 12 rows together"),
    ):
        with pytest.raises(AbmllError) as caught:
            episodes(kind, tasks)
        assert str(caught.value) == text


@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_episodes_are_those_that_earlier_runs_had(kind: str, proportional: bool) -> None:
    """A run goes on from its checkpoint by the same episodes, so their random numbers are numpy's Philox for good."""
    source = episodes(kind, proportional=proportional)
    for iteration, position in ((0, 0), (7, 2)):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, iteration, position])))
        shares = np.array([12, 36, 72]) / 120 if proportional else None
        if kind == "by_task":
            task = TASKS[rng.choice(3, p=shares)]
            expected = [task.train[i].id for i in rng.choice(len(task.train), 12, replace=False)]
        else:
            taken: dict[str, None] = {}
            while len(taken) < 12:
                task = TASKS[rng.choice(3, p=shares)]
                taken[task.train[rng.integers(len(task.train))].id] = None
            everything = [q.id for t in TASKS for q in t.train]
            ordered = sorted(taken, key=everything.index)
            expected = [ordered[i] for i in rng.permutation(12)]
        assert ids(source.draw(iteration, position)) == expected


def test_adaptation_examples_are_those_that_earlier_runs_had() -> None:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, 1, *b"middle"])))
    chosen = [TASKS[1].train[i] for i in rng.choice(36, 5, replace=False)]
    stream = [chosen[i] for _ in range(2) for i in rng.permutation(5)]
    found, batches = adapt(examples=5, steps=4, batch_size=2, seed=3, draw=1)
    assert list(found) == chosen
    assert list(chain(*batches)) == stream[:8]
