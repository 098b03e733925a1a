import hashlib
import json
import os
import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from torch import nn

from deepclust import DEC, Autoencoder, load

SMALL = {"hidden": (8,), "bottleneck": 3, "pretrain_iter": 5}
X, _ = make_blobs(n_samples=120, n_features=5, centers=3, random_state=0)


def fitted(**changes):
    settings = {"n_clusters": 3, **SMALL, "max_iter": 5, "n_init": 2, "random_state": 0}
    return DEC(**settings | changes).fit(X)


@pytest.fixture(scope="module")
def model():
    return fitted()


def answers(model):
    return [
        model.predict(X),
        model.predict_proba(X),
        model.transform(X),
        model.score_samples(X),
        np.array(model.score(X)),
    ]


def assert_equal_answers(one, other):
    for mine, theirs in zip(answers(one), answers(other), strict=True):
        assert mine.tobytes() == theirs.tobytes()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("scaling", ["unit", "standard", 0.5, None])
def test_a_loaded_model_gives_the_same_bits(tmp_path, scaling):
    model = fitted(scaling=scaling)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert_equal_answers(model, loaded)
    assert loaded.n_iter_ == model.n_iter_
    assert loaded.cluster_centers_.tobytes() == model.cluster_centers_.tobytes()
    assert loaded.init_cluster_centers_.tobytes() == model.init_cluster_centers_.tobytes()
    assert loaded.cluster_frequency_.tobytes() == model.cluster_frequency_.tobytes()
    assert loaded.n_features_in_ == 5
    assert list(loaded.get_feature_names_out()) == list(model.get_feature_names_out())


def test_autoencoder_round_trip(tmp_path):
    model = Autoencoder(hidden=(8,), bottleneck=3, max_iter=5, random_state=0).fit(X)
    model.save(tmp_path)
    loaded = load(tmp_path)
    codes = model.transform(X)
    assert codes.tobytes() == loaded.transform(X).tobytes()
    assert model.inverse_transform(codes).tobytes() == loaded.inverse_transform(codes).tobytes()


def test_config_says_what_is_in_the_folder(model, tmp_path):
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["class"] == "DEC"
    assert config["parameters"]["n_clusters"] == 3
    assert config["parameters"]["hidden"] == [8]
    assert config["n_features_in"] == 5
    assert config["feature_names_in"] is None
    assert config["scaling"] == {"factor": model.scaling_.factor}
    assert config["versions"]["torch"] == torch.__version__
    weights = tmp_path / config["weights"]["file"]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert config["weights"]["sha256"] == digest
    assert digest[:16] in weights.name
    assert files(tmp_path) == sorted(["config.json", weights.name])


def test_parameters_survive(tmp_path):
    frozen = FrozenEstimator(Autoencoder(hidden=(4,), bottleneck=2, max_iter=2).fit(X))
    init = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = DEC(
        n_clusters=3,
        autoencoder=frozen,
        init=init,
        lr=0.02,
        max_iter=2,
        device=torch.device("cpu"),
        random_state=np.random.RandomState(0),
    ).fit(X)
    model.save(tmp_path)
    loaded = load(tmp_path)
    np.testing.assert_array_equal(loaded.init, init)
    assert loaded.lr == 0.02
    assert loaded.device == "cpu"
    assert isinstance(loaded.autoencoder, FrozenEstimator)
    assert loaded.autoencoder.estimator.hidden == (4,)
    # What the frozen autoencoder had learnt is not in the file, and fitting again says so.
    with pytest.raises(NotFittedError):
        loaded.fit(X)

    nested = DEC(
        n_clusters=3, autoencoder=Autoencoder(hidden=(4,), max_iter=2), n_init=1, max_iter=2
    ).fit(X)
    nested.save(tmp_path)
    again = load(tmp_path)
    assert again.autoencoder.get_params() == nested.autoencoder.get_params()
    assert again.fit(X).n_iter_ == 2


CHANGED = {
    "hidden": (6, 4),
    "bottleneck": 2,
    "alpha": 2.5,
    "init": "k-means",
    "n_init": 3,
    "pretrain_iter": 4,
    "pretrain_lr": 1e-4 / 3,
    "max_iter": 3,
    "lr": np.float32(0.02),
    "batch_size": np.int64(50),
    "update_interval": 2,
    "tol": 0.0,
    "scaling": 0.3,
    "random_state": 7,
    "device": torch.device("cpu"),
    "precision": "float32",
    "compile": True,
    "verbose": 1,
    "freeze_encoder": True,
    "n_clusters": 3,
}


