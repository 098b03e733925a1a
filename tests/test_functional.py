import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from deepclust.functional import (
    cluster_frequency,
    kl_divergence,
    soft_assignment,
    squared_distances,
    target_distribution,
)

ALPHAS = [0.1, 1.0, 10.0]
FLOAT32_MAX = torch.finfo(torch.float32).max


def random_case(seed, dtype=torch.float64):
    """Points and centroids of random number, dimension and spread."""
    rng = np.random.default_rng(seed)
    n, k, d = rng.integers(2, 40), rng.integers(2, 7), rng.integers(1, 6)
    spread = 10 ** rng.uniform(-1, 1)
    z, centroids = rng.normal(0, spread, (n, d)), rng.normal(0, spread, (k, d))
    return torch.from_numpy(z).to(dtype), torch.from_numpy(centroids).to(dtype)


# -- the paper's equations, one number at a time ---------------------------------------------------


def q_by_loops(z, centroids, alpha):
    q = []
    for point in z.tolist():
        kernels = []
        for centroid in centroids.tolist():
            d2 = sum((a - b) ** 2 for a, b in zip(point, centroid, strict=True))
            kernels.append((1 + d2 / alpha) ** (-(alpha + 1) / 2))
        q.append([kernel / sum(kernels) for kernel in kernels])
    return q


def p_by_loops(q):
    n_clusters = len(q[0])
    frequency = [sum(row[j] for row in q) for j in range(n_clusters)]
    p = []
    for row in q:
        shares = [row[j] ** 2 / frequency[j] for j in range(n_clusters)]
        p.append([share / sum(shares) for share in shares])
    return p


def kl_by_loops(p, q):
    total = 0.0
    for p_row, q_row in zip(p, q, strict=True):
        for p_ij, q_ij in zip(p_row, q_row, strict=True):
            total += p_ij * math.log(p_ij / q_ij)
    return total / len(p)


def gradients_in_closed_form(z, centroids, p, q, alpha):
    """dL/dz and dL/dmu as the paper gives them, for the sum over the samples."""
    z, centroids, p, q = (np.asarray(a) for a in (z, centroids, p, q))
    z_gradient, centroid_gradient = np.zeros_like(z), np.zeros_like(centroids)
    for i in range(len(z)):
        for j in range(len(centroids)):
            difference = z[i] - centroids[j]
            pull = (alpha + 1) / alpha * (p[i, j] - q[i, j]) / (1 + difference @ difference / alpha)
            z_gradient[i] += pull * difference
            centroid_gradient[j] -= pull * difference
    return z_gradient, centroid_gradient


class TestSquaredDistances:
    def test_worked_by_hand(self):
        z, centroids = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
        assert squared_distances(z, centroids).tolist() == [[1.0], [18.0]]

    def test_near_a_centroid_far_from_the_origin_nothing_cancels(self):
        # |z|² - 2 z·mu + |mu|² in float32 gives 0 or 64 here: its terms are about 1e8.
        centroids = torch.full((1, 4), 5000.0)
        z = centroids + torch.tensor([[0.0] * 4, [0.5] * 4])
        assert squared_distances(z, centroids).tolist() == [[0.0], [1.0]]


