import bz2
import gzip
import hashlib
import io
import os
import sys
from dataclasses import replace

import numpy as np
import pooch
import pytest
import scipy.sparse

from deepclust.datasets._base import (
    Container,
    Damaged,
    Dataset,
    DatasetError,
    File,
    Mirror,
    content_sha256,
    get_data_home,
    read_bytes,
    reading,
)

X = np.arange(12, dtype=np.uint8).reshape(4, 3)
Y = np.array([0, 1, 1, 0])
VALUES = b"0 1 2\n3 4 5\n6 7 8\n9 10 11\n"
LABELS = b"0\n1\n1\n0\n"
TABLE = b"0 0 1 2\n1 3 4 5\n1 6 7 8\n0 9 10 11\n"


def numbers(path):
    content = read_bytes(path)
    with reading(path):
        return np.loadtxt(io.BytesIO(content), dtype=np.int64)


def read_two_files(values, labels):
    return numbers(values).astype(np.uint8), numbers(labels)


def read_table(path):
    table = numbers(path)
    return table[:, 1:].astype(np.uint8), table[:, 0]


TWO_FILES = Container(
    "two files",
    read=read_two_files,
    files=(File("values.gz", also=("values",)), File("labels.gz", also=("labels",))),
)
ONE_TABLE = Container("one table", read=read_table, files=(File("table.txt"),))
TOY = Dataset(
    name="toy",
    title="A toy",
    description="Four samples.",
    licence="Public domain.",
    citation="Nobody, Nowhere, 1900.",
    homepage="http://toy.invalid/",
    content_sha256=content_sha256(X, Y),
    containers=(TWO_FILES, ONE_TABLE),
    target_names=("even", "odd"),
    n_train=3,
)


def published(dataset, *urls, container=0):
    """Return the data set with mirrors at these addresses for one of its containers."""
    containers = list(dataset.containers)
    mirrors = tuple(Mirror(url) for url in urls)
    containers[container] = replace(containers[container], mirrors=mirrors)
    return replace(dataset, containers=tuple(containers))