def test_every_parameter_survives(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step: step)
    assert CHANGED.keys() == {field.name for field in fields(DEC)} - {"autoencoder"}
    assert not [
        field.name
        for field in fields(DEC)
        if field.name in CHANGED and CHANGED[field.name] == field.default
    ]
    model = DEC(**CHANGED).fit(X)
    model.save(tmp_path)
    loaded = load(tmp_path)
    for name, value in CHANGED.items():
        again = getattr(loaded, name)
        assert again == (str(value) if name == "device" else value), name
    assert isinstance(loaded.hidden, tuple)
    # The same settings give the same fit.
    assert_equal_answers(loaded.fit(X), model)


@pytest.mark.parametrize("scaling", ["standard", 0.3, None])
def test_parameters_of_an_autoencoder_survive(tmp_path, scaling):
    settings = {"hidden": (7,), "bottleneck": 2, "max_iter": 4, "lr": 0.002, "layerwise": True}
    model = Autoencoder(**settings, scaling=scaling, random_state=3).fit(X)
    model.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.get_params() == model.get_params()
    expected = model.transform(X)
    assert np.array_equal(loaded.fit(X).transform(X), expected)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (7, 7),
        (np.int64(7), 7),
        (np.random.RandomState(7), None),
        (np.random.default_rng(7), None),
    ],
    ids=lambda kind: type(kind).__name__,
)
def test_random_states(tmp_path, given, kept):
    """A number is a setting; how far a generator has come is not."""
    model = fitted(random_state=given)
    model.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.random_state == kept
    assert_equal_answers(loaded, model)


def test_feature_names_survive(tmp_path):
    pandas = pytest.importorskip("pandas", reason="data frames need pandas")
    frame = pandas.DataFrame(X, columns=list("abcde"))
    model = DEC(n_clusters=3, **SMALL, max_iter=2, n_init=1).fit(frame)
    model.save(tmp_path)
    loaded = load(tmp_path)
    assert list(loaded.feature_names_in_) == list("abcde")
    assert (loaded.predict(frame) == model.labels_).all()
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame[list("edcba")])


OF_THE_FIT = ["labels_", "init_labels_", "history_", "phase_seconds_", "autoencoder_"]


@pytest.mark.parametrize("name", OF_THE_FIT)
def test_what_belongs_to_the_fit_says_so(model, tmp_path, name):
    model.save(tmp_path)
    loaded = load(tmp_path)
    for each in (loaded, pickle.loads(pickle.dumps(loaded))):  # noqa: S301
        with pytest.raises(AttributeError, match=f"{name} belongs to the fit .* the run folder"):
            getattr(each, name)
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            _ = each.nonsense
    loaded.fit(X)
    assert hasattr(loaded, name)


def test_attributes_of_a_fit_are_in_the_file_or_named(model, tmp_path):
    """What ``fit`` learns is either restored, or asking for it says where it is."""
    model.save(tmp_path)
    loaded = load(tmp_path)
    learnt = {name for name in vars(model) if name.endswith("_")}
    assert learnt - set(OF_THE_FIT) <= {name for name in vars(loaded) if name.endswith("_")}


