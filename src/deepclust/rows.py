"""Data in: one face for arrays, memory maps, data frames and sparse matrices.

The loops know how many rows there are and ask for some of them; nothing here copies the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from .features import Scaling

__all__ = ["BLOCK", "Rows", "check_rows"]

# Rows of one block of the float32 passes (predict, transform, final labels). Every block is filled
# up to this many rows, because matrix libraries choose other kernels, hence other roundings, for
# other shapes.
BLOCK = 256


def check_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """Validate input rows and feature names as scikit-learn does, without converting the whole.

    Parameters
    ----------
    estimator : BaseEstimator
        Its ``n_features_in_`` and ``feature_names_in_`` are set (``reset=True``) or compared with.
    X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
        Numbers, all finite.
    reset : bool
        True in ``fit``.

    Returns
    -------
    ndarray or CSR matrix
        The rows in their own number type where that is possible (a view for arrays and memory
        maps). Data frames with columns of several types become float32 if
        that tells their values apart.

    Raises
    ------
    ValueError
        As :func:`sklearn.utils.check_array` does.
    """
    dtypes = getattr(X, "dtypes", None)
    if dtypes is not None and hasattr(X, "columns") and hasattr(X, "to_numpy"):
        kinds = list(dtypes)
        names = X
        numbers = all(getattr(kind, "kind", "O") in "biuf" for kind in kinds)
        if len(set(kinds)) > 1 and numbers and _fits_float32(X):
            # NumPy would go through float64 for the whole table.
            X = X.to_numpy(dtype=np.float32)
            validate_data(estimator, names, reset=reset, skip_check_array=True)
            return check_array(X, estimator=estimator, input_name="X")
    return validate_data(estimator, X, accept_sparse="csr", dtype="numeric", reset=reset)


def _fits_float32(frame: Any) -> bool:
    """Whether float32 tells the values of each column apart: not for time stamps of one day."""
    low = np.asarray(frame.min(), dtype=np.float64)
    high = np.asarray(frame.max(), dtype=np.float64)
    size = np.maximum(np.abs(low), np.abs(high))
    return not ((high > low) & (high - low < 1e-3 * size)).any()


class Rows:
    """Rows by number, scaled, as float32 tensors on a device.

    Parameters
    ----------
    X : ndarray, memory map or CSR matrix of shape (n_samples, n_features)
        Kept as it is, never written to.
    scaling : Scaling
        Applied to each batch and block.
    device : torch.device
        Where the tensors go.
    """

    def __init__(self, X: Any, scaling: Scaling, device: torch.device) -> None:
        self.X = X.tocsr() if sparse.issparse(X) else X
        self.scaling = scaling
        self.device = device

    def __len__(self) -> int:
        return int(self.X.shape[0])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.X.shape[1])

    def batch(self, index: NDArray[np.int64]) -> Tensor:
        """The rows ``index``, of shape (len(index), n_features)."""
        return self._tensor(self.X[index])

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, ``size`` at a time; the last block may be shorter."""
        for start in range(0, len(self), size):
            yield self._tensor(self.X[start : start + size])

    def _tensor(self, block: Any) -> Tensor:
        return torch.from_numpy(self.scaling.apply(block)).to(self.device)
