"""`abmll push` and `hf://owner/name@COMMIT` by a hub in memory: what goes there, what is taken, what is refused."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, errors

import abmll
from abmll.cli import console
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.saved import read_posterior
from abmll.everyday.shipped import find_run
from abmll.files import seal
from abmll.hub.runs import MANIFEST, run_reference
from abmll.publishing import push_run
from tests.commands import Command, command, exit_code, place_saved_task
from tests.everyday import write_texts
from tests.fake_hub import FakeRunHub, refusal
from tests.tiny import tiny_tasks, write_tasks

TOKEN = "hf_planted0123456789abcdefghij"
NAME = "ann/mine"
OF_ADAPTER = ("README.md", "adapter_config.json", "adapter_model.safetensors", "abmll.safetensors")
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with scores; a task, and one of the base model whose rows stand in its prompt."""
    folder = place_saved_task(tmp_path_factory.mktemp("home"))
    write_tasks(folder / "unseen", tiny_tasks(4)[2:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code("adapt runs/mine unseen adaptation.examples=4 adaptation.steps=1", patch) == 0
        write_texts(folder / "few.csv", 6)
        assert exit_code("adapt model few.csv --save shown --in-prompt --no-check", patch) == 0
    return folder


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(console.out_console, "_width", 200)
    monkeypatch.setattr(console.err_console, "_width", 200)
    return tmp_path


@pytest.fixture
def hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRunHub:
    return FakeRunHub(place / "cache").install(monkeypatch)


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(monkeypatch, capsys)


def last(hub: FakeRunHub) -> Files:
    """The files of the last commit."""
    return list(hub.commits.values())[-1]


def rows_in(tree: Files) -> list[str]:
    """Files that hold a text of `my.csv`."""
    return [name for name, data in tree.items() if b"is over the river" in data or b"is over the garden" in data]


def test_what_was_pushed_answers_the_same_elsewhere(hub: FakeRunHub, run: Command, place: Path) -> None:
    write_texts(place / "rows.csv", 5, seed=3)
    code, out, _ = run(f"push runs/mine {NAME} --task t")
    assert code == 0
    reference = out.splitlines()[-1]
    assert reference.startswith(f"hf://{NAME}@")
    assert hub.private == {NAME: True}
    assert run("predict runs/mine rows.csv --task t -o here.jsonl")[0] == 0
    assert run(f"predict {reference} rows.csv --task t -o there.jsonl")[0] == 0
    assert (place / "here.jsonl").read_bytes() == (place / "there.jsonl").read_bytes()
    folder = place / "runs" / f"mine-{reference.rpartition('@')[2][:12]}"
    assert read_posterior(folder, "t").sealed
    hub.fetched.clear()
    assert run(f"predict {reference} rows.csv --task t -o again.jsonl")[0] == 0  # it is here now
    assert hub.fetched == []
    assert run(f"export {reference} -o lora")[0] == 0
    assert run(f"adapt {reference} my.csv --save mine --no-check")[0] == 0
    fitted = abmll.Classifier(reference, temperature="none").fit(["a", "b", "c", "d"], ["x", "y"] * 2)
    assert fitted.predict(["a"])[0] in ("x", "y")


def test_nothing_but_weights_settings_and_named_tasks_is_pushed(hub: FakeRunHub, place: Path) -> None:
    (place / "runs" / "mine" / "adapter" / "notes.txt").write_text("mine")
    pushed = push_run("runs/mine", NAME)
    assert set(last(hub)) == {*pushed.files, MANIFEST}
    adapter = {f"adapter/{name}" for name in OF_ADAPTER}
    assert set(last(hub)) == {"README.md", "config.yaml", "trained.json", MANIFEST, *adapter}
    assert not rows_in(last(hub))
    push_run("runs/mine", NAME, ["t"], private=False)
    assert {name for name in last(hub) if name.startswith("tasks/")} == {
        f"tasks/t/{name}" for name in (*OF_ADAPTER, "task.json")
    }
    assert not rows_in(last(hub))
    assert hub.private == {NAME: True}  # as it was made


def test_labelled_rows_are_not_pushed_by_accident(hub: FakeRunHub, run: Command) -> None:
    code, _, err = run(f"push runs/model {NAME} --task shown")
    assert (code, "holds labelled rows" in err, hub.commits) == (2, True, {})
    assert run(f"push runs/model {NAME} --task shown --with-rows --public")[0] == 0
    assert hub.private == {NAME: False}
    assert rows_in(last(hub)) == ["tasks/shown/task.json"]
    code, _, err = run(f"push runs/model {NAME}")
    assert (code, "name a saved task to push" in err) == (2, True)


def test_the_card_has_the_scores_in_the_form_of_the_hub(hub: FakeRunHub) -> None:
    push_run("runs/mine", NAME, ["t"])
    text = last(hub)["README.md"].decode()
    card = ModelCard(text)
    assert card.data.eval_results
    by_task = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert {metric for _, metric in by_task} == {"accuracy", "nll", "ece"}
    assert "model-index" in yaml.safe_load(text.split("---")[1])
    assert f"abmll predict hf://{NAME}@COMMIT rows.csv" in card.text
    for task, metric in by_task:
        if metric == "accuracy":
            assert rf"{100 * by_task[task, metric]:.1f} \[" in card.text


def test_an_edited_card_stays(hub: FakeRunHub, place: Path) -> None:
    (place / "runs" / "mine" / "adapter" / "README.md").write_text("# My words\n")
    push_run("runs/mine", NAME)
    assert last(hub)["README.md"] == b"# My words\n"


REFERENCES = {
    "no commit": f"hf://{NAME}",
    "a branch": f"hf://{NAME}@main",
    "a short commit": f"hf://{NAME}@0123abc",
    "a climb": "hf://../../etc@" + 40 * "a",
    "a third part": "hf://ann/mine/adapter@" + 40 * "a",
    "no owner": "hf://mine@" + 40 * "a",
    "an empty name": "hf:///@" + 40 * "a",
    "dots": "hf://ann/a..b@" + 40 * "a",
    "a line end": "hf://ann/mine\n@" + 40 * "a",
    "a line end behind": "hf://ann/mine@" + 40 * "a" + "\n",
    "a dot first": "hf://ann/.git@" + 40 * "a",
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_trust_43_references_without_a_commit_and_hostile_names_are_refused(kind: str, hub: FakeRunHub) -> None:
    with pytest.raises(AbmllError, match=r"full commit|no name of a repository"):
        find_run(REFERENCES[kind])
    assert hub.fetched == []


@pytest.mark.parametrize("name", ["nobody", "a/b/c", "-a/b", "a/b.git", "../x", "a b/c", "a/" + "x" * 200, "a/b\n"])
def test_trust_43_no_such_name_is_pushed_to(name: str, hub: FakeRunHub) -> None:
    with pytest.raises(AbmllError, match="no name of a repository on the hub"):
        push_run("runs/mine", name)
    assert hub.commits == {}


def pushed_again(hub: FakeRunHub, spoil: Callable[[Files], object], manifest: bool = True) -> str:
    """A commit whose files were spoilt; the manifest says what is there, unless it is to stay as it was."""
    push_run("runs/mine", "ann/good", ["t"])
    tree = dict(last(hub))
    spoil(tree)
    if manifest:
        said = json.loads(tree[MANIFEST])
        for name in said["files"]:
            said["files"][name] = {"bytes": len(tree[name]), "sha256": hashlib.sha256(tree[name]).hexdigest()}
        tree[MANIFEST] = json.dumps(said).encode()
    return f"hf://ann/bad@{hub.put('ann/bad', tree)}"


def with_another(name: str) -> Callable[[Files], object]:
    """A pickle by that name, which the manifest names."""

    def spoil(tree: Files) -> None:
        said = json.loads(tree[MANIFEST])
        said["files"][name] = {}
        tree |= {name: pickle.dumps({"not": "opened"}), MANIFEST: json.dumps(said).encode()}

    return spoil


HOSTILE = (
    *("../outside.json", "/etc/passwd", "adapter/pytorch_model.bin", "tasks/../../x/task.json", "modeling_x.py"),
    *(
        "tasks/CON/task.json",
        "adapter/adapter_model.safetensors/x",
        ".git/config",
        "tasks/t/../../config.yaml",
        "hub.json",
    ),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_trust_41_43_what_no_run_has_is_never_fetched(name: str, hub: FakeRunHub, place: Path) -> None:
    reference = pushed_again(hub, with_another(name))
    with pytest.raises(AbmllError, match="Nothing of it is fetched"):
        find_run(reference)
    assert hub.fetched == [MANIFEST]
    assert not list((place / "runs").glob("*bad-*"))


def change(name: str, data: bytes) -> Callable[[Files], object]:
    return lambda tree: tree.update({name: data})


def flipped(name: str) -> Callable[[Files], object]:
    """One bit of a file is another one; its length is the same."""
    return lambda tree: tree.update({name: tree[name][:-1] + bytes([tree[name][-1] ^ 1])})


def without(name: str) -> Callable[[Files], object]:
    return lambda tree: tree.pop(name)


def configured(**model: object) -> Callable[[Files], object]:
    """Another configuration, sealed as ours are."""

    def spoil(tree: Files) -> None:
        values = yaml.safe_load(tree["config.yaml"].decode().partition("\n")[2])
        values["model"] |= model
        text = yaml.safe_dump(values)
        tree["config.yaml"] = f"# sha256 of what follows: {seal(text)}\n{text}".encode()

    return spoil


DAMAGED: dict[str, tuple[Callable[[Files], object], bool, str]] = {
    "another length": (change("adapter/abmll.safetensors", b"x"), False, "its SHA-256 differs"),
    "a flipped bit": (flipped("adapter/README.md"), False, "adapter/README.md is not what abmll-run.json says"),
    "no manifest": (without(MANIFEST), False, "no run that `abmll push` wrote"),
    "no JSON": (change(MANIFEST, b"{"), False, "is no list of a run's files"),
    "a list": (change(MANIFEST, b"[]"), False, "is no list of a run's files"),
    "a later format": (change(MANIFEST, b'{"format": 2, "files": {}}'), False, "format 2"),
    "no configuration": (change(MANIFEST, b'{"format": 1, "files": {}}'), False, "no config.yaml"),
    "a lost file": (without("config.yaml"), False, "has no config.yaml"),
    "no configuration's text": (change("config.yaml", b": ["), True, "config.yaml"),
    "code": (configured(trust_remote_code=True, revision=40 * "a"), True, "trust_remote_code, which runs code"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_trust_09_what_is_not_as_it_was_pushed_is_refused_and_nothing_is_left(
    kind: str, hub: FakeRunHub, run: Command, place: Path
) -> None:
    spoil, manifest, message = DAMAGED[kind]
    reference = pushed_again(hub, spoil, manifest)
    code, _, err = run(f"predict {reference} my.csv --task t -o out.csv")
    assert (code, message in err) == (2, True), err
    assert not list((place / "runs").glob("*bad-*"))


def test_too_many_bytes_are_not_fetched(hub: FakeRunHub, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pushed_again(hub, change("trained.json", b" " * 200_001))
    monkeypatch.setattr("abmll.hub.runs.MOST_TEXT", 200_000)
    with pytest.raises(AbmllError, match=r"bytes, at most 200,000 are fetched"):
        find_run(reference)
    assert "trained.json" not in hub.fetched


def test_a_folder_of_something_else_is_not_taken_for_it(hub: FakeRunHub, place: Path) -> None:
    reference = run_reference(push_run("runs/mine", NAME).reference)
    assert reference is not None
    shutil.copytree(place / "runs" / "mine", place / "runs" / reference.folder_name)
    with pytest.raises(AbmllError, match="is not what was fetched"):
        find_run(str(reference))


FAILURES = {
    "no network": (ConnectionError("no route"), "cannot be reached"),
    "offline": (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    "not allowed": (refusal(403), "log in with `hf auth login`"),
    "no login": (errors.LocalTokenNotFoundError("none"), "log in with `hf auth login`"),
    "a fault of the hub": (refusal(500, f"Server Error {TOKEN}"), "the hub answered"),
    "a token in the error": (RuntimeError(f"could not send {TOKEN} to the hub"), "cannot be reached"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_trust_47_a_dead_hub_is_one_message_without_the_token(
    kind: str, hub: FakeRunHub, run: Command, caplog: pytest.LogCaptureFixture, place: Path
) -> None:
    reference = push_run("runs/mine", NAME).reference
    hub.error, message = FAILURES[kind]
    code, out, err = run(f"push runs/mine {NAME}")
    assert (code, message in err) == (2, True), err
    code, _, other = run(f"predict {reference} my.csv --task t -o out.csv")
    assert (code, "cannot be had" in other) == (2, True), other
    assert TOKEN not in out + err + other + caplog.text
    assert not list((place / "runs").glob("*mine-*"))


def test_trust_47_no_token_is_in_what_is_pushed_or_fetched(hub: FakeRunHub, place: Path) -> None:
    assert huggingface_hub.get_token() == TOKEN
    find_run(push_run("runs/mine", NAME, ["t"]).reference)
    for data in (*last(hub).values(), *(path.read_bytes() for path in place.rglob("*") if path.is_file())):
        assert TOKEN.encode() not in data


def test_what_others_could_not_use_is_not_pushed(hub: FakeRunHub, place: Path) -> None:
    with pytest.raises(AbmllError, match="no run directory"):
        push_run("nowhere", NAME)
    with pytest.raises(AbmllError, match="on the hub already"):
        push_run(f"hf://{NAME}@{40 * 'a'}", NAME)
    with pytest.raises(AbmllError, match="unknown saved task"):
        push_run("runs/model", NAME, ["nothing"])
    config = load_config(RunConfig, place / "runs" / "mine" / "config.yaml")
    started = config.model_copy(update={"adapter": config.adapter.model_copy(update={"start": "~/lora"})})
    (place / "runs" / "mine" / "config.yaml").write_text(started.to_sealed_yaml())
    with pytest.raises(AbmllError, match="a file of its maker's"):
        push_run("runs/mine", NAME)
    assert hub.commits == {}
