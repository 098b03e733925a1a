"""``deepclust demo``: digits, three seeds, every stage scored, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from .. import DEC, datasets
from . import runs, show
from .evaluation import ae_kmeans, scores
from .progress import watch

__all__ = ["run_demo"]


def run_demo(picture: Path, seeds: list[int]) -> None:
    """Cluster the digits that come with scikit-learn.

    Parameters
    ----------
    picture : Path
        Where to draw the last fit; replaced if it is there.
    seeds : list of int
        One fit for each.
    """
    _check_picture(picture)
    X, y = datasets.load("digits", return_X_y=True)
    classes = y.tolist()
    n_clusters = len(set(classes))
    show.say(
        f"{len(X):,} handwritten digits of 8 x 8 pixels, to be sorted into {n_clusters} clusters. "
        "Their labels are used to score the result, never to fit."
    )
    results: dict[str, list[dict[str, float]]] = {}
    for number, seed in enumerate(seeds, start=1):
        show.note(f"Fit {number} of {len(seeds)}, seed {seed}")
        dec = DEC(n_clusters=n_clusters, random_state=seed)
        with watch(show.stderr()) as progress:
            dec.set_callbacks(progress).fit(X)
        raw = KMeans(n_clusters, n_init=20, random_state=seed).fit(X)
        found = {
            "kmeans": raw.labels_,
            "ae_kmeans": ae_kmeans(dec, X, seed),
            "init": dec.init_labels_,
            "dec": dec.labels_,
        }
        for method, labels in found.items():
            results.setdefault(method, []).append(scores(classes, labels))

    many = f", mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else ""
    show.say(f"\nAgreement with the true digits{many}:")
    head = ("acc", "nmi", "ari")
    show.table(
        ["", *(name.upper() for name in head)],
        [
            [
                show.METHODS[method],
                *(_spread([run[name] for run in results[method]]) for name in head),
            ]
            for method in results
        ],
        text=[""],
    )
    show.say(
        "k-means sees the raw pixels; AE + k-means, the embedding of the pretrained autoencoder; "
        "the start of DEC is where self-training begins."
    )
    try:
        _draw(picture, X, y, raw.cluster_centers_, dec)
    except ImportError:
        show.note('For a picture of the embedding, run: pip install "deepclust[report]"')
    else:
        show.say(f"Drew {picture}: the pixels and the embedding of seed {seed} on a plane.")
    show.say("\nNext, your own table:  deepclust fit data.csv -k 10 -o run")
    show.say("Then new rows of it:   deepclust predict run new.csv -o new-labels.csv")


def _spread(values: list[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


def _check_picture(picture: Path) -> None:
    """See before the fits whether the picture has a name that can be written."""
    if picture.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{picture} is no name for a picture; it ends in .png, .pdf or .svg.")
    if not picture.parent.is_dir():
        raise FileNotFoundError(f"{picture.parent} does not exist; create it first.")


def _draw(picture: Path, X: Any, y: Any, means: Any, dec: DEC) -> None:
    """Pixels and embedding side by side, coloured by the true digit, with the cluster centres."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    views = {
        "pixels, with the means of k-means": (X, means),
        "embedding, with the centroids of DEC": (dec.transform(X), dec.cluster_centers_),
    }
    for axes, (title, (points, centres)) in zip(
        figure.subplots(1, len(views)), views.items(), strict=True
    ):
        plane = _on_a_plane(np.concatenate([points, centres]))
        drawn = axes.scatter(*plane[: len(X)].T, c=y, cmap="tab10", s=6, linewidths=0)
        axes.scatter(*plane[len(X) :].T, c="black", marker="X", s=60, edgecolors="white")
        axes.set(title=title, xticks=[], yticks=[])
    figure.legend(*drawn.legend_elements(num=None), title="digit", loc="outside right center")
    with runs.new_file(picture, force=True) as staging:
        figure.savefig(staging, dpi=150)


def _on_a_plane(points: Any) -> Any:
    """T-SNE from the first principal components, the same every time."""
    start = PCA(2, random_state=0).fit_transform(points)
    return TSNE(init=start / start[:, 0].std() * 1e-4, max_iter=500).fit_transform(points)
