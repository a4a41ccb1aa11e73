"""Any timm CNN can be a teacher at any input size."""

import pytest
import timm
import torch
from torch import nn

from lgfast.models import create_model, teacher_stages


@pytest.mark.parametrize(
    ("name", "image_size", "stages", "shapes"),
    [
        ("cifar_resnet56", 32, (0, 1, 2), [(16, (32, 32)), (32, (16, 16)), (64, (8, 8))]),
        ("cifar_resnet8", 17, (0, 1, 2), [(16, (17, 17)), (32, (9, 9)), (64, (5, 5))]),
        ("resnet18", 32, (1, 3, 4), [(64, (8, 8)), (256, (2, 2)), (512, (1, 1))]),
        ("resnet18", 100, (1, 3, 4), [(64, (25, 25)), (256, (7, 7)), (512, (4, 4))]),
        ("convnext_atto", 64, (0, 2, 3), [(40, (16, 16)), (160, (4, 4)), (320, (2, 2))]),
        ("regnety_002", 64, (1, 3, 4), [(24, (16, 16)), (152, (4, 4)), (368, (2, 2))]),
        ("mobilenetv3_small_050", 64, (1, 3, 4), [(8, (16, 16)), (24, (4, 4)), (288, (2, 2))]),
        ("densenet121", 64, (1, 3, 4), [(256, (16, 16)), (1024, (4, 4)), (1024, (2, 2))]),
        ("dla46_c", 64, (2, 4, 5), [(64, (16, 16)), (128, (4, 4)), (256, (2, 2))]),
    ],
)
def test_default_stages_and_shapes(name, image_size, stages, shapes):
    model = create_model(name, num_classes=10, image_size=image_size)
    assert teacher_stages(model, image_size) == (stages, shapes)
    images = torch.randn(2, 3, image_size, image_size)
    maps = model.forward_intermediates(images, indices=list(stages), intermediates_only=True)
    assert [(m.shape[1], tuple(m.shape[2:])) for m in maps] == shapes


def test_batch_statistics_stay_as_they_were():
    model = create_model("cifar_resnet8", num_classes=10, image_size=32)
    teacher_stages(model, 32)
    assert model.training
    assert model.bn1.num_batches_tracked == 0


def test_errors_name_the_model():
    with pytest.raises(ValueError, match=r"Linear: a teacher needs timm's forward_intermediates .* got 0"):
        teacher_stages(nn.Linear(2, 2), 32)
    with pytest.raises(ValueError, match=r"dla46_c: cannot run at image size 2"):
        teacher_stages(timm.create_model("dla46_c", num_classes=2), 2)
