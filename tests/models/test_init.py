import subprocess
import sys

import pytest
import torch

import vmrepro
from vmrepro.models import VideoMamba, create_model, model_spec
from vmrepro.specs.schema import SIZES


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_of_table_1(size):
    with torch.device("meta"):
        model = create_model(f"videomamba_{size}")
    assert isinstance(model, VideoMamba)
    assert (len(model.layers), model.num_features) == (SIZES[size]["depth"], SIZES[size]["embed_dim"])
    assert model.spec == model_spec(f"videomamba_{size}")


def test_frames_make_a_video_model():
    model = create_model("videomamba_ti", depth=1, img_size=32, num_classes=4, num_frames=8, backend="reference")
    with torch.no_grad():
        assert model(torch.randn(1, 3, 8, 32, 32)).shape == (1, 4)
    assert len(model.layers) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "videomamba_tiny"}, "did you mean 'videomamba_ti'"),
        ({"name": "resnet50"}, "known are videomamba, videomamba_b"),
        ({"name": "videomamba_ti", "num_class": 4}, "did you mean 'num_classes'"),
        ({"name": "videomamba_ti", "zzz": 4}, "known are bidirectional"),
        ({"name": "videomamba", "depth": 2}, "give embed_dim"),
        ({"name": "videomamba"}, "give depth and embed_dim"),
        ({"name": "videomamba_ti", "img_size": 8}, "smaller than one patch"),
        ({"name": "videomamba_ti", "img_size": "224"}, r"an integer or \(height, width\)"),
        ({"name": "videomamba_ti", "img_size": (3, 224, 224)}, r"an integer or \(height, width\)"),
        ({"name": "videomamba_ti", "num_classes": -1}, "0 or a positive integer"),
        ({"name": "videomamba_ti", "num_frames": 5, "kernel_size": 2}, "not a multiple"),
    ],
    ids=str,
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_a_square_is_the_same_model_however_it_is_written():
    assert model_spec("videomamba_ti", img_size=(96, 96)) == model_spec("videomamba_ti", img_size=96)
    assert model_spec("videomamba_ti", img_size=[96, 64]).image_hw == (96, 64)


def test_the_package_offers_it_too():
    assert vmrepro.create_model is create_model


def test_importing_the_package_loads_neither_torch_nor_timm():
    code = "import sys, vmrepro; print(sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_models_does_not_load_timm():
    code = "import sys, vmrepro.models; print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
