"""What a fit amounts to: scores, cluster sizes, and the evidence that self-training ran."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from .. import DEC
from ..metrics import ari, clustering_accuracy, nmi
from ..training import Event
from .sources import Values

__all__ = ["EncoderAtStart", "ae_kmeans", "evidence", "labels_sha256", "scores"]


def scores(y: Values, labels: Any) -> dict[str, float]:
    """ACC, NMI and ARI of a clustering."""
    return {
        "acc": round(clustering_accuracy(y, labels), 6),
        "nmi": round(nmi(y, labels), 6),
        "ari": round(ari(y, labels), 6),
    }


def ae_kmeans(dec: DEC, X: Any, seed: int) -> NDArray[np.int32]:
    """K-means, 20 restarts, on the embedding of the pretrained autoencoder: what DEC adds to."""
    labels: NDArray[np.int32] = KMeans(dec.n_clusters, n_init=20, random_state=seed).fit_predict(
        dec.autoencoder_.transform(X)
    )
    return labels


class EncoderAtStart:
    """Callback that keeps the encoder's weights as they are before the first step on the KL loss.

    The pretrained autoencoder will not do: placing the centroids may whiten the embedding.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Copy the weights at the first refresh."""
        if event.phase == "self-train" and not self.weights:
            encoder: Any = event.state.module.encoder
            self.weights = {
                name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()
            }


def evidence(dec: DEC, start: EncoderAtStart) -> dict[str, Any]:
    """What shows that self-training did something, whatever the scores say.

    Parameters
    ----------
    dec : DEC
        Fitted.
    start : EncoderAtStart
        A callback of the fit.

    Returns
    -------
    dict
        ``n_iter`` steps, ``refreshes`` of P, the share of labels ``changed`` at each but the first,
        ``encoder_change``, the distance of the weights from the start relative to their norm (L2),
        and ``labels_moved``, the share of labels that are no longer those of the start.
    """
    refreshes = [record for record in dec.history_ if record.get("refresh")]
    return {
        "n_iter": dec.n_iter_,
        "refreshes": len(refreshes),
        "changed": [round(record["changed"], 6) for record in refreshes if "changed" in record],
        "encoder_change": _relative_change(start.weights, dec.module_.encoder.state_dict()),
        "labels_moved": round(float(np.mean(dec.init_labels_ != dec.labels_)), 6),
    }


def _relative_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    # A frozen encoder takes no part in self-training: nothing was kept of it.
    distance = sum(
        float((after[name].cpu() - tensor).double().square().sum())
        for name, tensor in before.items()
    )
    norm = sum(float(tensor.double().square().sum()) for tensor in before.values())
    return round(sqrt(distance / norm), 6) if norm else 0.0


def labels_sha256(labels: NDArray[np.int64]) -> str:
    """SHA-256 of labels as little-endian 64-bit integers: equal digests, equal clusterings."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()
