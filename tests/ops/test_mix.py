"""mixup and cutmix against timm's Mixup on the same weight and box, their distribution, and the step's view of them."""

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import Mixup
from torch.nn import functional as F

from lgfast.ops import random as philox
from lgfast.ops.mix import MIX_COLUMNS, mix_images, mix_labels, mix_plan
from lgfast.spec.augment import AugmentSpec

SIZE, BATCH, CLASSES, COUNTER = 28, 8, 5, torch.tensor([3, 1])
NUM_DRAWS, SMALLEST_P = 100_000, 1e-4


def draw(count, counter=COUNTER, **alphas):
    return mix_plan(AugmentSpec(image_size=SIZE, teacher_size=4, **alphas), counter, torch.arange(count))


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(dtype)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def timm_mixed(images, labels, step, monkeypatch, smoothing, alphas):
    """timm's mixture with our random numbers; it pairs i with B - 1 - i, so the batch is re-ordered."""
    words = philox.sample_bits(COUNTER, torch.tensor([step]), philox.MIX_BLOCK)[0]
    is_cutmix = philox.uniform(words[0]) < 0.5 if len(alphas) == 2 else "cutmix_alpha" in alphas
    alpha = alphas["cutmix_alpha" if is_cutmix else "mixup_alpha"]
    quantile = stats.beta.ppf((int(words[1]) + 0.5) / 2**32, alpha, alpha)
    coins, centres = iter([0.0, float(philox.uniform(words[0]))]), iter(words[2:])
    monkeypatch.setattr(np.random, "rand", lambda: next(coins))
    monkeypatch.setattr(np.random, "beta", lambda *_: quantile)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: int(philox.below(next(centres), high)))
    off = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    mixup = Mixup(**(off | alphas), label_smoothing=smoothing, num_classes=CLASSES)
    monkeypatch.setattr("torch.full", lambda *a, full=torch.full, **k: full(*a, **{**k, "device": "cpu"}))
    half = BATCH // 2
    order = torch.cat((torch.arange(half), torch.arange(half, BATCH).flip(0)))
    mixed, targets = mixup(images[order].clone(), labels[order])
    back = order.argsort()
    return mixed[back], targets[back]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "alphas",
    [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}],
    ids=["mixup", "cutmix", "both"],
)
def test_mixture_is_timms(alphas, smoothing, monkeypatch):
    images, labels = batch()
    for step, row in enumerate(draw(20, **alphas)):
        with monkeypatch.context() as patch:
            expected, targets = timm_mixed(images, labels, step, patch, smoothing, alphas)
        # Two products and a sum in float32, each rounded once, on values up to 5.
        torch.testing.assert_close(mix_images(images, row), expected, rtol=0, atol=2e-6)
        logits = torch.randn(BATCH, CLASSES)
        loss = F.cross_entropy(logits, mix_labels(labels, row, CLASSES), label_smoothing=smoothing)
        timm_loss = (-targets * F.log_softmax(logits, dim=1)).sum(1).mean()
        torch.testing.assert_close(loss, timm_loss)


def test_cutmix_copies_whole_pixels_and_weighs_labels_by_area():
    images, labels = batch()
    for row in draw(50, cutmix_alpha=1.0):
        mixed = mix_images(images, row)
        partner = torch.cat((images[BATCH // 2 :], images[: BATCH // 2]))
        pasted = (mixed == partner).all(1)
        assert torch.equal(torch.where(pasted[:, None], partner, images), mixed)
        _, _, _, height, width, label = row.tolist()
        assert pasted.sum() == BATCH * height * width and label == 1 - height * width / SIZE**2
        assert torch.allclose(mix_labels(labels, row, CLASSES).sum(1), torch.ones(BATCH))


def test_drawn_weights_follow_timms_distributions():
    """The marginals over 100,000 draws: Beta, a fair choice, timm's boxes."""
    both = dict(zip(MIX_COLUMNS, draw(NUM_DRAWS, mixup_alpha=0.3, cutmix_alpha=1.0).T.numpy(), strict=True))
    is_cutmix = both["outside"] == 1
    assert abs(is_cutmix.mean() - 0.5) < 4 * 0.5 / NUM_DRAWS**0.5
    assert stats.kstest(both["outside"][~is_cutmix], stats.beta(0.3, 0.3).cdf).pvalue > SMALLEST_P
    random = np.random.default_rng(0)
    cut = (SIZE * np.sqrt(1 - random.beta(1.0, 1.0, NUM_DRAWS))).astype(int)
    for name, side in (("top", "height"), ("left", "width")):
        centre = random.integers(0, SIZE, NUM_DRAWS)
        low, high = np.clip(centre - cut // 2, 0, SIZE), np.clip(centre + (cut + 1) // 2, 0, SIZE)
        for ours, theirs in ((both[name], low), (both[side], high - low)):
            counts = [np.bincount(v.astype(int), minlength=SIZE + 1) for v in (ours[is_cutmix], theirs)]
            table = np.array(counts)[:, np.sum(counts, axis=0) > 20]
            assert stats.chi2_contingency(table).pvalue > SMALLEST_P


def test_a_draw_depends_on_seed_epoch_and_step_alone():
    spec = AugmentSpec(image_size=SIZE, mixup_alpha=0.8, teacher_size=4)
    whole = draw(40, mixup_alpha=0.8)
    assert torch.equal(mix_plan(spec, COUNTER, torch.tensor([17, 3])), whole[[17, 3]])
    assert not torch.equal(draw(40, torch.tensor([3, 2]), mixup_alpha=0.8), whole)


def test_low_precision_is_rounded_once():
    images, _ = batch(torch.bfloat16)
    for row in draw(4, mixup_alpha=1.0):
        exact = row[0] * images.double() + (1 - row[0]) * images.double().roll(-BATCH // 2, 0)
        error = (mix_images(images, row).double() - exact).abs()
        assert (error <= exact.abs() * 2**-8 + 1e-6).all()


def test_images_that_cannot_be_mixed_are_refused():
    with pytest.raises(ValueError, match=r"mix_images: images must be float32, .*, got torch.uint8; cast it"):
        mix_images(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), draw(1, mixup_alpha=1.0)[0])


@pytest.mark.gpu
def test_a_cuda_graph_follows_the_row():
    images, labels = (tensor.cuda() for tensor in batch())
    rows = draw(6, mixup_alpha=0.4, cutmix_alpha=1.0).cuda()
    row = rows[0].clone()
    mix_images(images, row), mix_labels(labels, row, CLASSES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mixed, soft = mix_images(images, row), mix_labels(labels, row, CLASSES)
    for step in range(6):
        row.copy_(rows[step])
        graph.replay()
        assert torch.equal(mixed.cpu(), mix_images(images.cpu(), rows[step].cpu()))
        assert torch.equal(soft.cpu(), mix_labels(labels.cpu(), rows[step].cpu(), CLASSES))
