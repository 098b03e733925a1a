"""What can be read: arrays, text, Parquet and named data sets, each a table with columns.

A :class:`Source` knows its columns before it reads them, then hands out some of them as numbers and
others as they are. What is wrong with a file is said in one sentence that names the file, and the
row and the column where there is one.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .. import datasets

__all__ = ["Source", "Values", "is_file", "label_file", "open_source"]

Values = list[Any]

BLOCK = 4096  # rows that are looked through for NaN at a time
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}


class Source(ABC):
    """A table that has been opened.

    Attributes
    ----------
    title : str
        How messages call it.
    names : list of str or None
        Of the columns; None if they have none.
    n_columns : int
        How many there are.
    index : int or None
        A column that only names or numbers the rows, as pandas writes it.
    """

    title: str
    names: list[str] | None = None
    n_columns: int
    index: int | None = None

    @abstractmethod
    def take(self, numbers: list[int], others: list[int]) -> tuple[Any, list[Values]]:
        """Read columns.

        Parameters
        ----------
        numbers : list of int
            Columns to read as a matrix of finite numbers.
        others : list of int
            Columns to read as they are.

        Returns
        -------
        X : ndarray or CSR matrix of shape (n_rows, len(numbers))
        values : list of list
            One list for each of ``others``.

        Raises
        ------
        ValueError
            For anything in ``numbers`` that is no finite number.
        """

    def beside(self, name: str) -> Values | None:
        """Values that lie beside the table under a name, None if there are none."""
        return None

    def called(self, column: int) -> str:
        """A column, for messages."""
        if self.names is None or not self.names[column]:
            return f"column {column} (counted from 0)"
        return f"column {self.names[column]!r}"

    def check_finite(self, X: Any, columns: list[int]) -> None:
        """Refuse ``X``, which holds ``columns``, at its first value that is not finite."""
        if X.dtype.kind != "f":
            return
        for start in range(0, X.shape[0], BLOCK):
            block = X[start : start + BLOCK]
            if np.isfinite(block.data if sparse.issparse(block) else block).all():
                continue
            block = block.toarray() if sparse.issparse(block) else block
            row, column = (int(i) for i in np.argwhere(~np.isfinite(block))[0])
            where = f"{self.title}, {self.called(columns[column])}, row {start + row}"
            raise _not_finite(f"{where} (counted from 0)", float(block[row, column]))


def is_file(data: str) -> bool:
    """Whether DATA is a file, which has a suffix or a separator, and no data set's name."""
    separators = {"/", os.sep, os.altsep}
    return bool(Path(data).suffix) or any(mark and mark in data for mark in separators)


def open_source(data: str) -> Source:
    """Open a file or a named data set.

    Parameters
    ----------
    data : str
        As :func:`is_file` tells it.

    Raises
    ------
    ValueError, OSError, ImportError
        With one sentence about what is wrong.
    """
    if is_file(data):
        path = Path(data)
        check_exists(path)
        if path.suffix.lower() not in _READERS:
            raise ValueError(
                f"{path} is no table that can be read; its suffix should be one of "
                f"{', '.join(_READERS)}."
            )
        return _READERS[path.suffix.lower()](path)
    if data not in datasets.names():
        hint = f"; write ./{data} for the file" if Path(data).exists() else ""
        raise ValueError(
            f"{data!r} is neither a file with a suffix nor a data set; known are "
            f"{', '.join(datasets.names())}{hint}."
        )
    return Named(data)


def check_exists(path: Path) -> None:
    """Refuse a file that is not there, is a folder or is empty."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what parsers raise into one sentence."""
    try:
        yield
    except PermissionError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (see byte {error.start}); save it as UTF-8."
        ) from error
    except _UNREADABLE as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or "it ends early"
        if "pickle" in reason or "Python objects" in reason:
            raise _pickled(path) from error
        raise ValueError(f"{path} is damaged or cut short ({reason}).") from error


_UNREADABLE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def _pickled(path: Path) -> ValueError:
    return ValueError(f"{path} holds pickled objects, which are never loaded; save plain numbers.")


# -- arrays ----------------------------------------------------------------------------------------


