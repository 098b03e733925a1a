"""What every method must hold: a new one is tested by its name in ``deepclust.cluster.__all__``."""

import copy
import pickle
import random
import threading
import tracemalloc
import warnings
from functools import wraps

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_info

from deepclust import cluster
from deepclust.metrics import clustering_accuracy

METHODS = [getattr(cluster, name) for name in cluster.__all__]


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__, scope="module")
def method(request):
    return request.param


def blobs(n_samples=300, n_features=6, spread=0.5, seed=0):
    """Three groups far apart."""
    return make_blobs(
        n_samples=n_samples,
        n_features=n_features,
        centers=3,
        cluster_std=spread,
        random_state=seed,
    )


def small(method, **changes):
    """An estimator that is fitted in a fraction of a second."""
    settings = {
        "n_clusters": 3,
        "hidden": (8,),
        "bottleneck": 3,
        "pretrain_iter": 60,
        "max_iter": 40,
        "update_interval": 10,
        "tol": 0.0,
        "n_init": 2,
        "random_state": 0,
    }
    return method(**(settings | changes))


X, Y = blobs()


@pytest.fixture(scope="module")
def fitted(method):
    return small(method).fit(X)


def answers(model, data=X):
    """Bits of everything a fitted model says about rows."""
    arrays = [
        model.predict(data),
        model.predict_proba(data),
        model.transform(data),
        model.score_samples(data),
        np.float64(model.score(data)),
        model.cluster_centers_,
        model.cluster_frequency_,
    ]
    return [np.asarray(array).tobytes() for array in arrays]


# -- scikit-learn's own checks ---------------------------------------------------------------------

# scikit-learn (1.9) takes whatever has predict_proba and reads sparse matrices for a classifier of
# four classes. test_reads_every_form_of_a_table does for these methods what the checks mean.
CLASSIFIERS_ONLY = {"check_estimator_sparse_array", "check_estimator_sparse_matrix"}


def test_scikit_learns_checks(method, monkeypatch):
    moved = []
    fit = method.fit

    @wraps(fit)
    def watched(self, X, y=None):
        fit(self, X, y)
        if self.n_clusters > 1:  # with one cluster P and Q are 1, and nothing is to be learnt
            # The first layer: the start may have whitened the last.
            before = self.autoencoder_.module_.encoder[0].weight
            after = self.module_.encoder[0].weight
            centroids = (self.cluster_centers_ != self.init_cluster_centers_).any()
            moved.append((not torch.equal(before, after), bool(centroids)))
        return self

    monkeypatch.setattr(method, "fit", watched)
    results = check_estimator(
        method(n_clusters=3, pretrain_iter=50, max_iter=20), on_fail=None, on_skip=None
    )
    failed = {
        result["check_name"]: result["exception"]
        for result in results
        if result["status"] not in ("passed", "skipped")
    }
    assert failed.keys() == CLASSIFIERS_ONLY, failed
    for exception in failed.values():
        assert "'multi_class'" in str(exception.__cause__)
    # Needs an environment variable before SciPy is imported, and is about GPU arrays.
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}

    encoders, centroids = zip(*moved, strict=True)
    assert len(moved) > 20
    assert all(encoders)
    # Some checks use a table so far from the origin that rounding swallows single steps.
    assert sum(centroids) > 0.8 * len(moved)


# -- what comes out --------------------------------------------------------------------------------


def test_labels_are_those_of_predict(fitted):
    assert np.array_equal(fitted.labels_, fitted.predict(X))
    assert np.array_equal(fitted.labels_, fitted.predict_proba(X).argmax(axis=1))
    assert np.issubdtype(fitted.labels_.dtype, np.integer)
    assert fitted.predict(X).dtype == fitted.init_labels_.dtype == fitted.labels_.dtype


def test_fit_predict_and_fit_transform(method, fitted):
    assert np.array_equal(small(method).fit_predict(X), fitted.labels_)
    assert np.array_equal(small(method).fit_transform(X), fitted.transform(X))


