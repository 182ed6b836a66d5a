"""Model cards: read by huggingface_hub, and their Markdown by markdown-it; what they say is what the files say."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.testing import CliRunner

from abmll.adapters.facts import AdapterFacts, BaseFacts, LayerFacts
from abmll.adapters.folder import read_adapter
from abmll.cli import app
from abmll.everyday.saved import read_posterior, save_posterior, write_details
from abmll.everyday.ship import write_shipped_card
from abmll.everyday.shipped import HERE
from abmll.exporting import export_mean
from abmll.metrics.predictions import Prediction, Predictions
from abmll.question import Question, Task
from abmll.runs.card import (
    CARD_FILE,
    About,
    _score_table,
    about_run,
    card_text,
    is_ours,
    plain,
    rewrite_run_card,
    write_card,
)
from abmll.runs.prepare import tasks_of
from abmll.runs.record import (
    RECORD,
    TrainingRecord,
    folder_name,
    read_training_record,
    score_run,
    task_facts,
    write_training_record,
)
from abmll.scoring.scores import score
from abmll.tasks.catalogue.entries import catalogue_entry
from tests.runs import UNSEEN, config_in, place_tiny, train_run
from tests.tiny import write_tasks

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter-format-1"
FACTS = AdapterFacts(
    rank=2, alpha=4.0, layers={"m.q_proj": LayerFacts(out_features=4, in_features=4)}, base=BaseFacts(name="tiny")
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, tasks, and `runs/mine` with a saved task `kept`."""
    folder = place_tiny(tmp_path_factory.mktemp("place"))
    write_tasks(folder / "unseen", (UNSEEN,))
    config, run = config_in(folder, adaptation={"examples": 4, "steps": 1, "samples": 2}), folder / "runs" / "mine"
    system = train_run(config, run)
    save_posterior(run, "kept", config, system, {"source": "my.csv", "examples": 6, "steps": 3})
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "runs" / "mine", tmp_path / "mine"))


def load(folder: Path) -> ModelCard:
    return ModelCard.load(folder / CARD_FILE)


