"""Public data sets, each one file with licence, citation and every container known to hold it.

A copy is looked for in ``<data home>/<name>/`` and fetched if it is not there. Whatever it comes
in, its decoded values and labels must have the recorded SHA-256, so ``load`` gives the same
arrays everywhere.

>>> from deepclust import datasets
>>> X, y = datasets.load("digits", return_X_y=True)
>>> X.shape, y.shape
((1797, 64), (1797,))
"""

from __future__ import annotations

from typing import Literal, overload

from sklearn.utils import Bunch

# To add a data set, write its file and import it here.
from deepclust.datasets import digits as digits
from deepclust.datasets import mnist as mnist
from deepclust.datasets import usps as usps
from deepclust.datasets._base import Dataset, DatasetError, PathLike, Target, Values, get_data_home

__all__ = ["DatasetError", "get_data_home", "load", "names"]

_DATASETS: dict[str, Dataset] = {
    module.DATASET.name: module.DATASET
    for module in list(globals().values())
    if hasattr(module, "DATASET")
}


def names() -> list[str]:
    """Names of the data sets that :func:`load` knows, sorted.

    Returns
    -------
    list of str

    Examples
    --------
    >>> names()
    ['digits', 'mnist', 'usps']
    """
    return sorted(_DATASETS)


@overload
def load(
    name: str, *, data_home: PathLike | None = None, return_X_y: Literal[False] = False
) -> Bunch: ...


@overload
def load(
    name: str, *, data_home: PathLike | None = None, return_X_y: Literal[True]
) -> tuple[Values, Target]: ...


def load(
    name: str, *, data_home: PathLike | None = None, return_X_y: bool = False
) -> Bunch | tuple[Values, Target]:
    """Load a data set by name, fetching it first if the data home has no copy.

    ``datasets.mnist.load()`` is the same as ``datasets.load("mnist")``.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    data_home : path-like, optional
        Folder with one subfolder per data set. By default the environment variable
        ``DEEPCLUST_DATA``, or else the user's cache folder.
    return_X_y : bool, default=False
        Return ``(X, y)`` instead of a Bunch.

    Returns
    -------
    Bunch
        ``data`` (n_samples, n_features); ``target`` (n_samples,), int64 from 0; ``target_names``;
        ``n_train`` and ``image_shape``, None where there is none; ``feature_names``, for images;
        ``source``, the files read; ``DESCR``, with licence and citation.
    tuple of (data, target)
        If ``return_X_y``.

    Raises
    ------
    ValueError
        If the name is not known.
    DatasetError
        If there is no copy and none can be fetched, or if a copy is incomplete, damaged or not
        genuine.
    """
    if name not in _DATASETS:
        raise ValueError(f"{name!r} is not a known data set; choose one of {', '.join(names())}.")
    dataset = _DATASETS[name]
    if return_X_y:
        return dataset.load(data_home=data_home, return_X_y=True)
    return dataset.load(data_home=data_home)
