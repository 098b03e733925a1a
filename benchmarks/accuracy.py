"""How well DEC's clusters match the known classes, and what each stage adds to that.

    python -m benchmarks.accuracy mnist --seeds 0 1 2

Labels are used to score, never to fit or to choose. Four clusterings are scored at each seed:

kmeans
    k-means, 20 restarts, on the data as loaded.
ae_kmeans
    k-means, 20 restarts, on the pretrained autoencoder's embedding.
init
    DEC's own start: the assignments before the first step on the KL loss.
dec
    DEC, default settings.

The line also holds the evidence that the self-training ran at all: how often the target was
refreshed, how many labels moved at each refresh and how far the encoder's weights travelled.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.record import Clock, NotReproducibleError, Recorder, refuse

# What takes memory is imported where it is used: the process that only starts others stays small,
# because a child's peak memory starts from its parent's.


def run(seed: int, clock: Clock, X: Any, y: np.ndarray) -> dict[str, Any]:
    """Fit everything at one seed; scores, digests of the labels, and evidence."""
    from sklearn.cluster import KMeans

    from deepclust import DEC

    k = len(np.unique(y))
    k_means = KMeans(k, n_init=20, random_state=seed)
    with clock("kmeans"):
        # float32 as in the embedding; from integers k-means would go to float64.
        labels = {"kmeans": k_means.fit_predict(X.astype(np.float32))}

    start = EncoderAtStart()
    dec = DEC(n_clusters=k, random_state=seed).set_callbacks(start)
    with clock("dec"):
        dec.fit(X)
    for phase, seconds in dec.phase_seconds_.items():
        clock.add(f"dec: {phase}", seconds)

    with clock("ae_kmeans"):
        labels["ae_kmeans"] = k_means.fit_predict(dec.autoencoder_.transform(X))
    labels |= {"init": dec.init_labels_, "dec": dec.labels_}

    return {
        "n_samples": X.shape[0],
        "n_features": X.shape[1],
        "n_clusters": k,
        "estimator": repr(dec),
        "scores": {method: scores(y, found) for method, found in labels.items()},
        "labels_sha256": {method: digest(found) for method, found in labels.items()},
        "evidence": evidence(dec, start.weights),
    }


def scores(y: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy under the best one-to-one map of clusters to classes, NMI and ARI."""
    from deepclust.metrics import ari, clustering_accuracy, nmi

    return {
        "acc": round(clustering_accuracy(y, labels), 6),
        "nmi": round(nmi(y, labels), 6),
        "ari": round(ari(y, labels), 6),
    }


def digest(labels: np.ndarray) -> str:
    """SHA-256 of the labels as little-endian 64-bit integers: equal digests, equal clusterings."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


class EncoderAtStart:
    """Keep the encoder's weights as they are before the first step on the KL loss.

    The pretrained autoencoder will not do: placing the centroids may rescale the embedding.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def __call__(self, event: Any) -> None:
        """Copy the weights at the first event, the refresh before any step."""
        if event.phase == "self-train" and not self.weights:
            weights = event.state.module.encoder.state_dict()
            self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}


def evidence(dec: Any, start: Mapping[str, Any]) -> dict[str, Any]:
    """What shows that the self-training did something, whatever the scores say."""
    refreshes = [record for record in dec.history_ if record.get("refresh")]
    # The first refresh has no labels to compare with.
    changed = [record["changed"] for record in refreshes if record.get("changed") is not None]
    return {
        "refreshes": len(refreshes),
        "changed": [round(float(share), 6) for share in changed],
        "encoder_change": relative_change(start, dec.module_.encoder.state_dict()),
        "labels_moved": round(float(np.mean(dec.init_labels_ != dec.labels_)), 6),
        "n_iter": int(dec.n_iter_),
    }


def relative_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """L2 distance between two sets of weights, as a share of the L2 norm of the first."""
    if before.keys() != after.keys():
        raise ValueError(f"different weights: {sorted(before)} and {sorted(after)}")
    distance = sum(
        float((after[name] - tensor).double().square().sum()) for name, tensor in before.items()
    )
    norm = sum(float(tensor.double().square().sum()) for tensor in before.values())
    return round(math.sqrt(distance / norm), 6)


def main(argv: Sequence[str] | None = None) -> int:
    """Record a line for each data set and seed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("datasets", nargs="+", help="names that deepclust.datasets.load knows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--skip-unavailable",
        action="store_true",
        help="go on without a data set that is neither here nor can be downloaded",
    )
    args = parser.parse_args(argv)
    runs = [(dataset, seed) for dataset in args.datasets for seed in args.seeds]
    if len(runs) == 1:
        return record(*runs[0], skip_unavailable=args.skip_unavailable)

    # A process for each: its command, seconds and peak memory are then those of one line alone.
    skip = ["--skip-unavailable"] if args.skip_unavailable else []
    for dataset, seed in runs:
        command = [sys.executable, "-m", "benchmarks.accuracy", dataset, "--seeds", str(seed)]
        if code := subprocess.call([*command, *skip]):
            return code
    return 0


def record(dataset: str, seed: int, *, skip_unavailable: bool = False) -> int:
    """Record one line; return an exit code."""
    try:
        recorder = Recorder(
            f"accuracy-{dataset}", command=f"python -m benchmarks.accuracy {dataset} --seeds {seed}"
        )
    except NotReproducibleError as error:
        return refuse(error)

    from deepclust import datasets

    try:
        X, y = datasets.load(dataset, return_X_y=True)
    except datasets.DatasetError as error:
        print(f"{dataset}, seed {seed}: skipped, {error}", file=sys.stderr)
        return 0 if skip_unavailable else 1
    line = recorder.record(run, seed=seed, X=X, y=y)
    accuracies = (f"{name} {score['acc']:.4f}" for name, score in line["result"]["scores"].items())
    print(f"{dataset}, seed {seed}: ACC " + ", ".join(accuracies), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
