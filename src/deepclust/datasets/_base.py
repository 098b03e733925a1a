"""What every data set shares: where files lie, which forms are known, fetching, the content check.

A data set is a :class:`Dataset`: what it is, and the containers known to hold it. Whatever
container a copy comes in, it is accepted if, and only if, the values and labels decoded from it
have the SHA-256 recorded for the data set.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import os
import sys
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pooch
import scipy.sparse
from sklearn.utils import Bunch

PathLike = str | os.PathLike[str]
Values = Any  # ndarray or SciPy sparse matrix of shape (n_samples, n_features)
Target = npt.NDArray[np.int64]


class DatasetError(OSError):
    """A data set cannot be had: no copy and no network, or a copy that is not genuine.

    The message is one sentence or two for the user: what is wrong with which file, what to do.
    """


class Damaged(Exception):
    """Raised by a reader for a file that does not hold what it should.

    Parameters
    ----------
    what : str
        What is wrong, to follow the path in a sentence: "is empty", "ends early".
    *paths : Path
        The files concerned; none stands for all files of the container.
    """

    def __init__(self, what: str, *paths: Path) -> None:
        super().__init__(what)
        self.what = what
        self.paths = paths


@dataclass(frozen=True)
class Mirror:
    """An address a container is published at.

    Parameters
    ----------
    url : str
        Address of a file, with ``{name}`` for its name.
    verified : bool, default=False
        Whether the data set was really fetched from here with this library and found genuine.
        False says that the address comes from documentation or from other software.
    """

    url: str
    verified: bool = False

    @property
    def host(self) -> str:
        """Name of the server, for messages."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True)
class File:
    """A file of a container.

    Compression (gzip, bzip2 or none) is told from the first bytes, so a name promises nothing.

    Parameters
    ----------
    name : str
        Published name; the one a fetched file gets.
    also : tuple of str, default=()
        Other names the same file goes by, such as that of the uncompressed form.
    sha256 : str, optional
        Of the published file's bytes, only where it was computed from such a file. It never
        decides whether a copy is accepted; it clears a file of suspicion when the content is wrong.
    """

    name: str
    also: tuple[str, ...] = ()
    sha256: str | None = None

    def find(self, folder: Path) -> Path | None:
        """The file in ``folder`` under any of its names, None if it is not there."""
        for name in (self.name, *self.also):
            # os.path and not Path, which raises for a folder that may not be entered.
            if os.path.isfile(folder / name):
                return folder / name
        return None


