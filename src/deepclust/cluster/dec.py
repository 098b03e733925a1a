"""Deep Embedded Clustering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .._estimator import check_bool
from ..features import Scaling
from ..networks import ClusterNet
from ..rows import Rows
from ..runtime import Runtime
from ..training import Event, State, constant, self_train, sgd
from ._base import DeepClusterer

__all__ = ["DEC"]


@dataclass(kw_only=True, eq=False, repr=False)
class DEC(DeepClusterer):
    """Deep Embedded Clustering: learn an embedding and a clustering together [1]_.

    An autoencoder is pretrained, centroids are placed in its embedding, then encoder and centroids
    are trained on KL(P||Q): Q is the Student-t soft assignment of the points to the centroids (eq.
    1), P its sharpened and frequency-normalised form (eq. 3), computed over the whole data set at
    every refresh.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters, scikit-learn's default; the paper sets it to the number of classes.
    autoencoder : Autoencoder or FrozenEstimator, optional
        An :class:`~deepclust.Autoencoder` with settings of its own, which is cloned and trained
        here, or a fitted one as ``FrozenEstimator(autoencoder)``, which is copied and used as it
        is. ``None`` trains one with the five settings that follow; beside an autoencoder they must
        keep their defaults.
    hidden : tuple of int, default=(500, 500, 2000)
        Widths of the encoder's hidden layers, the paper's for every data set.
    bottleneck : int, default=10
        Dimensions of the embedding, the paper's for every data set.
    pretrain_iter : int, optional
        Optimiser steps of the autoencoder; by default ``8 * n_samples ** 0.6``.
    pretrain_lr : float, optional
        Its peak learning rate; 0.001 by default, for Adam.
    scaling : {"unit", "standard"}, float or None, default="unit"
        ``"unit"``: one positive factor for the whole table that makes the mean of x² over the
        training data 1, the paper's rule (section "Datasets"), without centring. ``"standard"``:
        columns are centred and divided by their standard deviation. A number is used as the factor.
        ``None``: no scaling.
    alpha : float, default=1.0
        Degrees of freedom of the Student-t kernel; the paper's value throughout.
    init : {"gmm", "k-means"} or array-like of shape (n_clusters, n_dims), default="gmm"
        Where the centroids start. ``"k-means"`` is the paper's. ``"gmm"`` fits a Gaussian mixture
        and whitens the embedding by its pooled within-cluster covariance. An array holds the
        centroids in the autoencoder's embedding.
    n_init : int, default=20
        Restarts of that start, the paper's number; the best by its own objective is kept.
    max_iter : int, optional
        Optimiser steps of self-training at most; by default ``4 * n_samples ** 0.6``, half as many
        as for the autoencoder. The paper has no cap.
    lr : float, default=0.01
        Learning rate of self-training by SGD with momentum 0.9, the paper's.
    batch_size : int, default=256
        Rows of a step in both phases, the paper's; fewer when there are fewer rows.
    update_interval : int, optional
        Steps between two refreshes of P, the paper's lambda; by default half an epoch, and at least
        40.
    tol : float, default=0.001
        Self-training stops at a refresh at which a smaller share of the labels than this has
        changed, the paper's 0.1 %.
    freeze_encoder : bool, default=False
        Train the centroids alone: the paper's "DEC without backprop".
    random_state : int, RandomState, Generator or None, default=None
        Seed of everything random. On a CPU an integer gives the same bits for the same versions and
        number of threads.
    device : str or torch.device, default="auto"
        ``"auto"`` takes a CUDA device if there is one, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Of the matrix products while training and refreshing; ``"auto"`` takes bfloat16 where the
        processor multiplies it. Log Q, P, the loss and the parameters are float32, and so is
        everything handed out.
    compile : bool, default=False
        Compile the training steps with ``torch.compile``; off, because short fits do not pay for
        it.
    verbose : int, default=0
        1 draws progress bars.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,), int64
        Cluster of each training row, the argmax of Q; equal to ``predict`` of the training rows.
    cluster_centers_ : ndarray of shape (n_clusters, n_dims), float32
        Centroids in the embedding that ``transform`` gives.
    cluster_frequency_ : ndarray of shape (n_clusters,), float64
        Soft cluster frequency f of the training data (with eq. 3).
    init_labels_ : ndarray of shape (n_samples,), int64
        argmax of Q before the first step of self-training.
    init_cluster_centers_ : ndarray of shape (n_clusters, n_dims), float32
        Centroids before the first step of self-training.
    autoencoder_ : Autoencoder
        As it was before self-training: k-means on its ``transform(X)`` is the "AE + k-means" to
        compare with.
    module_ : ClusterNet
        The trained torch module, with ``encoder`` and ``centroids``.
    scaling_ : Scaling
        Input scaling of the training data.
    n_iter_ : int
        Optimiser steps of self-training done.
    n_features_in_ : int
        Number of input columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the input columns, if they had any.
    history_ : list of dict
        What happened, in order: phase, stage, step, seconds since the start of the fit, the losses
        as means since the record before; at a refresh of P (``"refresh": True``) the share of
        labels ``changed``.
    phase_seconds_ : dict of str to float
        Seconds spent in scaling, pretrain, centroids, self-train and assign.

    References
    ----------
    .. [1] Xie, Girshick, Farhadi, "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from deepclust import DEC
    >>> X, _ = load_digits(return_X_y=True)
    >>> dec = DEC(n_clusters=10, hidden=(64,), pretrain_iter=50, max_iter=40, random_state=0).fit(X)
    >>> dec.labels_.shape, dec.predict_proba(X).shape, dec.transform(X).shape
    ((1797,), (1797, 10), (1797, 10))
    """

    freeze_encoder: bool = False

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_bool(self, "freeze_encoder")

    def _self_train(
        self, net: ClusterNet, rows: Rows, runtime: Runtime, seed: int
    ) -> Iterator[Event]:
        if self.freeze_encoder:
            # The encoder stays as it is, so its output takes the place of the data.
            z = torch.cat([block for _, block, _ in self._assign(rows)]).cpu().numpy()
            rows, net = Rows(z, Scaling(), runtime.device), net.without_encoder()
        n_steps, update_interval = self._steps(len(rows))
        state = State(net, sgd(net), seed)
        events = self_train(
            state,
            rows,
            runtime,
            constant(self.lr),
            n_steps=n_steps,
            batch_size=min(self.batch_size, len(rows)),
            update_interval=update_interval,
        )
        for event in events:
            self.n_iter_ = state.step
            yield event
