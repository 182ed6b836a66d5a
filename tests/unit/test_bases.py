"""A base model in the place of a run: which are known, what a name means, and the likelihood that rows decide on."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import abmll
from abmll.calibrators.rows import ChoiceRows
from abmll.calibrators.temperature import log_likelihood_of
from abmll.cli import app
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.bases import FILE, base_config, base_run, find_base, known_bases, run_name
from abmll.everyday.labelled import read_labelled
from abmll.everyday.session import open_base, open_run
from abmll.everyday.shipped import find_run
from abmll.question import Question
from abmll.systems import likelihood_choice
from abmll.systems.build import build_system
from abmll.systems.likelihood_choice import base_nll, choose_likelihood
from abmll.systems.plans import PredictionPlan
from abmll.tables.layouts import Layout
from tests.everyday import place_run, texts, write_csv, write_texts
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    save_tiny(folder / "model")
    write_texts(folder / "my.csv", 24)
    write_csv(folder / "new.csv", ["text"], [[text] for text, _ in texts(5, seed=3)])
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where `model`, `my.csv` and `new.csv` are."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["abmll", *words])
        with pytest.raises(SystemExit) as stopped:
            abmll.cli.main()
        shown = capsys.readouterr()
        assert stopped.value.code == 0, shown.err
        return " ".join((shown.out + shown.err).split())

    return run


# ------------------------------------------------------------------------------------------------ the list


def test_every_base_has_a_source_that_is_one_and_a_command_that_names_it() -> None:
    for base in known_bases():
        assert find_base(base.name) == base.source
        assert base_config(base.source).model.source == base.source
        assert re.fullmatch(rf"abmll adapt ({base.run}|{base.name}) my\.csv --save mytask", base.command)
        assert base.licence == "Apache-2.0"
        if base.sha256 is not None:
            assert re.fullmatch(r"[0-9a-f]{64}", base.sha256)
            assert base.source.endswith(".gguf")
        if base.source.startswith("Qwen/") and not base.source.endswith(".gguf"):
            assert base.measured.startswith("no: the full-precision folder was not measured")
    assert all(set(entry) <= set(vars(known_bases()[0])) for entry in yaml.safe_load(FILE.read_text()))


def test_the_command_lists_them_as_json_and_for_people() -> None:
    shown = CliRunner().invoke(app, ["bases", "--json"])
    assert [entry["name"] for entry in json.loads(shown.output)] == [base.name for base in known_bases()]
    people = CliRunner().invoke(app, ["bases"]).output
    for base in known_bases():
        assert base.name in people
        assert base.command in people
        assert base.sha256 is None or base.sha256 in people
    (one,) = json.loads(CliRunner().invoke(app, ["bases", "qwen2.5-coder-1.5B", "--json"]).output)
    assert one["sha256"].startswith("cc324af070c2ecbf")


@pytest.mark.parametrize(
    ("run", "source"),
    [
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-1.5B-Instruct"),
        ("owner/name/sub/file.gguf", "owner/name/sub/file.gguf"),
        ("model", "model"),
        ("./model", "./model"),
        ("runs/mine", None),
        ("here/mine", None),
        ("nowhere", None),
        ("my.csv", None),
        ("tiny.gguf", "tiny.gguf"),
        ("part-00002-of-00003", "part-00002-of-00003"),
        ("part-*", "part-*"),
        ("a/b/c", None),
        ("../up", None),
    ],
)
def test_what_a_name_means(run: str, source: str | None, place: Path) -> None:
    (place / "here").mkdir()
    (place / "tiny.gguf").write_bytes(b"GGUF")
    (place / "part-00002-of-00003").write_bytes(b"")
    assert find_base(run) == source


def test_the_run_of_a_base_is_made_once_and_never_that_of_another(place: Path) -> None:
    folder = base_run("model")
    assert folder == Path("runs/model")
    assert base_run("model") == folder
    with pytest.raises(AbmllError, match=r"runs/model: is a run of another model than owner/model"):
        base_run("owner/model")
    assert [run_name(name) for name in ("a/b/c-00001-of-00002.gguf", "data/part*.bin", "~/x.gguf", "***")] == [
        "c",
        "part.bin",
        "x",
        "base",
    ]


def test_a_base_that_cannot_be_had_leaves_nothing(place: Path) -> None:
    with pytest.raises(AbmllError, match="HF_HUB_OFFLINE"):
        open_run(find_run("owner/name"))
    assert not list((place / "runs").iterdir())


def test_a_configuration_of_somebody_is_never_removed(place: Path) -> None:
    config = base_config("owner/name").model_copy(update={"note": "mine"})
    (place / "mine").mkdir()
    (place / "mine" / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(AbmllError, match="HF_HUB_OFFLINE"):
        open_run(Path("mine"))
    assert (place / "mine" / "config.yaml").exists()


# ------------------------------------------------------------------------------------------------ adapting one


def test_adapt_predict_and_classifier_agree_on_a_base_model(place: Path, call: Callable[..., str]) -> None:
    told = call("adapt", "model", "my.csv", "--save", "t")
    kind, letter, cloze = re.findall(r"likelihood: `(\w+)`: .* letter (\d\.\d+), cloze (\d\.\d+) nats", told)[0]
    assert kind == ("letter" if float(letter) < float(cloze) else "cloze")
    assert "adapting to 24 rows: 20 steps" in told
    assert "a fresh LoRA" not in told  # it is one itself
    details = json.loads((place / "runs/model/tasks/t/task.json").read_text())["details"]
    assert details["likelihood"]["kind"] == kind
    assert details["likelihood_choice"] == {
        "letter": pytest.approx(float(letter), abs=6e-4),
        "cloze": pytest.approx(float(cloze), abs=6e-4),
    }
    assert load_config(RunConfig, place / "runs/model/config.yaml").likelihood.kind == "auto"
    call("predict", "model", "new.csv", "--task", "t", "-o", "out.jsonl", "--raw")
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    found = abmll.Classifier("model").fit(*map(list, zip(*texts(24), strict=True)))
    asked = [row["text"] for row in rows]
    raw = [answer.probabilities for answer in found.answers(asked, raw=True)]
    by_command = [[row["p_bad"], row["p_good"]] for row in rows]
    np.testing.assert_allclose(raw, by_command, atol=0.1)  # its batches are drawn by another task's name
    assert found._temperature is not None
    assert found._temperature.mean == pytest.approx(details["temperature"]["mean"], abs=1e-3), "folds have one name"
    stated = found.predict_proba(asked)
    found.save("saved")
    assert load_config(RunConfig, place / "saved/config.yaml").likelihood.kind == kind
    np.testing.assert_allclose(abmll.Classifier.load("saved").predict_proba(asked), stated, atol=1e-5)


def test_another_rank_is_kept_with_the_task(place: Path, call: Callable[..., str]) -> None:
    call("adapt", "model", "my.csv", "--save", "t", "--no-check", "adapter.rank=3", "likelihood.kind=letter")
    details = json.loads((place / "runs/model/tasks/t/task.json").read_text())["details"]
    assert (details["adapter"]["rank"], details["likelihood"]["kind"]) == (3, "letter")
    call("predict", "runs/model", "new.csv", "--task", "t", "-o", "out.csv")


def test_each_classifier_of_one_base_keeps_the_likelihood_of_its_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"letter": 0.1, "cloze": 0.2}
    monkeypatch.setattr(likelihood_choice, "base_nll", lambda config, base, kind, rows: values[kind])
    examples = tuple(map(list, zip(*texts(24), strict=True)))
    one = abmll.Classifier("model", steps=2).fit(*examples)
    first = one.predict_proba(["rain"])
    values["cloze"] = 0.0
    two = abmll.Classifier("model", steps=2).fit(*examples)
    assert one._shared is two._shared
    second = two.predict_proba(["rain"])
    assert not np.allclose(first, second)
    np.testing.assert_allclose(one.predict_proba(["rain"]), first, atol=1e-6)
    assert one._shared.session.system.likelihood.kind == "letter"


def test_a_choice_that_fails_leaves_a_session_that_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = tuple(map(list, zip(*texts(24), strict=True)))
    fitted = abmll.Classifier("model", steps=1).fit(*examples)

    def fail(*_: object) -> float:
        raise AbmllError("no letters")

    with monkeypatch.context() as broken:
        broken.setattr(likelihood_choice, "base_nll", fail)
        with pytest.raises(AbmllError, match="no letters"):
            abmll.Classifier("model", steps=2).fit(*examples)
    assert np.isfinite(fitted.predict_proba(["rain"])).all()


# ------------------------------------------------------------------------------------------------ the choice itself


def test_the_lower_nll_at_likely_temperatures_is_taken(place: Path) -> None:
    rows = read_labelled(place / "my.csv", Layout()).rows
    session = open_base(base_config("model"))
    session.system.close()
    choice = choose_likelihood(session.config, session.base, rows)
    for kind in ("letter", "cloze"):
        sections = {"likelihood": {"kind": kind}, "method": {"name": "pretrained"}}
        system = build_system(sections, session.base)
        stated = ChoiceRows.from_predictions(system.predict(rows, PredictionPlan("mean", 1)))
        system.close()
        nodes = np.linspace(-6, 8, 4001)  # the posterior of log T by its prior N(1, 1.5^2), on a fine grid
        log_posterior = log_likelihood_of(stated)(nodes) - (nodes - 1) ** 2 / (2 * 1.5**2)
        weights = np.exp(log_posterior - log_posterior.max())
        each = [log_likelihood_of(ChoiceRows(stated.log_probabilities[[n]], stated.answers[[n]])) for n in range(24)]
        right = np.array([weights @ np.exp(of(nodes)) / weights.sum() for of in each])
        assert choice.nll[kind] == pytest.approx(-np.log(right).mean(), abs=2e-3)
    assert choice.kind == min(choice.nll, key=lambda kind: choice.nll[kind])


def test_more_labels_than_letters_go_to_cloze_without_a_measurement(place: Path) -> None:
    rows = [Question("a", "which?", tuple(f"label {n}" for n in range(27)), 3)]
    session = open_base(base_config("model"))
    choice = choose_likelihood(session.config, session.base, rows)
    assert (choice.kind, choice.nll) == ("cloze", {})
    assert "27 choices are more than there are letters" in choice.why


def test_a_likelihood_that_cannot_be_measured_is_not_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_labelled(place / "my.csv", Layout()).rows
    session = open_base(base_config("model"))
    session.system.close()
    measured = base_nll

    def no_letters(*arguments: object) -> float:
        if "letter" in arguments:
            raise AbmllError("' A' is no single token")
        return measured(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(likelihood_choice, "base_nll", no_letters)
    choice = choose_likelihood(session.config, session.base, rows)
    assert (choice.kind, set(choice.nll)) == ("cloze", {"cloze"})
    assert "letter cannot be" in choice.why


def test_a_trained_run_keeps_its_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AbmllError, match=r"likelihood\.kind=auto cannot be set \(it is cloze\)"):
        open_run(Path("runs/mine"), {"likelihood": {"kind": "auto"}})


def test_training_by_auto_is_refused(place: Path) -> None:
    base = abmll.load_model("model", device="cpu")
    with pytest.raises(AbmllError, match=r"likelihood\.kind=auto: labelled rows decide"):
        build_system({"likelihood": {"kind": "auto"}}, base)
