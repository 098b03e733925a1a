"""The commands. Each reads as: what was asked for, the library's work, what came out."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
import torch
import typer

from .. import DEC, __version__, datasets, load
from ..cluster._base import DeepClusterer
from ..runtime import resolve, resolve_seed
from ..storage import versions
from . import runs, show, tables
from .demo import run_demo
from .evaluation import EncoderAtStart, ae_kmeans, evidence, labels_sha256, scores
from .options import parse, takes_options
from .progress import watch
from .sources import is_file

__all__ = ["app"]

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

DataArgument = typer.Argument(
    metavar="DATA",
    help="A file (.npy, .npz, .csv, .tsv, .parquet), or the name of a data set; what has a suffix "
    "or a separator is a file.",
    show_default=False,
)
Data = Annotated[str, DataArgument]
Columns = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        metavar="LIST",
        help="Columns to cluster by: names, positions from 0 and ranges such as 0-9, with commas "
        "between. By default all but those of --id and --labels; for predict, those of the run.",
    ),
]
Id = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        metavar="COLUMN",
        help="Column that names the rows; it is no feature.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        metavar="COLUMN|FILE",
        help="Known classes, for evaluation only: a column, which is no feature then, an array of "
        "the .npz, or a file with one label a row.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]

# -- what goes wrong -------------------------------------------------------------------------------

ERRORS = (
    ValueError,
    TypeError,
    OSError,
    FloatingPointError,
    ImportError,
    MemoryError,
    torch.OutOfMemoryError,
)  # NotFittedError is a ValueError, DatasetError an OSError


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command: wrong input ends it with one sentence and exit code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _warnings_as_lines():
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            show.note("Interrupted; nothing was written.")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # as with deepclust predict ... | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if "memory" not in str(error):  # how torch says on a CPU that there is none left
                raise
            show.note(f"Error: {_sentence(MemoryError())}")
            raise typer.Exit(2) from error
        except ERRORS as error:
            show.note(f"Error: {_sentence(error)}")
            raise typer.Exit(2) from error

    return run


def _sentence(error: BaseException) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "there is not enough memory; use fewer rows or columns, or a smaller --hidden."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}."
    return _as_options(next(iter(str(error).strip().splitlines()), type(error).__name__))


def _as_options(text: str) -> str:
    """Say --n-clusters 10 for n_clusters=10."""
    names = "|".join(field.name for field in fields(DEC))
    return re.sub(
        rf"\b({names})=('?)([\w.+-]*[\w+-])\2",
        lambda found: f"--{found[1].replace('_', '-')} {found[3]}",
        text,
    )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def line(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        show.note(f"Warning: {_as_options(' '.join(str(message).split()))}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is meant for programmers
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("default", RuntimeWarning)
        warnings.showwarning = line
        yield


# -- commands --------------------------------------------------------------------------------------


def _version(asked: bool) -> None:
    if asked:
        show.say(f"deepclust {__version__}")
        raise typer.Exit


@app.callback()
def deepclust(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Deep Embedded Clustering: give it rows without labels, get a cluster for each row."""


@app.command()
@guarded
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PICTURE", help="Where to draw.")
    ] = Path("deepclust-demo.png"),
    seeds: Annotated[
        str, typer.Option(metavar="N,N,...", help="Seeds, one fit for each.")
    ] = "0,1,2",
) -> None:
    """Cluster handwritten digits, score every stage and draw the embedding: a minute or so."""
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise ValueError(f"--seeds {seeds!r} is no list of whole numbers such as 0,1,2.")
    run_demo(output, [int(seed) for seed in seeds.split(",")])


