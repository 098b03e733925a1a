"""The start: centroids of the embedding before self-training begins."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.stats import entropy
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from .runtime import Purpose, generator, single_threaded

__all__ = ["Start", "check_init", "initial_centroids"]

# Stage number of the random streams used here.
_STAGE = 50
# Restarts of the mixture run on this many points; the chosen one goes on with all of them.
_SAMPLE = 10_000
# A full covariance per cluster wants this many points per dimension in an average cluster; below,
# one is shared.
_POINTS_PER_DIMENSION = 10

_ALONE = Lock()
T = TypeVar("T")


class Start(NamedTuple):
    """Where self-training begins.

    Attributes
    ----------
    centroids : ndarray of shape (n_clusters, n_dims), float32
        In the coordinates that ``whitening`` leads to.
    whitening : ndarray of shape (n_dims, n_dims), float32, or None
        Linear map ``z -> z @ whitening`` to be built into the encoder first; ``None`` for no
        change.
    """

    centroids: NDArray[np.float32]
    whitening: NDArray[np.float32] | None = None


def initial_centroids(
    z: NDArray[np.float32], n_clusters: int, init: str | ArrayLike, *, n_init: int, seed: int
) -> Start:
    """Place ``n_clusters`` centroids in the embedding.

    Parameters
    ----------
    z : ndarray of shape (n_samples, n_dims), float32
        Embedding of the training rows.
    n_clusters : int
        Number of centroids, at most ``n_samples``.
    init : {"gmm", "k-means"} or array-like of shape (n_clusters, n_dims)
        ``"k-means"``: the paper's start, the best of ``n_init`` runs. ``"gmm"``: the means of a
        Gaussian mixture, of the likelier half of ``n_init`` the one with the sharpest assignments;
        the embedding is whitened by its pooled within-cluster covariance, since the Student-t
        kernel takes clusters to be round and an autoencoder's are not. An array holds the
        centroids.
    n_init : int
        Restarts; not used for an array.
    seed : int
        Of the fit. Each restart has its own stream and runs in one thread, so the result does not
        depend on how many there are.

    Returns
    -------
    Start

    Raises
    ------
    ValueError
        For an unknown ``init``, or an array of another shape or with values that are not finite.
    """
    check_init(init)
    if not isinstance(init, str):
        return Start(_given(init, n_clusters, z.shape[1]))
    if init == "k-means":
        return Start(_kmeans(z, n_clusters, n_init=n_init, seed=seed))
    return _mixture(z, n_clusters, n_init=n_init, seed=seed)


def check_init(init: str | ArrayLike) -> None:
    """Raise ``ValueError`` if ``init`` names no start."""
    if isinstance(init, str) and init not in ("gmm", "k-means"):
        raise ValueError(
            f"init={init!r} is not one of 'gmm', 'k-means', or an array of shape (n_clusters, "
            "n_dims)."
        )


def _given(init: ArrayLike, n_clusters: int, n_dims: int) -> NDArray[np.float32]:
    centroids = np.array(init, dtype=np.float32)
    if centroids.shape != (n_clusters, n_dims):
        raise ValueError(
            f"init has shape {centroids.shape}; {n_clusters} centroids of a {n_dims}-dimensional "
            f"embedding have shape ({n_clusters}, {n_dims})."
        )
    if not np.isfinite(centroids).all():
        raise ValueError("init holds NaN or infinite values; pass finite centroids.")
    return centroids


def _restarts(run: Callable[[int], T], n_init: int) -> list[T]:
    """Call ``run`` with 0 ... n_init - 1, in threads.

    scikit-learn's k-means limits BLAS to one thread and afterwards restores what it found. Several
    at a time would find, and leave behind, each other's limit, so it is held here around them all.
    """
    with _ALONE, threadpool_limits(limits=1, user_api="blas"):
        runs: list[T] = Parallel(n_jobs=-1, require="sharedmem")(
            delayed(run)(number) for number in range(n_init)
        )
    return runs


def _restart(
    z: NDArray[Any], n_clusters: int, seed: int, number: int
) -> tuple[float, NDArray[Any]]:
    random_state = int(generator(seed, _STAGE, Purpose.CENTROIDS, number).integers(2**31))
    with single_threaded():
        model = KMeans(n_clusters, n_init=1, random_state=random_state).fit(z)
    return float(model.inertia_), model.cluster_centers_


def _kmeans(
    z: NDArray[np.float32], n_clusters: int, *, n_init: int, seed: int
) -> NDArray[np.float32]:
    runs = _restarts(lambda number: _restart(z, n_clusters, seed, number), n_init)
    return np.asarray(min(runs, key=lambda run: run[0])[1], dtype=np.float32)


def _mixture(z: NDArray[np.float32], n_clusters: int, *, n_init: int, seed: int) -> Start:
    n_samples, n_dims = z.shape
    centre = z.mean(axis=0, dtype=np.float64)
    # The spread around the mean: how far that lies from the origin is no matter.
    scale = float((z - centre).std()) or 1.0
    points = (z - centre) / scale
    rows = generator(seed, _STAGE, Purpose.CENTROIDS).permutation(n_samples)[:_SAMPLE]
    sample = points[np.sort(rows)]
    full = n_samples >= _POINTS_PER_DIMENSION * n_dims * n_clusters

    def mixture(data: NDArray[np.float64], **start: Any) -> GaussianMixture:
        # The variances are relative to the whole embedding's: the ridge keeps flat directions from
        # being blown up.
        return GaussianMixture(
            n_clusters,
            covariance_type="full" if full else "tied",
            reg_covar=1e-3,
            max_iter=1000,
            random_state=0,
            **start,
        ).fit(data)

    def restart(number: int) -> tuple[float, float, GaussianMixture]:
        means = _restart(sample, n_clusters, seed, number)[1]
        with single_threaded():
            model = mixture(sample, means_init=means)
        blur = float(entropy(model.predict_proba(sample), axis=1).mean())
        return float(model.lower_bound_), blur, model

    runs = _restarts(restart, n_init)
    # The likelihood alone prefers mixtures that spend two components on one elongated cluster and
    # one on two that touch; of the likelier half, the sharpest assignments are taken.
    runs.sort(key=lambda run: -run[0])
    best = min(runs[: (n_init + 1) // 2], key=lambda run: run[1])[2]
    if len(sample) < n_samples:
        best = mixture(
            points,
            weights_init=best.weights_,
            means_init=best.means_,
            precisions_init=best.precisions_,
        )
    covariances = best.covariances_
    within = np.einsum("k,kij->ij", best.weights_, covariances) if full else covariances
    variances, axes = eigh(within)
    whitening = axes / np.sqrt(variances) / scale
    means = (best.means_ * scale + centre) @ whitening
    return Start(means.astype(np.float32), whitening.astype(np.float32))
