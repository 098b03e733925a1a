"""The embedding: an autoencoder as an estimator of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor, nn

from ._estimator import (
    TorchEstimator,
    all_or_nothing,
    check_bool,
    check_finite,
    float32_blocks,
)
from .features import Scaling, fit_scaling
from .networks import AutoencoderNet, initialise_normal, initialise_uniform, mlp
from .rows import Rows, check_rows
from .runtime import Purpose, Runtime, generator, resolve, resolve_seed
from .training import (
    REFRESH_BLOCK,
    State,
    layer_pairs,
    one_cycle,
    pretrain,
    pretrain_layer,
    sgd,
    step_decay,
)

__all__ = ["Autoencoder"]


@dataclass(kw_only=True, eq=False, repr=False)
class Autoencoder(TorchEstimator):
    """Autoencoder whose code is the embedding that DEC starts from.

    Encoder and decoder are fully connected, d-500-500-2000-10 and back as in the paper (section
    "Implementation"), with ReLU everywhere but at the code and at the output.

    Parameters
    ----------
    hidden : tuple of int, default=(500, 500, 2000)
        Widths of the encoder's hidden layers, those of the paper for every data set; the decoder
        mirrors them.
    bottleneck : int, default=10
        Dimensions of the embedding; 10 in the paper for every data set.
    encoder, decoder : torch.nn.Module, optional
        Your own networks in place of the fully connected ones, both or none. They map (n,
        n_features) to (n, n_dims) and back, and are copied with the weights they have.
    layerwise : bool, default=False
        False trains encoder and decoder together with Adam and a one-cycle learning rate. True is
        the paper's way: each layer is pretrained as a denoising autoencoder, with dropout 0.2, then
        the whole is fine-tuned without dropout, both by SGD with the authors' constants. It needs
        many more steps.
    max_iter : int, optional
        Optimiser steps in all. By default ``8 * n_samples ** 0.6`` when trained together (6,460 for
        70,000 rows), so that small tables see many epochs and large ones enough steps, and 300,000
        layer by layer, the paper's number: a share of 1 / (n_layers + 2) for each layer, the rest
        for fine-tuning. The learning-rate drops and the growth of the momentum scale with it.
    lr : float, optional
        Peak learning rate. By default 0.001, or 0.1 layer by layer, the paper's.
    batch_size : int, default=256
        Rows of a step, the paper's; fewer when there are fewer rows.
    scaling : {"unit", "standard"}, float or None, default="unit"
        ``"unit"``: one positive factor for the whole table that makes the mean of x² over the
        training data 1, the paper's rule. ``"standard"``: columns are centred and divided by their
        standard deviation. A number is used as the factor (the paper's code takes 0.02 for MNIST).
        ``None``: no scaling.
    random_state : int, RandomState, Generator or None, default=None
        Seed of initial weights, batch order and dropout. On a CPU an integer gives the same
        bits for the same versions and number of threads.
    device : str or torch.device, default="auto"
        ``"auto"`` takes a CUDA device if there is one, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Of the matrix products while training. ``"auto"`` takes bfloat16 where the processor
        multiplies it. Results are always computed in float32.
    compile : bool, default=False
        Compile the training step with ``torch.compile``; off, because short fits do not pay for it.
    verbose : int, default=0
        1 draws progress bars.

    Attributes
    ----------
    module_ : AutoencoderNet
        The trained torch module, with ``encoder`` and ``decoder``.
    scaling_ : Scaling
        Input scaling of the training data.
    n_iter_ : int
        Optimiser steps done.
    n_features_in_ : int
        Number of input columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the input columns, if they had any.
    history_ : list of dict
        A record for every 100 steps: phase, stage, step, seconds since the start, loss.
    phase_seconds_ : dict of str to float
        Seconds of each phase.

    References
    ----------
    .. [1] Xie, Girshick, Farhadi, "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016,
       section "Parameter initialization".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from deepclust import Autoencoder
    >>> X, _ = load_digits(return_X_y=True)
    >>> embedding = Autoencoder(hidden=(64,), max_iter=50, random_state=0).fit_transform(X)
    >>> embedding.shape
    (1797, 10)
    """

    hidden: tuple[int, ...] = (500, 500, 2000)
    bottleneck: int = 10
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    layerwise: bool = False
    max_iter: int | None = None
    lr: float | None = None
    batch_size: int = 256
    scaling: str | float | None = "unit"
    random_state: Any = None
    device: str | torch.device = "auto"
    precision: str = "auto"
    compile: bool = False
    verbose: int = 0

    @all_or_nothing
    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of ``X``.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Finite numbers of any type.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or ``X`` is not as described.
        FloatingPointError
            If the loss is no longer finite.
        """
        self._check_parameters()
        runtime = resolve(self.device, self.precision, self.compile)
        X = check_rows(self, X, reset=True)
        seed = resolve_seed(self.random_state)
        self._start_history()
        with self._phase("scaling"):
            step = REFRESH_BLOCK
            blocks = (X[i : i + step] for i in range(0, X.shape[0], step))
            self.scaling_ = fit_scaling(blocks, self.scaling)
        with self._phase("pretrain"):
            net = self._network(seed).to(runtime.device)
            rows = Rows(X, self.scaling_, runtime.device)
            train = self._train_layerwise if self.layerwise else self._train_together
            self.n_iter_ = train(net, rows, runtime, seed)
        self.module_ = net.eval()
        self._n_dims = self._width_of_code()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Embed rows.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Rows with the columns of the training data.

        Returns
        -------
        ndarray of shape (n_samples, n_dims), float32
            The code of each row.
        """
        check_is_fitted(self)
        rows = Rows(check_rows(self, X, reset=False), self.scaling_, self._device())
        z: NDArray[np.float32] = np.empty((len(rows), self._n_features_out), dtype=np.float32)
        for where, block in float32_blocks(self.module_.encoder, rows):
            z[where] = block.cpu().numpy()
        return z

    def inverse_transform(self, X: Any) -> NDArray[np.float32]:
        """Decode embedded rows, back in the units of the input.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_dims)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32
            Reconstructed rows.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float32, input_name="X")
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {codes.shape[1]} columns; codes of this autoencoder have "
                f"{self._n_features_out}."
            )
        rows = Rows(codes, Scaling(), self._device())
        x: NDArray[np.float32] = np.empty((len(rows), self.n_features_in_), dtype=np.float32)
        for where, block in float32_blocks(self.module_.decoder, rows):
            x[where] = self.scaling_.invert(block.cpu().numpy())
        return x

    # -- parts of fit ------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        if not isinstance(self.hidden, Iterable) or isinstance(self.hidden, str):
            raise TypeError(
                f"hidden={self.hidden!r} is not a tuple of layer widths; pass one such as (500,)."
            )
        for width in self.hidden:
            check_scalar(width, "each width of hidden", (int, np.integer), min_val=1)
        check_scalar(self.bottleneck, "bottleneck", (int, np.integer), min_val=1)
        check_scalar(self.batch_size, "batch_size", (int, np.integer), min_val=1)
        if self.max_iter is not None:
            check_scalar(self.max_iter, "max_iter", (int, np.integer), min_val=1)
        if self.lr is not None:
            number = (int, float, np.number)
            check_scalar(self.lr, "lr", number, min_val=0, include_boundaries="neither")
        check_finite(self, "lr")
        check_bool(self, "layerwise")
        if (self.encoder is None) != (self.decoder is None):
            raise ValueError(
                "Only one of encoder and decoder was given; pass both modules or none."
            )
        for name in ("encoder", "decoder"):
            module = getattr(self, name)
            if not isinstance(module, nn.Module | None):
                raise TypeError(f"{name}={module!r} is no torch.nn.Module; pass one, or None.")

    def _network(self, seed: int) -> AutoencoderNet:
        if self.encoder is not None and self.decoder is not None:
            return _own_network(self.encoder, self.decoder, self.n_features_in_)
        widths = (self.n_features_in_, *self.hidden, self.bottleneck)
        net = AutoencoderNet(mlp(widths), mlp(widths[::-1]))
        initialise = initialise_normal if self.layerwise else initialise_uniform
        initialise(net, generator(seed, 0, Purpose.WEIGHTS))
        return net

    def _train_together(self, net: AutoencoderNet, rows: Rows, runtime: Runtime, seed: int) -> int:
        n_steps = self.max_iter or max(1, round(8 * len(rows) ** 0.6))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.0, fused=True)
        state = State(net, optimizer, seed)
        schedule = one_cycle(self.lr or 1e-3, n_steps)
        batch_size = min(self.batch_size, len(rows))
        self._run(pretrain(state, rows, runtime, schedule, n_steps=n_steps, batch_size=batch_size))
        return state.step

    def _train_layerwise(self, net: AutoencoderNet, rows: Rows, runtime: Runtime, seed: int) -> int:
        """Pretrain layer by layer, then fine-tune; the authors' constants scale with the length."""
        pairs = layer_pairs(net)
        total = self.max_iter or 300_000
        per_layer = total // (len(pairs) + 2)
        # 0.1, divided by 10 every 20,000 steps; momentum grows to 0.9 during the first 1,000.
        schedule = step_decay(self.lr or 0.1, max(1, ceil(per_layer * 0.4)), per_layer // 50)
        batch_size = min(self.batch_size, len(rows))
        done = 0
        for stage, pair in enumerate(pairs, start=1):
            state = State(pair.net, sgd(pair.net, bias_factor=2.0), seed)
            self._run(
                pretrain_layer(
                    state,
                    pair,
                    rows,
                    runtime,
                    schedule,
                    n_steps=per_layer,
                    batch_size=batch_size,
                    stage=stage,
                )
            )
            done += state.step
        state = State(net, sgd(net, bias_factor=2.0), seed)
        n_steps = total - per_layer * len(pairs)
        self._run(pretrain(state, rows, runtime, schedule, n_steps=n_steps, batch_size=batch_size))
        return done + state.step

    # -- after fit ---------------------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self._n_dims

    def _width_of_code(self) -> int:
        probe = Rows(np.zeros((1, self.n_features_in_)), Scaling(), self._device())
        return next(float32_blocks(self.module_.encoder, probe))[1].shape[1]

    def _device(self) -> torch.device:
        """Where to compute now: a model fitted on a GPU also runs where there is none."""
        device = resolve(self.device).device
        self.module_.to(device)
        return device


def _own_network(encoder: nn.Module, decoder: nn.Module, n_features: int) -> AutoencoderNet:
    """Copy the user's modules after seeing that their shapes fit."""
    net = copy.deepcopy(AutoencoderNet(encoder, decoder)).cpu().eval()
    probe = torch.zeros(2, n_features)
    with torch.no_grad():
        try:
            z: Tensor = net.encoder(probe)
            x_hat: Tensor = net.decoder(z)
        except RuntimeError as error:
            raise ValueError(
                f"encoder and decoder do not take X's {n_features} columns: {error}"
            ) from error
    if z.ndim != 2 or x_hat.shape != probe.shape:
        raise ValueError(
            f"For input of shape {tuple(probe.shape)} the encoder gave {tuple(z.shape)} and the "
            f"decoder {tuple(x_hat.shape)}; the code has two axes and the reconstruction the "
            f"input's shape."
        )
    return net
