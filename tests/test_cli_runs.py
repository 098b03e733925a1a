"""Run folders and files appear whole or not at all."""

import io
import os
from pathlib import Path

import pytest

from deepclust.cli.runs import new_file, new_folder, positions_of, ranges_of, write_labels


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_run(folder, text="{}"):
    Path(folder, "run.json").write_text(text)


def test_new_folder():
    with new_folder(Path("a/b/run")) as staging:
        assert staging.is_dir()
        assert not Path("a/b/run").exists()
        write_run(staging)
    assert os.listdir("a/b") == ["run"]
    assert os.listdir("a/b/run") == ["run.json"]


def test_empty_folder_is_taken():
    Path("run").mkdir()
    with new_folder(Path("run")) as staging:
        write_run(staging)
    assert os.listdir("run") == ["run.json"]
    assert os.listdir() == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(error):
    def fails():
        with new_folder(Path("a/b/run")) as staging:
            write_run(staging)
            raise error

    with pytest.raises(error):
        fails()
    assert os.listdir() == []
    Path("a").mkdir()
    with pytest.raises(error):
        fails()
    assert os.listdir("a") == []


def test_force_replaces_a_run():
    Path("run").mkdir()
    write_run("run", "old")
    with pytest.raises(FileExistsError, match="is not empty"), new_folder(Path("run")):
        pass
    with pytest.raises(ValueError, match="no"), new_folder(Path("run"), force=True):
        raise ValueError("no")
    assert Path("run/run.json").read_text() == "old"
    with new_folder(Path("run"), force=True) as staging:
        write_run(staging, "new")
        assert Path("run/run.json").read_text() == "old"
    assert Path("run/run.json").read_text() == "new"
    assert os.listdir() == ["run"]


def test_old_run_comes_back_if_the_new_one_cannot_take_its_place(monkeypatch):
    Path("run").mkdir()
    write_run("run", "old")
    rename = Path.rename

    def fails(self, target):
        if self.name == "new":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(PermissionError), new_folder(Path("run"), force=True) as staging:
        write_run(staging, "new")
    assert Path("run/run.json").read_text() == "old"
    assert os.listdir() == ["run"]


def test_force_replaces_nothing_else():
    Path("run").mkdir()
    Path("run/labels.csv").write_text("mine")
    with (
        pytest.raises(FileExistsError, match="holds no run, so --force will not"),
        new_folder(Path("run"), force=True),
    ):
        pass
    write_run("run")
    Path("run/notes.txt").write_text("mine")
    with (
        pytest.raises(FileExistsError, match=r"holds notes.txt, which is no part of a run"),
        new_folder(Path("run"), force=True),
    ):
        pass
    assert Path("run/notes.txt").read_text() == "mine"


def test_what_appears_meanwhile_stays():
    def meanwhile():
        with new_folder(Path("run")) as staging:
            write_run(staging)
            Path("run").mkdir()
            Path("run/notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="not empty"):
        meanwhile()
    assert os.listdir("run") == ["notes.txt"]


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_current_folder_is_refused(folder):
    with pytest.raises(ValueError, match="is where you are"), new_folder(Path(folder)):
        pass


def test_places_that_cannot_be():
    Path("file").touch()
    with pytest.raises(FileExistsError, match="is a file"), new_folder(Path("file"), force=True):
        pass
    with (
        pytest.raises(OSError, match=r"file/run cannot be created: "),
        new_folder(Path("file/run")),
    ):
        pass


def test_link_to_a_folder_stays_a_link():
    Path("real").mkdir()
    Path("link").symlink_to("real")
    with new_folder(Path("link")) as staging:
        write_run(staging)
    assert Path("link").is_symlink()
    assert os.listdir("real") == ["run.json"]


def test_new_file():
    with new_file(Path("x.csv")) as staging:
        staging.write_text("x")
        assert not Path("x.csv").exists()
    with pytest.raises(FileExistsError), new_file(Path("x.csv")):
        pass

    def interrupted():
        with new_file(Path("x.csv"), force=True) as staging:
            staging.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Path("x.csv").read_text() == "x"
    assert os.listdir() == ["x.csv"]
    Path("folder").mkdir()
    for path in ("folder", "nowhere/x.csv"):
        with pytest.raises(OSError, match=r"folder|nowhere"), new_file(Path(path), force=True):
            pass


def test_labels():
    out = io.StringIO()
    write_labels(out, [2, 0], [0.5, 1])
    assert out.getvalue() == "row,label,confidence\n0,2,0.500000\n1,0,1.000000\n"
    out = io.StringIO()
    write_labels(out, [2], [0.12345678], ids=["a, b"])
    assert out.getvalue() == 'row,label,confidence\n"a, b",2,0.123457\n'


@pytest.mark.parametrize("positions", [[0], [0, 1, 2], [5, 3, 4], [9, 8, 7], [0, 2, 3, 5]])
def test_ranges_and_back(positions):
    assert positions_of(ranges_of(positions)) == positions
