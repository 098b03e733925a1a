"""The loops: pretraining of the autoencoder, and self-training on KL(P||Q).

Each loop is a generator. It yields an :class:`Event` after every chunk of steps, and in
self-training at every refresh of P before any further step; the caller decides what to do about it,
including when to stop. A :class:`State` is all that is needed to go on: batch order and dropout
masks depend on the seed and the step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import cos, pi
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .functional import cluster_frequency, kl_divergence, soft_assignment, target_distribution
from .networks import AutoencoderNet, ClusterNet, mlp_widths
from .rows import Rows
from .runtime import Purpose, Runtime, generator

__all__ = [
    "BatchOrder",
    "Event",
    "Hyper",
    "LayerPair",
    "State",
    "constant",
    "layer_pairs",
    "minimise",
    "one_cycle",
    "pretrain",
    "pretrain_layer",
    "reconstruction_error",
    "self_train",
    "sgd",
    "step_decay",
]

REFRESH_BLOCK = 8192

Losses = Mapping[str, Tensor]


# -- what a loop works on and what it tells --------------------------------------------------------


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


# -- learning rate and momentum as functions of the step -------------------------------------------


class Hyper(NamedTuple):
    """Learning rate, and momentum where the optimiser has one, of one step."""

    lr: float
    momentum: float = 0.9


Schedule = Callable[[int], Hyper]


def constant(lr: float, momentum: float = 0.9) -> Schedule:
    """Return the same rate throughout, as in the paper's KL stage."""
    return lambda step: Hyper(lr, momentum)


