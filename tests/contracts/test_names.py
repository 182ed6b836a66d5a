"""What documents, recipes and messages name exists: settings (`section.key`), commands, options, files, headings."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from abmll.cli import COMMANDS, app
from abmll.config import CompareConfig, MethodConfig, PosteriorConfig, RunConfig, TaskSource
from abmll.errors import AbmllError
from abmll.methods import METHODS
from abmll.methods.base import Method, Terms
from abmll.scoring.registered import METRICS
from abmll.systems.posteriors.settings import SETTINGS
from abmll.tasks.registered import SOURCES as SOURCE_REGISTRY

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "docs/*.ipynb", "benchmarks/*.md", "experiments/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("tables.md", "questions.md") and path.parent != ROOT / "tests/mutation/results"
)
RECIPES = sorted(ROOT.glob("src/abmll/recipes/*.yaml"))
SOURCES = sorted((ROOT / "src/abmll").rglob("*.py"))

SECTIONS = {
    name: field.annotation
    for config in (RunConfig, CompareConfig)
    for name, field in config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
METHOD = {key for method in METHODS.values() for key in method.settings_class.model_fields} | set(
    MethodConfig.model_fields
)
POSTERIOR = {key for settings in SETTINGS.values() for key in settings.model_fields} | set(PosteriorConfig.model_fields)
ROLES = ("train", "validation", "unseen")
SETTING = re.compile(rf"(?<![\w./-])({'|'.join(SECTIONS)})\.([a-z_]\w*)((?:\.[a-z_]\w*)*)(?![\w(])")
FILES = ("md", "json", "jsonl", "safetensors", "gguf", "yaml")
NO_SETTING = {
    "model.layers",  # of a transformers model's parameters
    "likelihood.log_temperature",  # a tensor of a checkpoint
    "adaptation.key",  # stands for any
}
"""What looks like a setting and is something else."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = {
    *("--no-deps", "--nproc-per-node", "--help", "--logdir"),  # pip, torchrun, everybody, TensorBoard
    *("--always", "--dirty", "--exclude"),  # git
    *("--enable-lora", "--lora-modules", "--max-lora-rank", "--lora", "--base", "--outfile", "--outtype"),  # servers
    *("--model", "--model_args", "--tasks", "--batch_size", "--apply"),  # lm-eval (--apply_chat_template)
}
"""Options of other programs that documents name."""
PATH = re.compile(r"(?<![\w/.-])((?:src|tests|docs|benchmarks|experiments|\.ci)/[\w./*-]*[\w*])")
GROUPS = {METHODS.group, SOURCE_REGISTRY.group, METRICS.group}
"""Groups of entry points, which look like names of code."""


def known(section: str, key: str, rest: str) -> bool:
    """Whether `section.key` is a setting, as `abmll train section.key=value` takes it, or the beginning of several."""
    if section == "method":
        if key.endswith("_"):
            return any(name.startswith(key) for name in METHOD)
        return key in FILES or (key in METHOD and not rest)
    if section == "posterior":
        return key in FILES or (key in POSTERIOR and not rest)
    if section == "tasks" and key in ROLES:
        return not rest or rest[1:] in TaskSource.model_fields
    return key in FILES or (key in SECTIONS[section].model_fields and not rest)


def commands() -> dict[str, Any]:
    """`adapt`, `tasks list`, ... -> the command."""
    calls: dict[str, Any] = {}
    for name in COMMANDS:
        command = get_command(import_module(f"abmll.cli.verbs.{name}").app)
        calls[name] = command
        calls |= {f"{name} {sub}": one for sub, one in getattr(command, "commands", {}).items()}
    return calls