@app.command()
@guarded
@takes_options(DEC)
def fit(
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            metavar="RUN",
            help="Folder to write; by default the name of DATA and -run.",
        ),
    ] = None,
    columns: Columns = None,
    id: Id = None,
    labels: Labels = None,
    force: Force = False,
    **parameters: Any,
) -> None:
    """Cluster the rows of DATA and write labels, model and record to a folder."""
    dec = DEC(**parse(DEC, parameters))
    dec.random_state = seed = resolve_seed(dec.random_state)  # drawn here, to be recorded
    folder = output or Path(f"{Path(data).stem}-run")
    seconds: dict[str, float] = {}
    with runs.new_folder(folder, force=force) as staging:
        with _timed(seconds, "loading"):
            table = tables.read(data, columns=columns, id=id, labels=labels)
        n_rows, n_features = table.X.shape
        show.note(
            f"{table.name}: {n_rows:,} rows, {n_features:,} columns; {dec.n_clusters} clusters, "
            f"seed {seed}"
        )
        start = EncoderAtStart()
        with watch(show.stderr()) as progress:
            dec.set_callbacks(progress, start).fit(table.X)
        seconds |= dec.phase_seconds_
        with _timed(seconds, "evaluation"):
            confidence = np.exp(dec.score_samples(table.X))
            metrics = _metrics(dec, table, seed)

        with (staging / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            runs.write_labels(file, dec.labels_, confidence, table.ids)
        runs.write_json_lines(staging / "history.jsonl", dec.history_)
        if metrics:
            runs.write_json(staging / "metrics.json", metrics)
        dec.save(staging / "model")
        arguments = {
            "data": data,
            "output": str(folder),
            "columns": columns,
            "id": id,
            "labels": labels,
            "force": force,
        }
        facts: dict[str, Any] = {
            "arguments": arguments | parameters,
            "data": _described(data, table),
            "seed": seed,
            "machine": _machine(dec),
            "versions": versions(),
            "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
            "evidence": evidence(dec, start),
            "labels_sha256": labels_sha256(dec.labels_),
        }
        runs.write_json(staging / "run.json", {"format_version": runs.FORMAT_VERSION} | facts)

    if metrics:
        show.scores(metrics)
    else:
        show.clusters(dec.labels_, confidence, dec.n_clusters)
    moved = facts["evidence"]["labels_moved"]
    show.say(f"Self-training moved {moved:.1%} of the rows away from the cluster they started in.")
    show.say(f"Wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


@app.command()
@guarded
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or of a model alone.")
    ],
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            metavar="FILE",
            help="File to write; by default standard output.",
        ),
    ] = None,
    columns: Columns = None,
    id: Id = None,
    labels: Labels = None,
    device: Annotated[
        str | None, typer.Option(show_default=False, help="By default that of the fit.")
    ] = None,
    force: Force = False,
) -> None:
    """Assign rows to the clusters of a run, and write them as labels.csv of a run."""
    run = runs.read(model) if (model / "run.json").exists() else None
    dec = load(model if run is None else run.model)
    if not isinstance(dec, DeepClusterer):
        raise ValueError(f"{model} holds an {type(dec).__name__}, which has no clusters.")
    dec.device = dec.device if device is None else device
    if run is not None:
        like = run.like
    else:
        n, names = dec.n_features_in_, getattr(dec, "feature_names_in_", None)
        like = tables.Like(list(range(n)), n, None if names is None else list(names))
    if hasattr(dec, "feature_names_in_"):
        del dec.feature_names_in_  # the columns are found here
    table = tables.read(data, columns=columns, id=id, labels=labels, like=like)
    found, confidence = dec.predict(table.X), np.exp(dec.score_samples(table.X))
    if output is None:
        runs.write_labels(sys.stdout, found, confidence, table.ids)
        sys.stdout.flush()  # a closed pipe should show here
    else:
        with (
            runs.new_file(output, force=force) as staging,
            staging.open("w", encoding="utf-8", newline="") as file,
        ):
            runs.write_labels(file, found, confidence, table.ids)
        show.note(f"Wrote {output}: {len(found):,} rows")
    if table.labels is not None:
        result = scores(table.labels, found)
        show.note(", ".join(f"{name.upper()} {value:.3f}" for name, value in result.items()))


