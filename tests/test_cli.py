"""The commands, from arguments to files, output and exit code."""

import csv
import functools
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

import deepclust
from deepclust import DEC, datasets
from deepclust.cli import app as commands
from deepclust.cli import demo
from deepclust.cli.app import app
from deepclust.metrics import ari, clustering_accuracy, nmi

K = 3
QUICK = ["--hidden", "16", "--pretrain-iter", "20", "--max-iter", "20", "--init", "k-means"]
FIT = ["-k", str(K), *QUICK]
X, Y = make_blobs(60, n_features=5, centers=K, cluster_std=5, random_state=0)
CLASSES = np.array(["red", "green", "blue"])[Y]


def deepclust_(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments):
    result = deepclust_(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fails(*arguments):
    """One sentence and exit code 2; returns the sentence."""
    result = deepclust_(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert result.stderr.endswith(f"{said[0]}\n")
    assert said[0].endswith(".")
    return said[0]


# A process of its own finds the package even if it is not installed.
OUTSIDE = os.environ | {"PYTHONPATH": str(Path(deepclust.__file__).parents[1])}


def python(*arguments):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=OUTSIDE,
    )


def read_labels(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Steps this small are slower on several threads, above all on a busy machine."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Each test has a folder of its own to work in."""
    monkeypatch.chdir(tmp_path)


def write_table(path="table.csv", *, order=None):
    """Ids, five columns and the classes."""
    order = np.arange(len(X)) if order is None else order
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "a", "b", "c", "d", "e", "colour"])
        rows.writerows([f"r{i}", *X[i], CLASSES[i]] for i in order)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a table with ids and labels, with its table."""
    folder = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(folder)
    try:
        write_table()
        options = ["--id", "key", "--labels", "colour", "--seed", "7", "-o", "run"]
        result = succeeds("fit", "table.csv", *FIT, *options)
    finally:
        os.chdir(before)
    return folder / "run", folder / "table.csv", result


# -- fit -------------------------------------------------------------------------------------------


def test_fit_writes_a_run(run):
    folder, _, result = run
    assert {path.name for path in folder.iterdir()} == {
        "history.jsonl",
        "labels.csv",
        "metrics.json",
        "model",
        "run.json",
    }
    assert folder.stat().st_mode & 0o777 == (folder / "model").stat().st_mode & 0o777
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []

    dec = DEC(
        n_clusters=K, hidden=(16,), pretrain_iter=20, max_iter=20, init="k-means", random_state=7
    ).fit(X)
    rows = read_labels(folder / "labels.csv")
    assert (folder / "labels.csv").read_bytes().startswith(b"row,label,confidence\nr0,")
    assert [row["row"] for row in rows] == [f"r{i}" for i in range(len(X))]
    assert [int(row["label"]) for row in rows] == dec.labels_.tolist()
    q = dec.predict_proba(X).max(axis=1)
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], q, atol=1e-6)

    with open(folder / "history.jsonl") as lines:
        history = [json.loads(line) for line in lines]
    assert [{**record, "seconds": 0} for record in history] == [
        {**record, "seconds": 0} for record in dec.history_
    ]

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n_samples"] == 60
    assert metrics["n_classes"] == 3
    assert metrics["init"]["acc"] == pytest.approx(clustering_accuracy(Y, dec.init_labels_))
    assert metrics["dec"] == {
        "acc": pytest.approx(clustering_accuracy(Y, dec.labels_), abs=1e-6),
        "nmi": pytest.approx(nmi(Y, dec.labels_), abs=1e-6),
        "ari": pytest.approx(ari(Y, dec.labels_), abs=1e-6),
    }
    assert set(metrics["ae_kmeans"]) == {"acc", "nmi", "ari"}

    model = deepclust.load(folder / "model")
    np.testing.assert_array_equal(model.predict(X), dec.labels_)

    for method in ("AE + k-means", "start of DEC", "DEC"):
        assert method in result.stdout
    assert "Wrote run: history.jsonl, labels.csv, metrics.json, model, run.json" in result.stdout
    for line in ("table: 60 rows, 5 columns; 3 clusters, seed 7", "pretrain: step 20 of 20"):
        assert line in result.stderr


def test_run_json_records_what_is_needed_to_repeat_the_run(run):
    folder, table, _ = run
    facts = json.loads((folder / "run.json").read_text())
    assert facts["format_version"] == 1
    assert facts["arguments"]["n_clusters"] == K
    assert facts["arguments"]["hidden"] == "16"
    assert facts["arguments"]["labels"] == "colour"
    assert facts["data"] == {
        "name": "table",
        "source": str(table),
        "files": [str(table)],
        "sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
        "shape": [60, 5],
        "file_columns": 7,
        "columns": "1-5",
        "column_names": ["a", "b", "c", "d", "e"],
        "id": "key",
        "labels": "colour",
    }
    assert facts["seed"] == 7
    assert facts["versions"]["deepclust"] == deepclust.__version__
    assert facts["machine"]["device"] in ("cpu", "cuda")
    phases = "loading scaling pretrain centroids self-train assign evaluation"
    assert list(facts["seconds"]) == phases.split()
    evidence = facts["evidence"]
    assert evidence["n_iter"] == 20
    assert evidence["refreshes"] >= 1
    assert evidence["encoder_change"] > 0
    assert 0 <= evidence["labels_moved"] <= 1
    labels = np.array([int(row["label"]) for row in read_labels(folder / "labels.csv")])
    assert facts["labels_sha256"] == hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def test_seed_is_drawn_and_recorded(tmp_path):
    np.save("x.npy", X)
    succeeds("fit", "x.npy", *FIT, "-o", "first")
    seed = json.loads(Path("first/run.json").read_text())["seed"]
    succeeds("fit", "x.npy", *FIT, "-o", "second", "--random-state", seed)
    first, second = (json.loads(Path(name, "run.json").read_text()) for name in ("first", "second"))
    assert first["labels_sha256"] == second["labels_sha256"]
    assert first["arguments"]["random_state"] is None
    assert Path("first/labels.csv").read_bytes() == Path("second/labels.csv").read_bytes()


def test_without_labels(tmp_path):
    np.save("x.npy", X)
    result = succeeds("fit", "x.npy", *FIT)
    assert not Path("x-run/metrics.json").exists()
    assert "mean confidence" in result.stdout
    assert "ACC" not in result.stdout
    assert [row["row"] for row in read_labels("x-run/labels.csv")] == [str(i) for i in range(60)]


def test_many_clusters_are_cut_short():
    np.save("x.npy", X)
    result = succeeds("fit", "x.npy", "-k", 40, *QUICK)
    assert "and 10 smaller ones" in result.stdout


def test_named_data_set_brings_its_labels():
    result = succeeds("fit", "digits", "-k", 10, *QUICK)
    assert "AE + k-means" in result.stdout
    facts = json.loads(Path("digits-run/run.json").read_text())["data"]
    assert facts["source"] == "digits"
    assert facts["labels"] == "target"
    assert facts["sha256"] == datasets.digits.DATASET.content_sha256
    predicted = succeeds("predict", "digits-run", "digits")
    assert predicted.stdout == Path("digits-run/labels.csv").read_text()
    assert "ACC" in predicted.stderr
    assert "AE + k-means" in succeeds("evaluate", "digits-run").stdout


def test_frozen_encoder_does_not_change():
    np.save("x.npy", X)
    succeeds("fit", "x.npy", *FIT, "--freeze-encoder")
    facts = json.loads(Path("x-run/run.json").read_text())
    assert facts["evidence"]["encoder_change"] == 0
    assert facts["arguments"]["freeze_encoder"] is True


def test_warnings_are_lines():
    np.save("x.npy", X * [1, 1, 1, 1, 1000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = succeeds("fit", "x.npy", *FIT)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    assert line.startswith("Warning: Columns differ in range")
    assert "--scaling standard" in line
    assert ".py" not in result.stderr


def test_warnings_of_libraries_for_programmers_are_not_shown(monkeypatch):
    def fit(self, X):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        raise ValueError("enough.")

    monkeypatch.setattr(DEC, "fit", fit)
    np.save("x.npy", X)
    result = deepclust_("fit", "x.npy", *FIT)
    assert "old" not in result.stderr
    assert "Error: enough." in result.stderr


# -- wrong input -----------------------------------------------------------------------------------


def wrong_inputs():
    """Name, content (or a function that writes the file), and what the sentence says."""

    def saved(array):
        return lambda path: np.save(path, array)

    def cut(array, n):
        def write(path):
            np.save(path, array)
            path.write_bytes(path.read_bytes()[:n])

        return write

    nan, infinite = X.copy(), X.copy()
    nan[7, 3], infinite[9, 2] = np.nan, -np.inf
    objects = np.array([[1, "a"], [2, "b"]], dtype=object)
    return {
        "empty.csv": (b"", "is empty"),
        "blank.csv": (b"\n \n", "is empty"),
        "header.csv": (b"a,b\n", "a header but no rows"),
        "text.csv": (b"a,b\n1,2\n3,x\n", "line 3, column 'b' holds 'x', which is no number"),
        "missing.csv": (b"a,b\n1,2\n\n,4\n", "line 4, column 'a' has no value"),
        "na.tsv": (b"a\tb\nN/A\t2\n", "line 2, column 'a' has no value ('N/A')"),
        "inf.csv": (b"a,b\n1,inf\n", "line 2, column 'b' is infinite"),
        "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "line 3 has 3 values where the first line has 2"),
        "open-quote.csv": (b'a,b\n1,"2\n', "is no valid row"),
        "either.csv": (b"5.1,setosa\n4.9,setosa\n", "may be a header or a row"),
        "underscore.csv": (b"a,b\n1,1_0\n", "'1_0', which is no number"),
        "latin.csv": ("é,b\n1,2\n".encode("latin-1"), "is not UTF-8 text"),
        "empty.npy": (b"", "is empty"),
        "cut-header.npy": (cut(X, 40), "is damaged or cut short"),
        "cut.npy": (cut(X, 500), "is damaged or cut short"),
        "text.npy": (b"1,2,3\n", "is no .npy file"),
        "objects.npy": (saved(objects), "pickled objects, which are never loaded"),
        "pickle.npy": (pickle.dumps(X), "pickled objects, which are never loaded"),
        "nan.npy": (saved(nan), "column 3 (counted from 0), row 7 (counted from 0) is NaN"),
        "inf.npy": (saved(infinite), "row 9 (counted from 0) is infinite"),
        "one-axis.npy": (saved(X[0]), "has the shape (5,)"),
        "images.npy": (saved(X.reshape(60, 5, 1)), "X.reshape(len(X), -1)"),
        "no-rows.npy": (saved(X[:0]), "is empty: 0 rows and 5 columns"),
        "complex.npy": (saved(X + 1j), "values of type complex128"),
        "strings.npy": (saved(CLASSES[:, None]), "values of type <U5"),
        "records.npy": (saved(np.zeros((2, 2), "f4,f4")), "a table holds real numbers"),
        "objects.npz": (lambda path: np.savez(path, X=objects), "never loaded"),
        "two.npz": (lambda path: np.savez(path, a=X, b=X), "a (60, 5), b (60, 5)"),
        "bytes.npz": (b"PK\x03\x04 and no more", "is damaged or cut short"),
        "text.npz": (b"1,2,3\n", "is no .npz file"),
        "book.xlsx": (b"PK", "its suffix should be one of .npy, .npz, .csv, .tsv, .parquet"),
    }


@pytest.mark.parametrize(
    ("name", "content", "sentence"), [(n, *c) for n, c in wrong_inputs().items()]
)
def test_wrong_input(name, content, sentence):
    Path("in").mkdir()
    path = Path("in", name)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    said = fails("fit", path, *FIT, "-o", "out/deeper/run")
    assert said.startswith(f"Error: {path}") or f"in {path}" in said
    assert sentence in said
    assert os.listdir() == ["in"]
    assert os.listdir("in") == [name]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit", "none.csv", *FIT], "none.csv does not exist."),
        (["fit", "folder.csv", *FIT], "folder.csv is a folder"),
        (["fit", "nobody", *FIT], "'nobody' is neither a file with a suffix nor a data set"),
        (["fit", "plain", *FIT], "write ./plain for the file"),
        (["fit", "x.npy", "-k", "61", *QUICK], "--n-clusters 61 exceeds n_samples=60"),
        (["fit", "x.npy", "-k", "0", *QUICK], "n_clusters == 0"),
        (["fit", "x.npy", *FIT, "--hidden", "5,x"], "--hidden '5,x' is no list of whole numbers"),
        (["fit", "x.npy", *FIT, "--init", "best"], "--init 'best' is not one of gmm, k-means."),
        (["fit", "x.npy", *FIT, "--scaling", "0"], "--scaling 0.0 is not a positive"),
        (["fit", "x.npy", *FIT, "--scaling", "no"], "'no' is not one of unit, standard, NUMBER"),
        (["fit", "x.npy", *FIT, "--seed", "-1"], "--random-state -1 cannot seed a fit"),
        (["fit", "x.npy", *FIT, "--device", "warp"], "--device warp cannot be used here"),
        (["fit", "x.npy", *FIT, "--columns", "0-5"], "is no range of the columns of x.npy"),
        (["fit", "x.npy", *FIT, "--columns", "a"], "its columns are 0 to 4"),
        (["fit", "x.npy", *FIT, "--columns", "0,0"], "column 0 (counted from 0) twice"),
        (["fit", "x.npy", *FIT, "--columns", "0,1", "--labels", "1"], "cannot be a feature too"),
        (["fit", "x.npy", *FIT, "--labels", "y.npy"], "neither a column of x.npy nor a file"),
        (["fit", "x.npy", *FIT, "--labels", "short.txt"], "holds 2 labels for 60 rows"),
        (["predict", "nothing", "x.npy"], "nothing holds no model"),
        (["evaluate", "nothing"], "nothing is no run of deepclust fit"),
        (["datasets", "nothing"], "'nothing' is no data set; known are digits"),
        (["demo", "--seeds", "a"], "--seeds 'a' is no list of whole numbers"),
        (["demo", "-o", "demo.doc"], "ends in .png, .pdf or .svg"),
        (["demo", "-o", "no/demo.png"], "no does not exist"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    np.save("x.npy", X)
    Path("folder.csv").mkdir()
    Path("plain").touch()
    Path("short.txt").write_text("a\nb\n")
    before = sorted(os.listdir())
    assert sentence in fails(*arguments)
    assert sorted(os.listdir()) == before


def test_usage_errors_end_with_2():
    for arguments in (["fit", "digits"], ["fit", "digits", "-k", "x"], ["nothing"], ["fit"]):
        result = deepclust_(*arguments)
        assert result.exit_code == 2
        assert "Error" in result.stderr


def test_no_memory_is_a_sentence(monkeypatch):
    def fit(self, X):
        raise MemoryError

    monkeypatch.setattr(DEC, "fit", fit)
    np.save("x.npy", X)
    assert "not enough memory" in fails("fit", "x.npy", *FIT)


def test_errors_of_the_system_name_the_file():
    error = PermissionError(13, "Permission denied", "secret.csv")
    assert commands._sentence(error) == "secret.csv: permission denied."
    assert commands._sentence(ValueError("First.\nSecond.")) == "First."


def test_from_outside():
    """In a process of its own: no traceback, nothing left behind."""
    Path("text.csv").write_text("a,b\n1,2\n3,x\n")
    result = python("-m", "deepclust", "fit", "text.csv", *FIT, "-o", "run")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "Error: text.csv, line 3, column 'b' holds 'x', which is no number; leave the column out "
        "with --columns, or name it in --id or --labels.\n"
    )
    assert os.listdir() == ["text.csv"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_nothing(number, code):
    np.save("x.npy", X)
    # Even if the tests run in the background, where SIGINT is ignored.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from deepclust.cli import main; main()"
    )
    arguments = ["fit", "x.npy", "-k", "3", "--hidden", "16", "--pretrain-iter", "10000000"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "-o", "deep/run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=OUTSIDE,
    ) as process:
        assert process.stderr.readline().startswith("x: 60 rows")
        time.sleep(0.2)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    if number == signal.SIGINT:
        assert stderr.splitlines()[-1] == "Interrupted; nothing was written."
    assert os.listdir() == ["x.npy"]


def test_missing_typer_is_a_sentence():
    program = "import sys; sys.modules['typer'] = None;from deepclust.cli import main; main()"
    result = python("-c", program)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert 'pip install "deepclust[cli]"' in result.stderr


# -- folders ---------------------------------------------------------------------------------------


def test_full_folder_is_refused_without_force():
    np.save("x.npy", X)
    succeeds("fit", "x.npy", *FIT, "--seed", "1", "-o", "run")
    old = Path("run/run.json").read_text()
    assert "run is not empty; name another folder, or add --force." in fails(
        "fit", "x.npy", *FIT, "-o", "run"
    )
    assert Path("run/run.json").read_text() == old
    succeeds("fit", "x.npy", *FIT, "--seed", "2", "-o", "run", "--force")
    assert json.loads(Path("run/run.json").read_text())["seed"] == 2
    assert sorted(os.listdir()) == ["run", "x.npy"]


def test_old_run_stays_when_the_new_one_fails(monkeypatch):
    np.save("x.npy", X)
    succeeds("fit", "x.npy", *FIT, "-o", "run")
    old = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    def save(self, folder):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text("half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(DEC, "save", save)
    assert "no space left on device." in fails("fit", "x.npy", *FIT, "-o", "run", "--force")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == old
    assert sorted(os.listdir()) == ["run", "x.npy"]


# -- columns, id, labels ---------------------------------------------------------------------------


def test_columns_id_and_labels_mean_the_same_everywhere(run):
    folder, table, _ = run
    fitted = (folder / "labels.csv").read_text()
    # predict finds the columns and the id of the run by itself ...
    assert succeeds("predict", folder, table).stdout == fitted
    # ... or is told, by name, position or range.
    named = ["--columns", "a,b,c,d,e", "--id", "key", "--labels", "colour"]
    numbered = ["--columns", "1-3,4,5", "--id", "0", "--labels", "6"]
    for options in (named, numbered):
        result = succeeds("predict", folder, table, *options)
        assert result.stdout == fitted
        assert result.stderr.startswith("ACC ")
    succeeds("predict", folder, table, *numbered, "-o", "labels.csv")
    assert Path("labels.csv").read_text() == fitted
    succeeds("fit", table, *FIT, "--seed", "7", *numbered, "-o", "same")
    assert Path("same/labels.csv").read_text() == fitted


def test_predict_finds_columns_in_another_order(run):
    folder, table, _ = run
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    with open("other.csv", "w", newline="") as file:
        out = csv.DictWriter(file, ["e", "colour", "d", "b", "a", "c"], extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = succeeds("predict", folder, "other.csv")
    assert "lacks 'key', the --id of the run; its rows are numbered from 0." in result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["row"] for row in rows] == [str(i) for i in range(60)]
    fitted = read_labels(folder / "labels.csv")
    assert [row["label"] for row in rows] == [row["label"] for row in fitted]

    Path("less.csv").write_text("key,a,b,c\n1,2,3,4\n")
    assert "lacks what the model was fitted on: 'd', 'e'." in fails("predict", folder, "less.csv")


def test_predict_by_position(run):
    folder, _, _ = run
    np.save("x.npy", X)
    np.save("narrow.npy", X[:, :4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(csv.DictReader(succeeds("predict", folder, "x.npy").stdout.splitlines()))
    fitted = read_labels(folder / "labels.csv")
    assert [row["label"] for row in rows] == [row["label"] for row in fitted]
    assert "narrow.npy has 4 columns, but the model was fitted on 5." in fails(
        "predict", folder, "narrow.npy"
    )


def test_predict_with_a_model_alone(run, tmp_path):
    folder, table, _ = run
    np.save("x.npy", X)
    fitted = [row["label"] for row in read_labels(folder / "labels.csv")]
    result = succeeds("predict", folder / "model", "x.npy")
    assert [row["label"] for row in csv.DictReader(result.stdout.splitlines())] == fitted
    chosen = succeeds("predict", folder / "model", table, "--columns", "1-5", "--id", "key")
    assert chosen.stdout == (folder / "labels.csv").read_text()

    deepclust.Autoencoder(hidden=(8,), max_iter=2).fit(X).save("autoencoder")
    assert "which has no clusters" in fails("predict", "autoencoder", "x.npy")


def test_predict_with_a_model_of_a_data_frame(run):
    pd = pytest.importorskip("pandas")
    _, table, _ = run
    frame = pd.read_csv(table)[["e", "a", "c"]]
    dec = DEC(n_clusters=3, hidden=(16,), pretrain_iter=5, max_iter=5, n_init=1).fit(frame)
    dec.save("model")
    rows = list(csv.DictReader(succeeds("predict", "model", table).stdout.splitlines()))
    assert [int(row["label"]) for row in rows] == dec.labels_.tolist()


def test_predict_refuses_to_overwrite(run):
    folder, table, _ = run
    Path("mine.csv").write_text("mine")
    assert "mine.csv exists" in fails("predict", folder, table, "-o", "mine.csv")
    assert Path("mine.csv").read_text() == "mine"
    succeeds("predict", folder, table, "-o", "mine.csv", "--force")
    assert Path("mine.csv").read_text() == (folder / "labels.csv").read_text()
    assert os.listdir() == ["mine.csv"]


def test_predict_into_a_closed_pipe(run):
    folder, table, _ = run
    program = (
        "import sys\nfrom deepclust.cli import main\n"
        "class Closed:\n"
        "    def write(self, text): raise BrokenPipeError(32, 'Broken pipe')\n"
        "    def flush(self): pass\n"
        "    def fileno(self): return 1\n"
        "sys.stdout = Closed()\nmain()"
    )
    result = python("-c", program, "predict", folder, table)
    assert result.returncode == 1
    assert result.stderr == ""


# -- evaluate --------------------------------------------------------------------------------------


def test_evaluate_reads_the_run_and_the_labels(run):
    folder, table, fitted = run
    metrics = json.loads((folder / "metrics.json").read_text())
    for arguments in ([], ["--labels", "colour"], [table, "--labels", "colour"], ["--labels", "6"]):
        result = succeeds("evaluate", folder, *arguments, "--json")
        assert json.loads(result.stdout) == {
            "run": str(folder),
            "n_samples": 60,
            "n_clusters": len({row["label"] for row in read_labels(folder / "labels.csv")}),
            "n_classes": 3,
            "ae_kmeans": metrics["ae_kmeans"],
            "init": metrics["init"],
            "dec": metrics["dec"],
        }
    table_of = succeeds("evaluate", folder).stdout
    assert table_of.strip() in fitted.stdout


def test_evaluate_with_other_labels(run):
    folder, _, _ = run
    labels = [int(row["label"]) for row in read_labels(folder / "labels.csv")]
    Path("y.txt").write_text("".join(f"{label}\n" for label in labels))
    result = succeeds("evaluate", folder, "--labels", "y.txt", "--json")
    assert json.loads(result.stdout)["dec"] == {"acc": 1, "nmi": 1, "ari": 1}
    assert "init" not in json.loads(result.stdout)
    assert "scored by fit" in succeeds("evaluate", folder, "--labels", "y.txt").stdout
    # labels.csv of a run is a file of labels as well
    own = folder / "labels.csv"
    result = succeeds("evaluate", folder, "--labels", own, "--json")
    assert json.loads(result.stdout)["dec"]["acc"] == 1
    Path("y.txt").write_text("1\n2\n")
    assert "y.txt holds 2 labels for 60 rows" in fails("evaluate", folder, "--labels", "y.txt")


def test_evaluate_finds_rows_by_id(run):
    folder, _, _ = run
    expected = json.loads((folder / "metrics.json").read_text())["dec"]
    write_table("shuffled.csv", order=np.random.default_rng(0).permutation(60))
    options = ["--labels", "colour", "--json"]
    for id in ([], ["--id", "key"], ["--id", "0"]):
        result = succeeds("evaluate", folder, "shuffled.csv", *options, *id)
        assert json.loads(result.stdout)["dec"] == expected
    write_table("half.csv", order=np.arange(30))
    assert "half.csv lacks 30 rows of the run, among them 'r30'" in fails(
        "evaluate", folder, "half.csv", *options
    )
    write_table("twice.csv", order=np.r_[np.arange(60), 0])
    assert "more than once" in fails("evaluate", folder, "twice.csv", *options)


def test_evaluate_sees_that_data_changed():
    write_table()
    succeeds("fit", "table.csv", *FIT, "--columns", "a,b,c", "-o", "run")
    assert "--labels is missing: this run was fitted without" in fails("evaluate", "run")
    assert "the run was fitted without --id" in fails(
        "evaluate", "run", "--labels", "colour", "--id", "key"
    )
    succeeds("evaluate", "run", "--labels", "colour")
    write_table(order=np.arange(60)[::-1])
    assert "SHA-256 differs" in fails("evaluate", "run", "--labels", "colour")
    succeeds("evaluate", "run", "table.csv", "--labels", "colour")
    write_table(order=np.arange(50))
    assert "table.csv has 50 rows, but the run has 60" in fails(
        "evaluate", "run", "table.csv", "--labels", "colour"
    )
    Path("table.csv").unlink()
    assert "is gone" in fails("evaluate", "run", "--labels", "colour")


def test_evaluate_refuses_a_damaged_run(run, tmp_path):
    folder, _, _ = run
    copy = tmp_path / "copy"
    copy.mkdir()
    facts = json.loads((folder / "run.json").read_text())
    labels = (folder / "labels.csv").read_text()
    for content, text, sentence in [
        ("{", labels, "run.json is damaged"),
        ("[]", labels, "run.json is damaged"),
        (json.dumps(facts | {"format_version": 2}), labels, "has format version 2"),
        (json.dumps(facts | {"data": {}}), labels, "lacks or misstates"),
        (json.dumps(facts), "", "labels.csv is empty"),
        (json.dumps(facts), "row,label\n1,x\n", "labels.csv is damaged"),
        (json.dumps(facts), "a,b\n1,2\n", "labels.csv is damaged"),
    ]:
        (copy / "run.json").write_text(content)
        (copy / "labels.csv").write_text(text)
        assert sentence in fails("evaluate", copy)


# -- the others ------------------------------------------------------------------------------------


def test_datasets_lists_all(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPCLUST_DATA", str(tmp_path / "home"))
    result = succeeds("datasets")
    for name in datasets.names():
        assert name in result.stdout
    assert "1,797" in result.stdout
    assert str(tmp_path / "home") in result.stdout
    shown = succeeds("datasets", "digits").stdout
    assert "Licence:" in shown
    assert "At hand in sklearn.datasets.load_digits." in shown
    assert f"Not at hand in {tmp_path / 'home' / 'mnist'}." in succeeds("datasets", "mnist").stdout


def test_shapes_of_data_sets_are_true():
    X, _ = datasets.load("digits", return_X_y=True)
    assert datasets.digits.DATASET.shape == X.shape


def test_version():
    assert succeeds("--version").stdout == f"deepclust {deepclust.__version__}\n"


@pytest.fixture
def small_demo(monkeypatch):
    """The demo on fewer digits, with a small network."""
    X, y = load_digits(return_X_y=True)
    monkeypatch.setattr(demo.datasets, "load", lambda name, return_X_y: (X[:200], y[:200]))
    quick = functools.partial(DEC, hidden=(16,), pretrain_iter=20, max_iter=20, init="k-means")
    monkeypatch.setattr(demo, "DEC", quick)


@pytest.mark.usefixtures("small_demo")
def test_demo():
    pytest.importorskip("matplotlib")
    result = succeeds("demo", "--seeds", "0,1")
    for method in ("k-means", "AE + k-means", "start of DEC", "DEC"):
        assert method in result.stdout
    assert "±" in result.stdout
    assert "Fit 2 of 2, seed 1" in result.stderr
    assert Path("deepclust-demo.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir() == ["deepclust-demo.png"]
    assert "deepclust fit data.csv -k 10 -o run" in result.stdout.splitlines()[-2]
    assert "deepclust predict run new.csv" in result.stdout.splitlines()[-1]


@pytest.mark.usefixtures("small_demo")
def test_demo_goes_on_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = succeeds("demo", "--seeds", "0", "-o", "picture.svg")
    assert 'pip install "deepclust[report]"' in result.stderr
    assert "±" not in result.stdout
    assert os.listdir() == []
