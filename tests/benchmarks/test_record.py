import json
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import record
from benchmarks.record import Clock, NotReproducibleError, Recorder, clean_commit


def git(repository, *arguments):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    completed = subprocess.run(
        ["git", "-C", repository, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return completed.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A checkout with one commit of one file, and a rule that ignores logs."""
    path = tmp_path / "checkout"
    path.mkdir()
    git(path, "init", "--quiet")
    (path / "code.py").write_text("answer = 42\n")
    (path / ".gitignore").write_text("*.log\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "--message", "first")
    return path


def lines(recorder):
    return [json.loads(text) for text in recorder.path.read_text().splitlines()]


def test_clean_commit_is_head(repository):
    assert clean_commit(repository) == git(repository, "rev-parse", "HEAD")
    assert len(clean_commit(repository)) == 40


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("code.py", lambda repository: (repository / "code.py").write_text("answer = 43\n")),
        ("code.py", lambda repository: (repository / "code.py").unlink()),
        ("moved.py", lambda repository: git(repository, "mv", "code.py", "moved.py")),
        ("new file.py", lambda repository: (repository / "new file.py").touch()),
        ("größe.py", lambda repository: (repository / "größe.py").touch()),
        (
            "benchmarks/results/notes.md",
            lambda repository: written(repository / "benchmarks/results/notes.md"),
        ),
        ("deep/results.jsonl", lambda repository: written(repository / "deep/results.jsonl")),
    ],
    ids=["changed", "deleted", "staged", "untracked", "not ascii", "not a result", "elsewhere"],
)
def test_dirty_tree_is_refused(repository, path, make):
    make(repository)
    with pytest.raises(NotReproducibleError) as caught:
        Recorder("speed", repository=repository)
    assert f"  {path}\n" in str(caught.value)
    assert "Commit these paths" in str(caught.value)
    assert not (repository / "benchmarks/results/speed.jsonl").exists()


def written(path):
    path.parent.mkdir(parents=True)
    path.touch()


def test_ignored_files_and_results_are_let_be(repository):
    (repository / "run.log").touch()
    for seed in range(2):  # the second finds the file that the first has written
        Recorder("speed", repository=repository).record(lambda seed, clock: {}, seed=seed)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "results")
    recorder = Recorder("speed", repository=repository)  # finds it tracked, then changes it
    recorder.record(lambda seed, clock: {}, seed=2)
    Recorder("speed", repository=repository).record(lambda seed, clock: {}, seed=3)

    assert [line["seed"] for line in lines(recorder)] == [0, 1, 2, 3]
    assert len({line["commit"] for line in lines(recorder)}) == 2


def test_tree_is_looked_at_before_the_run(repository):
    recorder = Recorder("speed", repository=repository)
    head = git(repository, "rev-parse", "HEAD")

    def run(seed, clock):
        (repository / "code.py").write_text("answer = 43\n")
        return {}

    assert recorder.record(run, seed=0)["commit"] == head


def test_no_checkout_is_refused(tmp_path):
    with pytest.raises(NotReproducibleError, match="not a git checkout"):
        Recorder("speed", repository=tmp_path)


def test_no_commit_is_refused(tmp_path):
    git(tmp_path, "init", "--quiet")
    with pytest.raises(NotReproducibleError, match="with a commit"):
        Recorder("speed", repository=tmp_path)


def test_another_copy_of_the_package_is_refused(repository):
    written(repository / "src/deepclust/__init__.py")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "package")
    with pytest.raises(NotReproducibleError, match="pip install --editable"):
        clean_commit(repository)


def test_line_says_how_to_get_it_again(repository):
    def run(seed, clock, sleep):
        with clock("nap"):
            time.sleep(sleep)
        clock.add("elsewhere", 2.5)
        return {"acc": np.float32(0.5), "changed": np.array([1, 0]), "scores": {"dec": {"acc": 1}}}

    recorder = Recorder("speed", command="python -m this --seeds 7", repository=repository)
    before = datetime.now(UTC).replace(microsecond=0)
    returned = recorder.record(run, seed=7, sleep=0.02)
    [line] = lines(recorder)

    assert line == returned
    assert recorder.path == repository / "benchmarks/results/speed.jsonl"
    assert list(line) == [
        "name",
        "command",
        "commit",
        "date",
        "machine",
        "versions",
        "seed",
        "seconds",
        "peak_memory_mb",
        "result",
    ]
    assert line["name"] == "speed"
    assert line["command"] == "python -m this --seeds 7"
    assert line["commit"] == git(repository, "rev-parse", "HEAD")
    assert before <= datetime.fromisoformat(line["date"]) <= datetime.now(UTC)
    assert line["date"].endswith("+00:00")
    assert line["seed"] == 7
    assert line["result"] == {"acc": 0.5, "changed": [1, 0], "scores": {"dec": {"acc": 1}}}
    assert list(line["seconds"]) == ["nap", "elsewhere", "total", "cpu"]
    assert 0.02 <= line["seconds"]["nap"] <= line["seconds"]["total"]
    assert line["seconds"]["elsewhere"] == 2.5
    assert line["machine"]["cores"] >= 1
    assert line["machine"]["memory_gb"] > 0
    assert set(line["machine"]) == {"processor", "cores", "memory_gb", "os", "gpu"}
    assert line["machine"]["processor"]
    assert line["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert line["versions"]["numpy"] == np.__version__
    assert set(line["versions"]) == {
        "python",
        "deepclust",
        "torch",
        "numpy",
        "scipy",
        "scikit-learn",
    }


def test_a_run_that_fails_leaves_no_line(repository):
    recorder = Recorder("speed", repository=repository)
    with pytest.raises(ZeroDivisionError):
        recorder.record(lambda seed, clock: {"acc": 1 / 0}, seed=0)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        recorder.record(lambda seed, clock: {"acc": object()}, seed=0)
    assert not recorder.path.exists()


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_megabytes(monkeypatch, system, unit):
    usage = SimpleNamespace(ru_maxrss=300 * 2**20 // unit)  # KiB on Linux, bytes on macOS
    monkeypatch.setattr(record.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", system)
    assert record.peak_memory() == 300


def test_clock_adds_up():
    clock = Clock()
    clock.add("fit", 1.0)
    clock.add("fit", 2.0)
    assert clock.seconds == {"fit": 3.0}


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("benchmarks.speed", "python -m benchmarks.speed --name 'two words'"),
        ("benchmarks.__main__", "python -m benchmarks --name 'two words'"),
        (None, "python speed.py --name 'two words'"),
    ],
)
def test_command_is_this_process_by_default(repository, monkeypatch, module, command):
    spec = SimpleNamespace(name=module) if module else None
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", ["speed.py", "--name", "two words"])
    assert Recorder("speed", repository=repository).command == command


def test_command_is_run_and_recorded(repository, capfd):
    script = """print("working"); print('{"acc": 0.25}')"""
    arguments = ["toy", "--seed", "3", "--", sys.executable, "-c", script]
    assert record.main(arguments, repository=repository) == 0
    line = json.loads((repository / "benchmarks/results/toy.jsonl").read_text())
    assert shlex.split(line["command"]) == [sys.executable, "-c", script]
    assert line["result"] == {"acc": 0.25}
    assert line["seed"] == 3
    assert list(line["seconds"]) == ["total", "cpu"]
    assert line["seconds"]["total"] > 0
    assert line["peak_memory_mb"] > 1
    assert "working" in capfd.readouterr().out


def test_command_without_a_result_is_recorded(repository):
    arguments = ["toy", "--", sys.executable, "-c", "print('done')"]
    assert record.main(arguments, repository=repository) == 0
    line = json.loads((repository / "benchmarks/results/toy.jsonl").read_text())
    assert line["result"] == {}


def test_command_that_fails_is_not_recorded(repository, capfd):
    arguments = ["toy", "--", sys.executable, "-c", "raise SystemExit(5)"]
    assert record.main(arguments, repository=repository) == 5
    assert not (repository / "benchmarks").exists()
    assert "not recorded" in capfd.readouterr().err


def test_command_line_refuses_a_dirty_tree_with_exit_code_2(repository, capfd):
    (repository / "code.py").write_text("answer = 43\n")
    arguments = ["toy", "--", sys.executable, "-c", "print('ran')"]
    assert record.main(arguments, repository=repository) == 2
    printed = capfd.readouterr()
    assert "code.py" in printed.err
    assert "ran" not in printed.out
