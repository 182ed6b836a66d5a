"""Folders that are there whole or not at all, and names that cannot leave theirs."""

import os
import shutil
import time
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.files import check_name, folder_beside, recover, whole


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "folder"
    with folder_beside(place) as beside:
        (beside / "a").write_text("1")
        (beside / "sub").mkdir()
        assert not place.exists()
        assert beside.parent == place.parent
    assert (place / "a").read_text() == "1"
    assert [p.name for p in place.parent.iterdir()] == ["folder"]
    assert place.stat().st_mode & 0o777 == 0o777 & ~whole._umask()


def test_another_one_replaces_it_whole(tmp_path: Path) -> None:
    for number in ("1", "2"):
        with folder_beside(tmp_path / "f") as beside:
            (beside / number).write_text(number)
    assert contents(tmp_path / "f") == {"2": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "f") as beside:
        (beside / "a").write_text("old")

    def stopped() -> None:
        with folder_beside(tmp_path / "f") as beside:
            (beside / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert contents(tmp_path / "f") == {"a": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("stopped_at", [0, 1])
def test_trust_07_a_kill_between_the_two_renames_loses_nothing(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends (nothing more is cleaned up) before the first or the second rename of a replacement."""
    with folder_beside(tmp_path / "f") as beside:
        (beside / "a").write_text("old")
    renames = []

    class Killed(BaseException):
        """Nothing catches it, and what would clean up is gone too."""

    def rename(self: Path, target: Path) -> Path:
        if len(renames) >= stopped_at:
            raise Killed
        renames.append(target)
        return self.replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(Killed), folder_beside(tmp_path / "f") as beside:
            (beside / "a").write_text("new")
    assert (tmp_path / "f").exists() == (stopped_at == 0)
    recover(tmp_path / "f")
    assert contents(tmp_path / "f") == {"a": "old"}
    with folder_beside(tmp_path / "f") as beside:
        (beside / "a").write_text("newer")
    assert contents(tmp_path / "f") == {"a": "newer"}


def test_half_written_folders_of_yesterday_are_removed_and_those_of_today_are_not(tmp_path: Path) -> None:
    for name in (".f.old-one.abmll-part", ".f.new-one.abmll-part", ".other.x.abmll-part"):
        (tmp_path / name).mkdir()
        age = 0 if "new" in name else 2 * whole.ABANDONED
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with folder_beside(tmp_path / "f"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"f", ".f.new-one.abmll-part", ".other.x.abmll-part"}


def test_tidying_takes_nothing_of_anybody_else(tmp_path: Path) -> None:
    """`abmll train RECIPE -o .`: a project has hidden folders of its own, some of them called old."""
    theirs = (".venv.old", "deep/.config.old", ".git.x.part")
    for name in theirs:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "kept").write_text("")
    (tmp_path / ".f.x.abmll-part").mkdir()
    assert whole.tidy(tmp_path) == [tmp_path / ".f.x.abmll-part"]
    assert all((tmp_path / name / "kept").exists() for name in theirs)


def test_trust_08_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"), folder_beside(tmp_path / "file" / "f"):
        pass


GOOD = ("a", "A-b_c.d", "0", "x" * 80, "console", "com10", "nul-1", "v1.2")
BAD = (
    *("", ".", "..", "../x", "a/b", "a\\b", "/abs", "C:x", "C:\\x", ".hidden", "-x", "a b", "x" * 81, "a\0", "a\n"),
    *(
        "a.",
        "con",
        "CON",
        "nul",
        "NUL.txt",
        "aux.tar.gz",
        "com1",
        "LPT9",
        "com1.x",
        "é",
        "‮x",
        "a:b",
        "~",
        "$HOME",
        "a*",
    ),
)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name(name: str) -> None:
    assert check_name("task", name) == name


@pytest.mark.parametrize("name", BAD)
def test_trust_43_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(AbmllError, match="task name"):
        check_name("task", name)
