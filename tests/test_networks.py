import copy

import numpy as np
import pytest
import torch
from torch import nn

from deepclust.networks import (
    AutoencoderNet,
    ClusterNet,
    Projection,
    initialise_normal,
    initialise_uniform,
    mlp,
    mlp_widths,
    then_linear,
)


def random_mlp(*widths, seed=0):
    net = mlp(widths)
    initialise_uniform(net, np.random.default_rng(seed))
    return net


def by_loops(net, x):
    """Output of an MLP for one row, multiplication by multiplication."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers:
        weights, biases = layer.weight.tolist(), layer.bias.tolist()
        x = [
            sum(w * value for w, value in zip(row, x, strict=True)) + b
            for row, b in zip(weights, biases, strict=True)
        ]
        if layer is not layers[-1]:
            x = [max(0.0, value) for value in x]
    return x


class TestMLP:
    def test_the_paper_s_encoder(self):
        kinds = [type(layer).__name__ for layer in mlp((784, 500, 500, 2000, 10))]
        assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear", "ReLU", "Linear"]

    @pytest.mark.parametrize("widths", [(3, 2), (4, 6, 2), (5, 7, 3, 2)])
    def test_is_relu_between_and_linear_at_the_end(self, widths):
        net = random_mlp(*widths)
        x = torch.from_numpy(np.random.default_rng(1).normal(size=(20, widths[0]))).float()
        expected = torch.tensor([by_loops(net, row) for row in x.tolist()])
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
        assert (expected < 0).any()  # a ReLU at the end would have shown

    @pytest.mark.parametrize("widths", [(3, 2), (4, 6, 2), (784, 500, 500, 2000, 10)])
    def test_its_widths_can_be_read_back(self, widths):
        assert mlp_widths(mlp(widths)) == widths

    @pytest.mark.parametrize(
        "module",
        [
            nn.Linear(2, 3),
            nn.Sequential(),
            nn.Sequential(nn.Linear(2, 3), nn.ReLU()),
            nn.Sequential(nn.ReLU()),
            nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
            nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)),
            nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)),
            nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))),
            nn.Sequential(nn.Linear(2, 3), nn.ReLU(), Projection(3, 2)),
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(3, 2)),
        ],
    )
    def test_other_networks_have_no_widths(self, module):
        assert mlp_widths(module) is None


class TestInitialisation:
    def test_uniform_is_pytorch_s_default_for_linear_layers(self):
        net = random_mlp(400, 300, 200)
        for layer, bound in ((net[0], 1 / 20), (net[2], 1 / np.sqrt(300))):
            for parameter in (layer.weight.detach(), layer.bias.detach()):
                assert parameter.abs().max() <= bound
                assert parameter.abs().max() > 0.95 * bound
                assert parameter.mean().abs() < 0.1 * bound
            # The moments of U(-b, b); torch draws its own layers alike.
            assert layer.weight.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.02)
            theirs = nn.Linear(layer.in_features, layer.out_features)
            assert theirs.weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.02)
            assert theirs.weight.abs().max().item() == pytest.approx(bound, rel=0.01)

    @pytest.mark.parametrize("std", [0.01, 0.5])
    def test_normal_has_the_paper_s_deviation_and_no_biases(self, std):
        net = mlp((300, 200, 100))
        initialise_normal(net, np.random.default_rng(0), std)
        for layer in (net[0], net[2]):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
            assert layer.weight.mean().abs().item() < 0.02 * std
            # Of a normal distribution 4.6 % lie beyond two deviations; of a uniform one none.
            beyond = (layer.weight.abs() > 2 * std).double().mean().item()
            assert beyond == pytest.approx(0.0455, abs=0.005)
            assert not layer.bias.any()

    def test_normal_draws_0_01_when_not_told_otherwise(self):
        net = mlp((300, 200))
        initialise_normal(net, np.random.default_rng(0))
        assert net[0].weight.std().item() == pytest.approx(0.01, rel=0.02)

    @pytest.mark.parametrize("initialise", [initialise_normal, initialise_uniform])
    def test_depends_on_the_generator_alone(self, initialise):
        before = torch.random.get_rng_state()
        nets = []
        for seed, junk in ((0, 0.0), (0, 7.0), (1, 0.0)):
            net = mlp((6, 5, 4))
            for parameter in net.parameters():
                nn.init.constant_(parameter, junk)
            initialise(net, np.random.default_rng(seed))
            nets.append(nn.utils.parameters_to_vector(net.parameters()).detach())
        assert torch.equal(nets[0], nets[1])
        assert not torch.equal(nets[0], nets[2])
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_weights_are_drawn_independently(self):
        net = random_mlp(50, 50, 50)
        a, b = net[0].weight.detach().ravel(), net[2].weight.detach().ravel()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.1

    @pytest.mark.parametrize("initialise", [initialise_normal, initialise_uniform])
    def test_leaves_the_parameters_trainable(self, initialise):
        net = mlp((3, 2))
        initialise(net, np.random.default_rng(0))
        assert all(p.requires_grad and p.is_leaf for p in net.parameters())


class TestThenLinear:
    matrix = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(7, 4))).float()

    @pytest.mark.parametrize("bias", [True, False])
    def test_a_last_linear_layer_takes_the_matrix_in(self, bias):
        encoder = random_mlp(4, 5, 2)
        if not bias:
            encoder[2] = nn.Linear(5, 2, bias=False)
        z = encoder(self.x).detach()
        changed = then_linear(encoder, self.matrix)
        assert changed is encoder
        torch.testing.assert_close(changed(self.x), z @ self.matrix, rtol=1e-5, atol=1e-6)
        # z1 stays, z2 becomes 2 z1 + 3 z2.
        torch.testing.assert_close(changed(self.x)[:, 0], z[:, 0])

    def test_a_single_linear_layer_too(self):
        encoder = nn.Linear(4, 2)
        z = encoder(self.x).detach()
        changed = then_linear(encoder, self.matrix)
        assert changed is encoder
        torch.testing.assert_close(changed(self.x), z @ self.matrix, rtol=1e-5, atol=1e-6)

    def test_any_other_end_gets_a_layer_of_its_own(self):
        encoder = nn.Sequential(random_mlp(4, 5, 2), nn.Tanh())
        z = encoder(self.x).detach()
        changed = then_linear(encoder, self.matrix)
        assert changed is not encoder
        torch.testing.assert_close(encoder(self.x), z)
        torch.testing.assert_close(changed(self.x), z @ self.matrix, rtol=1e-5, atol=1e-6)
        assert isinstance(changed[1], Projection)
        assert changed[1].weight.requires_grad

    def test_applied_twice_multiplies_twice(self):
        encoder = random_mlp(4, 2)
        z = encoder(self.x).detach()
        changed = then_linear(then_linear(encoder, self.matrix), self.matrix)
        expected = z @ self.matrix @ self.matrix
        torch.testing.assert_close(changed(self.x), expected, rtol=1e-5, atol=1e-6)


def test_a_projection_is_zero_until_it_is_set_and_draws_nothing():
    before = torch.random.get_rng_state()
    projection = Projection(3, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert projection(torch.ones(4, 3)).tolist() == [[0.0, 0.0]] * 4
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]))
    assert projection(torch.ones(1, 3)).tolist() == [[6.0, 1.0]]


def test_making_a_network_draws_nothing():
    before = torch.random.get_rng_state()
    mlp((30, 20, 10))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_autoencoder_decodes_its_code():
    encoder, decoder = random_mlp(4, 3, 2), random_mlp(2, 3, 4, seed=1)
    x = torch.ones(5, 4)
    assert torch.equal(AutoencoderNet(encoder, decoder)(x), decoder(encoder(x)))


class TestClusterNet:
    centroids = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])

    def test_worked_by_hand(self):
        net = ClusterNet(nn.Identity(), self.centroids)
        log_q = net(torch.tensor([[-2.0, -2.0]]))
        torch.testing.assert_close(log_q.exp(), torch.tensor([[19 / 22, 3 / 22]]))

    def test_embeds_first(self):
        encoder = random_mlp(4, 3, 2)
        net = ClusterNet(encoder, self.centroids)
        x = torch.ones(5, 4)
        assert torch.equal(net(x), net.assign(encoder(x)))

    def test_alpha_is_passed_on(self):
        # d² = 2 and 18, alpha = 2: kernels 2^-1.5 and 10^-1.5.
        net = ClusterNet(nn.Identity(), self.centroids, alpha=2.0)
        q = net(torch.tensor([[-2.0, -2.0]])).exp()
        assert (q[0, 0] / q[0, 1]).item() == pytest.approx(5**1.5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_computes_q_in_float32_whatever_the_encoder_computed_in(self, dtype):
        net = ClusterNet(nn.Identity(), self.centroids)
        log_q = net(torch.tensor([[-2.0, -2.0]], dtype=dtype))
        assert log_q.dtype == torch.float32
        torch.testing.assert_close(log_q.exp(), torch.tensor([[19 / 22, 3 / 22]]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_its_centroids_are_a_trainable_float32_copy(self, dtype):
        given = self.centroids.to(dtype, copy=True).requires_grad_()
        net = ClusterNet(nn.Identity(), given)
        assert net.centroids.dtype == torch.float32
        assert net.centroids.is_leaf
        assert net.centroids.requires_grad
        with torch.no_grad():
            net.centroids += 1
        assert torch.equal(given.detach(), self.centroids.to(dtype))

    def test_trains_encoder_and_centroids(self):
        net = ClusterNet(random_mlp(4, 2), self.centroids)
        net(torch.ones(3, 4))[:, 0].sum().backward()
        assert {name for name, p in net.named_parameters() if p.grad.any()} == {
            "encoder.0.weight",
            "encoder.0.bias",
            "centroids",
        }

    def test_without_encoder_takes_embedded_points_and_shares_the_centroids(self):
        net = ClusterNet(random_mlp(4, 2), self.centroids, alpha=3.0)
        bare = net.without_encoder()
        z = torch.ones(3, 2)
        assert torch.equal(bare(z), net.assign(z))
        assert [name for name, _ in bare.named_parameters()] == ["centroids"]
        with torch.no_grad():
            bare.centroids += 5
        assert torch.equal(net.centroids, self.centroids + 5)

    def test_a_copy_is_independent(self):
        net = ClusterNet(random_mlp(4, 2), self.centroids)
        twin = copy.deepcopy(net)
        with torch.no_grad():
            twin.centroids += 1
        assert torch.equal(net.centroids, self.centroids)


def test_a_linear_layer_that_computes_its_weight_is_left_alone():
    encoder = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    x, matrix = torch.randn(5, 4), torch.randn(3, 3)
    expected = (encoder(x) @ matrix).detach()
    torch.testing.assert_close(then_linear(encoder, matrix)(x), expected)
