"""Pretraining of the autoencoder: layer by layer, and as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..networks import AutoencoderNet, mlp_widths
from ..rows import Rows
from ..runtime import Purpose, Runtime, generator
from .loop import BatchOrder, Event, Losses, State, minimise, next_stop
from .schedules import Schedule

__all__ = ["LayerPair", "layer_pairs", "pretrain", "pretrain_layer", "reconstruction_error"]


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
        losses = minimise(state, losses_of, schedule, next_stop(state.step, n_steps, log_interval))
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
        losses = minimise(state, losses_of, schedule, next_stop(state.step, n_steps, log_interval))
        yield Event("pretrain", f"layer {stage}", state.step, n_steps, state, losses)


def _dropout_mask(
    rng: np.random.Generator, shape: tuple[int, int], dropout: float
) -> NDArray[np.float32]:
    kept = rng.random(shape, dtype=np.float32) >= dropout
    return kept.astype(np.float32) / np.float32(1 - dropout)
