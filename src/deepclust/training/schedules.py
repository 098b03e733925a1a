"""Learning rate and momentum as functions of the step, and the optimiser that obeys them."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["Hyper", "Schedule", "constant", "one_cycle", "set_hyper", "sgd", "step_decay"]


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


def set_hyper(optimizer: torch.optim.Optimizer, hyper: Hyper) -> None:
    """Give an optimiser the learning rate and the momentum of its next step."""
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
