"""MNIST: 70,000 handwritten digits of 28x28 pixels.

``X`` (70000, 784) is uint8, ``y`` int64 from 0 to 9: the 60,000 training images in their published
order, then the 10,000 test images. The authors of DEC pretrain on the first 60,000 (``n_train``)
and cluster all 70,000.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepclust.datasets._base import (
    Container,
    Damaged,
    Dataset,
    File,
    Mirror,
    Target,
    Values,
    read_bytes,
)


def _from_idx(
    train_images: Path, train_labels: Path, test_images: Path, test_labels: Path
) -> tuple[Values, Target]:
    return _stack(
        _read_idx(train_images, n_axes=3),
        _read_idx(train_labels, n_axes=1),
        _read_idx(test_images, n_axes=3),
        _read_idx(test_labels, n_axes=1),
    )


def _read_idx(path: Path, n_axes: int) -> npt.NDArray[np.uint8]:
    """Read an array of unsigned bytes: 0 0 8 n_axes, n_axes big-endian int32 sizes, the bytes."""
    content = read_bytes(path)
    start = 4 + 4 * n_axes
    if content[:4] != bytes((0, 0, 8, n_axes)) or len(content) < start:
        raise Damaged(f"is not an IDX file of unsigned bytes with {n_axes} axes", path)
    shape = np.frombuffer(content, dtype=">i4", count=n_axes, offset=4).tolist()
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if len(values) != math.prod(shape):
        raise Damaged(
            f"holds {len(values)} bytes of data where its header says {math.prod(shape)}", path
        )
    return values.reshape(shape)


def _from_npz(path: Path) -> tuple[Values, Target]:
    if not zipfile.is_zipfile(path):
        raise Damaged("is not a complete npz archive", path)
    keys = ("x_train", "y_train", "x_test", "y_test")
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in keys if key not in archive]
        if missing:
            raise Damaged(f"lacks {', '.join(missing)}", path)
        return _stack(*(archive[key] for key in keys))


def _stack(
    train_images: npt.NDArray[Any],
    train_labels: npt.NDArray[Any],
    test_images: npt.NDArray[Any],
    test_labels: npt.NDArray[Any],
) -> tuple[Values, Target]:
    X = np.concatenate([train_images, test_images])
    y = np.concatenate([train_labels, test_labels])
    return X.reshape(len(X), -1), y.astype(np.int64)


DATASET = Dataset(
    name="mnist",
    title="MNIST handwritten digits",
    description=(
        "70,000 handwritten digits, 28x28 grey pixels from 0 (paper) to 255 (ink): 60,000 for "
        "training, then 10,000 for testing. 10 classes, the largest 11 % of all."
    ),
    licence="Usually stated as CC BY-SA 3.0 (Yann LeCun and Corinna Cortes).",
    citation=(
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document "
        "recognition, Proceedings of the IEEE 86(11), 1998, 2278-2324."
    ),
    homepage="http://yann.lecun.com/exdb/mnist/",
    content_sha256="aab2d3960bf1c60aa37e95536dc194732c103bb56ee19bda838082b237d282f2",
    containers=(
        Container(
            "IDX files",
            read=_from_idx,
            files=(
                File(
                    "train-images-idx3-ubyte.gz",
                    also=("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
                    sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                File(
                    "train-labels-idx1-ubyte.gz",
                    also=("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
                    sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                File(
                    "t10k-images-idx3-ubyte.gz",
                    also=("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
                    sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                File(
                    "t10k-labels-idx1-ubyte.gz",
                    also=("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
                    sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            mirrors=(  # those of torchvision and of the TensorFlow models
                Mirror("https://ossci-datasets.s3.amazonaws.com/mnist/{name}"),
                Mirror("https://storage.googleapis.com/cvdf-datasets/mnist/{name}"),
            ),
            verified=True,
        ),
        Container(
            "the archive of Keras",
            read=_from_npz,
            files=(File("mnist.npz"),),
            mirrors=(Mirror("https://storage.googleapis.com/tensorflow/tf-keras-datasets/{name}"),),
        ),
    ),
    target_names=tuple("0123456789"),
    shape=(70_000, 784),
    n_train=60_000,
    image_shape=(28, 28),
)

load = DATASET.load