def write(home, **files):
    """Write files into the folder of the toy; ``values_gz`` stands for ``values.gz``."""
    folder = home / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def refusal(dataset, home):
    """Return the message loading ends with; no traceback of a parser comes along."""
    with pytest.raises(DatasetError) as caught:
        dataset.load(data_home=home)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestCopiesOnDisk:
    @pytest.mark.parametrize(
        "files",
        [
            {"values_gz": gzip.compress(VALUES), "labels_gz": gzip.compress(LABELS)},
            {"values_gz": gzip.compress(VALUES, 1), "labels": LABELS},
            {"values": VALUES, "labels": LABELS},
            {"values_gz": VALUES, "labels_gz": LABELS},  # decompressed on the way, name kept
            {"values": bz2.compress(VALUES), "labels": gzip.compress(LABELS)},
            {"table_txt": TABLE},
            {"table_txt": b" 0 0 1 2\r\n+1  3 4 05\n1 6 7 8\n0 9 10 11"},
        ],
    )
    def test_any_genuine_copy_is_accepted(self, tmp_path, files):
        folder = write(tmp_path, **files)
        bunch = TOY.load(data_home=tmp_path)
        np.testing.assert_array_equal(bunch.data, X)
        np.testing.assert_array_equal(bunch.target, Y)
        assert bunch.source == [str(folder / name.replace("_", ".")) for name in files]

    def test_bunch_and_tuple_hold_the_same(self, tmp_path):
        write(tmp_path, table_txt=TABLE)
        bunch = TOY.load(data_home=str(tmp_path))
        data, target = TOY.load(data_home=tmp_path, return_X_y=True)
        np.testing.assert_array_equal(bunch.data, data)
        np.testing.assert_array_equal(bunch.target, target)
        assert bunch.target_names == ["even", "odd"]
        assert (bunch.n_train, bunch.image_shape) == (3, None)
        assert "feature_names" not in bunch

    def test_images_name_their_pixels(self, tmp_path):
        write(tmp_path, table_txt=TABLE)
        bunch = replace(TOY, image_shape=(1, 3)).load(data_home=tmp_path)
        assert bunch.image_shape == (1, 3)
        assert bunch.feature_names == ["pixel_0_0", "pixel_0_1", "pixel_0_2"]

    def test_descr_tells_licence_citation_and_origin(self, tmp_path):
        write(tmp_path, table_txt=TABLE)
        description = replace(TOY, prepared="By hand.").load(data_home=tmp_path).DESCR
        for part in ("A toy", TOY.licence, TOY.citation, TOY.homepage, "By hand."):
            assert part in description
        assert max(map(len, description.splitlines())) < 80

    @pytest.mark.parametrize("present", ["data_home", "environment", "cache"])
    def test_a_data_home_that_holds_it_is_left_alone(self, tmp_path, monkeypatch, server, present):
        home = pooch.os_cache("deepclust") if present == "cache" else tmp_path / "home"
        folder = write(home, values_gz=gzip.compress(VALUES), labels=LABELS)
        if present == "environment":
            monkeypatch.setenv("DEEPCLUST_DATA", str(home))
        (folder / "labels").chmod(0o444)
        folder.chmod(0o555)
        home.chmod(0o555)
        before = [(path, path.stat().st_mtime_ns) for path in [home, *sorted(home.rglob("*"))]]
        try:
            dataset = published(TOY, server.url)
            dataset.load(data_home=home if present == "data_home" else None)
            after = [(path, path.stat().st_mtime_ns) for path in [home, *sorted(home.rglob("*"))]]
        finally:
            home.chmod(0o755)
            folder.chmod(0o755)
        assert after == before
        assert server.asked == []

    @pytest.mark.parametrize(
        "files",
        [
            {"table_txt": TABLE.replace(b"11", b"12")},
            {"table_txt": TABLE.replace(b"1 3", b"0 3")},
            {"table_txt": b"".join(reversed(TABLE.splitlines(keepends=True)))},
            {"table_txt": TABLE[:-10]},
            {"values": VALUES.replace(b"11", b"12"), "labels": LABELS},
        ],
        ids=["value", "label", "order", "length", "in a part"],
    )
    def test_altered_content_is_refused(self, tmp_path, files):
        folder = write(tmp_path, **files)
        message = refusal(TOY, tmp_path)
        assert message.startswith(str(folder))
        assert "does not hold the genuine toy: its content has SHA-256 " in message
        assert f"not {TOY.content_sha256}. Put a genuine copy in its place." in message

    def test_a_file_with_the_published_bytes_is_not_suspected(self, tmp_path):
        folder = write(tmp_path, values=VALUES, labels=b"1\n1\n1\n0\n")
        values = File("values", sha256=hashlib.sha256(VALUES).hexdigest())
        labels = File("labels", sha256=hashlib.sha256(LABELS).hexdigest())
        container = replace(TWO_FILES, files=(values, labels))
        message = refusal(replace(TOY, containers=(container,)), tmp_path)
        assert message.startswith(f"{folder / 'labels'} does not hold the genuine toy")

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (gzip.compress(VALUES)[:-12], "cannot be read: Compressed file ended before"),
            (gzip.compress(VALUES)[:-8] + bytes(8), "cannot be read: CRC check failed"),
            (gzip.compress(VALUES)[:10] + b"\xff" * 20, "cannot be read: Error -3 while"),
            (bz2.compress(VALUES)[:-5], "cannot be read: Compressed file ended before"),
            (b"", "is empty"),
            (gzip.compress(b""), "is empty"),
            (b"<html>Sign in to this network</html>", "cannot be read: could not convert string"),
        ],
        ids=["cut off", "check sum", "no gzip", "bzip2 cut off", "empty", "empty gzip", "page"],
    )
    def test_a_damaged_file_is_named_with_what_to_do(self, tmp_path, content, what):
        folder = write(tmp_path, values_gz=content, labels=LABELS)
        message = refusal(TOY, tmp_path)
        assert message.startswith(f"{folder / 'values.gz'} {what}")
        assert message.endswith("Put a genuine copy in its place.")

    def test_a_damaged_file_that_can_be_fetched_again(self, tmp_path, server):
        write(tmp_path, values_gz=b"", labels=LABELS)
        message = refusal(published(TOY, server.url), tmp_path)
        assert message.endswith("in its place, or delete it to have it fetched again.")
        assert server.asked == []  # what the user put there is not replaced behind his back

    def test_what_any_parser_raises_names_the_files(self, tmp_path):
        def read(path):
            return {}["x_train"]

        folder = write(tmp_path, table_txt=TABLE)
        message = refusal(replace(TOY, containers=(replace(ONE_TABLE, read=read),)), tmp_path)
        assert message.startswith(f"{folder / 'table.txt'} cannot be read: 'x_train'")

    def test_a_fault_of_the_reader_is_not_put_on_the_file(self, tmp_path):
        def read(path):
            raise AttributeError("a bug")

        write(tmp_path, table_txt=TABLE)
        dataset = replace(TOY, containers=(replace(ONE_TABLE, read=read),))
        with pytest.raises(AttributeError, match="a bug"):
            dataset.load(data_home=tmp_path)

    def test_a_set_that_comes_with_a_package_has_no_files(self, tmp_path):
        container = Container("toypackage.load", read=lambda: (X, Y))
        dataset = replace(TOY, containers=(container,))
        assert dataset.load(data_home=tmp_path / "none").source == ["toypackage.load"]
        message = refusal(replace(dataset, content_sha256="0" * 64), tmp_path / "none")
        assert message.startswith("toypackage.load does not hold the genuine toy")

    def test_sparse_values(self, tmp_path):
        matrix = scipy.sparse.csr_matrix(X)

        def read(path):
            values, labels = read_table(path)
            return scipy.sparse.csr_matrix(values), labels

        write(tmp_path, table_txt=TABLE)
        dataset = replace(
            TOY,
            containers=(replace(ONE_TABLE, read=read),),
            content_sha256=content_sha256(matrix, Y),
        )
        data, _ = dataset.load(data_home=tmp_path, return_X_y=True)
        assert scipy.sparse.issparse(data)
        assert (data != matrix).nnz == 0


