"""The digits that come with scikit-learn: 1,797 images of 8x8, no file and no network needed.

``X`` (1797, 64) is float64 with whole numbers from 0 to 16, ``y`` int64 from 0 to 9. There is no
customary split.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from deepclust.datasets._base import Container, Dataset, Target, Values


def _from_scikit_learn() -> tuple[Values, Target]:
    X, y = load_digits(return_X_y=True)
    return X, y.astype(np.int64, copy=False)


DATASET = Dataset(
    name="digits",
    title="Optical recognition of handwritten digits, test part",
    description=(
        "1,797 handwritten digits by 13 people, 8x8 pixels. Each pixel counts the dark points of a "
        "4x4 block of a binary 32x32 image, so it runs from 0 to 16. 10 classes of 174 to 183."
    ),
    licence=(
        "A copy is part of scikit-learn (BSD 3-Clause). "
        "The UCI Machine Learning Repository asks to be cited."
    ),
    citation=(
        "E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, 1998."
    ),
    homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    content_sha256="0b3e4ee14f82503950f2fd8375b2e78056c1dd5ef2cb04e4cd0cc4827c0e6bb6",
    containers=(Container("sklearn.datasets.load_digits", read=_from_scikit_learn, verified=True),),
    target_names=tuple("0123456789"),
    shape=(1797, 64),
    image_shape=(8, 8),
)

load = DATASET.load
