"""DATA as every command takes it: features, and ids and labels beside them.

``--columns``, ``--id`` and ``--labels`` are worked out here, and mean the same everywhere.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sources import Named, Source, Values, is_file, label_file, open_source

__all__ = ["Like", "Table", "read", "read_labels", "sha256_of"]


@dataclass(frozen=True)
class Like:
    """The columns of an earlier table, to be found again in another.

    Attributes
    ----------
    positions : list of int
        Where they stood, counted from 0.
    n_columns : int
        How many columns the earlier table had in all.
    names : list of str or None
        What they were called.
    id : str or None
        What ``--id`` was then.
    """

    positions: list[int]
    n_columns: int
    names: list[str] | None = None
    id: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows ready to be clustered.

    Attributes
    ----------
    X : ndarray, memory map or CSR matrix of shape (n_samples, n_features)
        Finite numbers.
    name : str
        Of the data set, or of the file without its suffix.
    files : list of str
        Absolute path of the file, or what the data set was read from.
    sha256 : str
        Of the file's bytes, or of the data set's decoded content.
    columns : Like
        The columns that ``X`` holds, and the ``--id`` in force.
    ids, labels : list or None
        One value a row.
    labels_from : str or None
        The ``--labels`` in force; a named data set brings ``target``.
    """

    X: Any
    name: str
    files: list[str]
    sha256: str
    columns: Like
    ids: Values | None
    labels: Values | None
    labels_from: str | None


def read(
    data: str,
    *,
    columns: str | None = None,
    id: str | None = None,
    labels: str | None = None,
    like: Like | None = None,
) -> Table:
    """Read DATA.

    Parameters
    ----------
    data : str
        A file, or the name of a data set.
    columns : str, optional
        Features to take: names, positions from 0 and ranges such as ``0-9``, with commas between.
        By default all but those of ``id`` and ``labels``.
    id, labels : str, optional
        A column by name or position, or an array of an .npz; labels also a file. They are no
        features. A named data set brings its labels.
    like : Like, optional
        What to take when ``columns`` and ``id`` say nothing.

    Returns
    -------
    Table

    Raises
    ------
    ValueError, OSError, ImportError
        With one sentence about what is wrong.
    """
    source = open_source(data)
    if id is None and like is not None and like.id is not None:
        id = _id_again(source, like.id)
    wanted = _Wanted(source, id, labels)
    if columns is not None:
        positions = _chosen(source, columns, wanted.columns)
    elif like is not None:
        positions = _found_again(source, like, wanted.columns)
    else:
        positions = _all_but(source, wanted.columns)
    X, values = source.take(positions, wanted.columns)
    n_rows = int(X.shape[0])
    ids, y = wanted.values(values, n_rows)
    for option, found in (("--id", ids), ("--labels", y)):
        if found is not None and len(found) != n_rows:
            raise ValueError(
                f"{option} gives {len(found)} values, but {source.title} has {n_rows} rows."
            )

    named = isinstance(source, Named)
    names = None if source.names is None else [source.names[column] for column in positions]
    return Table(
        X=X,
        name=data if named else Path(data).stem,
        files=source.files if isinstance(source, Named) else [str(Path(data).resolve())],
        sha256=source.sha256 if isinstance(source, Named) else sha256_of(Path(data)),
        columns=Like(positions, source.n_columns, names, id),
        ids=ids,
        labels=y,
        labels_from=wanted.labels,
    )


def read_labels(
    data: str | None,
    labels: str | None,
    n_rows: int,
    *,
    id: str | None = None,
    id_before: str | None = None,
) -> tuple[Values, Values | None]:
    """Read labels, and ids if asked for, and no features.

    Parameters
    ----------
    data : str or None
        As for :func:`read`; None if ``labels`` is a file.
    labels, id : str or None
        As for :func:`read`.
    n_rows : int
        How many labels a file of labels should hold.
    id_before : str, optional
        The ``id`` of an earlier table, taken if ``id`` is None and it is there.

    Returns
    -------
    labels, ids : list, list or None
    """
    if data is None:
        if labels is None or not is_file(labels):
            raise ValueError(f"--labels {labels!r} is no file; name DATA to take a column of it.")
        y = label_file(Path(labels), n_rows)
        _check_labels(y, labels)
        return y, None
    source = open_source(data)
    if id is None and id_before is not None:
        id = _id_again(source, id_before)
    wanted = _Wanted(source, id, labels)
    if wanted.labels is None:
        raise ValueError(f"--labels is missing: which column of {source.title} holds them?")
    values = source.take([], wanted.columns)[1] if wanted.columns else []
    ids, found = wanted.values(values, n_rows)
    return found or [], ids


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- what was asked for ----------------------------------------------------------------------------


