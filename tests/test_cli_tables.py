"""DATA: what each kind of file gives, and what --columns, --id and --labels stand for."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from deepclust.cli.sources import is_file
from deepclust.cli.tables import Like, read, read_labels

X = np.array([[1.5, 2, 3], [4, -5e3, 6]])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, text, encoding="utf-8"):
    Path(name).write_bytes(text.encode(encoding))
    return name


@pytest.mark.parametrize("data", ["a.csv", "./a", "a/b", "../a.npy", "/a"])
def test_what_has_a_suffix_or_a_separator_is_a_file(data):
    assert is_file(data)


@pytest.mark.parametrize("data", ["digits", "a_b", "20newsgroups"])
def test_anything_else_is_a_name(data):
    assert not is_file(data)


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a,b,c\n1.5,2,3\n4,-5e3,6\n", "utf-8"),
        ("a,b,c\n1.5,2,3\n4,-5e3,6", "utf-8"),
        ("a,b,c\r\n1.5,2,3\r\n4,-5e3,6\r\n", "utf-8"),
        ("a,b,c\n1.5,2,3\n4,-5e3,6\n", "utf-8-sig"),
        ('"a","b","c"\n"1.5","2",3\n4,"-5e3","6"\n', "utf-8"),
        ("a,b,c\n\n1.5,2,3\n  \n4,-5e3,6\n\n", "utf-8"),
        ("a, b, c\n 1.5, 2,3 \n4 ,-5e3 , 6\n", "utf-8"),
        ("a\tb\tc\n1.5\t2\t3\n4\t-5e3\t6\n", "utf-8"),
        ("a;b;c\n1.5;2;3\n4;-5e3;6\n", "utf-8"),
        ("a;b;c\n1,5;2;3\n4;-5e3;6,0\n", "utf-8"),
    ],
)
def test_dialects(text, encoding):
    table = read(write("x.csv", text, encoding))
    np.testing.assert_array_equal(table.X, X)
    assert table.X.dtype == np.float64
    assert table.columns.names == ["a", "b", "c"]


def test_quotes_may_hold_anything():
    text = '"a;b","say ""x"", twice",c\n"one,\ntwo",2,3\nthree,5,6\n'
    table = read(write("x.csv", text), id="a;b")
    assert table.ids == ["one,\ntwo", "three"]
    assert table.columns.names == ['say "x", twice', "c"]
    np.testing.assert_array_equal(table.X, [[2, 3], [5, 6]])


def test_lines_are_those_of_the_file():
    with pytest.raises(ValueError, match="line 4, column 'b' holds 'x'"):
        read(write("x.csv", 'a,b\n"1",2\n\n3,x\n'))


def test_first_line_of_numbers_is_a_row():
    table = read(write("x.csv", "1.5,2,3\n4,-5e3,6\n"))
    np.testing.assert_array_equal(table.X, X)
    assert table.columns.names is None


def test_decimal_commas_in_the_first_line():
    table = read(write("x.csv", "1,5;2;3\n4;-5e3;6\n"))
    np.testing.assert_array_equal(table.X, X)


@pytest.mark.parametrize("first", ["country,1990,1991", "0,1,label", "a,7,b"])
def test_names_that_are_numbers(first):
    table = read(write("x.csv", f"{first}\n7,8,9\n"))
    assert table.columns.names == first.split(",")


def test_header_of_pandas_is_no_row():
    with pytest.warns(UserWarning, match="was taken for the header"):
        table = read(write("x.csv", "0,1,2\n1.5,2,3\n"))
    assert table.X.tolist() == [[1.5, 2, 3]]


def test_index_of_pandas_is_no_feature():
    text = ",a,b\n0,1.5,2\n1,3,4\n"
    with pytest.warns(UserWarning, match="column 0 .* only names the rows and was left out"):
        table = read(write("x.csv", text))
    assert table.X.tolist() == [[1.5, 2], [3, 4]]
    assert read("x.csv", columns="0,a").X.tolist() == [[0, 1.5], [1, 3]]
    assert read("x.csv", id="0").ids == ["0", "1"]


def test_one_column():
    assert read(write("x.csv", "a\n1\n2\n\n")).X.tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="line 3 has no value"):
        read(write("x.csv", "a\n1\n\n2\n"))


def test_large_numbers_are_no_infinities():
    assert read(write("x.csv", "a,b\n1e308,1e308\n")).X.tolist() == [[1e308, 1e308]]


def test_same_name_twice():
    write("x.csv", "a,a,b\n1,2,3\n")
    assert read("x.csv").X.tolist() == [[1, 2, 3]]
    assert read("x.csv", columns="1,2").X.tolist() == [[2, 3]]
    with pytest.raises(ValueError, match="2 columns named 'a'; give a position"):
        read("x.csv", columns="a")


# -- arrays ----------------------------------------------------------------------------------------


def test_npy_is_mapped():
    np.save("x.npy", X)
    assert isinstance(read("x.npy").X, np.memmap)
    beginning = read("x.npy", labels="2")
    assert isinstance(beginning.X, np.memmap)
    assert beginning.X.base is not None
    assert beginning.labels == [3, 6]
    np.testing.assert_array_equal(read("x.npy", columns="2,0").X, X[:, [2, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, ">f4", bool])
def test_npy_keeps_its_type(dtype):
    np.save("x.npy", np.array([[0, 1], [1, 1]], dtype=dtype))
    assert read("x.npy").X.dtype == np.dtype(dtype)


def test_dense_npz():
    np.savez("x.npz", X=X, other=X, who=["p", "q"], y=[1, 0], column=np.array([[5], [6]]))
    table = read("x.npz", id="who", labels="y")
    np.testing.assert_array_equal(table.X, X)
    assert table.ids == ["p", "q"]
    assert table.labels == [1, 0]
    assert table.labels_from == "y"
    assert read("x.npz", labels="column").labels == [5, 6]
    with pytest.raises(ValueError, match=r"'other' in x.npz has the shape \(2, 3\); one value"):
        read("x.npz", labels="other")
    np.savez("only.npz", features=X, y=[1, 0])
    np.testing.assert_array_equal(read("only.npz").X, X)
    np.savez_compressed("data.npz", data=X, other=X)
    np.testing.assert_array_equal(read("data.npz").X, X)
    np.savez("short.npz", X=X, y=[1])
    with pytest.raises(ValueError, match=r"--labels gives 1 values, but 'X' in short.npz has 2"):
        read("short.npz", labels="y")


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
def test_sparse_npz(form):
    matrix = sparse.random_array((20, 6), density=0.4, rng=np.random.default_rng(0)).asformat(form)
    sparse.save_npz("x.npz", matrix)
    table = read("x.npz")
    assert table.X.format == "csr"
    np.testing.assert_array_equal(table.X.toarray(), matrix.toarray())
    part = read("x.npz", columns="4,0-1", labels="5")
    np.testing.assert_array_equal(part.X.toarray(), matrix.toarray()[:, [4, 0, 1]])
    assert part.labels == matrix.toarray()[:, 5].tolist()


def test_sparse_npz_is_not_trusted():
    matrix = sparse.csr_array(np.eye(4))
    matrix.indices[2] = 99
    sparse.save_npz("x.npz", matrix)
    with pytest.raises(ValueError, match=r"x.npz is damaged or cut short"):
        read("x.npz")
    matrix = sparse.csr_array(np.eye(4))
    matrix.data[2] = np.nan
    sparse.save_npz("x.npz", matrix)
    with pytest.raises(ValueError, match=r"column 2 .* row 2 \(counted from 0\) is NaN"):
        read("x.npz")


def test_what_is_not_used_may_be_anything():
    values = X.copy()
    values[0, 1] = np.nan
    np.save("x.npy", values)
    assert read("x.npy", columns="0,2").X.tolist() == [[1.5, 3], [4, 6]]
    write("x.csv", "a,b,c\n1,,x\n2,inf,y\n")
    assert read("x.csv", columns="a").X.tolist() == [[1], [2]]


# -- Parquet ---------------------------------------------------------------------------------------


@pytest.fixture
def parquet():
    """Write a Parquet file."""
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow.parquet import write_table

    def write(name, **columns):
        write_table(arrow.table(columns), name)
        return name

    return write


def test_parquet(parquet):
    parquet("x.parquet", who=["p", "q"], a=[1, 2], b=[0.5, 1.5], c=[True, False], y=["u", "v"])
    table = read("x.parquet", id="who", labels="y")
    assert table.X.tolist() == [[1, 0.5, 1], [2, 1.5, 0]]
    assert table.columns.names == ["a", "b", "c"]
    assert table.ids == ["p", "q"]
    assert table.labels == ["u", "v"]
    assert read("x.parquet", columns="2,a").X.tolist() == [[0.5, 1], [1.5, 2]]


def test_parquet_keeps_a_common_type(parquet):
    parquet("x.parquet", a=np.array([1, 2], np.float32), b=np.array([3, 4], np.float32))
    assert read("x.parquet").X.dtype == np.float32


def test_parquet_errors(parquet):
    parquet("x.parquet", a=[1, 2], y=["u", "v"], b=[1.0, None], c=[1.0, np.inf])
    with pytest.raises(ValueError, match="column 'y' holds values of type string"):
        read("x.parquet")
    with pytest.raises(ValueError, match=r"column 'b', row 1 \(counted from 0\) has no value"):
        read("x.parquet", columns="a,b")
    with pytest.raises(ValueError, match=r"column 'c', row 1 \(counted from 0\) is infinite"):
        read("x.parquet", columns="a,c")
    with pytest.raises(ValueError, match=r"row 1 .* has no label"):
        read("x.parquet", columns="a", labels="b")
    Path("x.parquet").write_bytes(Path("x.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged or cut short"):
        read("x.parquet")


def test_parquet_index_of_pandas(parquet):
    parquet("x.parquet", a=[1, 2], __index_level_0__=[7, 8])
    with pytest.warns(UserWarning, match="only names the rows"):
        assert read("x.parquet").X.tolist() == [[1], [2]]


def test_parquet_without_pyarrow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    write("x.parquet", "PAR1")
    with pytest.raises(ImportError, match=r'pip install "deepclust\[parquet\]"'):
        read("x.parquet")


# -- what was asked for ----------------------------------------------------------------------------


def test_columns():
    write("x.csv", "a,b,c,7,d-e,0-1\n0,1,2,3,4,5\n")
    for columns, expected in [
        ("a,c", [0, 2]),
        ("c, a", [2, 0]),
        ("1-3", [1, 2, 3]),
        ("4,0", [4, 0]),
        ("7", [3]),  # a name goes before a position
        ("d-e,0-1", [4, 5]),
        ("2-2,a", [2, 0]),
    ]:
        assert read("x.csv", columns=columns).X.tolist() == [expected]
    for columns in ("x", "6", "3-6", "3-1", "", "a,", "-1"):
        with pytest.raises(ValueError, match="--columns"):
            read("x.csv", columns=columns)


def test_id_and_labels_are_no_features():
    write("x.csv", "a,b,c,y\n1,2,3,u\n4,5,6,v\n")
    table = read("x.csv", id="b", labels="y")
    assert table.columns.positions == [0, 2]
    assert (table.ids, table.labels) == (["2", "5"], ["u", "v"])
    assert read("x.csv", id="y", labels="y").columns.positions == [0, 1, 2]
    for options in ({"id": "a"}, {"labels": "a"}):
        with pytest.raises(ValueError, match="column 'a', which --id or --labels takes"):
            read("x.csv", columns="a,b", **options)
    with pytest.raises(ValueError, match=r"--id 'z' is no column of x.csv; it has 'a', 'b', 'c'"):
        read("x.csv", id="z")
    write("x.csv", "a,y\n1,u\n2,\n")
    with pytest.raises(ValueError, match=r"--labels y: row 1 \(counted from 0\) has no label"):
        read("x.csv", labels="y")
    write("x.csv", "y\nu\n")
    with pytest.raises(ValueError, match="no columns left to cluster by"):
        read("x.csv", labels="y")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("y.txt", "u\nv w\n"),
        ("y.txt", "\ufeffclass\r\nu\r\nv w\r\n\r\n"),
        ("y.csv", "u\nv w\n"),
        ("y.csv", 'class\n"u"\n"v w"\n'),
        ("y.csv", "row,label,confidence\n0,u,0.5\n1,v w,0.6\n"),
        ("y.tsv", "row\tlabel\n0\tu\n1\tv w\n"),
    ],
)
def test_files_of_labels(name, text):
    np.save("x.npy", X)
    table = read("x.npy", labels=write(name, text))
    assert table.labels == ["u", "v w"]
    assert table.X.shape == (2, 3)
    assert read_labels(None, name, 2) == (["u", "v w"], None)


def test_wrong_files_of_labels():
    np.save("x.npy", X)
    np.save("y.npy", [1, 2])
    assert read("x.npy", labels="y.npy").labels == [1, 2]
    np.save("wide.npy", X)
    np.save("nan.npy", [np.nan, 1])
    for labels, sentence in [
        ("wide.npy", "one value a row is needed"),
        ("nan.npy", "row 0 .* has no label"),
        (write("few.txt", "u\n"), "holds 1 labels for 2 rows"),
        (write("gap.txt", "u\n\nw\n"), "row 0 .* has no label"),
        (write("two.csv", "a,b\n1,2\n3,4\n"), "2 columns; a file of labels has one, or one named"),
        (write("empty.txt", ""), "is empty"),
        (write("y.json", "[]"), "is no file of labels"),
    ]:
        with pytest.raises((ValueError, OSError), match=sentence):
            read("x.npy", labels=labels)


def test_same_columns_again():
    write("old.csv", "key,a,b,y\n1,2,3,u\n")
    like = read("old.csv", id="key", labels="y").columns
    assert like == Like([1, 2], 4, ["a", "b"], "key")
    write("new.csv", "b,more,a,key\n3,x,2,9\n")
    table = read("new.csv", like=like)
    assert table.X.tolist() == [[2, 3]]
    assert table.ids == ["9"]
    assert read("new.csv", like=like, id="more").ids == ["x"]
    assert read("new.csv", like=like, columns="b").X.tolist() == [[3]]
    write("headless.csv", "9,2,3,0\n")
    assert read("headless.csv", like=like, id="0").X.tolist() == [[2, 3]]
    np.save("two.npy", [[2, 3]])
    with pytest.warns(UserWarning, match="lacks 'key', the --id of the run"):
        assert read("two.npy", like=like).X.tolist() == [[2, 3]]
    np.save("three.npy", [[2, 3, 4]])
    with (
        pytest.warns(UserWarning, match="lacks 'key'"),
        pytest.raises(ValueError, match="has 3 columns, but the model was fitted on 2"),
    ):
        read("three.npy", like=like)


def test_large_text_is_read_exactly():
    values = np.random.default_rng(0).normal(size=(300, 7))
    with open("x.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*map(repr, row)] for row in values.tolist()])
    np.testing.assert_array_equal(read("x.csv").X, values)
