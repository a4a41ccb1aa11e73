"""create_model builds by name, passes arguments through and says what is wrong."""

import math

import pytest
import torch
import torch.nn.functional as F

from lgfast.models import create_model


@pytest.mark.parametrize("num_classes", [10, 100])
def test_first_loss_of_deit_is_ln_k(num_classes):
    model = create_model("deit_tiny_patch16_224", num_classes=num_classes, image_size=32)
    labels = torch.randint(num_classes, (4,))
    loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32)).double(), labels)
    assert loss.item() == pytest.approx(math.log(num_classes), abs=1e-12)


def test_constructor_arguments_pass_through():
    model = create_model(
        "deit_tiny_patch16_224", num_classes=10, image_size=16, patch_size=2, embed_dim=64, depth=6, num_heads=2
    )
    assert model.pos_embed.shape == (1, 65, 64)
    assert len(model.blocks) == 6


def test_unknown_name_gives_near_ones():
    with pytest.raises(ValueError, match=r"got 'deit_tiny_patch16_225'; did you mean .*deit_tiny_patch16_224"):
        create_model("deit_tiny_patch16_225", num_classes=10)


def test_unknown_argument_names_the_model():
    with pytest.raises(ValueError, match=r"cifar_resnet8: .*window_size"):
        create_model("cifar_resnet8", num_classes=10, window_size=7)


def test_models_without_drop_path_are_built_without_it():
    assert create_model("dla46_c", num_classes=2, drop_path_rate=0.1).num_classes == 2
