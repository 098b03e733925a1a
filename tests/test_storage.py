import hashlib
import json
import os
import shutil

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


@pytest.mark.parametrize("name", ["labels_", "init_labels_", "history_", "autoencoder_"])
def test_what_belongs_to_the_fit_says_so(model, tmp_path, name):
    model.save(tmp_path)
    with pytest.raises(AttributeError, match=f"{name} belongs to the fit"):
        getattr(load(tmp_path), name)


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


@pytest.mark.parametrize("moment", [0, 1])
def test_a_crash_leaves_the_old_model(model, tmp_path, monkeypatch, moment):
    """Stop before the weights, then before config.json, gets its final name."""
    model.save(tmp_path)
    replace, calls = os.replace, []

    def crash(source, target):
        if len(calls) == moment:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            fitted(random_state=1).save(tmp_path)
    assert_equal_answers(load(tmp_path), model)
    # The next save clears away what the crash left.
    model.save(tmp_path)
    assert not [name for name in files(tmp_path) if name.startswith("weights") and "part" in name]
    assert_equal_answers(load(tmp_path), model)


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


def test_modules_for_the_librarys_own_network(model, tmp_path):
    model.save(tmp_path)
    with pytest.raises(ValueError, match="without encoder"):
        load(tmp_path, encoder=nn.Linear(5, 3))


def test_nothing_is_pickled(model, tmp_path):
    model.save(tmp_path)
    for path in tmp_path.iterdir():
        assert path.suffix in (".json", ".safetensors")
    safetensors.torch.load_file(next(tmp_path.glob("*.safetensors")))
