import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deepclust import datasets
from deepclust.datasets import DatasetError

EVERY = [getattr(datasets, name) for name in datasets.names()]


def test_every_file_is_a_registered_data_set():
    files = Path(datasets.__file__).parent.glob("[!_]*.py")
    assert datasets.names() == sorted(path.stem for path in files)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(
        ValueError, match="'mnits' is not a known data set; choose one of digits, mnist, usps"
    ):
        datasets.load("mnits")


def test_loading_by_name_is_loading_from_the_module(tmp_path):
    X, y = datasets.load("digits", data_home=tmp_path, return_X_y=True)
    bunch = datasets.load("digits", data_home=tmp_path)
    own = datasets.digits.load(data_home=tmp_path)
    assert (own.data == X).all()
    assert (bunch.data == own.data).all()
    assert (y == own.target).all()
    assert (bunch.target == own.target).all()


def test_the_data_home_is_passed_on(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "mnist.npz").touch()
    for options in ({}, {"return_X_y": True}):
        with pytest.raises(DatasetError, match="is not a complete npz archive") as caught:
            datasets.load("mnist", data_home=tmp_path, **options)
        assert str(caught.value).startswith(str(tmp_path))


def test_the_error_is_an_os_error():
    assert issubclass(DatasetError, OSError)


@pytest.mark.parametrize("module", EVERY, ids=datasets.names())
def test_what_is_recorded_is_complete(module):
    dataset = module.DATASET
    assert dataset.name == module.__name__.rpartition(".")[2]
    assert dataset.description
    assert dataset.licence
    assert dataset.citation
    assert re.fullmatch("[0-9a-f]{64}", dataset.content_sha256)
    assert any(container.verified for container in dataset.containers)
    assert module.load.__self__ is dataset
    names = []
    for container in dataset.containers:
        for file in container.files:
            names += [file.name, *file.also]
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        for mirror in container.mirrors:
            url = urlsplit(mirror.url.format(name=container.files[0].name))
            assert (url.scheme, url.path.rpartition("/")[2]) == ("https", container.files[0].name)
    assert len(set(names)) == len(names)
