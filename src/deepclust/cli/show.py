"""Results on standard output, everything else on standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["METHODS", "clusters", "note", "say", "scores", "stderr", "table"]

METHODS = {"kmeans": "k-means", "ae_kmeans": "AE + k-means", "init": "start of DEC", "dec": "DEC"}

MOST_CLUSTERS = 30


def stdout() -> Console:
    """Console for results; made anew because the stream may have been replaced."""
    return Console(highlight=False)


def stderr() -> Console:
    """Console for progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """Print a line of results."""
    stdout().print(Text(line), soft_wrap=True)


def note(line: str) -> None:
    """Print a line that is no result."""
    stderr().print(Text(line), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str]) -> None:
    """Print a table.

    Parameters
    ----------
    columns : sequence of str
        Heads.
    rows : sequence of sequence of str
        Cells.
    text : sequence of str
        Heads of the columns that hold text; the others hold numbers.
    """
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="left" if column in text else "right")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    stdout().print(drawn)


def scores(metrics: Mapping[str, Any]) -> None:
    """Print ACC, NMI and ARI of each method in ``metrics``."""
    rows = [
        [METHODS[method], *(f"{metrics[method][name]:.3f}" for name in ("acc", "nmi", "ari"))]
        for method in METHODS
        if method in metrics
    ]
    table(["", "ACC", "NMI", "ARI"], rows, text=[""])


def clusters(labels: Any, confidence: Any, n_clusters: int) -> None:
    """Print size and mean confidence of each cluster, the largest if there are many."""
    sizes = np.bincount(labels, minlength=n_clusters)
    sums = np.bincount(labels, weights=confidence, minlength=n_clusters)
    order = np.arange(n_clusters)
    if n_clusters > MOST_CLUSTERS:
        order = np.argsort(-sizes, kind="stable")[:MOST_CLUSTERS]
    rows = [
        [
            str(k),
            f"{sizes[k]:,}",
            f"{sizes[k] / len(labels):.1%}",
            f"{sums[k] / sizes[k]:.3f}" if sizes[k] else "-",
        ]
        for k in order
    ]
    table(["cluster", "rows", "share", "mean confidence"], rows, text=[])
    if len(order) < n_clusters:
        say(f"and {n_clusters - len(order)} smaller ones")
