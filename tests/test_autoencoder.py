import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from torch import nn

from deepclust import Autoencoder

X, _ = make_blobs(n_samples=200, n_features=6, centers=4, random_state=0)


def small(**changes):
    return Autoencoder(
        **{"hidden": (8,), "bottleneck": 3, "max_iter": 20, "random_state": 0} | changes
    )


def weights(model):
    return torch.cat([value.flatten() for value in model.module_.state_dict().values()])


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
    model = small(bottleneck=6, hidden=(64,), max_iter=1500, lr=0.01, scaling=scaling).fit(X + 50)
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
    model = small(hidden=(8, 8), layerwise=True, max_iter=1500).fit(X)
    # 3 layers and the fine-tuning, which is as long as two: 1500 / 5 steps each
    last = {record["stage"]: record["step"] for record in model.history_}
    assert last == {"layer 1": 300, "layer 2": 300, "layer 3": 300, "autoencoder": 600}
    assert list(last) == ["layer 1", "layer 2", "layer 3", "autoencoder"]
    assert model.n_iter_ == 1500


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
