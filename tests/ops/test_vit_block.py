"""vit_block: values and gradients against float64, any number of threads, levels of instructions, refusals."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lgfast import _extension
from lgfast.ops import BlockParameters, reference, vit_block, vit_block_unsupported_reason
from tests.cpu_levels import FLOAT_LEVELS, held_to
from tests.ops.fused_layers_cases import assert_matches, in_dtype, results

native = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")
EPS = (1e-6, 1e-5)


def make_inputs(batch=2, tokens=5, width=32, hidden=64, dtype=torch.float32):
    """x [B, N, C] and the twelve parameters; leaves."""
    shapes = [[width], [width], [3 * width, width], [3 * width], [width, width], [width]]
    shapes += [[width], [width], [hidden, width], [hidden], [width, hidden], [width]]
    parameters = [torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3) for shape in shapes]
    inputs = [torch.randn(batch, tokens, width), *parameters]
    for norm in (1, 7):
        inputs[norm] += 1
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def block_of(num_heads):
    def block(x, *parameters):
        return vit_block(x, BlockParameters(*parameters), num_heads, eps1=EPS[0], eps2=EPS[1])

    return block


def composition_of(num_heads):
    return lambda x, *parameters: reference.vit_block(x, parameters, num_heads, *EPS)


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "hidden", "heads"),
    [
        (1, 1, 8, 8, 1),
        (2, 5, 40, 72, 1),  # widths that fill no whole panel
        (7, 65, 64, 256, 2),  # several waves, of whole images
        (2, 201, 96, 128, 3),  # an image is more than a wave's rows
    ],
)
def test_matches_float64(batch, tokens, width, hidden, heads):
    inputs = make_inputs(batch, tokens, width, hidden)
    dout = torch.randn_like(inputs[0])
    assert_matches(results(block_of(heads), inputs, [dout]), composition_of(heads), inputs, [dout])


@native
@pytest.mark.parametrize("level", FLOAT_LEVELS)
def test_matches_float64_at_every_level(level):
    inputs = make_inputs(2, 19, 48, 80)
    dout = torch.randn_like(inputs[0])
    with held_to(level):
        actual = results(block_of(2), inputs, [dout])
    assert_matches(actual, composition_of(2), inputs, [dout])


def test_gradcheck_in_float64():
    inputs = in_dtype(make_inputs(2, 3, 8, 16), torch.float64)
    assert torch.autograd.gradcheck(block_of(1), inputs, fast_mode=True)


@native
def test_result_does_not_depend_on_the_thread_count():
    inputs = make_inputs(11, 65, 32, 64)
    dout = torch.randn_like(inputs[0])
    threads, runs = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(results(block_of(1), inputs, [dout]))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@native
def test_an_image_does_not_depend_on_its_batch():
    x, *parameters = make_inputs(5, 65, 32, 64)
    together = block_of(1)(x, *parameters)
    assert torch.equal(together[3:4], block_of(1)(x[3:4], *parameters))


@native
def test_strided_and_misaligned_inputs_give_the_same_bits():
    inputs = make_inputs()
    dout = torch.randn_like(inputs[0])
    expected = results(block_of(1), inputs, [dout])
    strided = [x.detach().mT.contiguous().mT if x.dim() > 1 else torch.cat([x[:1], x])[1:] for x in inputs]
    actual = results(block_of(1), [x.detach().requires_grad_() for x in strided], [dout.mT.contiguous().mT])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@native
def test_what_a_call_leaves_behind_reaches_no_later_one():
    inputs = make_inputs(3, 19, 48, 80)
    dout = torch.randn_like(inputs[0])
    expected = results(block_of(2), inputs, [dout])
    larger = make_inputs(2, 70, 96, 136)
    assert results(block_of(1), [larger[0].detach() * torch.nan, *larger[1:]], [larger[0].detach()])[0].isnan().all()
    assert all(torch.equal(a, b) for a, b in zip(results(block_of(2), inputs, [dout]), expected, strict=True))


def test_empty_batch():
    inputs = make_inputs(batch=0)
    out, dx, *grads = results(block_of(1), inputs, [torch.empty(0, 5, 32)])
    assert out.shape == dx.shape == (0, 5, 32) and not any(grad.any() for grad in grads)


@native
def test_parameters_that_are_not_trained_get_no_gradient():
    inputs = make_inputs()
    expected = results(block_of(1), inputs, [torch.ones_like(inputs[0])])
    frozen = [tensor.detach().requires_grad_(i in (0, 9)) for i, tensor in enumerate(inputs)]
    block_of(1)(*frozen).sum().backward()
    assert [i for i, tensor in enumerate(frozen) if tensor.grad is not None] == [0, 9]
    assert torch.equal(frozen[9].grad, expected[1 + 9])


@pytest.mark.parametrize(
    ("x", "heads", "hidden", "reason"),
    [
        (torch.zeros(1, 2, 32), 1, 64, None),
        (torch.zeros(1, 2, 36), 3, 64, "each head must have a multiple of 8 channels, got 3 heads of 36 channels"),
        (torch.zeros(1, 2, 32), 1, 60, "the MLP's channels must be a multiple of 8, got 60"),
        (torch.zeros(1, 2, 32).bfloat16(), 1, 64, "dtype must be float32 or float64, got torch.bfloat16"),
        (torch.zeros(1, 2, 32, device="meta"), 1, 64, "its kernel runs on a CPU, got a tensor on meta"),
    ],
)
@native
def test_unsupported_reason(x, heads, hidden, reason):
    assert vit_block_unsupported_reason(x, heads, hidden) == reason


def test_other_numbers_of_channels_run_the_composition():
    inputs = make_inputs(width=36, hidden=60)
    dout = torch.randn_like(inputs[0])
    expected = results(composition_of(3), inputs, [dout])
    assert all(torch.equal(a, b) for a, b in zip(results(block_of(3), inputs, [dout]), expected, strict=True))


def test_autocast_runs_the_composition():
    inputs = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_of(1)(*inputs), composition_of(1)(*inputs))


@native
def test_second_derivative_is_refused():
    inputs = make_inputs()
    with pytest.raises(RuntimeError, match="no second derivative; call backward without create_graph"):
        torch.autograd.grad(block_of(1)(*inputs).sum(), inputs, create_graph=True)


@native
def test_forward_mode_runs_the_composition():
    x, *parameters = (tensor.detach() for tensor in make_inputs())
    tangent = torch.randn_like(x)
    with sdpa_kernel(SDPBackend.MATH):  # the only one with a forward mode
        actual = torch.func.jvp(lambda y: block_of(1)(y, *parameters), (x,), (tangent,))
        expected = torch.func.jvp(lambda y: composition_of(1)(y, *parameters), (x,), (tangent,))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)) and actual[1].any()


@native
def test_vmap_is_a_loop():
    x, *parameters = (tensor.detach() for tensor in make_inputs(batch=6))
    mapped = torch.vmap(lambda y: block_of(1)(y, *parameters))(x.unflatten(0, (3, 2)))
    assert torch.equal(mapped.flatten(0, 1), block_of(1)(x, *parameters))


@native
def test_opcheck():
    inputs = make_inputs(2, 3, 16, 24)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # the slow one: the test that compiles
    torch.library.opcheck(torch.ops.lgfast.vit_block_fwd, (*inputs, 2, *EPS), test_utils=checks)
    x, *parameters = (tensor.detach() for tensor in inputs)
    kept = torch.ops.lgfast.vit_block_fwd(x, *parameters, 2, *EPS)[1:]
    arguments = (torch.randn_like(x), x, *kept, *parameters, 2, *EPS)
    torch.library.opcheck(torch.ops.lgfast.vit_block_bwd, arguments, test_utils=checks)


@native
def test_compiles_fullgraph_with_equal_bits():
    compiled = torch.compile(block_of(1), fullgraph=True, backend="aot_eager")
    inputs = make_inputs()
    dout = torch.randn_like(inputs[0])
    pairs = zip(results(compiled, inputs, [dout]), results(block_of(1), inputs, [dout]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(5, 32), r"x must be \[B, N, C\] with tokens, got \[5, 32\]"),
        (0, torch.zeros(2, 5, 32).int(), "x must be float32, .*, got torch.int32; cast it"),
        (3, torch.zeros(96, 31), r"qkv_weight must be \[96, 32\] for x \[2, 5, 32\], got \[96, 31\]"),
        (12, torch.zeros(32).double(), "fc2_bias must be torch.float32 on cpu like x, got torch.float64"),
        (5, torch.zeros(32, 32, device="meta"), "proj_weight must be .* got torch.float32 on meta; cast or move"),
    ],
)
def test_rejects_arguments_that_do_not_match(place, wrong, message):
    inputs = make_inputs()
    inputs[place] = wrong
    with pytest.raises(ValueError, match=message):
        block_of(1)(*inputs)
    with pytest.raises(ValueError, match="num_heads must divide the 32 channels of x, got 3"):
        block_of(3)(*make_inputs())


@native
def test_native_operation_names_what_does_not_fit():
    x, *parameters = (tensor.detach() for tensor in make_inputs())
    with pytest.raises(RuntimeError, match="lgfast::vit_block: each head must have a multiple of 8 channels, got 8"):
        torch.ops.lgfast.vit_block_fwd(x, *parameters, 8, *EPS)
    parameters[8] = parameters[8][1:]
    with pytest.raises(RuntimeError, match=r"fc1_weight must have 2048 elements of Float, got \[63, 32\] Float"):
        torch.ops.lgfast.vit_block_fwd(x, *parameters, 1, *EPS)
