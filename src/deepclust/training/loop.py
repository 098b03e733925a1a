"""What the loops share: state, events, batches, and the steps themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..runtime import Purpose, generator
from .schedules import Schedule, set_hyper

__all__ = ["BatchOrder", "Event", "Losses", "State", "Target", "minimise", "next_stop"]

Losses = Mapping[str, Tensor]


@dataclass
class State:
    """What a stage of training has reached: all that is needed, with the arguments, to go on.

    Attributes
    ----------
    module : nn.Module
        The trained network.
    optimizer : torch.optim.Optimizer
        Over the parameters of ``module``.
    seed : int
        Of the whole fit.
    step : int
        Optimiser steps done in this stage.
    target : Target or None
        What the last refresh left behind (self-training only).
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    seed: int
    step: int = 0
    target: Target | None = None


@dataclass
class Target:
    """The frozen Q from which P is formed, batch by batch, until the next refresh.

    The embedding is kept and not P itself: its size does not depend on the number of clusters.

    Attributes
    ----------
    step : int
        Step at which it was taken.
    z : Tensor of shape (n_samples, n_dims), float32
        Embedding of all rows.
    centroids : Tensor of shape (n_clusters, n_dims), float32
        Centroids at that step.
    frequency : Tensor of shape (n_clusters,), float64
        Soft cluster frequency over all rows.
    labels : Tensor of shape (n_samples,), int64
        argmax of Q.
    """

    step: int
    z: Tensor
    centroids: Tensor
    frequency: Tensor
    labels: Tensor


@dataclass
class Event:
    """What happened since the last event.

    Attributes
    ----------
    phase : str
        ``"pretrain"`` or ``"self-train"``.
    stage : str
        ``"layer 1"`` ..., ``"autoencoder"`` or ``"clustering"``.
    step, n_steps : int
        Optimiser steps done in this stage, and planned at most.
    state : State
        Live: look, do not change.
    losses : dict of str to Tensor of shape ()
        Means over the steps since the last event, on the device; empty at a refresh.
    labels : Tensor of shape (n_samples,), int64, or None
        Hard assignments, at a refresh.
    changed : float or None
        Share of ``labels`` that differ from the refresh before; ``None`` when there was none.
    """

    phase: str
    stage: str
    step: int
    n_steps: int
    state: State
    losses: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    changed: float | None = None


class BatchOrder:
    """Row numbers of each batch, a function of (seed, stage, step).

    Epochs follow each other without a gap, so that every batch has the same size: a batch may hold
    the end of one epoch and the start of the next, as in the authors' code.

    Parameters
    ----------
    n_rows : int
        Of the whole data set.
    batch_size : int
        Rows of a batch.
    seed, stage : int
        Key of the permutations.
    shuffle : bool, default=True
        False walks through the rows in their order, as the authors' code does.
    """

    def __init__(
        self, n_rows: int, batch_size: int, seed: int, stage: int, *, shuffle: bool = True
    ) -> None:
        self.n_rows = n_rows
        self.batch_size = batch_size
        self._key = (seed, stage)
        self._shuffle = shuffle
        self._epoch = -1
        self._order: NDArray[np.int64] = np.arange(n_rows)

    def __call__(self, step: int) -> NDArray[np.int64]:
        """Row numbers of batch ``step``, of shape (batch_size,)."""
        first, parts, missing = step * self.batch_size, [], self.batch_size
        while missing:
            epoch, offset = divmod(first, self.n_rows)
            part = self._epoch_order(epoch)[offset : offset + missing]
            parts.append(part)
            missing -= len(part)
            first += len(part)
        return np.concatenate(parts)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._shuffle and epoch != self._epoch:
            self._order = generator(*self._key, Purpose.ORDER, epoch).permutation(self.n_rows)
            self._epoch = epoch
        return self._order


def minimise(
    state: State, losses_of: Callable[[int], Losses], schedule: Schedule, until: int
) -> dict[str, Tensor]:
    """Take optimiser steps up to ``until`` and return the mean of each loss over them.

    Nothing is moved to the host: converting the result is the only synchronisation.

    Parameters
    ----------
    state : State
        Advanced in place.
    losses_of : callable
        Loss terms by name for a step number; their sum is minimised.
    schedule : callable
        :class:`Hyper` of a step number.
    until : int
        Step to reach.
    """
    sums: dict[str, Tensor] = {}
    n_steps = until - state.step
    while state.step < until:
        set_hyper(state.optimizer, schedule(state.step))
        losses = losses_of(state.step)
        state.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        for name, value in losses.items():
            value = value.detach()
            # clone: a compiled or captured step may hand out the same memory again
            sums[name] = sums[name] + value if name in sums else value.clone()
        state.step += 1
    return {name: total / n_steps for name, total in sums.items()}


def next_stop(step: int, n_steps: int, *intervals: int) -> int:
    """Step at which the next chunk ends: a multiple of an interval, or the last."""
    return min(n_steps, *((step // every + 1) * every for every in intervals))
