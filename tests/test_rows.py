import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_array

from deepclust.features import Scaling, fit_scaling
from deepclust.rows import Rows, check_rows

CPU = torch.device("cpu")


def table(n=50, d=6, seed=0):
    """A table with zeros, so that it is worth a sparse form."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, d)) < 0.4, rng.normal(size=(n, d)), 0.0)


@pytest.fixture
def memory_map(tmp_path):
    """Write an array to a file and open it for reading only."""

    def write(X):
        path = tmp_path / "X.npy"
        np.save(path, X)
        return np.load(path, mmap_mode="r")

    return write


@pytest.fixture
def densified(monkeypatch):
    """Rows of each sparse matrix that was turned into an array."""
    rows = []
    for form in (sparse.csr_matrix, sparse.csr_array):
        original = form.toarray

        def toarray(self, *args, original=original, **kwargs):
            rows.append(self.shape[0])
            return original(self, *args, **kwargs)

        monkeypatch.setattr(form, "toarray", toarray)
        monkeypatch.setattr(form, "todense", toarray)
    return rows


FORMS = {
    "array": lambda X: X,
    "Fortran order": np.asfortranarray,
    "every other row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "float32": lambda X: X.astype(np.float32),
    "CSR matrix": sparse.csr_matrix,
    "CSR array": sparse.csr_array,
    "CSC matrix": sparse.csc_matrix,
    "COO matrix": sparse.coo_matrix,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
class TestRows:
    scaling = Scaling(np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6))

    def rows(self, form):
        X = table()
        expected = ((X - self.scaling.shift) * self.scaling.factor).astype(np.float32)
        return Rows(form(X), self.scaling, CPU), expected

    def test_shape(self, form):
        rows, _ = self.rows(form)
        assert (len(rows), rows.n_features) == (50, 6)

    @pytest.mark.parametrize(
        "index", [[0], [49, 0, 7], [3, 3, 3], list(range(50)), []], ids=lambda i: f"{len(i)} rows"
    )
    def test_a_batch_is_fancy_indexing(self, form, index):
        rows, expected = self.rows(form)
        index = np.array(index, dtype=np.int64)
        batch = rows.batch(index)
        assert batch.dtype == torch.float32
        assert batch.device == CPU
        np.testing.assert_allclose(batch, expected[index], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("size", [1, 7, 25, 50, 1000])
    def test_blocks_are_all_rows_in_order(self, form, size):
        rows, expected = self.rows(form)
        blocks = list(rows.blocks(size))
        assert [len(block) for block in blocks[:-1]] == [min(size, 50)] * (len(blocks) - 1)
        assert 0 < len(blocks[-1]) <= size
        np.testing.assert_allclose(torch.cat(blocks), expected, rtol=1e-5, atol=1e-6)

    def test_batches_may_be_written_to(self, form):
        rows, expected = self.rows(form)
        rows.batch(np.arange(3)).zero_()
        next(rows.blocks(3)).zero_()
        np.testing.assert_allclose(rows.batch(np.arange(3)), expected[:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(2.0), Scaling(1.0, np.ones(6))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_a_read_only_memory_map_is_left_as_it_is(memory_map, scaling, dtype):
    X = (table() * 10).astype(dtype)
    mapped = memory_map(X)
    checked = check_rows(BaseEstimator(), mapped, reset=True)
    assert np.shares_memory(checked, mapped)
    rows = Rows(checked, scaling, CPU)
    for tensor in (rows.batch(np.arange(5)), *rows.blocks(20)):
        tensor.fill_(-1)
    np.testing.assert_array_equal(mapped, X)
    np.testing.assert_array_equal(np.load(mapped.filename), X)


def test_a_memory_map_is_read_piece_by_piece(memory_map):
    X = memory_map(np.ones((20_000, 50), dtype=np.float32))
    rows = Rows(X, fit_scaling((X[i : i + 100] for i in range(0, 20_000, 100)), "unit"), CPU)
    tracemalloc.start()
    for _ in rows.blocks(100):
        pass
    rows.batch(np.arange(0, 20_000, 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 20


class TestSparse:
    @pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix])
    @pytest.mark.parametrize("scaling", ["unit", "standard", None])
    def test_is_only_densified_block_by_block(self, densified, form, scaling):
        checked = check_rows(BaseEstimator(), form(table(500)), reset=True)
        assert sparse.issparse(checked)
        fitted = fit_scaling((checked[i : i + 20] for i in range(0, 500, 20)), scaling)
        rows = Rows(checked, fitted, CPU)
        rows.batch(np.arange(30))
        assert max(densified) == 30
        blocks = list(rows.blocks(40))
        assert len(blocks) == 13
        assert max(densified) == 40

    def test_the_count_above_can_fail(self, densified):
        sparse.csr_matrix(table(500)).toarray()
        assert densified == [500]

    def test_columns_sorted_or_not_are_the_same_rows(self):
        X = sparse.csr_matrix(
            (np.array([1.0, 2.0, 3.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3)
        )
        rows = Rows(check_rows(BaseEstimator(), X, reset=True), Scaling(), CPU)
        assert rows.batch(np.arange(2)).tolist() == [[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]


class TestCheckRows:
    @pytest.mark.parametrize(
        "dtype", [np.bool_, np.uint8, np.int8, np.int64, np.float16, np.float32, np.float64]
    )
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_arrays_are_handed_on_without_a_copy(self, dtype, order):
        X = np.asarray(table() * 10, dtype=dtype, order=order)
        checked = check_rows(BaseEstimator(), X, reset=True)
        assert checked.dtype == dtype
        assert np.shares_memory(checked, X)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
    def test_sparse_matrices_keep_their_type_and_data(self, dtype):
        X = sparse.csr_matrix(table() * 10).astype(dtype)
        checked = check_rows(BaseEstimator(), X, reset=True)
        assert checked.format == "csr"
        assert checked.dtype == dtype
        assert np.shares_memory(checked.data, X.data)

    def test_lists_and_objects_that_hold_numbers(self):
        for X in ([[1, 2], [3, 4]], np.array([[1, 2.5], [3, 4]], dtype=object)):
            checked = check_rows(BaseEstimator(), X, reset=True)
            np.testing.assert_array_equal(checked, np.array(X, dtype=float))

    @pytest.mark.parametrize(
        ("X", "problem"),
        [
            pytest.param(np.array([[1.0, np.nan]]), "NaN", id="NaN"),
            pytest.param(np.array([[1.0, np.inf]]), "infinity", id="inf"),
            pytest.param(np.array([1.0, 2.0]), "Expected 2D array", id="1-D"),
            pytest.param(np.zeros((2, 2, 2)), "dim 3", id="3-D"),
            pytest.param(np.zeros((0, 3)), "0 sample", id="no rows"),
            pytest.param(np.zeros((3, 0)), "0 feature", id="no columns"),
            pytest.param(np.array([["a", "b"]]), "dtype='numeric'", id="words"),
            pytest.param(np.array([[1j, 2]]), "[Cc]omplex", id="complex"),
            pytest.param(sparse.csr_matrix([[np.nan, 1.0]]), "NaN", id="NaN in CSR"),
        ],
    )
    def test_refuses_what_scikit_learn_refuses(self, X, problem):
        with pytest.raises(ValueError, match=problem):
            check_array(X, accept_sparse="csr")
        with pytest.raises(ValueError, match=problem):
            check_rows(BaseEstimator(), X, reset=True)

    def test_the_number_of_columns_is_kept_and_compared(self):
        estimator = BaseEstimator()
        check_rows(estimator, table(d=6), reset=True)
        assert estimator.n_features_in_ == 6
        with pytest.raises(ValueError, match="X has 5 features, but BaseEstimator is expecting 6"):
            check_rows(estimator, table(d=5), reset=False)


class TestDataFrames:
    def mixed(self, n=5):
        return pd.DataFrame(
            {
                "a": np.arange(n, dtype=np.int8) - 2,
                "b": np.linspace(0, 1, n),
                "c": np.arange(n) % 2 == 0,
                "d": np.linspace(-1, 0, n, dtype=np.float32),
            }
        )

    def test_several_number_types_become_float32(self):
        frame = self.mixed()
        before = frame.copy()
        checked = check_rows(BaseEstimator(), frame, reset=True)
        assert checked.dtype == np.float32
        expected = [[row.a, row.b, row.c, row.d] for row in frame.itertuples()]
        np.testing.assert_array_equal(checked, np.array(expected, dtype=np.float32))
        pd.testing.assert_frame_equal(frame, before)

    @pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64, np.bool_])
    def test_one_number_type_is_kept(self, dtype):
        frame = pd.DataFrame(np.eye(3, dtype=dtype), columns=list("abc"))
        checked = check_rows(BaseEstimator(), frame, reset=True)
        assert checked.dtype == dtype
        np.testing.assert_array_equal(checked, np.eye(3, dtype=dtype))

    def test_several_types_do_not_pass_through_float64(self):
        n = 40_000
        frame = pd.DataFrame(
            {f"x{i}": np.ones(n, dtype=np.int16 if i % 2 else np.float32) for i in range(20)}
        )
        check_rows(BaseEstimator(), frame[:10], reset=True)  # imports and caches
        tracemalloc.start()
        checked = check_rows(BaseEstimator(), frame, reset=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert checked.dtype == np.float32
        assert checked.nbytes == n * 20 * 4
        assert peak < 1.5 * checked.nbytes  # float64 alone would be twice that

    def test_time_stamps_keep_their_differences(self):
        frame = pd.DataFrame({"t": 1_700_000_000 + np.arange(60), "b": np.linspace(0, 1, 60)})
        checked = check_rows(BaseEstimator(), frame, reset=True)
        assert checked[:, 0].tolist() == frame["t"].tolist()

    def test_nullable_numbers(self):
        frame = self.mixed()
        frame["e"] = pd.array([1, 2, 3, 4, 5], dtype="Int64")
        checked = check_rows(BaseEstimator(), frame, reset=True)
        assert checked.dtype == np.float32
        assert checked[:, 4].tolist() == [1, 2, 3, 4, 5]
        frame.loc[2, "e"] = None
        with pytest.raises(ValueError, match="contains NaN"):
            check_rows(BaseEstimator(), frame, reset=True)

    @pytest.mark.parametrize("column", ["a", "b"])
    def test_missing_values_and_words_are_refused(self, column):
        frame = self.mixed().astype({column: float})
        frame.loc[1, column] = np.nan
        with pytest.raises(ValueError, match="contains NaN"):
            check_rows(BaseEstimator(), frame, reset=True)
        frame = self.mixed().astype({column: object})
        frame.loc[1, column] = "ape"
        with pytest.raises(ValueError, match="could not convert string to float"):
            check_rows(BaseEstimator(), frame, reset=True)

    @pytest.mark.parametrize("kind", ["mixed", "one type"])
    def test_names_are_kept_and_compared(self, kind):
        frame = self.mixed() if kind == "mixed" else self.mixed().astype(float)
        estimator = BaseEstimator()
        check_rows(estimator, frame, reset=True)
        assert estimator.feature_names_in_.tolist() == ["a", "b", "c", "d"]
        assert estimator.n_features_in_ == 4
        check_rows(estimator, frame, reset=False)
        for other in (frame[["b", "a", "c", "d"]], frame[["a", "b"]]):
            with pytest.raises(ValueError, match="feature names should match"):
                check_rows(estimator, other, reset=False)
