"""What all tests share: the package imported before anything it must precede, poisoned memory, error budgets."""

import os

import vmrepro  # noqa: F401  before timm, which needs the torchvision stand-in that this installs

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # lets cuBLAS run in PyTorch's deterministic mode

import pytest
import torch

# By type: how often the error that the type costs the definition itself an implementation may make, and what it may add to
# that in relative RMS. The floors are some ten roundings of float64 and float32, and one of the half types.
BUDGETS = {
    torch.float64: (2.0, 2e-15),
    torch.float32: (2.0, 2e-6),
    torch.bfloat16: (2.0, 4e-3),
    torch.float16: (2.0, 5e-4),
}


@pytest.fixture
def poisoned_memory():
    """Fill memory that PyTorch hands out uninitialised with NaN, so that a test sees what nobody wrote."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
