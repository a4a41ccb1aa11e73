"""Muon equals torch's on matrices and AdamW on the rest, however the matrices are batched."""

import copy

import pytest
import torch
from torch import nn

from lgfast.assembly.run import train_run
from lgfast.config import load_recipe, replace
from lgfast.models import create_model
from lgfast.optim.build import build_optimizer
from lgfast.optim.muon import Muon, orthogonalise
from tests.runs import metrics, tiny_config


class Model(nn.Module):
    """Two blocks of two shapes of matrices, and layers around them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)) for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)

    def matrices(self):
        return [layer.weight for block in self.blocks for layer in (block[0], block[2])]

    def rest(self):
        inside = set(map(id, self.matrices()))
        return [p for p in self.parameters() if id(p) not in inside]


def ours(model, **options):
    rest = [{"params": model.rest(), "weight_decay": 0.01}]
    return Muon(model.matrices(), rest, lr=0.01, weight_decay=0.1, **options)


def plain(model):
    muon = torch.optim.Muon(model.matrices(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(model.rest(), lr=0.01, weight_decay=0.01)


def train(model, optimizers, steps, first=0):
    for step in range(first, first + steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_one_step_is_torchs_to_the_last_bit_of_its_bfloat16_products():
    models = Model(), Model()
    train(models[0], [ours(models[0], dtype=torch.bfloat16)], 1)
    train(models[1], plain(models[1]), 1)
    start = Model()
    for a, b, before in zip(models[0].parameters(), models[1].parameters(), start.parameters(), strict=True):
        moved = (b - before).abs().max().item()
        assert (a - b).abs().max().item() <= 2**-6 * moved  # two bfloat16 roundings of sums of up to 24 products


def test_a_hundred_steps_stay_beside_torchs():
    models = Model(), Model()
    train(models[0], [ours(models[0], dtype=torch.bfloat16)], 100)
    train(models[1], plain(models[1]), 100)
    start = Model()
    for a, b, before in zip(models[0].parameters(), models[1].parameters(), start.parameters(), strict=True):
        assert (a - b).norm() <= 0.05 * (b - before).norm()


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (4, 8, 8)])
def test_singular_vectors_stay_and_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = u.mT @ orthogonalise(matrices, torch.float64) @ vh.mT
    values = result.diagonal(dim1=1, dim2=2)
    assert ((values > 0.3) & (values < 1.3)).all()
    off = result - torch.diag_embed(values)
    assert off.abs().max() < 1e-9


def test_float32_products_follow_float64():
    matrices = torch.randn(3, 16, 48)
    exact = orthogonalise(matrices.double(), torch.float64)
    # Five iterations multiply a rounding of 2**-24 by at most 3.4445 each, over sums of 48 terms.
    assert (orthogonalise(matrices, torch.float32) - exact).abs().max() < 3.4445**5 * 48 * 2**-24


def test_a_batch_of_matrices_is_each_of_them():
    matrices = torch.randn(5, 8, 24, dtype=torch.float64)
    together = orthogonalise(matrices, torch.float64)
    torch.testing.assert_close(together, torch.cat([orthogonalise(m[None], torch.float64) for m in matrices]))


def test_a_continued_run_is_the_same_bit_for_bit():
    whole, first, second = Model(), Model(), Model()
    train(whole, [ours(whole)], 10)
    optimizer = ours(first)
    train(first, [optimizer], 4)
    state = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second.load_state_dict(state[0])
    continued = ours(second)
    continued.load_state_dict(state[1])
    train(second, [continued], 6, first=4)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_group_s_learning_rate_counts():
    model = Model()
    optimizer = ours(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    train(model, [optimizer], 2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_an_overflow_of_a_scaled_loss_leaves_everything_as_it_is():
    model = Model()
    optimizer, scaler = ours(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(model, [optimizer], 2)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    scaler.scale(model(torch.randn(4, 6)).sum() * 1e38).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**10
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for a, b in zip(
        optimizer.state_dict()["matrices"]["momentum_buffers"], state["matrices"]["momentum_buffers"], strict=True
    ):
        assert torch.equal(a, b)


def test_a_scaled_loss_gives_the_unscaled_step():
    scaled, unscaled = Model(), Model()
    optimizer, scaler = ours(scaled), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        scaler.scale((scaled(x) - x[:, :3].sin()).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    train(unscaled, [ours(unscaled)], 3)
    for a, b in zip(scaled.parameters(), unscaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "num_matrices"),
    [("deit_tiny_patch16_224", 48), ("t2t_vit_7", 28), ("pit_ti_224", 48), ("pvt_tiny", 40), ("pvt_v2_b0", 40),
     ("convit_tiny", 58), ("cvt_13", 78)],
)  # fmt: skip
def test_the_matrices_of_every_student_s_blocks_are_found(name, num_matrices):
    model = create_model(name, num_classes=5)
    config = replace(load_recipe("cifar100-deit-ti-base"), {"optim.name": "muon"}).optim
    optimizer = build_optimizer(model.named_parameters(), config)
    in_matrices = [p for batch in optimizer.batches for p in batch.parameters]
    assert len(in_matrices) == num_matrices
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in everything}) == sum(p.requires_grad for p in model.parameters()) == len(everything)
    assert not any(p is model.get_classifier().weight for p in in_matrices)


def test_a_cnn_has_no_blocks_to_train_with_it():
    config = replace(load_recipe("cifar100-resnet56"), {"optim.name": "muon"}).optim
    with pytest.raises(ValueError, match=r"optim\.name=muon: Muon: there must be matrices to train"):
        build_optimizer(create_model("cifar_resnet8", num_classes=5).named_parameters(), config)


def test_the_state_of_another_optimizer_is_refused():
    model = Model()
    with pytest.raises(ValueError, match="expected the state of a Muon"):
        ours(model).load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_guided_run_learns_with_it(tmp_path, precision):
    changes = {"optim.name": "muon", "optim.warmup_epochs": 0, "precision": precision, "max_steps": 12}
    train_run(tiny_config(tmp_path, **changes))
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]
