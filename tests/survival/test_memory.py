"""Memory that grows neither with steps, nor with tasks, nor with questions: the short forms of `make soak`."""

from pathlib import Path

import pytest

from abmll.prompts import encode as prompts
from abmll.prompts.encode import Encoder
from tests.survival.memory import can_measure, peak_of_prediction, train_and_watch
from tests.tiny import tiny_tasks, tiny_tokenizer

linux = pytest.mark.skipif(not can_measure(), reason="the system does not tell resident peaks")


@linux
def test_trust_49_training_keeps_its_memory_and_open_files(tmp_path: Path) -> None:
    seen = train_and_watch(tmp_path, tasks=10, steps=60, every=10)
    sizes, files = [row[1] for row in seen], {row[2] for row in seen}
    assert len(seen) == 6
    assert len(files) == 1, files
    assert sizes[-1] - sizes[1] < 2.0, sizes  # 40 steps: a leak of one batch a step would be more


def test_trust_49_the_memory_of_questions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory does not depend on the number of tasks."""
    monkeypatch.setattr(prompts, "MOST_REMEMBERED", 300)
    encoder = Encoder(tiny_tokenizer())
    rows = [row for task in tiny_tasks(3, n_rows=30, n_test=0) for row in task.train]
    first = [encoder(row) for row in rows]
    kept = encoder._cache
    assert sum(encoded.tokens for encoded in kept.values()) == encoder._remembered <= 300
    assert 3 < len(kept) < len(rows)
    assert list(kept)[-1] == rows[-1]
    oldest = next(iter(kept))
    encoder(oldest)
    assert list(kept)[-1] == oldest, "used again, so the last to go"
    assert [encoder(row) for row in rows] == first


@linux
def test_trust_50_prediction_takes_no_more_memory_for_more_questions(tmp_path: Path) -> None:
    few, many = (peak_of_prediction(tmp_path, n, vocabulary=128_000, batch_tokens=1024) for n in (80, 320))
    assert many < 1.05 * few
