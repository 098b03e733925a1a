import copy
import random
import shutil
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import nn

from deepclust import training
from deepclust.features import Scaling
from deepclust.networks import AutoencoderNet, ClusterNet, initialise_uniform, mlp
from deepclust.rows import Rows
from deepclust.runtime import Runtime
from deepclust.training import (
    BatchOrder,
    Hyper,
    State,
    constant,
    layer_pairs,
    minimise,
    one_cycle,
    pretrain,
    pretrain_layer,
    reconstruction_error,
    self_train,
    sgd,
    step_decay,
)

CPU = torch.device("cpu")
PLAIN = Runtime(CPU)
SEED = 7


# -- something to train ----------------------------------------------------------------------------


def table(n=37, d=5):
    """Rows in three groups, the last one small."""
    rng = np.random.default_rng(0)
    middles = rng.normal(0, 1.5, (3, d))
    return (middles[np.arange(n) % 8 // 3] + rng.normal(size=(n, d))).astype(np.float32)


def rows_of(X):
    return Rows(X, Scaling(), CPU)


def autoencoder(*widths):
    net = AutoencoderNet(mlp(widths), mlp(widths[::-1]))
    initialise_uniform(net, np.random.default_rng(1))
    return net


def cluster_net(X, *widths, k=3):
    encoder = mlp((X.shape[1], *widths))
    initialise_uniform(encoder, np.random.default_rng(1))
    with torch.no_grad():
        centroids = encoder(torch.from_numpy(X[:k]))
    return ClusterNet(encoder, centroids)


def parameters(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def steps_of(events):
    return [(event.step, event.labels is not None) for event in events]


# -- the three loops under one face, for what holds for all of them --------------------------------


class Pretraining:
    """Autoencoder, trained with Adam on one cycle."""

    def __init__(self):
        net = autoencoder(5, 6, 4, 2)
        self.state = State(net, torch.optim.Adam(net.parameters(), lr=0.0, fused=True), SEED)
        self.subject = net

    def run(self, runtime=PLAIN, n_steps=13, log_interval=4):
        schedule = one_cycle(0.01, 13)
        sizes = {"n_steps": n_steps, "batch_size": 10, "log_interval": log_interval}
        return pretrain(self.state, rows_of(table()), runtime, schedule, **sizes)


class LayerPretraining:
    """The second layer pair, with dropout, across a drop of the learning rate."""

    def __init__(self):
        net = autoencoder(5, 6, 4, 2)
        self.pair = layer_pairs(net)[1]
        self.state = State(self.pair.net, sgd(self.pair.net, bias_factor=2.0), SEED)
        self.subject = net

    def run(self, runtime=PLAIN, n_steps=13, log_interval=4):
        schedule = step_decay(0.5, every=6, burn_in=3)
        sizes = {"n_steps": n_steps, "batch_size": 10, "log_interval": log_interval, "stage": 2}
        return pretrain_layer(self.state, self.pair, rows_of(table()), runtime, schedule, **sizes)


class SelfTraining:
    """Clustering with three refreshes."""

    reset_momentum = False

    def __init__(self):
        self.subject = cluster_net(table(), 6, 2)
        self.state = State(self.subject, sgd(self.subject), SEED)

    def run(self, runtime=PLAIN, n_steps=13, log_interval=4):
        return self_train(
            self.state,
            rows_of(table()),
            runtime,
            constant(0.1),
            n_steps=n_steps,
            batch_size=10,
            update_interval=6,
            reset_momentum=self.reset_momentum,
            log_interval=log_interval,
        )


class SelfTrainingWithReset(SelfTraining):
    """The same, forgetting the velocity at each refresh."""

    reset_momentum = True


LOOPS = [Pretraining, LayerPretraining, SelfTraining, SelfTrainingWithReset]


# -- learning rate and momentum --------------------------------------------------------------------


class TestSchedules:
    def test_constant(self):
        assert constant(0.01)(0) == constant(0.01)(10**6) == Hyper(0.01, 0.9)
        assert constant(0.01, momentum=0.5)(3) == Hyper(0.01, 0.5)

    @pytest.mark.parametrize(
        ("step", "lr", "momentum"),
        [
            (0, 0.1, 0.0),
            (1, 0.1, 0.0009),
            (500, 0.1, 0.45),
            (1000, 0.1, 0.9),
            (19_999, 0.1, 0.9),
            (20_000, 0.01, 0.9),
            (39_999, 0.01, 0.9),
            (40_000, 0.001, 0.9),
            (99_999, 1e-5, 0.9),
        ],
    )
    def test_the_paper_s_autoencoder_with_caffe_s_burn_in(self, step, lr, momentum):
        hyper = step_decay(0.1, every=20_000, burn_in=1000)(step)
        assert hyper.lr == pytest.approx(lr)
        assert hyper.momentum == pytest.approx(momentum)

    def test_no_burn_in(self):
        assert step_decay(0.1, 10, 0)(0) == Hyper(0.1, 0.9)
        assert step_decay(1.0, 10, 0, gamma=0.5, momentum=0.8)(20) == Hyper(0.25, 0.8)

    @pytest.mark.parametrize("n_steps", [4, 10, 101, 333])
    @pytest.mark.parametrize("warm_up", [None, 0.5])
    def test_one_cycle_is_torch_s(self, n_steps, warm_up):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
        share = {} if warm_up is None else {"pct_start": warm_up}
        theirs = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.02, total_steps=n_steps, cycle_momentum=False, **share
        )
        ours = one_cycle(0.02, n_steps, **({} if warm_up is None else {"warm_up": warm_up}))
        for step in range(n_steps):
            assert ours(step).lr == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
            optimizer.step()
            if step < n_steps - 1:
                theirs.step()

    @pytest.mark.parametrize("n_steps", [1, 2, 3])
    def test_one_cycle_of_a_few_steps_begins_at_its_peak(self, n_steps):
        rates = [one_cycle(0.5, n_steps)(step).lr for step in range(n_steps)]
        assert rates[0] == 0.5
        assert all(a > b > 0 for a, b in pairwise(rates))


# -- optimisers ------------------------------------------------------------------------------------


def by_caffe(gradients, schedule, factor, start):
    """Caffe's SGD, number by number: the velocity holds the learning rate."""
    values, velocity = list(start), [0.0] * len(start)
    for step, gradient in enumerate(gradients):
        lr, momentum = schedule(step)
        for i, g in enumerate(gradient):
            velocity[i] = momentum * velocity[i] + lr * factor * g
            values[i] -= velocity[i]
    return values


class TestSGD:
    rng = np.random.default_rng(3)
    weight_gradients, bias_gradients = rng.normal(size=(23, 3)), rng.normal(size=(23, 1))

    def train(self, schedule, make, until=23):
        """One linear unit whose loss has the given gradients, whatever its parameters are."""
        unit = nn.Linear(3, 1).double()
        with torch.no_grad():
            unit.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
            unit.bias.fill_(4.0)

        def losses_of(step):
            a = torch.from_numpy(self.weight_gradients[step])
            return {"weight": unit.weight[0] @ a, "bias": unit.bias @ self.bias(step)}

        minimise(State(unit, make(unit), SEED), losses_of, schedule, until)
        return unit.weight[0].tolist(), unit.bias.tolist()

    def bias(self, step):
        return torch.from_numpy(self.bias_gradients[step])

    @pytest.mark.parametrize(
        "schedule",
        [
            constant(0.1),
            step_decay(0.1, every=1000, burn_in=8),
            step_decay(0.1, every=5, burn_in=0),
            step_decay(0.1, every=7, burn_in=10),
            lambda step: Hyper(0.01 * (step + 1), 0.5),
        ],
        ids=["constant", "burn-in", "drops", "both", "rising"],
    )
    @pytest.mark.parametrize("bias_factor", [1.0, 2.0])
    def test_is_caffe_s(self, schedule, bias_factor):
        weight, bias = self.train(schedule, partial(sgd, bias_factor=bias_factor))
        expected = by_caffe(self.weight_gradients, schedule, 1, [1.0, 2.0, 3.0])
        np.testing.assert_allclose(weight, expected, rtol=1e-12)
        expected = by_caffe(self.bias_gradients, schedule, bias_factor, [4.0])
        np.testing.assert_allclose(bias, expected, rtol=1e-12)

    def test_is_torch_s_where_the_rate_is_constant_and_not_where_it_drops(self):
        def theirs(schedule):
            unit = nn.Linear(3, 1).double()
            with torch.no_grad():
                unit.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
            optimizer = torch.optim.SGD([unit.weight], lr=1.0, momentum=0.9)
            for step, gradient in enumerate(self.weight_gradients):
                optimizer.param_groups[0]["lr"] = schedule(step).lr
                unit.weight.grad = torch.from_numpy(gradient[None])
                optimizer.step()
            return unit.weight[0].tolist()

        ours = self.train(constant(0.1), sgd)[0]
        np.testing.assert_allclose(ours, theirs(constant(0.1)), rtol=1e-12)
        drops = step_decay(0.1, every=5, burn_in=0)
        assert np.abs(np.subtract(self.train(drops, sgd)[0], theirs(drops))).max() > 1e-3

    def test_only_biases_of_linear_layers_learn_faster(self):
        net = ClusterNet(mlp((4, 3, 2)), torch.zeros(5, 2))
        groups = sgd(net, bias_factor=2.0).param_groups
        factors = {id(p): group["factor"] for group in groups for p in group["params"]}
        assert {name: factors[id(p)] for name, p in net.named_parameters()} == {
            "encoder.0.weight": 1.0,
            "encoder.0.bias": 2.0,
            "encoder.2.weight": 1.0,
            "encoder.2.bias": 2.0,
            "centroids": 1.0,
        }

    def test_frozen_parameters_are_left_out(self):
        net = mlp((4, 3, 2))
        net[0].requires_grad_(False)
        known = {id(p) for group in sgd(net).param_groups for p in group["params"]}
        assert known == {id(net[2].weight), id(net[2].bias)}

    def test_without_any_bias(self):
        net = ClusterNet(nn.Identity(), torch.zeros(5, 2))
        assert [len(group["params"]) for group in sgd(net).param_groups] == [1]


class TestMinimise:
    def test_means_over_the_steps_and_nothing_else(self):
        unit = nn.Linear(1, 1, bias=False)
        state = State(unit, sgd(unit), SEED, step=2)
        seen = []
        handed_out = torch.zeros(())  # the same memory each time, as from a captured step

        def losses_of(step):
            seen.append(step)
            handed_out.fill_(10.0 * step)
            return {"moving": (unit.weight * step).sum(), "fixed": handed_out}

        start = unit.weight.item()
        means = minimise(state, losses_of, constant(0.1, momentum=0.0), until=5)
        assert seen == [2, 3, 4]
        assert state.step == 5
        # The weight goes down by 0.1 * step after each step.
        values = [2 * start, 3 * (start - 0.2), 4 * (start - 0.2 - 0.3)]
        assert means["moving"].item() == pytest.approx(sum(values) / 3)
        assert means["fixed"].item() == 30.0
        assert unit.weight.item() == pytest.approx(start - 0.9)
        assert not any(mean.requires_grad for mean in means.values())

    def test_the_sum_of_the_terms_is_minimised(self):
        unit = nn.Linear(1, 1, bias=False)
        start = unit.weight.item()

        def losses_of(step):
            return {"a": unit.weight.sum() * 2, "b": unit.weight.sum() * 3}

        minimise(State(unit, sgd(unit), SEED), losses_of, constant(0.1), until=1)
        assert unit.weight.item() == pytest.approx(start - 0.5)

    def test_adam_gets_its_rate_and_keeps_its_betas(self):
        ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
        theirs.load_state_dict(ours.state_dict())
        x = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 8, 3))).float()
        optimizer = torch.optim.Adam(theirs.parameters(), lr=1.0)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps=20, cycle_momentum=False
        )
        for step in range(20):
            optimizer.zero_grad()
            theirs(x[step]).square().sum().backward()
            optimizer.step()
            if step < 19:
                cycle.step()
        state = State(ours, torch.optim.Adam(ours.parameters(), lr=0.0, fused=True), SEED)
        minimise(state, lambda i: {"loss": ours(x[i]).square().sum()}, one_cycle(0.1, 20), 20)
        torch.testing.assert_close(parameters(ours), parameters(theirs))


