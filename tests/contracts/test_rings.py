"""Imports go one way: each ring knows the rings inside it, and not its neighbours."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "abmll"
RINGS = (
    {
        *("errors", "deprecation", "files", "registry", "question", "tensors", "hub", "config", "kernels", "process"),
        *("metrics", "calibrators"),
    },
    {"adapters", "tables", "prompts", "scoring", "text_classifiers"},
    {"tasks", "likelihood", "methods", "models"},
    {"training"},
    {"systems"},
    {"runs", "diagnosis"},
    {"everyday", "report", "exporting", "testing"},
    {"classifier", "lm_eval", "publishing", "showing", "watching"},
    {"serving"},
    {"cli", "__init__"},
    {"__main__"},
)
RING_OF = {room: number for number, rooms in enumerate(RINGS) for room in rooms}
FOR_ALL = {"errors", "deprecation", "files", "registry"}
BESIDE = {("calibrators", "metrics")}
"""The one room that knows a neighbour, and which."""
WORK = ("abmll.cli.work.", "abmll.everyday.", "abmll.watching", "abmll.publishing", "abmll.serving.", "abmll.showing.")
"""What a command does: its own work, or, where there is nothing to print, what Python calls too."""
EXTRA, DEFERRED = "# optional extra", "# after the arguments"
"""What a line says that imports below module level: an optional package; the work of a command."""
READS_CONFIG = {"config", "cli", "__init__"}.union(*RINGS[4:9]) - {"report", "exporting"}
FILES = sorted(SOURCE.rglob("*.py"))


def imported(node: ast.AST) -> set[str]:
    """The rooms of abmll that an import statement reaches into."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("abmll.")}


def may_import(room: str, other: str) -> bool:
    """Is `other` further in, or for everybody, or the room itself?"""
    if other == "config" and room not in READS_CONFIG:
        return False
    return other == room or other in FOR_ALL - {room} or (room, other) in BESIDE or RING_OF[other] < RING_OF[room]


def _is_for_types(block: ast.AST) -> bool:
    return isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_go_inwards_and_stand_at_the_top(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert room in RING_OF, f"{room}: a new room needs a ring"
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    for_types = [node for block in tree.body if _is_for_types(block) for node in block.body]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        wrong = sorted(other for other in imported(node) if not may_import(room, other))
        assert not wrong, f"line {node.lineno}: {room} imports {', '.join(wrong)}"
        if node not in tree.body + for_types:
            line = lines[node.lineno - 1]
            assert EXTRA in line or is_deferred_work(path, node, line), f"line {node.lineno}: {line.strip()}"


def is_deferred_work(path: Path, node: ast.Import | ast.ImportFrom, line: str) -> bool:
    """A command imports its work, which may import models and kernels, once its arguments are checked: nothing else."""
    names = {node.module} if isinstance(node, ast.ImportFrom) else {alias.name for alias in node.names}
    of_work = all(str(name).startswith(WORK) for name in names)
    return path.parent == SOURCE / "cli" / "verbs" and of_work and line.endswith(DEFERRED)


def test_a_command_alone_defers_and_its_work_alone_is_deferred() -> None:
    verb, other = SOURCE / "cli" / "verbs" / "adapt.py", SOURCE / "cli" / "work" / "adapt.py"
    work, model = (ast.parse(f"from abmll.{name} import x").body[0] for name in ("cli.work.adapt", "models.load"))
    assert isinstance(work, ast.ImportFrom)
    assert isinstance(model, ast.ImportFrom)
    read = ast.parse("from abmll.everyday.labelled import x").body[0]
    assert isinstance(read, ast.ImportFrom)
    assert is_deferred_work(verb, work, f"    import {DEFERRED}")
    assert is_deferred_work(verb, read, f"    import {DEFERRED}")
    assert not is_deferred_work(verb, work, "    import")
    assert not is_deferred_work(verb, model, f"    import {DEFERRED}")
    assert not is_deferred_work(other, work, f"    import {DEFERRED}")


def test_the_rule_itself() -> None:
    assert may_import("training", "methods")
    assert may_import("systems", "config")
    assert may_import("metrics", "errors")
    assert may_import("calibrators", "metrics")
    assert not may_import("metrics", "calibrators")
    for room, other in (("metrics", "tasks"), ("methods", "models"), ("tasks", "training"), ("report", "config")):
        assert not may_import(room, other)
    assert may_import("files", "errors")
    assert imported(ast.parse("from abmll import config, cli").body[0]) == {"config", "cli"}
    assert imported(ast.parse("import abmll.report.page").body[0]) == {"report"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Inside rooms too, where the rings say nothing. Imports for type checkers alone make no cycle."""
    name_of = {path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in FILES}
    modules = {name.removesuffix(".__init__"): path for path, name in name_of.items()}
    graph = {name: imported_modules(path, set(modules)) - {name} for name, path in modules.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


def test_a_plan_reaches_no_report() -> None:
    """--dry-run waits for models, whose parameters it counts, and not for figures."""
    name_of = {path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in FILES}
    modules = {name.removesuffix(".__init__"): path for path, name in name_of.items()}
    seen, left = set(), ["abmll.cli.work.plan"]
    while left:
        if (name := left.pop()) not in seen:
            seen.add(name)
            left += imported_modules(modules[name], set(modules))
    assert "abmll.models.load" in seen, "this test sees nothing"
    assert not {name for name in seen if name.startswith("abmll.report")}


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """The modules of abmll that a file imports when it is imported."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else str(node.module)
                for alias in node.names
            }
    return names & modules


def test_a_cycle_would_be_seen() -> None:
    with pytest.raises(CycleError, match="'a', 'b', 'a'"):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
