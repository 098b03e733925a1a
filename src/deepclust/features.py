"""Features: how input columns are scaled before the first layer sees them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.preprocessing import StandardScaler

__all__ = ["Scaling", "fit_scaling"]

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scaling:
    """``(x - shift) * factor``, computed in the precision of ``x`` and handed on as float32.

    Attributes
    ----------
    factor : float or ndarray of shape (n_features,), float64
        One factor for the whole table, or one for each column.
    shift : ndarray of shape (n_features,), float64, or None
        Subtracted first; ``None`` for no centring.
    """

    factor: float | NDArray[np.float64] = 1.0
    shift: NDArray[np.float64] | None = None

    def apply(self, block: Any) -> NDArray[np.float32]:
        """Scale a block of rows.

        Parameters
        ----------
        block : ndarray or sparse matrix of shape (n, n_features)
            Numbers of any type.

        Returns
        -------
        ndarray of shape (n, n_features), float32
            A new, writable array.

        Raises
        ------
        ValueError
            If a value leaves the range of float32.
        """
        if sparse.issparse(block):
            block = block.toarray()
        values: NDArray[Any] = np.asarray(block)
        # float64 values may exceed float32 before they are scaled, and so may the factor of tiny
        # ones: scale first, convert then.
        work = np.result_type(values.dtype, np.float32)
        if self.shift is not None or np.max(self.factor) > FLOAT32_MAX:
            work = np.result_type(work, np.float64)
        if self.shift is not None:
            values = values - self.shift
        out: NDArray[np.float32]
        with np.errstate(over="ignore"):
            values = np.multiply(values, np.asarray(self.factor, dtype=work), dtype=work)
            out = values.astype(np.float32, copy=False)
        if not np.isfinite(out).all():
            raise ValueError(
                "X has values too large for float32 after scaling; divide its columns by a common "
                "factor first."
            )
        return out

    def invert(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Undo :meth:`apply`; float32 of the same shape."""
        values = x / np.asarray(self.factor, dtype=np.float64)
        if self.shift is not None:
            values = values + self.shift
        return values.astype(np.float32)


def fit_scaling(blocks: Iterable[Any], scaling: str | float | None) -> Scaling:
    """Work out the input scaling from one pass over the training rows.

    Parameters
    ----------
    blocks : iterable of ndarray or CSR matrix, each of shape (n, n_features)
        The training rows, piece by piece.
    scaling : {"unit", "standard"}, float or None
        ``"unit"``: one factor for the whole table that makes the mean of x² one, the paper's rule
        (section "Datasets": (1/d) |x|² is about 1), taken over the whole table and not row by row.
        ``"standard"``: columns are centred and divided by their standard deviation. A number is
        used as the factor. ``None``: no scaling.

    Returns
    -------
    Scaling

    Raises
    ------
    ValueError
        For an unknown ``scaling``, or values whose squares exceed float64.

    Warns
    -----
    UserWarning
        If the ranges of two columns differ more than 100-fold, unless ``scaling="standard"``.
        Ranges and not standard deviations, because a column which is zero in almost all rows (a
        corner pixel, a rare word) is no harm.
    """
    number = isinstance(scaling, Real) and not isinstance(scaling, bool)
    if not (
        scaling is None or number or (isinstance(scaling, str) and scaling in ("unit", "standard"))
    ):
        raise ValueError(
            f"scaling={scaling!r} is not one of 'unit', 'standard', a positive number, None."
        )
    if number and not 0 < float(scaling) < np.inf:  # type: ignore[arg-type]
        raise ValueError(f"scaling={scaling!r} is not a positive, finite number.")

    squares, n_values = 0.0, 0
    low: Any = np.inf
    high: Any = -np.inf
    columns = StandardScaler()
    for block in blocks:
        low = np.minimum(low, _dense_row(block.min(axis=0)))
        high = np.maximum(high, _dense_row(block.max(axis=0)))
        n_values += block.shape[0] * block.shape[1]
        if scaling == "unit":
            values = np.asarray(block.data if sparse.issparse(block) else block).ravel()
            with np.errstate(over="ignore"):
                # unsafe: extended precision is squared in double
                squares += float(
                    np.einsum("i,i->", values, values, dtype=np.float64, casting="unsafe")
                )
        elif scaling == "standard":
            columns.partial_fit(block.toarray() if sparse.issparse(block) else block)

    if scaling == "standard":
        return Scaling(1.0 / columns.scale_, columns.mean_)
    spread = (high - low)[high > low]
    if spread.size and spread.max() > 100 * spread.min():
        warnings.warn(
            f"Columns differ in range by a factor of {spread.max() / spread.min():.3g}: the widest "
            "will decide the clusters. Pass scaling='standard' to give each column the same "
            "weight.",
            UserWarning,
            stacklevel=2,
        )
    if scaling != "unit":
        return Scaling(1.0 if scaling is None else float(scaling))
    if not np.isfinite(squares):
        raise ValueError(
            "X has values whose squares exceed float64; divide its columns by a common factor "
            "first."
        )
    return Scaling(float(np.sqrt(n_values / squares)) if squares > 0 else 1.0)


def _dense_row(row: Any) -> NDArray[np.float64]:
    dense = row.toarray() if sparse.issparse(row) else np.asarray(row)
    return dense.ravel().astype(np.float64)