# -- batches ---------------------------------------------------------------------------------------


class TestBatchOrder:
    sizes = pytest.mark.parametrize(
        ("n_rows", "batch_size"), [(10, 3), (10, 5), (10, 10), (5, 12), (7, 1), (1, 1), (1, 4)]
    )

    @sizes
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_every_row_once_in_each_epoch_and_no_gap_between_them(
        self, n_rows, batch_size, shuffle
    ):
        order = BatchOrder(n_rows, batch_size, SEED, 0, shuffle=shuffle)
        batches = [order(step) for step in range(4 * n_rows)]
        assert {batch.shape for batch in batches} == {(batch_size,)}
        assert {batch.dtype for batch in batches} == {np.dtype(np.int64)}
        visited = np.concatenate(batches).reshape(4 * batch_size, n_rows)
        for epoch in visited:
            assert sorted(epoch) == list(range(n_rows))

    @sizes
    def test_unshuffled_batches_are_consecutive_slices(self, n_rows, batch_size):
        order = BatchOrder(n_rows, batch_size, SEED, 0, shuffle=False)
        place = 0
        for step in range(20):
            expected = []
            for _ in range(batch_size):
                expected.append(place)
                place = 0 if place == n_rows - 1 else place + 1
            assert order(step).tolist() == expected

    @sizes
    def test_depends_on_the_step_and_not_on_what_was_asked_before(self, n_rows, batch_size):
        order = BatchOrder(n_rows, batch_size, SEED, 0)
        forward = [order(step).tolist() for step in range(30)]
        backward = [order(step).tolist() for step in reversed(range(30))]
        alone = [BatchOrder(n_rows, batch_size, SEED, 0)(step).tolist() for step in range(30)]
        assert forward == backward[::-1] == alone

    def test_seed_stage_and_epoch_each_give_another_order(self):
        orders = {
            tuple(BatchOrder(50, 50, seed, stage)(epoch).tolist())
            for seed in range(3)
            for stage in range(3)
            for epoch in range(3)
        }
        assert len(orders) == 27

    def test_rows_are_shuffled_evenly(self):
        first = np.concatenate([BatchOrder(4, 1, seed, 0)(0) for seed in range(400)])
        assert np.bincount(first).min() > 70  # 100 each, give or take 9


