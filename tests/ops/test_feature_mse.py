"""feature_mse against its plain PyTorch definition."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from lgfast import _extension
from lgfast.ops import feature_mse, unit_gradient, weighted_feature_mse
from tests.ops.feature_mse_cases import (
    STUDENT_SIDES,
    TEACHER_MAPS,
    assert_matches_reference,
    loss_and_grads,
    make_maps,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", STUDENT_SIDES)
def test_matches_reference_at_every_recipe_shape(model, dtype):
    student, teacher = make_maps(STUDENT_SIDES[model], dtype=dtype)
    loss, grads = loss_and_grads(feature_mse, student, teacher)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert_matches_reference(loss, grads, student, teacher, [(n, n) for n in STUDENT_SIDES[model]])


def test_is_the_sum_of_mean_squared_differences_on_the_larger_grid():
    student, teacher = make_maps((14, 14, 14), dtype=torch.float64)
    expected = 0
    for s, t in zip(student, teacher, strict=True):
        size = (max(14, t.shape[2]),) * 2
        maps = s.transpose(1, 2).reshape(2, -1, 14, 14)
        expected += F.mse_loss(*(F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (maps, t)))
    loss = feature_mse(student, teacher)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("student_grid", [(2, 3), (4, 5), (6, 7), (6, 3), (1, 1)])
@pytest.mark.parametrize("teacher_grid", [(4, 5), (1, 1)])
def test_gradcheck_in_float64(student_grid, teacher_grid):
    student = torch.randn(2, student_grid[0] * student_grid[1], 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, *teacher_grid, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: feature_mse([s], [teacher], [student_grid]), [student])


@pytest.mark.parametrize("channels", [1, 5, 16, 24])
def test_any_number_of_channels(channels):
    student = [torch.randn(2, 6, channels, requires_grad=True)]
    teacher = [torch.randn(2, channels, 5, 4)]
    loss, grads = loss_and_grads(feature_mse, student, teacher, [(3, 2)])
    assert_matches_reference(loss, grads, student, teacher, [(3, 2)])


def test_equal_maps_give_zero_loss_and_gradient():
    maps = torch.randn(2, 64, 16, requires_grad=True)
    teacher = maps.detach().transpose(1, 2).unflatten(2, (8, 8))
    loss, (grad,) = loss_and_grads(feature_mse, [maps], [teacher])
    assert loss == 0 and not grad.any()


def test_strided_inputs_give_the_same_bits():
    (student, *_), (teacher, *_) = make_maps((14, 14, 14))
    expected, (expected_grad,) = loss_and_grads(feature_mse, [student], [teacher])
    tokens = torch.randn(2, 197, 32)  # a class token in front, other channels behind
    tokens[:, 1:, :16] = student.detach()
    transposed = student.detach().transpose(1, 2).contiguous().transpose(1, 2)
    padded = torch.randn(2, 40, 40, 20)
    padded[:, 3:35, 5:37, 2:18] = teacher.permute(0, 2, 3, 1)
    for s in (tokens[:, 1:, :16], transposed):
        for t in (teacher.contiguous(), padded[:, 3:35, 5:37, 2:18].permute(0, 3, 1, 2)):
            s = s.detach().requires_grad_()
            loss, (grad,) = loss_and_grads(feature_mse, [s], [t])
            assert torch.equal(loss, expected) and torch.equal(grad, expected_grad)


def test_result_does_not_depend_on_the_thread_count():
    student, teacher = make_maps((14, 14, 14), batch=5)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(loss_and_grads(feature_mse, student, teacher))
    torch.set_num_threads(threads)
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))


def test_empty_batch_gives_zero():
    student, teacher = make_maps((14, 14, 14), batch=0)
    loss, grads = loss_and_grads(feature_mse, student, teacher)
    assert loss == 0
    assert [grad.shape for grad in grads] == [maps.shape for maps in student]


def test_loss_weight_scales_the_gradient():
    student, teacher = make_maps((14, 14, 14))
    _, grads = loss_and_grads(feature_mse, student, teacher)
    _, scaled = loss_and_grads(lambda s: 2.5 * feature_mse(s, teacher), student)
    for grad, other in zip(grads, scaled, strict=True):
        torch.testing.assert_close(other, 2.5 * grad, rtol=1e-6, atol=0)


def calls_of_backward(run):
    """How often the gradients are scaled while `run` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "lgfast::feature_mse_bwd")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_weighted_loss_has_the_gradients_of_the_product(dtype):
    student, teacher = make_maps((14, 14, 14), dtype=dtype)
    grids = [(14, 14)] * 3
    found, grads = loss_and_grads(lambda s: weighted_feature_mse(s, teacher, weight=torch.tensor(2.5))[0], student)
    exact, exact_grads = loss_and_grads(
        lambda s: 2.5 * feature_mse(s, [t.double() for t in teacher], grids),
        [s.detach().double().requires_grad_() for s in student],
    )
    loss = weighted_feature_mse(student, teacher, weight=torch.tensor(2.5)).loss
    assert loss.dtype == found.dtype and not loss.requires_grad
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(2.5 * loss.double(), exact, rtol=1e-5, atol=0)
    for grad, true in zip(grads, exact_grads, strict=True):
        bound = 2 * torch.finfo(dtype).eps + 32 * torch.finfo(loss.dtype).eps  # rounded once or twice; sums of up to 32
        assert (grad.double() - true).abs().max() <= bound * true.abs().max()


