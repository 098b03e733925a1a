import warnings
from itertools import pairwise

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info

from deepclust import centroids
from deepclust.centroids import initial_centroids


def blobs(n=400, k=4, d=3, seed=0):
    """Elongated clusters far from each other, all of one shape, and what they were drawn from."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(k, size=n))
    means = 9 * np.linalg.qr(rng.normal(size=(max(k, d), max(k, d))))[0][:k, :d]
    shape = np.diag(np.linspace(0.6, 1.2, d)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    z = (means[labels] + rng.normal(size=(n, d)) @ shape).astype(np.float32)
    return z, labels


def scattered(n=600, d=2, seed=0):
    """Points in which k-means with many clusters has many local optima."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32)


def inertia(z, centres):
    """Objective of k-means, point by point."""
    return sum(min(float(((point - c) ** 2).sum()) for c in centres) for point in z.astype(float))


def sorted_rows(array):
    return array[np.lexsort(array.T)]


def pooled_covariance(z, labels):
    """Covariance of the points around the mean of their cluster, row by row."""
    z = z.astype(np.float64)
    total = np.zeros((z.shape[1], z.shape[1]))
    for label in np.unique(labels):
        members = z[labels == label]
        mean = sum(members) / len(members)
        for point in members:
            total += np.outer(point - mean, point - mean)
    return total / len(z)


class TestKMeans:
    def test_the_centres_of_well_separated_clusters(self):
        z, labels = blobs()
        start = initial_centroids(z, 4, "k-means", n_init=3, seed=0)
        expected = [z[labels == label].mean(axis=0) for label in range(4)]
        np.testing.assert_allclose(
            sorted_rows(start.centroids), sorted_rows(np.array(expected)), rtol=1e-4
        )
        assert start.centroids.dtype == np.float32
        assert start.whitening is None

    @pytest.mark.parametrize("seed", [0, 2, 3])
    def test_as_good_as_the_best_of_20_runs_of_scikit_learn(self, seed):
        middles = 3 * scattered(12, seed=seed)
        z = np.concatenate([scattered(15, seed=100 + i) * 0.1 + c for i, c in enumerate(middles)])
        ours = inertia(z, initial_centroids(z, 12, "k-means", n_init=20, seed=seed).centroids)
        runs = [KMeans(12, n_init=1, random_state=i).fit(z).inertia_ for i in range(20)]
        theirs = KMeans(12, n_init=20, random_state=seed).fit(z).inertia_
        assert ours <= min(theirs, *runs) * 1.0001
        assert max(runs) > ours * 1.15  # one run alone may miss it

    def test_is_a_fixed_point_of_lloyd_s_iteration(self):
        z = scattered()
        centres = initial_centroids(z, 6, "k-means", n_init=5, seed=0).centroids
        nearest = np.array([np.argmin(((centres - point) ** 2).sum(axis=1)) for point in z])
        means = np.array([z[nearest == j].mean(axis=0) for j in range(6)])
        np.testing.assert_allclose(means, centres, atol=0.02)

    def test_more_restarts_are_never_worse(self):
        z = scattered()
        objectives = [
            inertia(z, initial_centroids(z, 15, "k-means", n_init=n, seed=1).centroids)
            for n in (1, 2, 5, 15)
        ]
        assert all(b <= a * (1 + 1e-6) for a, b in pairwise(objectives))
        assert objectives[-1] < objectives[0]  # each restart is another

    def test_as_many_clusters_as_points(self):
        z = scattered(7)
        start = initial_centroids(z, 7, "k-means", n_init=2, seed=0)
        np.testing.assert_allclose(sorted_rows(start.centroids), sorted_rows(z), rtol=1e-6)

    def test_one_cluster_is_the_mean(self):
        z = scattered()
        start = initial_centroids(z, 1, "k-means", n_init=2, seed=0)
        np.testing.assert_allclose(start.centroids, [z.mean(axis=0)], atol=1e-6)


