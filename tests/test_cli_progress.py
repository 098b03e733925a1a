"""Progress: bars on a terminal, a few plain lines elsewhere."""

import io

import pytest
import torch
from rich.console import Console

from deepclust.cli.progress import Bars, Lines, duration, watch
from deepclust.training import Event


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def console(*, terminal=False):
    return Console(
        file=io.StringIO(), force_terminal=terminal, force_interactive=terminal, width=100
    )


def event(phase, step, n_steps, changed=None, **losses):
    stage = {"pretrain": "autoencoder", "self-train": "clustering"}[phase]
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    return Event(phase, stage, step, n_steps, None, tensors, changed=changed)


def play(looking, clock):
    """A fit: 2 s for 100 steps of pretraining, 4 s for the centroids, self-training in chunks."""
    with looking as progress:
        for step in range(100, 501, 100):
            clock.now += 2
            progress(event("pretrain", step, 500, reconstruction=1 / step))
        clock.now += 4
        progress(event("self-train", 0, 300))
        clock.now += 6
        progress(event("self-train", 100, 300, kl=0.25))
        progress(event("self-train", 100, 300, changed=0.125))
        clock.now += 3
        progress(event("self-train", 200, 300, kl=0.2))
        progress(event("self-train", 200, 300, changed=0.0005))  # below tol: the loop ends


def test_lines():
    clock, out = Clock(), console()
    play(Lines(out, clock=clock), clock)
    assert out.file.getvalue().splitlines() == [
        "pretrain: step 300 of 500, reconstruction 0.003333, 4 s left",
        "pretrain: step 500 of 500, reconstruction 0.002",
        "centroids: placed in 4 s",
        "self-train: step 100 of 300, kl 0.25, at most 12 s left",
        "self-train: step 200 of 300, kl 0.2, 0.05% changed",
    ]


def test_lines_are_few():
    clock, out = Clock(), console()
    with Lines(out, clock=clock) as progress:
        for step in range(1, 1001):
            clock.now += 0.01
            progress(event("pretrain", step, 1000, reconstruction=0.5))
    assert len(out.file.getvalue().splitlines()) == 2


def test_lines_end_where_an_error_strikes():
    clock, out = Clock(), console()

    def interrupted():
        with Lines(out, clock=clock) as progress:
            progress(event("pretrain", 1, 1000, reconstruction=0.5))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert out.file.getvalue() == ""


def test_bars():
    clock, out = Clock(), console(terminal=True)
    play(Bars(out, clock=clock), clock)
    drawn = out.file.getvalue().rsplit("\x1b[2K", 1)[-1]
    for text in ("pretrain", "0.002", "centroids", "placed in 4 s", "self-train", "0.05% changed"):
        assert text in drawn
    assert "left" not in drawn


def test_terminal_decides():
    assert isinstance(watch(console(terminal=True)), Bars)
    assert isinstance(watch(console()), Lines)


def test_duration():
    assert [duration(s) for s in (0.2, 99, 150, 5940, 6000, 90_000)] == [
        "0 s",
        "99 s",
        "2 min",
        "99 min",
        "1 h 40 min",
        "25 h 0 min",
    ]
