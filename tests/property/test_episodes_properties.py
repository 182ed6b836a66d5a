"""Properties of episodes and adaptation batches for any sizes."""

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.question import Question, Task
from abmll.tasks.episodes import Episodes, adaptation_batches

counts = st.integers(0, 2**40)


def task_of(name: str, rows: int) -> Task:
    return Task(name, tuple(Question(f"{name}-{i}", "?", ("a", "b"), 0) for i in range(rows)))


@settings(max_examples=80, deadline=None)
@given(
    spare=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    kind=st.sampled_from(["by_task", "mixed"]),
    batches=st.integers(1, 6),
    batch_size=st.integers(1, 4),
    proportional=st.booleans(),
    seed=counts,
    iteration=counts,
    position=counts,
)
def test_an_episode_has_its_shape_and_no_row_twice_and_comes_again(
    spare, kind, batches, batch_size, proportional, seed, iteration, position
) -> None:
    tasks = tuple(task_of(f"t{i}", batches * batch_size + more) for i, more in enumerate(spare))
    source = Episodes(tasks, kind, batches, batch_size, seed, proportional)
    episode = source.draw(iteration, position)
    rows = list(chain(*episode.batches))
    assert [len(batch) for batch in episode.batches] == [batch_size] * batches
    assert len(set(rows)) == len(rows) == source.examples
    allowed = [t for t in tasks if episode.task in ("mixed", t.name)]
    assert set(rows) <= set(chain(*(t.train for t in allowed)))
    assert Episodes(tasks, kind, batches, batch_size, seed, proportional).draw(iteration, position) == episode


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 30),
    share=st.floats(0, 1),
    steps=st.integers(0, 12),
    batch_size=st.integers(1, 7),
    seed=counts,
    draw=counts,
    name=st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()),
)
def test_adaptation_uses_each_example_equally_often_give_or_take_one(
    rows, share, steps, batch_size, seed, draw, name
) -> None:
    task, examples = task_of(name, rows), max(1, round(share * rows))
    chosen, batches = adaptation_batches(
        task, examples=examples, steps=steps, batch_size=batch_size, seed=seed, draw=draw
    )
    stream = list(chain(*batches))
    assert len(set(chosen)) == examples
    assert set(chosen) <= set(task.train)
    assert [len(batch) for batch in batches] == [batch_size] * steps
    uses = [stream.count(question) for question in chosen]
    assert sum(uses) == len(stream)
    assert max(uses) - min(uses) <= 1