def test_losses_beyond_float32_are_infinite():
    maps = [torch.full((1, 4, 8), 1e30)], [torch.zeros(1, 8, 2, 2)]
    assert feature_mse(*maps).item() == math.inf
    student, teacher = make_maps((14, 14, 14))
    found = weighted_feature_mse(student, teacher, weight=torch.tensor(3e38))
    assert found.weighted.item() == math.inf and 1 < found.loss.item() < math.inf


@pytest.mark.parametrize("is_weighted", [False, True])
def test_known_unit_gradient_needs_no_pass_over_the_gradients(is_weighted):
    student, teacher = make_maps((14, 14, 14), dtype=torch.bfloat16)
    other = torch.randn((), requires_grad=True)

    def backward(gradient):
        for leaf in (*student, other):
            leaf.grad = None
        weight = torch.tensor(2.5)
        loss = (
            weighted_feature_mse(student, teacher, weight=weight)[0] if is_weighted else feature_mse(student, teacher)
        )
        total = other + loss
        total.backward(unit_gradient(total) if gradient is None else gradient)
        return [leaf.grad for leaf in student]

    known, usual = [], []
    assert calls_of_backward(lambda: known.extend(backward(None))) == 0
    assert calls_of_backward(lambda: usual.extend(backward(torch.ones(())))) == 1
    tripled = backward(torch.tensor(3.0))
    for a, b, c in zip(known, usual, tripled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 3 * a, rtol=2**-7, atol=0)
    assert unit_gradient(other) == 1


def test_gradients_that_are_not_final_are_scaled_whatever_the_gradient():
    student, teacher = make_maps((14, 14, 14), dtype=torch.float16)

    def step():
        loss = weighted_feature_mse(student, teacher, weight=torch.tensor(2.5)).weighted
        loss.backward(unit_gradient(loss))

    assert calls_of_backward(step) == 1  # float16 stores them as large as the differences


def test_changed_unit_gradient_is_no_longer_known():
    student, teacher = make_maps((14, 14, 14), dtype=torch.float64)
    loss = feature_mse(student, teacher)
    one = unit_gradient(loss)
    expected = [2 * grad for grad in torch.autograd.grad(loss, student, retain_graph=True)]
    try:
        one.mul_(2)
        found = torch.autograd.grad(loss, student, one)
    finally:
        importlib.import_module("lgfast.ops.unit_gradient")._known.clear()
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def test_weight_of_zero_gives_zero_gradients():
    student, teacher = make_maps((14, 14, 14))
    weight = torch.tensor(0.0)
    _, grads = loss_and_grads(lambda s: 7 * weighted_feature_mse(s, teacher, weight=weight).weighted, student)
    assert not any(grad.any() for grad in grads)


