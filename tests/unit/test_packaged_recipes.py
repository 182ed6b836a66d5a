"""Recipes by name: those of the package, without a checkout."""

import tomllib
from pathlib import Path

import pytest

from abmll.config import CompareConfig, load_config
from abmll.config.recipes import find_recipe, recipe_names
from abmll.errors import AbmllError
from tests.commands import exit_code

ROOT = Path(__file__).parents[2]


def test_a_name_is_the_recipe_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder is no recipe
    assert load_config(CompareConfig, Path("quickstart"), ["seeds=[3]"]).seeds == (3,)
    (tmp_path / "six-systems").write_text(
        "name: mine\nmodel: {shape: tiny-llama}\nsystems: {abmll: {method: {name: abmll}}}\nreference: abmll\n"
    )
    assert load_config(CompareConfig, Path("six-systems")).name == "mine", "a file of one's own goes first"
    for path in ("quickstart.yaml", "here/quickstart"):
        assert find_recipe(Path(path)) == Path(path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "quickstrat",
            "quickstrat: cannot be read (No such file or directory). Did you mean 'quickstart', which comes",
        ),
        ("recipes/quickstart.yaml", "Did you mean 'quickstart', which comes with abmll?"),
        ("zzz", f"Recipes that come with abmll: {', '.join(recipe_names())}"),
        ("zzz.yaml", "zzz.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_a_misspelt_one_is_told_with_the_nearest(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AbmllError) as raised:
        load_config(CompareConfig, Path(path))
    assert said in str(raised.value)
    assert path != "zzz.yaml" or str(raised.value) == said


def test_every_file_beside_the_code_travels_in_the_package() -> None:
    """A file that no pattern of pyproject.toml takes is in a checkout and in nobody's installation."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["abmll"]
    package = ROOT / "src" / "abmll"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    beside = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert beside - packed == set()
    assert {package / "recipes" / f"{name}.yaml" for name in recipe_names()} <= packed


def test_the_quickstart_is_planned_by_name_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("compare quickstart --dry-run model.source=null model.shape=tiny-llama", monkeypatch) == 0
    assert "name: quickstart" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
