"""Which rows of a training task are adapted to, and which are answered, where something is learned over tasks."""

import itertools
from dataclasses import replace

import pytest

from abmll.question import Question, Task
from abmll.systems.meta_rows import MOST_TASKS, held_back_episode, rows_trained_on, spread_tasks
from abmll.systems.plans import AdaptationPlan
from abmll.tables.identity import clusters, row_keys
from abmll.tasks.episodes import Episodes
from tests.tiny import tiny_tasks

PLAN = AdaptationPlan(examples=6)


def ask(name: str, count: int, group: str | None = None) -> tuple[Question, ...]:
    return tuple(Question(f"{name}{i}", f"{name} {i}?", ("no", "yes"), i % 2, group=group) for i in range(count))


def test_the_test_split_is_answered_and_rows_that_training_drew_come_last() -> None:
    train, test = ask("train", 20), ask("test", 9)
    drawn = frozenset(train[:12])
    episode = held_back_episode(Task("t", train, test), PLAN, 5, drawn)
    assert episode is not None
    assert set(episode.test) < set(test)
    assert len(set(episode.test)) == 5
    assert len(set(episode.train)) == 6
    assert not drawn & set(episode.train), "eight rows were not drawn"
    short = held_back_episode(Task("t", train, test[:2]), PLAN, 5, drawn)
    assert short is not None
    assert set(short.test) >= set(test[:2])
    assert len(short.test) == 5
    assert not drawn & set(short.test)
    assert len(drawn & set(short.train)) == 1, "five of the eight are left, and six are adapted to"


def test_where_all_rows_are_adapted_to_test_rows_alone_are_answered() -> None:
    train, test = ask("train", 20), ask("test", 3)
    episode = held_back_episode(Task("t", train, test), AdaptationPlan(examples=None), 5, frozenset())
    assert episode is not None
    assert (set(episode.train), set(episode.test)) == (set(train), set(test))
    assert held_back_episode(Task("t", train), AdaptationPlan(examples=None), 5, frozenset()) is None


def test_without_a_test_split_rows_are_left_to_adapt_to() -> None:
    train = ask("train", 8)
    episode = held_back_episode(Task("t", train), PLAN, 5, frozenset())
    assert episode is not None
    assert len(episode.test) == 2
    assert set(episode.train) | set(episode.test) == set(train)
    assert held_back_episode(Task("t", train[:6]), PLAN, 5, frozenset()) is None
    assert held_back_episode(Task("t", train[:5], ask("test", 4)), PLAN, 5, frozenset()) is None
    unlabelled = tuple(replace(row, answer=None) for row in ask("test", 4))
    assert held_back_episode(Task("t", train[:6], unlabelled), PLAN, 5, frozenset()) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_row_that_is_answered_was_adapted_to_in_any_form(seed: int) -> None:
    """Neither the row nor the same question in other letters, nor another of its group."""
    groups = tuple(row for name in "abcdef" for row in ask(name, 4, group=name))
    again = tuple(replace(row, id=f"again {row.id}", question=row.question.upper(), group=None) for row in groups)
    task = Task("t", (*groups, *again), ask("test", 2) + again[:3])
    episode = held_back_episode(task, replace(PLAN, seed=seed), 8, frozenset(groups[:7]))
    assert episode is not None
    keys = row_keys((*episode.train, *episode.test))
    adapted, answered = (
        {key for of_row in part for key in of_row[:2] if key is not None}
        for part in (keys[: len(episode.train)], keys[len(episode.train) :])
    )
    assert not adapted & answered
    numbers = clusters(keys)
    assert len(numbers) == len(episode.train) + len(episode.test)


def test_a_task_of_one_group_has_no_episode() -> None:
    task = Task("t", ask("train", 20, group="one"), ask("test", 4, group="one"))
    assert held_back_episode(task, PLAN, 3, frozenset()) is None


def test_rows_depend_on_the_seed_and_the_name_alone() -> None:
    task = Task("t", ask("train", 20), ask("test", 9))
    first, again = (held_back_episode(task, PLAN, 5, frozenset()) for _ in range(2))
    assert first == again
    assert first != held_back_episode(task, replace(PLAN, seed=1), 5, frozenset())
    renamed = held_back_episode(replace(task, name="u"), PLAN, 5, frozenset())
    assert renamed is not None
    assert first is not None
    assert renamed.test != first.test


def test_rows_trained_on_are_those_of_every_episode() -> None:
    tasks = tiny_tasks(3)
    for kind in ("by_task", "mixed"):
        episodes = Episodes(tasks, kind, batches=2, batch_size=2, seed=3)
        drawn = rows_trained_on(episodes, 2, 2)
        expected = {row for i in (0, 1) for p in (0, 1) for b in episodes.draw(i, p).batches for row in b}
        assert drawn == expected
        assert drawn < {row for task in tasks for row in task.train}
    assert rows_trained_on(episodes, 0, 2) == frozenset()


def test_many_tasks_are_spread_evenly() -> None:
    tasks = [Task(str(n), ()) for n in range(200)]
    chosen = [int(task.name) for task in spread_tasks(tasks)]
    assert len(set(chosen)) == MOST_TASKS
    assert (chosen[0], chosen[-1]) == (0, 199)
    assert max(b - a for a, b in itertools.pairwise(chosen)) <= 6
    assert spread_tasks(tasks[:MOST_TASKS]) == tuple(tasks[:MOST_TASKS])