def test_stored_gradients_that_were_changed_are_not_given_out_again():
    student, teacher = make_maps((14, 14, 14))
    loss = feature_mse(student, teacher)
    loss.backward(unit_gradient(loss), retain_graph=True)
    student[0].grad.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward(unit_gradient(loss))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2), r"weight must be a constant scalar, got \[2\]; multiply feature_mse's loss by it"),
        (torch.ones((), requires_grad=True), r"got \[\] that wants a gradient; multiply"),
        (torch.ones((), dtype=torch.int64), "weight must be float32, .*, got torch.int64; cast it"),
        (torch.ones((), device="meta"), "weight must be on cpu, got meta; move it"),
    ],
)
def test_weight_that_does_not_fit_is_rejected(weight, message):
    with pytest.raises(ValueError, match=message):
        weighted_feature_mse(*make_maps((14, 14, 14)), weight=weight)


def test_float16_gradient_survives_a_large_batch_under_loss_scaling():
    student, teacher = make_maps((14, 14, 14), batch=64, dtype=torch.float16)
    scale = 2.0**16  # GradScaler's first; the gradient itself is below the smallest float16
    _, grads = loss_and_grads(lambda s: scale * feature_mse(s, teacher), student)
    _, expected = loss_and_grads(feature_mse, [s.detach().float().requires_grad_() for s in student],
                                 [t.float() for t in teacher])  # fmt: skip
    for grad, true in zip(grads, expected, strict=True):
        assert (grad.float() / scale - true).abs().max() <= 2 * torch.finfo(torch.float16).eps * true.abs().max()


def test_teacher_gets_no_gradient():
    student, teacher = make_maps((14, 14, 14))
    teacher[0].requires_grad_()
    feature_mse(student, teacher).backward()
    assert teacher[0].grad is None and student[0].grad is not None


def test_no_gradient_is_computed_where_none_is_wanted():
    student, teacher = make_maps((14, 14, 14))
    expected = feature_mse(student, teacher)
    with torch.no_grad():
        assert torch.equal(feature_mse(student, teacher), expected)
    _, grad, weighted = torch.ops.lgfast.feature_mse_fwd([s.detach() for s in student], teacher, [14] * 6, 0.0)
    assert grad.numel() == 0 and weighted.numel() == 0


def test_second_derivative_is_refused():
    student, teacher = make_maps((14, 14, 14))
    with pytest.raises(RuntimeError, match="no second derivative; call backward without create_graph"):
        torch.autograd.grad(feature_mse(student, teacher), student, create_graph=True)


def test_autocast_promotes_mixed_dtypes():
    student, teacher = make_maps((14, 14, 14))
    halves = [maps.bfloat16() for maps in teacher]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = feature_mse(student, halves)
        low = feature_mse([s.bfloat16() for s in student], halves)
    assert torch.equal(mixed, feature_mse(student, [maps.float() for maps in halves]))
    assert low.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype):
    student, teacher = make_maps((14, 14, 14), dtype=dtype)
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    torch.library.opcheck(torch.ops.lgfast.feature_mse_fwd, (student, teacher, [14] * 6, 4.0))
    torch.library.opcheck(torch.ops.lgfast.feature_mse_fwd, ([s.detach() for s in student], teacher, [14] * 6, 0.0))
    scalar = torch.tensor(2.0, dtype=loss_dtype)
    torch.library.opcheck(torch.ops.lgfast.feature_mse_fwd, (student, teacher, [14] * 6, 4.0, scalar))
    torch.library.opcheck(torch.ops.lgfast.feature_mse_bwd, (scalar, torch.randn(10, dtype=dtype), 0.5))


