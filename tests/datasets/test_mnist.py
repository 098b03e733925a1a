import gzip
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from deepclust.datasets import DatasetError, mnist
from deepclust.datasets._base import Mirror, content_sha256

rng = np.random.default_rng(0)
TRAIN_X = rng.integers(256, size=(7, 28, 28), dtype=np.uint8)
TEST_X = rng.integers(256, size=(3, 28, 28), dtype=np.uint8)
TRAIN_Y = np.array([5, 0, 4, 1, 9, 2, 1], dtype=np.uint8)
TEST_Y = np.array([7, 2, 1], dtype=np.uint8)
X = np.concatenate([TRAIN_X, TEST_X]).reshape(10, 784)
Y = np.array([5, 0, 4, 1, 9, 2, 1, 7, 2, 1])

# MNIST with ten images, and not published anywhere.
SMALL = replace(
    mnist.DATASET,
    content_sha256=content_sha256(X, Y),
    containers=tuple(replace(c, mirrors=()) for c in mnist.DATASET.containers),
)


def idx(array):
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files():
    return {
        "train-images-idx3-ubyte": idx(TRAIN_X),
        "train-labels-idx1-ubyte": idx(TRAIN_Y),
        "t10k-images-idx3-ubyte": idx(TEST_X),
        "t10k-labels-idx1-ubyte": idx(TEST_Y),
    }


def gzipped(files):
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mnist").mkdir()
    return tmp_path / "mnist"


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def refusal(folder):
    with pytest.raises(DatasetError) as caught:
        SMALL.load(data_home=folder.parent)
    return str(caught.value)


class TestContainers:
    def check(self, folder):
        bunch = SMALL.load(data_home=folder.parent)
        np.testing.assert_array_equal(bunch.data, X)
        np.testing.assert_array_equal(bunch.target, Y)
        assert (bunch.data.dtype, bunch.target.dtype) == (np.uint8, np.int64)
        bunch.data[0, 0] = 1  # the caller's own, not a view of a file

    def test_idx_compressed(self, folder):
        write(folder, gzipped(idx_files()))
        self.check(folder)

    def test_idx(self, folder):
        write(folder, idx_files())
        self.check(folder)

    def test_idx_with_dots_in_the_names(self, folder):
        write(folder, {name.replace("-idx", ".idx"): c for name, c in idx_files().items()})
        self.check(folder)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_keras_archive(self, folder, save):
        arrays = {"x_train": TRAIN_X, "y_train": TRAIN_Y, "x_test": TEST_X, "y_test": TEST_Y}
        save(folder / "mnist.npz", **arrays)
        self.check(folder)

    def test_fetched(self, folder, server):
        server.files = gzipped(idx_files())
        idx_container, keras = SMALL.containers
        containers = (replace(idx_container, mirrors=(Mirror(server.url),)), keras)
        X_, y = replace(SMALL, containers=containers).load(data_home=folder.parent, return_X_y=True)
        np.testing.assert_array_equal(X_, X)
        np.testing.assert_array_equal(y, Y)
        self.check(folder)


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda c: c[:-1], "holds 5487 bytes of data where its header says 5488"),
            (lambda c: c + b"\0", "holds 5489 bytes of data where its header says 5488"),
            (lambda c: c[:9], "is not an IDX file of unsigned bytes with 3 axes"),
            (lambda c: b"\0\0\x0d" + c[3:], "is not an IDX file of unsigned bytes with 3 axes"),
            (lambda c: idx(TRAIN_Y), "is not an IDX file of unsigned bytes with 3 axes"),
            (lambda c: gzip.compress(c)[:-20], "cannot be read: Compressed file ended before"),
            (lambda c: idx(TRAIN_X[:, :14]), "cannot be read: all the input array dimensions"),
            (lambda c: c[:-1] + bytes([c[-1] ^ 1]), "does not hold the genuine mnist"),
        ],
        ids=["short", "long", "header", "floats", "labels", "cut off", "shape", "pixel"],
    )
    def test_of_an_idx_file(self, folder, change, what):
        files = idx_files()
        files["train-images-idx3-ubyte"] = change(files["train-images-idx3-ubyte"])
        write(folder, files)
        message = refusal(folder)
        assert message.startswith(str(folder / "train-images-idx3-ubyte"))
        assert what in message

    def test_labels_and_images_exchanged_between_train_and_test(self, folder):
        files = idx_files()
        names = ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"]
        files |= {names[0]: files[names[1]], names[1]: files[names[0]]}
        write(folder, files)
        assert "does not hold the genuine mnist" in refusal(folder)

    def test_of_the_archive(self, folder):
        path = folder / "mnist.npz"
        arrays = {"x_train": TRAIN_X, "y_train": TRAIN_Y, "x_test": TEST_X}
        np.savez(path, **arrays)
        assert refusal(folder).startswith(f"{path} lacks y_test.")
        np.savez(path, **arrays, y_test=TEST_Y)
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        assert refusal(folder).startswith(f"{path} is not a complete npz archive.")
        path.write_bytes(whole.replace(TEST_Y.tobytes(), b"\1\2\3"))
        assert refusal(folder).startswith(f"{path} cannot be read: Bad CRC-32")
        path.write_text("no archive")
        assert refusal(folder).startswith(f"{path} is not a complete npz archive.")

    def test_no_pickle_is_loaded(self, folder):
        path = folder / "mnist.npz"
        arrays = {"x_train": TRAIN_X, "y_train": TRAIN_Y, "x_test": TEST_X}
        np.savez(path, **arrays, y_test=TEST_Y.astype(object))
        assert zipfile.is_zipfile(path)
        assert "allow_pickle=False" in refusal(folder)

    def test_one_file_of_four_is_missing(self, folder):
        files = gzipped(idx_files())
        del files["t10k-labels-idx1-ubyte.gz"]
        write(folder, files)
        assert refusal(folder).startswith(f"mnist lacks t10k-labels-idx1-ubyte.gz in {folder}. Put")