@app.command()
@guarded
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Where the column of labels is; by default what the run was fitted on.",
            show_default=False,
        ),
    ] = None,
    labels: Labels = None,
    id: Id = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score the labels of a run against known classes: ACC, NMI and ARI."""
    run = runs.read(folder)
    rows, found = runs.read_labels(run)
    y = _true_labels(run, rows, data, labels, id)
    metrics = {"dec": scores(y, found)}
    known = run.metrics()
    if known is not None and known.get("dec") == metrics["dec"]:  # the same classes
        metrics = {method: known[method] for method in show.METHODS if method in known}
    if as_json:
        sizes = {
            "n_samples": len(y),
            "n_clusters": len(set(found)),
            "n_classes": len(set(y)),
        }
        show.say(json.dumps({"run": str(folder)} | sizes | metrics))
        return
    show.scores(metrics)
    if len(metrics) == 1:
        show.say("AE + k-means and the start of DEC are scored by fit, when it is given --labels.")


@app.command("datasets")
@guarded
def list_datasets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Describe this one.", show_default=False)
    ] = None,
) -> None:
    """List the data sets that have a name, and whether they are at hand."""
    home = datasets.get_data_home()
    if name is not None and name not in datasets.names():
        raise ValueError(f"{name!r} is no data set; known are {', '.join(datasets.names())}.")
    rows = []
    for each in datasets.names() if name is None else [name]:
        dataset = getattr(datasets, each).DATASET
        here = any(all(container.find(home / each)) for container in dataset.containers)
        if name is not None:
            place = home / each if dataset.containers[0].files else dataset.containers[0].title
            show.say(f"{dataset.descr()}\n\n{'At hand in' if here else 'Not at hand in'} {place}.")
            return
        shape = [f"{n:,}" for n in dataset.shape or ()] or ["", ""]
        classes = str(len(dataset.target_names))
        rows.append([each, *shape, classes, dataset.licence, "yes" if here else "no"])
    head = ["name", "rows", "columns", "classes", "licence", "at hand"]
    show.table(head, rows, text=["name", "licence", "at hand"])
    show.say(f"Files are looked for in {home}; DEEPCLUST_DATA names another folder.")


# -- parts -----------------------------------------------------------------------------------------


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[phase] = perf_counter() - start


def _metrics(dec: DEC, table: tables.Table, seed: int) -> dict[str, Any]:
    """Scores of every stage; empty without labels."""
    if table.labels is None:
        return {}
    found = {
        "ae_kmeans": ae_kmeans(dec, table.X, seed),
        "init": dec.init_labels_,
        "dec": dec.labels_,
    }
    sizes = {"n_samples": len(table.labels), "n_classes": len(set(table.labels))}
    return sizes | {method: scores(table.labels, labels) for method, labels in found.items()}


def _described(data: str, table: tables.Table) -> dict[str, Any]:
    """The section ``data`` of ``run.json``."""
    columns, labels = table.columns, table.labels_from
    if labels is not None and labels not in (columns.names or ()) and Path(labels).is_file():
        labels = str(Path(labels).resolve())
    return {
        "name": table.name,
        "source": table.files[0] if is_file(data) else data,
        "files": table.files,
        "sha256": table.sha256,
        "shape": list(table.X.shape),
        "file_columns": columns.n_columns,
        "columns": runs.ranges_of(columns.positions),
        "column_names": columns.names,
        "id": columns.id,
        "labels": labels,
    }


def _machine(dec: DEC) -> dict[str, Any]:
    runtime = resolve(dec.device, dec.precision, dec.compile)
    return {
        "device": str(runtime.device),
        "precision": str(runtime.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _true_labels(
    run: runs.Run, rows: list[str], data: str | None, labels: str | None, id: str | None
) -> list[Any]:
    """Known classes in the order of the run's rows."""
    facts = run.data
    labels = labels or facts["labels"]
    if labels is None:
        raise ValueError("--labels is missing: this run was fitted without; name a column or file.")
    if id is not None and facts["id"] is None:
        raise ValueError("--id cannot find the rows: the run was fitted without --id.")
    if data is None:
        if is_file(labels) and Path(labels).is_file():
            return tables.read_labels(None, labels, len(rows))[0]
        data = facts["source"]
        if is_file(data):
            _check_unchanged(Path(data), facts["sha256"])
        return tables.read_labels(data, labels, len(rows))[0]
    y, ids = tables.read_labels(data, labels, len(rows), id=id, id_before=facts["id"])
    if ids is None:
        if len(y) != len(rows):
            raise ValueError(f"{data} has {len(y)} rows, but the run has {len(rows)}.")
        return y
    by_id = {str(key): label for key, label in zip(ids, y, strict=True)}
    if len(by_id) < len(ids):
        raise ValueError(f"--id of {data} holds values more than once; rows cannot be told apart.")
    missing = [row for row in rows if row not in by_id]
    if missing:
        raise ValueError(f"{data} lacks {len(missing)} rows of the run, among them {missing[0]!r}.")
    return [by_id[row] for row in rows]


def _check_unchanged(path: Path, sha256: str) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}, which the run was fitted on, is gone; name DATA, or a file as --labels."
        )
    if tables.sha256_of(path) != sha256:
        raise ValueError(
            f"{path} is no longer what the run was fitted on (its SHA-256 differs); name it as "
            "DATA to take it all the same."
        )
