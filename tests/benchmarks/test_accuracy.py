import hashlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import accuracy
from deepclust import datasets


def encoder(*weights):
    module = torch.nn.Linear(len(weights), 1, bias=False)
    module.load_state_dict({"weight": torch.tensor([weights])})
    return module


def test_relative_change_by_hand():
    before, after = encoder(3.0, 4.0), encoder(3.0, 4.5)
    # |(0, 0.5)| / |(3, 4)| = 0.5 / 5
    assert accuracy.relative_change(before.state_dict(), after.state_dict()) == 0.1


def test_weights_that_do_not_match_are_no_change_of_zero():
    with pytest.raises(ValueError, match="different weights"):
        accuracy.relative_change({}, encoder(3.0).state_dict())


def test_encoder_is_kept_as_before_the_first_step():
    net = SimpleNamespace(encoder=encoder(3.0, 4.0))
    start = accuracy.EncoderAtStart()
    start(SimpleNamespace(phase="pretrain", state=SimpleNamespace(module=None)))
    event = SimpleNamespace(phase="self-train", state=SimpleNamespace(module=net))
    start(event)
    with torch.no_grad():
        net.encoder.weight += 1  # a step
    start(event)
    assert start.weights["weight"].tolist() == [[3.0, 4.0]]


def test_evidence_counts_refreshes_and_what_moved():
    dec = SimpleNamespace(
        history_=[
            {"phase": "pretrain", "reconstruction": 0.5},
            {"phase": "self-train", "refresh": True},
            {"phase": "self-train", "kl": 0.3},
            {"phase": "self-train", "refresh": True, "changed": 0.25},
            {"phase": "self-train", "kl": 0.2},
            {"phase": "self-train", "refresh": True, "changed": 0.0},
        ],
        module_=SimpleNamespace(encoder=encoder(3.0, 4.5)),
        init_labels_=np.array([0, 0, 1, 1]),
        labels_=np.array([0, 1, 1, 1]),
        n_iter_=280,
    )
    assert accuracy.evidence(dec, encoder(3.0, 4.0).state_dict()) == {
        "refreshes": 3,
        "changed": [0.25, 0.0],
        "encoder_change": 0.1,
        "labels_moved": 0.25,
        "n_iter": 280,
    }


def test_digest_is_that_of_the_numbers_whatever_the_type():
    expected = hashlib.sha256(bytes([1, *[0] * 7, 2, *[0] * 7])).hexdigest()
    for dtype in (np.int32, np.int64, ">i8", np.uint8):
        assert accuracy.digest(np.array([1, 2], dtype=dtype)) == expected


@pytest.mark.parametrize(("skip", "code"), [(False, 1), (True, 0)])
def test_data_set_that_cannot_be_had(monkeypatch, capsys, skip, code):
    def load(name, return_X_y):
        raise datasets.DatasetError(f"no {name}")

    monkeypatch.setattr(accuracy, "Recorder", lambda name, command: None)
    monkeypatch.setattr(datasets, "load", load)
    assert accuracy.record("usps", 0, skip_unavailable=skip) == code
    assert "usps, seed 0: skipped, no usps" in capsys.readouterr().err


def test_each_line_comes_from_a_process_of_its_own(monkeypatch):
    calls = []
    monkeypatch.setattr(accuracy.subprocess, "call", lambda command: calls.append(command) or 0)
    assert accuracy.main(["digits", "usps", "--seeds", "0", "3", "--skip-unavailable"]) == 0
    start = [sys.executable, "-m", "benchmarks.accuracy"]
    assert calls == [
        [*start, dataset, "--seeds", seed, "--skip-unavailable"]
        for dataset in ("digits", "usps")
        for seed in ("0", "3")
    ]


def test_first_failure_ends_it(monkeypatch):
    calls = []
    monkeypatch.setattr(accuracy.subprocess, "call", lambda command: calls.append(command) or 2)
    assert accuracy.main(["digits", "--seeds", "0", "1"]) == 2
    assert len(calls) == 1
