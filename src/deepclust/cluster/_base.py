"""What every deep clustering method shares: hyperparameters, the flow of a fit, the answers."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClusterMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted

from .._estimator import (
    TorchEstimator,
    all_or_nothing,
    check_finite,
    fill,
    float32_blocks,
    to_numpy,
)
from ..autoencoder import Autoencoder
from ..centroids import check_init, initial_centroids
from ..functional import cluster_frequency, kl_divergence, target_distribution
from ..networks import ClusterNet, then_linear
from ..rows import Rows, check_rows
from ..runtime import Runtime, resolve, resolve_seed
from ..training import Event

__all__ = ["DeepClusterer"]


@dataclass(kw_only=True, eq=False, repr=False)
class DeepClusterer(ClusterMixin, TorchEstimator):
    """Base of the methods: pretrain, place centroids, self-train, hand out assignments.

    A method is a subclass that says in :meth:`_self_train` what the third step does.
    """

    n_clusters: int = 8
    autoencoder: Autoencoder | FrozenEstimator | None = None
    hidden: tuple[int, ...] = (500, 500, 2000)
    bottleneck: int = 10
    alpha: float = 1.0
    init: str | ArrayLike = "gmm"
    n_init: int = 20
    pretrain_iter: int | None = None
    pretrain_lr: float | None = None
    max_iter: int | None = None
    lr: float = 0.01
    batch_size: int = 256
    update_interval: int | None = None
    tol: float = 0.001
    scaling: str | float | None = "unit"
    random_state: Any = None
    device: str | torch.device = "auto"
    precision: str = "auto"
    compile: bool = False
    verbose: int = 0

    # -- fit ---------------------------------------------------------------------------------------

    @all_or_nothing
    def fit(self, X: Any, y: Any = None) -> Self:
        """Cluster the rows of ``X``.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Finite numbers of any type; computed with in float32.
        y : ignored
            Labels are never looked at.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or ``X`` is not as described, or there are more clusters than rows.
        FloatingPointError
            If a loss is no longer finite.
        """
        self._check_parameters()
        runtime = resolve(self.device, self.precision, self.compile)
        X = check_rows(self, X, reset=True)
        n_samples = X.shape[0]
        if self.n_clusters > n_samples:
            raise ValueError(
                f"n_clusters={self.n_clusters} exceeds n_samples={n_samples}; choose fewer "
                f"clusters "
                "or pass more data."
            )
        seed = resolve_seed(self.random_state)
        self._start_history()

        self.autoencoder_ = self._pretrained(X, seed)
        self.scaling_ = self.autoencoder_.scaling_
        rows = Rows(X, self.scaling_, runtime.device)

        with self._phase("centroids"):
            encoder = copy.deepcopy(self.autoencoder_.module_.encoder).to(runtime.device)
            z = np.concatenate([to_numpy(block) for _, block in float32_blocks(encoder, rows)])
            start = initial_centroids(z, self.n_clusters, self.init, n_init=self.n_init, seed=seed)
            if start.whitening is not None:
                encoder = then_linear(encoder, torch.from_numpy(start.whitening).to(runtime.device))
            centroids = torch.from_numpy(start.centroids).to(runtime.device)
            self.module_ = ClusterNet(encoder, centroids, float(self.alpha))
            self.init_cluster_centers_ = start.centroids
            self.init_labels_ = self._labels_and_frequency(rows)[0]

        with self._phase("self-train"):
            self._run(self._self_train(self.module_, rows, runtime, seed), self.tol)

        with self._phase("assign"):
            self.labels_, self.cluster_frequency_ = self._labels_and_frequency(rows)
        self._n_dims = self.module_.centroids.shape[1]
        return self

    @abstractmethod
    def _self_train(
        self, net: ClusterNet, rows: Rows, runtime: Runtime, seed: int
    ) -> Iterator[Event]:
        """Train ``net`` in place, event by event; keeps ``n_iter_``."""

    def _steps(self, n_samples: int) -> tuple[int, int]:
        """Steps at most, and steps between two refreshes."""
        interval = self.update_interval or max(40, n_samples // (2 * self.batch_size))
        return self.max_iter or max(40, round(4 * n_samples**0.6)), interval

    def _check_parameters(self) -> None:
        integer, number = (int, np.integer), (int, float, np.number)
        check_scalar(self.n_clusters, "n_clusters", integer, min_val=1)
        check_scalar(self.n_init, "n_init", integer, min_val=1)
        check_scalar(self.batch_size, "batch_size", integer, min_val=1)
        for name in ("pretrain_iter", "max_iter", "update_interval"):
            if getattr(self, name) is not None:
                check_scalar(getattr(self, name), name, integer, min_val=1)
        for name in ("pretrain_lr", "lr"):
            if name == "lr" or self.pretrain_lr is not None:
                rate = getattr(self, name)
                check_scalar(rate, name, number, min_val=0, include_boundaries="neither")
        check_scalar(self.tol, "tol", number, min_val=0)
        # The kernel is computed in float32, and alpha is a number in it.
        check_scalar(self.alpha, "alpha", number, min_val=1e-30, max_val=1e30)
        check_finite(self, "pretrain_lr", "lr", "tol", "alpha")
        check_init(self.init)
        if not isinstance(self.autoencoder, Autoencoder | FrozenEstimator | None):
            raise ValueError(
                f"autoencoder={self.autoencoder!r} is no Autoencoder; pass None, an Autoencoder, "
                "or a fitted one as FrozenEstimator(autoencoder)."
            )

    def _pretrained(self, X: Any, seed: int) -> Autoencoder:
        """Return the autoencoder to start from: trained here, or the frozen one as it is."""
        defaults = {field.name: field.default for field in fields(DeepClusterer)}
        owned = {
            "hidden": "hidden",
            "bottleneck": "bottleneck",
            "pretrain_iter": "max_iter",
            "pretrain_lr": "lr",
            "scaling": "scaling",
        }
        if self.autoencoder is None:
            settings = {theirs: getattr(self, ours) for ours, theirs in owned.items()}
            shared = ("batch_size", "device", "precision", "compile", "verbose")
            settings |= {name: getattr(self, name) for name in shared}
            autoencoder = Autoencoder(**settings, random_state=seed)
        else:
            for ours, theirs in owned.items():
                if getattr(self, ours) != defaults[ours]:
                    raise ValueError(
                        f"{ours}={getattr(self, ours)!r} has no effect beside autoencoder=...; "
                        f"set {theirs} of the autoencoder instead."
                    )
            if isinstance(self.autoencoder, FrozenEstimator):
                return self._frozen(self.autoencoder)
            autoencoder = clone(self.autoencoder)
            if autoencoder.random_state is None:
                autoencoder.random_state = seed
        autoencoder.set_callbacks(*getattr(self, "_callbacks", ()))
        autoencoder.fit(X)
        autoencoder.set_callbacks()
        if hasattr(self, "feature_names_in_"):
            autoencoder.feature_names_in_ = self.feature_names_in_
        self.history_ += autoencoder.history_
        self.phase_seconds_ |= autoencoder.phase_seconds_
        return autoencoder

    def _frozen(self, frozen: FrozenEstimator) -> Autoencoder:
        if not isinstance(frozen.estimator, Autoencoder):
            raise ValueError(
                f"autoencoder wraps {frozen.estimator!r}, which is no Autoencoder; freeze a fitted "
                "Autoencoder."
            )
        check_is_fitted(frozen.estimator)
        autoencoder = copy.deepcopy(frozen.estimator)
        if autoencoder.n_features_in_ != self.n_features_in_:
            raise ValueError(
                f"X has {self.n_features_in_} features, but the frozen autoencoder was fitted on "
                f"{autoencoder.n_features_in_}."
            )
        names = getattr(self, "feature_names_in_", None)
        known = getattr(autoencoder, "feature_names_in_", None)
        if names is not None and known is not None and list(names) != list(known):
            raise ValueError(
                "The columns of X are not those that the frozen autoencoder was fitted on, or "
                f"stand in another order; pass X[{list(known)}]."
            )
        return autoencoder

    # -- afterwards --------------------------------------------------------------------------------

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Cluster of each row, the argmax of Q.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Rows with the columns of the training data.

        Returns
        -------
        ndarray of shape (n_samples,), int64
            For the training rows equal to ``labels_``.
        """
        rows = self._rows(X)
        labels: NDArray[np.int64] = np.empty(len(rows), dtype=np.int64)
        for where, _, log_q in self._assign(rows):
            labels[where] = log_q.argmax(dim=1).cpu().numpy()
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Soft assignment Q of each row (eq. 1).

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Rows with the columns of the training data.

        Returns
        -------
        ndarray of shape (n_samples, n_clusters), float32
            Rows sum to one.
        """
        rows = self._rows(X)
        q: NDArray[np.float32] = np.empty((len(rows), len(self.module_.centroids)), np.float32)
        for where, _, log_q in self._assign(rows):
            q[where] = log_q.exp().cpu().numpy()
        return q

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Embed rows.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Rows with the columns of the training data.

        Returns
        -------
        ndarray of shape (n_samples, n_dims), float32
            Z, in the coordinates of ``cluster_centers_``.
        """
        rows = self._rows(X)
        embedding: NDArray[np.float32] = np.empty((len(rows), self._n_dims), np.float32)
        for where, z, _ in self._assign(rows):
            embedding[where] = z.cpu().numpy()
        return embedding

    def score_samples(self, X: Any) -> NDArray[np.float32]:
        """Logarithm of the largest q of each row, a confidence.

        0 is a sure assignment, -log(n_clusters) none at all.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Rows with the columns of the training data.

        Returns
        -------
        ndarray of shape (n_samples,), float32
        """
        rows = self._rows(X)
        scores: NDArray[np.float32] = np.empty(len(rows), np.float32)
        for where, _, log_q in self._assign(rows):
            scores[where] = log_q.amax(dim=1).cpu().numpy()
        return scores

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of -KL(P||Q) over the rows; higher is better.

        P is formed with the cluster frequency of the training data.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_samples, n_features)
            Rows with the columns of the training data.
        y : ignored

        Returns
        -------
        float
            In nats per row, at most 0.
        """
        rows = self._rows(X)
        total = 0.0
        for _, _, log_q in self._assign(rows):
            frequency = torch.from_numpy(self.cluster_frequency_).to(log_q.device)
            p = target_distribution(log_q, frequency)
            total -= kl_divergence(p, log_q).item() * len(log_q)
        return total / len(rows)

    @property
    def cluster_centers_(self) -> NDArray[np.float32]:
        """Centroids in the embedding, of shape (n_clusters, n_dims)."""
        return to_numpy(self.module_.centroids)

    @property
    def _n_features_out(self) -> int:
        return self._n_dims

    def _rows(self, X: Any) -> Rows:
        check_is_fitted(self)
        checked = check_rows(self, X, reset=False)
        device = resolve(self.device).device
        self.module_.to(device)
        return Rows(checked, self.scaling_, device)

    def _assign(self, rows: Rows) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Z and log Q of all rows, block by block."""
        for where, z in float32_blocks(self.module_.encoder, rows):
            with torch.inference_mode():
                log_q = self.module_.assign(fill(z))[: len(z)]
            if not log_q.isfinite().all():
                raise ValueError(
                    "X has rows so far from the training data that their distances exceed float32; "
                    "check their units."
                )
            yield where, z, log_q

    def _labels_and_frequency(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        labels: NDArray[np.int64] = np.empty(len(rows), dtype=np.int64)
        frequency: NDArray[np.float64] = np.zeros(len(self.module_.centroids))
        for where, _, log_q in self._assign(rows):
            labels[where] = log_q.argmax(dim=1).cpu().numpy()
            frequency += cluster_frequency(log_q).cpu().numpy()
        return labels, frequency
