"""Agreement between a clustering and known classes: labels in, numbers out.

Labels are names only. They may be any hashable values (integers with gaps, strings, tuples), the
two labellings may use different ones, and there may be more or fewer clusters than classes. A noise
label counts as a cluster like any other.

All of this needs the true classes, so it is for evaluation: nothing that fits a model looks at it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

__all__ = ["Confusion", "ari", "clustering_accuracy", "confusion", "nmi"]

Labels = npt.ArrayLike | Sequence[Hashable]
"""One label per sample, (n_samples,): any array-like, or a sequence of hashable values."""


class Confusion(NamedTuple):
    """Counts of classes against clusters, clusters brought in line with the classes.

    The pairs that the best matching formed come first and in the same order on both sides, so the
    diagonal holds the matched counts and ``matrix.trace() / matrix.sum()`` is the clustering
    accuracy.
    """

    matrix: npt.NDArray[np.int64]
    """Samples per class and cluster, (n_classes, n_clusters)."""
    classes: list[Any]
    """Class of each row. With at least as many clusters as classes, all of them in sorted order;
    otherwise the unmatched ones follow the matched ones."""
    clusters: list[Any]
    """Cluster of each column: the partners of the rows, then the unmatched ones, largest first."""


def clustering_accuracy(y_true: Labels, y_pred: Labels) -> float:
    r"""Share of samples labelled rightly under the best matching of clusters to classes (ACC).

    .. math:: \mathrm{ACC} = \max_m \frac{1}{n} \sum_i 1\{l_i = m(c_i)\}

    where *m* runs over the one-to-one mappings between clusters *c* and classes *l* (Xie et al.
    2016, eq. 10). The Hungarian algorithm finds the best one.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Classes.
    y_pred : array-like of shape (n_samples,)
        Clusters.

    Returns
    -------
    float
        Between 0 (exclusive) and 1. Samples of a cluster that no class is left for count as wrong.

    Raises
    ------
    ValueError
        If the labels are empty, not one-dimensional, missing (NaN) or of different length.

    Examples
    --------
    >>> clustering_accuracy(["a", "a", "b", "b"], [7, 7, 7, 0])
    0.75
    """
    matrix = _contingency(*_codes(y_true, y_pred))
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return float(matrix[rows, columns].sum() / matrix.sum())


def nmi(y_true: Labels, y_pred: Labels) -> float:
    r"""Normalised mutual information, with the arithmetic mean of the entropies as in the paper.

    .. math:: \mathrm{NMI}(l, c) = \frac{I(l, c)}{\frac{1}{2} (H(l) + H(c))}

    Other papers divide by the geometric mean or by the larger entropy; the numbers differ.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)
        Classes and clusters. Swapping them changes nothing.

    Returns
    -------
    float
        Between 0 and 1; 1 when both labellings put all samples into one group.

    Raises
    ------
    ValueError
        If the labels are empty, not one-dimensional, missing (NaN) or of different length.

    Examples
    --------
    >>> nmi([0, 0, 1, 1], ["b", "b", "a", "a"])
    1.0
    """
    true, pred = _codes(y_true, y_pred)
    return float(normalized_mutual_info_score(true, pred, average_method="arithmetic"))


def ari(y_true: Labels, y_pred: Labels) -> float:
    """Rand index adjusted for chance (Hubert and Arabie 1985).

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)
        Classes and clusters. Swapping them changes nothing.

    Returns
    -------
    float
        1 for the same partition, about 0 for a random one, down to -0.5.

    Raises
    ------
    ValueError
        If the labels are empty, not one-dimensional, missing (NaN) or of different length.

    Examples
    --------
    >>> ari([0, 0, 1, 1], [0, 1, 0, 1])
    -0.5
    """
    true, pred = _codes(y_true, y_pred)
    return float(adjusted_rand_score(true, pred))


def confusion(y_true: Labels, y_pred: Labels) -> Confusion:
    """Contingency matrix whose columns are ordered by the best matching of clusters to classes.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Classes.
    y_pred : array-like of shape (n_samples,)
        Clusters.

    Returns
    -------
    Confusion
        ``matrix`` (n_classes, n_clusters) of int64, with ``classes`` and ``clusters``, the labels
        of its rows and columns.

    Raises
    ------
    ValueError
        If the labels are empty, not one-dimensional, missing (NaN) or of different length.

    Examples
    --------
    >>> matrix, classes, clusters = confusion(["cat", "cat", "dog", "dog"], [5, 5, 5, 2])
    >>> matrix
    array([[2, 0],
           [1, 1]])
    >>> classes, clusters
    (['cat', 'dog'], [5, 2])
    """
    classes, true = _encode(y_true, "y_true")
    clusters, pred = _encode(y_pred, "y_pred")
    _check_lengths(true, pred)
    matrix = _contingency(true, pred)
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    by_size = np.argsort(-matrix.sum(axis=0), kind="stable")
    rows = _followed_by(rows, range(len(classes)))
    columns = _followed_by(columns, by_size)
    return Confusion(
        matrix[np.ix_(rows, columns)],
        [classes[i] for i in rows],
        [clusters[j] for j in columns],
    )


def _followed_by(first: Iterable[int], rest: Iterable[int]) -> list[int]:
    return list(dict.fromkeys([*map(int, first), *map(int, rest)]))


def _contingency(true: npt.NDArray[np.int64], pred: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    n_classes, n_clusters = int(true.max()) + 1, int(pred.max()) + 1
    cells = np.bincount(true * n_clusters + pred, minlength=n_classes * n_clusters)
    return cells.reshape(n_classes, n_clusters).astype(np.int64, copy=False)


def _codes(y_true: Labels, y_pred: Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    true, pred = _encode(y_true, "y_true")[1], _encode(y_pred, "y_pred")[1]
    _check_lengths(true, pred)
    return true, pred


def _check_lengths(true: npt.NDArray[np.int64], pred: npt.NDArray[np.int64]) -> None:
    if len(true) != len(pred):
        raise ValueError(
            f"y_true has {len(true)} labels and y_pred has {len(pred)}; "
            "pass one class and one cluster per sample, in the same order."
        )


def _encode(y: Labels, name: str) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """Number the distinct labels: the labels, sorted where they can be, and one code per sample."""
    if hasattr(y, "__array__"):
        array = np.asarray(y)
        if array.ndim != 1:
            raise ValueError(
                f"{name} has shape {array.shape}; pass one label per sample, shape (n_samples,). "
                "For probabilities or one-hot rows, take argmax(axis=1) first."
            )
        y = array.tolist()  # Python values, so that 1, 1.0 and np.int64(1) print and compare alike
    # A list is not made an array: NumPy would turn [1, "1"] into one label and tuples into columns.
    try:
        labels = list(y)  # type: ignore[arg-type]
        codes: dict[Any, int] = {}
        numbers = [codes.setdefault(label, len(codes)) for label in labels]
    except TypeError:
        raise ValueError(
            f"{name} is not a sequence of hashable labels; "
            "pass one label per sample, shape (n_samples,)."
        ) from None
    if not numbers:
        raise ValueError(f"{name} is empty; pass the labels of at least one sample.")
    if any(label != label for label in codes):
        raise ValueError(
            f"{name} holds NaN, which is no label; drop those samples or call them -1."
        )
    try:
        distinct = sorted(codes)
    except TypeError:  # mixed types have no order; keep that of appearance
        distinct = list(codes)
    rank = {label: i for i, label in enumerate(distinct)}
    order = np.array([rank[label] for label in codes], dtype=np.int64)
    return distinct, order[np.array(numbers, dtype=np.int64)]
