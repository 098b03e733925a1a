from itertools import permutations
from math import comb, log

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from deepclust.metrics import ari, clustering_accuracy, confusion, nmi

METRICS = [clustering_accuracy, nmi, ari]


def random_labels(seed):
    """Two labellings of the same samples with different numbers of groups."""
    rng = np.random.default_rng(seed)
    n_samples = int(rng.integers(1, 25))
    n_classes, n_clusters = rng.integers(1, 6, size=2)
    return rng.integers(n_classes, size=n_samples), rng.integers(n_clusters, size=n_samples)


def counts(y_true, y_pred):
    """Contingency table as nested lists, by looking at each pair of labels."""
    return [
        [sum((t, p) == (a, b) for t, p in zip(y_true, y_pred, strict=True)) for b in set(y_pred)]
        for a in set(y_true)
    ]


def best_matching(y_true, y_pred):
    """Accuracy by trying every one-to-one mapping."""
    table = counts(y_true.tolist(), y_pred.tolist())
    if len(table) > len(table[0]):
        table = [list(column) for column in zip(*table, strict=True)]
    columns = range(len(table[0]))
    return max(
        sum(row[j] for row, j in zip(table, chosen, strict=True))
        for chosen in permutations(columns, len(table))
    ) / len(y_true)


def nmi_by_definition(y_true, y_pred):
    table, n = counts(y_true.tolist(), y_pred.tolist()), len(y_true)
    rows, columns = [sum(row) for row in table], [sum(c) for c in zip(*table, strict=True)]
    information = sum(
        cell / n * log(n * cell / (rows[i] * columns[j]))
        for i, row in enumerate(table)
        for j, cell in enumerate(row)
        if cell
    )
    entropies = [-sum(m / n * log(m / n) for m in sizes) for sizes in (rows, columns)]
    return 1.0 if sum(entropies) == 0 else information / (sum(entropies) / 2)


def ari_by_definition(y_true, y_pred):
    pairs = [(i, j) for i in range(len(y_true)) for j in range(i)]
    same_class = sum(y_true[i] == y_true[j] for i, j in pairs)
    same_cluster = sum(y_pred[i] == y_pred[j] for i, j in pairs)
    both = sum(y_true[i] == y_true[j] and y_pred[i] == y_pred[j] for i, j in pairs)
    if not pairs:
        return 1.0
    expected = same_class * same_cluster / comb(len(y_true), 2)
    largest = (same_class + same_cluster) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


class TestClusteringAccuracy:
    @pytest.mark.parametrize(
        ("y_true", "y_pred", "expected"),
        [
            ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
            ([0, 0, 1, 1], [0, 1, 0, 1], 0.5),
            # Both classes prefer cluster 0; the first having it would cost a sample.
            ([0, 0, 0, 1, 1, 1, 1], [0, 0, 5, 0, 0, 0, 5], 4 / 7),
            ([0, 0, 0, 0], [0, 1, 2, 3], 0.25),  # one class in many clusters: one of them counts
            ([0, 1, 2, 3], [7, 7, 7, 7], 0.25),
            ([3], [9], 1.0),
        ],
    )
    def test_worked_by_hand(self, y_true, y_pred, expected):
        assert clustering_accuracy(y_true, y_pred) == pytest.approx(expected)

    @pytest.mark.parametrize("seed", range(60))
    def test_is_the_best_of_all_matchings(self, seed):
        y_true, y_pred = random_labels(seed)
        assert clustering_accuracy(y_true, y_pred) == pytest.approx(best_matching(y_true, y_pred))

    def test_many_samples_at_once(self):
        y_true = np.arange(70_000) % 10
        y_pred = (y_true + 3) % 10
        y_pred[:700] = y_pred[0]  # 70 of them belong there
        assert clustering_accuracy(y_true, y_pred) == pytest.approx(1 - 630 / 70_000)


@pytest.mark.parametrize("seed", range(60))
def test_nmi_and_ari_follow_their_definitions_and_scikit_learn(seed):
    y_true, y_pred = random_labels(seed)
    assert nmi(y_true, y_pred) == pytest.approx(nmi_by_definition(y_true, y_pred), abs=1e-12)
    assert ari(y_true, y_pred) == pytest.approx(ari_by_definition(y_true, y_pred), abs=1e-12)
    assert nmi(y_true, y_pred) == pytest.approx(normalized_mutual_info_score(y_true, y_pred))
    assert ari(y_true, y_pred) == pytest.approx(adjusted_rand_score(y_true, y_pred))


