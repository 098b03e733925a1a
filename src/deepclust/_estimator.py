"""What the estimators share: callbacks, history, float32 passes over rows, pickling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from os import PathLike
from time import perf_counter
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .callbacks import Callback, Progress
from .rows import BLOCK, Rows
from .training import Event

__all__ = [
    "TorchEstimator",
    "all_or_nothing",
    "check_bool",
    "check_finite",
    "fill",
    "float32_blocks",
    "to_numpy",
]

Fit = TypeVar("Fit", bound=Callable[..., Any])


class _RowsAlike(TorchFunctionMode):
    """Linear layers give a row the same bits wherever it stands in its block.

    ``x @ W.T`` does not: matrix libraries take other paths for rows at other addresses and at the
    edges of what one thread computes. As ``W @ x.T``, each row is a lane of the vector units, and
    all lanes add up in the same order. Belongs to the calling thread.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_linear if func is nn.functional.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.ndim != 2:
        return nn.functional.linear(input, weight, bias)
    columns = weight @ input.T.contiguous()  # (n_out, n_in) @ (n_in, n) -> (n_out, n)
    return (columns if bias is None else columns + bias[:, None]).T


def fill(block: Tensor) -> Tensor:
    """Append rows of zeros up to the fixed number of rows of a block."""
    return nn.functional.pad(block, (0, 0, 0, BLOCK - len(block)))


def float32_blocks(module: nn.Module, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
    """Outputs of a module for all rows: the path behind every number an estimator hands out.

    Float32, uncompiled, in blocks filled up to a fixed size, so that a row gives the same bits
    alone, in any company and after loading.

    Parameters
    ----------
    module : nn.Module
        Put into evaluation mode.
    rows : Rows
        Input.

    Yields
    ------
    slice, Tensor of shape (n, n_out)
        Where the rows stand, and their float32 output.
    """
    module.eval()
    start = 0
    for x in rows.blocks(BLOCK):
        n = len(x)
        # The caller may have switched autocast on.
        with _RowsAlike(), torch.inference_mode(), torch.autocast(x.device.type, enabled=False):
            out = module(fill(x))[:n].float().contiguous()
        yield slice(start, start + n), out
        start += n


def check_finite(estimator: BaseEstimator, *names: str) -> None:
    """Raise ``ValueError`` if a parameter is NaN or infinite, which no comparison finds."""
    for name in names:
        value = getattr(estimator, name)
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name}={value!r} is not a finite number.")


def check_bool(estimator: BaseEstimator, *names: str) -> None:
    """Raise ``ValueError`` if a parameter is neither True nor False."""
    for name in names:
        value = getattr(estimator, name)
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}={value!r} is not True or False.")


def all_or_nothing(fit: Fit) -> Fit:
    """Let a ``fit`` that fails leave the estimator as it was: unfitted, or with its earlier fit."""

    @wraps(fit)
    def wrapper(self: TorchEstimator, *args: Any, **kwargs: Any) -> Any:
        before = self.__dict__.copy()
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            self.__dict__ = before
            raise

    return wrapper  # type: ignore[return-value]


class TorchEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the estimators that train a network."""

    verbose: int

    def set_callbacks(self, *callbacks: Callback) -> Self:
        """Look on while fitting; replaces the callbacks set before.

        Callbacks are no parameters: ``clone`` and pickles leave them behind.

        Parameters
        ----------
        *callbacks : callable
            Called with each :class:`~deepclust.training.Event`; returning ``True`` ends the running
            stage, and the fit goes on with the next.

        Returns
        -------
        self
        """
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(f"{callback!r} is no callback; pass callables that take an Event.")
        self._callbacks = callbacks
        return self

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the fitted model to a folder, to be read by :func:`deepclust.load`.

        Parameters
        ----------
        folder : path
            Created when missing. A model in it is replaced at one stroke.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        """
        from .storage import save

        save(self, folder)

    # -- while fitting -----------------------------------------------------------------------------

    def _start_history(self) -> None:
        self.history_: list[dict[str, Any]] = []
        self.phase_seconds_: dict[str, float] = {}
        self._fit_start = perf_counter()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.phase_seconds_[name] = self.phase_seconds_.get(name, 0.0) + perf_counter() - start

    def _run(self, events: Iterable[Event], tol: float = 0.0) -> None:
        """Take events until a callback returns True or fewer than ``tol`` of the labels changed."""
        progress = Progress() if self.verbose else None
        callbacks = [*getattr(self, "_callbacks", ()), *([progress] if progress else ())]
        try:
            for event in events:
                self.history_.append(self._record(event))
                # All are called before any is obeyed: every callback sees every event.
                answers = [callback(event) for callback in callbacks]
                if True in answers or (event.changed is not None and event.changed < tol):
                    break
        finally:
            if progress is not None:
                progress.close()

    def _record(self, event: Event) -> dict[str, Any]:
        record: dict[str, Any] = {
            "phase": event.phase,
            "stage": event.stage,
            "step": event.step,
            "seconds": round(perf_counter() - self._fit_start, 3),
        }
        if event.labels is not None:
            record["refresh"] = True
        if event.changed is not None:
            record["changed"] = event.changed
        for name, value in event.losses.items():
            record[name] = value.item()
            if not np.isfinite(record[name]):
                raise FloatingPointError(
                    f"The loss {name!r} became {record[name]} in stage {event.stage!r} before step "
                    f"{event.step}; use scaling='unit' or 'standard', or a lower learning rate."
                )
        return record

    # -- after fitting -----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_callbacks", None)
        for name, value in state.items():
            if isinstance(value, nn.Module) and name.endswith("_"):
                state[name] = copy.deepcopy(value).cpu()
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __getattr__(self, name: str) -> Any:
        # Only reached for attributes that are missing.
        if name in self.__dict__.get("_not_in_file", ()):
            raise AttributeError(
                f"{name} belongs to the fit and is not kept in a model file; this "
                f"{type(self).__name__} was loaded. Read it from the fitted estimator, or from "
                f"the run folder of the command line."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to a NumPy array on the host."""
    return tensor.detach().cpu().numpy().copy()