CALLS = commands()
OPTIONS = {name: {o for p in call.params for o in (*p.opts, *p.secondary_opts)} for name, call in CALLS.items()}
OWN = {o for p in get_command(app).params for o in p.opts}
"""Options of `abmll` before any command."""
CALL = re.compile(r"(?<![\w/.-])abmll ((?:tasks (?:[a-z]+))|[a-z]+)\b([^`\n|]*)")


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of what is said to a reader: a document without its Python; a recipe; strings of code."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value
        return
    text = re.sub(r"```python\n.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from enumerate(text.splitlines(), start=1)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES, *SOURCES], ids=name_of)
def test_settings_that_are_named_exist(path: Path) -> None:
    wrong = [
        f"{name_of(path)}:{number}: {match[0]}"
        for number, text in words_of(path)
        for match in SETTING.finditer(text)
        if not known(*match.groups()) and match[0] not in NO_SETTING
    ]
    assert not wrong


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES, *SOURCES], ids=name_of)
def test_commands_and_options_that_are_named_exist(path: Path) -> None:
    wrong = []
    every = set().union(*OPTIONS.values()) | OWN | OTHERS | harness_options(path)
    for number, text in words_of(path):
        where = f"{name_of(path)}:{number}"
        coded = re.findall(r"`([^`]+)`", text) + ([text] if text.startswith("    ") else [])
        for match in (call for part in coded for call in CALL.finditer(part)):
            verb = match[1] if match[1] in CALLS else match[1].split()[0]
            if verb not in CALLS:
                wrong.append(f"{where}: abmll {match[1]}")
                continue
            options = OPTIONS[verb] | {"--help"}
            wrong += [f"{where}: abmll {verb} {o}" for o in OPTION.findall(match[2]) if o not in options]
        wrong += [f"{where}: {option}" for option in OPTION.findall(text) if option not in every]
    assert not wrong


def harness_options(path: Path) -> set[str]:
    """Options of the scripts beside a document, beside a file that it names, and of programs that it names."""
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
    folders = {path.parent, *(ROOT / name.replace(".", "/") for name in re.findall(r"python -m ([a-z_.]+)", text))}
    folders |= {(ROOT / name).parent for name in PATH.findall(text)}
    scripts = [
        script for folder in folders for script in (*folder.glob("*.py"), folder.with_suffix(".py")) if script.is_file()
    ]
    if path.suffix == ".py" and "experiments" not in path.parts:
        return set()
    return {option for script in scripts for option in OPTION.findall(script.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_linked_exist(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)(?:#[\w-]+)?\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_headings_that_are_linked_exist(path: Path) -> None:
    wrong = []
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([\w-]+)\)", path.read_text(encoding="utf-8")):
        target = path.parent / link if link else path
        heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}
        wrong += [] if anchor in slugs else [f"{link}#{anchor}"]
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_paths_that_are_named_exist(path: Path) -> None:
    named = set(PATH.findall(path.read_text(encoding="utf-8")))
    assert not sorted(p for p in named if not any(ROOT.glob(p.rstrip("."))) and "SYSTEM" not in p)


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=name_of)
def test_nobody_is_sent_to_an_index_that_does_not_have_us(path: Path) -> None:
    assert not re.findall(r"pip install [^\n`]*\babmll\b", path.read_text(encoding="utf-8"))


DOTTED = re.compile(r"`(abmll(?:\.\w+)+)[`(\[]")


@pytest.mark.filterwarnings(
    "ignore:.*the old name works for one minor version:DeprecationWarning"
)  # CHANGELOG has both
@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_names_of_our_code_exist(path: Path) -> None:
    names = DOTTED.findall(path.read_text(encoding="utf-8"))
    assert not [n for n in names if n.split(".")[-1] not in FILES and n not in GROUPS and not _exists(n)]


def _exists(name: str) -> bool:
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            owner: object = import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        except AbmllError:  # an optional extra is not installed
            return True
        for part in parts[depth:]:
            fields = getattr(owner, "model_fields", {})
            if part not in fields and not hasattr(owner, part):
                return False
            owner = fields.get(part) or getattr(owner, part)
        return True
    return False


def test_the_page_on_methods_says_what_the_base_class_has() -> None:
    """docs/add-a-method.md: each member of its table, with its parameters, and the fields of `Terms`."""
    text = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
    members = re.findall(r"^\| `(\w+)\(([\w, ]*)\)` \|", text, re.MULTILINE)
    assert len(members) == 5
    for name, parameters in members:
        actual = list(inspect.signature(getattr(Method, name)).parameters)[1:]
        assert [p for p in parameters.split(", ") if p] == actual, name
    assert re.findall(r"`Terms\(([\w, ]+)\)`", text) == [", ".join(Terms._fields)]
    attributes = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert len(attributes) >= 6
    for name, default in attributes:
        value = getattr(Method, name)
        assert default == (value.__name__ if isinstance(value, type) else repr(value).replace("'", '"')), name