class TestSoftAssignment:
    def test_worked_by_hand(self):
        # d² = 2 and 18, kernels 1/3 and 1/19.
        z, centroids = torch.tensor([[-2.0, -2.0]]), torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        q = soft_assignment(z, centroids).exp()
        torch.testing.assert_close(q, torch.tensor([[19 / 22, 3 / 22]]))

    def test_alpha_worked_by_hand(self):
        # alpha = 3, d² = 3 and 9: kernels 2**-2 and 4**-2.
        z, centroids = torch.tensor([[0.0]]), torch.tensor([[math.sqrt(3)], [3.0]])
        q = soft_assignment(z, centroids, alpha=3).exp()
        torch.testing.assert_close(q, torch.tensor([[4 / 5, 1 / 5]]))

    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("seed", range(8))
    def test_equation_1(self, seed, alpha):
        z, centroids = random_case(seed)
        log_q = soft_assignment(z, centroids, alpha)
        np.testing.assert_allclose(log_q.exp(), q_by_loops(z, centroids, alpha), rtol=1e-10)

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_float32_agrees_with_float64(self, alpha):
        z, centroids = random_case(0)
        log_q = soft_assignment(z.float(), centroids.float(), alpha)
        assert log_q.dtype == torch.float32
        expected = soft_assignment(z, centroids, alpha).float()
        torch.testing.assert_close(log_q, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("alpha", [1e-30, 1e-3, 1.0, 1e3, 1e30])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rows_sum_to_one(self, alpha, dtype):
        z, centroids = random_case(1, dtype)
        total = soft_assignment(z, centroids, alpha).exp().sum(dim=1)
        torch.testing.assert_close(total, torch.ones_like(total))

    def test_one_cluster_is_certain(self):
        z = torch.tensor([[1.0], [-1e6], [0.0]], requires_grad=True)
        log_q = soft_assignment(z, torch.zeros(1, 1))
        assert log_q.tolist() == [[0.0]] * 3
        log_q.sum().backward()
        assert z.grad.tolist() == [[0.0]] * 3

    @pytest.mark.parametrize("alpha", [1e-30, 0.1, 1.0, 10.0, 1e30])
    def test_a_point_on_a_centroid(self, alpha):
        z = torch.tensor([[1.0, 2.0]], requires_grad=True)
        centroids = torch.tensor([[1.0, 2.0], [1.0, 3.0]], requires_grad=True)
        log_q = soft_assignment(z, centroids, alpha)
        # Kernels 1 and (1 + 1/alpha)^(-(alpha+1)/2), the latter sqrt(e) smaller for large alpha.
        ratio = math.exp(-(alpha + 1) / 2 * math.log1p(1 / alpha))
        expected = torch.tensor([[1 / (1 + ratio), ratio / (1 + ratio)]])
        torch.testing.assert_close(log_q.exp(), expected)
        log_q[0, 1].backward()
        assert torch.isfinite(z.grad).all()
        assert torch.isfinite(centroids.grad).all()

    @pytest.mark.parametrize("alpha", [1e-30, 0.1, 1.0, 10.0, 1e6])
    def test_finite_up_to_the_largest_squared_distance(self, alpha):
        far = math.sqrt(FLOAT32_MAX) * 0.999
        z = torch.tensor([[far], [1e15], [0.0], [1e-20]])
        centroids = torch.tensor([[0.0], [1.0]])
        z.requires_grad_(), centroids.requires_grad_()
        d2 = squared_distances(z, centroids)
        assert d2[0, 0] > 3e38
        log_q = soft_assignment(z, centroids, alpha)
        assert torch.isfinite(log_q).all()
        # The two centroids are the same distance from far away.
        torch.testing.assert_close(log_q[:2].exp(), torch.full((2, 2), 0.5))
        p = target_distribution(log_q.detach())
        torch.testing.assert_close(p.sum(dim=1), torch.ones(4))
        kl_divergence(p, log_q).backward()
        assert torch.isfinite(z.grad).all()
        assert torch.isfinite(centroids.grad).all()

    def test_log_q_stays_exact_where_q_underflows(self):
        # Kernels 1 and (1 + 1e8 / 10)^(-5.5), about 3e-39: a denormal in float32.
        z, centroids = torch.zeros(1, 1), torch.tensor([[0.0], [1e4]])
        log_q = soft_assignment(z, centroids, alpha=10)
        assert log_q[0, 1].item() == pytest.approx(-5.5 * math.log1p(1e7), rel=1e-6)
        log_q = soft_assignment(z, centroids, alpha=100)
        assert log_q[0, 1].exp().item() == 0
        assert log_q[0, 1].item() == pytest.approx(-50.5 * math.log1p(1e6), rel=1e-6)

    @pytest.mark.parametrize("alpha", [1e6, 1e30])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_large_alpha_is_the_gaussian_kernel(self, alpha, dtype):
        z, centroids = random_case(2, dtype)
        d2 = squared_distances(z, centroids).double().numpy()
        q = soft_assignment(z, centroids, alpha).exp().double().numpy()
        np.testing.assert_allclose(q, softmax(-d2 / 2, axis=1), atol=1e-5)

    def test_tiny_alpha_is_the_inverse_distance(self):
        # d = 1 and 2 and 10: kernels 1, 1/2, 1/10.
        z, centroids = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [10.0]])
        q = soft_assignment(z, centroids, alpha=1e-30).exp()
        torch.testing.assert_close(q, torch.tensor([[10 / 16, 5 / 16, 1 / 16]]))

    def test_moving_everything_changes_nothing(self):
        z, centroids = random_case(3)
        expected = soft_assignment(z, centroids)
        moved = soft_assignment(z + 7.5, centroids + 7.5)
        torch.testing.assert_close(moved, expected)


