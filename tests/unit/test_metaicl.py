"""MetaICL: demonstrations in episodes, in adaptation steps and in front of what is answered."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abmll.errors import AbmllError
from abmll.everyday.saved import read_posterior, save_posterior
from abmll.everyday.session import open_run
from abmll.methods import resolve_settings
from abmll.question import Question, Task
from abmll.systems.build import build_system, renew
from abmll.systems.plans import AdaptationPlan, PredictionPlan, resolve
from abmll.systems.predict import leave_one_out
from abmll.systems.system import System
from abmll.tasks.episodes import Episodes
from tests.runs import UNSEEN, config_in, place_tiny, plain_probabilities, train_run
from tests.systems import TASKS, key_of, questions, run_config, same, scramble, system_of, tiny_base, train, values

MEAN = PredictionPlan("mean", 1)


def shot(row: Question) -> str:
    """A labelled row as it stands in a prompt, written out by hand."""
    context = f"{row.context}\n\n" if row.context else ""
    return f"{context}Question: {row.question}\nAnswer: {row.choices[row.answer or 0]}\n\n"


def by_hand(question: Question, shots: tuple[Question, ...]) -> Question:
    """The question with shots as its context; its own is empty."""
    assert not question.context
    return replace(question, context="".join(map(shot, shots)))


def plain(rows: tuple[Question, ...]) -> tuple[Question, ...]:
    return tuple(replace(row, context="") for row in rows)


def test_a_question_s_demonstrations_are_other_rows_of_its_episode() -> None:
    source = Episodes(TASKS, "by_task", 6, 2, seed=3, demonstrations=4)
    episode = source.draw(5, 1)
    rows = [row for batch in episode.batches for row in batch]
    shown = [others for batch in episode.shown for others in batch]
    assert [len(others) for others in shown] == [4] * 12
    for row, others in zip(rows, shown, strict=True):
        assert row not in others
        assert set(others) <= set(rows)
        assert len(set(others)) == 4
    assert len(set(shown)) > 6, "each question has a draw of its own"
    assert source.draw(5, 1) == episode
    assert len(replace(source, demonstrations=50).draw(5, 1).shown[0][0]) == 11


def test_demonstrations_change_neither_the_rows_of_an_episode_nor_how_many_it_consumes() -> None:
    without = Episodes(TASKS, "by_task", 6, 2, seed=3)
    source = replace(without, demonstrations=4)
    assert [source.draw(i).batches for i in range(4)] == [without.draw(i).batches for i in range(4)]
    assert source.examples == without.examples == 12
    assert without.draw(0).shown == ()


def test_the_loss_is_that_of_a_prompt_written_by_hand() -> None:
    system = system_of("metaicl", demonstrations=3, inner_steps=2)
    scramble(system)
    rows = plain(questions(6))
    task = Task("t", rows)
    episode = resolve(system.config).episodes_of((task,)).draw(0)
    asked = [question for batch in system.batcher.asked(episode) for question in batch]
    shown = [others for batch in episode.shown for others in batch]
    raw = [question for batch in episode.batches for question in batch]
    expected = [by_hand(question, others) for question, others in zip(raw, shown, strict=True)]
    model, tokenizer = system.language_model.model, system.language_model.tokenizer
    probabilities = plain_probabilities(model, tokenizer, expected)
    nll = -torch.stack([p[q.answer or 0] for p, q in zip(probabilities, raw, strict=True)]).log().mean()
    found = system.method.inner_loss(system.batcher.batch(asked), key_of(0)).nll.detach()
    assert float(found) == pytest.approx(float(nll), rel=1e-4)


def test_without_demonstrations_it_is_lora_bit_for_bit(tmp_path: Path) -> None:
    settings = {"inner_steps": 3, "inner_lr": 1e-2}
    lora, _ = train(run_config("lora", **settings), tmp_path / "lora")
    metaicl, _ = train(run_config("metaicl", demonstrations=0, episodes="mixed", **settings), tmp_path / "metaicl")
    assert same(values(lora, "shared"), values(metaicl, "shared"))
    structured, _ = train(run_config("structured", **settings), tmp_path / "structured")
    by_task, _ = train(run_config("metaicl", demonstrations=0, **settings), tmp_path / "by-task")
    shown, _ = train(run_config("metaicl", demonstrations=2, **settings), tmp_path / "shown")
    assert same(values(structured, "shared"), values(by_task, "shared"))
    assert not same(values(structured, "shared"), values(shown, "shared"))


def test_mixed_episodes_have_nothing_to_show() -> None:
    with pytest.raises(AbmllError, match="mixed has no other rows of the same task to show"):
        resolve_settings("metaicl", given={"episodes": "mixed"})


def test_an_adaptation_step_shows_a_question_the_other_examples_and_never_itself() -> None:
    system = system_of("metaicl")
    examples = questions(5)
    (batch,) = leave_one_out(system.batcher, [examples[:2]], examples)
    for row, asked in zip(examples, batch, strict=False):
        texts = {shot(other): shot(other) in asked.context for other in examples}
        assert texts.pop(shot(row)) is False
        assert all(texts.values())


def test_without_steps_answers_are_those_of_examples_in_context() -> None:
    """Of a row that is among the examples, of the others."""
    system, other = system_of("metaicl"), system_of("lora")
    for each in (system, other):
        scramble(each)
    examples = system.adapt(TASKS[1], AdaptationPlan(6, 0))
    other.adapt(TASKS[1], AdaptationPlan(6, 0))
    encoder, asked = other.batcher.encoder, TASKS[1].test[:4]
    expected = other.predict([encoder.with_examples(q, examples) for q in asked], MEAN)
    assert system.predict(asked, MEAN) == expected
    assert system.answer(asked, MEAN)[0].probabilities == expected[0].probabilities
    (own,) = system.predict(examples[:1], MEAN)
    (held,) = other.predict([encoder.with_examples(examples[0], examples[1:])], MEAN)
    assert own == held


def test_steps_with_demonstrations_move_phi_otherwise_than_without() -> None:
    plan, found = AdaptationPlan(6, 2), []
    for shown in (4, 0):
        system = system_of("metaicl", demonstrations=shown, inner_lr=1e-2)
        scramble(system)
        system.adapt(TASKS[1], plan)
        found.append(values(system, "task"))
    assert not same(*found)


def test_an_adaptation_to_nothing_shows_nothing() -> None:
    system = system_of("metaicl")
    system.adapt(TASKS[0], AdaptationPlan(4, 0))
    assert len(system.batcher.examples) == 4
    system.adapt(Task("empty", ()), AdaptationPlan(0, 0))
    assert system.batcher.examples == ()


def test_a_saved_task_keeps_its_demonstrations(tmp_path: Path) -> None:
    config = config_in(place_tiny(tmp_path), "metaicl")
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    system = train_run(config, folder)
    system.adapt(UNSEEN, AdaptationPlan(6, 2))
    before = system.predict(UNSEEN.test[:3], MEAN)
    save_posterior(folder, "colours", config, system)
    with pytest.raises(AbmllError, match=r"System.save .* method.demonstrations=16 .*save_posterior"):
        system.save(tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
    system.save(tmp_path / "theta", slot="shared")
    session = open_run(folder, saved=read_posterior(folder, "colours"))
    shown = [replace(row, id="", location="", group=None) for row in system.batcher.examples]
    assert [replace(row, id="") for row in session.system.batcher.examples] == shown
    assert session.system.predict(UNSEEN.test[:3], MEAN) == before


def test_a_task_saved_without_its_demonstrations_is_refused(tmp_path: Path) -> None:
    config = config_in(place_tiny(tmp_path), "metaicl")
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    system = train_run(config, folder)
    save_posterior(folder, "none", config, system)
    with pytest.raises(AbmllError, match="saved without the labelled rows"):
        open_run(folder, saved=read_posterior(folder, "none"))


def test_what_does_not_go_with_demonstrations_is_refused() -> None:
    with pytest.raises(AbmllError, match="show the examples twice"):
        resolve(run_config("metaicl", adaptation={"in_context": True}))
    with pytest.raises(AbmllError, match=r"method.demonstrations puts examples .*template=chat"):
        resolve(run_config("metaicl", likelihood={"template": "chat"}))


def test_a_renewed_system_shows_nothing() -> None:
    system: System = build_system(run_config("metaicl"), tiny_base())
    system.adapt(TASKS[0], AdaptationPlan(4, 1))
    assert renew(system, run_config("metaicl", training={"seed": 1}))
    assert system.batcher.examples == ()