def weighted(student, teacher):
    return weighted_feature_mse(student, teacher, weight=torch.tensor(2.5)).weighted


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [feature_mse, weighted])
def test_compiles_fullgraph_with_equal_bits(function, dynamic):
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        student, teacher = make_maps((14, 14, 14), batch=batch)
        expected, expected_grads = loss_and_grads(function, student, teacher)
        loss, grads = loss_and_grads(compiled, student, teacher)
        assert torch.equal(loss, expected)
        assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def maps_with(**changes):
    arguments = {"student": torch.randn(2, 16, 3), "teacher": torch.randn(2, 3, 8, 8), "grid": (4, 4), **changes}
    return [arguments["student"]], [arguments["teacher"]], [arguments["grid"]] if arguments["grid"] else None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.ones(2, 16, 3), [torch.ones(2, 3, 4, 4)]),
            "student_maps must be a list of tensors, one a pair, got one",
        ),
        (([torch.ones(2, 16, 3)], [(torch.ones(2, 3, 4, 4), 1)]), "teacher_maps must be a list of .*, got tuple"),
        (([], []), "must list the same pairs, at least one, got 0 and 0"),
        (([torch.randn(2, 16, 3)], []), "got 1 and 0"),
        (
            (*maps_with()[:2], [(4, 4), (4, 4)]),
            r"student_grids must give \(h, w\) for each of 1 maps, got \[\(4, 4\), ",
        ),
        ((*maps_with()[:2], [4]), r"student_grids must give \(h, w\) for each of 1 maps, got \[4\]"),
        (maps_with(student=torch.randn(2, 3, 4, 4)), r"pair 0 must be student \[B, h\*w, C\].*got \[2, 3, 4, 4\]"),
        (maps_with(student=torch.randn(2, 17, 3), grid=None), r"has 17 tokens, expected 4\*4; remove the class token"),
        (maps_with(student=torch.randn(2, 16, 5)), r"same number of channels.*\[2, 16, 5\].*\[2, 3, 8, 8\]; project"),
        (maps_with(teacher=torch.randn(3, 3, 8, 8)), "batch size of the first, 2, got 2 and 3 in pair 0"),
        (maps_with(student=torch.ones(2, 16, 3).int()), "student_maps must be float32, .*, got torch.int32; cast it"),
        (maps_with(teacher=torch.randn(2, 3, 8, 8).double()), "teacher map 0 must have dtype torch.float32, got.*64"),
        (maps_with(teacher=torch.randn(2, 3, 8, 8, device="meta")), "teacher map 0 must be on cpu, got meta"),
    ],
)
def test_rejects_arguments_that_do_not_match(arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_mse(*arguments)


def cuda_plan(channels, student, teacher, **options):
    """How the CUDA kernel cuts a pair of square maps."""
    return importlib.import_module("lgfast._C").feature_mse_plan(
        channels, student, student, teacher, teacher, **options
    )


@pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")
@pytest.mark.parametrize("pair", range(3))
@pytest.mark.parametrize("model", STUDENT_SIDES)
def test_cuda_plan_gives_a_multiprocessor_512_threads(model, pair):
    channels, teacher = TEACHER_MAPS[pair]
    plan = cuda_plan(channels, STUDENT_SIDES[model][pair], teacher, element_bytes=2)
    assert plan["blocks_per_image"] % (channels // plan["channels_per_block"]) == 0
    assert plan["channels_per_block"] >= 16  # the 32 bytes that memory moves at once
    blocks = 512 // plan["threads"]
    assert blocks * (plan["smem_bytes"] + 1024) <= 228 * 1024  # sm_90: 228 KiB, of which each block reserves 1


@pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")
def test_cuda_plan_refuses_maps_to_resize_that_are_larger_than_a_block():
    assert cuda_plan(16, 1000, 1000)["smem_bytes"] < 80 * 1024  # nothing is resized
    assert cuda_plan(16, 160, 161)["smem_bytes"] <= 227 * 1024
    assert cuda_plan(16, 400, 160)["channels_per_block"] == 1  # the whole teacher's map
    with pytest.raises(ValueError, match="exceeds a block"):
        cuda_plan(16, 300, 385)  # a thread a column of a student that is resized
    with pytest.raises(ValueError, match="exceeds a block"):
        cuda_plan(16, 400, 300)  # the whole teacher's map
    small = 99 * 1024  # of a block of sm_89 and sm_120
    assert cuda_plan(16, 48, 49, max_smem=small)["channels_per_block"] >= 4
    assert cuda_plan(16, 48, 49, max_smem=small)["smem_bytes"] <= small
    with pytest.raises(ValueError, match="exceeds a block"):
        cuda_plan(16, 300, 160, max_smem=small)