class Arrays(Source):
    """A matrix, in memory or mapped from a file.

    Parameters
    ----------
    title : str
        How messages call it.
    X : ndarray, memory map or sparse matrix
        Should have two axes and hold real numbers.
    names : sequence of str, optional
        Of its columns.
    beside : callable, optional
        Values that lie beside it under a name, or None.
    """

    def __init__(
        self,
        title: str,
        X: Any,
        names: Sequence[str] | None = None,
        beside: Callable[[str], Values | None] = lambda name: None,
    ) -> None:
        if X.ndim != 2:
            way = "; X.reshape(len(X), -1) makes them of images" if X.ndim > 2 else ""
            raise ValueError(
                f"{title} has the shape {X.shape}, but a table has two axes, rows and columns{way}."
            )
        if X.dtype.kind not in "biuf":
            raise ValueError(f"{title} holds values of type {X.dtype}; a table holds real numbers.")
        if 0 in X.shape:
            raise ValueError(f"{title} is empty: {X.shape[0]} rows and {X.shape[1]} columns.")
        self.title = title
        self.X = X.tocsr() if sparse.issparse(X) else X
        self.names = None if names is None else list(names)
        self.n_columns = int(X.shape[1])
        self._beside = beside

    def beside(self, name: str) -> Values | None:
        """Values that lie beside the table under a name, None if there are none."""
        return self._beside(name)

    def take(self, numbers: list[int], others: list[int]) -> tuple[Any, list[Values]]:
        """Read columns, without a copy where they are a run."""
        X = self.X
        if numbers != list(range(self.n_columns)):
            first, n = (numbers or [0])[0], len(numbers)
            # A slice is a view and leaves a memory map on disk.
            run = numbers == list(range(first, first + n))
            X = X[:, first : first + n] if run else X[:, numbers]
        self.check_finite(X, numbers)
        return X, [_column(self.X[:, [column]]) for column in others]


class Named(Arrays):
    """A data set of the library; its labels lie beside it as ``target``.

    Parameters
    ----------
    name : str
        One of :func:`deepclust.datasets.names`.
    """

    def __init__(self, name: str) -> None:
        bunch = datasets.load(name)
        labels = {"target": list(bunch.target.tolist())}
        super().__init__(name, bunch.data, bunch.get("feature_names"), labels.get)
        self.files = [str(file) for file in bunch.source]
        self.sha256: str = getattr(datasets, name).DATASET.content_sha256


def _not_finite(where: str, value: float) -> ValueError:
    if value != value:
        return ValueError(f"{where} is NaN; fill in or remove what is missing first.")
    return ValueError(f"{where} is infinite; replace it by a finite number first.")


def _column(X: Any) -> Values:
    """One column as Python values, whole numbers without a decimal point."""
    values = np.asarray(X.toarray() if sparse.issparse(X) else X).ravel()
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        return [int(value) for value in values.tolist()]
    return list(values.tolist())


def _vector(values: NDArray[Any], title: str) -> Values:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.ravel()
    if values.ndim != 1:
        raise ValueError(f"{title} has the shape {values.shape}; one value a row is needed.")
    return list(values.tolist())


def _from_npy(path: Path) -> Source:
    return Arrays(str(path), _load_npy(path, mapped=True))


def _load_npy(path: Path, *, mapped: bool = False) -> Any:
    _check_magic(path, b"\x93NUMPY")
    with _reading(path):
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def _from_npz(path: Path) -> Source:
    _check_magic(path, b"PK")
    with _open_npz(path) as archive:
        keys = list(archive)
    if {"format", "shape", "data"} <= set(keys):
        with _reading(path):
            matrix = sparse.load_npz(path)
            if hasattr(matrix, "check_format"):  # C code trusts the indices
                matrix.check_format(full_check=True)
        return Arrays(str(path), matrix)

    def member(key: str) -> NDArray[Any]:
        with _open_npz(path) as archive:
            return np.asarray(archive[key])

    def beside(name: str) -> Values | None:
        return _vector(member(name), f"{name!r} in {path}") if name in keys else None

    key = next((key for key in ("X", "data") if key in keys), None)
    if key is None:
        shapes = {key: member(key).shape for key in keys}
        tables = [key for key, shape in shapes.items() if len(shape) == 2]
        if len(tables) != 1:
            held = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "no arrays"
            raise ValueError(
                f"{path} holds {held}; save the table in it under the name X, with two axes."
            )
        key = tables[0]
    return Arrays(f"{key!r} in {path}", member(key), beside=beside)


@contextmanager
def _open_npz(path: Path) -> Iterator[Any]:
    # NumPy does not close a file of its own when it is no zip archive.
    with path.open("rb") as file, _reading(path), np.load(file, allow_pickle=False) as archive:
        yield archive


def _check_magic(path: Path, magic: bytes) -> None:
    with path.open("rb") as file:
        found = file.read(len(magic))
    if found[:1] == b"\x80":
        raise _pickled(path)
    if found != magic:
        raise ValueError(f"{path} is no {path.suffix} file: it does not begin like one.")


# -- text ------------------------------------------------------------------------------------------


