"""Model files: a folder of ``config.json`` and safetensors; nothing in it is ever executed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import sklearn
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ._estimator import TorchEstimator
from .autoencoder import Autoencoder
from .cluster import DEC
from .cluster._base import DeepClusterer
from .features import Scaling
from .networks import AutoencoderNet, ClusterNet, Projection, mlp, mlp_widths

__all__ = ["FORMAT_VERSION", "load", "save", "versions"]

FORMAT_VERSION = 1

# A model file names its class by a word of this list; nothing is imported by name.
REGISTRY: dict[str, type[TorchEstimator]] = {"Autoencoder": Autoencoder, "DEC": DEC}

# Belong to the fit and its rows, not to the model.
_NOT_IN_FILE = ("labels_", "init_labels_", "history_", "phase_seconds_", "autoencoder_")


def save(model: TorchEstimator, folder: str | PathLike[str]) -> None:
    """Write a fitted estimator to ``folder``; the same as ``model.save(folder)``.

    The weights are written first, under a name that holds their hash. Replacing ``config.json`` in
    one step makes them the model, then older weights are removed: a crash leaves the old model or
    the new one.

    Parameters
    ----------
    model : Autoencoder or DEC
        Fitted.
    folder : path
        Created when missing.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    """
    if type(model) not in REGISTRY.values():
        raise TypeError(
            f"A {type(model).__name__} cannot be saved; known are {', '.join(REGISTRY)}."
        )
    check_is_fitted(model)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "class": type(model).__name__,
        "parameters": _encode_parameters(model, tensors),
        "n_features_in": model.n_features_in_,
        "feature_names_in": _names(model),
        "n_iter": model.n_iter_,
        "scaling": _encode_scaling(model.scaling_, tensors),
        "network": _encode_network(model, tensors),
        "versions": versions(),
    }
    data = safetensors.torch.save({name: tensors[name].contiguous() for name in sorted(tensors)})
    digest = hashlib.sha256(data).hexdigest()
    config["weights"] = {"file": f"weights-{digest[:16]}.safetensors", "sha256": digest}
    _write(path / config["weights"]["file"], data)
    _write(path / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    for old in path.glob("weights-*.safetensors*"):  # with what a crash left half written
        if old.name != config["weights"]["file"]:
            old.unlink()


def load(
    folder: str | PathLike[str],
    *,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> Any:
    """Load an estimator written by ``save``.

    What ``predict``, ``predict_proba``, ``transform`` and ``score`` need is restored to the bit.
    Attributes of the fit and its rows (``labels_``, ``init_labels_``, ``history_``,
    ``phase_seconds_``, ``autoencoder_``) are not in the file; asking for them says so.

    Parameters
    ----------
    folder : path
        With ``config.json`` and its weights.
    encoder, decoder : torch.nn.Module, optional
        For a model of your own modules: modules of the same structure, copied and filled with the
        saved weights. Only an ``Autoencoder`` needs the decoder.

    Returns
    -------
    Autoencoder or DEC
        On the CPU.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    ValueError
        If the files are damaged, of a newer format, or the modules do not fit.
    """
    path = Path(folder)
    config = _read_config(path)
    tensors = _read_weights(path, config)
    try:
        return _restore(config, tensors, encoder, decoder)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / 'config.json'} lacks or misstates {error}; save the model again."
        ) from error


# -- writing ---------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _names(model: TorchEstimator) -> list[str] | None:
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def versions() -> dict[str, str]:
    """Versions of this library and of those that its numbers depend on."""
    from . import __version__

    return {
        "deepclust": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def _encode_parameters(model: TorchEstimator, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: _encode(name, value, tensors) for name, value in model.get_params(deep=False).items()
    }


def _encode(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, FrozenEstimator):
        return {"frozen": _encode(name, value.estimator, tensors)}
    if isinstance(value, Autoencoder):
        return {"class": "Autoencoder", "parameters": _encode_parameters(value, tensors)}
    if name == "init":
        tensors["parameters.init"] = torch.from_numpy(np.array(value, dtype=np.float64))
        return {"array": "parameters.init"}
    if isinstance(value, list | tuple):
        return [_encode(name, item, tensors) for item in value]
    # Modules are asked for at loading; a generator's state is not a setting.
    return None


def _encode_scaling(scaling: Scaling, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if scaling.shift is None:
        return {"factor": float(scaling.factor)}
    tensors["scaling.factor"] = torch.from_numpy(np.asarray(scaling.factor))
    tensors["scaling.shift"] = torch.from_numpy(scaling.shift)
    return {"factor": "scaling.factor", "shift": "scaling.shift"}


def _encode_network(model: TorchEstimator, tensors: dict[str, Tensor]) -> dict[str, Any]:
    module = model.module_
    encoder = module.encoder
    tensors |= {
        # cloned: tied weights share memory, which safetensors refuses
        f"module.{name}": value.detach().cpu().clone()
        for name, value in module.state_dict().items()
    }
    widths = mlp_widths(encoder)
    if isinstance(module, AutoencoderNet) and widths and mlp_widths(module.decoder) != widths[::-1]:
        widths = None  # a decoder of the user's own
    network: dict[str, Any] = {"widths": widths, "n_dims": model._n_dims}
    if network["widths"] is None:
        network["projection"] = (
            isinstance(encoder, nn.Sequential)
            and len(encoder) > 0
            and isinstance(encoder[-1], Projection)
        )
    if isinstance(model, DeepClusterer):
        tensors["cluster_frequency"] = torch.from_numpy(model.cluster_frequency_)
        tensors["init_cluster_centers"] = torch.from_numpy(model.init_cluster_centers_)
    return network


# -- reading ---------------------------------------------------------------------------------------


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} holds no model: {file.name} is missing. Pass a folder written by save(), or "
            "RUN/model of the command line."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); save the model again.") from error
    if not isinstance(config, dict) or "format_version" not in config:
        raise ValueError(f"{file} is not the configuration of a deepclust model.")
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {config['format_version']}; this deepclust reads version "
            f"{FORMAT_VERSION}. Load it with the version of deepclust that wrote it (see "
            f"'versions' there)."
        )
    if str(config.get("class")) not in REGISTRY:
        raise ValueError(
            f"{file} holds a {config.get('class')!r}; known are {', '.join(REGISTRY)}."
        )
    return cast(dict[str, Any], config)


def _read_weights(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    try:
        name, expected = str(config["weights"]["file"]), config["weights"]["sha256"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path / 'config.json'} names no weights; save the model again."
        ) from error
    if Path(name).name != name:
        raise ValueError(f"{path / 'config.json'} names weights outside its folder: {name!r}.")
    file = path / name
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: copy the whole folder, not config.json alone.")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{file} is damaged: its SHA-256 is not the one in config.json.")
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; save the model again.") from error


def _restore(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    encoder: nn.Module | None,
    decoder: nn.Module | None,
) -> TorchEstimator:
    cls = REGISTRY[config["class"]]
    parameters = _decode_parameters(config["parameters"], tensors)
    if cls is Autoencoder:
        parameters |= {"encoder": encoder, "decoder": decoder}
    model = cls(**parameters)
    model.n_features_in_ = config["n_features_in"]
    if config["feature_names_in"] is not None:
        model.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
    model.n_iter_ = config["n_iter"]
    model.scaling_ = _decode_scaling(config["scaling"], tensors)
    model._n_dims = config["network"]["n_dims"]

    net_encoder, net_decoder = _networks(config, encoder, decoder, need_decoder=cls is Autoencoder)
    state = {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if name.startswith("module.")
    }
    module: nn.Module
    if isinstance(model, DeepClusterer):
        module = ClusterNet(net_encoder, torch.empty_like(state["centroids"]), float(model.alpha))
        model.cluster_frequency_ = tensors["cluster_frequency"].numpy().copy()
        model.init_cluster_centers_ = tensors["init_cluster_centers"].numpy().copy()
    else:
        assert net_decoder is not None
        module = AutoencoderNet(net_encoder, net_decoder)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The modules do not fit the saved weights: {error}") from error
    model.module_ = module.eval()
    model._not_in_file = _NOT_IN_FILE
    return model


def _decode_parameters(parameters: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: _decode(value, tensors) for name, value in parameters.items()}


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, tensors) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return tensors[value["array"]].numpy().copy()
    if "frozen" in value:
        # Unfitted: predicting needs it no more, and fitting again asks for it.
        return FrozenEstimator(_decode(value["frozen"], tensors))
    return Autoencoder(**_decode_parameters(value["parameters"], tensors))


def _decode_scaling(scaling: dict[str, Any], tensors: dict[str, Tensor]) -> Scaling:
    if "shift" not in scaling:
        return Scaling(float(scaling["factor"]))
    return Scaling(
        tensors[scaling["factor"]].numpy().copy(), tensors[scaling["shift"]].numpy().copy()
    )


def _networks(
    config: dict[str, Any],
    encoder: nn.Module | None,
    decoder: nn.Module | None,
    *,
    need_decoder: bool,
) -> tuple[nn.Module, nn.Module | None]:
    """Fresh modules for the saved weights."""
    widths = config["network"]["widths"]
    if widths is not None:
        if encoder is not None or decoder is not None:
            raise ValueError(
                "This model has the library's own network; load it without encoder and decoder."
            )
        return mlp(widths), mlp(widths[::-1])
    missing = [
        name
        for name, module in (("encoder", encoder), ("decoder", decoder))
        if module is None and (name == "encoder" or need_decoder)
    ]
    if missing:
        wanted = ", ".join(f"{name}=module" for name in missing)
        raise ValueError(
            f"This model was fitted with your own modules; load(folder, {wanted}) takes one of the "
            "same structure."
        )
    assert encoder is not None
    encoder, decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
    if config["network"]["projection"]:
        n_dims = config["network"]["n_dims"]
        encoder = nn.Sequential(encoder, Projection(n_dims, n_dims))
    return encoder, decoder
