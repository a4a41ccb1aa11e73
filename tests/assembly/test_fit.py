"""Networks that cannot be trained as asked are refused in one line that names the key, before anything is spent."""

import errno
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lgfast.assembly import cost
from lgfast.assembly.networks import build_student
from lgfast.assembly.run import train_run
from lgfast.assembly.run_folder import for_this_process
from lgfast.assembly.teachers import as_teacher
from lgfast.config import load_recipe, replace
from lgfast.models import create_model
from lgfast.models.patches import covered_sizes
from lgfast.train import main
from tests.runs import tiny_config


def build(changes):
    return build_student(replace(load_recipe("digits-base"), changes), 10, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment.image_size": 17}, r"augment\.image_size: .* rows and columns of images of 17x17 out; use 16 or 18"),
        ({"augment.image_size": 33, "model.patch_size": 4}, r"use 32 or 36, or another model\.patch_size"),
        ({"model.patch_size": 17}, r"model\.patch_size: expected at most augment\.image_size, 16, got 17"),
        ({"model.num_heads": 3}, r"model\.name: create_model: deit_tiny.*: .*\(asked for: .*model\.num_heads=3"),
        ({"model.name": "resnet18"}, r"model\.name: create_model: resnet18: .*patch_size.*--set model\.KEY=none"),
        ({"model.name": "deit_tiny"}, r"model\.name: create_model: .*; did you mean 'deit_tiny_patch16_224'"),
        ({"model.name": "no_such"}, r"model\.name: create_model: name must be a registered model, got 'no_such'"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build(changes)
    assert "\n" not in str(error.value)


SHAPELESS = dict.fromkeys(("model.patch_size", "model.embed_dim", "model.depth", "model.num_heads"))


@pytest.mark.parametrize(
    ("name", "size"),
    [("crossvit_tiny_240", 64), ("vgg11", 16)],
)
def test_models_that_cannot_take_the_size(name, size):
    with pytest.raises(ValueError, match=rf"(augment\.image_size|model\.name)[:=].*{name}") as error:
        build(SHAPELESS | {"model.name": name, "augment.image_size": size, "augment.teacher_size": 0})
    assert "\n" not in str(error.value)


def test_a_run_that_cannot_begin_leaves_nothing_in_the_way(tmp_path, capsys):
    arguments = ["--recipe", "digits-base", "--run-dir", str(tmp_path / "run"), "--set", "model.name=crossvit_tiny_240"]
    arguments += [f"--{key.replace('_', '-')}=none" for key in SHAPELESS]
    assert main([*arguments, "--augment.image-size", "64"]) == 2
    assert capsys.readouterr().err.startswith("error: augment.image_size: model.name=crossvit_tiny_240: cannot run at")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path, monkeypatch):
    made = os.mkdir

    def deny(path, *arguments, **options):
        if Path(path) == tmp_path / "run":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        made(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", deny)
    with pytest.raises(PermissionError, match="Permission denied"), for_this_process(tmp_path / "run"):
        pass


def test_a_student_that_does_not_fit_is_found_before_its_teacher_is_trained(tmp_path):
    config = tiny_config(tmp_path, **{"augment.image_size": 17, "guidance.weight": 1.0})
    with pytest.raises(ValueError, match=r"^augment\.image_size: the patches .* use 16 or 18"):
        train_run(config)
    config = tiny_config(tmp_path, **{"guidance.student_layers": (0, 1, 99)})
    with pytest.raises(ValueError, match=r"^guidance\.student_layers: .* got 99"):
        train_run(config)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("deit_tiny_patch16_224", 224, ()),
        ("deit_tiny_patch16_224", 225, (224, 240)),
        ("deit_tiny_patch16_224", 9, (16,)),
        ("pit_ti_224", 224, ()),  # patches of 16 overlap, every 8 pixels
        ("pit_ti_224", 226, (224, 232)),
        ("pvt_tiny", 224, ()),  # patches of patches: 4, then 2 three times
        ("pvt_tiny", 240, (224, 256)),
        ("pvt_v2_b0", 225, ()),  # its embeddings pad
        ("t2t_vit_7", 225, ()),
        ("cvt_13", 225, ()),
        ("resnet18", 33, ()),
    ],
)
def test_patches_cover_an_image_or_the_nearest_sizes_are_named(name, size, expected):
    with torch.device("meta"):
        model = create_model(name, 2, image_size=224)
    assert covered_sizes(model, size) == expected


