import copy
import pickle
from functools import wraps

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from deepclust import Autoencoder

X, _ = make_blobs(n_samples=200, n_features=6, centers=4, random_state=0)


def small(**changes):
    return Autoencoder(
        **{"hidden": (8,), "bottleneck": 3, "max_iter": 20, "random_state": 0} | changes
    )


def weights(model):
    return torch.cat([value.flatten() for value in model.module_.state_dict().values()])


def test_scikit_learns_checks(monkeypatch):
    moved = []
    network, fit = Autoencoder._network, Autoencoder.fit

    def started(self, seed):
        self.start_ = network(self, seed)
        return copy.deepcopy(self.start_)

    @wraps(fit)
    def watched(self, X, y=None):
        fit(self, X, y)
        trained = self.module_.state_dict()
        start = vars(self).pop("start_").state_dict()
        moved.append([not torch.equal(value, trained[name]) for name, value in start.items()])
        return self

    monkeypatch.setattr(Autoencoder, "_network", started)
    monkeypatch.setattr(Autoencoder, "fit", watched)
    results = check_estimator(Autoencoder(max_iter=50), on_fail=None, on_skip=None)
    failed = {
        result["check_name"]: result["exception"]
        for result in results
        if result["status"] not in ("passed", "skipped")
    }
    assert not failed
    # Needs an environment variable before SciPy is imported, and is about GPU arrays.
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}
    assert len(moved) > 20
    assert all(all(parameters) for parameters in moved)


def test_default_network_is_the_papers():
    model = Autoencoder(max_iter=1).fit(X)
    widths = [layer.out_features for layer in model.module_.encoder if isinstance(layer, nn.Linear)]
    assert widths == [500, 500, 2000, 10]
    widths = [layer.out_features for layer in model.module_.decoder if isinstance(layer, nn.Linear)]
    assert widths == [2000, 500, 500, 6]


def test_transform_is_the_encoder_of_scaled_rows():
    model = small().fit(X)
    scaled = torch.from_numpy((X * model.scaling_.factor).astype(np.float32))
    with torch.no_grad():
        z = model.module_.encoder(scaled).numpy()
        x_hat = model.module_.decoder(torch.from_numpy(z)).numpy() / model.scaling_.factor
    np.testing.assert_allclose(model.transform(X), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.inverse_transform(z), x_hat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaling", ["unit", "standard", 0.1])
def test_inverse_transform_gives_input_units(scaling):
    """With enough steps and no bottleneck, rows come back as they were."""
    model = small(bottleneck=6, hidden=(64,), max_iter=800, lr=0.01, scaling=scaling).fit(X + 50)
    back = model.inverse_transform(model.transform(X + 50))
    assert back.dtype == np.float32
    assert np.abs(back - (X + 50)).mean() < 0.25 * X.std()


def test_wrong_code_width():
    with pytest.raises(ValueError, match="has 4 columns; codes of this autoencoder have 3"):
        small().fit(X).inverse_transform(np.zeros((2, 4)))


def test_training_lowers_the_loss():
    model = small(max_iter=600, lr=0.01).fit(X)
    losses = [record["reconstruction"] for record in model.history_]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2
    assert model.n_iter_ == 600


def test_layerwise_stages_in_order():
    model = small(hidden=(8, 8), layerwise=True, max_iter=250).fit(X)
    # 3 layers and the fine-tuning, which is as long as two: 250 / 5 steps each
    last = {record["stage"]: record["step"] for record in model.history_}
    assert last == {"layer 1": 50, "layer 2": 50, "layer 3": 50, "autoencoder": 100}
    assert list(last) == ["layer 1", "layer 2", "layer 3", "autoencoder"]
    assert model.n_iter_ == 250


def test_layerwise_wants_mirrored_layers():
    encoder = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
    with pytest.raises(ValueError, match="layerwise=False"):
        small(encoder=encoder, decoder=nn.Linear(3, 6), layerwise=True).fit(X)


def test_layerwise_takes_own_layers_of_that_form():
    encoder = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    decoder = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6))
    model = small(encoder=encoder, decoder=decoder, layerwise=True, max_iter=40).fit(X)
    assert model.transform(X).shape == (200, 3)