@pytest.mark.parametrize("init", ["k-means", "gmm"])
class TestRandomness:
    def test_the_number_of_threads_does_not_show(self, init, monkeypatch):
        z = scattered(3000, d=3)
        starts = []
        for jobs in (None, 1, 2, 5):
            if jobs:
                monkeypatch.setattr(
                    centroids,
                    "Parallel",
                    lambda n_jobs, require, jobs=jobs: joblib.Parallel(jobs, require=require),
                )
            starts.append(initial_centroids(z, 5, init, n_init=4, seed=0))
        for start in starts[1:]:
            np.testing.assert_array_equal(start.centroids, starts[0].centroids)
            if init == "gmm":
                np.testing.assert_array_equal(start.whitening, starts[0].whitening)

    def test_each_restart_runs_in_one_thread(self, init, monkeypatch):
        # The partial sums of three threads may be added in any order.
        threads = []

        class Recorder(KMeans):
            def fit(self, X):
                pools = [p for p in threadpool_info() if p["user_api"] == "openmp"]
                threads.append({pool["num_threads"] for pool in pools})
                return super().fit(X)

        monkeypatch.setattr(centroids, "KMeans", Recorder)
        initial_centroids(scattered(), 5, init, n_init=3, seed=0)
        assert threads == [{1}] * 3

    def test_follows_the_seed_and_no_global_generator(self, init):
        z = scattered()
        before = np.random.mtrand._rand.get_state()
        first = initial_centroids(z, 8, init, n_init=1, seed=0).centroids
        for now, then in zip(np.random.mtrand._rand.get_state(), before, strict=True):
            assert np.array_equal(now, then)
        np.random.mtrand._rand.random_sample(3)
        again = initial_centroids(z, 8, init, n_init=1, seed=0).centroids
        other = initial_centroids(z, 8, init, n_init=1, seed=1).centroids
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_the_embedding_is_not_written_to(self, init):
        z = scattered()
        before = z.copy()
        z.setflags(write=False)
        initial_centroids(z, 3, init, n_init=2, seed=0)
        np.testing.assert_array_equal(z, before)


