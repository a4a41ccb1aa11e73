"""Teacher statistics over all ranks, with two real gloo processes."""

import torch
from torch import distributed as dist

from lgfast.guidance import Teacher
from lgfast.models import create_model
from tests.processes import context


def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def teacher(bn):
    torch.manual_seed(0)
    return Teacher(create_model("cifar_resnet8", num_classes=10, image_size=16), bn=bn)


def run_rank(rank, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    maps = teacher("synced").features(images()[rank::2])
    results.put((rank, [feature_map.numpy() for feature_map in maps]))
    dist.destroy_process_group()


def test_two_ranks_normalise_as_one_with_the_whole_batch(tmp_path):
    results = context.Queue()
    rendezvous = f"file://{tmp_path}/rendezvous"
    processes = [context.Process(target=run_rank, args=(rank, rendezvous, results)) for rank in range(2)]
    for process in processes:
        process.start()
    by_rank = dict(results.get(timeout=200) for _ in processes)
    for process in processes:
        process.join(timeout=300)
    whole = teacher("batch").features(images())
    for stage, expected in enumerate(whole):
        for rank in range(2):
            found = torch.from_numpy(by_rank[rank][stage])
            torch.testing.assert_close(found, expected[rank::2], rtol=1e-4, atol=1e-5)  # order of float32 sums
            assert not torch.allclose(found, teacher("batch").features(images()[rank::2])[stage], atol=1e-2)


def test_alone_synced_is_the_batch():
    for found, expected in zip(teacher("synced").features(images()), teacher("batch").features(images()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
