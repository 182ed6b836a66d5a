"""Recipes that come with the package, by name: `abmll compare quickstart` needs no file of one's own."""

import difflib
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package.

    >>> "quickstart" in recipe_names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def find_recipe(path: Path) -> Path:
    """The file that a user means: a path, or, if it is a name without folder and ending, the package's recipe.

    A file of that name goes before the package's recipe.

    >>> find_recipe(Path("quickstart")) == FOLDER / "quickstart.yaml", find_recipe(Path("mine.yaml"))
    (True, PosixPath('mine.yaml'))
    """
    is_name = str(path) in recipe_names() and not path.is_file()
    return FOLDER / f"{path}.yaml" if is_name else path


def nearest_recipes(path: Path) -> str:
    """What to say of a file that is not there: the recipes with a name like it, or, for a name alone, all of them."""
    near = difflib.get_close_matches(path.stem, recipe_names(), n=3, cutoff=0.6)
    if near:
        return f". Did you mean {' or '.join(repr(name) for name in near)}, which comes with abmll?"
    is_name = path.suffix == "" and path.parent == Path()
    return f". Recipes that come with abmll: {', '.join(recipe_names())}" if is_name else ""