class Text(Source):
    """A .csv or .tsv file, read row by row; numbers become float64.

    The first line says what lies between the values: a tab if it has one, else a semicolon, else
    commas. With semicolons, a comma in a number is its decimal sign.

    Parameters
    ----------
    path : Path
        In UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.title = str(path)
        self.path = path
        with self._open() as file, _reading(path):
            line = next((line for line in file if line.strip()), "")
        if not line:
            raise ValueError(f"{path} is empty.")
        self.delimiter = _delimiter(line)
        self.n_columns = 0
        first = [cell.strip() for cell in next(self._rows())[1]]
        self.n_columns = len(first)
        self.names = self._header(first)
        if self.names is not None and len(first) > 1 and not first[0]:
            self.index = 0

    def take(self, numbers: list[int], others: list[int]) -> tuple[Any, list[Values]]:
        """Read columns in one pass."""
        values = array("d")
        beside: list[Values] = [[] for _ in others]
        n_rows = 0
        everything = numbers == list(range(self.n_columns))
        for line, cells in itertools.islice(self._rows(), self.names is not None, None):
            picked = cells if everything else [cells[column] for column in numbers]
            values.extend(self._numbers(picked, line, numbers))
            for column, kept in zip(others, beside, strict=True):
                kept.append(cells[column].strip())
            n_rows += 1
        if not n_rows:
            raise ValueError(f"{self.title} holds a header but no rows.")
        X = np.frombuffer(values) if numbers else np.empty(0)
        return X.reshape(n_rows, len(numbers)), beside

    def _open(self) -> TextIO:
        return self.path.open(encoding="utf-8-sig", newline="")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row; blank lines are passed over."""
        blank = 0
        with self._open() as file:
            rows = csv.reader(file, delimiter=self.delimiter, strict=True)
            while True:
                try:
                    with _reading(self.path):
                        cells = next(rows, None)
                except csv.Error as error:
                    raise ValueError(
                        f"{self.title}, line {rows.line_num} is no valid row ({error})."
                    ) from error
                if cells is None:
                    return
                if not cells or (len(cells) == 1 and not cells[0].strip()):
                    blank = blank or rows.line_num
                    continue
                if blank and self.n_columns == 1:
                    raise ValueError(f"{self.title}, line {blank} has no value.")
                if self.n_columns and len(cells) != self.n_columns:
                    raise ValueError(
                        f"{self.title}, line {rows.line_num} has {len(cells)} values where the "
                        f"first line has {self.n_columns}."
                    )
                yield rows.line_num, cells

    def _numbers(self, cells: list[str], line: int, columns: list[int]) -> list[float]:
        if self.delimiter == ";":
            cells = [cell.replace(",", ".") for cell in cells]
        try:
            numbers = [float(cell) for cell in cells]
            # float() takes 1_000, and the sum shows NaN and infinity of any cell.
            if "_" not in "".join(cells) and isfinite(sum(numbers)):
                return numbers
        except ValueError:
            pass
        numbers = []
        for cell, column in zip(cells, columns, strict=True):
            where = f"{self.title}, line {line}, {self.called(column)}"
            if cell.strip().lower() in MISSING:
                raise ValueError(
                    f"{where} has no value ({cell!r}); fill it in, remove the row, or leave the "
                    "column out with --columns."
                )
            number = self._number(cell)
            if number is None:
                raise ValueError(
                    f"{where} holds {cell!r}, which is no number; leave the column out with "
                    "--columns, or name it in --id or --labels."
                )
            if not isfinite(number):
                raise _not_finite(where, number)
            numbers.append(number)
        return numbers

    def _number(self, cell: str) -> float | None:
        try:
            number = float(cell.replace(",", ".") if self.delimiter == ";" else cell)
        except ValueError:
            return None
        return None if "_" in cell else number

    def _header(self, first: list[str]) -> list[str] | None:
        """Names if the first line is a header: unless all of it is numbers, which are a row.

        Numbers that count up one by one are names too, years or what pandas writes.
        """
        numbers = [cell for cell in first if self._number(cell) is not None]
        if not numbers:
            return first
        counting = all(cell.isdecimal() for cell in numbers) and all(
            int(cell) == int(numbers[0]) + i for i, cell in enumerate(numbers)
        )
        if len(numbers) == len(first):
            if not counting or len(numbers) == 1 or numbers[0] != "0":
                return None
            warnings.warn(
                f"{self.title}: the first line, 0, 1, ..., was taken for the header.",
                UserWarning,
                stacklevel=2,
            )
            return first
        if counting:
            return first
        text = next(cell for cell in first if self._number(cell) is None)
        raise ValueError(
            f"{self.title}: the first line holds the number {numbers[0]} beside {text!r}, so it "
            "may be a header or a row; put a line with a name for each column on top."
        )


