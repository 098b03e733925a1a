import numpy as np
import pytest
from scipy import sparse
from sklearn.preprocessing import StandardScaler

from deepclust.features import Scaling, fit_scaling

INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.uint64]
NUMBERS = [np.bool_, *INTEGERS, np.float16, np.float32, np.float64, np.longdouble]
SCALINGS = ["unit", "standard", 0.02, None]


def table(seed=0, n=41, d=6):
    """Columns of about the same range, with means away from zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(0, 3, d), rng.uniform(0.5, 2, d), (n, d))


def extremes(dtype):
    """The least and the largest numbers of a type, and some between, in each of two columns."""
    if dtype == np.bool_:
        column = np.array([False, True, True, False, True])
    elif np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        column = np.array([info.min, info.max, info.max, info.max // 2, 0], dtype=dtype)
    else:
        column = np.array([-250, 250, 7, 0, 1], dtype=dtype)
    return np.column_stack([column, column[::-1]])


def mean_square(X):
    rows, columns = X.shape
    return sum(float(X[i, j]) ** 2 for i in range(rows) for j in range(columns)) / (rows * columns)


def in_blocks(X, size):
    return (X[i : i + size] for i in range(0, X.shape[0], size))


class TestUnit:
    def test_worked_by_hand(self):
        # The mean of 9, 16, 0 and 25 is 12.5.
        X = np.array([[3.0, 4.0], [0.0, 5.0]])
        scaling = fit_scaling([X], "unit")
        assert scaling.factor == pytest.approx(12.5**-0.5)
        assert scaling.shift is None
        np.testing.assert_allclose(scaling.apply(X), X / 12.5**0.5, rtol=1e-6)

    @pytest.mark.parametrize("seed", range(5))
    def test_one_factor_makes_the_mean_square_of_the_table_one(self, seed):
        X = table(seed)
        scaled = fit_scaling([X], "unit").apply(X)
        assert mean_square(scaled) == pytest.approx(1)
        # One factor for the whole table, not one for each row or column.
        ratios = scaled / X
        np.testing.assert_allclose(ratios, ratios[0, 0], rtol=1e-5)
        # The paper's rule is about rows: (1/d) |x|² is about 1 on average.
        assert np.mean((scaled**2).sum(axis=1) / X.shape[1]) == pytest.approx(1)

    def test_zeros_count_in_a_sparse_table(self):
        X = sparse.csr_matrix(np.array([[0.0, 2.0, 0.0, 0.0]]))
        assert fit_scaling([X], "unit").factor == pytest.approx(1.0)

    def test_an_all_zero_table_stays(self):
        scaling = fit_scaling([np.zeros((3, 2))], "unit")
        assert not scaling.apply(np.zeros((3, 2))).any()

    def test_values_whose_squares_exceed_float64(self):
        message = r"squares exceed float64; divide its columns by a common factor"
        with pytest.raises(ValueError, match=message):
            fit_scaling([np.array([[1e200, 2e200]])], "unit")


class TestStandard:
    @pytest.mark.parametrize("seed", range(5))
    def test_against_numpy_and_scikit_learn(self, seed):
        X = table(seed)
        X[:, 2] = 7.25  # constant: centred, not blown up
        scaled = fit_scaling([X], "standard").apply(X)
        deviations = X.std(axis=0)
        deviations[2] = 1
        np.testing.assert_allclose(scaled, (X - X.mean(axis=0)) / deviations, atol=1e-6)
        np.testing.assert_allclose(scaled, StandardScaler().fit_transform(X), atol=1e-6)

    def test_a_large_mean_is_not_lost_in_float32(self):
        # One part in 1e8, as in a column of time stamps: float32 alone would see a constant.
        X = 1.7e9 + np.arange(10.0)[:, None] * 3
        scaled = fit_scaling([X], "standard").apply(X)
        expected = (np.arange(10) - 4.5) / np.sqrt(33 / 4)  # variance (10² - 1) / 12
        np.testing.assert_allclose(scaled[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(("number", "factor"), [(0.02, 0.02), (3, 3.0), (np.float32(0.5), 0.5)])
def test_a_number_is_the_factor(number, factor):
    X = table()
    scaling = fit_scaling([X], number)
    assert scaling.factor == factor
    np.testing.assert_allclose(scaling.apply(X), X * factor, rtol=1e-6)


def test_none_leaves_the_values():
    X = table().astype(np.float32)
    np.testing.assert_array_equal(fit_scaling([X], None).apply(X), X)


@pytest.mark.parametrize("scaling", SCALINGS)
class TestAnyScaling:
    @pytest.mark.parametrize("size", [1, 7, 40])
    def test_blocks_give_what_the_whole_gives(self, scaling, size):
        X = table()
        whole, parts = fit_scaling([X], scaling), fit_scaling(in_blocks(X, size), scaling)
        np.testing.assert_allclose(parts.factor, whole.factor, rtol=1e-12)
        if scaling == "standard":
            np.testing.assert_allclose(parts.shift, whole.shift, rtol=1e-12)
        applied = np.concatenate([whole.apply(block) for block in in_blocks(X, size)])
        np.testing.assert_array_equal(applied, whole.apply(X))

    @pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array, sparse.csc_array])
    @pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.float32, np.float64])
    def test_sparse_is_dense(self, scaling, form, dtype):
        X = np.random.default_rng(0).integers(0, 4, (30, 5)) % 3  # a good third are zeros
        X = X.astype(dtype)
        dense, thin = fit_scaling([X], scaling), fit_scaling([form(X)], scaling)
        np.testing.assert_allclose(thin.factor, dense.factor, rtol=1e-12)
        np.testing.assert_allclose(thin.apply(form(X)), dense.apply(X), atol=1e-6)

    @pytest.mark.parametrize("dtype", NUMBERS)
    def test_every_number_type_without_overflow(self, scaling, dtype):
        X = extremes(dtype)
        before = X.copy()
        fitted = fit_scaling([X], scaling)
        scaled = fitted.apply(X)
        exact = X.astype(np.float64)
        if scaling == "unit":
            expected = exact / np.sqrt(mean_square(exact))
        elif scaling == "standard":
            expected = (exact - exact.mean(axis=0)) / exact.std(axis=0)
        else:
            expected = exact * (scaling or 1.0)
        np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-6)
        assert scaled.dtype == np.float32
        np.testing.assert_array_equal(X, before)

    def test_the_result_is_a_writable_copy(self, scaling):
        X = table().astype(np.float32)
        X.setflags(write=False)
        scaled = fit_scaling([X], scaling).apply(X)
        assert scaled.flags.writeable
        assert not np.shares_memory(scaled, X)

    def test_invert_undoes_apply(self, scaling):
        X = table()
        fitted = fit_scaling([X], scaling)
        restored = fitted.invert(fitted.apply(X))
        assert restored.dtype == np.float32
        np.testing.assert_allclose(restored, X, rtol=1e-5, atol=1e-5)

    def test_does_not_change_with_the_data(self, scaling):
        X = table()
        fitted = fit_scaling([X], scaling)
        first = fitted.apply(X)
        fitted.apply(X * 100)
        np.testing.assert_array_equal(fitted.apply(X), first)


class TestRangeOfFloat32:
    def test_large_float64_values_are_scaled_before_they_are_converted(self):
        X = np.array([[1e100, 2e100], [-1e100, 0.0]])
        np.testing.assert_allclose(Scaling(1e-100).apply(X), X * 1e-100, rtol=1e-6)
        scaled = fit_scaling([X], "unit").apply(X)
        assert mean_square(scaled) == pytest.approx(1)

    @pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
    def test_what_remains_too_large_is_an_error(self, dtype):
        with pytest.raises(ValueError, match=r"too large for float32 after scaling; divide"):
            Scaling(1.0).apply(np.array([[1e39]], dtype=dtype))

    @pytest.mark.parametrize("size", [1e-40, 1e-42])
    def test_a_factor_beyond_float32_for_tiny_float32_values(self, size):
        X = np.array([[size, -size], [size, size]], dtype=np.float32)
        scaled = fit_scaling([X], "unit").apply(X)
        np.testing.assert_allclose(scaled, [[1, -1], [1, 1]], rtol=1e-5)

    def test_the_largest_float32_values(self):
        X = np.array([[3e38, -3e38], [3e38, 3e38]], dtype=np.float32)
        scaled = fit_scaling([X], "unit").apply(X)
        np.testing.assert_allclose(scaled, [[1, -1], [1, 1]], rtol=1e-5)


class TestWarning:
    message = r"Columns differ in range by a factor of 500: the widest.*scaling='standard'"
    X = np.column_stack([np.linspace(0, 1, 20), np.linspace(0, 500, 20), np.linspace(0, 60, 20)])

    @pytest.mark.parametrize("scaling", ["unit", None, 0.5])
    @pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
    def test_ranges_that_differ_more_than_a_hundredfold(self, scaling, form):
        with pytest.warns(UserWarning, match=self.message):
            fit_scaling([form(self.X)], scaling)

    def test_over_all_blocks_not_in_each(self):
        X = np.array([[0.0, 0.0], [1.0, 500.0]])
        with pytest.warns(UserWarning, match=self.message):
            fit_scaling(in_blocks(X, 1), "unit")

    # Warnings are errors here, so these fail if there is one.

    def test_not_when_columns_are_standardised(self):
        fit_scaling([self.X], "standard")

    def test_not_at_a_hundredfold_or_for_constant_columns(self):
        X = np.array([[0.0, 0.0, 5e6], [1.0, 100.0, 5e6]])
        fit_scaling([X], "unit")

    def test_not_for_different_means(self):
        fit_scaling([np.array([[0.0, 1e6], [1.0, 1e6 + 1]])], "unit")

    @pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
    def test_not_for_a_column_that_is_almost_always_zero(self, form):
        # The deviations differ 70-fold, and would more so in a longer table; the ranges are one.
        X = np.zeros((20_000, 2))
        X[::2, 0] = 1
        X[7, 1] = 1
        assert X[:, 0].std() > 50 * X[:, 1].std()
        fit_scaling([form(X)], "unit")

    def test_not_for_one_column(self):
        fit_scaling([np.linspace(0, 1e6, 5)[:, None]], "unit")


@pytest.mark.parametrize("scaling", ["Unit", "minmax", True, False, b"unit", [1.0], (), {}])
def test_unknown_scaling(scaling):
    with pytest.raises(ValueError, match=r"scaling=.* is not one of 'unit', 'standard'"):
        fit_scaling([table()], scaling)


@pytest.mark.parametrize("scaling", [0, -1.0, np.inf, np.nan])
def test_the_factor_is_positive_and_finite(scaling):
    with pytest.raises(ValueError, match=r"scaling=.* is not a positive, finite number"):
        fit_scaling([table()], scaling)
