import io

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs

from deepclust import DEC
from deepclust.callbacks import Evaluate, Progress, Snapshots
from deepclust.metrics import ari, clustering_accuracy, nmi
from deepclust.training import Event

X, y = make_blobs(n_samples=150, n_features=5, centers=3, random_state=0)


def watched(*callbacks):
    dec = DEC(
        n_clusters=3,
        hidden=(8,),
        bottleneck=3,
        pretrain_iter=5,
        max_iter=30,
        update_interval=10,
        tol=0,
        n_init=2,
        random_state=0,
    )
    return dec.set_callbacks(*callbacks).fit(X)


def test_evaluate_scores_every_refresh():
    seen = []
    evaluate = Evaluate(y)
    watched(evaluate, lambda event: seen.append(event.labels))
    labels = [each.numpy() for each in seen if each is not None]
    assert [score["step"] for score in evaluate.scores] == [0, 10, 20, 30]
    for score, found in zip(evaluate.scores, labels, strict=True):
        assert score["acc"] == clustering_accuracy(y, found)
        assert score["nmi"] == nmi(y, found)
        assert score["ari"] == ari(y, found)


def test_snapshots_keep_the_chosen_rows():
    rows = [3, 1, 100]
    snapshots = Snapshots(rows)
    dec = watched(snapshots)
    assert snapshots.steps == [0, 10, 20, 30]
    assert all(z.shape == (3, 3) for z in snapshots.embeddings)
    # No step follows the refresh at the cap: the last look is the fitted model, in the training's
    # own precision.
    np.testing.assert_allclose(snapshots.embeddings[-1], dec.transform(X[rows]), rtol=0.1, atol=0.1)
    assert not np.array_equal(snapshots.embeddings[0], snapshots.embeddings[-1])
    assert all(labels.shape == (3,) for labels in snapshots.labels)


def test_progress_draws_a_bar_for_each_stage():
    text = io.StringIO()
    progress = Progress(file=text)
    state = None
    progress(Event("pretrain", "autoencoder", 5, 10, state, {"reconstruction": torch.tensor(0.25)}))
    progress(Event("pretrain", "autoencoder", 10, 10, state, {"reconstruction": torch.tensor(0.2)}))
    labels = torch.zeros(3, dtype=torch.int64)
    progress(Event("self-train", "clustering", 0, 40, state, labels=labels, changed=0.125))
    progress.close()
    drawn = text.getvalue()
    assert "autoencoder" in drawn
    assert "reconstruction=0.2" in drawn
    assert "10/10" in drawn
    assert "clustering" in drawn
    assert "changed=12.50%" in drawn


def test_verbose_draws(capsys):
    DEC(n_clusters=3, hidden=(8,), pretrain_iter=5, max_iter=5, n_init=1, verbose=1).fit(X)
    drawn = capsys.readouterr().err
    assert "autoencoder" in drawn
    assert "clustering" in drawn


@pytest.mark.parametrize("phase", ["pretrain", "self-train"])
def test_true_ends_the_stage(phase):
    def stop(event):
        return event.phase == phase and event.step > 0

    dec = watched(stop)
    steps = {record["phase"]: record["step"] for record in dec.history_}
    assert steps["self-train"] == (10 if phase == "self-train" else 30)
    assert (dec.predict(X) == dec.labels_).all()
