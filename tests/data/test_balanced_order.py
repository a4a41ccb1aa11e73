"""A balanced epoch shows classes equally often and images of a class evenly; a resume and ranks change nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lgfast.data import build_train_loader, load_dataset
from lgfast.data.permutation import balanced_order
from lgfast.spec.augment import AugmentSpec

SPEC = AugmentSpec(image_size=8, teacher_size=0, rand_augment="")


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any),
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**31),
)
def test_classes_and_the_images_of_a_class_appear_equally_often(counts, seed, epoch):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = balanced_order(labels, seed, epoch)
    assert len(order) == len(labels)
    shown = torch.bincount(order, minlength=len(labels))
    by_class = [int(shown[labels == label].sum()) for label, count in enumerate(counts) if count]
    assert max(by_class) - min(by_class) <= 1 and sum(by_class) == len(labels)
    for label, count in enumerate(counts):
        if count:
            times = shown[labels == label]
            assert int(times.max() - times.min()) <= 1


def unbalanced():
    images = load_dataset("digits", split="train")
    keep = torch.cat([(images.labels == label).nonzero().flatten()[: 5 + 12 * label] for label in range(4)])
    return images.subset(keep)


def loader(batch_size=8, rank=0, world=1):
    return build_train_loader(
        "resident", unbalanced(), SPEC, batch_size=batch_size, seed=3, rank=rank, world=world, balanced=True
    )


def test_it_is_a_pure_function_of_seed_and_epoch_that_shows_other_images_in_each():
    labels = unbalanced().labels
    orders = {(seed, epoch): balanced_order(labels, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert torch.equal(orders[0, 1], balanced_order(labels, 0, 1))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    common = [set(order[labels[order] == 3].tolist()) for order in orders.values()]
    assert len(set(map(frozenset, common))) == 4  # of a class with more images than an epoch shows, other ones


def test_the_order_is_mixed():
    order = balanced_order(torch.arange(4).repeat_interleave(100), seed=1, epoch=0)
    halves = torch.bincount(order[:200] // 100, minlength=4)  # 50 of each are expected, standard deviation 5
    assert int(halves.min()) > 25 and int(halves.max()) < 75


def test_ranks_share_a_batch_and_a_resumed_epoch_goes_on():
    whole = [batch.indices.tolist() for batch in loader()]
    parts = [[batch.indices.tolist() for batch in loader(rank=rank, world=2)] for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    again = loader()
    again.seek(0, 2)
    assert [batch.indices.tolist() for batch in again] == whole[2:]


def test_labels_follow_the_images():
    images = unbalanced()
    batches = list(loader())
    assert all(torch.equal(batch.labels, images.labels[batch.indices]) for batch in batches)
    shown = torch.bincount(torch.cat([batch.labels for batch in batches]), minlength=4)
    assert int(shown.max() - shown.min()) <= 8  # the last partial batch is dropped
