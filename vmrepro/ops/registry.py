"""Which implementations of the operators exist, and which of them can run here.

A backend is a module with ``available(device) -> reason | None`` and ``selective_scan``; it may also have ``causal_conv1d``,
``bidirectional_conv``, ``bidirectional_scan`` and ``add_rms_norm``, with the signatures of ``vmrepro.ops`` less ``backend``.
It changes the speed, never the function. For inputs it cannot take it raises NotImplementedError saying what to use instead,
and "auto" goes on to the next one. A backend may also have ``add_norm_mix``, which returns None for what it does not take.
"""

import contextlib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch

Result = TypeVar("Result")

BACKENDS = {
    "reference": "vmrepro.ops.reference",
    "chunked": "vmrepro.ops.chunked",
    "numba": "vmrepro.ops.numba_cpu",
    "cuda": "vmrepro.ops.cuda",
    "mamba_ssm": "vmrepro.ops.mamba_ssm",
}
# What "auto" tries on a device of this type, fastest first; any other type takes the last row.
PREFERENCE = {"cuda": ("cuda", "chunked"), "cpu": ("numba", "chunked"), "other": ("chunked",)}


class BackendUnavailableError(RuntimeError):
    """A known backend was asked for by name and cannot run on this device."""


def available_backends(device: torch.device | str | None = None) -> dict[str, str | None]:
    """Every known backend by name, with None where it runs on ``device`` and otherwise the reason why not.

    Without a device, the CUDA device is meant where there is one, else the CPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return {name: _absence(name, device) for name in BACKENDS}


def candidates(name: str, device: torch.device | str) -> tuple[str, ...]:
    """The backends to try on ``device`` in turn: ``name`` alone, or for "auto" those present there, fastest first.

    Raises ValueError for an unknown name and BackendUnavailableError, with the reason, for one that cannot run there.
    """
    device = torch.device(device)
    if name == "auto":
        preference = PREFERENCE.get(device.type, PREFERENCE["other"])
        return tuple(candidate for candidate in preference if _absence(candidate, device) is None)
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: the known ones are auto, {', '.join(BACKENDS)}")
    if (reason := _absence(name, device)) is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run on {device}: {reason}. Use backend='auto' or another one.")
    return (name,)


def resolve_backend(name: str, device: torch.device | str) -> str:
    """The backend that ``name`` means on ``device``, whatever the inputs; errors as in ``candidates``."""
    return candidates(name, device)[0]


def implementation(function: str, name: str) -> Callable | None:
    """The named function of a backend, or None where it has none of its own."""
    return getattr(importlib.import_module(BACKENDS[name]), function, None)


def first_that_takes(name: str, device: torch.device, attempt: Callable[[str], Result]) -> Result:
    """``attempt(backend)`` for the first candidate that does not raise NotImplementedError; the last one's is passed on."""
    *others, last = candidates(name, device)
    for backend in others:
        with contextlib.suppress(NotImplementedError):
            return attempt(backend)
    return attempt(last)


def _absence(name: str, device: torch.device) -> str | None:
    try:
        module: ModuleType = importlib.import_module(BACKENDS[name])
    except ImportError as error:
        return f"its module does not import ({error})"
    return module.available(device)
