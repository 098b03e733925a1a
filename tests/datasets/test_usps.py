import bz2
import gzip
import re
from dataclasses import replace

import numpy as np
import pytest

from deepclust.datasets import DatasetError, usps
from deepclust.datasets._base import content_sha256, read_bytes

rng = np.random.default_rng(0)
THOUSANDTHS = rng.integers(1, 1001, size=(9, 256)) * rng.choice([-1, 1], size=(9, 256))
THOUSANDTHS[0, :4] = [-1000, 0, -631, 1000]
X = (THOUSANDTHS / 1000).astype(np.float32)
Y = np.array([6, 5, 4, 7, 3, 0, 9, 6, 3])
N_TRAIN = 6

# USPS with nine images, and not published anywhere.
SMALL = replace(
    usps.DATASET,
    content_sha256=content_sha256(X, Y),
    containers=tuple(replace(c, mirrors=()) for c in usps.DATASET.containers),
)


def text(rows, number="{:.4f}", thousandths=THOUSANDTHS):
    lines = [
        " ".join([number.format(label), *(number.format(v) for v in pixels)])
        for label, pixels in zip(Y[rows], thousandths[rows] / 1000, strict=True)
    ]
    return "\n".join([*lines, ""]).encode()


def libsvm(rows, number="{:.8g}", values=X):
    lines = [
        " ".join([str(label + 1), *(f"{i}:{number.format(v)}" for i, v in enumerate(pixels, 1))])
        for label, pixels in zip(Y[rows], values[rows], strict=True)
    ]
    return "\n".join([*lines, ""]).encode()


TRAIN, TEST = slice(N_TRAIN), slice(N_TRAIN, None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "usps").mkdir()
    return tmp_path / "usps"


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def refusal(folder):
    with pytest.raises(DatasetError) as caught:
        SMALL.load(data_home=folder.parent)
    return str(caught.value)


class TestContainers:
    @pytest.mark.parametrize(
        "files",
        [
            {"zip.train.gz": gzip.compress(text(TRAIN)), "zip.test.gz": gzip.compress(text(TEST))},
            {"zip.train": text(TRAIN), "zip.test": text(TEST)},
            {"zip.train": text(TRAIN, "{:g}"), "zip.test.gz": gzip.compress(text(TEST, "{} "))},
            {"usps.bz2": bz2.compress(libsvm(TRAIN)), "usps.t.bz2": bz2.compress(libsvm(TEST))},
            {"usps": libsvm(TRAIN, "{:.6f}"), "usps.t": libsvm(TEST, "{}")},
        ],
        ids=["text compressed", "text", "text, other digits", "libsvm compressed", "libsvm"],
    )
    def test_all_hold_the_same_bits(self, folder, files):
        write(folder, files)
        bunch = SMALL.load(data_home=folder.parent)
        assert bunch.data.tobytes() == X.tobytes()
        np.testing.assert_array_equal(bunch.target, Y)
        assert (bunch.data.dtype, bunch.target.dtype) == (np.float32, np.int64)
        assert bunch.source == [str(folder / name) for name in files]

    def test_libsvm_may_leave_out_zeros(self, folder):
        values = X.copy()
        values[:, [0, 1, 255]] = 0
        rows = [libsvm(part, values=values) for part in (TRAIN, TEST)]
        sparse = [re.sub(rb" \d+:0(?![.\d])", b"", row) for row in rows]
        assert sparse[0].count(b":") == N_TRAIN * 253
        write(folder, {"usps": sparse[0], "usps.t": sparse[1]})
        dataset = replace(SMALL, content_sha256=content_sha256(values, Y))
        assert dataset.load(data_home=folder.parent).data.tobytes() == values.tobytes()

    def test_zero_has_one_sign(self, folder):
        train = text(TRAIN).replace(b" 0.0000 ", b" -0.0000 ")
        assert train != text(TRAIN)
        write(folder, {"zip.train": train, "zip.test": text(TEST)})
        assert SMALL.load(data_home=folder.parent).data.tobytes() == X.tobytes()


class TestDamage:
    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (gzip.compress(text(TRAIN))[:-9], "cannot be read: Compressed file ended before"),
            (text(TRAIN)[:-20], "cannot be read: the number of columns changed"),
            (text(TRAIN).replace(b"1.0000", b"x", 1), "cannot be read: could not convert string"),
            (b"6 -1 -1\n", "has 3 numbers a line, not a label and 256 pixels"),
            (b"", "is empty"),
            (b"\n", "is empty"),
        ],
        ids=["cut off", "line", "letter", "columns", "empty", "blank"],
    )
    def test_of_a_text_file(self, folder, content, what):
        write(folder, {"zip.train.gz": content, "zip.test": text(TEST)})
        assert refusal(folder).startswith(f"{folder / 'zip.train.gz'} {what}")

    def test_of_a_libsvm_file(self, folder):
        write(folder, {"usps": libsvm(TRAIN).replace(b"7:", b"x:"), "usps.t": libsvm(TEST)})
        assert refusal(folder).startswith(f"{folder / 'usps'} cannot be read: ")

    def test_altered_values_are_refused(self, folder):
        altered = THOUSANDTHS.copy()
        altered[2, 100] += 1
        write(folder, {"zip.train": text(TRAIN, thousandths=altered), "zip.test": text(TEST)})
        assert "does not hold the genuine usps" in refusal(folder)

    def test_values_that_are_no_numbers_are_refused(self, folder):
        train = text(TRAIN).replace(b" 1.0000", b" nan", 1)
        write(folder, {"zip.train": train, "zip.test": text(TEST)})
        assert "holds values that are not finite" in refusal(folder)


class TestGenuine:
    def test_is_the_published_set(self, genuine_home, folder):
        home = genuine_home("usps")
        bunch = usps.load(data_home=home)
        assert (bunch.data.shape, bunch.data.dtype) == ((9_298, 256), np.float32)
        assert (bunch.data.min(), bunch.data.max()) == (-1, 1)
        assert (bunch.n_train, bunch.image_shape) == (7_291, (16, 16))
        train, test = bunch.target[:7_291], bunch.target[7_291:]
        assert train[:8].tolist() == [6, 5, 4, 7, 3, 6, 3, 1]
        assert test[:8].tolist() == [9, 6, 3, 6, 6, 0, 0, 0]
        assert np.bincount(train).tolist() == [
            *(1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644)
        ]
        assert np.bincount(test).tolist() == [*(359, 264, 198, 166, 200, 160, 170, 147, 166, 177)]

    def test_uncompressed_is_accepted_and_altered_refused(self, genuine_home, folder):
        container, paths = usps.DATASET._find(genuine_home("usps") / "usps")
        if container.title != usps.DATASET.containers[0].title:
            pytest.skip("needs USPS as zip.train and zip.test; this copy is in another form")
        train, test = (read_bytes(path) for path in paths)
        write(folder, {"zip.train": train, "zip.test": test})
        assert len(usps.load(data_home=folder.parent).data) == 9_298
        write(folder, {"zip.test": test.replace(b"-0.9", b"-0.8", 1)})
        with pytest.raises(DatasetError, match="does not hold the genuine usps"):
            usps.load(data_home=folder.parent)
