"""vmrepro: the results of VideoMamba (arXiv 2403.06977), recomputed and judged."""

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