def step_decay(
    lr: float, every: int, burn_in: int, *, gamma: float = 0.1, momentum: float = 0.9
) -> Schedule:
    """Return the paper's schedule of the autoencoder: times ``gamma`` after every ``every`` steps.

    The momentum grows linearly from 0 during the first ``burn_in`` steps, as in the authors' Caffe.
    """

    def schedule(step: int) -> Hyper:
        share = min(1.0, step / burn_in) if burn_in else 1.0
        return Hyper(lr * gamma ** (step // every), momentum * share)

    return schedule


def one_cycle(lr: float, n_steps: int, *, warm_up: float = 0.3) -> Schedule:
    """Return a half cosine from ``lr / 25`` up to ``lr`` and one down to almost zero.

    The "1cycle" of Smith and Topin 2019, with the numbers of PyTorch's ``OneCycleLR``.
    """
    last = n_steps - 1
    peak = max(0.0, warm_up * n_steps - 1)

    def schedule(step: int) -> Hyper:
        if step < peak:
            low, share = lr / 25, 1 - step / peak
        else:
            low, share = lr / 25 * 1e-4, (step - peak) / ((last - peak) or 1.0)
        return Hyper(low + (lr - low) * (1 + cos(pi * share)) / 2)

    return schedule


# -- optimisers ------------------------------------------------------------------------------------


def sgd(module: nn.Module, *, bias_factor: float = 1.0) -> torch.optim.SGD:
    """SGD over the trainable parameters; the schedule sets rate and momentum.

    Parameters
    ----------
    module : nn.Module
        Whose parameters to train.
    bias_factor : float, default=1.0
        Learning rate of the biases of linear layers relative to that of the weights; the authors'
        code doubles it.
    """
    biases = [
        layer.bias
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and layer.bias is not None and layer.bias.requires_grad
    ]
    known = {id(bias) for bias in biases}
    weights = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": params, "factor": factor}
        for params, factor in ((weights, 1.0), (biases, bias_factor))
        if params
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)


def _set_hyper(optimizer: torch.optim.Optimizer, hyper: Hyper) -> None:
    for group in optimizer.param_groups:
        lr = hyper.lr * group.get("factor", 1.0)
        if "momentum" in group:
            # torch keeps no velocity while the momentum is exactly 0, as at the start of a burn-in.
            group["momentum"] = hyper.momentum or 1e-12
            if lr != group["lr"]:
                # In Caffe the velocity holds the learning rate, in torch it does not: rescaled,
                # both move alike.
                for parameter in group["params"]:
                    buffer = optimizer.state[parameter].get("momentum_buffer")
                    if buffer is not None:
                        buffer.mul_(group["lr"] / lr)
        group["lr"] = lr


# -- batches ---------------------------------------------------------------------------------------


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


# -- the loop they share ---------------------------------------------------------------------------


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
        _set_hyper(state.optimizer, schedule(state.step))
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


def _next_stop(step: int, n_steps: int, *intervals: int) -> int:
    return min(n_steps, *((step // every + 1) * every for every in intervals))


# -- pretraining -----------------------------------------------------------------------------------


def reconstruction_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """½ of the mean over samples **and** features of (x_hat - x)².

    The paper writes |x - y|²; its authors' Caffe divides by the number of values, and the learning
    rate 0.1 of the paper only converges with that.
    """
    return (x_hat.float() - x).square().mean() / 2


def pretrain(
    state: State,
    rows: Rows,
    runtime: Runtime,
    schedule: Schedule,
    *,
    n_steps: int,
    batch_size: int,
    stage: int = 0,
    shuffle: bool = True,
    log_interval: int = 100,
) -> Iterator[Event]:
    """Train encoder and decoder together to reconstruct their input.

    The paper's fine-tuning, or the whole of the pretraining.

    Parameters
    ----------
    state : State
        Its module is an :class:`AutoencoderNet`, its parameters are trained.
    rows : Rows
        Training data.
    runtime : Runtime
        Precision and compilation.
    schedule : callable
        Learning rate and momentum of a step.
    n_steps : int
        Steps in all.
    batch_size : int
        Rows of a step.
    stage : int, default=0
        Keys the batch order; differs between the stages of one fit.
    shuffle : bool, default=True
        See :class:`BatchOrder`.
    log_interval : int, default=100
        Steps between two events.

    Yields
    ------
    Event
        With the loss ``"reconstruction"``.
    """
    order = BatchOrder(len(rows), batch_size, state.seed, stage, shuffle=shuffle)

    def step(x: Tensor) -> Tensor:
        with runtime.autocast():
            x_hat = state.module(x)
        return reconstruction_error(x, x_hat)

    compiled = runtime.compiled(step)

    def losses_of(number: int) -> Losses:
        return {"reconstruction": compiled(rows.batch(order(number)))}

    state.module.train()
    while state.step < n_steps:
        losses = minimise(state, losses_of, schedule, _next_stop(state.step, n_steps, log_interval))
        yield Event("pretrain", "autoencoder", state.step, n_steps, state, losses)


class LayerPair(NamedTuple):
    """One layer of the encoder with its layer of the decoder, as trained alone.

    Attributes
    ----------
    below : nn.Module
        The encoder up to this layer, including its ReLU; not trained.
    net : AutoencoderNet
        The two layers, with ReLU where the whole network has one.
    drop_input, drop_code : bool
        Where the dropout of denoising acts.
    """

    below: nn.Module
    net: AutoencoderNet
    drop_input: bool
    drop_code: bool


def layer_pairs(net: AutoencoderNet) -> list[LayerPair]:
    """Split a fully connected autoencoder into the pairs that are pretrained one by one.

    The pairs share their parameters with ``net``: training them trains it. As in the paper, all are
    ReLU but the decoder of the first pair, which reconstructs signed input, and the encoder of the
    last, the code. As in the authors' code, dropout acts neither on the raw input nor on the code.

    Raises
    ------
    ValueError
        If encoder and decoder are not sequences of linear layers with ReLU between, one mirroring
        the other.
    """
    encoder, decoder = net.encoder, net.decoder
    widths = mlp_widths(encoder)
    if widths is None or mlp_widths(decoder) != widths[::-1]:
        raise ValueError(
            "Layer-wise pretraining needs an encoder and a decoder of Linear and ReLU layers in "
            "turn; train this network end to end (layerwise=False)."
        )
    assert isinstance(encoder, nn.Sequential)
    assert isinstance(decoder, nn.Sequential)
    n_layers = len(widths) - 1
    pairs = []
    for i in range(n_layers):
        # Linear i of the encoder with its ReLU, and the mirrored one of the decoder.
        mirrored = n_layers - 1 - i
        pairs.append(
            LayerPair(
                below=encoder[: 2 * i],
                net=AutoencoderNet(
                    encoder[2 * i : 2 * i + 2], decoder[2 * mirrored : 2 * mirrored + 2]
                ),
                drop_input=i > 0,
                drop_code=i < n_layers - 1,
            )
        )
    return pairs


def pretrain_layer(
    state: State,
    pair: LayerPair,
    rows: Rows,
    runtime: Runtime,
    schedule: Schedule,
    *,
    n_steps: int,
    batch_size: int,
    stage: int,
    dropout: float = 0.2,
    shuffle: bool = True,
    log_interval: int = 100,
) -> Iterator[Event]:
    """Train one denoising layer pair on the clean output of the layers below.

    Section "Parameter initialization":

    x̃ = Dropout(x), h = g1(W1 x̃ + b1), h̃ = Dropout(h), y = g2(W2 h̃ + b2), and y is compared with
    the clean x.

    Parameters
    ----------
    state : State
        Its module is ``pair.net``; ``pair.below`` is left untouched.
    pair : LayerPair
        From :func:`layer_pairs`.
    rows : Rows
        Input of the whole network.
    runtime, schedule, n_steps, batch_size, shuffle, log_interval
        As for :func:`pretrain`.
    stage : int
        1 for the first layer, and so on; keys batch order and dropout.
    dropout : float, default=0.2
        Share of units set to zero; the others are scaled by 1 / (1 - dropout).

    Yields
    ------
    Event
        With the loss ``"reconstruction"``.
    """
    order = BatchOrder(len(rows), batch_size, state.seed, stage, shuffle=shuffle)

    def step(x: Tensor, input_mask: Tensor, code_mask: Tensor) -> Tensor:
        with runtime.autocast():
            with torch.no_grad():
                clean = pair.below(x)
            code = pair.net.encoder(clean * input_mask)
            y = pair.net.decoder(code * code_mask)
        return reconstruction_error(clean.float(), y)

    compiled = runtime.compiled(step)
    n_input, n_code = pair.net.encoder[0].in_features, pair.net.encoder[0].out_features  # type: ignore[index]
    whole = torch.ones((), device=runtime.device)

    def losses_of(number: int) -> Losses:
        rng = generator(state.seed, stage, Purpose.DROPOUT, number)
        masks = [
            torch.from_numpy(_dropout_mask(rng, (batch_size, width), dropout)).to(runtime.device)
            if drop and dropout
            else whole
            for drop, width in ((pair.drop_input, n_input), (pair.drop_code, n_code))
        ]
        return {"reconstruction": compiled(rows.batch(order(number)), *masks)}

    state.module.train()
    while state.step < n_steps:
        losses = minimise(state, losses_of, schedule, _next_stop(state.step, n_steps, log_interval))
        yield Event("pretrain", f"layer {stage}", state.step, n_steps, state, losses)


def _dropout_mask(
    rng: np.random.Generator, shape: tuple[int, int], dropout: float
) -> NDArray[np.float32]:
    kept = rng.random(shape, dtype=np.float32) >= dropout
    return kept.astype(np.float32) / np.float32(1 - dropout)


# -- self-training ---------------------------------------------------------------------------------


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
        stop = _next_stop(state.step, n_steps, update_interval, log_interval)
        losses = minimise(state, losses_of, schedule, stop)
        yield Event("self-train", "clustering", state.step, n_steps, state, losses)
