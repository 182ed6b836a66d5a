"""A run goes on only with what it was begun with; every difference is named."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import read_sealed_json
from abmll.methods import resolve_settings
from abmll.models import LanguageModel
from abmll.question import Task
from abmll.runs.provenance import PROVENANCE
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system
from abmll.training.checkpoints import RunDirectory
from tests.runs import run_in
from tests.survival.children import command, in_child
from tests.survival.places import place_comparison
from tests.systems import TASKS, run_config, tiny_base

PLAIN: dict[str, Any] = {"inner_steps": 1, "training": {"iterations": 2}}


def go_on(
    folder: Path,
    config: RunConfig,
    *,
    tasks: tuple[Task, ...] = TASKS,
    base: LanguageModel | None = None,
    allowed: tuple[str, ...] = (),
) -> int:
    """Train, or go on, as `abmll train` does."""
    run = run_in(folder, config, tasks)
    return train_run(run, lambda: build_system(config, base or tiny_base()), allow_change=allowed)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two meta-iterations."""
    folder = tmp_path_factory.mktemp("begun")
    go_on(folder, run_config("abmll", **PLAIN))
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def changed(**sections: Any) -> RunConfig:
    """The configuration with changes."""
    values = run_config("abmll", **PLAIN).model_dump(mode="json")
    return RunConfig.model_validate(
        {name: {**values[name], **sections.get(name, {})} for name in values if isinstance(values[name], dict)}
    )


