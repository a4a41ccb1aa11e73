"""feature_mse on a GPU: parity with the reference, bits, streams, graphs, compilation."""

import pytest
import torch

from lgfast import _extension
from lgfast.ops import feature_mse
from tests.ops.feature_mse_cases import STUDENT_SIDES, assert_matches_reference, loss_and_grads, make_maps

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def maps():
    return make_maps((14, 14, 14), batch=8, dtype=torch.bfloat16, device="cuda")


def assert_same_bits(result, expected):
    assert torch.equal(result[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(result[1], expected[1], strict=True))


def test_cuda_kernels_are_in_use():
    assert _extension.has_cuda_kernels()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", STUDENT_SIDES)
def test_matches_reference_at_every_recipe_shape(model, dtype):
    student, teacher = make_maps(STUDENT_SIDES[model], batch=8, dtype=dtype, device="cuda")
    loss, grads = loss_and_grads(feature_mse, student, teacher)
    assert_matches_reference(loss, grads, student, teacher, [(n, n) for n in STUDENT_SIDES[model]])


def test_cpu_and_gpu_agree():
    student, teacher = make_maps((14, 14, 14), batch=8)
    loss, grads = loss_and_grads(feature_mse, student, teacher)
    on_gpu = [s.detach().cuda().requires_grad_() for s in student]
    gpu_loss, gpu_grads = loss_and_grads(feature_mse, on_gpu, [t.cuda() for t in teacher])
    torch.testing.assert_close(gpu_loss.cpu(), loss, rtol=1e-6, atol=0)
    for a, b in zip(gpu_grads, grads, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5 * b.abs().max().item())  # order of sums


def test_sliced_and_transposed_inputs_give_the_same_bits(maps):
    student, teacher = maps
    expected = loss_and_grads(feature_mse, student, teacher)
    tokens = [torch.cat([s.detach()[:, :1], s.detach()], 1)[:, 1:].requires_grad_() for s in student]
    assert_same_bits(loss_and_grads(feature_mse, tokens, [t.contiguous() for t in teacher]), expected)


def test_two_runs_give_the_same_bits(maps):
    assert_same_bits(loss_and_grads(feature_mse, *maps), loss_and_grads(feature_mse, *maps))


def test_empty_batch_gives_zero():
    student, teacher = make_maps((14, 14, 14), batch=0, device="cuda")
    assert loss_and_grads(feature_mse, student, teacher)[0].item() == 0


def test_runs_on_the_current_stream(maps):
    expected = loss_and_grads(feature_mse, *maps)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a launch on another stream would overtake this
        student = [(s.detach() * 1).requires_grad_() for s in maps[0]]
        result = loss_and_grads(feature_mse, student, maps[1])
    stream.synchronize()
    assert_same_bits(result, expected)


def test_captures_into_a_cuda_graph(maps):
    expected = loss_and_grads(feature_mse, *maps)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        loss_and_grads(feature_mse, *maps)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = loss_and_grads(feature_mse, *maps)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(result, expected)


def test_compiles_fullgraph_with_equal_bits(maps):
    compiled = torch.compile(feature_mse, fullgraph=True)
    assert_same_bits(loss_and_grads(compiled, *maps), loss_and_grads(feature_mse, *maps))


def test_rejects_a_map_too_large_for_shared_memory():
    student, teacher = torch.zeros(1, 300 * 300, 1, device="cuda"), torch.zeros(1, 1, 301, 301, device="cuda")
    with pytest.raises(RuntimeError, match="must fit in this GPU's shared memory"):
        feature_mse([student], [teacher])