# -- pretraining -----------------------------------------------------------------------------------


def half_mean_square(x, x_hat):
    """½ of the mean over samples and features, value by value."""
    total, n = 0.0, 0
    for row, row_hat in zip(x.tolist(), x_hat.tolist(), strict=True):
        for a, b in zip(row, row_hat, strict=True):
            total, n = total + (a - b) ** 2, n + 1
    return total / n / 2


class TestReconstructionError:
    def test_worked_by_hand(self):
        # Differences 1, 0, 3, 2: squares 14 in all, mean 3.5.
        x, x_hat = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 2.0], [0.0, 6.0]])
        assert reconstruction_error(x, x_hat).item() == 1.75

    def test_mean_over_samples_and_features(self):
        rng = np.random.default_rng(0)
        x, x_hat = torch.from_numpy(rng.normal(size=(2, 7, 4)))
        expected = half_mean_square(x, x_hat)
        assert reconstruction_error(x.float(), x_hat.float()).item() == pytest.approx(expected)

    def test_in_float32_whatever_the_decoder_computed_in(self):
        x = torch.full((2, 2), 1.001)
        error = reconstruction_error(x, torch.ones(2, 2, dtype=torch.bfloat16))
        assert error.dtype == torch.float32
        assert error.item() == pytest.approx(0.5e-6, rel=1e-3)


