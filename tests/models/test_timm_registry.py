import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vmrepro

timm = pytest.importorskip("timm")
from timm.data import resolve_model_data_config  # noqa: E402

from vmrepro.models import create_model, load_checkpoint  # noqa: E402

TINY = {"depth": 1, "img_size": 32, "num_classes": 10}
NAMES = [f"vmrepro_videomamba_{size}" for size in ("b", "m", "s", "ti")]
# Lets timm import beside a CPU torch before vmrepro is there to see to it.
PREPARE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("prepare", {str(Path(vmrepro.__file__).parent / "torchvision_cpu.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.install()
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import vmrepro, timm",
        PREPARE + "import timm, vmrepro",
        "import vmrepro, importlib.util as util; util.find_spec('timm'); import timm",
    ],
    ids=["vmrepro_first", "timm_first", "looked_for_before"],
)
def test_models_are_registered_in_either_order_of_import(imports):
    code = imports + "\nprint(timm.list_models('vmrepro_*'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(NAMES)


def test_timm_builds_the_same_model():
    torch.manual_seed(0)
    theirs = timm.create_model("vmrepro_videomamba_ti", **TINY, drop_path_rate=0.2)
    torch.manual_seed(0)
    ours = create_model("videomamba_ti", **TINY, drop_path_rate=0.2)
    assert theirs.spec == ours.spec
    assert load_checkpoint(theirs, ours.state_dict()).kept == ()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_size_is_the_one_of_that_name(name):
    with torch.device("meta"):
        assert timm.create_model(name).spec == create_model(name.removeprefix("vmrepro_")).spec


def test_timms_arguments_are_taken():
    arguments = {"img_size": (32, 48), "in_chans": 1, "num_classes": 0, "num_frames": 2, "drop_rate": 0.1}
    model = timm.create_model("vmrepro_videomamba_ti", depth=1, **arguments).eval()
    assert (model.spec.in_chans, model.spec.image_hw, model.spec.drop_rate, model.num_classes) == (1, (32, 48), 0.1, 0)
    with torch.no_grad():
        assert model(torch.randn(2, 1, 2, 32, 48)).shape == (2, 192)


def test_timms_conventions_hold():
    model = timm.create_model("vmrepro_videomamba_ti", **TINY)
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.shape == (192, 3, 16, 16)
    config = resolve_model_data_config(model)
    assert (config["crop_pct"], config["interpolation"]) == (0.875, "bicubic")
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True}, "load_checkpoint"),
        ({"features_only": True}, "forward_features"),
        ({"global_pool": "avg"}, "unknown option 'global_pool'"),
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("vmrepro_videomamba_ti", **arguments)
