"""USPS: 9,298 digits from US postal codes, 16x16 pixels.

``X`` (9298, 256) is float32 in [-1, 1], ``y`` int64 from 0 to 9: the 7,291 training images in their
published order, then the 2,007 test images.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_svmlight_file

from deepclust.datasets._base import (
    Container,
    Damaged,
    Dataset,
    File,
    Mirror,
    Target,
    Values,
    read_bytes,
    reading,
)

N_PIXELS = 256


def _from_text(train: Path, test: Path) -> tuple[Values, Target]:
    return _split(np.concatenate([_read_text(train), _read_text(test)]))


def _read_text(path: Path) -> npt.NDArray[np.float64]:
    """Read one image per line: label, then the pixels row by row."""
    content = read_bytes(path)
    with reading(path):
        table = np.loadtxt(io.BytesIO(content), comments=None, ndmin=2)
    if table.shape[1] != 1 + N_PIXELS:
        raise Damaged(
            f"has {table.shape[1]} numbers a line, not a label and {N_PIXELS} pixels", path
        )
    return table


def _from_libsvm(train: Path, test: Path) -> tuple[Values, Target]:
    return _split(np.concatenate([_read_libsvm(train), _read_libsvm(test)]))


def _read_libsvm(path: Path) -> npt.NDArray[np.float64]:
    """Read one image per line: label from 1 to 10, then ``index:value`` from index 1."""
    content = read_bytes(path)
    with reading(path):
        X, y = load_svmlight_file(io.BytesIO(content), n_features=N_PIXELS, zero_based=False)
    return np.column_stack([y - 1, X.toarray()])


def _split(table: npt.NDArray[Any]) -> tuple[Values, Target]:
    if not np.isfinite(table).all():
        raise Damaged("holds values that are not finite")
    # The pixels were digitised with three decimals. Rounding to them makes equal what the
    # containers print with more digits; adding zero turns -0.0 into 0.0.
    X = np.rint(table[:, 1:] * 1000) / 1000 + 0.0
    return X.astype(np.float32), table[:, 0].astype(np.int64)


DATASET = Dataset(
    name="usps",
    title="USPS handwritten digits",
    description=(
        "9,298 digits cut from postal codes on envelopes, deslanted and scaled to 16x16 grey "
        "pixels from -1 (paper) to 1 (ink): 7,291 for training, then 2,007 for testing. "
        "10 classes, the largest 17 % of all."
    ),
    licence=(
        "None stated with the data. The R package ElemStatLearn, which carries the same numbers, "
        "is under the GPL (>= 2)."
    ),
    citation=(
        "Y. LeCun et al., Handwritten digit recognition with a back-propagation network, NIPS "
        "1989; J. J. Hull, A database for handwritten text recognition research, IEEE TPAMI 16(5), "
        "1994, 550-554; T. Hastie, R. Tibshirani, J. Friedman, The Elements of Statistical "
        "Learning, Springer, 2001."
    ),
    homepage="https://hastie.su.domains/ElemStatLearn/",
    content_sha256="4c30199edf34471607ca8bb10ff4f8e5ce753823bdcc9cf20d6224c727290bb8",
    containers=(
        Container(
            "text files of The Elements of Statistical Learning",
            read=_from_text,
            # No SHA-256: the copy read so far holds the numbers of the R package, compressed anew.
            files=(
                File("zip.train.gz", also=("zip.train",)),
                File("zip.test.gz", also=("zip.test",)),
            ),
            mirrors=(
                Mirror("https://hastie.su.domains/ElemStatLearn/datasets/{name}"),
                Mirror("https://web.stanford.edu/~hastie/ElemStatLearn/datasets/{name}"),
            ),
            verified=True,
        ),
        Container(
            "LIBSVM files",
            read=_from_libsvm,
            files=(File("usps.bz2", also=("usps",)), File("usps.t.bz2", also=("usps.t",))),
            mirrors=(
                Mirror("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/{name}"),
            ),
        ),
    ),
    target_names=tuple("0123456789"),
    shape=(9298, 256),
    n_train=7_291,
    image_shape=(16, 16),
)

load = DATASET.load
