from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from deepclust.datasets import DatasetError, digits


def test_it_is_the_set_of_scikit_learn(tmp_path):
    bunch = digits.load(data_home=tmp_path / "none")
    theirs = load_digits()
    np.testing.assert_array_equal(bunch.data, theirs.data)
    np.testing.assert_array_equal(bunch.target, theirs.target)
    assert (bunch.data.shape, bunch.target.dtype) == ((1797, 64), np.int64)
    assert bunch.image_shape == (8, 8)
    assert bunch.feature_names == theirs.feature_names
    assert bunch.target_names == [str(label) for label in theirs.target_names]
    assert bunch.n_train is None
    assert bunch.source == ["sklearn.datasets.load_digits"]
    assert not (tmp_path / "none").exists()


def test_the_content_is_checked():
    dataset = replace(digits.DATASET, content_sha256="0" * 64)
    with pytest.raises(DatasetError, match="load_digits does not hold the genuine digits"):
        dataset.load()
