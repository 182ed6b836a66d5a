"""The page: its bars are what the systems say, its slider is the promise of `abmll predict`, its data cannot end it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abmll.errors import AbmllError
from abmll.everyday.labelled import read_labelled
from abmll.everyday.saved import read_posterior
from abmll.everyday.session import open_run
from abmll.metrics.abstention import choose_threshold
from abmll.showing.page import PageRequest, make_page, render
from abmll.systems.build import build_system, load_base
from abmll.tables.layouts import Layout
from tests.commands import Command, command
from tests.everyday import texts, write_csv
from tests.serving import Client, opened_in, place_tasks, serving

ATTACK = "</script><script>document.title='owned'</script><!-- \u2028 & ' \" ${1} the sun is over the river"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_tasks(tmp_path_factory.mktemp("home"))


@pytest.fixture
def abmll(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(home)
    return command(monkeypatch, capsys)


def data_of(page: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    text, count = make_page(PageRequest(home / "runs" / "mine", "t", examples=home / "my.csv"))
    assert count == 40
    return text


def test_bars_are_what_predict_and_the_base_say(home: Path, page: str) -> None:
    (task,) = data_of(page)["tasks"]
    shown = task["questions"]
    run, layout = home / "runs" / "mine", Layout(("bad", "good"))
    rows = {row.context: row for row in read_labelled(home / "my.csv", layout).rows}
    questions = [rows[question["text"]] for question in shown]
    assert [question["answer"] for question in shown] == [row.answer for row in questions]
    assert [question["seen"] for question in shown] == [False] * 26 + [True] * 14  # 26 were held back
    session = open_run(run, {}, read_posterior(run, "t"))
    scaled = session.answer(questions)
    stated = session.system.answer(questions, session.drawing)
    session.system.close()
    fresh = build_system({"method": "pretrained"} | _text(session), load_base(session.config.model))
    base = fresh.answer(questions)
    for name, answers in (("scaled", scaled), ("raw", stated), ("base", base)):
        expected = [list(answer.probabilities) for answer in answers]
        np.testing.assert_allclose([question["bars"][name] for question in shown], expected, atol=1e-6)
    prompts = np.array([question["bars"]["prompt"] for question in shown])
    assert np.abs(prompts - [question["bars"]["base"] for question in shown]).max() > 1e-4, "the examples are read"
    assert task["in_prompt"] == 24
    assert set(task["seconds"]) == {"adapted", "base", "prompt"}


def _text(session: Any) -> dict[str, Any]:
    return {"likelihood": session.config.likelihood.model_dump(mode="json"), "method": {"name": "pretrained"}}


def test_the_slider_is_the_promise(home: Path, page: str) -> None:
    slider = data_of(page)["tasks"][0]["slider"]
    assert [round(100 * one["risk"]) for one in slider] == list(range(1, 51))
    stored = read_posterior(home / "runs" / "mine", "t").details["held_back"]
    confidence = np.array([max(p) for p in stored["probabilities"]])
    correct = np.array([int(np.argmax(p)) for p in stored["probabilities"]]) == stored["answers"]
    for one in slider:
        found = choose_threshold((confidence, correct), np.zeros(0), one["risk"])
        assert one["promised"] == (found is not None)
        if found is not None:
            assert (one["threshold"], one["answered"], one["errors"]) == (None, found.answered, found.errors)
    assert {one["has"] for one in slider} == {26}
    assert slider[4] == {"risk": 0.05, "promised": False, "needs": 45, "has": 26}


def test_trust_46_what_users_wrote_ends_no_element_and_no_address_is_in_it(home: Path) -> None:
    rows = write_csv(home / "attack.csv", ["text"], [[ATTACK], ["the rain is over the garden"]])
    text, count = make_page(PageRequest(home / "runs" / "mine", "t", rows=rows))
    assert count == 2
    assert "owned'</script>" not in text
    assert text.count("</script>") == 2
    assert data_of(text)["tasks"][0]["questions"][0]["text"] == ATTACK
    assert not re.findall(r"https?:|//[a-z]", re.sub(r"sha256-[^']*", "", text))
    assert "prompt" not in data_of(text)["tasks"][0]["questions"][0]["bars"], "a task does not keep its rows"
    assert "innerHTML" not in text
    assert "every row is answered" in text


def test_the_policy_lets_this_script_and_style_alone_run() -> None:
    text = render({"live": False, "tasks": []})
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src &#39;none&#39;; style-src &#39;sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert "connect-src" in render({"live": True, "tasks": []})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--task t -o page.html", "no questions to show"),
        ("--task t -o page.html --examples asked.jsonl", "text is missing"),
        ("--task t -o page.html --examples others.csv", "was adapted to none of its rows"),
        ("--task nothing -o page.html", "unknown saved task"),
        ("--task t -o page.html --rows wrong.csv", "none of the labels"),
    ],
)
def test_what_cannot_be_shown_is_told_and_nothing_is_written(abmll: Command, home: Path, line: str, said: str) -> None:
    write_csv(home / "others.csv", ["text", "label"], [list(row) for row in texts(4, seed=99)])
    write_csv(home / "wrong.csv", ["text", "label"], [["sun", "good"], ["rain", "awful"]])
    code, out, err = abmll(f"page runs/mine {line}")
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert not (home / "page.html").exists()


def test_the_command_writes_it(abmll: Command, home: Path) -> None:
    code, out, _ = abmll("page runs/mine --task own --rows asked.jsonl --most 3 -o own.html")
    assert (code, out) == (0, "Written: own.html, 3 questions\n")
    (task,) = data_of((home / "own.html").read_text(encoding="utf-8"))["tasks"]
    assert task["labels"] is None
    assert all(len(question["choices"]) == len(question["bars"]["raw"]) for question in task["questions"])
    assert not any(one["promised"] for one in task["slider"]), "nothing was held back"


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Client]:
    with serving(opened_in(home, "t", "own"), examples={"t": home / "my.csv"}) as found:
        yield found


def test_a_server_has_the_page_without_data_and_gives_the_same_bars(client: Client, page: str) -> None:
    status, text, headers = client.ask("GET", "/")
    assert (status, headers["content-security-policy"].startswith("default-src 'none'")) == (200, True)
    assert data_of(text.decode()) == {"live": True, "tasks": []}
    _, found, _ = client.ask("GET", "/v1/page")
    assert [task["name"] for task in found["tasks"]] == ["t", "own"]
    expected = data_of(page)["tasks"][0]
    assert [q["text"] for q in found["tasks"][0]["questions"]] == [q["text"] for q in expected["questions"]]
    for picked, alike in list(zip(found["tasks"][0]["questions"], expected["questions"], strict=True))[:3]:
        body = json.dumps({"model": "t", "row": picked["row"]}).encode()
        status, bars, _ = client.ask("POST", "/v1/bars", body)
        assert status == 200
        for name, p in bars["bars"].items():
            np.testing.assert_allclose(p, alike["bars"][name], atol=1e-5)
    for row, expected_status in (({"text": " "}, 422), ({"text": "x"}, 200), ("x", 422), ({}, 422)):
        body = json.dumps({"model": "t", "row": row}).encode()
        assert client.ask("POST", "/v1/bars", body)[0] == expected_status


def test_answers_are_the_tasks_own_again_after_the_base_was_asked(client: Client) -> None:
    rows = [text for text, _ in texts(5, seed=11)]
    before = client.classify(model="t", input=rows)["data"]
    client.ask("POST", "/v1/bars", json.dumps({"model": "t", "row": {"text": rows[0]}}).encode())
    assert client.classify(model="t", input=rows)["data"] == before


def test_a_builtin_task_knows_its_rows_by_itself(home: Path, abmll: Command) -> None:
    assert abmll("adapt runs/mine builtin:occupations --save known --no-check adaptation.steps=1")[0] == 0
    text, _ = make_page(PageRequest("runs/mine", "known", most=2))
    assert data_of(text)["tasks"][0]["questions"][0]["bars"].keys() == {"base", "prompt", "raw", "scaled"}
    with pytest.raises(AbmllError, match="no questions to show"):
        make_page(PageRequest("runs/mine", "own"))
