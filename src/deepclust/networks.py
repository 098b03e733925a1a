"""The encoders: torch modules, and how they are initialised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from .functional import soft_assignment

__all__ = [
    "AutoencoderNet",
    "ClusterNet",
    "Projection",
    "initialise_normal",
    "initialise_uniform",
    "mlp",
    "mlp_widths",
    "then_linear",
]


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Fully connected layers with ReLU between them and a linear end.

    Parameters
    ----------
    widths : sequence of int
        ``(d, 500, 500, 2000, 10)`` is the paper's encoder, the reverse its decoder.

    Returns
    -------
    nn.Sequential
        Linear and ReLU modules in turn. The weights are uninitialised: nothing is drawn from
        torch's global generator.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)  # type: ignore[no-untyped-call]
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_widths(module: nn.Module) -> tuple[int, ...] | None:
    """Widths of a network of the form that :func:`mlp` makes, ``None`` for any other."""
    if not (isinstance(module, nn.Sequential) and len(module) % 2 == 1):
        return None
    if any(type(layer) is not (nn.ReLU if i % 2 else nn.Linear) for i, layer in enumerate(module)):
        return None
    layers = _linear_layers(module)
    if any(layer.bias is None for layer in layers):
        return None
    return (layers[0].in_features, *(layer.out_features for layer in layers))


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def initialise_uniform(module: nn.Module, rng: np.random.Generator) -> None:
    """Draw weights and biases of all linear layers from U(-b, b), b = 1 / sqrt(fan_in).

    PyTorch's default for linear layers, and that of the ports of DEC which train end to end.
    """
    for layer in _linear_layers(module):
        bound = 1 / math.sqrt(layer.in_features)
        for parameter in (layer.weight, layer.bias):
            draw = rng.uniform(-bound, bound, size=tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(draw))


@torch.no_grad()
def initialise_normal(module: nn.Module, rng: np.random.Generator, std: float = 0.01) -> None:
    """Draw weights of all linear layers from N(0, std²), biases zero (section "Implementation")."""
    for layer in _linear_layers(module):
        layer.weight.copy_(torch.from_numpy(rng.normal(0.0, std, size=tuple(layer.weight.shape))))
        layer.bias.zero_()


@torch.no_grad()
def then_linear(encoder: nn.Module, matrix: Tensor) -> nn.Module:
    """Let an encoder's output be multiplied by ``matrix``.

    Parameters
    ----------
    encoder : nn.Module
        If it ends in a linear layer, that layer is changed in place; if not, a linear layer is
        appended.
    matrix : Tensor of shape (n_dims, n_dims)
        ``z`` becomes ``z @ matrix``.

    Returns
    -------
    nn.Module
        ``encoder`` itself, or a sequence of it and the new layer.
    """
    last = encoder[-1] if isinstance(encoder, nn.Sequential) and len(encoder) else encoder
    if type(last) is nn.Linear:  # a subclass may compute its weight anew, from other parameters
        last.weight.copy_(matrix.T @ last.weight)
        if last.bias is not None:
            last.bias.copy_(last.bias @ matrix)
        return encoder
    extra = Projection(len(matrix), len(matrix)).to(matrix.device)
    extra.weight.copy_(matrix.T)
    return nn.Sequential(encoder, extra)


class Projection(nn.Module):
    """Linear layer without bias, appended to an encoder that does not end in a linear layer.

    Parameters
    ----------
    n_in, n_out : int
        Widths; the weight of shape (n_out, n_in) is zero until it is set.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, n_in, dtype=torch.float32))

    def forward(self, z: Tensor) -> Tensor:
        """``z @ weight.T``, of shape (n, n_out)."""
        return nn.functional.linear(z, self.weight)


class AutoencoderNet(nn.Module):
    """Encoder and decoder in one module.

    Parameters
    ----------
    encoder : nn.Module
        Maps ``(n, n_features)`` to ``(n, n_dims)``.
    decoder : nn.Module
        Maps ``(n, n_dims)`` back to ``(n, n_features)``.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction ``x_hat`` of ``x``, both of shape (n, n_features)."""
        x_hat: Tensor = self.decoder(self.encoder(x))
        return x_hat


class ClusterNet(nn.Module):
    """Encoder and centroids: the model that the KL stage trains.

    Parameters
    ----------
    encoder : nn.Module
        Maps ``(n, n_features)`` to ``(n, n_dims)``.
    centroids : Tensor of shape (n_clusters, n_dims)
        Initial centroids; copied into a float32 parameter.
    alpha : float, default=1.0
        Degrees of freedom of the Student-t kernel.
    """

    def __init__(self, encoder: nn.Module, centroids: Tensor, alpha: float = 1.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.centroids = nn.Parameter(centroids.detach().to(torch.float32, copy=True))
        self.alpha = alpha

    def without_encoder(self) -> ClusterNet:
        """Net of points that are embedded already; shares the centroids with this one."""
        net = ClusterNet(nn.Identity(), self.centroids, self.alpha)
        net.centroids = self.centroids
        return net

    def assign(self, z: Tensor) -> Tensor:
        """``log q`` of embedded points (n, n_dims), in float32 whatever the encoder computed in."""
        return soft_assignment(z.float(), self.centroids, self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """``log q`` of shape (n, n_clusters)."""
        return self.assign(self.encoder(x))