def test_outputs_are_float32(fitted):
    assert fitted.predict_proba(X).dtype == np.float32
    assert fitted.transform(X).dtype == np.float32
    assert fitted.score_samples(X).dtype == np.float32
    assert fitted.cluster_centers_.dtype == fitted.init_cluster_centers_.dtype == np.float32


@pytest.mark.parametrize("alpha", [1.0, 0.3, 7.0])
def test_q_is_students_t_around_the_centroids(method, alpha):
    """Equation 1, from ``transform`` and ``cluster_centers_`` by plain loops."""
    model = small(method, alpha=alpha).fit(X)
    z, centers = model.transform(X).astype(float), model.cluster_centers_.astype(float)
    q = model.predict_proba(X)
    for i in range(0, len(X), 37):
        kernel = [
            (1 + sum((a - b) ** 2 for a, b in zip(z[i], center, strict=True)) / alpha)
            ** (-(alpha + 1) / 2)
            for center in centers
        ]
        assert q[i] == pytest.approx([value / sum(kernel) for value in kernel], abs=1e-6)


def test_score_samples_is_the_log_of_the_largest_q(fitted):
    expected = np.log(fitted.predict_proba(X).max(axis=1).astype(float))
    assert fitted.score_samples(X) == pytest.approx(expected, abs=1e-6)


def test_cluster_frequency_sums_q_over_the_training_rows(fitted):
    expected = fitted.predict_proba(X).astype(float).sum(axis=0)
    assert fitted.cluster_frequency_ == pytest.approx(expected, rel=1e-6)
    assert fitted.cluster_frequency_.sum() == pytest.approx(len(X))


@pytest.mark.parametrize("rows", [slice(None), slice(0, 5), slice(3, 4)])
def test_score_is_minus_kl_with_the_frequency_of_the_training_rows(method, rows):
    # Groups that touch, so that there is a divergence to measure.
    data = blobs(spread=5)[0]
    model = small(method).fit(data)
    q = model.predict_proba(data[rows]).astype(float)
    total = 0.0
    for row in q:
        p = row**2 / model.cluster_frequency_
        p /= p.sum()
        total -= sum(a * np.log(a / b) for a, b in zip(p, row, strict=True) if a > 0)
    assert model.score(data[rows]) == pytest.approx(total / len(q), rel=1e-4, abs=1e-7)
    assert model.score(data[rows]) < 0


def test_fitted_attributes(method):
    model = small(method).fit(X)
    assert model.labels_.shape == model.init_labels_.shape == (len(X),)
    assert model.cluster_centers_.shape == model.init_cluster_centers_.shape == (3, 3)
    assert model.cluster_frequency_.shape == (3,)
    assert model.n_iter_ == 40
    assert model.n_features_in_ == 6
    assert not hasattr(model, "feature_names_in_")
    assert set(model.phase_seconds_) == {"scaling", "pretrain", "centroids", "self-train", "assign"}


def test_the_start_is_what_self_training_began_with(method):
    """At the first refresh, before any step, Q is that of the initial labels and centroids."""
    seen = []

    def first(event):
        if event.phase == "self-train" and not seen:
            seen.append((event.step, event.labels.clone(), event.state.target.centroids.clone()))

    model = small(method, precision="float32").set_callbacks(first).fit(X)
    ((step, labels, centroids),) = seen
    assert step == 0
    assert np.array_equal(model.init_labels_, labels.numpy())
    assert np.array_equal(model.init_cluster_centers_, centroids.numpy())
    assert not np.array_equal(model.init_cluster_centers_, model.cluster_centers_)


