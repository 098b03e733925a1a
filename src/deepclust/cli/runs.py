"""The run folder: what ``fit`` writes, and all that the other commands read.

A folder appears whole or not at all: it is written under another name beside its place, and renamed
when it is complete.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .sources import Values, check_exists
from .tables import Like

__all__ = [
    "FORMAT_VERSION",
    "Run",
    "new_file",
    "new_folder",
    "read",
    "read_labels",
    "write_json",
    "write_json_lines",
    "write_labels",
]

FORMAT_VERSION = 1
FILES = {"history.jsonl", "labels.csv", "metrics.json", "model", "run.json"}


@dataclass(frozen=True)
class Run:
    """A run folder that has been opened.

    Attributes
    ----------
    folder : Path
        Where it is.
    data : dict
        The section of ``run.json`` about the data.
    like : Like
        The columns it was fitted on.
    """

    folder: Path
    data: dict[str, Any]
    like: Like

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.folder / "model"

    def metrics(self) -> dict[str, Any] | None:
        """What ``metrics.json`` holds; None if there is none."""
        file = self.folder / "metrics.json"
        return _read_json(file) if file.exists() else None


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def new_folder(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """Hand out a folder to write to, which becomes ``folder`` if all goes well.

    Parameters
    ----------
    folder : Path
        Should not exist, or be empty.
    force : bool, default=False
        Replace a run that is there, once the new one is complete.

    Yields
    ------
    Path
        Empty folder on the same disk.

    Raises
    ------
    ValueError, OSError
        At once, if the folder may not be written.
    """
    folder = folder.resolve()
    _check_free(folder, force)
    missing = [path for path in (folder.parent, *folder.parent.parents) if not path.exists()]
    try:
        with _beside(folder) as beside:
            # One level down, since temporary folders are closed to others.
            new, old = beside / "new", beside / "old"
            new.mkdir()
            yield new
            _check_free(folder, force)
            try:
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
    except BaseException:
        for path in missing:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        raise


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder from which ``target`` can be renamed into place."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise OSError(f"{target} cannot be created: {error.strerror}.") from error
    with folder as name:
        yield Path(name)


def _check_free(folder: Path, force: bool) -> None:
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise ValueError(f"{folder} is where you are; name a new folder.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder.")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if held and not force:
        raise FileExistsError(f"{folder} is not empty; name another folder, or add --force.")
    if held and "run.json" not in held:
        raise FileExistsError(f"{folder} holds no run, so --force will not replace it.")
    if held - FILES:
        stranger = min(held - FILES)
        raise FileExistsError(
            f"{folder} holds {stranger}, which is no part of a run; move it before using --force."
        )


@contextmanager
def new_file(file: Path, *, force: bool = False) -> Iterator[Path]:
    """Hand out a path to write to, which becomes ``file`` if all goes well.

    Parameters
    ----------
    file : Path
        Should not exist, unless ``force``.
    force : bool, default=False
        Replace a file that is there.

    Yields
    ------
    Path
        On the same disk, with the same suffix.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file.")
    if file.exists() and not force:
        raise FileExistsError(f"{file} exists; name another file, or add --force.")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent} does not exist; create it first.")
    with _beside(file) as beside:
        yield beside / file.name
        os.replace(beside / file.name, file)


def write_labels(
    file: TextIO, labels: Iterable[int], confidence: Iterable[float], ids: Values | None = None
) -> None:
    """Write ``labels.csv``.

    Parameters
    ----------
    file : text stream
        Opened with ``newline=""``.
    labels : iterable of int
        Cluster of each row.
    confidence : iterable of float
        Largest q of each row.
    ids : list, optional
        What stands in ``row``; by default the position from 0.
    """
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["row", "label", "confidence"])
    for row, (label, q) in enumerate(zip(labels, confidence, strict=True)):
        rows.writerow([row if ids is None else ids[row], int(label), f"{q:.6f}"])


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)


def ranges_of(positions: list[int]) -> str:
    """Columns as ``--columns`` takes them.

    >>> ranges_of([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def positions_of(ranges: str) -> list[int]:
    """Undo :func:`ranges_of`.

    >>> positions_of("0-2,5")
    [0, 1, 2, 5]
    """
    positions: list[int] = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        positions += range(int(first), int(last or first) + 1)
    return positions


# -- reading ---------------------------------------------------------------------------------------


def read(folder: Path) -> Run:
    """Open a run folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is none, is damaged or of another format.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no run of deepclust fit: run.json is missing.")
    facts = _read_json(file)
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version!r}; this deepclust reads version {FORMAT_VERSION}."
        )
    try:
        data = {name: facts["data"][name] for name in ("source", "sha256", "labels", "id")}
        columns = facts["data"]["columns"], facts["data"]["file_columns"]
        names = facts["data"]["column_names"]
        return Run(folder, data, Like(positions_of(columns[0]), columns[1], names, data["id"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} lacks or misstates {error}; fit again.") from error


def read_labels(run: Run) -> tuple[list[str], list[int]]:
    """Rows and labels from ``labels.csv``.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is missing or damaged.
    """
    path = run.folder / "labels.csv"
    check_exists(path)
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = list(csv.DictReader(file))
            return [row["row"] for row in rows], [int(row["label"]) for row in rows]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged ({error}).") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no object.")
    return content