class TestPretrain:
    def test_is_a_plain_training_loop(self):
        X, net = torch.from_numpy(table()), autoencoder(5, 6, 2)
        plain = copy.deepcopy(net)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.2, momentum=0.9)
        order, losses = BatchOrder(len(X), 10, SEED, 3), []
        for step in range(12):
            x = X[order(step)]
            loss = ((plain.decoder(plain.encoder(x)) - x) ** 2).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        state = State(net, sgd(net), SEED)
        sizes = {"n_steps": 12, "batch_size": 10, "stage": 3, "log_interval": 1}
        events = list(pretrain(state, rows_of(table()), PLAIN, constant(0.2), **sizes))
        np.testing.assert_allclose([e.losses["reconstruction"] for e in events], losses, rtol=1e-5)
        torch.testing.assert_close(parameters(net), parameters(plain))
        assert losses[-1] < losses[0]

    def test_unshuffled_walks_through_the_rows(self):
        X, net = table(), autoencoder(5, 2)
        x = torch.from_numpy(X)
        state = State(net, sgd(net), SEED)
        sizes = {"n_steps": 5, "batch_size": 10, "log_interval": 1, "shuffle": False}
        step, before = 0, copy.deepcopy(net)
        for event in pretrain(state, rows_of(X), PLAIN, constant(0.2), **sizes):
            batch = x[[i % len(x) for i in range(10 * step, 10 * step + 10)]]
            expected = half_mean_square(batch, before(batch))
            assert event.losses["reconstruction"].item() == pytest.approx(expected, rel=1e-5)
            step, before = event.step, copy.deepcopy(net)

    def test_events(self):
        loop = Pretraining()
        events = list(loop.run())
        assert [e.step for e in events] == [4, 8, 12, 13]
        assert {(e.phase, e.stage, e.n_steps) for e in events} == {("pretrain", "autoencoder", 13)}
        assert all(e.labels is None and e.changed is None for e in events)
        assert all(list(e.losses) == ["reconstruction"] for e in events)
        assert all(e.state is loop.state for e in events)


class TestLayerPairs:
    net = autoencoder(9, 8, 7, 6, 5)
    pairs = layer_pairs(net)

    def test_where_the_relus_are(self):
        # All layers but g2 of the first pair, the signed input, and g1 of the last, the code.
        def has_relu(part):
            return [type(layer) for layer in part] == [nn.Linear, nn.ReLU]

        assert [has_relu(pair.net.encoder) for pair in self.pairs] == [True, True, True, False]
        assert [has_relu(pair.net.decoder) for pair in self.pairs] == [False, True, True, True]

    def test_where_dropout_acts(self):
        # Not on the raw input and not on the code.
        assert [pair.drop_input for pair in self.pairs] == [False, True, True, True]
        assert [pair.drop_code for pair in self.pairs] == [True, True, True, False]

    def test_put_together_they_are_the_network(self):
        x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 9))).float()
        h = x
        for pair in self.pairs:
            torch.testing.assert_close(pair.below(x), h)
            h = pair.net.encoder(h)
        torch.testing.assert_close(h, self.net.encoder(x))
        for pair in reversed(self.pairs):
            h = pair.net.decoder(h)
        torch.testing.assert_close(h, self.net(x))

    def test_share_their_parameters_with_it(self):
        whole = {id(p) for p in self.net.parameters()}
        parts = [id(p) for pair in self.pairs for p in pair.net.parameters()]
        assert len(parts) == len(whole) == 16
        assert set(parts) == whole

    def test_one_layer_has_neither_relu_nor_dropout(self):
        (pair,) = layer_pairs(autoencoder(5, 2))
        assert len(pair.net.encoder) == len(pair.net.decoder) == 1
        assert (pair.drop_input, pair.drop_code) == (False, False)

    @pytest.mark.parametrize(
        ("encoder", "decoder"),
        [
            (mlp((5, 4, 2)), mlp((2, 3, 5))),
            (mlp((5, 4, 2)), mlp((2, 5))),
            (mlp((5, 4, 2)), nn.Sequential(mlp((2, 4, 5)))),
            (nn.Sequential(nn.Linear(5, 2), nn.Tanh()), mlp((2, 5))),
            (nn.Linear(5, 2), nn.Linear(2, 5)),
        ],
    )
    def test_other_networks_are_refused(self, encoder, decoder):
        with pytest.raises(ValueError, match=r"needs an encoder and a decoder of Linear and ReLU"):
            layer_pairs(AutoencoderNet(encoder, decoder))