def test_history_tells_the_fit_in_order(method):
    history = small(method).fit(X).history_
    assert [record["phase"] for record in history] == sorted(
        (record["phase"] for record in history), key=["pretrain", "self-train"].index
    )
    seconds = [record["seconds"] for record in history]
    assert seconds == sorted(seconds)
    pretraining = [record for record in history if record["phase"] == "pretrain"]
    assert pretraining[-1]["step"] == 60
    assert all(record["reconstruction"] > 0 for record in pretraining)


def test_finds_groups_that_are_far_apart(fitted):
    assert clustering_accuracy(Y, fitted.labels_) == 1
    assert clustering_accuracy(Y, fitted.predict(X)) == 1


def test_names_of_columns(method):
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = small(method).fit(frame)
    assert list(model.feature_names_in_) == list("abcdef")
    name = method.__name__.lower()
    assert list(model.get_feature_names_out()) == [f"{name}0", f"{name}1", f"{name}2"]
    # The autoencoder that is left for comparisons knows them too.
    assert model.autoencoder_.transform(frame).shape == (len(X), 3)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[list("fedcba")])


def test_set_output(method, fitted):
    frame = pd.DataFrame(X, columns=list("abcdef"), index=[f"row {i}" for i in range(len(X))])
    model = small(method).set_output(transform="pandas")
    embedded = model.fit_transform(frame)
    assert list(embedded.columns) == list(model.get_feature_names_out())
    assert list(embedded.index) == list(frame.index)
    assert (embedded.dtypes == np.float32).all()
    assert np.array_equal(embedded.to_numpy(), fitted.transform(X))
    assert isinstance(model.predict_proba(frame), np.ndarray)


# -- what goes in ----------------------------------------------------------------------------------


def memory_map(data, folder):
    np.save(folder / "data.npy", data)
    return np.load(folder / "data.npy", mmap_mode="r")


def read_only(data):
    data = data.copy()
    data.flags.writeable = False
    return data


FORMS = {
    "list": lambda data, folder: data.tolist(),
    "Fortran order": lambda data, folder: np.asfortranarray(data),
    "every other row": lambda data, folder: np.repeat(data, 2, axis=0)[::2],
    "read-only": lambda data, folder: read_only(data),
    "memory map": memory_map,
    "data frame": lambda data, folder: pd.DataFrame(data),
    "CSR matrix": lambda data, folder: sparse.csr_matrix(data),
    "CSR array": lambda data, folder: sparse.csr_array(data),
    "CSC matrix": lambda data, folder: sparse.csc_matrix(data),
}


@pytest.fixture(scope="module")
def counts():
    """A table of whole numbers with zeros, exact in every number type."""
    return (blobs(spread=1)[0].round() + 12).clip(0, 30) * (np.arange(6) % 3 > 0)


@pytest.mark.parametrize("form", FORMS)
def test_reads_every_form_of_a_table(method, counts, tmp_path, form):
    expected = small(method).fit(counts)
    data = FORMS[form](counts, tmp_path)
    before = pickle.dumps(data)
    model = small(method).fit(data)
    assert np.array_equal(model.labels_, expected.labels_)
    assert answers(model, data) == answers(expected, counts)
    assert model.predict_proba(data).shape == (len(counts), 3)
    assert pickle.dumps(data) == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int8", "uint8", "uint64"])
def test_reads_every_number_type(method, counts, dtype):
    expected = small(method).fit(counts)
    model = small(method).fit(counts.astype(dtype))
    assert np.array_equal(model.labels_, expected.labels_)
    assert model.transform(counts.astype(dtype)) == pytest.approx(
        expected.transform(counts), rel=1e-2, abs=1e-2
    )


def test_reads_a_frame_of_several_number_types(method, counts):
    frame = pd.DataFrame(counts, columns=list("abcdef"))
    frame = frame.astype({"b": "int16", "c": "uint8", "e": "float32"})
    model = small(method).fit(frame)
    assert list(model.feature_names_in_) == list("abcdef")
    assert np.array_equal(model.predict(frame), model.labels_)