REFUSED: dict[str, dict[str, Any]] = {
    "adapter.rank": {"adapter": {"rank": 2}},
    "adapter.targets": {"adapter": {"targets": ["q_proj"]}},
    "model.revision": {"model": {"revision": "abc"}},
    "method.mean_prior_variance": {"method": {"mean_prior_variance": 1e-8}},
    "method.task_kl_weight": {"method": {"task_kl_weight": 0.1}},
    "method.mean_prior_weight": {"method": {"mean_prior_weight": 1e-6}},
    "method.name": {"method": {"name": "reptile"}},
    "training.seed": {"training": {"seed": 1}},
    "training.meta_batch": {"training": {"meta_batch": 2}},
    "training.iterations": {"training": {"iterations": 1}},
    "likelihood.kind": {"likelihood": {"kind": "letter"}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_trust_03_a_changed_field_is_refused_by_name(field: str, run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(AbmllError, match=f"{field} was .*, is .*--allow-change.* {field}".replace("* ", "*")):
        go_on(run, changed(**REFUSED[field]))
    assert (run / "config.yaml").read_bytes() == before


def test_trust_03_all_differing_fields_are_named_at_once(run: Path) -> None:
    with pytest.raises(AbmllError) as caught:
        go_on(run, changed(adapter={"alpha": 5.0}, training={"seed": 7}))
    assert "adapter.alpha was 6.0, is 5.0; training.seed was 0, is 7" in str(caught.value)


def test_trust_03_other_data_tokenizer_or_weights_are_refused(run: Path) -> None:
    other = (replace(TASKS[0], train=TASKS[0].train[:-1]), *TASKS[1:-1])
    with pytest.raises(AbmllError, match=r"data: other rows in tiny0, without tiny3.*--allow-change data"):
        go_on(run, changed(), tasks=other)
    for field, name in (("tokenizer_hash", "tokenizer"), ("fingerprint", "model")):
        with pytest.raises(AbmllError, match=f"{name} was tiny, is another.*--allow-change {name}"):
            go_on(run, changed(), base=replace(tiny_base(), **{field: "another"}))


def test_trust_03_an_allowed_change_goes_on_and_is_kept_in_mind(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = changed(training={"seed": 1, "iterations": 3})
    assert go_on(run, config, allowed=("training.seed",)) == 3
    assert "training.seed was 0, is 1" in caplog.text
    changes = read_sealed_json(run / PROVENANCE)["changes"]
    assert {c["field"]: (c["from"], c["to"]) for c in changes} == {
        "training.seed": (0, 1),
        "training.iterations": (2, 3),
    }
    assert go_on(run, config) == 3  # what was allowed is the run's own now


def test_trust_03_a_change_that_is_allowed_but_impossible_is_no_traceback(run: Path) -> None:
    with pytest.raises(AbmllError, match="of other adapters or settings"):
        go_on(run, changed(adapter={"rank": 2}), allowed=("adapter",))


def test_trust_03_longer_training_and_other_rates_go_on_with_a_note(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = {"outer_lr": 1e-4, "std_lr": 1e-5}
    config = changed(training={"iterations": 4, "checkpoint_every": 1}, method=method, adaptation={"samples": 3})
    assert go_on(run, config) == 4
    for field in ("training.iterations was 2, is 4", "method.outer_lr", "method.std_lr", "adaptation.samples"):
        assert field in caplog.text
    assert RunDirectory(run).steps()[-2:] == [3, 4]


def test_a_default_that_is_written_out_is_no_change(run: Path) -> None:
    assert go_on(run, changed(method={"task_kl_weight": 0.34, "preset": "default"})) == 2


def test_trust_03_a_default_that_changes_in_a_later_version_is_no_default_of_this_run(run: Path) -> None:
    config, now = load_config(RunConfig, run / "config.yaml"), resolve_settings("abmll", "default", {})
    given = config.method.settings()
    assert given.keys() == now.model_dump().keys()
    assert given["task_kl_weight"] == now.model_dump()["task_kl_weight"]
    older = config.method.model_copy(update={"task_kl_weight": 0.17})  # as a version with another default wrote it
    (run / "config.yaml").write_text(config.model_copy(update={"method": older}).to_sealed_yaml())
    with pytest.raises(AbmllError, match=r"method\.task_kl_weight was 0\.17, is 0\.34"):
        go_on(run, run_config("abmll", **PLAIN))


def test_a_run_of_a_version_that_wrote_no_defaults_goes_on(run: Path) -> None:
    (run / "config.yaml").write_text(run_config("abmll", **PLAIN).to_sealed_yaml())
    assert go_on(run, run_config("abmll", **PLAIN)) == 2


STRUCTURED: dict[str, Any] = {**PLAIN, "inner_optimizer_state": "fresh"}
NOW_PERSISTENT = r"inner_optimizer_state was fresh, is persistent\. .*\(method\.inner_optimizer_state=fresh\)"


@pytest.fixture
def structured(tmp_path: Path) -> Path:
    """A run of structured LoRA from before its moments went on from task to task."""
    go_on(tmp_path / "run", run_config("structured", **STRUCTURED))
    return tmp_path / "run"


@pytest.mark.parametrize("names_it", [True, False])
def test_trust_03_a_structured_run_with_fresh_moments_goes_on_with_them_or_is_refused(
    names_it: bool, structured: Path
) -> None:
    if not names_it:  # as a version that wrote no defaults left it
        (structured / "config.yaml").write_text(run_config("structured", **PLAIN).to_sealed_yaml())
    before = {file: file.read_bytes() for file in structured.rglob("*") if file.is_file()}
    longer = {"training": {"iterations": 3}}
    for allowed in ((), ("method.inner_optimizer_state",), ("method",)):
        with pytest.raises(AbmllError, match=NOW_PERSISTENT) as caught:
            go_on(structured, run_config("structured", **{**PLAIN, **longer}), allowed=allowed)
        assert "no moments" in str(caught.value)
        assert "--allow-change" not in str(caught.value)
    assert {file: file.read_bytes() for file in structured.rglob("*") if file.is_file()} == before
    assert go_on(structured, run_config("structured", **{**STRUCTURED, **longer})) == 3
    assert not any(name.startswith("inner.") for name in RunDirectory(structured).load(3).optimizer)


def test_trust_03_a_checkpoint_without_its_moments_is_not_gone_on_from(structured: Path) -> None:
    (structured / "config.yaml").unlink()
    with pytest.raises(AbmllError, match=r"step-000002.*no moments.*inner_optimizer_state=fresh"):
        go_on(structured, run_config("structured", **PLAIN))
    assert go_on(structured.parent / "new", run_config("structured", **PLAIN)) == 2
    longer = {**PLAIN, "training": {"iterations": 3}}
    assert go_on(structured.parent / "new", run_config("structured", **longer)) == 3


def test_trust_03_the_settings_of_before_are_named_as_they_can_be_given(run: Path) -> None:
    with pytest.raises(AbmllError, match=r"Go back to its configuration \(adapter\.rank=3 likelihood\.kind=cloze\) or"):
        go_on(run, changed(adapter={"rank": 2}, likelihood={"kind": "letter"}))


def test_trust_03_on_the_command_line(tmp_path: Path) -> None:
    place = place_comparison(tmp_path)
    short = ["training.iterations=1", "tasks.validation=null", "training.validate_every=null", "-o", "run"]
    assert in_child(command(place, "train", "train.yaml", *short), place / "said.txt").wait() == 0
    other = [*short, "method.inner_steps=1"]
    child = in_child(command(place, "train", "train.yaml", *other), place / "said.txt")
    assert child.wait() == 2
    assert "method.inner_steps was 2, is 1" in child.text()
    allowed = [*other, "--allow-change", "method.inner_steps"]
    assert in_child(command(place, "train", "train.yaml", *allowed), place / "said.txt").wait() == 0