def table(card: ModelCard, section: str) -> list[list[str]]:
    """The cells of a section's table, as they are shown."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    titles = [i for i, t in enumerate(tokens) if t.type == "inline" and t.content == section]
    rows: list[list[str]] = []
    for token in tokens[titles[0] + 1 :]:
        if token.type == "heading_open":
            break
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and token.level >= 4:
            rows[-1].append(shown(token))
    return rows


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


# What it says


def test_the_card_of_a_run_that_was_only_trained(place: Path) -> None:
    card, config = load(place / "runs" / "mine" / "adapter"), config_in(place)
    assert (card.data.library_name, card.data.license, card.data.base_model) == ("peft", None, None)
    assert set(card.data.tags) == {"abmll", "lora", "meta-learning", "bayesian"}
    assert "Not scored yet. `abmll adapt RUN TASKS`" in card.text
    rows = {task.name: len(task.train) for task in tasks_of(config.tasks.train)}
    found = table(card, "Data")
    assert found[0] == ["task", "rows", "source", "licence of the rows"]
    assert {name: int(count) for name, count, *_ in found[1:]} == rows
    assert found[1][2:] == ["tiny0.train.jsonl, tiny0.test.jsonl", "not stated: look at the source"]
    settings = dict(table(card, "Method")[1:])
    facts = read_adapter(place / "runs" / "mine" / "adapter").facts
    assert settings["rank, alpha"] == "3, 6"
    assert settings["std_init"] == "0.05"
    assert settings.items() >= {name: str(value) for name, value in facts.settings.items()}.items()
    assert "Meta-trained for 3 meta-iterations on 18 questions" in card.text


def test_its_code_is_python(place: Path) -> None:
    for folder in ("adapter", "tasks/kept"):
        blocks = re.findall(r"```python\n(.*?)```", load(place / "runs" / "mine" / folder).text, re.DOTALL)
        assert len(blocks) == 2
        for block in blocks:
            compile(block, folder, "exec")


def test_scores_come_onto_the_card_when_there_are_some(place: Path, run: Path) -> None:
    for draws in (1, 2):
        arguments = ["adapt", str(run), str(place / "unseen"), f"adaptation.draws={draws}"]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
        card = load(run / "adapter")
        head, row = table(card, "Scores")
        assert head == ["task", "questions", "draws", "accuracy %", "NLL, nats", "ECE"]
        files = sorted((run / "predictions").glob("examples-*/*/*.jsonl"))
        assert len(files) == draws
        said = [[json.loads(line) for line in file.read_text().splitlines()[1:]] for file in files]
        test = [[r for r in rows if r["split"] == "test"] for rows in said]
        right = np.mean([[np.argmax(r["probabilities"]) == r["answer"] for r in rows] for rows in test], axis=0)
        nll = np.mean([[-np.log(r["probabilities"][r["answer"]]) for r in rows] for rows in test], axis=0)
        assert row[:3] == [UNSEEN.name, str(len(test[0])), str(draws)]
        for cell, values, scale in ((row[3], right, 100), (row[4], nll, 1)):
            mean, low, high = (float(x) / scale for x in re.findall(r"-?[\d.]+", cell))
            wanted = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
            assert mean == pytest.approx(values.mean(), abs=6e-4)
            assert low == pytest.approx(wanted.confidence_interval.low, abs=0.05)
            assert high == pytest.approx(wanted.confidence_interval.high, abs=0.05)
    assert "answers are averaged over posterior draws" in card.text
    assert "adapting to 4 examples in 1 steps" in card.text
    assert is_ours((run / "adapter" / CARD_FILE).read_text())
    read_adapter(run / "adapter")


def test_scores_of_other_steps_or_other_questions_are_not_mixed_in(tmp_path: Path) -> None:
    def write(examples: int, draw: int, count: int, task: str = "t") -> None:
        rows = tuple(Prediction(str(i), 0, (0.75, 0.25)) for i in range(count))
        made = Predictions("s", task, 0, draw, examples, rows)
        made.write(tmp_path / "predictions" / folder_name(examples) / f"draw-{draw}" / f"{task}.jsonl")

    for arguments in ((10, 0, 4), (10, 1, 4), (10, 2, 3), (20, 0, 9), (10, 0, 5, "u")):
        write(*arguments)
    rows = score_run(tmp_path, 10)
    assert [(row.task, row.questions, row.draws) for row in rows] == [("t", 4, 2), ("u", 5, 1), ("mean", 9, 1)]
    assert rows[0].nll == pytest.approx(-np.log(0.75))
    assert (rows[0].accuracy, rows[0].accuracy_interval) == (1.0, (1.0, 1.0))
    assert score_run(tmp_path, 11) == ()


def test_a_card_has_the_primary_score_where_examples_were_held_out(tmp_path: Path) -> None:
    rows = tuple(Prediction(str(i), int(i % 4 == 0), (0.99, 0.01)) for i in range(40))
    found = Predictions("s", "t", 0, 0, 10, rows, held_out_rows=rows[:20])
    found.write(tmp_path / "predictions" / folder_name(10) / "draw-0" / "t.jsonl")
    (row,) = score_run(tmp_path, 10)
    assert row.nll_posterior == pytest.approx(score(found).nll_posterior)
    low, high = row.nll_posterior_interval
    assert low < row.nll_posterior < high
    table, note = _score_table([row])
    assert "| accuracy % | NLL posterior, nats | NLL, nats | ECE |" in table
    assert f"| {row.nll_posterior:.3f} [{low:.3f}, {high:.3f}] | {row.nll:.3f} [" in table.replace("\\", "")
    assert note.startswith("NLL posterior: at the posterior of the task's temperature")


def test_intervals_on_a_card_take_a_group_as_one(tmp_path: Path) -> None:
    rows = [Prediction(str(i), int(i // 5 % 2), (0.75, 0.25), group=f"g{i // 5}") for i in range(100)]
    for folder, made in (("grouped", rows), ("apart", [replace(row, group=None) for row in rows])):
        file = tmp_path / folder / "predictions" / folder_name(10) / "draw-0" / "t.jsonl"
        Predictions("s", "t", 0, 0, 10, tuple(made)).write(file)
    (grouped,), (apart,) = score_run(tmp_path / "grouped", 10), score_run(tmp_path / "apart", 10)
    for name in ("accuracy_interval", "nll_interval"):
        assert np.ptp(getattr(grouped, name)) > 1.7 * np.ptp(getattr(apart, name))  # sqrt(5) = 2.2


def test_the_card_of_a_saved_task_and_its_check(run: Path) -> None:
    card = load(run / "tasks" / "kept")
    assert card.text.strip().startswith("# kept")
    assert "Adapted to 6 labelled rows of my.csv in 3 steps." in card.text
    assert "Not scored." in card.text
    assert len(table(card, "Data")) == 4
    check = {
        "n": 6,
        "folds": 3,
        "table": {
            "this run": {"accuracy": 0.5, "accuracy_interval": [0.1, 0.9], "nll": 0.7, "nll_interval": [0.6, 0.8]}
        },
        "verdict": "no evidence",
    }
    write_details(run, "kept", {**read_posterior(run, "kept").details, "check": check})
    card = load(run / "tasks" / "kept")
    assert table(card, "Scores")[1:] == [["this run", "0.500 [0.100, 0.900]", "0.700 [0.600, 0.800]"]]
    assert "Verdict: no evidence." in card.text
    assert read_posterior(run, "kept").details["check"] == check


@pytest.mark.parametrize(
    ("options", "library", "files"),
    [
        ([], "peft", {"adapter_config.json"}),
        (["--task", "kept"], "peft", {"adapter_config.json"}),
        (["--calibrated", "--count", "4"], "peft", {"calibration.json"}),
        (["--merge", "--force"], "transformers", {"config.json"}),
    ],
    ids=["mean", "task", "calibrated", "merged"],
)
def test_every_export_has_one(run: Path, tmp_path: Path, options: list[str], library: str, files: set[str]) -> None:
    out = tmp_path / "out"
    assert (
        CliRunner().invoke(app, ["export", str(run), "-o", str(out), *options], catch_exceptions=False).exit_code == 0
    )
    assert files | {CARD_FILE, "export.json"} <= {path.name for path in out.iterdir()}
    card = load(out)
    assert card.data.library_name == library
    assert table(card, "Data")[1][0] == "tiny0"
    assert ("labelled rows of my.csv" in card.text) == ("--task" in options)


def test_an_export_in_python_tells_what_its_facts_say(run: Path, tmp_path: Path) -> None:
    export_mean(read_adapter(run / "adapter"), tmp_path / "lora")
    card = load(tmp_path / "lora")
    assert "not recorded here" in card.text
    assert dict(table(card, "Method")[1:])["rank, alpha"] == "3, 6"


def test_licences_and_data_sets_of_the_catalogue_and_of_our_own_tasks(tmp_path: Path) -> None:
    rows = (Question("1", "True?", ("no", "yes"), 1),)
    hub = Task("boolq", rows, (), "hub:boolq (google/boolq  at 0)", catalogue_entry("boolq").licence)
    lookalike = Task("boolq", rows, (), "/mnt/x/boolq.train.jsonl")
    (ours,) = tasks_of(config_in(tmp_path, tasks={"train": {"source": "builtin:capitals"}}).tasks.train)
    record = TrainingRecord(step=1, examples=2, train=tuple(map(task_facts, (hub, ours, lookalike))))
    write_training_record(tmp_path, record)
    assert read_training_record(tmp_path) == record
    write_card(tmp_path, About("x", FACTS, record=record, licence="mit"))
    card = load(tmp_path)
    assert (card.data.datasets, card.data.license) == (["google/boolq"], "mit")
    assert [row[3] for row in table(card, "Data")[1:]] == [
        "CC BY-SA 3.0",
        "Apache-2.0; the facts are of GeoNames, CC BY 4.0",
        "not stated: look at the source",
    ]
    assert "/mnt" not in card.text


def test_a_base_model_is_named_to_the_hub_only_if_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for name, wanted in {
        "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
        "models/mine": None,
        "~/models/mine": None,
        "tiny-llama": None,
    }.items():
        write_card(tmp_path, About("x", FACTS.model_copy(update={"base": BaseFacts(name=name)})))
        assert load(tmp_path).data.base_model == wanted


def test_the_card_that_comes_along_is_what_its_files_say(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(HERE / "smollm2", tmp_path / "smollm2"))
    (folder / "adapter" / CARD_FILE).unlink()
    write_shipped_card(folder)
    assert (folder / "adapter" / CARD_FILE).read_text() == (HERE / "smollm2" / "adapter" / CARD_FILE).read_text()
    card = load(folder / "adapter")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    record = read_training_record(folder)
    assert record is not None
    assert {task.name: task.rows for task in record.train} == {t.name: len(t.train) for t in tasks_of_builtin()}


def tasks_of_builtin() -> tuple[Task, ...]:
    return tasks_of(config_in(Path("x"), tasks={"train": {"source": "builtin"}}).tasks.train)


# Text, and nothing but text


HOSTILE = (
    "<script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "a|b`c`*d*_e_~~f~~ $g$ <http://evil.example> www.evil.example &lt;b&gt;",
    "x\n---\nlicense: mit\n---\n# Title\n\n- item\n```\ncode",
    "\x1b[31mred\x00\u202e\u2028 \\",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_trust_46_names_and_data_are_text_on_a_model_card(text: str, tmp_path: Path) -> None:
    task = TrainingRecord(step=1, examples=2, train=(task_facts(Task(text, (), (), "built-in", text)),))
    facts = FACTS.model_copy(
        update={"base": BaseFacts(name=text), "method": text, "settings": {text: text}, "written_by": text}
    )
    details = {
        "source": text,
        "examples": text,
        "check": {"n": text, "folds": text, "table": {text: {}}, "verdict": text},
    }
    for about in (About(text, facts, note=text, record=task), About(text, facts, record=task, details=details)):
        write_card(tmp_path, about)
        card = load(tmp_path)
        assert (card.data.license, card.data.base_model, card.data.library_name) == (None, None, "peft")
        body, comment, _ = card.text.rpartition("<!-- abmll wrote what is above")  # the one HTML in it
        assert comment
        tokens = list(flat(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)))
        kinds = {token.type for token in tokens}
        assert not kinds & {"html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "s_open", "hr"}
        assert [t.tag for t in tokens if t.type == "heading_open"] == ["h1", *["h2"] * 5]
        codes = {token.content for token in tokens if token.type == "code_inline"}
        assert all(code.startswith("abmll adapt") for code in codes)
        said = " ".join(
            "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())).split()
        )
        assert ["".join(said)] == [shown(next(t for t in tokens if t.type == "inline"))]
        assert table(card, "Data")[1][0] == said
        for block in (token.content for token in tokens if token.type == "fence"):
            compile(block, "card", "exec")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", card.text)


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def test_long_names_and_many_rows_are_cut(tmp_path: Path) -> None:
    tasks = tuple(task_facts(Task(f"task {n}", ())) for n in range(250))
    text = card_text(About("n" * 10_000, FACTS, record=TrainingRecord(step=1, examples=2, train=tasks)))
    assert len(text) < 20_000
    assert "and 50 more" in text
    assert len(plain("x" * 1000)) == 300


# Whose file it is


def test_a_card_that_somebody_edited_is_left_alone(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = run / "adapter" / CARD_FILE
    rewrite_run_card(run)
    before = file.read_text()
    file.write_text(before.replace("# tiny", "# Mine", 1).replace("# run", "# Mine", 1) + "More.\n")
    edited = file.read_text()
    with caplog.at_level(logging.INFO):
        rewrite_run_card(run)
    assert file.read_text() == edited != before
    assert "left as it is" in caplog.text
    file.unlink()
    rewrite_run_card(run)
    assert file.read_text() == before


def test_a_card_that_cannot_be_made_fails_nothing(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "adapter" / CARD_FILE).write_bytes(b"\xff")
    rewrite_run_card(run)
    assert "no model card was written" in caplog.text
    assert (run / "adapter" / CARD_FILE).read_bytes() == b"\xff"
    rewrite_run_card(tmp_path / "nowhere")
    write_card(tmp_path / "nowhere" / "x", replace(About("x", FACTS), adapting={"examples": 1}))
    for damage in ('{"step": 1}', "{", '{"step": 1, "examples": "x", "train": [{}]}'):
        caplog.clear()
        (run / RECORD).write_text(damage)
        about = about_run(run, FACTS)
        assert (about.record, about.scores) == (None, ())
        assert f"less than it could be: {run / RECORD}: " in caplog.text


def test_folders_from_before_there_were_cards_load_and_get_one(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("abmll.safetensors", "adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    before = read_adapter(folder)
    rewrite_run_card(tmp_path)
    assert load(folder).data.library_name == "peft"
    assert "not recorded here" in load(folder).text
    assert read_adapter(folder).equals(before)


def test_a_card_is_no_reason_to_refuse_an_adapter(run: Path) -> None:
    (run / "adapter" / CARD_FILE).write_bytes(b"\x80\x02anything")
    read_adapter(run / "adapter")
    values: dict[str, Any] = read_posterior(run, "kept").details
    assert values["source"] == "my.csv"