class _Wanted:
    """``--id`` and ``--labels``: the columns to read for them, or what stands for them already."""

    def __init__(self, source: Source, id: str | None, labels: str | None) -> None:
        self.source = source
        self.labels = "target" if labels is None and isinstance(source, Named) else labels
        self.file: Path | None = None
        labels = self.labels
        if labels is not None and labels not in (source.names or ()) and is_file(labels):
            if not Path(labels).exists():
                raise FileNotFoundError(
                    f"--labels {labels!r} is neither a column of {source.title} nor a file."
                )
            self.file, labels = Path(labels), None
        self._id = _stands_for(source, id, "--id")
        self._labels = _stands_for(source, labels, "--labels")
        both = [found for found in (self._id, self._labels) if isinstance(found, int)]
        self.columns = list(dict.fromkeys(both))

    def values(self, read: list[Values], n_rows: int) -> tuple[Values | None, Values | None]:
        """Ids and labels, from the values of ``columns``."""
        columns = dict(zip(self.columns, read, strict=True))
        ids = columns[self._id] if isinstance(self._id, int) else self._id
        y = columns[self._labels] if isinstance(self._labels, int) else self._labels
        if self.file is not None:
            y = label_file(self.file, n_rows)
        if y is not None:
            _check_labels(y, self.labels or "")
        return ids, y


def _stands_for(source: Source, asked: str | None, option: str) -> Values | int | None:
    """Values, or the column to read them from."""
    if asked is None:
        return None
    if asked not in (source.names or ()):
        values = source.beside(asked)
        if values is not None:
            return values
    return _position(source, asked, option)


def _position(source: Source, asked: str, option: str) -> int:
    """Column of a name, or else of a position."""
    names = source.names or []
    if names.count(asked) > 1:
        raise ValueError(
            f"{option}: {source.title} has {names.count(asked)} columns named {asked!r}; give a "
            "position, counted from 0."
        )
    if asked in names:
        return names.index(asked)
    if asked.isdecimal() and int(asked) < source.n_columns:
        return int(asked)
    known = f"its columns are 0 to {source.n_columns - 1}"
    if names:
        shown = ", ".join(repr(name) for name in names[:6])
        known = f"it has {shown}{', ...' if len(names) > 6 else ''}"
    raise ValueError(f"{option} {asked!r} is no column of {source.title}; {known}.")


def _id_again(source: Source, id: str) -> str | None:
    """The ``--id`` of a run, if this table has it too."""
    try:
        _stands_for(source, id, "--id")
    except ValueError:
        warnings.warn(
            f"{source.title} lacks {id!r}, the --id of the run; its rows are numbered from 0.",
            UserWarning,
            stacklevel=2,
        )
        return None
    return id


def _chosen(source: Source, columns: str, taken: list[int]) -> list[int]:
    """Features that ``--columns`` lists."""
    chosen: list[int] = []
    for item in (part.strip() for part in columns.split(",")):
        ends = re.fullmatch(r"(\d+)-(\d+)", item)
        if ends and item not in (source.names or ()):
            found = list(range(int(ends[1]), int(ends[2]) + 1))
            if not found or found[-1] >= source.n_columns:
                raise ValueError(
                    f"--columns {item} is no range of the columns of {source.title}, which are 0 "
                    f"to {source.n_columns - 1}."
                )
            chosen += found
        else:
            chosen.append(_position(source, item, "--columns"))
    for column in chosen:
        if column in taken:
            raise ValueError(
                f"--columns holds {source.called(column)}, which --id or --labels takes; it "
                "cannot be a feature too."
            )
    if len(set(chosen)) < len(chosen):
        twice = next(column for column in chosen if chosen.count(column) > 1)
        raise ValueError(f"--columns holds {source.called(twice)} twice.")
    return chosen


def _all_but(source: Source, taken: list[int]) -> list[int]:
    """Features when nothing is said about them."""
    left = [column for column in range(source.n_columns) if column not in taken]
    if source.index is not None and source.index in left:
        left.remove(source.index)
        warnings.warn(
            f"{source.title}: {source.called(source.index)} only names the rows and was left out; "
            "list it in --columns if it is a feature.",
            UserWarning,
            stacklevel=2,
        )
    if not left:
        raise ValueError(f"{source.title} has no columns left to cluster by.")
    return left


def _found_again(source: Source, like: Like, taken: list[int]) -> list[int]:
    """Features that stand for those of an earlier table: by name, else by position."""
    wanted = like.names
    if source.names is not None and wanted is not None and len(set(wanted)) == len(wanted):
        missing = [name for name in wanted if name not in source.names]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(
                f"{source.title} lacks what the model was fitted on: "
                f"{', '.join(map(repr, missing[:3]))}{more}."
            )
        return [_position(source, name, "--columns") for name in wanted]
    if source.n_columns == like.n_columns:
        return like.positions
    left = [column for column in range(source.n_columns) if column not in taken]
    if len(left) == len(like.positions):
        return left
    raise ValueError(
        f"{source.title} has {len(left)} columns, but the model was fitted on "
        f"{len(like.positions)}."
    )


def _check_labels(y: Values, asked: str) -> None:
    for row, label in enumerate(y):
        if label is None or label != label or label == "":
            raise ValueError(f"--labels {asked}: row {row} (counted from 0) has no label.")