def wide_csr(folder):
    rng = np.random.default_rng(0)
    index = rng.integers(N_WIDE, size=(N_LONG, 5))
    indptr = np.arange(0, 5 * N_LONG + 1, 5)
    values = rng.uniform(1, 2, size=5 * N_LONG)
    matrix = sparse.csr_matrix((values, index.ravel(), indptr), shape=(N_LONG, N_WIDE))
    matrix.sum_duplicates()
    return matrix


def memory_mapped(dtype):
    def write(folder):
        data = np.lib.format.open_memmap(
            folder / "data.npy", "w+", dtype=dtype, shape=(N_LONG, N_WIDE)
        )
        rng = np.random.default_rng(0)
        for start in range(0, N_LONG, 10_000):
            data[start : start + 10_000] = rng.integers(256, size=(10_000, N_WIDE))
        data.flush()
        return np.load(folder / "data.npy", mmap_mode="r")

    return write


N_LONG, N_WIDE = 120_000, 120
LARGE = {
    "CSR": wide_csr,
    "uint8": memory_mapped(np.uint8),
    "float64": memory_mapped(np.float64),
}


@pytest.mark.parametrize("form", LARGE)
def test_makes_no_copy_of_the_whole(method, tmp_path, form):
    data = LARGE[form](tmp_path)
    model = small(method, hidden=(2,), bottleneck=2, init="k-means", n_init=1)
    model.set_params(pretrain_iter=2, max_iter=1, update_interval=1)
    tracemalloc.start()
    model.fit(data)
    model.predict(data)
    model.transform(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    as_float32 = 4 * N_LONG * N_WIDE
    assert peak < as_float32 / 2


def test_text_in_a_pipeline(method):
    words = [["sun", "moon", "star", "sky"], ["bread", "milk", "salt", "jam"]]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words[i % 2], size=6)) for i in range(60)]
    model = make_pipeline(TfidfVectorizer(), small(method, n_clusters=2, pretrain_iter=300))
    labels = model.fit_predict(texts)
    assert clustering_accuracy(np.arange(60) % 2, labels) == 1
    assert np.array_equal(model.predict(texts), labels)
    assert model.predict_proba(texts).shape == (60, 2)


@pytest.mark.parametrize("scaling", ["unit", "standard", 0.25, None])
def test_scaling_is_learnt_from_the_training_rows(method, scaling):
    """Scaled by hand and not at all by the model, the same rows give the same bits."""
    data = X.astype(np.float64)
    factor = 1 / np.sqrt((data**2).mean()) if scaling == "unit" else scaling or 1.0
    by_hand = StandardScaler().fit_transform(data) if scaling == "standard" else data * factor
    model = small(method, scaling=scaling).fit(data)
    other = small(method, scaling=None).fit(by_hand)
    assert np.array_equal(model.labels_, other.labels_)
    assert model.transform(data) == pytest.approx(other.transform(by_hand), rel=1e-3, abs=1e-3)
    # New rows are scaled by what was learnt, not by their own range.
    assert np.array_equal(model.transform(data[:5]), model.transform(data)[:5])


def test_columns_of_different_units_are_warned_about(method):
    data = X * np.array([1, 1, 1, 1, 1, 1000])
    with pytest.warns(UserWarning, match="scaling='standard'"):
        small(method).fit(data)
    assert clustering_accuracy(Y, small(method, scaling="standard").fit_predict(data)) == 1


# -- the same bits ---------------------------------------------------------------------------------