class TestNoCopy:
    def test_offline_the_error_names_files_place_and_url(self, tmp_path, nobody):
        message = refusal(published(TOY, nobody), tmp_path)
        host = nobody.removeprefix("http://").removesuffix("/{name}")
        assert message == (
            f"toy is not in {tmp_path / 'toy'}. Fetching it failed ({host}: ConnectionError). "
            f"Put values.gz, labels.gz there (published at http://{host}/), or table.txt. "
            "data_home or DEEPCLUST_DATA may name another folder that holds toy/."
        )

    def test_a_partial_copy_is_told_what_it_lacks(self, tmp_path, nobody):
        folder = write(tmp_path, values=VALUES)
        message = refusal(published(TOY, nobody), tmp_path)
        assert message.startswith(f"toy lacks labels.gz in {folder}. Fetching it failed (")
        assert f"Put labels.gz there (published at {nobody.format(name='labels.gz')})" in message
        assert sorted(path.name for path in folder.iterdir()) == ["values"]

    def test_a_set_with_no_public_form_says_how_it_was_prepared(self, tmp_path):
        dataset = replace(TOY, prepared="Numbers counted by hand, stored by numpy.savetxt.")
        home = tmp_path / "home"
        message = refusal(dataset, home)
        assert message.startswith(
            f"toy is not in {home / 'toy'}. Put values.gz, labels.gz there, or"
        )
        assert message.endswith(
            "How they are made: Numbers counted by hand, stored by numpy.savetxt."
        )
        assert not home.exists()

    def test_a_data_home_that_cannot_be_written(self, tmp_path, server):
        (tmp_path / "home").write_text("a file where the folder should be")
        server.files = {"values.gz": gzip.compress(VALUES), "labels.gz": gzip.compress(LABELS)}
        message = refusal(published(TOY, server.url), tmp_path / "home")
        assert "Fetching it failed ([Errno" in message
        assert "published at http://127.0.0.1" in message
        assert server.asked == []