class TestMixture:
    # 400 rows of 3 dimensions in 4 clusters get a covariance each, 60 share one.
    @pytest.mark.parametrize(("n", "kind"), [(400, "full"), (60, "tied")])
    def test_few_rows_share_one_covariance(self, n, kind, monkeypatch):
        kinds = set()

        def mixture(n_components, *, covariance_type, **settings):
            kinds.add(covariance_type)
            return GaussianMixture(n_components, covariance_type=covariance_type, **settings)

        monkeypatch.setattr(centroids, "GaussianMixture", mixture)
        z, _ = blobs(n)
        initial_centroids(z, 4, "gmm", n_init=2, seed=0)
        assert kinds == {kind}

    @pytest.mark.parametrize("n", [400, 60])
    @pytest.mark.parametrize("seed", range(3))
    def test_whitening_makes_the_pooled_covariance_the_identity(self, n, seed):
        z, labels = blobs(n, seed=seed)
        start = initial_centroids(z, 4, "gmm", n_init=5, seed=0)
        assert start.whitening.dtype == start.centroids.dtype == np.float32
        whitened = z.astype(np.float64) @ start.whitening
        np.testing.assert_allclose(pooled_covariance(whitened, labels), np.eye(3), atol=0.1)
        # To the last digit with the mixture's ridge, a thousandth of the variance of all points.
        ridge = 1e-3 * (z - z.mean(axis=0, dtype=np.float64)).var() * np.eye(3)
        exact = start.whitening.T @ (pooled_covariance(z, labels) + ridge) @ start.whitening
        np.testing.assert_allclose(exact, np.eye(3), atol=2e-3)

    @pytest.mark.parametrize("n", [400, 60])
    def test_centroids_are_the_means_in_the_whitened_coordinates(self, n):
        z, labels = blobs(n)
        start = initial_centroids(z, 4, "gmm", n_init=5, seed=0)
        whitened = z @ start.whitening
        means = np.array([whitened[labels == label].mean(axis=0) for label in range(4)])
        np.testing.assert_allclose(sorted_rows(start.centroids), sorted_rows(means), atol=0.01)

    def test_against_scikit_learn_where_clusters_differ_in_shape(self):
        rng = np.random.default_rng(0)
        z = np.concatenate(
            [rng.normal(size=(300, 2)) * [3, 0.3], rng.normal(size=(200, 2)) * [0.3, 3] + [6, 6]]
        ).astype(np.float32)
        theirs = GaussianMixture(2, n_init=3, tol=1e-5, random_state=0).fit(z)
        start = initial_centroids(z, 2, "gmm", n_init=3, seed=0)
        back = start.centroids @ np.linalg.inv(start.whitening)
        np.testing.assert_allclose(sorted_rows(back), sorted_rows(theirs.means_), atol=0.05)
        pooled = np.einsum("k,kij->ij", theirs.weights_, theirs.covariances_)
        np.testing.assert_allclose(
            start.whitening.T @ pooled @ start.whitening, np.eye(2), atol=0.02
        )

    @pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e3, 1e12])
    def test_units_do_not_matter(self, factor):
        z, _ = blobs()
        plain = initial_centroids(z, 4, "gmm", n_init=2, seed=0)
        scaled = initial_centroids(z * np.float32(factor), 4, "gmm", n_init=2, seed=0)
        np.testing.assert_allclose(scaled.centroids, plain.centroids, atol=1e-3)
        np.testing.assert_allclose(scaled.whitening * factor, plain.whitening, atol=1e-4)

    def test_the_origin_does_not_matter(self):
        z, _ = blobs()
        offset = np.array([300, -100, 0], dtype=np.float32)
        plain = initial_centroids(z, 4, "gmm", n_init=2, seed=0)
        moved = initial_centroids(z + offset, 4, "gmm", n_init=2, seed=0)
        np.testing.assert_allclose(moved.whitening, plain.whitening, rtol=1e-3, atol=1e-4)
        expected = plain.centroids + offset @ plain.whitening
        np.testing.assert_allclose(sorted_rows(moved.centroids), sorted_rows(expected), atol=0.05)

    def test_a_sample_stands_for_many_rows(self, monkeypatch):
        z, labels = blobs(2000)
        sizes = []

        class Mixture(GaussianMixture):
            def fit(self, X):
                sizes.append(len(X))
                return super().fit(X)

        monkeypatch.setattr(centroids, "GaussianMixture", Mixture)
        monkeypatch.setattr(centroids, "_SAMPLE", 300)
        start = initial_centroids(z, 4, "gmm", n_init=3, seed=0)
        # The restarts on the sample, the last run on all rows: its means are theirs.
        assert sizes == [300, 300, 300, 2000]
        whitened = z @ start.whitening
        means = np.array([whitened[labels == label].mean(axis=0) for label in range(4)])
        np.testing.assert_allclose(sorted_rows(start.centroids), sorted_rows(means), atol=0.01)

    @pytest.mark.parametrize(
        ("bounds", "blurs", "chosen"),
        [
            ([3.0], [0.5], 0),
            ([3.0, 2.0], [0.5, 0.1], 0),  # of two, the likelier
            ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], 1),  # of the likelier two, the sharper
            ([9.0, 1.0, 8.0, 7.0], [0.3, 0.0, 0.2, 0.1], 2),
        ],
    )
    def test_of_the_likelier_half_the_sharpest(self, bounds, blurs, chosen, monkeypatch):
        made = []

        class Fake:
            """A mixture that lies where its number says, with a given likelihood and entropy."""

            def __init__(self, n_components, **_):
                made.append(self)
                self.number = len(made) - 1
                self.lower_bound_ = bounds[self.number]
                self.means_ = np.full((n_components, 2), float(self.number))
                self.weights_ = np.full(n_components, 1 / n_components)
                self.covariances_ = np.stack([np.eye(2)] * n_components)

            def fit(self, X):
                self.spread = X.std()
                return self

            def predict_proba(self, X):
                certain = 1 - blurs[self.number]
                return np.tile([certain, 1 - certain], (len(X), 1))

        monkeypatch.setattr(centroids, "GaussianMixture", Fake)
        z = scattered(100)
        with joblib.parallel_config(backend="sequential"):
            start = initial_centroids(z, 2, "gmm", n_init=len(bounds), seed=0)
        assert len(made) == len(bounds)
        back = start.centroids @ np.linalg.inv(start.whitening)
        scale = (z - z.mean(axis=0)).std()
        np.testing.assert_allclose(
            back, z.mean(axis=0) + chosen * scale * np.ones((2, 2)), rtol=1e-4
        )

    def test_constant_dimensions_do_not_blow_up(self):
        z, labels = blobs()
        flat = np.column_stack([z, np.full(len(z), 0.3), np.zeros(len(z))]).astype(np.float32)
        start = initial_centroids(flat, 4, "gmm", n_init=3, seed=0)
        # The ridge bounds the whitening: 1 / sqrt(1e-3 of the variance).
        bound = 1 / np.sqrt(1e-3 * (flat - flat.mean(axis=0)).var())
        assert np.linalg.norm(start.whitening, 2) <= bound * 1.01
        # Noise in the constant dimensions of a hundredth of the spread stays small.
        noise = np.zeros_like(flat)
        noise[:, 3:] = 0.01 * flat.std() * np.random.default_rng(0).normal(size=(len(z), 2))
        assert (noise @ start.whitening).std() < 0.5
        whitened = flat @ start.whitening
        means = np.array([whitened[labels == label].mean(axis=0) for label in range(4)])
        np.testing.assert_allclose(sorted_rows(start.centroids), sorted_rows(means), atol=0.02)