@pytest.mark.parametrize("size", [16, 17, 18])
def test_every_pixel_of_a_covered_image_counts(size):
    model = create_model("deit_tiny_patch16_224", 2, image_size=size, patch_size=2, embed_dim=8, depth=1, num_heads=2)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    images = torch.randn(1, 3, size, size, requires_grad=True)
    model.eval()(images)[0, 0].backward()
    sees_all = bool((images.grad != 0).all())
    assert sees_all is (covered_sizes(model, size) == ())


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"data.batch_size": 1}, "use 2 or more"),
        ({"data.batch_size": 4, "step.accumulate": 4}, r"use 8 or more \(step\.accumulate=4"),
    ],
)
def test_a_batch_norm_that_gets_one_value_a_channel_names_the_batch_size(changes, fix):
    """resnet18's last map of an image of 16x16 is one pixel."""
    with pytest.raises(ValueError, match=rf"^data\.batch_size: resnet18 normalises over a batch, .*; {fix}"):
        build(SHAPELESS | {"model.name": "resnet18"} | changes)


def test_one_image_at_a_time_trains_what_needs_no_more():
    state = torch.get_rng_state()
    build({"data.batch_size": 1})
    torch.set_rng_state(state)
    build(SHAPELESS | {"model.name": "cifar_resnet8", "data.batch_size": 1})  # its last map has 4x4 pixels
    build(SHAPELESS | {"model.name": "resnet18", "data.batch_size": 4, "step.accumulate": 2})


def test_a_teacher_that_normalises_one_image_names_the_batch_size():
    config = replace(load_recipe("digits"), {"data.batch_size": 1, "augment.image_size": 16})
    with pytest.raises(ValueError, match=r"^data\.batch_size: resnet18 .*; use 2 or more, or teacher\.bn=running"):
        as_teacher(config, create_model("resnet18", 10, 16))
    as_teacher(replace(config, {"teacher.bn": "running"}), create_model("resnet18", 10, 16))
    as_teacher(config, create_model("cifar_resnet8", 10, 16))


def test_the_cost_of_many_blocks_follows_from_two():
    config = replace(load_recipe("digits-base"), {"model.depth": 7})
    flop, weights = cost.count(config, 10)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = create_model(config.model.name, 10, 16, **config.model.shape_overrides()).eval()
        model(torch.zeros(1, 3, 16, 16))
    assert flop == counter.get_total_flops() and weights == sum(p.numel() for p in model.parameters())


def test_very_many_blocks_are_said_however_small(monkeypatch):
    monkeypatch.setattr(cost, "create_model", lambda name, *args, depth, **shape: create(name, *args, depth, **shape))
    built = []

    def create(name, classes, size, depth, **shape):
        built.append(depth)
        return create_model(name, classes, size, depth=depth, **shape)

    config = replace(load_recipe("digits-base"), {"model.depth": 1000, "model.embed_dim": 4})
    with pytest.warns(UserWarning, match=r"model\.depth=1000.*; its 1000 blocks run one after another"):
        cost.check_cost(config, 10)
    assert built == [1, 2]  # and are never made to be counted


def test_an_unusual_cost_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(load_recipe("cifar100-deit-ti-base"), {"augment.image_size": 1024})
    flop, weights = cost.count(config, 10)
    assert flop == pytest.approx(2 * 12 * (4097 * 12 * 192**2 + 2 * 4097**2 * 192), rel=0.02)
    assert weights == sum(p.numel() for p in create_model("deit_tiny_patch16_224", 10, 1024).parameters())
    with pytest.warns(UserWarning, match=r"augment\.image_size=1024, .*: a step of 128 images .* TFLOP; .* 1\.5 GiB"):
        cost.check_cost(config, 10)


def test_a_cost_that_nobody_pays_is_refused_at_once():
    with pytest.raises(ValueError, match=r"augment\.image_size=4096, .*, model\.patch_size=2.* no machine does that"):
        build({"augment.image_size": 4096})
    with pytest.raises(ValueError, match=r"model\.embed_dim=65536.* the weights in training 4,[0-9.]+ GiB; no "):
        build({"model.embed_dim": 65536})


def test_usual_sizes_are_not_counted(monkeypatch):
    monkeypatch.setattr(cost, "count", pytest.fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("digits", "cifar100-deit-ti-guided", "cifar100-cvt-13-base", "cifar100-resnet18"):
            cost.check_cost(load_recipe(name), 100)
