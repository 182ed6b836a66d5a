"""What the package must not contain: ways to run code out of data, and public names without a docstring."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from abmll.config import ModelConfig

SOURCE = Path(__file__).parents[2] / "src" / "abmll"
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN = {
    "pickle": r"\b(import|from)\s+(pickle|_pickle|cPickle|cloudpickle|dill|joblib|marshal|shelve)\b",
    "torch.load": r"\btorch\.load\b|\bweights_only\s*=\s*False",
    "numpy pickles": r"\ballow_pickle\s*=\s*True",
    "yaml.load": r"\byaml\.(load|unsafe_load|full_load|load_all)\s*\(",
    "eval and exec": r"(?<![\w.])(eval|exec|__import__)\s*\(",
    "shell": r"\bshell\s*=\s*True|\bos\.(system|popen)\s*\(",
    "extractall": r"\.extractall\s*\(",
    "remote code": r"\btrust_remote_code\s*(:\s*bool\s*)?=\s*True",
    "library that exits": r"(?<![\w.])(exit|quit)\s*\(",
}
ALLOWED: dict[tuple[str, str], str] = {}  # (file below src/abmll, what): why it is right there
SAMPLES = {
    "pickle": "import pickle",
    "torch.load": "state = torch.load(path)",
    "numpy pickles": "np.load(path, allow_pickle=True)",
    "yaml.load": "yaml.load(text)",
    "eval and exec": "x = eval(text)",
    "shell": "subprocess.run(command, shell=True)",
    "extractall": "archive.extractall(folder)",
    "remote code": "from_pretrained(name, trust_remote_code=True)",
    "library that exits": "    exit(1)",
}
HARMLESS = "model.eval()  yaml.safe_load(text)  trust_remote_code=trust  pickles  torch.loadable  atexit(x)"


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_trust_40_nothing_runs_code_out_of_data(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for what, pattern in FORBIDDEN.items():
            found = re.search(pattern, line) and (name_of(path), what) not in ALLOWED
            assert not found, f"{path}:{number}: {what}: {line.strip()}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_trust_40_the_gate_catches_what_it_is_for(what: str) -> None:
    assert re.search(FORBIDDEN[what], SAMPLES[what])
    assert not re.search(FORBIDDEN[what], HARMLESS)


def test_trust_46_csv_is_written_in_one_place_which_neutralises() -> None:
    writes = re.compile(r"\bcsv\.(writer|DictWriter)\b|\.to_csv\(|\bwrite_csv\b|\bsavetxt\b")
    every = [
        *FILES,
        *(SOURCE.parents[1] / "experiments").rglob("*.py"),
        *(SOURCE.parents[1] / "benchmarks").rglob("*.py"),
    ]
    assert [path for path in every if writes.search(path.read_text(encoding="utf-8"))] == [SOURCE / "tables/write.py"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.stat().st_size:
        assert ast.get_docstring(tree), f"{path}: no docstring"
    missing = [f"{path}:{node.lineno}: {node.name}" for node in public(tree) if not ast.get_docstring(node)]
    assert not missing, "no docstring: " + ", ".join(missing)


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes at module level; methods may lean on the docstring of what they implement.

    A family of built-in questions is reached by its name in the registry, which says what it asks.
    """
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node for node in named if not any(ast.unparse(d).startswith("family(") for d in node.decorator_list)]


def test_trust_40_the_torch_that_is_asked_for_is_past_the_holes_of_its_unpickler() -> None:
    """CVE-2025-32434 was mended in 2.6, CVE-2026-24747 in 2.10."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [r for r in project["dependencies"] if re.match(r"torch\b", r)]
    lowest = re.search(r">=\s*(\d+)\.(\d+)", torch)
    assert lowest is not None
    assert (int(lowest[1]), int(lowest[2])) >= (2, 10)


def test_trust_44_code_from_the_hub_is_off_wherever_it_can_be_said() -> None:
    assert ModelConfig.model_fields["trust_remote_code"].default is False
    defaults = [
        default
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name, default in _defaults(node)
        if name == "trust_remote_code"
    ]
    assert len(defaults) >= 2
    assert all(isinstance(default, ast.Constant) and default.value is False for default in defaults)


def _defaults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, ast.expr]]:
    """Names and defaults of a function's arguments, those without one left out."""
    given = node.args
    plain, keywords = given.posonlyargs + given.args, zip(given.kwonlyargs, given.kw_defaults, strict=True)
    pairs = [*zip(plain[len(plain) - len(given.defaults) :], given.defaults, strict=True), *keywords]
    return [(argument.arg, default) for argument, default in pairs if default is not None]