def _delimiter(line: str) -> str:
    outside_quotes = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in "\t;" if mark in outside_quotes), ",")


# -- Parquet ---------------------------------------------------------------------------------------


class Parquet(Source):
    """A Parquet file, of which only the columns that are asked for are read.

    Parameters
    ----------
    path : Path
        Needs pyarrow.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                f'{path} needs pyarrow, which pip install "deepclust[parquet]" brings.'
            ) from error
        self.title = str(path)
        self.path = path
        self._open = pyarrow.parquet.ParquetFile
        with _reading(path), self._open(path) as file:
            self.fields = file.schema_arrow
        names = list(self.fields.names)
        self.names, self.n_columns = names, len(names)
        self.index = next(
            (i for i, name in enumerate(names) if name.startswith("__index_level_")), None
        )

    def take(self, numbers: list[int], others: list[int]) -> tuple[Any, list[Values]]:
        """Read columns."""
        for column in numbers:
            self._check_numeric(column)
        names = self.fields.names
        with _reading(self.path), self._open(self.path) as file:
            table = file.read(columns=[names[column] for column in {*numbers, *others}])
            taken = [table.column(names[column]) for column in numbers]
            beside = [table.column(names[column]).to_pylist() for column in others]
        if not table.num_rows:
            raise ValueError(f"{self.title} holds no rows.")
        columns = []
        for column, chunks in zip(numbers, taken, strict=True):
            if chunks.null_count:
                row = chunks.is_null().to_pylist().index(True)
                raise ValueError(
                    f"{self.title}, {self.called(column)}, row {row} (counted from 0) has no "
                    "value; fill it in, remove the row, or leave the column out with --columns."
                )
            values = chunks.to_numpy()
            columns.append(values.astype(float) if values.dtype == object else values)
        dtype = np.result_type(*columns) if columns else np.dtype(float)
        X: NDArray[Any] = np.empty((table.num_rows, len(columns)), dtype=dtype)
        for i, values in enumerate(columns):
            X[:, i] = values
        self.check_finite(X, numbers)
        return X, beside

    def _check_numeric(self, column: int) -> None:
        from pyarrow import types

        kind = self.fields.field(column).type
        tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
        if not any(test(kind) for test in tests):
            raise ValueError(
                f"{self.title}, {self.called(column)} holds values of type {kind}, which are no "
                "numbers; leave it out with --columns, or name it in --id or --labels."
            )


_READERS: dict[str, Callable[[Path], Source]] = {
    ".npy": _from_npy,
    ".npz": _from_npz,
    ".csv": Text,
    ".tsv": Text,
    ".parquet": Parquet,
}


# -- files of labels -------------------------------------------------------------------------------


def label_file(path: Path, n_rows: int) -> Values:
    """One label a row from a file.

    Parameters
    ----------
    path : Path
        A .npy of one axis, or text with a label in each line. A .csv or .tsv may have more columns
        if one of them is named ``label``, as ``labels.csv`` of a run has. One line more than rows
        is a header.
    n_rows : int
        How many there should be.

    Returns
    -------
    list

    Raises
    ------
    ValueError, OSError
        If there are more or fewer, or the file cannot be read.
    """
    check_exists(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        values = _vector(_load_npy(path), str(path))
    elif suffix in (".csv", ".tsv", ".txt"):
        with path.open(encoding="utf-8-sig") as file, _reading(path):
            lines = file.read().splitlines()
        values = _labels_of(lines, path, n_rows) if suffix != ".txt" else lines
        values = [value.strip() for value in values]
        while values and not values[-1]:
            values.pop()
        values = values[1:] if len(values) == n_rows + 1 else values
    else:
        raise ValueError(f"{path} is no file of labels; those are .npy, .csv, .tsv and .txt.")
    if len(values) != n_rows:
        raise ValueError(f"{path} holds {len(values)} labels for {n_rows} rows.")
    return values


def _labels_of(lines: list[str], path: Path, n_rows: int) -> list[str]:
    first = next((line for line in lines if line.strip()), "")
    rows = [row or [""] for row in csv.reader(lines, delimiter=_delimiter(first))]
    width = max(map(len, rows), default=1)
    if width == 1:
        return [row[0] for row in rows]
    header = [cell.strip() for cell in rows[0]]
    if "label" not in header:
        raise ValueError(
            f"{path} has {width} columns; a file of labels has one, or one named label."
        )
    column = header.index("label")
    return [row[column] if column < len(row) else "" for row in rows[1:]]