def test_offline_the_error_names_files_place_and_urls(tmp_path, monkeypatch):
    def unreachable(url, path):
        raise ConnectionError("no network")

    monkeypatch.setattr("deepclust.datasets._base._download", unreachable)
    with pytest.raises(DatasetError) as caught:
        mnist.load(data_home=tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "mnist") in message
    for file in mnist.DATASET.containers[0].files:
        assert file.name in message
    assert "https://ossci-datasets.s3.amazonaws.com/mnist/" in message
    assert "or mnist.npz" in message
    assert "DEEPCLUST_DATA" in message


@pytest.fixture
def genuine(genuine_home):
    return mnist.load(data_home=genuine_home("mnist"))


class TestGenuine:
    def test_is_the_published_set(self, genuine):
        assert (genuine.data.shape, genuine.data.dtype) == ((70_000, 784), np.uint8)
        assert (genuine.target.shape, genuine.target.dtype) == ((70_000,), np.int64)
        assert genuine.n_train == 60_000
        assert len(genuine.feature_names) == 784
        train, test = genuine.target[:60_000], genuine.target[60_000:]
        assert train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert np.bincount(test).tolist() == [
            *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
        ]
        pixels = genuine.data[:60_000]
        assert pixels.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
        assert pixels.std() / 255 == pytest.approx(0.3081, abs=5e-5)

    def test_in_another_container_is_accepted_and_altered_refused(self, genuine, folder):
        images = genuine.data.reshape(-1, 28, 28)
        arrays = {
            "x_train": images[:60_000],
            "y_train": genuine.target[:60_000].astype(np.uint8),
            "x_test": images[60_000:],
            "y_test": genuine.target[60_000:].astype(np.uint8),
        }
        np.savez(folder / "mnist.npz", **arrays)
        X, y = mnist.load(data_home=folder.parent, return_X_y=True)
        np.testing.assert_array_equal(X, genuine.data)
        np.testing.assert_array_equal(y, genuine.target)
        images[12_345, 14, 14] ^= 1
        np.savez(folder / "mnist.npz", **arrays)
        with pytest.raises(DatasetError, match="does not hold the genuine mnist"):
            mnist.load(data_home=folder.parent)
