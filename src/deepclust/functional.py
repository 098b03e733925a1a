"""The maths of DEC: tensors in, tensors out.

The functions exchange ``log_q``, the logarithm of the soft assignment, because its exponential
underflows for points far from every centroid while the logarithm stays exact. ``log_q.exp()`` is
for showing.

Equation numbers are those of Xie, Girshick, Farhadi, "Unsupervised Deep Embedding for Clustering
Analysis", ICML 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "cluster_frequency",
    "kl_divergence",
    "soft_assignment",
    "squared_distances",
    "target_distribution",
]


def squared_distances(z: Tensor, centroids: Tensor) -> Tensor:
    """Squared Euclidean distance of every point to every centroid.

    Formed from the differences and not from ``|z|² - 2 z·mu + |mu|²``, which cancels for points
    near a centroid: there the result is exact, and zero for a point on a centroid.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_dims)
        Embedded points.
    centroids : Tensor of shape (n_clusters, n_dims)
        Cluster centres, of the same dtype.

    Returns
    -------
    Tensor of shape (n_samples, n_clusters)
        Squared distances, of the dtype of ``z``.
    """
    return (z.unsqueeze(1) - centroids).square().sum(dim=2)  # (n, k, d) -> (n, k)


def soft_assignment(z: Tensor, centroids: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Logarithm of the Student-t soft assignment (eq. 1).

    .. math:: q_{ij} = \frac{(1 + \|z_i - \mu_j\|^2 / \alpha)^{-(\alpha + 1) / 2}}
                            {\sum_{j'} (1 + \|z_i - \mu_{j'}\|^2 / \alpha)^{-(\alpha + 1) / 2}}

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_dims)
        Embedded points.
    centroids : Tensor of shape (n_clusters, n_dims)
        Cluster centres.
    alpha : float, default=1.0
        Degrees of freedom, positive. The paper sets 1 throughout, having no validation set to tune
        it on.

    Returns
    -------
    Tensor of shape (n_samples, n_clusters)
        ``log q``. Finite for squared distances up to the largest number of the dtype.

    Examples
    --------
    >>> import torch
    >>> z, centroids = torch.tensor([[-2.0, -2.0]]), torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    >>> soft_assignment(z, centroids).exp() * 22
    tensor([[19.,  3.]])
    """
    d2 = squared_distances(z, centroids)
    # log(alpha + d2) is log(1 + d2 / alpha) up to a constant that the normalisation takes out. It
    # cannot overflow for a small alpha, the other form does not lose small distances to rounding
    # for a large one.
    kernel = torch.log1p(d2 / alpha) if alpha >= 1 else torch.log(d2 + alpha)
    return torch.log_softmax(-(alpha + 1) / 2 * kernel, dim=1)


def cluster_frequency(log_q: Tensor) -> Tensor:
    r"""Soft cluster frequency, :math:`f_j = \sum_i q_{ij}` (with eq. 3).

    Parameters
    ----------
    log_q : Tensor of shape (n_samples, n_clusters)
        Log soft assignment, of the whole data set or of one part of it.

    Returns
    -------
    Tensor of shape (n_clusters,), float64
        The frequencies sum to ``n_samples``. Those of several parts add up to that of the whole;
        float64, so that the order of adding does not show.
    """
    return log_q.double().exp().sum(dim=0)


def target_distribution(log_q: Tensor, frequency: Tensor | None = None) -> Tensor:
    r"""Sharpen the soft assignment and normalise it by cluster frequency (eq. 3).

    .. math:: p_{ij} = \frac{q_{ij}^2 / f_j}{\sum_{j'} q_{ij'}^2 / f_{j'}}

    Parameters
    ----------
    log_q : Tensor of shape (n_samples, n_clusters)
        Log soft assignment.
    frequency : Tensor of shape (n_clusters,), optional
        Cluster frequency over the **whole** data set; needed whenever ``log_q`` holds only part of
        the samples, a minibatch for example. By default that of ``log_q`` itself.

    Returns
    -------
    Tensor of shape (n_samples, n_clusters)
        ``p``, of the dtype of ``log_q``; rows sum to one. It is a constant of the optimisation:
        detach ``log_q``.
    """
    if frequency is None:
        frequency = cluster_frequency(log_q)
    # No point has a larger q than its cluster's frequency, so q²/f <= f: when f underflows to zero,
    # p is zero.
    logits = 2 * log_q - frequency.log().to(log_q.dtype)
    return torch.where(frequency > 0, logits, -torch.inf).softmax(dim=1)


def kl_divergence(p: Tensor, log_q: Tensor) -> Tensor:
    r"""Mean over the samples of :math:`\sum_j p_{ij} \log (p_{ij} / q_{ij})` (eq. 2).

    The paper writes the sum over the samples; its authors' code divides by the batch size, and the
    paper's learning rate belongs to that.

    Parameters
    ----------
    p : Tensor of shape (n_samples, n_clusters)
        Target distribution; zeros contribute nothing.
    log_q : Tensor of shape (n_samples, n_clusters)
        Log soft assignment.

    Returns
    -------
    Tensor of shape ()
        Divergence in nats per sample.
    """
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1).mean()
