"""One process by default; under torchrun, one of several that share each batch."""

from __future__ import annotations

import atexit
import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# A rank may wait this long at a barrier while another run of the same id holds the record.
PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor, on every one of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, on every one of them."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the GPU where there is one. RuntimeError when a GPU is asked for and absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {name!r} was asked for, but torch sees no GPU; use device='cpu', or see `vmrepro doctor`")
    return device


def join(device: str) -> World:
    """This process's world: alone, or as torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK) says."""
    place = pick_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, place)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)  # else its threads may outlive the interpreter, which aborts
    return World(dist.get_rank(), size, place)
