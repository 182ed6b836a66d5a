"""Run configurations: in and out of YAML, overridden, hashed, merged, and refused with every fault named."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from abmll.config import (
    CompareConfig,
    MethodConfig,
    RunConfig,
    check,
    load_config,
    merge,
    parse_override,
    parse_overrides,
)
from abmll.errors import AbmllError

SMALL: dict[str, Any] = {"model": {"shape": "tiny"}}
FULL: dict[str, Any] = {
    "name": "run-1.b",
    "note": "what 1e5 means: „viel“, 河\nand more",
    "model": {"source": "folder/of it", "dtype": "float32", "device": "cpu", "revision": "3e4", "attention": "eager"},
    "adapter": {"rank": 3, "alpha": 6.5, "targets": ["q_proj", "no"]},
    "likelihood": {"kind": "letter", "template": "{{ question }}:\n", "temperature": 2.5e-4, "max_tokens": 8},
    "method": {"name": "reptile", "inner_lr": 1e-5, "inner_steps": 3, "std_init": {"relative": 0.1}, "flags": [1, "1"]},
    "tasks": {"train": {"source": "a", "names": ["yes", "1"]}, "unseen": {"source": "b", "merge_choices": True}},
    "training": {"iterations": 0, "micro_batch": 4, "validate_every": 5},
    "adaptation": {"samples": 1, "sampler": "activation"},
}
COMPARE: dict[str, Any] = {
    **SMALL,
    "adapter": {"alpha": 3.0},
    "method": {"name": "abmll", "std_lr": 1e-3},
    "systems": {
        "abmll": {},
        "structured": {"method": {"name": "structured", "inner_lr": 0.01}},
        "wide": {"adapter": {"rank": 64}, "method": {"std_lr": 0.5}},
    },
    "seeds": [0, 3],
}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def as_yaml(folder: Path, values: dict[str, Any], kind: type[RunConfig] = RunConfig) -> Path:
    return write(folder, kind.model_validate(values).to_yaml())


def complaint(values: dict[str, Any], kind: type[RunConfig] = RunConfig) -> str:
    with pytest.raises(AbmllError) as caught:
        check(kind, values, "run.yaml")
    return str(caught.value)


# In and out


@pytest.mark.parametrize(
    ("kind", "values"),
    [(RunConfig, SMALL), (RunConfig, FULL), (CompareConfig, COMPARE)],
    ids=["small", "full", "compare"],
)
def test_yaml_out_and_in_again_is_the_same_configuration(tmp_path: Path, kind: type[RunConfig], values) -> None:
    config = kind.model_validate(values)
    again = load_config(kind, write(tmp_path, config.to_yaml()))
    assert again == config
    assert again.to_yaml() == config.to_yaml()


def test_a_configuration_cannot_be_changed() -> None:
    config = RunConfig.model_validate(FULL)
    for section, field in ((config, "name"), (config.training, "seed"), (config.method, "preset")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, "x")


def test_settings_of_a_method_are_all_but_its_name_and_preset() -> None:
    settings = RunConfig.model_validate(FULL).method.settings()
    assert settings == {key: value for key, value in FULL["method"].items() if key != "name"}
    settings.clear()
    assert RunConfig.model_validate(FULL).method.settings() != {}


# Overrides


@pytest.mark.parametrize(
    ("override", "nested"),
    [
        ("note=a=b", {"note": "a=b"}),
        ("training.seed=3", {"training": {"seed": 3}}),
        ("a.b.c.d=[1, two, 3.5]", {"a": {"b": {"c": {"d": [1, "two", 3.5]}}}}),
        ("likelihood={kind: letter}", {"likelihood": {"kind": "letter"}}),
        ("model.source=null", {"model": {"source": None}}),
        ("model.source=", {"model": {"source": None}}),
        ("tasks.train.source=builtin:held-out", {"tasks": {"train": {"source": "builtin:held-out"}}}),
    ],
)
def test_an_override_is_a_place_and_a_yaml_value(override: str, nested: dict[str, Any]) -> None:
    assert parse_override(override) == nested


@pytest.mark.parametrize("override", ["training.seed", "=3", ".seed=3", "training.=3", "training..seed=3", ""])
def test_an_override_that_is_no_assignment_is_refused(override: str) -> None:
    with pytest.raises(AbmllError, match=r"is not of the form section\.key=value"):
        parse_override(override)


@pytest.mark.parametrize("value", ["[1", "{a", "2024-13-45", "!!bool x", "!!python/object:os.system id", "[" * 3000])
def test_an_override_that_is_no_yaml_is_refused(value: str) -> None:
    with pytest.raises(AbmllError, match="the value is not valid YAML"):
        parse_override(f"note={value}")


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4", "0.0003", "3E-04"])
def test_floats_may_be_written_in_any_way(tmp_path: Path, written: str) -> None:
    overrides = [f"likelihood.temperature={written}"]
    assert load_config(RunConfig, as_yaml(tmp_path, SMALL), overrides).likelihood.temperature == 3e-4
    file = write(tmp_path, f"model: {{shape: tiny}}\nlikelihood: {{temperature: {written}}}\n")
    assert load_config(RunConfig, file).likelihood.temperature == 3e-4


def test_overrides_are_laid_on_the_file_in_order(tmp_path: Path) -> None:
    overrides = ["training.seed=4", "adapter.targets=[k_proj]", "method.inner_steps=9", "training.seed=5"]
    got = load_config(RunConfig, as_yaml(tmp_path, FULL), overrides)
    expected = {
        **FULL,
        "training": {**FULL["training"], "seed": 5},
        "adapter": {**FULL["adapter"], "targets": ["k_proj"]},
        "method": {**FULL["method"], "inner_steps": 9},
    }
    assert got == RunConfig.model_validate(expected)


def test_overrides_may_be_given_as_their_values(tmp_path: Path) -> None:
    texts = ["training.seed=4", "method.inner_steps=9", "method.name=reptile", "adapter.targets=[k_proj]"]
    file = as_yaml(tmp_path, FULL)
    assert load_config(RunConfig, file, parse_overrides(texts)) == load_config(RunConfig, file, texts)
    values = {"training": {"seed": 4}, "method": {"inner_steps": 9, "name": "reptile"}}
    assert parse_overrides(texts) == {**values, "adapter": {"targets": ["k_proj"]}}


def test_an_override_may_reach_into_one_system(tmp_path: Path) -> None:
    overrides = ["systems.wide.adapter.rank=2", "systems.new.method.name=lora"]
    got = load_config(CompareConfig, as_yaml(tmp_path, COMPARE, CompareConfig), overrides)
    assert got.run("wide", 0).adapter.rank == 2
    assert got.run("wide", 0).method.settings() == {"std_lr": 0.5}
    assert got.run("new", 0).method == MethodConfig(name="lora")


@pytest.mark.parametrize("order", [1, -1])
def test_a_method_s_override_is_kept_whether_its_name_comes_before_or_after(tmp_path: Path, order: int) -> None:
    overrides = ["method.name=reptile", "method.inner_lr=0.5"][::order]
    file = as_yaml(tmp_path, {**SMALL, "method": {"std_lr": 1.0}})
    got = load_config(RunConfig, file, overrides)
    assert got.method.name == "reptile"
    assert got.method.settings() == {"inner_lr": 0.5}, "and the file's settings were another method's"


# Merging


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"name": "a", "x": 1}, {"name": "b", "y": 2}, {"name": "b", "y": 2}),
        ({"name": "a", "x": 1}, {"name": "a", "y": 2}, {"name": "a", "x": 1, "y": 2}),
        ({"name": "a", "preset": "p", "x": 1}, {"x": 2}, {"name": "a", "preset": "p", "x": 2}),
        ({"name": "a", "preset": "p"}, {"name": "b"}, {"name": "b"}),
        ({"x": 1}, {"name": "abmll"}, {"name": "abmll", "x": 1}),  # abmll is what no name means
        ({"x": 1}, {"name": "lora"}, {"name": "lora"}),
    ],
)
def test_settings_of_another_method_s_name_are_dropped(base, over, merged) -> None:
    assert merge({"method": base}, {"method": over}) == {"method": merged}


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": {"c": 1}}, "l": [1]}, {"a": {"b": {"d": 2}}, "l": [2], "a2": {}}
    assert merge(base, over) == {"a": {"b": {"c": 1, "d": 2}}, "l": [2], "a2": {}}
    assert (base, over) == ({"a": {"b": {"c": 1}}, "l": [1]}, {"a": {"b": {"d": 2}}, "l": [2], "a2": {}})
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}


def test_a_run_of_a_comparison_is_the_base_with_the_system_the_name_and_the_seed() -> None:
    config = check(CompareConfig, COMPARE, "")
    base = {**SMALL, "adapter": {"alpha": 3.0}, "training": {"seed": 3}}
    expected = {
        "abmll": {**base, "method": {"name": "abmll", "std_lr": 1e-3}},
        "structured": {**base, "method": {"name": "structured", "inner_lr": 0.01}},
        "wide": {**base, "adapter": {"rank": 64, "alpha": 3.0}, "method": {"name": "abmll", "std_lr": 0.5}},
    }
    for name, values in expected.items():
        run = config.run(name, 3)
        assert type(run) is RunConfig
        assert run == RunConfig.model_validate({**values, "name": name})
    assert config == check(CompareConfig, COMPARE, ""), "the comparison itself is as it was"


def test_a_fault_in_a_system_names_the_system() -> None:
    config = check(CompareConfig, {**COMPARE, "systems": {"structured": {"adapter": {"rnak": 3}}}}, "")
    with pytest.raises(AbmllError, match=r"systems\.structured: adapter\.rnak is not a setting\. Did you mean rank"):
        config.run("structured", 0)


# Faults


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"modle": {}}, "modle is not a setting. Did you mean model?"),
        ({"likelihood": {"temprature": 1}}, "likelihood.temprature is not a setting. Did you mean temperature"),
        (
            {"tasks": {"unseen": {"source": "a", "nmaes": []}}},
            "tasks.unseen.nmaes is not a setting. Did you mean names?",
        ),
        ({"training": {"qqq": 1}}, "training.qqq is not a setting. Known here: iterations, meta_batch"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_the_known_ones(over: dict[str, Any], said: str) -> None:
    assert said in complaint({**SMALL, **over})


def test_every_fault_is_named_at_once_with_place_and_value() -> None:
    said = complaint(
        {
            "name": "../x",
            "adapter": {"rank": 0},
            "likelihood": {"kind": "clozed", "temperature": float("nan")},
            "training": {"seed": "many", "sede": 1},
            "adaptation": {"batch_size": 2.5},
        }
    ).splitlines()
    parts = [
        ("name", "../x"),
        ("model", "required"),
        ("adapter.rank", "found 0"),
        ("likelihood.kind", "found 'clozed'"),
        ("likelihood.temperature", "found nan"),
        ("training.seed", "found 'many'"),
        ("training.sede", "seed"),
        ("adaptation.batch_size", "found 2.5"),
    ]
    assert len(said) == len(parts)
    for line, (place, text) in zip(said, parts, strict=True):
        assert line.startswith(f"run.yaml: {place}")
        assert text in line


@pytest.mark.parametrize("model", [{}, {"source": "a", "shape": "b"}])
def test_a_model_has_a_source_or_a_shape(model: dict[str, str]) -> None:
    assert "give model.source" in complaint({"model": model})


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"reference": "other"}, "reference 'other' is none of the systems (abmll, structured, wide)"),
        ({"systems": {"structured": 3}}, "systems.structured"),
        ({"systems": {}}, "systems"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_a_comparison_needs_systems_seeds_and_a_reference_among_them(over: dict[str, Any], said: str) -> None:
    assert said in complaint({**COMPARE, **over}, CompareConfig)


@pytest.mark.parametrize(
    ("names", "reference"), [(("abmll", "pretrained"), "pretrained"), (("abmll", "structured"), "structured")]
)
def test_a_comparison_is_with_pretrained_unless_something_else_is_said(names: tuple[str, ...], reference: str) -> None:
    values = {**COMPARE, "systems": {name: {} for name in names}}
    values.pop("reference", None)
    assert check(CompareConfig, values, "").reference == reference
    assert check(CompareConfig, {**values, "reference": "abmll"}, "").reference == "abmll"


BAD_NAMES = [
    "CON",
    "nul",
    "Lpt1",
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/tmp/x",
    "a\\b",
    "a b",
    "a\0b",
    "a\n",
    "-x",
    "_x",
    "é",
    "²",
    "C:x",
    "x" * 81,
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "uniform", "label_frequency"])
def test_trust_43_a_system_s_name_cannot_leave_the_folder_or_be_a_baseline_s(name: str) -> None:
    said = complaint({**COMPARE, "reference": name, "systems": {name: {}}}, CompareConfig)
    assert f"{name!r} cannot name a system" in said


@pytest.mark.parametrize("name", [*BAD_NAMES[:-6], "-x", "_x", "é", "x" * 81, "aux.v2", "a."])
def test_trust_43_nor_can_a_run_s(name: str) -> None:
    assert re.match(r"run\.yaml: name: (String should|.*names? .*folder)", complaint({**SMALL, "name": name}))


@pytest.mark.parametrize("name", ["abmll-mean", "3", "A_b-C", "x" * 80])
def test_every_name_of_a_system_can_name_its_run(name: str) -> None:
    config = check(CompareConfig, {**COMPARE, "reference": name, "systems": {name: {}}}, "")
    assert config.run(name, 0).name == name


# Files that are no configuration


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
)
DAMAGED = {
    "unclosed": ("model: {shape: tiny", "not valid YAML .*line 1"),
    "tabs": ("model:\n\tshape: tiny", "not valid YAML .*line 2"),
    "NUL": ("model: \0", "not valid YAML"),
    "code": ("model: !!python/object/apply:os.system [id]", "not valid YAML .*python/object"),
    "key twice": ("model: {shape: a}\nnote: x\nmodel: {shape: b}", "line 3: 'model' is given twice, first in line 1"),
    "key twice inside": ("model: {shape: a, shape: b}", "'shape' is given twice"),
    "NUL written out": ('note: "a\\0b"', "line 1: NUL"),
    "half a character": ('note: "\\uD800"', "surrogate pair"),
    "no date": ("note: 2024-13-45", "not valid YAML"),
    "no bool": ("note: !!bool perhaps", "not valid YAML"),
    "no timestamp": ("note: !!timestamp soon", "not valid YAML"),
    "too many digits": ("note: " + "9" * 5000, "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 1", "not valid YAML"),
    "undefined alias": ("a: *b", "not valid YAML .*undefined alias"),
    "recursion bomb": ("a: " + "[" * 100_000, "not valid YAML"),
    "recursive value": ("name: &a [*a]", "more than 100000 values"),
    "recursive section": ("method: &a {x: *a}", "more than 100000 values"),
    "alias bomb": (BOMB + "name: *a11", "more than 100000 values"),
    "merge bomb": (MERGE_BOMB, "more than 100000 values"),
    "list": ("- model\n- method\n", "expected sections .*found list"),
    "text": ("model", "found str"),
    "empty": ("", "found NoneType"),
    "not a key": ("{model: {shape: tiny}, 3: 4}", "3"),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("text", "said"), DAMAGED.values(), ids=DAMAGED)
def test_trust_43_a_damaged_file_is_refused_in_one_short_message(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(AbmllError, match=said) as caught:
        load_config(RunConfig, path, ["training.seed=3"])
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


def test_aliases_that_are_no_bomb_are_welcome(tmp_path: Path) -> None:
    systems = "  structured: &s {adapter: &a {rank: 2}}\n  b: {<<: *s, note: x}\n  c: {adapter: *a}\n"
    text = f"model: {{shape: tiny}}\nsystems:\n{systems}"
    config = load_config(CompareConfig, write(tmp_path, text))
    assert [config.run(name, 0).adapter.rank for name in config.systems] == [2, 2, 2]


def test_a_file_that_is_missing_a_folder_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("note: Zürich".encode("latin-1"))
    for name, said in (("missing.yaml", "No such file"), (".", "directory"), ("latin.yaml", "not UTF-8 text")):
        with pytest.raises(AbmllError, match=said):
            load_config(RunConfig, tmp_path / name)


def test_a_long_wrong_value_is_shortened() -> None:
    said = complaint({**SMALL, "adapter": {"rank": "8" * 10_000}})
    assert len(said) < 500
    assert said.endswith("...")
