"""The machine: the one place that knows device, precision, compilation and random streams."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["Purpose", "Runtime", "generator", "resolve", "resolve_seed", "single_threaded"]

Step = Callable[..., Tensor]


class Purpose(IntEnum):
    """What a random stream is for; with the seed and the stage it is the stream's key."""

    WEIGHTS = 0
    ORDER = 1
    DROPOUT = 2
    CENTROIDS = 3


def resolve_seed(random_state: Any) -> int:
    """Turn a ``random_state`` into the one seed of a fit; no global generator is touched.

    Parameters
    ----------
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None
        ``None`` takes fresh entropy from the operating system.

    Returns
    -------
    int
        Seed in ``[0, 2**32)``.

    Raises
    ------
    ValueError
        For anything else.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**32, dtype=np.uint32))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**32))
    if (
        isinstance(random_state, int | np.integer)
        and not isinstance(random_state, bool)
        and 0 <= random_state < 2**32
    ):
        return int(random_state)
    raise ValueError(
        f"random_state={random_state!r} cannot seed a fit; pass an integer in [0, 2**32), a numpy "
        "RandomState or Generator, or None."
    )


def generator(seed: int, stage: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """Random stream of one stage and purpose; ``index`` counts epochs, steps or restarts."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stage, purpose, index)))
    )


@contextmanager
def single_threaded() -> Iterator[None]:
    """One OpenMP thread for what this thread runs.

    scikit-learn's k-means adds the partial sums of its threads in arrival order; with one thread it
    gives the same bits each time. The limit belongs to the calling thread and is taken back at the
    end.
    """
    with threadpool_limits(limits=1, user_api="openmp"):
        yield


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has bfloat16 products; emulated ones are slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    # The public question is younger than the oldest supported torch.
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask()) if ask is not None else False


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute.

    Attributes
    ----------
    device : torch.device
        Where modules and batches live.
    dtype : torch.dtype
        Of the matrix products while training and refreshing; log q, P, the losses and the
        parameters stay float32.
    compile : bool
        Whether step functions go through ``torch.compile``.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    compile: bool = False

    def autocast(self) -> torch.autocast:
        """Context in which matrix products run in ``dtype``; belongs to the calling thread."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    def compiled(self, step: Step) -> Step:
        """Return ``step``, or its compiled form, which falls back to it if compiling fails."""
        if not self.compile:
            return step
        fast = torch.compile(step)
        failed = False

        def run(*args: Any) -> Tensor:
            nonlocal failed
            if not failed:
                try:
                    return fast(*args)
                except torch._dynamo.exc.TorchDynamoException as error:
                    failed = True
                    reason = str(error).strip().splitlines()[0]
                    warnings.warn(
                        f"torch.compile failed ({reason}); going on without it. "
                        "Pass compile=False to skip the try.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
            return step(*args)

        return run


def resolve(
    device: str | torch.device = "auto", precision: str = "auto", compile: bool = False
) -> Runtime:
    """Decide where and how to compute.

    Parameters
    ----------
    device : str or torch.device, default="auto"
        ``"auto"`` takes a CUDA device when there is one, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        ``"auto"`` takes bfloat16 where the device multiplies it in hardware, else float32.
    compile : bool, default=False
        Compile the step functions. Off by default: compiling costs more than it saves in short
        fits.

    Returns
    -------
    Runtime

    Raises
    ------
    ValueError
        For an unknown precision, or a device that torch does not have.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={precision!r} is not one of 'auto', 'float32', 'bfloat16'.")
    if not isinstance(compile, bool | np.bool_):
        raise ValueError(f"compile={compile!r} is not True or False.")
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}); pass "
            "device='cpu' or 'auto'."
        ) from error
    if precision == "auto":
        if place.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = place.type == "cpu" and _cpu_multiplies_bfloat16()
        precision = "bfloat16" if fast else "float32"
    return Runtime(place, getattr(torch, precision), bool(compile))
