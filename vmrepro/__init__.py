"""vmrepro: the results of VideoMamba (arXiv 2403.06977), recomputed and judged."""

import importlib.abc
import sys

from vmrepro import torchvision_cpu

torchvision_cpu.install()

__version__ = "0.1.0"
__all__ = ["create_model"]


def __getattr__(name: str):
    # Lazy, so that listing and help never pay for importing torch.
    if name == "create_model":
        from vmrepro.models import create_model

        return create_model
    raise AttributeError(f"module 'vmrepro' has no attribute {name!r}")


def _register_with_timm() -> None:
    from vmrepro.models import timm_registry  # noqa: F401


class _WhenTimmIsImported(importlib.abc.MetaPathFinder):
    """Registers our models right after timm has been imported; importing it for their sake would take seconds."""

    def find_spec(self, name, path=None, target=None):
        if name != "timm":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _register_with_timm()

            spec.loader.exec_module = exec_module
        return spec


if "timm" in sys.modules:
    _register_with_timm()
else:
    sys.meta_path.insert(0, _WhenTimmIsImported())
