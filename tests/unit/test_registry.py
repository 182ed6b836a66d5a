"""Registries: names from the library, from running code and from installed packages, each with one owner."""

import logging
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.registry import Registry
from tests.registries import install


def _check(name: str, thing: object) -> None:
    if not callable(thing):
        raise AbmllError(f"tool {name!r}: {thing!r} is no function")


def hammer() -> str:
    """Built in."""
    return "hammer"


def new_registry() -> Registry[object]:
    return Registry(
        "tool", "abmll.tests.tools", {"hammer": hammer}, check=_check, guide="The page", reserved=("anvil",)
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, for distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def bring(packages: Path, distribution: str, **values: str) -> None:
    install(packages, distribution, {"abmll.tests.tools": values})


def saw() -> str:
    """Registered by a test."""
    return "saw"


def test_what_is_registered_is_there_by_its_name() -> None:
    tools = new_registry()
    tools.register("saw", saw)
    assert list(tools) == ["hammer", "saw"]
    assert len(tools) == 2
    assert tools.lookup("saw") is tools["saw"] is saw
    assert "axe" not in tools
    with pytest.raises(KeyError):
        tools["axe"]


def test_an_unknown_name_is_refused_with_the_nearest_and_the_page_that_helps() -> None:
    tools = new_registry()
    tools.register("saw", saw)
    with pytest.raises(AbmllError, match=r"unknown tool 'hamer'. Did you mean 'hammer'\? Known: .*The page says how"):
        tools.lookup("hamer")


@pytest.mark.parametrize("name", ["", "Saw", "1saw", "my saw", "saw:1", "a/b", "x" * 65])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(AbmllError, match="is no name"):
        new_registry().register(name, saw)


@pytest.mark.parametrize("name", ["hammer", "anvil"])
def test_the_library_s_own_names_are_refused(name: str) -> None:
    with pytest.raises(AbmllError, match="is abmll's own"):
        new_registry().register(name, saw)


def test_a_name_has_one_owner_but_the_same_definition_may_come_again() -> None:
    tools = new_registry()
    tools.register("saw", saw)

    def other() -> None: ...

    with pytest.raises(AbmllError, match=r"tool 'saw' is that of .*test_registry:saw already"):
        tools.register("saw", other)

    def saw_of_a_cell_that_is_run_again() -> str:
        return "new"

    saw_of_a_cell_that_is_run_again.__module__, saw_of_a_cell_that_is_run_again.__qualname__ = saw.__module__, "saw"
    tools.register("saw", saw_of_a_cell_that_is_run_again)
    assert tools["saw"] is saw_of_a_cell_that_is_run_again


def test_what_is_not_of_the_kind_is_refused() -> None:
    with pytest.raises(AbmllError, match="7 is no function"):
        new_registry().register("saw", 7)


def test_a_package_is_imported_when_its_name_is_asked_for(packages: Path) -> None:
    (packages / "box_one.py").write_text("opened = []\ndef axe():\n    return 'axe'\n", encoding="utf-8")
    (packages / "box_two.py").write_text("raise RuntimeError('never asked for')\n", encoding="utf-8")
    bring(packages, "box-one", axe="box_one:axe")
    bring(packages, "box-two", file="box_two:file")
    tools = new_registry()
    assert tools.names() == ("hammer", "axe", "file")
    assert tools.lookup("axe")() == "axe"
    assert tools.lookup("hammer") is hammer


def test_a_package_that_fails_is_reported_once_and_breaks_nothing_else(
    packages: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (packages / "rusty.py").write_text("import a_library_that_is_not_there\n", encoding="utf-8")
    (packages / "odd.py").write_text("file = 7\n", encoding="utf-8")
    bring(packages, "rusty-box", axe="rusty:axe")
    bring(packages, "odd-box", file="odd:file")
    tools = new_registry()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert list(tools) == ["hammer"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "package rusty-box (rusty:axe) cannot be used (ModuleNotFoundError" in messages[0]
    assert "tool 'file': 7 is no function" in messages[1]
    with pytest.raises(AbmllError, match=r"rusty-box .*cannot be used .*a_library_that_is_not_there"):
        tools.lookup("axe")


def test_a_package_cannot_take_a_name_that_is_taken(packages: Path, caplog: pytest.LogCaptureFixture) -> None:
    (packages / "thief.py").write_text("def tool(): ...\n", encoding="utf-8")
    bring(packages, "thief", hammer="thief:tool", axe="thief:tool", Axe="thief:tool")
    bring(packages, "second-thief", axe="thief:tool")
    tools = new_registry()
    with caplog.at_level(logging.WARNING):
        assert tools.names() == ("hammer", "axe")
    assert [record.getMessage() for record in caplog.records] == [
        "tool 'Axe' of package thief (thief:tool) is no name (a letter of a-z first, then a-z, 0-9, - and _; 64 at "
        "most); it is left out",
        "tool 'hammer' of package thief (thief:tool) is abmll's own; it is left out",
    ]
    assert tools.lookup("hammer") is hammer
    with pytest.raises(AbmllError, match=r"package .*thief.* and package .*thief.*the name is taken twice"):
        tools.lookup("axe")


def test_running_code_cannot_take_a_package_s_name_but_the_package_itself_may_register_it(packages: Path) -> None:
    (packages / "selfish.py").write_text("def axe():\n    return 'axe'\n", encoding="utf-8")
    bring(packages, "selfish", axe="selfish:axe")
    tools = new_registry()
    with pytest.raises(AbmllError, match="tool 'axe' is that of package selfish"):
        tools.register("axe", saw)
    axe = tools.lookup("axe")
    tools.register("axe", axe)
    assert tools["axe"] is axe