class TestFetching:
    def test_files_get_their_published_names_and_are_fetched_once(self, tmp_path, server, capsys):
        server.files = {"values.gz": gzip.compress(VALUES), "labels.gz": gzip.compress(LABELS)}
        dataset = published(TOY, server.url)
        home = tmp_path / "new" / "home"
        bunch = dataset.load(data_home=home)
        np.testing.assert_array_equal(bunch.data, X)
        assert bunch.source == [str(home / "toy" / name) for name in ("values.gz", "labels.gz")]
        assert (home / "toy" / "values.gz").read_bytes() == server.files["values.gz"]
        assert sorted(os.listdir(home / "toy")) == ["labels.gz", "values.gz"]
        np.testing.assert_array_equal(dataset.load(data_home=home).target, Y)
        assert server.asked == ["values.gz", "labels.gz"]
        assert capsys.readouterr() == ("", "")  # no progress where no one looks on

    def test_a_partial_copy_is_completed(self, tmp_path, server):
        folder = write(tmp_path, values=VALUES)
        server.files = {"labels.gz": gzip.compress(LABELS), "table.txt": TABLE}
        dataset = published(published(TOY, server.url), server.url, container=1)
        bunch = dataset.load(data_home=tmp_path)
        assert bunch.source == [str(folder / "values"), str(folder / "labels.gz")]
        assert server.asked == ["labels.gz"]

    def test_the_container_that_is_partly_there_comes_first(self, tmp_path, server):
        folder = write(tmp_path, values=VALUES)
        server.files = {"labels.gz": gzip.compress(LABELS), "table.txt": TABLE}
        turned = replace(TOY, containers=(ONE_TABLE, TWO_FILES))
        dataset = published(published(turned, server.url), server.url, container=1)
        dataset.load(data_home=tmp_path)
        assert sorted(os.listdir(folder)) == ["labels.gz", "values"]

    def test_a_broken_download_leaves_nothing(self, tmp_path, server):
        server.files = {"values.gz": gzip.compress(VALUES), "labels.gz": gzip.compress(LABELS)}
        server.breaks_off = {"labels.gz"}
        dataset = published(TOY, server.url)
        message = refusal(dataset, tmp_path)
        assert (
            f"Fetching it failed (127.0.0.1:{server.server_port}: ChunkedEncodingError)" in message
        )
        assert server.asked == ["values.gz", "labels.gz"]
        assert os.listdir(tmp_path / "toy") == []
        server.breaks_off = set()
        np.testing.assert_array_equal(dataset.load(data_home=tmp_path).data, X)

    def test_no_file_has_its_name_before_all_are_checked(self, tmp_path, server):
        seen = []

        def look(name):
            seen.extend(path for path in os.listdir(tmp_path / "toy") if not path.startswith("."))

        server.on_request = look
        server.files = {"values.gz": gzip.compress(VALUES), "labels.gz": gzip.compress(LABELS)}
        published(TOY, server.url).load(data_home=tmp_path)
        assert seen == []
        assert sorted(os.listdir(tmp_path / "toy")) == ["labels.gz", "values.gz"]

    def test_a_download_that_is_not_genuine_leaves_nothing(self, tmp_path, server):
        server.files = {
            "values.gz": gzip.compress(VALUES.replace(b"11", b"12")),
            "labels.gz": gzip.compress(LABELS),
        }
        message = refusal(published(TOY, server.url), tmp_path)
        assert "values.gz or labels.gz does not hold the genuine toy" in message
        assert ".fetch-" not in message
        assert os.listdir(tmp_path / "toy") == []

    def test_the_next_mirror_and_container_are_tried(self, tmp_path, server, nobody):
        server.files = {"values.gz": b"<html>Moved</html>", "table.txt": TABLE}
        dataset = published(published(TOY, nobody, server.url), server.url, container=1)
        bunch = dataset.load(data_home=tmp_path)
        assert bunch.source == [str(tmp_path / "toy" / "table.txt")]
        assert os.listdir(tmp_path / "toy") == ["table.txt"]
        assert server.asked == ["values.gz", "labels.gz", "table.txt"]

    def test_a_mirror_at_fault_is_not_put_on_a_file_of_the_user(self, tmp_path, server):
        folder = write(tmp_path, values=VALUES)
        server.files = {"bad/labels.gz": b"1\n1\n1\n1\n", "good/labels.gz": LABELS}
        urls = [server.url.replace("{name}", f"{part}/{{name}}") for part in ("bad", "good")]
        published(TOY, *urls).load(data_home=tmp_path)
        assert (folder / "labels.gz").read_bytes() == LABELS

    def test_a_missing_page_is_told_by_its_status(self, tmp_path, server):
        assert "HTTP status 404" in refusal(published(TOY, server.url), tmp_path)

    def test_a_damaged_file_of_the_user_is_not_put_on_the_mirror(self, tmp_path, server):
        folder = write(tmp_path, values=b"nonsense")
        server.files = {"labels.gz": gzip.compress(LABELS)}
        message = refusal(published(TOY, server.url), tmp_path)
        assert message.startswith(f"{folder / 'values'} cannot be read: could not convert")
        assert os.listdir(folder) == ["values"]

    def test_progress_is_shown_on_a_terminal(self, tmp_path, server, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(sys, "stderr", Terminal())
        server.files = {"table.txt": TABLE}
        published(TOY, server.url, container=1).load(data_home=tmp_path)
        assert "100%" in sys.stderr.getvalue()


class TestDataHome:
    def test_argument_then_environment_then_cache(self, tmp_path, monkeypatch):
        assert get_data_home() == pooch.os_cache("deepclust")
        monkeypatch.setenv("DEEPCLUST_DATA", str(tmp_path / "environment"))
        assert get_data_home() == tmp_path / "environment"
        assert get_data_home(tmp_path / "argument") == tmp_path / "argument"
        monkeypatch.setenv("DEEPCLUST_DATA", "")
        assert get_data_home() == pooch.os_cache("deepclust")

    def test_a_tilde_is_the_home_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        assert get_data_home("~/data") == tmp_path / "data"


class TestContentHash:
    def test_is_the_sha256_of_types_shapes_and_bytes(self):
        values = np.array([[1, 2], [3, 4]], dtype="<i2")
        labels = np.array([0, 1], dtype="<i8")
        expected = hashlib.sha256(
            b"<i2(2, 2)" + b"\1\0\2\0\3\0\4\0" + b"<i8(2,)" + bytes(8) + b"\1" + bytes(7)
        )
        assert content_sha256(values, labels) == expected.hexdigest()

    def test_machine_and_memory_layout_do_not_matter(self):
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        labels = np.array([0, 1])
        expected = content_sha256(values, labels)
        assert content_sha256(np.asfortranarray(values), labels) == expected
        assert content_sha256(values.astype(">f4"), labels.astype(">i8")) == expected
        assert content_sha256(np.repeat(values, 2, axis=1)[:, ::2], labels) == expected

    def test_everything_else_does(self):
        digests = [
            content_sha256(X, Y),
            content_sha256(X + (X == 11), Y),
            content_sha256(X, 1 - Y),
            content_sha256(X.reshape(2, 6), Y),
            content_sha256(X.astype(np.int16), Y),
            content_sha256(X[::-1], Y),
            content_sha256(scipy.sparse.csr_matrix(X), Y),
        ]
        assert len(set(digests)) == len(digests)

    def test_sparse_forms_of_one_matrix_are_equal(self):
        csr = scipy.sparse.csr_matrix(X)
        shuffled = csr.copy()
        for start, stop in zip(csr.indptr[:-1], csr.indptr[1:], strict=True):
            shuffled.indices[start:stop] = csr.indices[start:stop][::-1]
            shuffled.data[start:stop] = csr.data[start:stop][::-1]
        shuffled.has_sorted_indices = False
        wide = csr.copy()
        wide.indices, wide.indptr = csr.indices.astype(np.int64), csr.indptr.astype(np.int64)
        before = shuffled.indices.copy()
        expected = content_sha256(csr, Y)
        for other in (shuffled, wide, csr.tocoo(), csr.tocsc(), scipy.sparse.csr_array(X)):
            assert content_sha256(other, Y) == expected
        np.testing.assert_array_equal(shuffled.indices, before)  # the caller's matrix is untouched

    def test_sparse_values_count_with_their_place(self):
        matrices = [scipy.sparse.csr_matrix(rows) for rows in ([[1, 0]], [[0, 1]], [[1, 0, 0]])]
        assert len({content_sha256(matrix, Y[:1]) for matrix in matrices}) == 3


def test_damaged_keeps_the_files_it_names(tmp_path):
    with pytest.raises(Damaged) as caught, reading(tmp_path / "a", tmp_path / "b"):
        raise Damaged("is odd", tmp_path / "a")
    assert (caught.value.what, caught.value.paths) == ("is odd", (tmp_path / "a",))
    with pytest.raises(Damaged) as caught, reading(tmp_path / "a", tmp_path / "b"):
        raise Damaged("is odd")
    assert caught.value.paths == (tmp_path / "a", tmp_path / "b")
