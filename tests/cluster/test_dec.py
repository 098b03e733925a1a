import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from torch import nn

from deepclust import DEC, Autoencoder
from deepclust.metrics import clustering_accuracy

X, y = make_blobs(n_samples=240, n_features=6, centers=3, random_state=1)
SMALL = {"n_clusters": 3, "max_iter": 20, "update_interval": 5, "tol": 0, "n_init": 2}


def small(**changes):
    net = {} if "autoencoder" in changes else {"hidden": (8,), "bottleneck": 3, "pretrain_iter": 20}
    return DEC(**{**SMALL, **net, "random_state": 0} | changes)


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(hidden=(8,), bottleneck=3, max_iter=50, random_state=0).fit(X)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class TestAutoencoder:
    def test_frozen_is_used_as_it_is(self, autoencoder):
        before, codes = state(autoencoder.module_), autoencoder.transform(X)
        dec = small(autoencoder=FrozenEstimator(autoencoder), init="k-means").fit(X)
        assert same(before, autoencoder.module_.state_dict())
        assert dec.autoencoder_ is not autoencoder
        assert dec.autoencoder_.transform(X).tobytes() == codes.tobytes()
        assert {record["phase"] for record in dec.history_} == {"self-train"}
        assert "pretrain" not in dec.phase_seconds_
        moved = dec.module_.encoder.state_dict()
        assert not same(autoencoder.module_.encoder.state_dict(), moved)

    def test_unfitted_is_cloned_and_trained(self):
        given = Autoencoder(hidden=(7,), bottleneck=2, max_iter=30)
        dec = small(autoencoder=given).fit(X)
        assert not hasattr(given, "module_")
        assert dec.autoencoder_.n_iter_ == 30
        assert dec.transform(X).shape == (240, 2)

    def test_unfitted_takes_the_seed_of_dec(self):
        first, second = (small(autoencoder=Autoencoder(hidden=(7,), max_iter=9)) for _ in range(2))
        assert first.fit(X).transform(X).tobytes() == second.fit(X).transform(X).tobytes()

    @pytest.mark.parametrize(
        ("field", "theirs"),
        [
            ({"hidden": (5,)}, "hidden"),
            ({"bottleneck": 4}, "bottleneck"),
            ({"pretrain_iter": 4}, "max_iter"),
            ({"pretrain_lr": 0.1}, "lr"),
            ({"scaling": None}, "scaling"),
        ],
    )
    def test_fields_beside_an_autoencoder(self, field, theirs):
        with pytest.raises(ValueError, match=f"has no effect beside.*set {theirs} of"):
            small(autoencoder=Autoencoder(), **field).fit(X)

    def test_frozen_but_not_fitted(self):
        with pytest.raises(ValueError, match="not fitted"):
            small(autoencoder=FrozenEstimator(Autoencoder())).fit(X)

    def test_frozen_on_other_columns(self, autoencoder):
        with pytest.raises(ValueError, match=r"X has 5 features.*fitted on 6"):
            small(autoencoder=FrozenEstimator(autoencoder)).fit(X[:, :5])

    def test_frozen_on_columns_in_another_order(self):
        frame = pd.DataFrame(X, columns=list("abcdef"))
        frozen = FrozenEstimator(Autoencoder(hidden=(8,), bottleneck=3, max_iter=5).fit(frame))
        assert small(autoencoder=frozen).fit(frame).n_features_in_ == 6
        with pytest.raises(ValueError, match="stand in another order; pass X"):
            small(autoencoder=frozen).fit(frame[list("fedcba")])

    def test_defaults_are_those_of_an_autoencoder(self):
        ours, theirs = DEC(), Autoencoder()
        for name in ("hidden", "bottleneck", "batch_size", "scaling", "device", "precision"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert (ours.pretrain_iter, ours.pretrain_lr) == (theirs.max_iter, theirs.lr)

    def test_something_else(self):
        with pytest.raises(ValueError, match="is no Autoencoder"):
            small(autoencoder=FrozenEstimator(nn.Identity())).fit(X)
        with pytest.raises(ValueError, match="is no Autoencoder"):
            small(autoencoder=nn.Identity()).fit(X)


class TestFreezeEncoder:
    def test_only_the_centroids_move(self, autoencoder):
        frozen = FrozenEstimator(autoencoder)
        dec = small(autoencoder=frozen, init="k-means", freeze_encoder=True).fit(X)
        assert same(autoencoder.module_.encoder.state_dict(), dec.module_.encoder.state_dict())
        assert not np.array_equal(dec.cluster_centers_, dec.init_cluster_centers_)
        assert (dec.predict(X) == dec.labels_).all()
        assert dec.n_iter_ == 20

    def test_the_start_may_whiten_the_embedding(self, autoencoder):
        """Nothing but a linear map of the code, which is the last layer's."""
        frozen = FrozenEstimator(autoencoder)
        dec = small(autoencoder=frozen, init="gmm", freeze_encoder=True).fit(X)
        before, after = autoencoder.module_.encoder, dec.module_.encoder
        assert torch.equal(before[0].weight, after[0].weight)
        assert torch.equal(before[0].bias, after[0].bias)
        assert not torch.equal(before[-1].weight, after[-1].weight)
        codes, whitened = autoencoder.transform(X), dec.transform(X)
        matrix = np.linalg.lstsq(codes, whitened, rcond=None)[0]
        np.testing.assert_allclose(codes @ matrix, whitened, atol=1e-3 * np.abs(whitened).max())
        assert not np.array_equal(dec.cluster_centers_, dec.init_cluster_centers_)

    def test_the_encoder_moves_otherwise(self, autoencoder):
        dec = small(autoencoder=FrozenEstimator(autoencoder), init="k-means").fit(X)
        assert not same(autoencoder.module_.encoder.state_dict(), dec.module_.encoder.state_dict())


class TestStart:
    def test_given_centroids(self, autoencoder):
        centroids = autoencoder.transform(X)[:3]
        dec = small(autoencoder=FrozenEstimator(autoencoder), init=centroids).fit(X)
        assert dec.init_cluster_centers_.tobytes() == centroids.tobytes()

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"\(2, 3\).*shape \(3, 3\)"):
            small(init=np.zeros((2, 3))).fit(X)

    def test_unknown(self):
        with pytest.raises(ValueError, match="'gmm', 'k-means'"):
            small(init="k-medoids").fit(X)

    @pytest.mark.parametrize("init", ["gmm", "k-means"])
    def test_far_groups_are_found_from_the_start(self, init):
        dec = small(init=init, pretrain_iter=100).fit(X)
        assert clustering_accuracy(y, dec.init_labels_) == 1
        assert clustering_accuracy(y, dec.labels_) == 1


