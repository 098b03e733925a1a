import ast
import copy
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from deepclust.centroids import initial_centroids
from deepclust.features import fit_scaling
from deepclust.functional import soft_assignment
from deepclust.networks import AutoencoderNet, ClusterNet, initialise_uniform, mlp
from deepclust.rows import Rows
from deepclust.runtime import Purpose, Runtime, generator
from deepclust.training import (
    BatchOrder,
    State,
    constant,
    layer_pairs,
    pretrain,
    pretrain_layer,
    self_train,
    sgd,
    step_decay,
)
from examples import dec_on_one_page as page

SEED = 5
BATCH = 64
WIDTHS = (64, 40, 30, 5)
STEPS = 200  # of each layer and of the clustering; twice as many of fine-tuning
SHARE = STEPS / 50_000
# 0.1, a tenth after every 80 steps; momentum grows in the first 4.
SCHEDULE = step_decay(0.1, every=80, burn_in=4)
INTERVAL = 40
CPU = torch.device("cpu")


class Library:
    """The paper's method by the library: losses and networks after each phase."""

    def __init__(self, X, shuffle):
        self.X = X
        self.rows = Rows(X, fit_scaling([X], "unit"), CPU)
        self.net = AutoencoderNet(mlp(WIDTHS), mlp(WIDTHS[::-1]))
        initialise_uniform(self.net, np.random.default_rng(0))
        self.settings = {"batch_size": BATCH, "shuffle": shuffle, "log_interval": 1}

    def pretrain(self):
        losses = []
        for stage, pair in enumerate(layer_pairs(self.net), start=1):
            state = State(pair.net, sgd(pair.net, bias_factor=2.0), SEED)
            args = (state, pair, self.rows, Runtime(CPU), SCHEDULE)
            events = pretrain_layer(*args, n_steps=STEPS, stage=stage, **self.settings)
            losses += [event.losses["reconstruction"].item() for event in events]
        state = State(self.net, sgd(self.net, bias_factor=2.0), SEED)
        events = pretrain(
            state, self.rows, Runtime(CPU), SCHEDULE, n_steps=2 * STEPS, **self.settings
        )
        return losses + [event.losses["reconstruction"].item() for event in events]

    def embedding(self):
        with torch.no_grad():
            return self.net.encoder(next(self.rows.blocks(len(self.X)))).numpy()

    def self_train(self, centroids):
        net = ClusterNet(self.net.encoder, torch.from_numpy(centroids))
        state = State(net, sgd(net, bias_factor=2.0), SEED)
        events = self_train(
            state,
            self.rows,
            Runtime(CPU),
            constant(0.01),
            n_steps=STEPS,
            update_interval=INTERVAL,
            reset_momentum=True,
            **self.settings,
        )
        losses = [event.losses["kl"].item() for event in events if event.losses]
        with torch.no_grad():
            log_q = soft_assignment(torch.from_numpy(self.embedding()), net.centroids)
        return losses, net.centroids.detach(), log_q.argmax(dim=1)


def linear(module):
    """Copies of the linear layers."""
    return [copy.deepcopy(layer) for layer in module if isinstance(layer, torch.nn.Linear)]


def library_masks():
    """The masks which the library draws, in the order in which the page asks for them."""
    last = len(WIDTHS) - 1
    for stage, (n_in, n_out) in enumerate(pairwise(WIDTHS), start=1):
        for step in range(STEPS):
            rng = generator(SEED, stage, Purpose.DROPOUT, step)
            for width in ([n_in] if stage > 1 else []) + ([n_out] if stage < last else []):
                kept = rng.random((BATCH, width), dtype=np.float32) >= 0.2
                yield torch.from_numpy(kept).float() / 0.8


@pytest.mark.parametrize("shuffle", [False, True])
def test_page_and_library_are_the_same_method(shuffle):
    X = load_digits().data[:700]
    x = torch.tensor(X / np.sqrt(np.mean(X**2)), dtype=torch.float32)
    library = Library(X, shuffle)
    encoder, decoder = linear(library.net.encoder), linear(library.net.decoder)
    masks = library_masks()

    def mask(shape):
        drawn = next(masks)
        assert drawn.shape == shape
        return drawn

    stages = iter([1, 2, 3, 0, 100])  # what the library calls its layers, fine-tuning, clustering

    def batches(n_rows):
        if shuffle:
            return map(BatchOrder(n_rows, BATCH, SEED, next(stages)), count())
        return page.consecutive(n_rows, BATCH)

    start = library.embedding()
    ours = library.pretrain()
    theirs = page.pretrain(encoder, decoder, x, SHARE, batches, mask)
    assert next(masks, None) is None
    assert len(ours) == len(theirs) == 5 * STEPS
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)
    assert ours[-1] < 0.8 * ours[3 * STEPS]  # fine-tuning
    layers = linear(library.net.encoder) + linear(library.net.decoder)
    for ours, theirs in zip(layers, encoder + decoder, strict=True):
        torch.testing.assert_close(theirs.weight, ours.weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.bias, ours.bias, rtol=0, atol=1e-5)
    z = library.embedding()
    assert np.abs(z - start).max() > 0.1
    np.testing.assert_allclose(page.forward(encoder, x).detach(), z, atol=1e-4)

    centroids = initial_centroids(z, 10, "k-means", n_init=20, seed=SEED).centroids
    their_centroids = torch.tensor(centroids, requires_grad=True)
    ours, our_centroids, our_labels = library.self_train(centroids)
    theirs = page.self_train(
        encoder, their_centroids, x, batches(len(x)), 0.0, INTERVAL, n_steps=STEPS
    )
    assert len(ours) == len(theirs) == STEPS
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(their_centroids.detach(), our_centroids, rtol=0, atol=1e-5)
    assert np.abs(our_centroids.numpy() - centroids).max() > 0.1
    their_labels = page.soft_assignment(page.forward(encoder, x), their_centroids).argmax(dim=1)
    assert torch.equal(their_labels, our_labels)
    assert len(our_labels.unique()) == 10


def test_stops_when_hardly_any_label_changes():
    x = torch.tensor(np.repeat([[0.0, 0.0], [5.0, 5.0]], 20, axis=0), dtype=torch.float32)
    encoder = page.linear_layers((2, 2))
    with torch.no_grad():
        encoder[0].weight.copy_(torch.eye(2))
    centroids = torch.tensor([[0.5, 0.0], [4.0, 5.0]], requires_grad=True)
    losses = page.self_train(encoder, centroids, x, page.consecutive(40), update_interval=7)
    assert len(losses) == 7  # at the second refresh no label has moved
    assert losses[-1] < losses[0]


def test_weights_are_drawn_as_in_the_paper():
    encoder = page.linear_layers((500, 400, 10))
    assert [tuple(layer.weight.shape) for layer in encoder] == [(400, 500), (10, 400)]
    assert encoder[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in encoder)
    assert page.dropout((500, 400)).unique().tolist() == [0.0, 1.25]
    assert page.dropout((500, 400)).mean().item() == pytest.approx(1, abs=0.01)


def test_accuracy_names_the_clusters_in_the_best_way():
    assert page.accuracy([0, 0, 1, 1, 2], [2, 2, 0, 0, 0]) == 0.8


def test_it_stands_alone_on_one_page():
    text = Path(page.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    assert imported == {"itertools", "numpy", "scipy", "sklearn", "torch"}


@pytest.mark.slow
def test_it_clusters_the_digits(capsys):
    page.main()
    scores = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 2
    assert 0.7 < scores[0] < scores[1]
