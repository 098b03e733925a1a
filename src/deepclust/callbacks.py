"""Looking on: callables on an Event, which return ``True`` to end the stage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from .metrics import ari, clustering_accuracy, nmi
from .training import Event

__all__ = ["Callback", "Evaluate", "Progress", "Snapshots"]

Callback = Callable[[Event], bool | None]


class Progress:
    """A bar for each stage, with its losses and the share of labels that changed.

    Parameters
    ----------
    file : text stream, optional
        Where to draw; standard error by default.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self._bar: tqdm[Any] | None = None
        self._facts: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Draw the state of the stage."""
        if self._bar is None or self._bar.desc != event.stage:
            self.close()
            self._bar = tqdm(desc=event.stage, total=event.n_steps, file=self.file or sys.stderr)
        self._facts |= {name: f"{value.item():.4g}" for name, value in event.losses.items()}
        if event.changed is not None:
            self._facts["changed"] = f"{event.changed:.2%}"
        self._bar.set_postfix(self._facts, refresh=False)
        self._bar.update(event.step - self._bar.n)

    def close(self) -> None:
        """Finish the bar that is being drawn."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._facts = None, {}


class Evaluate:
    """Accuracy, NMI and ARI at every refresh; for looking on, never for training.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        True labels of the training rows.

    Attributes
    ----------
    scores : list of dict
        ``step``, ``acc``, ``nmi``, ``ari`` of each refresh.
    """

    def __init__(self, y: ArrayLike) -> None:
        self.y = np.asarray(y)
        self.scores: list[dict[str, float]] = []

    def __call__(self, event: Event) -> None:
        """Score the labels of a refresh."""
        if event.labels is None:
            return
        labels = event.labels.cpu().numpy()
        self.scores.append(
            {
                "step": event.step,
                "acc": clustering_accuracy(self.y, labels),
                "nmi": nmi(self.y, labels),
                "ari": ari(self.y, labels),
            }
        )


class Snapshots:
    """Early looks: the embedding and the labels of some rows at every refresh.

    Parameters
    ----------
    rows : array-like of shape (n_rows,), int
        Which training rows to keep.

    Attributes
    ----------
    steps : list of int
        Step of each refresh.
    embeddings : list of ndarray of shape (n_rows, n_dims), float32
        Embedded rows.
    labels : list of ndarray of shape (n_rows,), int64
        Their labels.
    """

    def __init__(self, rows: ArrayLike) -> None:
        self.rows = np.asarray(rows)
        self.steps: list[int] = []
        self.embeddings: list[NDArray[np.float32]] = []
        self.labels: list[NDArray[np.int64]] = []

    def __call__(self, event: Event) -> None:
        """Copy the rows at a refresh."""
        if event.labels is None or event.state.target is None:
            return
        self.steps.append(event.step)
        self.embeddings.append(event.state.target.z.cpu().numpy()[self.rows])
        self.labels.append(event.labels.cpu().numpy()[self.rows])
