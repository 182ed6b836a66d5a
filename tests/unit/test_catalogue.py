"""The catalogue of the hub's sets: every layout mapped, files checked, pins kept, and what is said offline."""

import json
import logging
import re
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from abmll.errors import AbmllError
from abmll.tables.rows import BadRow
from abmll.tasks.catalogue import hub, pins
from abmll.tasks.catalogue.entries import catalogue_entry, catalogue_names
from abmll.tasks.catalogue.load import choose_files, load_hub_task, pin_hub_task
from abmll.tasks.catalogue.mapping import map_row
from abmll.tasks.catalogue.pins import pins_file, read_pins
from abmll.tasks.sources import load_tasks
from tests.fake_hub import COMMIT, FakeHub, install, put, varied
from tests.hub_layouts import LAYOUTS

REAL_34 = {
    "aqua_rat",
    "arc_challenge",
    "arc_easy",
    "boolq",
    "cicero2",
    "codah",
    "com2sense",
    "commonsense_qa",
    "comve_a",
    "copa",
    "cosmos_qa",
    "csqa2",
    "definite_pronoun_resolution",
    "dream",
    "hellaswag",
    "logiqa2",
    "math_qa",
    "mc_taco",
    "mctest",
    "medqa",
    "multirc",
    "mutual",
    "openbookqa",
    "piqa",
    "pubmedqa",
    "qasc",
    "quail",
    "race",
    "reclor",
    "sciq",
    "social_i_qa",
    "strategyqa",
    "superglue_wsc",
    "toefl_qa",
}
ON_HUB = [name for name in LAYOUTS if name != "cicero2"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub in a folder; no pins."""
    return install(tmp_path, monkeypatch)


def test_the_catalogue_has_the_sets_it_must() -> None:
    assert REAL_34 | {"winogrande", "quarel", "quartz", "wiqa", "swag", "art"} <= set(catalogue_names())


@pytest.mark.parametrize("name", catalogue_names())
def test_an_entry_says_where_its_layout_was_read_and_pins_nothing_by_hand(name: str) -> None:
    entry = catalogue_entry(name)
    assert entry.revision is None
    assert not entry.verified
    assert entry.licence
    if entry.layout_source is None:
        assert entry.columns is None
        assert "not found" in entry.note.lower()
    else:
        assert re.match(r"https://(github\.com|huggingface\.co)/\S+$", entry.layout_source)
    if entry.hub:
        assert entry.columns
        assert "train" in entry.splits
        assert ("test" in entry.splits) != (entry.test_share is not None)
    else:
        assert "not found on the hub" in entry.note.lower()


def test_every_layout_of_the_catalogue_is_tried() -> None:
    assert set(LAYOUTS) == {name for name in catalogue_names() if catalogue_entry(name).columns}


@pytest.mark.parametrize("name", ON_HUB)
def test_a_row_in_the_sets_own_layout_becomes_a_question(name: str, fake: FakeHub) -> None:
    layout, entry = LAYOUTS[name], put(fake, name)
    (task,) = load_tasks(f"hub:{name}")
    rows = task.train + task.test
    assert len(rows) == (2 if entry.test_share else 3)
    place = f"/{entry.splits['train']}/0000.parquet:1"
    first = next(question for question in rows if question.location.endswith(place))
    assert (first.question, first.choices, first.answer, first.context) == (
        layout.question,
        layout.choices,
        layout.answer,
        layout.context,
    )
    assert task.licence == entry.licence
    assert COMMIT in task.source


def test_a_layout_without_a_data_set_on_the_hub_is_mapped_too() -> None:
    layout, columns = LAYOUTS["cicero2"], catalogue_entry("cicero2").columns
    assert columns is not None
    assert map_row(columns, layout.row) == {
        "question": layout.question,
        "context": layout.context,
        "choices": list(layout.choices),
        "answer": layout.answer,
    }


BAD = {
    "arc_easy": [
        ({"answerKey": "E"}, "answerKey is 'E', not one of"),
        ({"choices": {"text": ["a", "b"]}}, "choices.label"),
    ],
    "winogrande": [({"answer": ""}, "answer is '', not a whole number"), ({"answer": "3"}, "answer 2 is out of range")],
    "hellaswag": [({"label": ""}, "label is ''"), ({"endings": "x"}, "endings is 'x', not a list")],
    "copa": [
        ({"label": -1}, "answer -1 is out of range"),
        ({"question": "why"}, "question is 'why', not one of cause"),
    ],
    "quarel": [({"question": "Where? (B) ice (A) sand"}, "lettered choices expected")],
    "math_qa": [({"options": "1, 2"}, "has 0 choices"), ({"correct": "?"}, "correct is '?', not one of")],
    "dream": [
        ({"answer": "A dog."}, "answer 'A dog.' is not one of the choices"),
        ({"dialogue": None}, "dialogue is None"),
    ],
    "com2sense": [({"label": None}, "label is None, not one of True, False")],
    "piqa": [({"sol2": None}, "choice 1 is None, not text"), ({"label": "one"}, "label is 'one'")],
    "cicero": [({"Human Written Answer": []}, "there is no '0' in []")],
    "boolq": [({"question": ""}, "question is empty")],
}


@pytest.mark.parametrize("name", BAD)
def test_trust_14_a_row_in_another_layout_is_reported_with_file_and_line(name: str, fake: FakeHub) -> None:
    for change, reason in BAD[name]:
        entry = catalogue_entry(name)
        good = LAYOUTS[name].row
        fake.put(entry, {"train": [{**good, **change}], "test": [good]})
        with pytest.raises(AbmllError) as caught:
            load_tasks(f"hub:{name}", merge_choices=True)
        assert f"hub:{entry.hub}/" in str(caught.value)
        assert "0000.parquet:1: " in str(caught.value)
        assert reason in str(caught.value)


def test_trust_14_bad_rows_of_the_hub_may_be_skipped_and_are_counted(
    fake: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    rows = varied(LAYOUTS["piqa"], range(200))
    rows[1]["label"] = -1
    fake.put(catalogue_entry("piqa"), {"train": rows, "test": varied(LAYOUTS["piqa"], range(200, 202))})
    with caplog.at_level(logging.WARNING):
        (task,) = load_tasks("hub:piqa", on_bad_row="skip")
    assert (len(task.train), task.skipped) == (199, 1)
    assert "skipped 1 of 200 rows" in caplog.text
    assert "0000.parquet:2: answer -1" in caplog.text


@pytest.mark.parametrize("merge", [False, True])
def test_trust_14_answers_counted_from_another_number_are_never_read_even_where_bad_rows_are_skipped(
    fake: FakeHub, merge: bool
) -> None:
    """Two thirds of such rows would pass for questions, each with the wrong answer."""
    rows = varied(LAYOUTS["social_i_qa"], range(30))
    for number, row in enumerate(rows):
        row["label"] = 1 + number % 3
    fake.put(catalogue_entry("social_i_qa"), {"train": rows, "test": rows[:3]})
    with pytest.raises(AbmllError, match=r"is not read: 10 of 30 train rows .*answer 3 is out of range"):
        load_tasks("hub:social_i_qa", on_bad_row="skip", merge_choices=merge)


def test_repeated_choices_are_no_sign_of_another_layout(fake: FakeHub) -> None:
    rows = varied(LAYOUTS["social_i_qa"], range(30))
    for row in rows[:10]:
        row["answerC"] = row["answerA"]
    fake.put(catalogue_entry("social_i_qa"), {"train": rows, "test": varied(LAYOUTS["social_i_qa"], range(30, 32))})
    (task,) = load_tasks("hub:social_i_qa", on_bad_row="skip")
    assert (len(task.train), task.skipped) == (20, 10)


def test_a_column_that_is_not_there_is_named(fake: FakeHub) -> None:
    fake.put(catalogue_entry("piqa"), {"train": [{"goal": "x"}], "test": [{"goal": "x"}]})
    with pytest.raises(AbmllError, match=r"no column 'label', 'sol1', 'sol2'; the file has 'goal'"):
        load_tasks("hub:piqa")


def test_a_set_of_one_split_is_divided_by_its_passages(fake: FakeHub) -> None:
    layout = LAYOUTS["pubmedqa"]
    rows = [
        {
            **layout.row,
            "question": f"Does {n} help?",
            "context": {**layout.row["context"], "contexts": [f"Study {n // 4}."]},
        }
        for n in range(200)
    ]
    fake.put(catalogue_entry("pubmedqa"), {"train": rows})
    (task,) = load_tasks("hub:pubmedqa")
    assert len(task.train) + len(task.test) == 200
    assert 60 <= len(task.test) <= 140
    assert not {q.context for q in task.train} & {q.context for q in task.test}
    assert load_tasks("hub:pubmedqa") == (task,)


def test_ids_are_unique_where_a_split_has_several_files(fake: FakeHub) -> None:
    entry = put(fake, "piqa")
    second = fake.folder / str(entry.hub) / "default/train/0001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(varied(LAYOUTS["piqa"], range(5, 7))), second)
    (task,) = load_tasks("hub:piqa")
    assert len({question.id for question in task.train}) == len(task.train) == 4


def second_file(fake: FakeHub, name: str, rows: list[dict[str, Any]]) -> None:
    """Another file of the train rows of a set."""
    entry = catalogue_entry(name)
    path = fake.folder / str(entry.hub) / (entry.configuration or "default") / entry.splits["train"] / "0001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("name", ["piqa", "pubmedqa"])
def test_trust_14_rows_that_are_lost_in_one_of_several_files_are_not_skipped(name: str, fake: FakeHub) -> None:
    """Neither where a set has both splits, nor where one is divided; and such a set is not pinned."""
    rows = varied(LAYOUTS[name], range(300))
    if name == "pubmedqa":  # of one split, divided by its passages
        passage = LAYOUTS[name].row["context"]
        rows = [{**row, "context": {**passage, "contexts": [f"Study {n}."]}} for n, row in enumerate(rows)]
    fake.put(catalogue_entry(name), {"train": rows, "test": varied(LAYOUTS[name], range(300, 303))})
    second_file(fake, name, [{"other": 1}])
    with pytest.raises(AbmllError, match=r"0001\.parquet:1: no column "):
        load_tasks(f"hub:{name}", on_bad_row="skip")
    with pytest.raises(AbmllError, match=r"is not pinned: 1 of \d{3} train rows .*0001\.parquet:1: no column "):
        pin_hub_task(name)


def test_one_fault_of_every_row_of_several_files_is_told_once(fake: FakeHub) -> None:
    rows = [{**row, "sol1": n} for n, row in enumerate(varied(LAYOUTS["piqa"], range(3)))]
    fake.put(catalogue_entry("piqa"), {"train": rows, "test": varied(LAYOUTS["piqa"], range(9, 10))})
    second_file(fake, "piqa", rows)
    with pytest.raises(AbmllError) as caught:
        load_tasks("hub:piqa")
    assert str(caught.value).count("choice 0 is ") == 1
    assert "0000.parquet:1: choice 0 is 0, not text, in 5 more rows too" in str(caught.value)


def test_names_choose_sets_and_a_bare_hub_asks_for_them(fake: FakeHub) -> None:
    put(fake, "piqa")
    put(fake, "boolq")
    assert [task.name for task in load_tasks("hub", ["piqa", "boolq"])] == ["piqa", "boolq"]
    with pytest.raises(AbmllError, match="would fetch the whole catalogue: name tasks"):
        load_tasks("hub")
    with pytest.raises(AbmllError, match=r"unknown hub task 'arc_esy'\. Did you mean 'arc_easy'"):
        load_tasks("hub:arc_esy")
    with pytest.raises(AbmllError, match="unknown task 'boolq'"):
        load_tasks("hub:piqa", ["boolq"])
    with pytest.raises(AbmllError, match="the catalogue knows no data set for toefl_qa: Not found on the hub"):
        load_tasks("hub:toefl_qa")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "has no configuration ARC-Easy in its Parquet form; it has none"),
        (("ARC-Challenge/train/0000.parquet",), "it has ARC-Challenge"),
        (("ARC-Easy/train/0000.parquet", "ARC-Easy/test/0000.json"), "has no split test; it has train"),
    ],
)
def test_a_configuration_or_split_that_is_not_there(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(AbmllError, match=said):
        choose_files(catalogue_entry("arc_easy"), names)


def test_a_set_with_several_configurations_and_none_named_is_refused() -> None:
    names = ("a/train/0000.parquet", "b/train/0000.parquet")
    with pytest.raises(AbmllError, match="it has a, b"):
        choose_files(catalogue_entry("piqa"), names)


HOSTILE = ["../x.parquet", "a/../../x", "/etc/passwd", "a\0b", "C:\\x", "a\\b", "a//b", "./a", "a/.", "", "a\nb"]


@pytest.mark.parametrize("name", HOSTILE)
def test_trust_43_a_hostile_file_name_on_the_hub_is_refused_before_use(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def dataset_info(self, *args: object, **options: object) -> Any:
            sibling = type("Sibling", (), {"rfilename": name})
            return type("Info", (), {"sha": COMMIT, "siblings": [sibling]})

    def never(*args: object, **options: object) -> str:
        raise AssertionError("fetched")

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", never)
    with pytest.raises(AbmllError, match="which could leave its folder"):
        hub.list_files("owner/set")
    with pytest.raises(AbmllError, match="which could leave its folder"):
        hub.fetch_file("owner/set", COMMIT, name)


def test_a_pin_is_written_read_and_held_against_the_files(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    entry = put(fake, "copa", train=3)
    load_tasks("hub:copa")
    assert "`abmll tasks pin copa` keeps it" in caplog.text
    pin, path = pin_hub_task("copa")
    assert path == pins_file()
    assert (pin.revision, dict(pin.rows), pin.verified) == (COMMIT, {"train": 3, "test": 1}, True)
    assert read_pins() == {"copa": pin}
    caplog.clear()
    (task,) = load_tasks("hub:copa")
    assert len(task.train) == 3
    assert not caplog.text
    put(fake, "copa", train=4)  # the same commit with other bytes: damaged, or tampered with
    with pytest.raises(AbmllError, match="is not the file that was pinned"):
        load_hub_task("copa")
    assert entry.revision is None


def test_a_set_whose_layout_is_another_one_is_not_pinned(fake: FakeHub) -> None:
    rows = [{**LAYOUTS["copa"].row, "question": "why"}]
    fake.put(catalogue_entry("copa"), {"train": rows, "test": rows})
    with pytest.raises(AbmllError, match=r"hub:copa is not pinned: 1 of 1 train rows .* The first: hub:aps/super_glue"):
        pin_hub_task("copa")
    assert not pins_file().exists()


def test_a_few_bad_rows_do_not_hinder_a_pin(fake: FakeHub) -> None:
    rows = varied(LAYOUTS["copa"], range(150))
    rows[7]["label"] = -1
    fake.put(catalogue_entry("copa"), {"train": rows, "test": varied(LAYOUTS["copa"], range(150, 152))})
    assert dict(pin_hub_task("copa")[0].rows) == {"train": 149, "test": 2}
    rows[8]["label"] = -1
    fake.put(catalogue_entry("copa"), {"train": rows, "test": varied(LAYOUTS["copa"], range(150, 152))})
    with pytest.raises(AbmllError, match="2 of 150 train rows"):
        pin_hub_task("copa")


def test_pins_of_another_data_set_are_not_used_and_a_damaged_file_is_named(
    fake: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    put(fake, "copa")
    pin_hub_task("copa")
    found = json.loads(pins_file().read_text())
    found["copa"]["configuration"] = "boolq"
    pins_file().write_text(json.dumps(found))
    with pytest.raises(AbmllError, match=r"pins\.json: damaged or edited .*remove its entry sha256"):
        load_tasks("hub:copa")
    found.pop("sha256")  # as somebody may who knows what the file says, and as earlier versions wrote it
    pins_file().write_text(json.dumps(found))
    load_tasks("hub:copa")
    assert "is read at today's commit" in caplog.text
    for text in ('{"copa": {}}', '{"copa": 3}'):
        pins_file().write_text(text)
        with pytest.raises(AbmllError, match=r"pins\.json: no file of pins"):
            load_tasks("hub:copa")
    for data in (b"{", b"[]", b"\xff"):
        pins_file().write_bytes(data)
        with pytest.raises(AbmllError, match=r"pins\.json: .*call `abmll tasks pin` again"):
            load_tasks("hub:copa")


def test_pins_that_cannot_be_written_say_what_to_do(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(fake, "copa")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pins, "write_sealed_json", full)
    with pytest.raises(AbmllError, match=r"cannot be written \(No space left on device\)\. .*ABMLL_PINS"):
        pin_hub_task("copa")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ABMLL_PINS", str(tmp_path / "file" / "pins.json"))
    with pytest.raises(AbmllError, match=r"cannot be read \(.*ABMLL_PINS"):
        pin_hub_task("copa")


def test_pins_are_the_users_own_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ABMLL_PINS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert pins_file() == tmp_path / "abmll" / "hub-pins.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert pins_file() == Path.home() / ".config" / "abmll" / "hub-pins.json"


def test_trust_51_offline_is_told_with_the_local_alternative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ABMLL_PINS", str(tmp_path / "pins.json"))
    with pytest.raises(AbmllError) as caught:
        load_tasks("hub:arc_easy")
    for part in (
        "allenai/ai2_arc",
        "HF_HUB_OFFLINE",
        "arc_easy.train.jsonl",
        "docs/tasks.md",
        "abmll tasks pin arc_easy",
    ):
        assert part in str(caught.value)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server on this machine that answers as the hub does; yields the folder it serves, which is the fake hub's."""
    folder = tmp_path / "served"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(self.path).path.split("/")[1:]]
            if parts[:2] == ["api", "datasets"]:
                self.info("/".join(parts[2:4]))
            else:
                self.file(folder / "/".join(parts[1:3]) / "/".join(parts[5:]))

        do_HEAD = do_GET

        def info(self, repository: str) -> None:
            home = folder / repository
            files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
            if not files:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                return
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self.answer(json.dumps(info).encode())

        def file(self, path: Path) -> None:
            self.answer(path.read_bytes())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            for name, value in (("X-Repo-Commit", COMMIT), ("ETag", f'"{hash(body)}"'), ("Content-Length", len(body))):
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Silent."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{httpd.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ABMLL_PINS", str(tmp_path / "pins.json"))
    close_session()
    yield folder
    close_session()
    httpd.shutdown()


def test_trust_51_what_was_pinned_with_network_is_read_without_it_by_the_real_client(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(FakeHub(server), "copa", train=3)
    pin, _ = pin_hub_task("copa")
    assert pin.revision == COMMIT
    with pytest.raises(AbmllError, match="no such data set on the hub, or it is private"):
        load_tasks("hub:boolq")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (task,) = load_tasks("hub:copa")
    assert [question.answer for question in task.train] == [0, 0, 0]
    with pytest.raises(AbmllError, match="HF_HUB_OFFLINE is set"):
        load_tasks("hub:piqa")


def test_a_hub_that_does_not_answer_is_told(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AbmllError, match="data set google/boolq cannot be had: the hub cannot be reached"):
        load_tasks("hub:boolq")


def test_a_row_that_says_nothing_of_its_layout_is_a_reason() -> None:
    columns = catalogue_entry("arc_easy").columns
    assert columns is not None
    with pytest.raises(BadRow, match=r"no column 'question' \(found: nothing\)"):
        map_row(columns, {})