class TestPretrainLayer:
    def train(self, stage, dropout=0.2, n_steps=5, seed=SEED, **settings):
        """Train one pair; returns network, events and what flowed through the pair."""
        net = autoencoder(5, 40, 30, 2)
        pair = layer_pairs(net)[stage - 1]
        flow = {"input": [], "code": [], "output": []}
        pair.net.encoder.register_forward_hook(lambda m, x, y: flow["input"].append(x[0]))
        pair.net.decoder.register_forward_hook(lambda m, x, y: flow["code"].append(x[0]))
        pair.net.decoder.register_forward_hook(lambda m, x, y: flow["output"].append(y))
        pair.net.encoder.register_forward_hook(
            lambda m, x, y: flow.setdefault("clean code", []).append(y)
        )
        state = State(pair.net, sgd(pair.net, bias_factor=2.0), seed)
        events = pretrain_layer(
            state,
            pair,
            rows_of(table()),
            PLAIN,
            constant(0.1),
            n_steps=n_steps,
            batch_size=32,
            stage=stage,
            dropout=dropout,
            log_interval=1,
            **settings,
        )
        return net, list(events), {name: torch.stack(x).detach() for name, x in flow.items()}

    @staticmethod
    def clean(stage, n_steps=5, seed=SEED):
        """Output of the layers below for each batch, by loops over the layers."""
        encoder, order = autoencoder(5, 40, 30, 2).encoder, BatchOrder(37, 32, seed, stage)
        h = torch.stack([torch.from_numpy(table()[order(step)]) for step in range(n_steps)])
        for i in range(stage - 1):
            linear = encoder[2 * i]
            h = torch.clamp(h @ linear.weight.T + linear.bias, min=0)
        return h.detach()

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_trains_its_own_layers_and_leaves_the_others_bit_for_bit(self, stage):
        before = autoencoder(5, 40, 30, 2)
        net, _, _ = self.train(stage)
        mirrored = 3 - stage
        own = {f"encoder.{2 * stage - 2}", f"decoder.{2 * mirrored}"}
        for name, parameter in before.named_parameters():
            same = torch.equal(parameter, net.get_parameter(name))
            assert same != (name.rpartition(".")[0] in own), name
            # Nothing was spent on gradients that nobody uses.
            assert (net.get_parameter(name).grad is None) == same, name

    @pytest.mark.parametrize("stage", [1, 2, 3])
    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    def test_compares_with_the_clean_output_of_the_layers_below(self, stage, dropout):
        _, events, flow = self.train(stage, dropout)
        clean = self.clean(stage)
        for step, event in enumerate(events):
            expected = half_mean_square(clean[step], flow["output"][step])
            assert event.losses["reconstruction"].item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("stage", [1, 2, 3])
    @pytest.mark.parametrize("dropout", [0.2, 0.5])
    def test_masks_are_inverted_and_have_the_right_rate(self, stage, dropout):
        _, _, flow = self.train(stage, dropout)
        places = {"input": (self.clean(stage), stage > 1)}
        places["code"] = (flow["clean code"], stage < 3)
        for place, (clean, dropped) in places.items():
            if not dropped:
                torch.testing.assert_close(flow[place], clean)
                continue
            alive = clean > 1e-4  # where a ReLU gave zero a mask cannot be seen
            masks = flow[place][alive] / clean[alive]
            kept = masks > 0
            torch.testing.assert_close(masks[kept], torch.full_like(masks[kept], 1 / (1 - dropout)))
            assert len(masks) > 1500
            assert 1 - kept.double().mean().item() == pytest.approx(dropout, abs=0.05)

    def test_masks_differ_between_steps_places_stages_and_seeds(self):
        def masks(stage, seed, place):
            """Of each step: True, False, or neither where a ReLU gave zero."""
            flow = self.train(stage, dropout=0.5, seed=seed)[2]
            clean = self.clean(stage, seed=seed) if place == "input" else flow["clean code"]
            kept = (flow[place] > 0).double()
            return torch.where(clean > 1e-4, kept, torch.nan)[..., :30].flatten(1)

        keys = [(2, 7, "input"), (2, 7, "code"), (1, 7, "code"), (2, 8, "input")]
        drawn = torch.cat([masks(*key) for key in keys])
        assert len(drawn) == 4 * 5
        for a, b in combinations(drawn, 2):
            seen = ~(a.isnan() | b.isnan())
            assert seen.sum() > 100
            assert (a == b)[seen].double().mean().item() == pytest.approx(0.5, abs=0.2)

    def test_the_same_seed_gives_the_same_bits(self):
        first, again, other = (self.train(2, seed=seed)[0] for seed in (1, 1, 2))
        assert torch.equal(parameters(first), parameters(again))
        assert not torch.equal(parameters(first), parameters(other))

    def test_is_a_plain_loop_over_the_paper_s_four_lines(self):
        # x̃ = Dropout(x), h = g1(W1 x̃ + b1), h̃ = Dropout(h), y = g2(W2 h̃ + b2), with the masks
        # that were seen; the next loss then shows that the step was taken down its gradient.
        _, events, flow = self.train(2, n_steps=2)
        start = autoencoder(5, 40, 30, 2)
        f, g = start.encoder[2], start.decoder[2]
        x = self.clean(2, n_steps=2)
        scales = flow["code"] / flow["clean code"].clamp(min=1e-30)

        def loss(step):
            h = torch.relu(flow["input"][step] @ f.weight.T + f.bias)
            y = torch.relu((h * scales[step]) @ g.weight.T + g.bias)
            return ((y - x[step]) ** 2).mean() / 2

        first = loss(0)
        first.backward()
        with torch.no_grad():
            for layer in (f, g):
                layer.weight -= 0.1 * layer.weight.grad
                layer.bias -= 0.2 * layer.bias.grad
            second = loss(1)
        assert events[0].losses["reconstruction"].item() == pytest.approx(first.item(), rel=1e-5)
        assert events[1].losses["reconstruction"].item() == pytest.approx(second.item(), rel=1e-5)

    def test_events(self):
        events = list(LayerPretraining().run())
        assert [e.step for e in events] == [4, 8, 12, 13]
        assert {(e.phase, e.stage, e.n_steps) for e in events} == {("pretrain", "layer 2", 13)}
        assert all(list(e.losses) == ["reconstruction"] for e in events)


