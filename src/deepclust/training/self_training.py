"""Self-training on KL(P||Q), P from all rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..functional import cluster_frequency, kl_divergence, soft_assignment, target_distribution
from ..networks import ClusterNet
from ..rows import Rows
from ..runtime import Runtime
from .loop import BatchOrder, Event, Losses, State, Target, minimise, next_stop
from .schedules import Schedule

__all__ = ["REFRESH_BLOCK", "self_train"]

# Rows embedded at once when P is refreshed.
REFRESH_BLOCK = 8192


@torch.no_grad()
def _refresh(state: State, net: ClusterNet, rows: Rows, runtime: Runtime) -> Target:
    """Embed all rows and keep what P of the next interval needs."""
    net.eval()
    embedded: list[Tensor] = []
    labels: list[Tensor] = []
    frequency = torch.zeros(len(net.centroids), dtype=torch.float64, device=runtime.device)
    n_clusters, n_dims = net.centroids.shape
    # The differences z - mu take n_clusters * n_dims numbers a row: keep them to the size of a
    # block of activations.
    part = max(1, REFRESH_BLOCK * 2000 // (n_clusters * n_dims))
    for x in rows.blocks(REFRESH_BLOCK):
        with runtime.autocast():
            z = net.encoder(x)
        embedded.append(z.float())
        for points in torch.split(embedded[-1], part):
            log_q = net.assign(points)
            frequency += cluster_frequency(log_q)
            labels.append(log_q.argmax(dim=1))
    net.train()
    centroids = net.centroids.detach().clone()
    return Target(state.step, torch.cat(embedded), centroids, frequency, torch.cat(labels))


def self_train(
    state: State,
    rows: Rows,
    runtime: Runtime,
    schedule: Schedule,
    *,
    n_steps: int,
    batch_size: int,
    update_interval: int,
    stage: int = 100,
    shuffle: bool = True,
    reset_momentum: bool = False,
    log_interval: int = 100,
) -> Iterator[Event]:
    """Alternate "compute P from all rows" and "minimise KL(P||Q)".

    Section "KL divergence minimization".
    P is global: the cluster frequency is summed over the whole data set and P stays as it is for
    ``update_interval`` steps. The caller stops at a refresh whose ``changed`` is below the
    tolerance.

    Parameters
    ----------
    state : State
        Its module is a :class:`ClusterNet`.
    rows, runtime, schedule, batch_size, shuffle, log_interval
        As for :func:`pretrain`.
    n_steps : int
        Steps at most.
    update_interval : int
        Steps between two refreshes of P, the paper's lambda.
    stage : int, default=100
        Keys the batch order.
    reset_momentum : bool, default=False
        Forget the velocity at each refresh, as the authors' code does because it restarts its
        solver there.

    Yields
    ------
    Event
        At each refresh, with ``labels`` and ``changed``, and after each chunk of steps, with the
        loss ``"kl"``.
    """
    net = state.module
    assert isinstance(net, ClusterNet)
    order = BatchOrder(len(rows), batch_size, state.seed, stage, shuffle=shuffle)

    def step(x: Tensor, p: Tensor) -> Tensor:
        with runtime.autocast():
            z = net.encoder(x)
        return kl_divergence(p, net.assign(z))

    compiled = runtime.compiled(step)

    def losses_of(number: int) -> Losses:
        target = state.target
        assert target is not None
        index = order(number)
        with torch.no_grad():
            z = target.z[torch.from_numpy(index).to(runtime.device)]
            log_q = soft_assignment(z, target.centroids, net.alpha)
            p = target_distribution(log_q, target.frequency)
        return {"kl": compiled(rows.batch(index), p)}

    net.train()
    while True:
        due = state.step % update_interval == 0
        if due and (state.target is None or state.target.step != state.step):
            before, state.target = state.target, _refresh(state, net, rows, runtime)
            labels = state.target.labels
            changed = None
            if before is not None:
                changed = (labels != before.labels).double().mean().item()
            if reset_momentum:
                state.optimizer.state.clear()
            yield Event(
                "self-train",
                "clustering",
                state.step,
                n_steps,
                state,
                labels=labels,
                changed=changed,
            )
        if state.step >= n_steps:
            return
        stop = next_stop(state.step, n_steps, update_interval, log_interval)
        losses = minimise(state, losses_of, schedule, stop)
        yield Event("self-train", "clustering", state.step, n_steps, state, losses)
