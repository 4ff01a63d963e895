"""Lets the torchvision of the package index import beside a CPU build of torch.

The index carries only CUDA builds of torchvision; beside a CPU torch its compiled library cannot load, and importing
it fails on the one operator (``nms``) whose schema nobody declared. This hook declares the schema when torchvision is
first asked for, and does nothing where the library loads.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from pathlib import Path

_declared = None  # the torch.library handle must stay referenced, or the schemas vanish


def _declare_missing_ops() -> None:
    global _declared
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return  # a CPU build of torchvision
        except OSError:
            continue
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class _Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_ops()
        return None


def install() -> None:
    """Arm the hook; call before timm, transformers or torchvision is imported. Costs microseconds, imports nothing."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Hook())
