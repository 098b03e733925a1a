"""Append what a benchmark measured to a file, as one JSON line that says how to get it again.

From Python, a benchmark is a function that takes a seed and a clock and returns a mapping::

    def run(seed, clock, **settings):
        with clock("fit"):
            ...
        return {"acc": 0.9}


    Recorder("name").record(run, seed=0)

From the command line, it is any command; a JSON object on the last line it prints is its result::

    python -m benchmarks.record NAME --seed 0 -- deepclust fit data.csv -k 10 --random-state 0
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks", "results")  # within a repository
REFUSED = 2  # exit code
PACKAGES = ("deepclust", "torch", "numpy", "scipy", "scikit-learn")


class NotReproducibleError(RuntimeError):
    """What would be measured is not what a commit holds."""


class Clock:
    """Seconds by phase: ``with clock("fit"): ...``; a phase entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the seconds of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that someone else has measured."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class Recorder:
    """Write the lines of one benchmark to ``benchmarks/results/<name>.jsonl``.

    The working tree is looked at once, here: Python has read most of the code by then, so this is
    the commit that the whole process runs. Make it before the long work starts.

    Parameters
    ----------
    name : str
        What the file is called.
    command : str, optional
        What a user types to get the same line; by default the command line of this process.
    repository : Path
        The git checkout that is being measured.

    Raises
    ------
    NotReproducibleError
        If the tree has changes that no commit holds (the result files themselves are let be), if it
        is not a git checkout, or if Python would import another copy of the package.
    """

    def __init__(self, name: str, *, command: str | None = None, repository: Path = ROOT) -> None:
        self.name = name
        self.command = command or _own_command()
        self.path = repository / RESULTS / f"{name}.jsonl"
        self.commit = clean_commit(repository)

    def record(
        self, run: Callable[..., Mapping[str, Any]], *, seed: int | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Call ``run(seed=seed, clock=clock, **settings)``; append and return its line.

        A run that raises leaves no line.
        """
        clock = Clock()
        cpu = time.process_time()
        with clock("total"):
            result = run(seed=seed, clock=clock, **settings)
        clock.add("cpu", time.process_time() - cpu)
        return self.append(result, seed=seed, seconds=clock.seconds, peak_memory_mb=peak_memory())

    def append(
        self,
        result: Mapping[str, Any],
        *,
        seed: int | None,
        seconds: Mapping[str, float],
        peak_memory_mb: float,
    ) -> dict[str, Any]:
        """Append the line of a run that has been measured already."""
        line = {
            "name": self.name,
            "command": self.command,
            "commit": self.commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "seed": seed,
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            "peak_memory_mb": round(peak_memory_mb, 1),
            "result": dict(result),
        }
        text = json.dumps(line, default=_plain)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        written: dict[str, Any] = json.loads(text)
        return written


def clean_commit(repository: Path = ROOT) -> str:
    """Return the full hash of HEAD, or raise if the files are not exactly that commit."""
    try:
        commit = _git(repository, "rev-parse", "--verify", "HEAD").strip()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise NotReproducibleError(
            f"{repository} is not a git checkout with a commit, so nothing can say which code ran; "
            "record from a clone."
        ) from error
    status = _git(
        repository,
        "status",
        "--porcelain=v1",
        "-z",
        "--no-renames",
        "--untracked-files=all",
        "--",
        ":(top)",
        f":(top,exclude,glob){RESULTS.as_posix()}/*.jsonl",
    )
    # Each entry is two letters of state, a space and the path.
    if paths := [entry[3:] for entry in status.split("\0") if entry]:
        raise NotReproducibleError(
            "the working tree differs from the last commit, so no commit holds the code that would "
            "be measured:\n"
            + "".join(f"  {path}\n" for path in paths)
            + "Commit these paths, or stash them (git stash --include-untracked), and run again."
        )
    source = repository / "src" / "deepclust"
    if source.is_dir():
        found = importlib.util.find_spec("deepclust")
        imported = Path(found.origin).parent if found and found.origin else None
        if imported is None or imported.resolve() != source.resolve():
            raise NotReproducibleError(
                f"deepclust is imported from {imported}, not from {source}, so the commit would "
                "not be that of the code that ran; install this checkout: pip install --editable ."
            )
    return commit


def machine() -> dict[str, Any]:
    """Say what the benchmark ran on."""
    import torch

    return {
        "processor": _processor(),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of what the numbers depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def peak_memory(who: int = resource.RUSAGE_SELF) -> float:
    """Largest resident memory of this process so far, in MB (2**20 bytes)."""
    peak = resource.getrusage(who).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def main(argv: Sequence[str] | None = None, *, repository: Path = ROOT) -> int:
    """Run a command and record its seconds, its peak memory and what it printed last."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.record",
        description="Run a command and append one JSON line about it to the results.",
        epilog="If the last line that the command prints is a JSON object, it is the result.",
    )
    parser.add_argument("name", help="the line goes to benchmarks/results/NAME.jsonl")
    parser.add_argument("--seed", type=int, help="the seed that the command was given")
    parser.add_argument("command", nargs="+", help="after --, the command and its arguments")
    args = parser.parse_args(argv)
    try:
        recorder = Recorder(args.name, command=shlex.join(args.command), repository=repository)
    except NotReproducibleError as error:
        return refuse(error)

    clock = Clock()
    last = ""
    with (
        clock("total"),
        subprocess.Popen(args.command, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        for text in process.stdout:
            print(text, end="", flush=True)
            last = text.strip() or last
    if process.returncode:
        print(f"not recorded: the command ended with {process.returncode}", file=sys.stderr)
        return process.returncode
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock.add("cpu", children.ru_utime + children.ru_stime)
    recorder.append(
        _json_object(last),
        seed=args.seed,
        seconds=clock.seconds,
        peak_memory_mb=peak_memory(resource.RUSAGE_CHILDREN),
    )
    return 0


def refuse(error: NotReproducibleError) -> int:
    """Say why nothing is recorded; the exit code to end with."""
    print(f"not recorded: {error}", file=sys.stderr)
    return REFUSED


def _git(repository: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repository), *arguments], check=True, capture_output=True, text=True
    ).stdout


def _own_command() -> str:
    """The command line of this process, as one would type it in the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere platform knows as much as anyone
    if cpuinfo.exists():
        for row in cpuinfo.read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a result of type {type(value).__name__} cannot be written as JSON: {value!r}")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