@pytest.mark.parametrize("layerwise", [False, True])
def test_same_seed_same_bits(layerwise):
    first, second = (small(layerwise=layerwise).fit(X) for _ in range(2))
    other = small(layerwise=layerwise, random_state=1).fit(X)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_own_modules_are_copied():
    encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
    before = copy.deepcopy(encoder.state_dict())
    model = small(encoder=encoder, decoder=decoder).fit(X)
    assert model.transform(X).shape == (200, 2)
    assert model.get_feature_names_out().tolist() == ["autoencoder0", "autoencoder1"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(model.module_.encoder.weight, encoder.weight)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (nn.Linear(6, 2), None, "Only one of encoder and decoder"),
        (nn.Linear(5, 2), nn.Linear(2, 5), "do not take X's 6 columns"),
        (nn.Linear(6, 2), nn.Linear(2, 5), r"decoder \(2, 5\)"),
    ],
)
def test_own_modules_that_do_not_fit(encoder, decoder, message):
    with pytest.raises(ValueError, match=message):
        small(encoder=encoder, decoder=decoder).fit(X)


# -- an estimator among others ---------------------------------------------------------------------


def test_outputs():
    model = small()
    codes = model.fit_transform(X)
    assert codes.shape == (200, 3)
    assert codes.dtype == np.float32
    assert np.array_equal(codes, model.transform(X))
    assert model.n_features_in_ == 6
    assert set(model.phase_seconds_) == {"scaling", "pretrain"}
    back = model.inverse_transform(codes.tolist())
    assert back.shape == X.shape
    assert back.dtype == np.float32
    assert np.array_equal(back, model.inverse_transform(codes))


def test_standard_scaling_is_undone():
    model = small(scaling="standard").fit(X)
    scaler = StandardScaler().fit(X)
    with torch.no_grad():
        z = model.module_.encoder(torch.from_numpy(scaler.transform(X).astype(np.float32)))
        x_hat = model.module_.decoder(z).numpy()
    np.testing.assert_allclose(model.transform(X), z.numpy(), rtol=1e-4, atol=1e-5)
    expected = scaler.inverse_transform(x_hat)
    np.testing.assert_allclose(model.inverse_transform(z.numpy()), expected, rtol=1e-4, atol=1e-4)


FORMS = {
    "list": lambda data: data.tolist(),
    "Fortran order": np.asfortranarray,
    "data frame": pd.DataFrame,
    "CSR": sparse.csr_array,
    "CSC": sparse.csc_matrix,
}


@pytest.mark.parametrize("form", FORMS)
def test_reads_every_form_of_a_table(form):
    expected = small().fit(X)
    data = FORMS[form](X)
    model = small().fit(data)
    assert torch.equal(weights(model), weights(expected))
    assert np.array_equal(model.transform(data), expected.transform(X))


def test_set_output_and_names():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = small().set_output(transform="pandas").fit(frame)
    assert list(model.feature_names_in_) == list("abcdef")
    embedded = model.transform(frame)
    assert list(embedded.columns) == ["autoencoder0", "autoencoder1", "autoencoder2"]
    assert (embedded.dtypes == np.float32).all()
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[list("fedcba")])


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("hidden", "bottleneck"), [((8,), 3), ((17, 9), 5), ((48,), 16)])
def test_a_row_gives_the_same_bits_in_any_company(n_threads, hidden, bottleneck):
    data = make_blobs(n_samples=600, n_features=11, random_state=0)[0]
    model = small(hidden=hidden, bottleneck=bottleneck).fit(data)
    rng = np.random.default_rng(0)
    subsets = [[i] for i in (*range(9), 255, 256, 599)]
    subsets += [rng.permutation(600)[:n] for n in (2, 7, 16, 31, 255, 256, 257, 600)]
    torch.set_num_threads(n_threads)
    try:
        codes = model.transform(data)
        back = model.inverse_transform(codes)
        for rows in subsets:
            assert model.transform(data[rows]).tobytes() == codes[rows].tobytes()
            assert model.inverse_transform(codes[rows]).tobytes() == back[rows].tobytes()
    finally:
        torch.set_num_threads(1)


