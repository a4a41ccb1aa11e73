"""The shipped machine code gives the right results in the interpreter, and the model's clocks are as they should be."""

import csv
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import machine_code, tables
from benchmarks.bench_augment import SPEC
from benchmarks.bench_feature_mse import composed
from benchmarks.model import batches, launches, objects, sass, timing
from benchmarks.model.assumptions import GPUS, resident_blocks
from benchmarks.model.interpreter import Block, Memory, Trace
from benchmarks.model.kernels import SUBJECTS, one_view
from benchmarks.model.operations import action
from benchmarks.model.predict import check_parameters, predict
from lgfast import _extension
from lgfast.ops import augment
from tests import attention_truth

ARCH = "90a"


def obstacle() -> str:
    """Return why the shipped machine code cannot be read here, or ""."""
    if f"{ARCH}-real" not in _extension.build_info().get("cuda_archs", ""):
        return f"lgfast._cuda is not built for sm_{ARCH}"
    try:
        objects.tool("cuobjdump")
        launches.library()
    except objects.MissingTool as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    if reason := obstacle():  # asked here, not while tests are collected: it may compile
        pytest.skip(reason)
    return machine_code.Code(ARCH, tmp_path_factory.mktemp("cubins"))


def run(case: launches.Case, code: machine_code.Code) -> dict[str, Tensor]:
    """Run every block of every launch, and return the tensors as the kernels left them."""
    for launch in case.launches:
        x, y, _ = launch.grid
        for i in range(launch.blocks):
            place = (i % x, i // x % y, i // x // y)
            arguments = (launch.grid, launch.threads, launch.smem_bytes, launch.parameters, place)
            block = Block(code[launch.kernel], GPUS[ARCH].number, case.memory, *arguments)
            block.run(action)
            assert not block.unmodelled, f"{launch.kernel}: the interpreter lacks {block.unmodelled}"
    return case.tensors


def assert_near(value: Tensor, exact: Tensor, dtype: torch.dtype = torch.bfloat16) -> None:
    """Assert that values agree within two roundings of the largest value."""
    bound = 2 * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(value.double().view_as(exact), exact.detach(), rtol=0, atol=bound)


@pytest.fixture(autouse=True)
def small_gpu(request):
    if "code" in request.fixturenames:
        request.getfixturevalue("code")
        launches.use_gpu(4, 227 * 1024)


def test_bias_gelu_is_right_in_its_machine_code(code):
    tensors = run(launches.gelu(1, 5, 64), code)
    x, bias = (tensors[name].double().requires_grad_() for name in ("x", "bias"))
    assert_near(tensors["out"], torch.nn.functional.gelu(x + bias))
    launches.use_gpu(4, 227 * 1024)
    tensors = run(launches.gelu(1, 5, 64, is_backward=True), code)
    x, bias = (tensors[name].double().requires_grad_() for name in ("x", "bias"))
    gradients = torch.autograd.grad(torch.nn.functional.gelu(x + bias), (x, bias), tensors["dout"].double())
    assert_near(tensors["out"], gradients[0])
    assert_near(tensors["dbias"], gradients[1])


def test_add_layer_norm_is_right_in_its_machine_code(code):
    tensors = run(launches.layer_norm(2, 5, 192), code)
    x, residual, weight, bias = (tensors[name].double() for name in ("x", "residual", "weight", "bias"))
    y = residual + x * tensors["scale"].double().repeat_interleave(5)[:, None]
    assert_near(tensors["y"], y)
    assert_near(tensors["out"], torch.nn.functional.layer_norm(y, (192,), weight, bias, 1e-6))


def test_flat_adamw_is_right_in_its_machine_code(code):
    sizes = (7, 192, 1000)
    case = launches.adamw(sizes)
    before = {name: tensor.double().clone() for name, tensor in case.tensors.items()}
    tensors = run(case, code)
    gradient, start = torch.zeros_like(before["params"]), 0
    for k, size in enumerate(sizes):
        gradient[start : start + size] = before[f"grad{k}"]
        start += -(-size // 8) * 8
    _, b1, b2, b2_rest, decay, step_size, correction, eps = launches.ADAMW_FACTORS
    m = before["m"] + b1 * (gradient - before["m"])
    v = b2 * before["v"] + b2_rest * gradient.square()
    params = before["params"] * decay - step_size * m / (v.sqrt() * correction + eps)
    for name, exact in (("m", m), ("v", v), ("params", params)):
        assert_near(tensors[name], exact, torch.float32)
    assert_near(tensors["low"], params)


def test_feature_mse_is_right_in_its_machine_code(code):
    tensors = run(launches.guidance(1), code)
    students = [tensors[f"student{k}"].double().requires_grad_() for k in range(3)]
    loss = composed(students, [tensors[f"teacher{k}"].double().permute(0, 3, 1, 2) for k in range(3)])
    assert tensors["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    gradients = torch.autograd.grad(loss, students)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    assert_near(tensors["grad"] * (flat.norm() / tensors["grad"].double().norm()), flat)  # it carries a factor


@pytest.mark.parametrize("is_backward", [False, True])
def test_short_attention_is_right_in_its_machine_code(code, is_backward):
    case = launches.attention(1, heads=1, is_backward=is_backward)
    q, k, v = (x.double() for x in case.tensors["qkv"].unbind(2))
    exact = attention_truth.attention(q, k, v, case.tensors["dout"].double(), 0.125)
    if is_backward:
        case.tensors["out"].copy_(exact["out"]), case.tensors["lse"].copy_(exact["lse"])
    tensors = run(case, code)
    if is_backward:
        gradients = torch.stack([exact[name] for name in ("dq", "dk", "dv")], 2)
        assert_near(tensors["dqkv"], gradients)
        torch.testing.assert_close(tensors["dbias"].double(), gradients.sum(1), rtol=2**-7, atol=2**-4)
    else:
        assert_near(tensors["out"], exact["out"])
        assert_near(tensors["lse"], exact["lse"], torch.float32)


def test_attention_by_warpgroups_is_right_in_its_machine_code(code):
    launches.use_gpu(1, 227 * 1024, has_wgmma=True)
    case = launches.attention(1, heads=3)  # one block takes all: a stage serves two heads
    assert [launch.blocks for launch in case.launches] == [1] and "wgmma" in case.launches[0].kernel
    q, k, v = (x.double() for x in case.tensors["qkv"].unbind(2))
    exact = attention_truth.attention(q, k, v, case.tensors["dout"].double(), 0.125)
    tensors = run(case, code)
    assert_near(tensors["out"], exact["out"])
    assert_near(tensors["lse"], exact["lse"], torch.float32)


def test_backward_by_warpgroups_is_right_in_its_machine_code(code):
    launches.use_gpu(1, 227 * 1024, has_wgmma=True)
    case = launches.attention(1, heads=3, is_backward=True)
    assert [launch.blocks for launch in case.launches] == [1] and "bwd_wgmma" in case.launches[0].kernel
    q, k, v = (x.double() for x in case.tensors["qkv"].unbind(2))
    exact = attention_truth.attention(q, k, v, case.tensors["dout"].double(), 0.125)
    case.tensors["out"].copy_(exact["out"]), case.tensors["lse"].copy_(exact["lse"])
    tensors = run(case, code)
    gradients = torch.stack([exact[name] for name in ("dq", "dk", "dv")], 2)
    assert_near(tensors["dqkv"], gradients)
    torch.testing.assert_close(tensors["dbias"].double(), gradients.sum(1), rtol=2**-7, atol=2**-4)


@pytest.mark.parametrize("operations", [(), ((3, 17.0),)], ids=["plain", "rotated"])
def test_augment_gives_the_bytes_of_the_cpu_in_its_machine_code(code, operations):
    case = one_view(*operations)
    tensors = run(case, code)
    expected = augment(
        tensors["pixels"],
        tensors["offsets"],
        tensors["sizes"],
        tensors["indices"],
        tensors["plan"],
        SPEC,
        torch.bfloat16,
    )
    assert torch.equal(tensors["images"], expected[0]) and torch.equal(tensors["teacher"], expected[1])


def other_compiler() -> str:
    """Return why the committed rows do not hold for the library here, or ""."""
    compilers = {line["compiler"] for (_, arch), line in machine_code.committed().items() if arch == f"sm_{ARCH}"}
    compiler = _extension.build_info().get("cuda_compiler", "")
    return "" if compilers == {compiler} else f"the rows are of {', '.join(compilers)}, the library of {compiler}"


@pytest.mark.slow
@pytest.mark.skipif(bool(other_compiler()), reason=other_compiler())
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_kernel_stays_within_five_per_cent_of_its_committed_prediction(code, name):
    subject = SUBJECTS[name]
    found = machine_code.row(name, subject, GPUS[ARCH], predict(subject, GPUS[ARCH], code))
    assert machine_code.drift(found, machine_code.committed()[name, f"sm_{ARCH}"]) == ""


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", batches.BATCHES)
def test_the_row_of_a_batch_follows_from_those_of_its_images(name):
    rows = {op: row for (op, arch), row in machine_code.committed().items() if arch == f"sm_{ARCH}"}
    us = {op: float(rows[op]["predicted_us"]) for op in (batches.PLAIN, *batches.PARTS)}
    assert machine_code.drift(batches.batch_row(name, GPUS[ARCH], us), rows[name]) == ""
    slower = us | {batches.part_of("Rotate"): 2 * us[batches.part_of("Rotate")]}
    assert "is slower" in machine_code.drift(batches.batch_row(name, GPUS[ARCH], slower), rows[name])


def test_slow_images_of_a_batch_come_first(code):
    order = run(batches.ordering(), code)["workspace"].view(torch.int32)[:512].tolist()
    assert sorted(order) == list(range(512))
    columns, plan = SPEC.plan_columns, batches.drawn_plan(512).tolist()
    place = {b: k for k, b in enumerate(order)}
    rows = [dict(zip(columns, row, strict=True)) | {"place": place[b]} for b, row in enumerate(plan)]
    rotate = batches.RAND_AUGMENT_OPS.index("Rotate")
    rotated = [row["place"] for row in rows if rotate in (row["op_0"], row["op_1"])]
    plain = [row["place"] for row in rows if row["op_0"] == row["op_1"] == -1 and row["erase_height"] == 0]
    assert len(rotated) > 20 < len(plain)
    assert max(rotated) < min(plain)


def test_two_operations_of_an_image_add_up():
    us = dict.fromkeys((batches.PLAIN, *batches.PARTS), 20.0)
    us |= {batches.part_of("Rotate"): 80.0, batches.part_of("ShearX"): 50.0, batches.ERASED: 30.0}
    row = dict.fromkeys(SPEC.plan_columns, 0.0) | {"op_0": -1, "op_1": -1}
    names = batches.RAND_AUGMENT_OPS
    alone = batches.image_us([*row.values()], us)
    assert alone == 20.0 - batches.LAUNCH_US
    both = row | {"op_0": names.index("Rotate"), "op_1": names.index("ShearX")}
    assert batches.image_us([*both.values()], us) == alone + 60 + 30
    erased = row | {"op_0": names.index("Invert"), "erase_height": 50, "erase_width": 100}
    assert batches.image_us([*erased.values()], us) == alone + 5


def test_blocks_start_where_one_has_ended():
    assert batches.finished([3.0] * 5, 2) == 9.0
    assert batches.finished([1.0, 1.0, 1.0, 1.0, 4.0], 2) == 6.0
    assert batches.finished([4.0, 1.0, 1.0, 1.0, 1.0], 2) == 4.0


def test_a_kernel_that_slows_is_found(code):
    """In the slow kernel each instruction waits for the one before."""
    subject, line = SUBJECTS["add_layer_norm_fwd"], {"op": "add_layer_norm_fwd", "arch": f"sm_{ARCH}"}
    usual = predict(subject, GPUS[ARCH], code).us
    slow = {
        name: replace(kernel, instructions=[replace(i, stall=15) for i in kernel.instructions])
        for name, kernel in code.known.items()
    }
    slowed = predict(subject, GPUS[ARCH], slow).us
    before = {"predicted_us": f"{usual:.5g}"}
    assert machine_code.drift(line | {"predicted_us": usual}, before) == ""
    assert "add_layer_norm_fwd on sm_90a is slower" in machine_code.drift(line | {"predicted_us": slowed}, before)
    assert "add_layer_norm_fwd on sm_90a is faster" in machine_code.drift(line | {"predicted_us": 0.9 * usual}, before)


def test_rows_of_the_model_enter_no_table_of_measurements(tmp_path):
    before = tables.throughput(tmp_path), tables.accuracy(tmp_path)
    lines = [{"op": name, "arch": "sm_90a", "provider": "model", "predicted_us": 9.0} for name in SUBJECTS]
    path = machine_code.write(lines, tmp_path)
    assert path.name[10:] == "_model_machine-code.csv" and machine_code.write(lines, tmp_path).stem.endswith("-2")
    assert (tables.throughput(tmp_path), tables.accuracy(tmp_path)) == before
    with path.open() as file:
        assert {row["device"] for row in csv.DictReader(file)} == {"model"}
    measured = {"median_ms", "p20_ms", "p80_ms", "images_per_s"}
    assert measured.isdisjoint(next(iter(csv.DictReader(path.open()))))


def test_measured_rows_calibrate_the_model(tmp_path):
    lines = [
        {"op": op, "arch": "sm_90a", "predicted_us": us}
        for op, us in (("feature_mse", 20.0), ("augment_plain", 40.0), ("bias_gelu_fwd", 10.0))
    ]
    assert not any("measured_us" in line for line in machine_code.calibrated(lines, tmp_path))
    columns = ("op", "device", "hardware", "mode", "median_ms", "error")
    for number, hardware in enumerate(("NVIDIA H200", "NVIDIA H100")):
        with (tmp_path / f"2027-01-0{number + 1}_gpu_smoke.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerow(("feature_mse", "cuda", hardware, "target", 0.04, ""))
            writer.writerow(("bias_gelu_fwd", "cuda", hardware, "target", 0.005, ""))
            writer.writerow(("augment_plain", "cuda", hardware, "target", 9, "error 2 times what is allowed"))
            writer.writerow(("bias_gelu_fwd", "cuda", hardware, "small", 7, ""))
    by_name = {line["op"]: line for line in machine_code.calibrated(lines, tmp_path)}
    assert by_name["feature_mse"]["ratio"] == pytest.approx(2) and by_name["bias_gelu_fwd"]["ratio"] == pytest.approx(
        0.5
    )
    assert by_name["augment_plain"]["calibrated_us"] == pytest.approx(40 * math.sqrt(2 * 0.5))
    assert "measured_us" not in by_name["augment_plain"]


def test_a_missing_tool_is_named(monkeypatch, capsys, tmp_path):
    objects.tool.cache_clear()
    monkeypatch.setattr(objects.shutil, "which", lambda name, path=None: None)
    try:
        with pytest.raises(objects.MissingTool, match="cuobjdump is not there: pip's triton package carries it"):
            objects.tool("cuobjdump")
    finally:
        objects.tool.cache_clear()

    def fails(*_: object) -> None:
        raise objects.MissingTool("nvdisasm is not there")

    monkeypatch.setattr(machine_code, "Code", fails)
    assert machine_code.main(["--archs", "80", "--kernels", "feature_mse", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: nvdisasm is not there\n"


def test_parameters_of_other_sources_are_refused():
    kernel = SimpleNamespace(name="kernel", parameter_bytes=0x210 + 96)
    check_parameters(kernel, GPUS[ARCH], SimpleNamespace(parameters=bytes(92)))  # the end is padded
    with pytest.raises(RuntimeError, match="takes 96 bytes of parameters, its sources 64: build again"):
        check_parameters(kernel, GPUS[ARCH], SimpleNamespace(parameters=bytes(64)))


def test_a_selection_of_64_bits_writes_both_registers():
    texts = ("MOV R3, 0xe0", "MOV R4, 0x7", "SEL.64 R2, RZ, 0x2000, !PT", "SEL.64 R4, RZ, 0x2000, PT", "EXIT")
    code = [replace(instruction(text), address=16 * k) for k, text in enumerate(texts)]
    kernel = objects.Kernel("made_up", code, 8, 0, {})
    block = Block(kernel, 90, Memory(), (1, 1, 1), 32, 0, b"")
    block.run(action)
    assert [set(block.registers[k].tolist()) for k in (2, 3, 4, 5)] == [{0x2000}, {0}, {0}, {0}]


@pytest.mark.parametrize("order, count", [("M88", 4), ("MT88", 4), ("MT88", 2)])
def test_stored_matrices_are_read_again(order, count):
    texts = (f"STSM.16.{order}.{count} [R2], R4", "LDSM.16.M88.4 R8, [R2]", "EXIT")
    code = [replace(instruction(text), address=16 * k) for k, text in enumerate(texts)]
    block = Block(objects.Kernel("made_up", code, 16, 0, {}), 90, Memory(), (1, 1, 1), 32, 512, b"")
    block.registers[2] = 16 * np.arange(32)
    values = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    block.registers[4:8] = values.reshape(4, 64).view(np.uint32)
    block.run(action)
    values[count:] = 0
    expected = values.swapaxes(1, 2) if order == "MT88" else values
    np.testing.assert_array_equal(block.registers[8:12].view(np.uint16).reshape(4, 8, 8), expected)
    (cost,) = [costs for step, costs in block.trace.costs.items() if block.trace.instructions[step] == 0]
    assert cost[0, 0] == count  # a wavefront for each matrix


def test_an_exit_has_conditions_of_its_own():
    texts = ("EXIT !PT", "MOV R3, 0x2", "EXIT PT", "MOV R3, 0x5", "EXIT")
    code = [replace(instruction(text), address=16 * k) for k, text in enumerate(texts)]
    block = Block(objects.Kernel("made_up", code, 8, 0, {}), 90, Memory(), (1, 1, 1), 32, 0, b"")
    block.run(action)
    assert set(block.registers[3].tolist()) == {2}


@pytest.mark.parametrize("adds", [True, False])
def test_a_product_adds_to_its_sums_where_its_predicate_says_so(adds):
    texts = ("HGMMA.64x8x16.F32.BF16 R8, gdesc[UR4], R8, UP0", "EXIT")
    code = [replace(instruction(text), address=16 * k) for k, text in enumerate(texts)]
    block = Block(objects.Kernel("made_up", code, 16, 0, {}), 90, Memory(), (1, 1, 1), 128, 8192, b"")
    block.shared[:] = 0
    for word in (5, 7):  # swizzle of 128 bytes, eight rows 1,024 bytes apart
        block.uniforms[word] = 1 << 30 | 1024 // 16
    block.registers[8:12] = np.float32(3).view(np.uint32)
    block.uniform_predicates[0] = adds
    block.run(action)
    assert set(block.registers[8:12].view(np.float32).ravel().tolist()) == {3.0 if adds else 0.0}


# ---- timing, on made-up instructions ---------------------------------------------------------------------------------


def instruction(text: str, stall: int = 1, write: int = 7, wait: int = 0) -> sass.Instruction:
    return sass.Instruction(0, text, stall, write, 7, wait)


def clocks(*warps: list[timing.Step], blocks: int = 1, resident: int = 1) -> float:
    return timing.Multiprocessor(GPUS[ARCH], [list(warps)] * blocks, resident).run().clocks


def steps(text: str, count: int, amount: int = 0, **control: int) -> list[timing.Step]:
    made = instruction(text, **control)
    pipe = timing.pipe_of(made.name, made.modifiers)
    return [timing.Step(made, pipe, amount)] * count


def test_a_pipe_is_as_fast_as_its_table_says():
    rates = GPUS[ARCH].rates
    for text, pipe in (("FFMA R0, R0, R0, R0", "float"), ("LOP3.LUT R0, R0, R0, R0, 0xc0, !PT", "half")):
        assert clocks(steps(text, 100)) == pytest.approx(100 * rates[pipe], abs=8)
    assert clocks(*[steps("MUFU.EX2 R0, R0", 50)] * 8) == pytest.approx(
        2 * 50 * rates["special"], abs=8
    )  # two a quarter
    assert clocks(*[steps("LDS R0, [R0]", 50, amount=4)] * 4) == pytest.approx(
        4 * 50 * 4, rel=0.3
    )  # one for all quarters


def test_a_warp_waits_for_what_it_needs():
    load, use = instruction("LDS R0, [R1]", write=0), instruction("FADD R0, R0, R0", wait=1)
    chain = [timing.Step(load, "shared", 1), timing.Step(use, "float")] * 10
    assert clocks(chain) == pytest.approx(10 * (timing.LATENCY["LDS"] + 2), rel=0.1)
    assert clocks(*[chain] * 4) < 1.2 * clocks(chain)  # other warps fill the time


def test_warps_that_meet_at_a_barrier_take_the_time_of_the_slowest():
    meet = [timing.Step(instruction("BAR.SYNC 0x0"), "control")]
    fast, slow = steps("FFMA R0, R0, R0, R0", 10), steps("FFMA R0, R0, R0, R0", 1000)
    assert clocks(fast + meet + slow, slow + meet + fast) == pytest.approx(2000, rel=0.05)
    assert clocks(fast + slow, slow + fast) == pytest.approx(1010, rel=0.05)


def test_a_warp_comes_to_a_barrier_once_all_its_threads_have():
    """Threads that parted meet a barrier one after the other; only the last of them counts."""
    meet = timing.Step(instruction("BAR.SYNC 0x0"), "control")
    early = timing.Step(instruction("BAR.SYNC 0x0"), "control", fresh=1)
    work, rest = steps("FFMA R0, R0, R0, R0", 1000), steps("FFMA R0, R0, R0, R0", 10)
    parted = [early, *rest, meet, *work, meet, *rest]
    whole = [*rest, meet, *work, meet, *rest]
    assert clocks(parted, whole) == pytest.approx(clocks(whole, whole), rel=0.05)


def barrier_step(text: str, number: int, warps: int) -> timing.Step:
    return timing.Step(instruction(text), "control", amount=number | warps << 8)


def test_a_warp_that_arrives_at_a_barrier_goes_on():
    """One warp makes two things, after 1,000 clocks each, for another one that needs 10 for each."""
    make, take = steps("FFMA R0, R0, R0, R0", 1000), steps("FFMA R0, R0, R0, R0", 10)
    made, awaited = barrier_step("BAR.ARV R0, 0x40", 3, 2), barrier_step("BAR.SYNC R0, 0x40", 3, 2)
    assert clocks([*make, made, *make, made], [awaited, *take, awaited, *take]) == pytest.approx(2010, rel=0.02)
    with pytest.raises(RuntimeError, match="others do not come"):
        clocks([*make, made], [awaited, *take, awaited, *take])


def test_a_warp_waits_until_a_phase_has_ended():
    """One warp makes two things, after 1,000 clocks each, for another one that needs 10 for each."""
    make, take = steps("FFMA R0, R0, R0, R0", 1000), steps("FFMA R0, R0, R0, R0", 10)
    arrival = instruction("SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R0+URZ], RZ")
    made = timing.Step(arrival, "control", amount=64 | 2 << 20, fresh=2)  # two arrivals end a phase
    late = timing.Step(arrival, "control", amount=64 | 2 << 20, fresh=1)
    check = instruction("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR6], R0")
    first, second = (timing.Step(check, "control", amount=64, fresh=phase) for phase in (1, 2))
    assert clocks([*make, made, *make, made], [first, *take, second, *take]) == pytest.approx(2010, rel=0.03)
    assert clocks([*make, made, *make, made], [*make, *make, *make, first, second]) == pytest.approx(3000, rel=0.03)
    with pytest.raises(RuntimeError, match="others do not come"):
        clocks([*make, made, *make, late], [first, *take, second, *take])


def test_threads_wait_for_a_phase_and_arrive_at_it():
    """Warp 0 begins a barrier of 32 arrivals; warp 1 waits for its first phase, at a lower place than the arrivals."""
    texts = (
        "@P1 SYNCS.EXCH.64 URZ, [UR6], UR4",
        "BAR.SYNC 0x0",
        "@P0 BRA 0x50",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR6], R2",
        "@!P2 BRA 0x30",
        "@P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR6], RZ",
        "EXIT",
    )
    code = [sass.instruction(16 * k, text, 1) for k, text in enumerate(texts)]
    block = Block(objects.Kernel("made_up", code, 8, 0, {}), 90, Memory(), (1, 1, 1), 64, 128, b"")
    block.uniforms[6], block.uniforms[4] = 64, (0x100000 - 32) << 1
    block.predicates[0, :32], block.predicates[1, 0] = True, True
    trace = block.run(action)
    assert block.phases[64].ended == 1 and block.phases[64].left == 32
    ran = [(index, warps.tolist()) for index, warps in zip(trace.instructions, trace.warps, strict=True)]
    assert [step for step in ran if step[0] == 3] == [(3, [False, False]), (3, [False, True])]  # held, then passed
    costs = {trace.instructions[step]: cost.tolist() for step, cost in trace.costs.items()}
    assert costs[5][0] == [64 | 32 << 20, 32] and costs[3][1] == [64, 1]


def test_a_product_of_a_warpgroup_takes_its_columns_and_its_warps_go_on():
    product = instruction("HGMMA.64x104x16.F32.BF16 R24, gdesc[UR8], R24, gsb0")
    assert timing.pipe_of(product.name, product.modifiers) == "tensor"
    group = [timing.Step(product, "tensor", 11)] * 20
    wait = [timing.Step(instruction("WARPGROUP.DEPBAR.LE gsb0, 0x0"), "control")]
    busy = 20 * 104 / 2  # 64 x 104 x 16 products at 1,024 a quarter and clock
    assert clocks(*[group + wait] * 4) == pytest.approx(busy + timing.LATENCY["HGMMA"], rel=0.05)
    beside = steps("FFMA R0, R0, R0, R0", int(0.8 * busy))
    assert clocks(*[group[:9] + beside + group[9:] + wait] * 4) < 1.5 * busy  # one after the other: 1.8


def test_blocks_that_do_not_fit_at_once_follow_one_another():
    work = steps("FFMA R0, R0, R0, R0", 100, stall=4)
    one = clocks(work)
    assert clocks(work, blocks=4, resident=4) == pytest.approx(one, rel=0.1)  # a quarter each
    assert clocks(work, blocks=4, resident=1) == pytest.approx(4 * one, rel=0.1)
    many, _ = timing.block_clocks(GPUS[ARCH], [work], 40, 4)
    assert many == pytest.approx(10 * one, rel=0.1)


def test_blocks_of_several_kinds_run_side_by_side():
    gpu, floats, halves = GPUS[ARCH], steps("FFMA R0, R0, R0, R0", 400), steps("LOP3 R0, R0, R0", 200)
    each = gpu.multiprocessors
    alone = sum(clocks([*kind]) for kind in (floats, halves))
    together, _ = timing.mixed_clocks(gpu, [([floats], each), ([halves], each)], resident=2)
    assert together < 0.6 * alone
    one_by_one, _ = timing.mixed_clocks(gpu, [([floats], each), ([halves], each)], resident=1)
    assert one_by_one == pytest.approx(alone, rel=0.02)
    halved, _ = timing.mixed_clocks(gpu, [([floats], each / 2), ([halves], each / 2)], resident=1)
    assert halved == pytest.approx(clocks(floats), rel=0.02)  # one block a multiprocessor in all
    assert timing.mixed_clocks(gpu, [([floats], 2 * each), ([halves], 2 * each)], resident=1) is None


def test_occupancy_is_that_of_the_programming_guide():
    h200, ada = GPUS["90a"], GPUS["89"]
    assert resident_blocks(h200, 255, 128, 70 * 1024) == 2  # registers: 2 x 4 warps of 256 x 32
    assert resident_blocks(h200, 32, 256, 0) == 8  # threads
    assert resident_blocks(h200, 32, 256, 113 * 1024) == 2  # shared memory, 1 KB a block more
    assert resident_blocks(ada, 32, 256, 113 * 1024) == 0
    assert resident_blocks(ada, 32, 256, 0) == 6


def test_the_text_of_instructions_is_read():
    lines = [
        "\t\tFunction : kernel",
        "        /*0010*/              @!P1 LDG.E.128 R4, desc[UR10][R4.64+-0x10] ;  /* 0x000000040404a981 */",
        "                                                                            /* 0x002ea2000c1e1d00 */",
    ]
    ((load,),) = sass.functions(lines).values()
    assert (load.address, load.name, load.modifiers, load.guard.negative) == (16, "LDG", ["E", "128"], True)
    assert (load.stall, load.write, load.wait) == (1, 2, 0b10)
    target, place = load.operands
    assert target.index == 4 and place.value == -16 and place.parts[0].suffix == "64"
    constant = sass.operand("c[0x0][R8+0x220]")
    assert (constant.bank, constant.value, constant.parts[0].index) == (0, 0x220, 8)
    assert sass.operand("-|R3|").absolute and sass.operand("-|R3|").negative
    assert sass.operand("+INF").value == math.inf and sass.operand("-0x5").value == -5
    assert Trace().instructions == []