class TestClusterFrequency:
    def test_worked_by_hand(self):
        q = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        frequency = cluster_frequency(q.log())
        torch.testing.assert_close(frequency, torch.tensor([1.25, 0.75], dtype=torch.float64))

    @pytest.mark.parametrize("seed", range(5))
    def test_parts_add_up_to_the_whole(self, seed):
        z, centroids = random_case(seed, torch.float32)
        log_q = soft_assignment(z, centroids)
        whole = cluster_frequency(log_q)
        parts = sum(cluster_frequency(part) for part in log_q.split(3))
        assert whole.dtype == parts.dtype == torch.float64
        torch.testing.assert_close(parts, whole, rtol=1e-13, atol=0)
        assert whole.sum().item() == pytest.approx(len(z), rel=1e-6)

    def test_a_million_rows_do_not_drown_the_last(self):
        # In float32 a sum of 2**24 and more no longer takes up ones.
        log_q = torch.zeros(1, 1)
        many = cluster_frequency(log_q) * 2**25
        assert (many + cluster_frequency(log_q)).item() == 2**25 + 1


class TestTargetDistribution:
    def test_worked_by_hand(self):
        # f = (1.25, 0.75); shares 0.45 and 0.0833 of the first row, 0.2 and 0.3333 of the second.
        q = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
        expected = [[27 / 32, 5 / 32], [3 / 8, 5 / 8]]
        np.testing.assert_allclose(target_distribution(q.log()), expected)

    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("seed", range(8))
    def test_equation_3(self, seed, alpha):
        z, centroids = random_case(seed)
        p = target_distribution(soft_assignment(z, centroids, alpha))
        expected = p_by_loops(q_by_loops(z, centroids, alpha))
        np.testing.assert_allclose(p, expected, rtol=1e-9)
        np.testing.assert_allclose(p.sum(dim=1), 1.0)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shards_with_the_summed_frequency_give_the_whole(self, seed, dtype):
        z, centroids = random_case(seed, dtype)
        log_q = soft_assignment(z, centroids)
        whole = target_distribution(log_q)
        shards = log_q.split(4)
        frequency = sum(cluster_frequency(shard) for shard in shards)
        parts = torch.cat([target_distribution(shard, frequency) for shard in shards])
        assert whole.dtype == parts.dtype == dtype
        torch.testing.assert_close(parts, whole)

    def test_a_minibatch_of_its_own_is_another_algorithm(self):
        z, centroids = random_case(1)
        log_q = soft_assignment(z, centroids)
        alone = target_distribution(log_q[:2])
        assert (alone - target_distribution(log_q)[:2]).abs().max() > 0.01

    def test_sharpens_and_takes_from_the_large_cluster(self):
        # Equal frequencies: only sharpening. 0.8² : 0.2² = 16 : 1.
        sharpened = target_distribution(torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log())
        torch.testing.assert_close(sharpened[0], torch.tensor([16 / 17, 1 / 17]))
        # An undecided point goes to the rarer cluster, in inverse proportion to the frequencies.
        undecided = target_distribution(
            torch.tensor([[0.5, 0.5]]).log(), torch.tensor([9.0, 1.0], dtype=torch.float64)
        )
        torch.testing.assert_close(undecided, torch.tensor([[0.1, 0.9]]))

    def test_one_cluster(self):
        assert target_distribution(torch.zeros(3, 1)).tolist() == [[1.0]] * 3

    @pytest.mark.parametrize("exponent", [-30, -100, -300])
    def test_an_almost_empty_cluster(self, exponent):
        # All points have the same tiny q = e in cluster 1: f = n e, q² / f = e / n beside 1 / n.
        e = exponent * math.log(10)
        log_q = torch.tensor([[0.0, e]] * 5, dtype=torch.float64)
        p = target_distribution(log_q)
        np.testing.assert_allclose(p, [[1.0, math.exp(e)]] * 5, rtol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_frequency_that_underflows_to_zero(self, dtype):
        log_q = torch.tensor([[0.0, -1000.0], [0.0, -2000.0]], dtype=dtype, requires_grad=True)
        assert cluster_frequency(log_q)[1] == 0
        p = target_distribution(log_q.detach())
        assert p.tolist() == [[1.0, 0.0]] * 2
        divergence = kl_divergence(p, log_q)
        divergence.backward()
        assert divergence.item() == 0
        assert torch.isfinite(log_q.grad).all()

    def test_clusters_far_from_all_points_hold_nothing(self):
        z, centroids = random_case(4, torch.float32)
        far = torch.full((1, centroids.shape[1]), 1e18)
        with_it = target_distribution(soft_assignment(z, torch.cat([centroids, far]), alpha=20))
        without = target_distribution(soft_assignment(z, centroids, alpha=20))
        torch.testing.assert_close(with_it[:, :-1], without)
        assert (with_it[:, -1] < 1e-30).all()


class TestKLDivergence:
    def test_worked_by_hand(self):
        p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        # ½ ln 2 + ½ ln ⅔ and ln 2; their mean.
        expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)) / 2
        assert kl_divergence(p, q.log()).item() == pytest.approx(expected)

    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("seed", range(8))
    def test_equation_2_per_sample(self, seed, alpha):
        z, centroids = random_case(seed)
        log_q = soft_assignment(z, centroids, alpha)
        q = q_by_loops(z, centroids, alpha)
        divergence = kl_divergence(target_distribution(log_q), log_q)
        assert divergence.shape == ()
        assert divergence.item() == pytest.approx(kl_by_loops(p_by_loops(q), q), rel=1e-9)

    @pytest.mark.parametrize("seed", range(20))
    def test_never_negative_and_zero_for_the_same_distribution(self, seed):
        rng = np.random.default_rng(seed)
        p, q = torch.from_numpy(rng.dirichlet(np.full(5, 0.3), size=(2, 50)))
        assert kl_divergence(p, q.log()) > 0
        assert kl_divergence(p, p.log()).abs() < 1e-15

    def test_is_a_mean_over_the_samples(self):
        # Twice the same samples give the same number.
        z, centroids = random_case(5)
        log_q = soft_assignment(z, centroids)
        p = target_distribution(log_q)
        twice = kl_divergence(torch.cat([p, p]), torch.cat([log_q, log_q]))
        torch.testing.assert_close(twice, kl_divergence(p, log_q))