@dataclass(frozen=True)
class Container:
    """A form in which a data set is around.

    Parameters
    ----------
    title : str
        What the form is called.
    read : callable
        Called with one path per file, in the order of ``files``; returns values and labels in the
        canonical order. Raises :class:`Damaged`, or whatever its parser raises.
    files : tuple of File, default=()
        All files needed. Without any, the data set comes with an installed package.
    mirrors : tuple of Mirror, default=()
        Where the files are published, in the order to try.
    verified : bool, default=False
        Whether a genuine copy in this form has been read with this library. False says that
        ``read`` follows a description of the form, and the content check has yet to confirm it.
    """

    title: str
    read: Callable[..., tuple[Values, Target]]
    files: tuple[File, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    verified: bool = False

    def find(self, folder: Path) -> list[Path | None]:
        """One entry per file: its path in ``folder``, or None."""
        return [file.find(folder) for file in self.files]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known about a data set, and how to load it.

    Parameters
    ----------
    name : str
        Name in the registry, and of the folder inside the data home.
    title : str
        Its full name.
    description : str
        What it is: samples, features, classes, order.
    licence : str
        The terms it comes under, as far as they are stated.
    citation : str
        What to cite.
    homepage : str
        Address of a description, from documentation; neither fetched nor verified.
    content_sha256 : str
        :func:`content_sha256` of the genuine values and labels.
    containers : tuple of Container
        Every form known to hold it, the preferred one first.
    target_names : tuple of str
        Name of class 0, 1, ...
    shape : tuple of int, optional
        Samples and features, to be told without loading them.
    n_train : int, optional
        Number of leading samples that make up the customary training set.
    image_shape : tuple of int, optional
        Shape of a sample as an image, when samples are images flattened row by row.
    prepared : str, optional
        For a set with no public form: how the files in the data home are made.
    """

    name: str
    title: str
    description: str
    licence: str
    citation: str
    homepage: str
    content_sha256: str
    containers: tuple[Container, ...]
    target_names: tuple[str, ...]
    shape: tuple[int, int] | None = None
    n_train: int | None = None
    image_shape: tuple[int, int] | None = None
    prepared: str | None = None

    @overload
    def load(
        self, *, data_home: PathLike | None = None, return_X_y: Literal[False] = False
    ) -> Bunch: ...

    @overload
    def load(
        self, *, data_home: PathLike | None = None, return_X_y: Literal[True]
    ) -> tuple[Values, Target]: ...

    def load(
        self, *, data_home: PathLike | None = None, return_X_y: bool = False
    ) -> Bunch | tuple[Values, Target]:
        """Load the data set, fetching it first if the data home has no copy.

        A copy that is there is only read. A fetched one is checked before it gets its final name,
        so a download that breaks off leaves nothing behind.

        Parameters
        ----------
        data_home : path-like, optional
            Folder with one subfolder per data set. By default the environment variable
            ``DEEPCLUST_DATA``, or else the user's cache folder.
        return_X_y : bool, default=False
            Return ``(X, y)`` instead of a Bunch.

        Returns
        -------
        Bunch
            ``data`` (n_samples, n_features); ``target`` (n_samples,), int64 from 0;
            ``target_names``; ``n_train`` and ``image_shape``, None where there is none;
            ``feature_names``, for images; ``source``, the files read; ``DESCR``, with licence and
            citation.
        tuple of (data, target)
            If ``return_X_y``.

        Raises
        ------
        DatasetError
            If there is no copy and none can be fetched, or if a copy is incomplete, damaged or
            not genuine.
        """
        folder = get_data_home(data_home) / self.name
        found = self._find(folder)
        if found is None:
            X, y, source = self._fetch(folder)
        else:
            container, paths = found
            source = [str(path) for path in paths] or [container.title]
            try:
                X, y = self._read(container, paths)
            except Damaged as error:
                raise self._refusal(container, error) from None
        if return_X_y:
            return X, y
        extra = {} if self.image_shape is None else {"feature_names": _pixels(*self.image_shape)}
        return Bunch(
            data=X,
            target=y,
            target_names=list(self.target_names),
            n_train=self.n_train,
            image_shape=self.image_shape,
            source=source,
            DESCR=self.descr(),
            **extra,
        )

    def descr(self) -> str:
        """What the set is, its licence, citation and origin, as text."""
        parts = [
            self.description,
            f"Licence: {self.licence}",
            f"Citation: {self.citation}",
            f"Source: {self.homepage}",
        ]
        if self.prepared is not None:
            parts.append(f"Prepared: {self.prepared}")
        wrapped = [
            textwrap.fill(part, 79, break_long_words=False, break_on_hyphens=False)
            for part in parts
        ]
        return "\n\n".join([f"{self.title}\n{'-' * len(self.title)}", *wrapped])

    def _find(self, folder: Path) -> tuple[Container, list[Path]] | None:
        for container in self.containers:
            paths = [path for path in container.find(folder) if path is not None]
            if len(paths) == len(container.files):
                return container, paths
        return None

    def _read(self, container: Container, paths: Sequence[Path]) -> tuple[Values, Target]:
        with reading(*paths):
            X, y = container.read(*paths)
        found = content_sha256(X, y)
        if found != self.content_sha256:
            suspects = [
                path
                for file, path in zip(container.files, paths, strict=True)
                if file.sha256 is None or file.sha256 != _file_sha256(path)
            ]
            raise Damaged(
                f"does not hold the genuine {self.name}: its content has SHA-256 {found}, "
                f"not {self.content_sha256}",
                *(suspects or paths),
            )
        return X, y

    def _refusal(self, container: Container, error: Damaged) -> DatasetError:
        if not container.files:
            return DatasetError(f"{container.title} {error.what}. Reinstall what it comes with.")
        files = " or ".join(str(path) for path in error.paths)
        advice = ", or delete it to have it fetched again" if container.mirrors else ""
        return DatasetError(f"{files} {error.what}. Put a genuine copy in its place{advice}.")

    def _fetch(self, folder: Path) -> tuple[Values, Target, list[str]]:
        """Fetch from the first mirror that has it; return values, labels and the files."""
        # What is partly there is completed rather than fetched in another form.
        containers = sorted(self.containers, key=lambda c: not any(c.find(folder)))
        if not any(container.mirrors for container in containers):
            raise self._absence(folder, containers[0])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Beside the final place, so that moving a file there is atomic.
            scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder)
        except OSError as error:
            raise self._absence(folder, containers[0], _reason(error)) from None
        failures = []
        with scratch as staging:
            for container in containers:
                for mirror in container.mirrors:
                    try:
                        return self._fetch_from(mirror, container, folder, Path(staging))
                    except Damaged as error:
                        if all(path.parent == folder for path in error.paths):
                            raise self._refusal(container, error) from None
                        names = " or ".join(path.name for path in error.paths)
                        failures.append(f"from {mirror.host}, {names} {error.what}")
                    except OSError as error:
                        failures.append(f"{mirror.host}: {_reason(error)}")
        raise self._absence(folder, containers[0], "; ".join(failures))

    def _fetch_from(
        self, mirror: Mirror, container: Container, folder: Path, staging: Path
    ) -> tuple[Values, Target, list[str]]:
        paths = []
        for file, path in zip(container.files, container.find(folder), strict=True):
            if path is None:
                path = staging / file.name
                _download(mirror.url.format(name=file.name), path)
            paths.append(path)
        X, y = self._read(container, paths)
        for path in paths:
            if path.parent == staging:
                os.replace(path, folder / path.name)
        return X, y, [str(folder / path.name) for path in paths]

    def _absence(self, folder: Path, container: Container, failure: str = "") -> DatasetError:
        """Say which files are wanted, where to put them and where they are published."""
        found = container.find(folder)
        missing = [f.name for f, path in zip(container.files, found, strict=True) if path is None]
        files = ", ".join(missing)
        state = f"lacks {files} in {folder}" if any(found) else f"is not in {folder}"
        sentences = [f"{self.name} {state}"]
        if failure:
            sentences.append(f"Fetching it failed ({failure})")
        advice = [f"Put {files} there"]
        if container.mirrors:
            name = missing[0] if len(missing) == 1 else ""
            urls = [mirror.url.format(name=name) for mirror in container.mirrors]
            advice.append(f" (published at {' and '.join(urls)})")
        for other in self.containers:
            if other is not container and other.files:
                advice.append(f", or {' and '.join(file.name for file in other.files)}")
        sentences.append("".join(advice))
        sentences.append(
            f"data_home or DEEPCLUST_DATA may name another folder that holds {self.name}/"
        )
        if self.prepared is not None:
            sentences.append(f"How they are made: {self.prepared.rstrip('.')}")
        return DatasetError(". ".join(sentences) + ".")


def get_data_home(data_home: PathLike | None = None) -> Path:
    """The folder that holds one subfolder per data set. It need not exist and is not created.

    Parameters
    ----------
    data_home : path-like, optional
        Returned as it is, with ``~`` expanded. By default the environment variable
        ``DEEPCLUST_DATA`` if it is set and not empty, or else the cache folder that the platform
        gives an application.

    Returns
    -------
    Path
    """
    path = data_home or os.environ.get("DEEPCLUST_DATA") or pooch.os_cache("deepclust")
    return Path(path).expanduser()


def content_sha256(X: Values, y: Target) -> str:
    """SHA-256 of values and labels, the same whatever file and machine they come from.

    Parameters
    ----------
    X : ndarray or sparse matrix of shape (n_samples, n_features)
        Values; a sparse matrix counts as its CSR form with sorted indices.
    y : ndarray of shape (n_samples,)
        Labels.

    Returns
    -------
    str
        Hexadecimal digest over dtype, shape and little-endian bytes in C order, array by array.
    """
    arrays: list[npt.NDArray[Any]] = [X]
    if scipy.sparse.issparse(X):
        csr = X.tocsr(copy=True)
        csr.sum_duplicates()  # sorts the indices as well
        # SciPy picks the width of an index by the size of the matrix.
        index = [np.asarray(part, dtype=np.int64) for part in (csr.shape, csr.indptr, csr.indices)]
        arrays = [*index, csr.data]
    digest = hashlib.sha256()
    for array in (*arrays, y):
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(little.data)
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """Contents of a file, decompressed if its first bytes say gzip or bzip2.

    Parameters
    ----------
    path : Path
        File to read.

    Returns
    -------
    bytes

    Raises
    ------
    Damaged
        If the file is empty, cannot be read or does not decompress.
    """
    with reading(path):
        with open(path, "rb") as file:
            magic = file.read(3)
        openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open}
        opener = openers.get(magic, open)
        with opener(path, "rb") as file:
            content: bytes = file.read()
    if not content or content.isspace():
        raise Damaged("is empty", path)
    return content


@contextlib.contextmanager
def reading(*paths: Path) -> Iterator[None]:
    """Turn what parsers raise into :class:`Damaged`, naming the files.

    Parameters
    ----------
    *paths : Path
        The files being read.
    """
    try:
        yield
    except Damaged as error:
        raise Damaged(error.what, *(error.paths or paths)) from None
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(f"cannot be read: {_reason(error)}", *paths) from None


def _download(url: str, path: Path) -> None:
    # Not pooch.retrieve, which hashes and places each file by itself: here the whole container is
    # checked before any of its files gets its name.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    pooch.HTTPDownloader(progressbar=terminal)(url, path, None)


def _reason(error: Exception) -> str:
    """What went wrong, in words short enough for the middle of a sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    if type(error).__module__.startswith("requests"):
        return type(error).__name__  # its text tells of connection pools and retries
    return str(error).rstrip(".") or type(error).__name__


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pixels(height: int, width: int) -> list[str]:
    return [f"pixel_{row}_{column}" for row in range(height) for column in range(width)]
