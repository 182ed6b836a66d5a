"""Every field of a configuration, where it is set for one system of a comparison, works or is refused by name.

The fields are found by introspection: a new one is in none of the tables below, and fails the test until it is in one.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from abmll import cli
from abmll.classifier import Classifier
from abmll.config import CompareConfig, MethodConfig, RunConfig, TrackingConfig, load_config, parse_overrides
from abmll.errors import AbmllError
from abmll.everyday.session import settings_of
from abmll.report import collect, summarise
from abmll.runs import overrides
from abmll.runs.compare import run_comparison
from abmll.runs.overrides import STILL, TRAINED, fields_of
from abmll.runs.prepare import check_run, comparison_runs
from abmll.systems import plans
from abmll.systems.plans import resolve
from tests.everyday import place_run
from tests.runs import config_in, never
from tests.systems import tiny_base
from tests.tiny import tiny_tasks, write_tasks

SHORT = {"inner_steps": 1, "batch_size": 2}
OWN: dict[str, Any] = {  # fields that a system may have of its own, and a value that is not the comparison's
    "note": "mine",
    "adapter.rank": 2,
    "adapter.alpha": 3.0,
    "adapter.targets": ("v_proj",),
    "likelihood.kind": "letter",
    "likelihood.normalisation": "sum",
    "likelihood.template": "{{ question }} ->",
    "likelihood.temperature": 2.0,
    "likelihood.learn_temperature": True,
    "likelihood.max_tokens": 300,
    "likelihood.cut": "middle",
    "likelihood.pieces": 2,
    "likelihood.share_prefix": False,
    "likelihood.share_labels": True,
    "method.name": "reptile",
    "method.preset": "paper",
    "tasks.sampling": "proportional",
    "training.iterations": 1,
    "training.meta_batch": 2,
    "training.micro_batch": 1,
    "training.checkpoint_every": 1,
    "training.log_stds_every": 1,
    "training.validate_every": 1,
    "training.validate_by": "nll_scaled",
    "training.patience": 1,
    "training.on_non_finite": "skip",
    "training.most_skipped": 1,
    "adaptation.examples": 5,
    "adaptation.steps": 1,
    "adaptation.batch_size": 3,
    "adaptation.sampler": "activation",
    "adaptation.samples": 3,
    "adaptation.batch_tokens": 999,
    "adaptation.folds": 2,
    "adaptation.in_context": True,
    "adaptation.schedule": "linear",
    "adaptation.lengths": True,
    "adaptation.content_free": True,
    "likelihood.premise": "",
    "posterior.name": "laplace",
    "posterior.preset": "as-published",
    "engine.kernels": "eager",
    "engine.packed": False,
    "engine.capture": False,
    "engine.captured": 3,
    "engine.least_width": 2,
    "tracking.tracker": ("tensorboard",),
    "tracking.project": "mine",
}
SHARED: dict[str, Any] = {  # fields that it cannot have of its own
    "name": "another",
    "model.source": "folder",
    "model.shape": "smollm2-135m",
    "model.dtype": "bfloat16",
    "model.device": "cpu:1",
    "model.revision": "main",
    "model.trust_remote_code": True,
    "model.attention": "eager",
    "model.quantisation": "4bit",
    "model.shards": 2,
    "tasks.train.source": "builtin",
    "tasks.train.names": ("capitals",),
    "tasks.train.merge_choices": True,
    "tasks.train.on_bad_row": "skip",
    **{
        f"tasks.{role}.{name}": value
        for role in ("validation", "unseen")
        for name, value in {
            "source": "builtin",
            "names": ("capitals",),
            "merge_choices": True,
            "on_bad_row": "skip",
        }.items()
    },
    "tasks.leak_check": "warn",
    "training.seed": 7,
    "adaptation.draws": 1,
    "adaptation.seed": 7,
    "adaptation.test_questions": 2,
    "adaptation.meta_rows": 3,
}
NEEDS = {
    "likelihood.share_prefix": {"method": {"training_sampler": "weight"}},
    "posterior.name": {"method": {"name": "reptile"}},
    "posterior.preset": {"method": {"name": "reptile"}, "posterior": {"name": "swag"}, "adaptation": {"steps": 4}},
}
"""What a value can be had with alone."""
ELSEWHERE = {"adapter.start": "tests of its own below: it is a folder"}


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a configuration that holds a value, found in its classes."""
    for name, field in kind.model_fields.items():
        kinds = [k for k in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(k, type)]
        sections = [k for k in kinds if issubclass(k, BaseModel)]
        if sections:
            yield from leaves(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def nested(field: str, value: Any) -> dict[str, Any]:
    for key in reversed(field.split(".")):
        value = {key: value}
    return dict(value)


def laid(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {**one, **other}
    return {
        key: laid(one[key], other[key])
        if isinstance(one.get(key), dict) and isinstance(other.get(key), dict)
        else value
        for key, value in both.items()
    }


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, made = tmp_path_factory.mktemp("tasks"), tiny_tasks(6, n_rows=20, n_test=6)
    for name, chosen in (("train", made[:3]), ("validation", made[3:4]), ("unseen", made[4:])):
        write_tasks(folder / name, chosen)
    return folder


@pytest.fixture(scope="module")
def configure(tasks: Path) -> Callable[..., CompareConfig]:
    """Systems `plain` and `mine`, which has something of its own."""

    def make(own: dict[str, Any], **changes: Any) -> CompareConfig:
        base = {"method": {"name": "abmll", **SHORT}}
        values: dict[str, Any] = {
            "model": {"shape": "tiny"},
            "adapter": {"rank": 3, "alpha": 6.0},
            "tasks": {
                **{role: {"source": str(tasks / role)} for role in ("train", "validation", "unseen")},
                "leak_check": "off",
            },
            "training": {"iterations": 2, "validate_every": 2},
            "adaptation": {"steps": 2, "samples": 2, "test_questions": 4, "examples": 6, "draws": 2},
            "systems": {"plain": base, "mine": laid(base, own)},
            "reference": "plain",
            "seeds": [0, 1],
            "curve": 1,
        }
        return CompareConfig.model_validate({**values, **changes})

    return make


def test_every_field_of_a_configuration_is_in_one_of_the_tables() -> None:
    fields = set(leaves(RunConfig))
    assert fields == OWN.keys() | SHARED.keys() | ELSEWHERE.keys(), "classify it, and let it work or be refused"
    assert not OWN.keys() & SHARED.keys()
    assert fields >= {"adapter.rank", "tasks.validation.names", "method.name", "tracking.tracker"}
    assert MethodConfig.model_config["extra"] == "allow", "a method checks its own settings"


@pytest.mark.parametrize("field", SHARED)
def test_a_field_that_all_systems_share_is_refused_by_name(
    field: str, configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    """Not overlooked: each of these was once taken and forgotten, or reported nothing in the end."""
    own = nested(field, SHARED[field])
    if field == "model.source":
        own["model"]["shape"] = None
    if field.startswith(("tasks.validation", "tasks.unseen")) and not field.endswith("source"):
        same = getattr(configure({}).tasks, field.split(".")[1]).source
        own = laid(own, nested(field.rsplit(".", 1)[0] + ".source", same))
    config = configure(own)
    section = "model" if field == "model.source" else field
    with pytest.raises(AbmllError, match=rf"systems\.mine: {section}") as caught:
        run_comparison(config, tmp_path / "out", never)
    message = str(caught.value)
    value = SHARED[field][0] if isinstance(SHARED[field], tuple) else SHARED[field]
    assert str(value) in message or field == "model.source"
    assert "leave it out" in message.lower()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", OWN)
def test_a_field_that_a_system_may_have_of_its_own_is_taken(
    field: str, configure: Callable[..., CompareConfig]
) -> None:
    config = configure(laid(nested(field, OWN[field]), NEEDS.get(field, {})))
    comparison_runs(config)
    values = dict(fields_of(config.run("mine", 1).model_dump()))
    assert values[field] == OWN[field] != dict(fields_of(config.run("plain", 1).model_dump()))[field]


FEW = ("note", "adapter.targets", "likelihood.temperature", "tasks.sampling", "training.log_stds_every")
ALONE = ("adaptation.sampler", "adaptation.in_context")
BUNDLES: dict[str, tuple[str, ...]] = {  # what can be had together
    "adapter and engine": (*FEW, "adapter.rank", "adapter.alpha", *(f for f in OWN if f[:6] in ("engine", "tracki"))),
    "training": tuple(f for f in OWN if f.startswith("training") and f not in FEW),
    "adaptation": tuple(f for f in OWN if f.startswith("adaptation") and f not in ALONE),
    "in context": ("adaptation.in_context", "adaptation.folds", "likelihood.max_tokens", "likelihood.template"),
    "draws of activations": ("adaptation.sampler", "adaptation.samples", "likelihood.normalisation"),
    "letters": (
        "likelihood.kind",
        "likelihood.learn_temperature",
        "likelihood.share_prefix",
        "likelihood.share_labels",
        "likelihood.cut",
        "likelihood.pieces",
    ),
    "premise": ("likelihood.premise",),
    "method": ("method.name",),
    "preset": ("method.preset",),
    "posterior": ("posterior.name",),
    "preset of a posterior": ("posterior.preset",),
}


def test_the_bundles_hold_every_field() -> None:
    assert {field for fields in BUNDLES.values() for field in fields} == OWN.keys()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_what_is_taken_works_from_training_to_the_report(
    bundle: str, configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    if bundle == "adapter and engine":
        pytest.importorskip("tensorboard")
    own: dict[str, Any] = {}
    for field in BUNDLES[bundle]:
        own = laid(laid(own, nested(field, OWN[field])), NEEDS.get(field, {}))
    run_comparison(configure(own, seeds=[0]), tmp_path, tiny_base)
    summary = summarise(collect(tmp_path))  # from which the page and its figures are drawn, see test_report_page
    assert summary["missing"] == []
    assert np.isfinite([summary["systems"][name]["nll"] for name in ("plain", "mine")]).all()
    assert summary["systems"]["mine"]["against_reference"]["nll"]["n"] == 8
    assert summary["systems"]["mine"]["n"] == summary["systems"]["plain"]["n"]
    run_comparison(configure(own, seeds=[0]), tmp_path, never)


# -------------------- other parts that cannot work


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"adaptation": {"examples": 21}}, r"systems\.mine: tasks: tiny\d has 20 train rows, adaptation wants 21"),
        ({"method": {"inner_steps": 50}}, r"systems\.mine: an episode of 51 batches .* too small"),
        ({"method": {"inner_step": 1}}, r"systems\.mine: .*inner_steps"),
        (
            {"adaptation": {"sampler": "activation"}, "method": {"std_form": "log_std"}},
            r"systems\.mine: .*sampler=weight",
        ),
        (
            {
                "adaptation": {"sampler": "activation"},
                "likelihood": {"share_prefix": False},
                "method": {"training_sampler": "weight"},
            },
            r"systems\.mine: adaptation\.sampler=activation with .*use adaptation\.sampler=weight",
        ),
        (
            {"adaptation": {"in_context": True}, "likelihood": {"template": "chat"}},
            r"systems\.mine: adaptation\.in_context .*likelihood\.template=plain",
        ),
        ({"adapter": {"start": "nowhere"}}, r"systems\.mine: nowhere: no such folder"),
        ({"method": {"outer_lr": 1e38}}, r"systems\.mine: method\.outer_lr: a rate above 3e\+37"),
        ({"tracking": {"tracker": "mlflow"}}, r"systems\.mine: tracking\.tracker: mlflow cannot be used"),
        ({"engine": {"kernels": "triton"}}, r"systems\.mine: engine\.kernels=triton: .*; use engine\.kernels=auto"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_system_that_cannot_work_is_refused_before_the_model_is_loaded(
    own: dict[str, Any],
    message: str,
    configure: Callable[..., CompareConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("abmll.runs.tracking.get_available_trackers", list)
    monkeypatch.setattr("abmll.kernels.triton_error", lambda: "no such module")
    with pytest.raises(AbmllError, match=message):
        run_comparison(configure(own), tmp_path / "out", never)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_the_model_is_refused_before_any_system_is_trained(
    configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    """The last of the systems: the first would have been trained for days."""
    for own, message in (
        ({"adapter": {"targets": ["k_prog"]}}, r"systems\.mine: adapter\.targets: 'k_prog' matches no linear layer"),
        ({"likelihood": {"template": "{{ question.nothing() }}"}}, r"systems\.mine: .*template"),
    ):
        with pytest.raises(AbmllError, match=message):
            run_comparison(configure(own), tmp_path / "out", tiny_base)
        assert not list((tmp_path / "out").glob("*/seed-*/journal.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 0]}, r"seeds: 0 is given twice"),
        ({"seeds": [0, -1]}, r"seeds: -1 is below 0"),
        ({"seeds": []}, r"seeds"),
        ({"reference": "nobody"}, r"reference 'nobody' is none of the systems"),
        ({"curve": 0}, r"curve"),
        ({"systems": {"plain": {}, "Plain": {}}}, r"Plain, plain differ in case alone"),
        ({"systems": {}}, r"systems"),
    ],
)
def test_a_comparison_that_cannot_work_is_refused(
    changes: dict[str, Any], message: str, configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    values = {**configure({}).model_dump(mode="json"), **changes}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(AbmllError, match=message):
        load_config(CompareConfig, tmp_path / "recipe.yaml")


def test_a_training_seed_beside_the_seeds_is_refused_and_one_of_them_is_not(
    configure: Callable[..., CompareConfig],
) -> None:
    """It was taken, and nothing was trained by it."""
    training = {"iterations": 2, "seed": 7}
    with pytest.raises(
        AbmllError, match=r"training\.seed=7: a comparison trains by its `seeds`, \[0, 1\]; give seeds=\[7\]"
    ):
        comparison_runs(configure({}, training=training))
    comparison_runs(configure({}, training={**training, "seed": 1}))


def test_fewer_draws_than_the_comparison_are_refused_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trained and predicted, and then had nothing to report, for ever."""
    recipe = {
        "name": "draws",
        "model": {"shape": "tiny-llama", "dtype": "float32", "device": "cpu"},
        "tasks": {"train": {"source": "builtin", "names": ["capitals"]}, "unseen": {"source": "builtin:occupations"}},
        "training": {"iterations": 1},
        "adaptation": {"examples": 4, "steps": 1, "test_questions": 8, "draws": 2, "samples": 1},
        "systems": {
            "in_context": {"method": {"name": "pretrained"}, "adaptation": {"draws": 1, "steps": 0, "in_context": True}}
        },
        "reference": "in_context",
        "curve": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    for more in (["--dry-run"], []):
        monkeypatch.setattr(sys, "argv", ["abmll", "compare", "recipe.yaml", *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = " ".join(capsys.readouterr().err.split())
        assert stopped.value.code == 2
        assert "systems.in_context: adaptation.draws is 1, but the comparison has 2" in said
        assert "Leave it out here, or set it for all" in said
    assert not (tmp_path / "runs").exists()


# -------------------- a LoRA to start from


def test_a_start_of_another_rank_is_refused_and_one_that_fits_is_taken(tmp_path: Path) -> None:
    place = place_run(tmp_path)
    start = str(place / "runs" / "mine" / "adapter")
    check_run(resolve(config_in(place, adapter={"start": start})))
    with pytest.raises(AbmllError, match=r"adapter\.rank is 2, but the LoRA of adapter\.start .* set adapter\.rank=3"):
        check_run(resolve(config_in(place, adapter={"start": start, "rank": 2})))


# -------------------- train


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["training.validate_every=1", "tasks.validation.source=train"], "tiny0 is both trained on and held out"),
        (["training.validate_every=1", "tasks.validation.source=small"], "tiny3 has 3 train rows, adaptation wants 20"),
        (["engine.kernels=triton"], "engine.kernels=triton: no such module; use engine.kernels=auto"),
        (["adaptation.in_context=true", "likelihood.template=chat"], "likelihood.template=plain"),
        (["adapter.start=nowhere"], "nowhere: no such folder"),
    ],
)
def test_train_refuses_what_cannot_work_before_the_model_is_loaded(
    values: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tasks(tmp_path / "train", tiny_tasks(2, n_rows=20))
    write_tasks(tmp_path / "small", tuple(t for t in tiny_tasks(4, n_rows=3) if t.name == "tiny3"))
    recipe = {
        "name": "r",
        "model": {"shape": "tiny-llama"},
        "tasks": {"train": {"source": "train"}, "leak_check": "off"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plans, "check_usable", _no_triton)
    monkeypatch.setattr(sys, "argv", ["abmll", "train", "recipe.yaml", *values, "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert (stopped.value.code, message in " ".join(capsys.readouterr().err.split())) == (2, True)


def _no_triton(backend: str, device: Any) -> None:
    if backend == "triton":
        raise AbmllError("engine.kernels=triton: no such module; use engine.kernels=auto")


# -------------------- runs that are trained


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_run(tmp_path_factory.mktemp("home"))


FIXED = {  # field -> a value that cannot be set of a trained run
    "adapter.rank": 2,
    "adapter.alpha": 3.0,
    "adapter.targets": "[q_proj]",
    "adapter.start": "folder",
    "method.name": "lora",
    "method.preset": "paper",
    "method.std_init": 0.1,
    "method.inner_steps": 7,
    "method.batch_size": 7,
    "method.outer_lr": 0.1,
    "method.outer_schedule": "linear",
    "method.temperature_lr": 0.1,
    "likelihood.temperature": 2.0,
    "likelihood.learn_temperature": "true",
    "training.iterations": 7,
    "training.seed": 7,
    "tracking.project": "mine",
}
OWN_ROWS = {
    "adaptation.examples": 7,
    "adaptation.draws": 7,
    "adaptation.test_questions": 7,
    "adaptation.folds": 3,
    "adaptation.in_context": "true",
    "tasks.unseen.source": "folder",
}
FREE = {  # what still works
    "model.attention": "eager",
    "method.inner_lr": 1e-3,
    "method.std_lr": 1e-3,
    "likelihood.max_tokens": 100,
    "likelihood.pieces": 3,
    "likelihood.normalisation": "sum",
    "adaptation.steps": 7,
    "adaptation.batch_size": 3,
    "adaptation.seed": 7,
    "adaptation.sampler": "activation",
    "adaptation.samples": 7,
    "adaptation.batch_tokens": 999,
    "training.micro_batch": 1,
    "engine.kernels": "eager",
    "note": "mine",
}


@pytest.mark.parametrize("field", {**FIXED, **OWN_ROWS})
def test_what_a_trained_run_cannot_take_is_refused_by_name(field: str, home: Path) -> None:
    value = {**FIXED, **OWN_ROWS}[field]
    with pytest.raises(AbmllError, match=rf"mine: {field}=.* cannot be set \(it is "):
        settings_of(home / "runs" / "mine", parse_overrides([f"{field}={value}"]))
    if field == "method.inner_steps":
        assert settings_of(home / "runs" / "mine", {"method": {"inner_steps": 2}}), "the run's own value is no change"


@pytest.mark.parametrize("field", FREE)
def test_what_a_trained_run_still_takes(field: str, home: Path) -> None:
    found = settings_of(home / "runs" / "mine", parse_overrides([f"{field}={FREE[field]}"]))
    assert dict(fields_of(found.model_dump()))[field] == FREE[field]


def test_a_trained_run_needs_neither_the_start_nor_the_tracker_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_run(tmp_path)
    monkeypatch.setattr("abmll.runs.tracking.get_available_trackers", list)
    gone = {"adapter": {"start": str(tmp_path / "gone")}, "tracking": {"tracker": "mlflow"}}
    config = config_in(place, **gone)
    with pytest.raises(AbmllError):
        check_run(resolve(config))
    untracked = resolve(config.model_copy(update={"tracking": TrackingConfig()}))
    with pytest.raises(AbmllError, match="gone: no such folder"):
        check_run(untracked, tmp_path / "new")
    check_run(untracked, place / "runs" / "mine")  # it has begun
    (place / "runs" / "mine" / "config.yaml").write_text(config.to_sealed_yaml())
    assert settings_of(place / "runs" / "mine", {"adaptation": {"steps": 1}}).adapter.start is not None


def test_every_rule_is_about_a_field_that_there_is() -> None:
    fields = [*leaves(RunConfig), *(f"method.{name}" for name in ("std_form", "std_init", "std_relative", "std_floor"))]
    fields += [f"method.{name}" for name in ("episodes", "inner_steps", "batch_size", "warmup", "inner_schedule")]
    fields += ["method.temperature_lr", "method.outer_lr"]
    for name in (*TRAINED, *overrides.OWN_ROWS, *overrides.SHARED, *STILL):
        assert any(overrides._covers(name, field) for field in fields), name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("adapt runs/mine unseen adapter.rank=2", "adapter.rank=2 cannot be set (it is 3): its adapter has it"),
        ("adapt runs/mine unseen training.iterations=9", "training.iterations=9 cannot be set"),
        ("adapt runs/mine unseen adaptation.examples=99", "has 20 train rows, adaptation wants 99"),
        ("adapt runs/mine my.csv --save t adaptation.examples=5", "all rows are adapted to; --hold-back keeps some"),
        ("predict runs/mine my.csv -o out.csv --labels a,b adaptation.draws=3", "adaptation.draws=3 cannot be set"),
        ("export runs/mine -o out adapter.alpha=1", "adapter.alpha=1.0 cannot be set (it is 6.0)"),
    ],
)
def test_commands_on_a_trained_run_refuse_it_before_the_model_is_loaded(
    line: str,
    message: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tasks(home / "unseen", tiny_tasks(6, n_rows=20, seed=2)[4:])
    (home / "my.csv").write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(8)))
    monkeypatch.chdir(home)
    monkeypatch.setattr("abmll.systems.build.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sys, "argv", ["abmll", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert (stopped.value.code, message in " ".join(capsys.readouterr().err.split())) == (2, True)


def test_an_estimator_refuses_it_too(home: Path) -> None:
    with pytest.raises(AbmllError, match=r"adapter\.rank=2 cannot be set"):
        Classifier(home / "runs" / "mine", settings=("adapter.rank=2",)).fit(["a", "b"], ["x", "y"])