def test_nmi_takes_the_arithmetic_mean_of_the_entropies():
    # Classes halve the samples, H = 1 bit; clusters quarter them, H = 2 bit; they share 1 bit.
    y_true, y_pred = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]
    assert nmi(y_true, y_pred) == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda y: [{0: -1, 1: 40, 2: 7}[label] for label in y], id="gaps"),
        pytest.param(lambda y: [{0: "ape", 1: "bee", 2: "cat"}[label] for label in y], id="words"),
        pytest.param(lambda y: np.array(["ape", "bee", "cat"])[y], id="array of words"),
        pytest.param(lambda y: np.array(y, dtype=object), id="objects"),
        pytest.param(lambda y: [(label, "x") for label in y], id="tuples"),
        pytest.param(lambda y: np.array(y) + 0.5, id="floats"),
        pytest.param(lambda y: [{0: 1, 1: "1", 2: None}[label] for label in y], id="mixed types"),
        pytest.param(tuple, id="tuple"),
    ],
)
def test_only_the_partition_counts_not_the_names(metric, rename):
    y_true, y_pred = [0, 0, 0, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 2, 2, 1]
    plain = metric(y_true, y_pred)
    assert isinstance(plain, float)
    assert metric(rename(y_true), y_pred) == pytest.approx(plain)
    assert metric(y_true, rename(y_pred)) == pytest.approx(plain)


def test_tensors_and_series_are_labels():
    torch = pytest.importorskip("torch")
    pandas = pytest.importorskip("pandas")
    y_true, y_pred = torch.tensor([0, 0, 1]), pandas.Series(["a", "a", "b"], index=[5, 6, 7])
    assert clustering_accuracy(y_true, y_pred) == 1.0


class TestConfusion:
    def test_worked_by_hand(self):
        y_true = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
        y_pred = [2, 2, 2, 0, 0, 0, 1, 1, 1]
        matrix, classes, clusters = confusion(y_true, y_pred)
        assert classes == ["a", "b", "c"]
        assert clusters == [2, 0, 1]
        np.testing.assert_array_equal(matrix, [[3, 1, 0], [0, 2, 1], [0, 0, 2]])
        assert matrix.dtype == np.int64

    def test_classes_are_sorted_whatever_comes_first(self):
        matrix, classes, clusters = confusion(["b", "a", "a"], [0, 1, 1])
        assert (classes, clusters) == (["a", "b"], [1, 0])
        np.testing.assert_array_equal(matrix, [[2, 0], [0, 1]])

    def test_clusters_without_a_class_follow_largest_first(self):
        matrix, classes, clusters = confusion([0] * 10, [4] * 2 + [1] * 5 + [3] + [9] * 2)
        assert (classes, clusters) == ([0], [1, 4, 9, 3])
        np.testing.assert_array_equal(matrix, [[5, 2, 2, 1]])

    def test_classes_without_a_cluster_follow(self):
        matrix, classes, clusters = confusion(["a", "b", "b", "c", "c", "c"], [0, 0, 0, 1, 1, 1])
        assert (classes, clusters) == (["b", "c", "a"], [0, 1])
        np.testing.assert_array_equal(matrix, [[2, 0], [0, 3], [1, 0]])

    @pytest.mark.parametrize("seed", range(30))
    def test_its_diagonal_is_the_accuracy_and_its_cells_are_the_counts(self, seed):
        y_true, y_pred = random_labels(seed)
        matrix, classes, clusters = confusion(y_true, y_pred)
        assert matrix.trace() / matrix.sum() == pytest.approx(clustering_accuracy(y_true, y_pred))
        for row, label in zip(matrix, classes, strict=True):
            expected = [np.sum((y_true == label) & (y_pred == cluster)) for cluster in clusters]
            assert row.tolist() == expected
        assert sorted(classes) == sorted(set(y_true.tolist()))
        assert sorted(clusters) == sorted(set(y_pred.tolist()))


@pytest.mark.parametrize("metric", [*METRICS, confusion])
@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([0, 1, 1], [0, 1], r"y_true has 3 labels and y_pred has 2; .* same order"),
        (np.eye(3), [0, 1, 2], r"y_true has shape \(3, 3\); pass one label per sample.*argmax"),
        ([0, 1, 2], np.zeros((3, 1)), r"y_pred has shape \(3, 1\); pass one label"),
        ([0, 1], [[0], [1]], r"y_pred is not a sequence of hashable labels; pass one label"),
        (np.array(3), [3], r"y_true has shape \(\); pass one label"),
        (3, [3], r"y_true is not a sequence of hashable labels"),
        ([], [], r"y_true is empty; pass the labels"),
        (np.array([0]), np.array([]), r"y_pred is empty"),
        (np.array([0.0, np.nan]), [0, 1], r"y_true holds NaN, which is no label"),
    ],
)
def test_errors_say_what_was_given_and_what_to_do(metric, y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        metric(y_true, y_pred)