@pytest.mark.parametrize("init", ["k-means", "gmm"])
class TestDegenerate:
    @pytest.mark.parametrize(
        ("z", "n_clusters"),
        [
            pytest.param(np.zeros((30, 3)), 4, id="all zero"),
            pytest.param(np.full((30, 3), 0.1), 4, id="one number"),
            pytest.param(np.tile([0.1, 5.0, -3.0], (30, 1)), 4, id="one row"),
            pytest.param(np.repeat(scattered(3), 20, axis=0), 5, id="three rows"),
        ],
    )
    def test_fewer_distinct_points_than_clusters(self, init, z, n_clusters):
        z = z.astype(np.float32)
        with pytest.warns(ConvergenceWarning, match="Number of distinct clusters"):
            start = initial_centroids(z, n_clusters, init, n_init=2, seed=0)
        assert start.centroids.shape == (n_clusters, z.shape[1])
        assert np.isfinite(start.centroids).all()
        whitened = z
        if init == "gmm":
            assert np.isfinite(start.whitening).all()
            whitened = z @ start.whitening
        # Every point has a centroid on it.
        nearest = [np.abs(start.centroids - point).max(axis=1).min() for point in whitened]
        assert max(nearest) < 1e-3 * max(1, np.abs(whitened).max())

    def test_no_warning_where_there_are_enough(self, init):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            initial_centroids(scattered(30), 5, init, n_init=3, seed=0)

    def test_few_points(self, init):
        for n in (2, 5):
            start = initial_centroids(scattered(n, d=4), n, init, n_init=2, seed=0)
            assert start.centroids.shape == (n, 4)
            assert np.isfinite(start.centroids).all()


class TestGiven:
    z = scattered(10)

    @pytest.mark.parametrize("form", [list, np.array, np.float64, tuple], ids=str)
    def test_an_array_holds_the_centroids(self, form):
        given = [[0, 1], [2, 3.5], [4, 5]]
        start = initial_centroids(self.z, 3, form(given), n_init=9, seed=0)
        assert start.centroids.tolist() == given
        assert start.centroids.dtype == np.float32
        assert start.whitening is None

    def test_is_a_copy(self):
        given = np.ones((2, 2), dtype=np.float32)
        start = initial_centroids(self.z, 2, given, n_init=1, seed=0)
        start.centroids[:] = 7
        assert (given == 1).all()

    @pytest.mark.parametrize("shape", [(2, 2), (3, 1), (3, 3), (6,), (1, 3, 2)])
    def test_of_another_shape(self, shape):
        message = (
            r"init has shape \(.*\); 3 centroids of a 2-dimensional embedding have shape \(3, 2\)"
        )
        with pytest.raises(ValueError, match=message):
            initial_centroids(self.z, 3, np.ones(shape), n_init=1, seed=0)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value):
        with pytest.raises(ValueError, match=r"init holds NaN or infinite values; pass finite"):
            initial_centroids(self.z, 2, [[0, value], [1, 1]], n_init=1, seed=0)

    @pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "", "GMM"])
    def test_unknown_name(self, init):
        with pytest.raises(ValueError, match=r"init=.* is not one of 'gmm', 'k-means', or an arr"):
            initial_centroids(self.z, 2, init, n_init=1, seed=0)