# -- self-training ---------------------------------------------------------------------------------


def assignment(z, centroids):
    """Equation 1 with alpha = 1, in float64."""
    d2 = ((z[:, None, :] - centroids) ** 2).sum(axis=2)
    kernel = 1 / (1 + d2)
    return kernel / kernel.sum(axis=1, keepdims=True)


def target(q, frequency):
    """Equation 3."""
    shares = q**2 / frequency
    return shares / shares.sum(axis=1, keepdims=True)


def divergence(p, q):
    """Equation 2, per sample."""
    return (p * np.log(p / q)).sum(axis=1).mean()


class LinearClusters:
    """A linear encoder with centroids, of which everything can be computed in NumPy."""

    def __init__(self, n=37, k=3):
        self.X = table(n)
        self.net = cluster_net(self.X, 2, k=k)
        self.state = State(self.net, sgd(self.net), SEED)

    def run(self, n_steps, update_interval, lr=0.5, batch_size=10, **settings):
        settings = {"log_interval": 1} | settings
        sizes = {
            "n_steps": n_steps,
            "batch_size": batch_size,
            "update_interval": update_interval,
        }
        return self_train(self.state, rows_of(self.X), PLAIN, constant(lr), **sizes, **settings)

    def embedded(self, rows=slice(None)):
        weight, bias = (p.detach().double().numpy() for p in self.net.encoder[0].parameters())
        return self.X[rows].astype(np.float64) @ weight.T + bias

    def centroids(self):
        return self.net.centroids.detach().double().numpy().copy()

    def q(self, rows=slice(None)):
        return assignment(self.embedded(rows), self.centroids())


