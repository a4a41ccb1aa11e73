"""augment and augment_plan on a GPU: the CPU's bytes, streams, graphs, compilation."""

import pytest
import torch

from lgfast import _extension
from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.spec.augment import AugmentSpec
from tests.ops.real_images import pack, photographs, small_images

pytestmark = pytest.mark.gpu
NUM_IMAGES = 500
COUNTER = torch.tensor([7, 2])


@pytest.fixture(scope="module")
def stored():
    return pack(small_images(NUM_IMAGES))


def make(stored, spec, device="cuda", counter=COUNTER, **options):
    stored = [tensor.to(device) for tensor in stored]
    indices = torch.arange(len(stored[1]), device=device)
    plan = augment_plan(spec, stored[2], indices, counter.to(device))
    return augment(*stored, indices, plan, spec, **options)


def test_cuda_kernels_are_in_use():
    assert _extension.has_cuda_kernels()


def test_plan_equals_cpu(stored):
    spec, sizes, indices = AugmentSpec(), stored[2], torch.arange(NUM_IMAGES)
    plan = augment_plan(spec, sizes.cuda(), indices.cuda(), COUNTER.cuda()).cpu()
    expected = augment_plan(spec, sizes, indices, COUNTER)
    torch.testing.assert_close(plan, expected, rtol=1e-12, atol=1e-12)  # cos, log and exp of two math libraries


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"interpolation": "bilinear"},
        {"interpolation": "nearest", "image_size": 32},
        {"image_size": 100, "teacher_size": 20, "rand_augment": "rand-m12-mmax20-mstd4-n4-p0.9-inc1"},
        {"image_size": 384, "teacher_size": 32},
        {"weak": True},
    ],
    ids=["recipe", "bilinear", "nearest", "strong", "in global memory", "weak"],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_equal_cpu(stored, arguments, channels_last):
    """On one plan: bit for bit, noise included."""
    spec = AugmentSpec(**arguments)
    indices = torch.arange(NUM_IMAGES)
    plan = augment_plan(spec, stored[2], indices, COUNTER)
    on_gpu = [tensor.cuda() for tensor in (*stored, indices, plan)]
    result = augment(*on_gpu, spec, torch.bfloat16, channels_last)
    expected = augment(*stored, indices, plan, spec, torch.bfloat16, channels_last)
    for got, wanted in zip(result, expected, strict=True):
        assert torch.equal(got.cpu(), wanted)


def test_views_that_blocks_share_equal_cpu(stored):
    """Few large images: blocks enough for each to be divided."""
    spec, indices = AugmentSpec(image_size=384, teacher_size=32), torch.arange(8)
    for epoch in range(20):
        plan = augment_plan(spec, stored[2][:8], indices, torch.tensor([7, epoch]))
        on_gpu = [tensor.cuda() for tensor in (*stored, indices, plan)]
        expected = augment(*stored, indices, plan, spec, torch.bfloat16)
        for got, wanted in zip(augment(*on_gpu, spec, torch.bfloat16), expected, strict=True):
            assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize("image_size", [32, 224])
def test_large_photographs_equal_cpu(image_size):
    spec = AugmentSpec(image_size=image_size, teacher_size=0).for_evaluation()
    stored = pack([photographs()[0], photographs()[1][:100, :90]])
    indices, plan = torch.arange(2), eval_plan(spec, stored[2])
    on_gpu = [tensor.cuda() for tensor in (*stored, indices, plan)]
    assert torch.equal(augment(*on_gpu, spec)[0].cpu(), augment(*stored, indices, plan, spec)[0])


def test_two_runs_and_a_side_stream_agree(stored):
    expected = make(stored, AugmentSpec())[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = make(stored, AugmentSpec())[0]
    stream.synchronize()
    assert torch.equal(result, expected)


def test_cuda_graph_follows_the_counter(stored):
    spec, counter = AugmentSpec(image_size=64), COUNTER.cuda()
    stored = [tensor.cuda() for tensor in stored]
    indices = torch.arange(NUM_IMAGES, device="cuda")

    def step():
        return augment(*stored, indices, augment_plan(spec, stored[2], indices, counter), spec)[0]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images = step()
    for epoch in (2, 3):
        counter[1] = epoch
        graph.replay()
        assert torch.equal(images, make(stored, spec, counter=torch.tensor([7, epoch]))[0])


def test_empty_batch():
    stored = [tensor[:0] for tensor in pack(small_images(1))]
    assert make(stored, AugmentSpec(image_size=16, teacher_size=4))[0].shape == (0, 3, 16, 16)


def test_opcheck(stored):
    spec = AugmentSpec(image_size=16, teacher_size=4)
    on_gpu = [tensor.cuda() for tensor in stored]
    indices = torch.arange(NUM_IMAGES, device="cuda")
    plan = augment_plan(spec, on_gpu[2], indices, COUNTER.cuda())
    shape = (16, 4, 2, 2, list(spec.fill), list(spec.mean), list(spec.std), torch.bfloat16, True)
    torch.library.opcheck(torch.ops.lgfast.augment, (*on_gpu, indices, plan, *shape))


def test_rejects_tensors_on_two_devices(stored):
    spec = AugmentSpec(image_size=16, teacher_size=0)
    on_gpu = [tensor.cuda() for tensor in stored]
    indices = torch.arange(NUM_IMAGES, device="cuda")
    with pytest.raises(RuntimeError, match="plan must be on cuda:0"):
        augment(*on_gpu, indices, eval_plan(spec, stored[2]), spec)