# Widths that fill whole vector registers and widths that do not.
WIDTHS = [(6, (8,), 3, 3), (33, (17, 9), 10, 10), (100, (70,), 16, 7), (5, (48,), 1, 2)]


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("n_features", "hidden", "bottleneck", "n_clusters"), WIDTHS)
def test_a_row_gives_the_same_bits_in_any_company(
    method, n_threads, n_features, hidden, bottleneck, n_clusters
):
    data = blobs(n_samples=600, n_features=n_features, spread=3)[0]
    model = small(method, n_clusters=n_clusters, hidden=hidden, bottleneck=bottleneck)
    model.set_params(pretrain_iter=5, max_iter=5, n_init=1).fit(data)
    rng = np.random.default_rng(0)
    subsets = [[i] for i in (*range(9), 255, 256, 599)]
    subsets += [rng.permutation(600)[:n] for n in (2, 7, 16, 31, 255, 256, 257, 600)]
    subsets += [np.arange(600)[::-1]]
    torch.set_num_threads(n_threads)
    try:
        for answer in (model.predict_proba, model.transform):
            whole = answer(data)
            for rows in subsets:
                assert answer(data[rows]).tobytes() == whole[rows].tobytes()
    finally:
        torch.set_num_threads(1)


def test_same_seed_same_bits(method, fitted):
    assert answers(small(method).fit(X)) == answers(fitted)
    assert np.array_equal(small(method).fit(X).labels_, fitted.labels_)
    assert answers(small(method, random_state=1).fit(X)) != answers(fitted)


def test_fitting_again_starts_anew(method, fitted):
    model = small(method).fit(blobs(seed=1)[0])
    model.fit(X)
    assert answers(model) == answers(fitted)
    assert len(model.history_) == len(fitted.history_)


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.default_rng, np.int64])
def test_kinds_of_random_state(method, kind):
    first, second = (small(method, random_state=kind(3)).fit(X) for _ in range(2))
    assert answers(first) == answers(second)


def test_without_a_seed_fits_differ(method):
    first, second = (small(method, random_state=None).fit(X) for _ in range(2))
    assert answers(first) != answers(second)


def test_labels_are_never_looked_at(method, fitted):
    assert answers(small(method).fit(X, Y)) == answers(fitted)
    assert answers(small(method).fit(X, np.full(len(X), "nonsense"))) == answers(fitted)
    assert fitted.score(X, Y) == fitted.score(X)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_labels_agree_with_predict_whatever_was_trained_in(method, precision):
    data = blobs(spread=6)[0]  # overlapping: bfloat16 would give rows at the border another label
    model = small(method, precision=precision).fit(data)
    assert np.array_equal(model.labels_, model.predict(data))
    assert np.array_equal(model.labels_, model.set_params(precision="float32").predict(data))
    assert all(value.dtype == torch.float32 for value in model.module_.parameters())


def test_autocast_of_the_caller_does_not_reach_predict(fitted):
    expected = answers(fitted)
    with torch.autocast("cpu", torch.bfloat16):
        assert answers(fitted) == expected


def test_default_dtype_of_the_caller_is_no_matter(method, fitted):
    torch.set_default_dtype(torch.float64)
    try:
        assert answers(small(method).fit(X)) == answers(fitted)
    finally:
        torch.set_default_dtype(torch.float32)


# -- nothing global is touched ---------------------------------------------------------------------


def settings_of_this_thread():
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch threads": torch.get_num_threads(),
        "denormals": (torch.tensor([1e-310], dtype=torch.float64) * 1.0).item(),
    }


def settings_of_the_process():
    return {
        "torch random state": torch.get_rng_state().numpy().tobytes(),
        "numpy random state": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "random state": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "interop threads": torch.get_num_interop_threads(),
        "warnings": list(warnings.filters),
        "floating point errors": np.geterr(),
    }


@pytest.mark.parametrize("init", ["gmm", "k-means"])
def test_global_state_is_untouched(method, init):
    """After the fit, between its steps, and for a thread that looks on all the while."""
    process = settings_of_the_process()
    thread = settings_of_this_thread()
    pools = sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())
    seen, stop, started = [], threading.Event(), threading.Event()

    def look():
        seen.append((settings_of_this_thread(), process))
        started.set()
        while not stop.wait(0.001):
            seen.append((settings_of_this_thread(), settings_of_the_process()))

    within = []
    watcher = threading.Thread(target=look)
    watcher.start()
    started.wait()
    model = small(method, init=init, n_init=20)
    model.set_callbacks(
        lambda event: within.append((settings_of_this_thread(), settings_of_the_process()))
    )
    model.fit(X)
    stop.set()
    watcher.join()
    assert len(seen) > 10
    assert all(now == seen[0] for now in seen)
    assert within
    assert all(now == (thread, process) for now in within)
    assert settings_of_the_process() == process
    assert settings_of_this_thread() == thread
    assert pools == sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())