class TestSelfTrain:
    @pytest.mark.parametrize(
        ("n_steps", "expected"),
        [
            # Refreshes are marked R; a chunk ends after 3 steps or before a refresh.
            (1, "R0 1"),
            (4, "R0 3 4 R4"),
            (8, "R0 3 4 R4 6 8 R8"),
            (10, "R0 3 4 R4 6 8 R8 9 10"),
        ],
    )
    def test_refreshes_before_any_further_step_and_chunks_between(self, n_steps, expected):
        events = LinearClusters().run(n_steps, update_interval=4, log_interval=3)
        order = [f"R{step}" if refresh else f"{step}" for step, refresh in steps_of(events)]
        assert " ".join(order) == expected

    def test_what_events_hold(self):
        clusters = LinearClusters()
        for event in clusters.run(5, update_interval=2):
            assert (event.phase, event.stage, event.n_steps) == ("self-train", "clustering", 5)
            assert event.state is clusters.state
            assert event.step == clusters.state.step
            if event.labels is None:
                assert list(event.losses) == ["kl"]
                assert event.changed is None
            else:
                assert event.losses == {}
                assert (event.changed is None) == (event.step == 0)

    def test_the_first_refresh_comes_before_any_step(self):
        clusters = LinearClusters()
        before = parameters(clusters.net)
        event = next(clusters.run(5, update_interval=2))
        assert event.step == 0
        assert torch.equal(parameters(clusters.net), before)
        q = clusters.q()
        assert event.labels.tolist() == q.argmax(axis=1).tolist()
        assert len(set(event.labels.tolist())) == 3
        kept = clusters.state.target
        np.testing.assert_allclose(kept.z, clusters.embedded(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kept.frequency, q.sum(axis=0), rtol=1e-6)
        assert kept.frequency.dtype == torch.float64

    def test_p_is_global_and_frozen_between_refreshes(self):
        clusters = LinearClusters()
        order = BatchOrder(37, 10, SEED, 100)
        frozen, per_batch, moving = [], [], []
        for event in clusters.run(9, update_interval=4):
            if event.labels is not None:
                q = clusters.q()
                p = target(q, q.sum(axis=0))
                continue
            # One step was done: with p of the refresh, and q of before the step.
            batch = order(event.step - 1)
            loss = event.losses["kl"].item()
            assert loss == pytest.approx(divergence(p[batch], q[batch]), rel=1e-4, abs=1e-7)
            frozen.append(loss)
            per_batch.append(divergence(target(q[batch], q[batch].sum(axis=0)), q[batch]))
            moving.append(divergence(target(q, q.sum(axis=0))[batch], q[batch]))
            q = clusters.q()
        assert len(frozen) == 9
        # Another algorithm would have shown.
        assert np.abs(np.subtract(frozen, per_batch)).max() > 0.01
        assert np.abs(np.subtract(frozen, moving)).max() > 0.01

    def test_one_step_follows_the_paper_s_gradients(self):
        clusters = LinearClusters()
        batch = BatchOrder(37, 10, SEED, 100)(0)
        z, mu, all_q = clusters.embedded(), clusters.centroids(), clusters.q()
        p, q = target(all_q, all_q.sum(axis=0))[batch], all_q[batch]
        weight = clusters.net.encoder[0].weight.detach().double().numpy().copy()
        z_gradient, mu_gradient = np.zeros((10, 2)), np.zeros_like(mu)
        for i, row in enumerate(batch):
            for j in range(3):
                difference = z[row] - mu[j]
                pull = 2 / (1 + difference @ difference) * (p[i, j] - q[i, j]) / 10
                z_gradient[i] += pull * difference
                mu_gradient[j] -= pull * difference
        list(clusters.run(1, update_interval=4, lr=0.5))
        np.testing.assert_allclose(clusters.centroids(), mu - 0.5 * mu_gradient, atol=1e-6)
        expected = weight - 0.5 * z_gradient.T @ clusters.X[batch]
        np.testing.assert_allclose(clusters.net.encoder[0].weight.detach(), expected, atol=1e-6)
        assert np.abs(mu_gradient).max() > 1e-2
        assert np.abs(z_gradient).max() > 5e-3

    def test_changed_is_the_share_of_labels_that_moved(self):
        clusters = LinearClusters()
        labels, shares = None, []
        for event in clusters.run(12, update_interval=3, lr=2.0):
            if event.labels is None:
                continue
            now = clusters.q().argmax(axis=1).tolist()
            assert event.labels.tolist() == now
            if labels is None:
                assert event.changed is None
            else:
                moved = sum(a != b for a, b in zip(now, labels, strict=True))
                assert event.changed == pytest.approx(moved / 37)
                shares.append(event.changed)
            labels = now
        assert max(shares) > 0
        assert len(shares) == 4

    def test_losses_are_means_over_the_chunk(self):
        single = [e.losses["kl"].item() for e in LinearClusters().run(8, 8) if e.losses]
        chunks = [
            e.losses["kl"].item() for e in LinearClusters().run(8, 8, log_interval=3) if e.losses
        ]
        means = [np.mean(single[:3]), np.mean(single[3:6]), np.mean(single[6:])]
        np.testing.assert_allclose(chunks, means, rtol=1e-5)

    @pytest.mark.parametrize("block", [1, 8, 37])
    def test_a_refresh_in_blocks_is_the_same(self, block, monkeypatch):
        whole, parts = LinearClusters(), LinearClusters()
        next(whole.run(1, update_interval=1))
        monkeypatch.setattr(training.self_training, "REFRESH_BLOCK", block)
        next(parts.run(1, update_interval=1))
        a, b = whole.state.target, parts.state.target
        torch.testing.assert_close(a.z, b.z)
        torch.testing.assert_close(a.frequency, b.frequency)
        assert torch.equal(a.labels, b.labels)

    def test_a_refresh_never_holds_all_differences_at_once(self, monkeypatch):
        # 1500 clusters in 2 dimensions take 3000 numbers a row, and so two thirds of the rows of a
        # block whose activations have 2000.
        clusters = LinearClusters(n=1600, k=1500)
        sizes, original = [], ClusterNet.assign

        def assign(net, z):
            sizes.append(len(z))
            return original(net, z)

        monkeypatch.setattr(ClusterNet, "assign", assign)
        monkeypatch.setattr(training.self_training, "REFRESH_BLOCK", 600)
        next(clusters.run(1, update_interval=1))
        assert sizes == [400, 200, 400, 200, 400]

    def test_reset_momentum_is_a_new_optimiser_at_each_refresh(self):
        restarted, reset, kept = (LinearClusters() for _ in range(3))
        for stop in (4, 8, 12):
            restarted.state.optimizer = sgd(restarted.net)
            restarted.state.target = None
            list(restarted.run(stop, update_interval=4))
        list(reset.run(12, update_interval=4, reset_momentum=True))
        list(kept.run(12, update_interval=4))
        torch.testing.assert_close(parameters(reset.net), parameters(restarted.net))
        assert (parameters(kept.net) - parameters(reset.net)).abs().max() > 1e-3

    def test_the_encoder_is_asked_for_its_answers_not_in_training_mode(self):
        modes = []

        class Recorder(nn.Linear):
            def forward(self, x):
                modes.append((len(x), self.training))
                return super().forward(x)

        clusters = LinearClusters()
        clusters.net.encoder = Recorder(5, 2)
        clusters.state.optimizer = sgd(clusters.net)
        list(clusters.run(3, update_interval=2))
        assert modes == [(37, False), (10, True), (10, True), (37, False), (10, True)]

    def test_lowers_the_divergence(self):
        clusters = LinearClusters()
        events = clusters.run(200, update_interval=200, log_interval=20, lr=0.1)
        losses = [event.losses["kl"].item() for event in events if event.losses]
        assert losses[-1] < 0.7 * losses[0]

    def test_other_stages_have_another_order(self):
        a, b = LinearClusters(), LinearClusters()
        list(a.run(2, update_interval=2))
        list(b.run(2, update_interval=2, stage=101))
        assert not torch.equal(parameters(a.net), parameters(b.net))


# -- what holds for each loop ----------------------------------------------------------------------


def bits(loop, events):
    """All that a run tells and leaves behind, to be compared exactly."""
    told = []
    for event in events:
        losses = {name: value.item() for name, value in event.losses.items()}
        labels = None if event.labels is None else event.labels.tolist()
        told.append((event.step, event.changed, labels, losses))
    kept = []
    for buffers in loop.state.optimizer.state_dict()["state"].values():
        kept += [buffer.tolist() for buffer in buffers.values() if torch.is_tensor(buffer)]
    return told, parameters(loop.subject).tolist(), kept


@pytest.mark.parametrize("make", LOOPS)
class TestEveryLoop:
    def test_the_same_seed_gives_the_same_bits(self, make):
        a, b, c = make(), make(), make()
        c.state.seed = SEED + 1
        first, again, other = (bits(loop, list(loop.run())) for loop in (a, b, c))
        assert first == again
        assert first != other

    def test_resumes_from_a_copy_with_the_same_bits(self, make):
        straight = make()
        events, copies = [], [copy.deepcopy(straight)]
        for event in straight.run():
            events.append(event)
            copies.append(copy.deepcopy(straight))
        told, parameters_, kept = bits(straight, events)
        assert len(copies) >= 5
        # Before the first step, at each chunk, at each refresh and within its interval.
        for done, twin in enumerate(copies):
            assert bits(twin, list(twin.run())) == (told[done:], parameters_, kept)

    def test_resumes_in_the_middle_of_a_chunk(self, make):
        straight = make()
        list(straight.run(log_interval=100))
        parts = make()
        for event in parts.run(log_interval=1):
            if event.step == 5:
                break
        twin = copy.deepcopy(parts)
        list(twin.run(log_interval=100))
        assert parts.state.step == 5
        assert bits(twin, [])[1:] == bits(straight, [])[1:]

    def test_a_longer_run_begins_like_a_shorter_one(self, make):
        short, extended = make(), make()
        list(short.run(n_steps=7))
        list(extended.run(n_steps=5))
        list(extended.run(n_steps=7))
        assert short.state.step == extended.state.step == 7
        assert torch.equal(parameters(short.subject), parameters(extended.subject))

    def test_a_finished_run_has_nothing_to_add(self, make):
        loop = make()
        list(loop.run())
        before = parameters(loop.subject)
        assert list(loop.run()) == []
        assert torch.equal(parameters(loop.subject), before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_leaves_nothing_global_changed_even_when_abandoned(self, make, dtype):
        def surroundings():
            return {
                "grad": torch.is_grad_enabled(),
                "inference": torch.is_inference_mode_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
                "autocast type": torch.get_autocast_dtype("cpu"),
                "autocast cache": torch.is_autocast_cache_enabled(),
                "type": torch.get_default_dtype(),
                "device": torch.get_default_device(),
                "threads": torch.get_num_threads(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "torch random": torch.random.get_rng_state().tolist(),
                "numpy random": [str(part) for part in np.random.mtrand._rand.get_state()],
                "python random": random.getstate(),
                "numpy errors": np.geterr(),
            }

        before = surroundings()
        loop = make().run(Runtime(CPU, dtype))
        for _ in range(4):
            next(loop)
            assert surroundings() == before
        loop.close()
        assert surroundings() == before
        list(make().run(Runtime(CPU, dtype)))
        assert surroundings() == before

    def test_trains_where_the_caller_looks_on_without_gradients(self, make):
        loop, plain = make(), make()
        list(plain.run())
        for _ in loop.run():
            with torch.no_grad():
                loop.subject.eval()
        loop.subject.train()
        assert torch.equal(parameters(loop.subject), parameters(plain.subject))

    def test_bfloat16_is_for_the_matrix_products_alone(self, make):
        loop, plain = make(), make()
        events = list(loop.run(Runtime(CPU, torch.bfloat16)))
        list(plain.run())
        assert {p.dtype for p in loop.subject.parameters()} == {torch.float32}
        assert {v.dtype for e in events for v in e.losses.values()} == {torch.float32}
        ours, theirs = parameters(loop.subject), parameters(plain.subject)
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)
        if loop.state.target is not None:
            assert loop.state.target.z.dtype == torch.float32

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
    def test_its_step_is_one_graph(self, make, monkeypatch):
        graphs, runs = [], []

        def backend(graph, inputs):
            graphs.append(graph)

            def run(*args):
                runs.append(graph)
                return graph(*args)

            return run

        torch._dynamo.reset()
        compile = partial(torch.compile, backend=backend, fullgraph=True)
        monkeypatch.setattr(torch, "compile", compile)
        loop, plain = make(), make()
        told, expected = list(loop.run(Runtime(CPU, compile=True))), list(plain.run())
        assert bits(loop, told)[:2] == bits(plain, expected)[:2]
        assert len(graphs) == 1  # batches keep one size
        assert len(runs) == 13

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
    @pytest.mark.skipif(
        not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
    )
    def test_compiled_it_gives_the_same_numbers(self, make):
        torch._dynamo.reset()
        loop, plain = make(), make()
        told, expected = list(loop.run(Runtime(CPU, compile=True))), list(plain.run())
        torch.testing.assert_close(parameters(loop.subject), parameters(plain.subject))
        for a, b in zip(told, expected, strict=True):
            assert (a.step, a.changed) == (b.step, b.changed)
            for name in a.losses:
                theirs = b.losses[name].item()
                assert a.losses[name].item() == pytest.approx(theirs, rel=1e-4, abs=1e-7)