def test_y_is_ignored():
    assert torch.equal(weights(small().fit(X)), weights(small().fit(X, np.arange(200))))


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
def test_copies_of_a_fitted_estimator(duplicate):
    model = small().set_callbacks(lambda event: None).fit(X)
    twin = duplicate(model)
    assert not hasattr(twin, "_callbacks")
    assert np.array_equal(twin.transform(X), model.transform(X))
    expected = model.transform(X)
    for parameter in twin.module_.parameters():
        parameter.data.zero_()
    assert np.array_equal(model.transform(X), expected)


def test_clone_keeps_own_modules():
    model = small(encoder=nn.Linear(6, 2), decoder=nn.Linear(2, 6)).fit(X)
    twin = clone(model)
    assert twin.encoder is not model.encoder
    assert torch.equal(twin.encoder.weight, model.encoder.weight)
    assert torch.equal(weights(twin.fit(X)), weights(model))
    with pytest.raises(NotFittedError):
        clone(model).transform(X)


def test_pipeline():
    model = make_pipeline(StandardScaler(), small(scaling=None))
    codes = model.fit_transform(X)
    assert codes.shape == (200, 3)
    assert model.inverse_transform(codes).shape == X.shape


def test_own_modules_with_buffers():
    """Batch statistics are learnt while training and used, not changed, afterwards."""
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = small(encoder=encoder, decoder=nn.Linear(2, 6)).fit(X)
    assert model.module_.encoder[1].num_batches_tracked == 20
    whole = model.transform(X)
    assert np.array_equal(model.transform(X[:1]), whole[:1])
    assert model.module_.encoder[1].num_batches_tracked == 20


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"hidden": 8}, "hidden=8 is not a tuple"),
        ({"hidden": (8, 0)}, "hidden == 0, must be >= 1"),
        ({"bottleneck": -2}, "bottleneck == -2, must be >= 1"),
        ({"max_iter": 0}, "max_iter == 0, must be >= 1"),
        ({"lr": 0}, "lr == 0, must be > 0"),
        ({"lr": float("nan")}, "lr=nan is not a finite number"),
        ({"batch_size": 0}, "batch_size == 0, must be >= 1"),
        ({"layerwise": "yes"}, "layerwise='yes' is not True or False"),
        ({"encoder": "mlp", "decoder": "mlp"}, "encoder='mlp' is no torch.nn.Module"),
        ({"scaling": "minmax"}, "scaling='minmax' is not one of"),
        ({"random_state": "one"}, "random_state='one' cannot seed a fit"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
        ({"precision": "float16"}, "precision='float16' is not one of"),
    ],
    ids=str,
)
def test_bad_parameters(bad, message):
    model = small(**bad)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(X)
    with pytest.raises(NotFittedError):
        model.transform(X)


def test_before_fit(tmp_path):
    for call in (
        lambda: small().transform(X),
        lambda: small().inverse_transform(X[:, :3]),
        lambda: small().save(tmp_path / "model"),
    ):
        with pytest.raises(NotFittedError, match="This Autoencoder instance is not fitted yet"):
            call()
    assert not (tmp_path / "model").exists()


def test_another_number_of_columns():
    with pytest.raises(ValueError, match="X has 5 features, but Autoencoder is expecting 6"):
        small().fit(X).transform(X[:, :5])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_codes_must_be_finite(bad):
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        small().fit(X).inverse_transform([[0.0, bad, 0.0]])


def test_a_fit_that_fails_leaves_the_earlier_one():
    model = small().fit(X)
    codes = model.transform(X)
    with pytest.raises(FloatingPointError, match=r"'reconstruction' became .* lower learning rate"):
        model.set_params(lr=1e30).fit(X[:, :4])
    assert np.array_equal(model.transform(X), codes)
    fresh = small(lr=1e30)
    with pytest.raises(FloatingPointError):
        fresh.fit(X)
    with pytest.raises(NotFittedError):
        fresh.transform(X)


def test_true_ends_the_stage_and_only_that():
    model = small(hidden=(8, 8), layerwise=True, max_iter=600)
    model.set_callbacks(lambda event: event.stage == "layer 1").fit(X)
    last = {record["stage"]: record["step"] for record in model.history_}
    assert last == {"layer 1": 100, "layer 2": 120, "layer 3": 120, "autoencoder": 240}
    assert model.n_iter_ == 580