class TestStop:
    def refreshes(self, dec):
        return [record["step"] for record in dec.history_ if record.get("refresh")]

    def test_the_cap(self):
        dec = small(max_iter=12).fit(X)
        assert dec.n_iter_ == 12
        assert self.refreshes(dec) == [0, 5, 10]

    def test_the_tolerance(self):
        dec = small(tol=1.0).fit(X)  # fewer than all have changed: the second refresh is the last
        assert dec.n_iter_ == 5
        assert self.refreshes(dec) == [0, 5]

    def test_the_default_tolerance_stops_where_nothing_changes(self):
        dec = small(tol=DEC().tol, max_iter=1000, pretrain_iter=100).fit(X)
        assert dec.n_iter_ < 1000
        changes = [record["changed"] for record in dec.history_ if "changed" in record]
        assert all(change >= DEC().tol for change in changes[:-1])
        assert changes[-1] < DEC().tol

    def test_changed_is_the_share_of_labels_that_moved(self):
        labels = []
        dec = small(max_iter=30)
        dec.set_callbacks(
            lambda event: labels.append(event.labels.numpy()) if event.labels is not None else None
        )
        blurred = X + np.random.default_rng(0).normal(scale=4.0, size=X.shape)
        dec.fit(blurred)
        refreshes = [record for record in dec.history_ if record.get("refresh")]
        assert len(refreshes) == len(labels) == 7
        for record, before, after in zip(refreshes[1:], labels, labels[1:], strict=False):
            assert record["changed"] == pytest.approx((before != after).mean())
        assert any(record["changed"] > 0 for record in refreshes[1:])

    def test_the_first_refresh_never_stops(self):
        dec = small(tol=1.0).fit(X)
        first = next(record for record in dec.history_ if record.get("refresh"))
        assert "changed" not in first


def test_the_loss_falls():
    rng = np.random.default_rng(0)
    blurred = X + rng.normal(scale=3.0, size=X.shape)
    dec = small(max_iter=400, update_interval=400, pretrain_iter=200).fit(blurred)
    losses = [record["kl"] for record in dec.history_ if "kl" in record]
    assert losses[-1] < losses[0]


THREADS = """
import hashlib, sys, warnings
import numpy as np, torch
from sklearn.datasets import make_blobs
from deepclust import DEC

warnings.simplefilter("error")
torch.set_num_threads(int(sys.argv[1]))
X, _ = make_blobs(n_samples=700, n_features=20, centers=5, cluster_std=5.0, random_state=0)
for init in ("gmm", "k-means"):
    for _ in range(2):
        dec = DEC(
            n_clusters=5, hidden=(100, 300), bottleneck=5, pretrain_iter=20, max_iter=20,
            update_interval=5, tol=0, n_init=6, init=init, random_state=3,
        ).fit(X)
        parts = [value.numpy().tobytes() for value in dec.module_.state_dict().values()]
        parts += [dec.labels_.tobytes(), dec.predict_proba(X).tobytes()]
        print(init, hashlib.sha256(b"".join(parts)).hexdigest())
assert torch.get_num_threads() == int(sys.argv[1])
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits_in_every_process(threads):
    """Two fits in each of two processes, for both starts."""
    command = [sys.executable, "-c", THREADS, str(threads)]
    # Threads that wait in turn, and not by spinning, are quick on a busy machine too.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    printed = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    gmm, gmm_again, k_means, k_means_again = printed[0]
    assert gmm == gmm_again
    assert k_means == k_means_again
    assert gmm.split()[1] != k_means.split()[1]