def test_a_loaded_model_needs_the_folder_no_more(model, tmp_path):
    model.save(tmp_path / "model")
    one, two = load(tmp_path / "model"), load(str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    for parameter in two.module_.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    assert_equal_answers(one, model)


def test_not_fitted(tmp_path):
    with pytest.raises(NotFittedError):
        DEC().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_saving_again_replaces_the_model(model, tmp_path):
    model.save(tmp_path)
    other = fitted(random_state=1)
    other.save(tmp_path)
    assert_equal_answers(load(tmp_path), other)
    assert len(files(tmp_path)) == 2


def test_a_loaded_model_can_be_saved(model, tmp_path):
    model.save(tmp_path / "one")
    load(tmp_path / "one").save(tmp_path / "two")
    assert_equal_answers(load(tmp_path / "two"), model)


class Crash(BaseException):
    """The power fails."""


def crash_at(monkeypatch, owner, name, moment):
    """Let call number ``moment`` of a function be the last thing that happens."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        calls.append(name)
        if len(calls) > moment:
            raise Crash
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


# Each file is opened, flushed to disk and renamed: first the weights, then config.json.
BEFORE_THE_COMMIT = [
    (owner, name, moment)
    for moment in (0, 1)
    for owner, name in ((Path, "open"), (os, "fsync"), (os, "replace"))
]


@pytest.mark.parametrize(("owner", "name", "moment"), BEFORE_THE_COMMIT)
def test_a_crash_leaves_the_old_model(model, tmp_path, monkeypatch, owner, name, moment):
    model.save(tmp_path)
    other = fitted(random_state=1)
    with monkeypatch.context() as patch:
        crash_at(patch, owner, name, moment)
        with pytest.raises(Crash):
            other.save(tmp_path)
    assert_equal_answers(load(tmp_path), model)
    # The next save clears away what the crash left, whichever model it writes.
    model.save(tmp_path)
    assert len(files(tmp_path)) == 2
    assert_equal_answers(load(tmp_path), model)


@pytest.mark.parametrize(("owner", "name", "moment"), BEFORE_THE_COMMIT)
def test_a_crash_in_the_first_save_leaves_no_model(
    model, tmp_path, monkeypatch, owner, name, moment
):
    with monkeypatch.context() as patch:
        crash_at(patch, owner, name, moment)
        with pytest.raises(Crash):
            model.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load(tmp_path)
    model.save(tmp_path)
    assert_equal_answers(load(tmp_path), model)


def test_a_crash_after_the_commit_leaves_the_new_model(model, tmp_path, monkeypatch):
    model.save(tmp_path)
    other = fitted(random_state=1)
    with monkeypatch.context() as patch:
        crash_at(patch, Path, "unlink", 0)
        with pytest.raises(Crash):
            other.save(tmp_path)
    assert len(files(tmp_path)) == 3
    assert_equal_answers(load(tmp_path), other)
    other.save(tmp_path)
    assert len(files(tmp_path)) == 2


def test_other_files_in_the_folder_stay(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    model.save(tmp_path)
    assert {"notes.txt", "mine.safetensors"} < set(files(tmp_path))
    assert_equal_answers(load(tmp_path), model)


def test_only_methods_of_the_registry_are_saved(tmp_path):
    class Mine(DEC):
        pass

    with pytest.raises(TypeError, match="A Mine cannot be saved; known are Autoencoder, DEC"):
        Mine(n_clusters=3, **SMALL, max_iter=2, n_init=1).fit(X).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class TestDamage:
    @pytest.fixture
    def folder(self, model, tmp_path):
        model.save(tmp_path / "model")
        return tmp_path / "model"

    def edit(self, folder, **changes):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def test_no_model(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no model"):
            load(tmp_path)

    def test_weights_missing(self, folder):
        next(folder.glob("*.safetensors")).unlink()
        with pytest.raises(FileNotFoundError, match="copy the whole folder"):
            load(folder)

    def test_weights_altered(self, folder):
        file = next(folder.glob("*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match="SHA-256"):
            load(folder)

    def test_weights_are_no_safetensors(self, folder):
        name, data = "weights.safetensors", b"something else"
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self.edit(folder, weights={"file": name, "sha256": digest})
        with pytest.raises(ValueError, match="damaged"):
            load(folder)

    def test_config_is_no_json(self, folder):
        (folder / "config.json").write_text('{"format_version": 1')
        with pytest.raises(ValueError, match="damaged"):
            load(folder)

    def test_config_of_something_else(self, folder):
        (folder / "config.json").write_text("[]")
        with pytest.raises(ValueError, match="not the configuration"):
            load(folder)

    def test_newer_format(self, folder):
        self.edit(folder, format_version=2)
        with pytest.raises(ValueError, match="format version 2; this deepclust reads version 1"):
            load(folder)

    def test_unknown_class(self, folder):
        self.edit(folder, **{"class": "os.system"})
        with pytest.raises(ValueError, match=r"os\.system.*known are Autoencoder, DEC"):
            load(folder)

    def test_weights_elsewhere(self, folder):
        outside = folder.parent / "outside.safetensors"
        shutil.copy(next(folder.glob("*.safetensors")), outside)
        digest = hashlib.sha256(outside.read_bytes()).hexdigest()
        self.edit(folder, weights={"file": "../outside.safetensors", "sha256": digest})
        with pytest.raises(ValueError, match="outside its folder"):
            load(folder)

    @pytest.mark.parametrize("name", ["..", ".", "", "/etc/hosts", "a/b", "config.json", None, 5])
    def test_names_of_weights_that_are_none(self, folder, name):
        self.edit(folder, weights={"file": name, "sha256": "0" * 64})
        with pytest.raises((ValueError, FileNotFoundError), match=r"outside|missing|SHA-256"):
            load(folder)

    def test_weights_cut_short(self, folder):
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="SHA-256"):
            load(folder)

    def test_config_of_another_text(self, folder):
        (folder / "config.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="damaged"):
            load(folder)

    def test_weights_of_another_network(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.edit(folder, network=config["network"] | {"widths": [5, 9, 3]})
        with pytest.raises(ValueError, match="do not fit the saved weights"):
            load(folder)

    @pytest.mark.parametrize("key", ["parameters", "scaling", "network", "weights", "class"])
    @pytest.mark.parametrize("value", [None, [], "other", 5])
    def test_nonsense_in_config(self, folder, key, value):
        self.edit(folder, **{key: value})
        with pytest.raises(ValueError, match=r"config\.json"):
            load(folder)

    @pytest.mark.parametrize("key", ["parameters", "scaling", "network", "weights"])
    def test_incomplete_config(self, folder, key):
        file = folder / "config.json"
        config = json.loads(file.read_text())
        del config[key]
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"config\.json"):
            load(folder)


class EndsInActivation(nn.Module):
    """An encoder whose last layer is not linear, with a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.tanh(self.norm(self.linear(x)))


@pytest.mark.parametrize("make", [EndsInActivation, lambda: nn.Linear(5, 3, bias=False)])
@pytest.mark.parametrize("init", ["gmm", "k-means"])
def test_own_modules(tmp_path, make, init):
    encoder, decoder = make(), nn.Linear(3, 5)
    autoencoder = Autoencoder(encoder=encoder, decoder=decoder, max_iter=5)
    model = DEC(
        n_clusters=3, autoencoder=autoencoder, init=init, max_iter=5, n_init=2, random_state=0
    ).fit(X)
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"load\(folder, encoder=module\)"):
        load(tmp_path)
    with pytest.raises(ValueError, match="do not fit"):
        load(tmp_path, encoder=nn.Linear(5, 4))
    fresh = make()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    assert_equal_answers(load(tmp_path, encoder=fresh), model)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, before[name])  # filled is a copy