def test_two_fits_at_a_time_are_two_fits(method, fitted):
    """And leave the threads of BLAS as they were, which scikit-learn's k-means limits."""
    pools = sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())
    models = [small(method) for _ in range(3)]
    threads = [threading.Thread(target=model.fit, args=(X,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers(model) for model in models] == [answers(fitted)] * 3
    assert pools == sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())


# -- copies ----------------------------------------------------------------------------------------


def test_clone_is_unfitted(fitted):
    fitted.set_callbacks(lambda event: None)
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(X)
    assert not hasattr(twin, "_callbacks")
    assert "callbacks" not in fitted.get_params()
    fitted.set_callbacks()


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
def test_copies_of_a_fitted_estimator(method, fitted, duplicate):
    model = small(method).set_callbacks(lambda event: None).fit(X)
    twin = duplicate(model)
    assert answers(twin) == answers(fitted)
    assert np.array_equal(twin.labels_, fitted.labels_)
    assert len(twin.history_) == len(fitted.history_)
    assert not hasattr(twin, "_callbacks")
    assert hasattr(model, "_callbacks")
    assert {p.device.type for p in twin.module_.parameters()} == {"cpu"}
    # Nothing is shared with the original.
    expected = answers(model)
    for parameter in twin.module_.parameters():
        parameter.data.zero_()
    assert answers(model) == expected


def test_a_pickle_holds_no_compiled_module(method, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step: lambda *args: step(*args))
    model = small(method, compile=True).fit(X)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert answers(again) == answers(model)
    names = {type(module).__name__ for module in again.module_.modules()}
    assert names == {"ClusterNet", "Sequential", "Linear", "ReLU"}


def test_pipeline(method):
    model = make_pipeline(StandardScaler(), small(method))
    assert clustering_accuracy(Y, model.fit_predict(X)) == 1
    assert model.transform(X).shape == (len(X), 3)
    assert model.score(X) == model[-1].score(model[0].transform(X))


def test_grid_search(method):
    search = GridSearchCV(small(method), {"n_clusters": [2, 3], "alpha": [1.0, 2.0]}, cv=2)
    search.fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict(X).shape == (len(X),)


# -- callbacks -------------------------------------------------------------------------------------


def test_callbacks_see_every_event(method):
    events, also = [], []
    model = small(method).set_callbacks(events.append, also.append)
    assert model.fit(X) is model
    assert len(events) == len(also) == len(model.history_)
    assert {event.phase for event in events} == {"pretrain", "self-train"}
    model.set_callbacks().fit(X)
    assert len(events) == len(model.history_)


def test_true_ends_the_stage_and_only_that(method, fitted):
    def after_the_second_refresh(event):
        return event.phase == "self-train" and event.step >= 10

    model = small(method).set_callbacks(after_the_second_refresh).fit(X)
    assert model.n_iter_ == 10
    assert np.array_equal(model.labels_, model.predict(X))

    model = small(method).set_callbacks(lambda event: event.phase == "self-train").fit(X)
    assert model.n_iter_ == 0
    assert np.array_equal(model.labels_, model.init_labels_)
    assert np.array_equal(model.cluster_centers_, model.init_cluster_centers_)

    looking_on = small(method).set_callbacks(lambda event: "no", lambda event: False).fit(X)
    assert answers(looking_on) == answers(fitted)


def test_callbacks_must_be_callable(method):
    with pytest.raises(TypeError, match="'progress' is no callback"):
        small(method).set_callbacks("progress")


# -- errors ----------------------------------------------------------------------------------------

BAD_PARAMETERS = [
    ({"n_clusters": 0}, "n_clusters == 0, must be >= 1"),
    ({"n_clusters": 2.5}, "n_clusters must be an instance of"),
    ({"n_clusters": 301}, "n_clusters=301 exceeds n_samples=300; choose fewer"),
    ({"hidden": 8}, "hidden=8 is not a tuple"),
    ({"hidden": "8"}, "hidden='8' is not a tuple"),
    ({"hidden": (8, 0)}, "hidden == 0, must be >= 1"),
    ({"bottleneck": 0}, "bottleneck == 0, must be >= 1"),
    ({"alpha": 0}, "alpha == 0, must be >="),
    ({"alpha": float("nan")}, "alpha=nan is not a finite number"),
    ({"alpha": "1"}, "alpha must be an instance of"),
    ({"init": "random"}, "init='random' is not one of 'gmm', 'k-means'"),
    ({"init": np.zeros((2, 3))}, r"init has shape \(2, 3\); 3 centroids .* shape \(3, 3\)"),
    ({"init": np.full((3, 3), np.nan)}, "init holds NaN"),
    ({"n_init": 0}, "n_init == 0, must be >= 1"),
    ({"pretrain_iter": 0}, "pretrain_iter == 0, must be >= 1"),
    ({"pretrain_lr": -1.0}, "pretrain_lr == -1.0, must be > 0"),
    ({"pretrain_lr": float("inf")}, "pretrain_lr=inf is not a finite number"),
    ({"max_iter": 0}, "max_iter == 0, must be >= 1"),
    ({"max_iter": "10"}, "max_iter must be an instance of"),
    ({"lr": 0.0}, "lr == 0.0, must be > 0"),
    ({"lr": float("nan")}, "lr=nan is not a finite number"),
    ({"batch_size": 0}, "batch_size == 0, must be >= 1"),
    ({"update_interval": 0}, "update_interval == 0, must be >= 1"),
    ({"tol": -0.1}, "tol == -0.1, must be >= 0"),
    ({"tol": float("nan")}, "tol=nan is not a finite number"),
    ({"scaling": "minmax"}, "scaling='minmax' is not one of 'unit', 'standard'"),
    ({"scaling": -1}, "scaling=-1 is not a positive, finite number"),
    ({"random_state": "one"}, "random_state='one' cannot seed a fit; pass an integer"),
    ({"random_state": -1}, "random_state=-1 cannot seed a fit"),
    ({"device": "abacus"}, "device='abacus' cannot be used here .* pass device='cpu'"),
    ({"precision": "float16"}, "precision='float16' is not one of 'auto', 'float32', 'bfloat16'"),
    ({"compile": "yes"}, "compile='yes' is not True or False"),
    ({"autoencoder": "mlp"}, "autoencoder='mlp' is no Autoencoder; pass None, an Autoencoder"),
]


@pytest.mark.parametrize(
    ("bad", "message"), BAD_PARAMETERS, ids=[str(bad) for bad, _ in BAD_PARAMETERS]
)
def test_bad_parameters(method, bad, message):
    model = small(method, **bad)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(X)
    with pytest.raises(NotFittedError):
        model.predict(X)


BAD_TABLES = {
    "NaN": (np.where(np.arange(6) == 2, np.nan, X), "contains NaN"),
    "infinity": (np.where(np.arange(6) == 2, np.inf, X), "infinity"),
    "text": (np.array([["a", "b"], ["c", "d"]]), "could not convert string|dtype"),
    "one axis": (X[0], "Reshape your data"),
    "three axes": (X[None], "dim"),
    "no rows": (X[:0], "0 sample"),
    "no columns": (X[:, :0], "0 feature"),
    "complex": (X + 1j, "Complex data not supported"),
    "NaN in CSR": (sparse.csr_matrix(np.where(np.arange(6) == 2, np.nan, X)), "contains NaN"),
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_bad_tables(method, fitted, bad):
    data, message = BAD_TABLES[bad]
    model = small(method)
    with pytest.raises(ValueError, match=message):
        model.fit(data)
    with pytest.raises(NotFittedError):
        model.predict(X)
    if bad not in ("no columns", "text"):
        with pytest.raises(ValueError, match=message):
            fitted.predict(data)


@pytest.mark.parametrize(
    "name", ["predict", "predict_proba", "transform", "score_samples", "score", "save"]
)
def test_before_fit(method, tmp_path, name):
    with pytest.raises(NotFittedError, match=f"This {method.__name__} instance is not fitted yet"):
        getattr(small(method), name)(tmp_path / "model" if name == "save" else X)
    assert not (tmp_path / "model").exists()


def test_attributes_before_fit(method):
    for name in ("labels_", "cluster_centers_", "history_", "n_features_in_"):
        assert not hasattr(small(method), name)


def test_another_number_of_columns(fitted):
    for name in ("predict", "predict_proba", "transform", "score_samples", "score"):
        with pytest.raises(ValueError, match=r"X has 5 features, but .* is expecting 6"):
            getattr(fitted, name)(X[:, :5])


@pytest.mark.parametrize("rate", ["lr", "pretrain_lr"])
def test_a_loss_that_diverges_is_an_error(method, rate):
    model = small(method, **{rate: 1e30})
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        model.fit(X)
    with pytest.raises(NotFittedError):
        model.predict(X)


def too_many_clusters(model):
    model.set_params(n_clusters=1000).fit(X[:, :4])


def missing_values(model):
    model.fit(pd.DataFrame(np.full((50, 4), np.nan), columns=list("wxyz")))


def diverging(model):
    model.set_params(lr=1e30).fit(X[:, :4])


def interrupted(model):
    def interrupt(event):
        if event.phase == "self-train":
            raise KeyboardInterrupt

    model.set_callbacks(interrupt).fit(X[:, :4])


@pytest.mark.parametrize("failure", [too_many_clusters, missing_values, diverging, interrupted])
def test_a_fit_that_fails_leaves_the_earlier_one(method, fitted, failure):
    model = small(method).fit(X)
    with pytest.raises((ValueError, FloatingPointError, KeyboardInterrupt)):
        failure(model)
    assert answers(model) == answers(fitted)
    assert np.array_equal(model.labels_, fitted.labels_)
    assert model.n_features_in_ == 6
    assert not hasattr(model, "feature_names_in_")

    fresh = small(method)
    with pytest.raises((ValueError, FloatingPointError, KeyboardInterrupt)):
        failure(fresh)
    with pytest.raises(NotFittedError):
        fresh.predict(X)


# -- odd tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [3, 4, 17, 257])
def test_few_rows(method, n_samples):
    data = blobs(n_samples=n_samples)[0]
    model = small(method).fit(data)
    assert model.labels_.shape == (n_samples,)
    assert np.array_equal(model.predict(data), model.labels_)


def test_one_cluster(method):
    model = small(method, n_clusters=1).fit(X)
    assert set(model.labels_) == {0}
    assert (model.predict_proba(X) == 1).all()
    assert model.score(X) == 0


def test_one_column(method):
    model = small(method).fit(X[:, :1])
    assert np.array_equal(model.predict(X[:, :1]), model.labels_)


def test_rows_out_of_reach(fitted):
    far = X.astype(np.float32) * np.float32(1e25)
    with pytest.raises(ValueError, match="so far from the training data"):
        fitted.predict(far)
    with pytest.raises(ValueError, match="too large for float32"):
        fitted.predict(np.full_like(X, 1e300))


def test_joblib_configuration_of_the_caller(method):
    from joblib import parallel_config

    with parallel_config("loky"):
        small(method).fit(X)