class TestGradients:
    @pytest.mark.parametrize("alpha", [1e-3, *ALPHAS, 3.0, 1e3])
    @pytest.mark.parametrize("seed", range(5))
    def test_autograd_gives_the_paper_s_closed_form(self, seed, alpha):
        z, centroids = random_case(seed)
        z.requires_grad_(), centroids.requires_grad_()
        log_q = soft_assignment(z, centroids, alpha)
        p = target_distribution(log_q.detach())
        (kl_divergence(p, log_q) * len(z)).backward()
        z_gradient, centroid_gradient = gradients_in_closed_form(
            z.detach(), centroids.detach(), p, log_q.detach().exp(), alpha
        )
        np.testing.assert_allclose(z.grad, z_gradient, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(centroids.grad, centroid_gradient, rtol=1e-8, atol=1e-11)

    def test_with_alpha_1_the_pull_on_one_point_worked_by_hand(self):
        # q = (2/3, 1/3) from d² = 1, 3; p = (1, 0): 2 * [(1/2)(1/3)(z - mu_1) + (1/4)(-1/3)(z -
        # mu_2)] with z - mu_1 = (0, 1) and z - mu_2 = (0, -√3).
        z = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        centroids = torch.tensor([[0.0, -1.0], [0.0, math.sqrt(3)]], dtype=torch.float64)
        log_q = soft_assignment(z, centroids)
        kl_divergence(torch.tensor([[1.0, 0.0]], dtype=torch.float64), log_q).backward()
        np.testing.assert_allclose(z.grad, [[0, 1 / 3 + math.sqrt(3) / 6]])

    def test_a_step_down_the_gradient_draws_centroids_towards_their_points(self):
        z = torch.tensor([[0.0], [0.2], [4.0], [4.2]])
        centroids = torch.tensor([[1.0], [3.0]], requires_grad=True)
        log_q = soft_assignment(z, centroids)
        kl_divergence(target_distribution(log_q.detach()), log_q).backward()
        assert centroids.grad[0] > 0
        assert centroids.grad[1] < 0

    def test_in_float32_too(self):
        z, centroids = random_case(6)
        gradients = {}
        for dtype in (torch.float32, torch.float64):
            mu = centroids.to(dtype).requires_grad_()
            log_q = soft_assignment(z.to(dtype), mu)
            kl_divergence(target_distribution(log_q.detach()), log_q).backward()
            gradients[dtype] = mu.grad.double()
        torch.testing.assert_close(
            gradients[torch.float32], gradients[torch.float64], rtol=1e-3, atol=1e-6
        )