def test_own_autoencoder_wants_both(tmp_path):
    model = Autoencoder(encoder=EndsInActivation(), decoder=nn.Linear(3, 5), max_iter=2).fit(X)
    model.save(tmp_path)
    with pytest.raises(ValueError, match="encoder=module, decoder=module"):
        load(tmp_path)
    loaded = load(tmp_path, encoder=EndsInActivation(), decoder=nn.Linear(3, 5))
    assert loaded.transform(X).tobytes() == model.transform(X).tobytes()


class Transposed(nn.Module):
    """A decoder that shares the weights of the encoder."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, z):
        return z @ self.linear.weight


def test_tied_weights(tmp_path):
    encoder = nn.Linear(5, 3)
    model = Autoencoder(encoder=encoder, decoder=Transposed(encoder), max_iter=5).fit(X)
    assert model.module_.encoder is model.module_.decoder.linear
    model.save(tmp_path)
    other = nn.Linear(5, 3)
    loaded = load(tmp_path, encoder=other, decoder=Transposed(other))
    codes = model.transform(X)
    assert np.array_equal(loaded.transform(X), codes)
    assert np.array_equal(loaded.inverse_transform(codes), model.inverse_transform(codes))


def test_own_decoder_after_an_encoder_like_the_librarys(tmp_path):
    """Its weights have the names of the library's decoder, but it computes something else."""
    encoder = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    decoder = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Sigmoid())
    model = Autoencoder(encoder=encoder, decoder=decoder, max_iter=5).fit(X)
    model.save(tmp_path)
    with pytest.raises(ValueError, match="encoder=module, decoder=module"):
        load(tmp_path)
    loaded = load(tmp_path, encoder=encoder, decoder=decoder)
    codes = model.transform(X)
    assert np.array_equal(loaded.inverse_transform(codes), model.inverse_transform(codes))


def test_modules_for_the_librarys_own_network(model, tmp_path):
    model.save(tmp_path)
    with pytest.raises(ValueError, match="without encoder"):
        load(tmp_path, encoder=nn.Linear(5, 3))


def test_nothing_is_pickled(model, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    for owner, name in (
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Pickler"),
        (pickle, "Unpickler"),
        (torch, "save"),
        (torch, "load"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    model.save(tmp_path)
    assert_equal_answers(load(tmp_path), model)
    for path in tmp_path.iterdir():
        assert path.suffix in (".json", ".safetensors")
    safetensors.torch.load_file(next(tmp_path.glob("*.safetensors")))
