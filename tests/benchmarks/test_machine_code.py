"""The shipped machine code gives the right results in the interpreter, and the model's rows are as committed."""

import csv
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import machine_code, tables
from benchmarks.bench_augment import SPEC
from benchmarks.bench_feature_mse import composed
from benchmarks.model import batches, launches, objects
from benchmarks.model.assumptions import GPUS
from benchmarks.model.interpreter import Block
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


def assert_equals_cpu(tensors: dict[str, Tensor]) -> None:
    given = [tensors[name] for name in ("pixels", "offsets", "sizes", "indices", "plan")]
    images, teacher = augment(*given, SPEC, torch.bfloat16)
    assert torch.equal(tensors["images"], images) and torch.equal(tensors["teacher"], teacher)


@pytest.mark.parametrize("operations", [(), ((3, 17.0),)], ids=["plain", "rotated"])
def test_augment_gives_the_bytes_of_the_cpu_in_its_machine_code(code, operations):
    assert_equals_cpu(run(one_view(*operations), code))


def test_parts_of_an_image_are_right_in_their_machine_code(code):
    launches.use_gpu(1000, 100 * 1024)
    case = one_view((3, 17.0), (10, 1.8))
    assert [launch.smem_bytes == 0 for launch in case.launches] == [False, True]
    tensors = run(case, code)
    number = case.launches[1].blocks
    assert number == 8
    start = case.tensors["memory"].nbytes - 8 * (1 + 8)
    assert sorted(parts_of(case, 1, start)) == [(0, part, number) for part in range(number)]
    assert_equals_cpu(tensors)


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


def parts_of(case: launches.Case, batch: int, start: int = 0) -> list[tuple[int, int, int]]:
    """Return the list of a batch's parts, as the launch that orders them leaves it: row, part and number of parts."""
    end = start + 8 * (1 + 8 * batch)
    listed = case.tensors["memory"][start:end].view(torch.int16).view(-1, 4)
    count = int(listed[0, :2].view(torch.int32))
    return [(row, part, num_parts) for row, _, part, num_parts in listed[1 : 1 + count].tolist()]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_large_views_are_made_in_bounded_memory():
    launches.use_gpu(132, 227 * 1024)
    assert launches.memory_of_views(128) == 0  # in shared memory
    launches.use_gpu(128, 100 * 1024)
    image = 3 * 224 * 224 * (1 + 2)  # planes, and moved pixels of two bytes
    assert 8 * image < launches.memory_of_views(1) < 16 * image
    assert launches.memory_of_views(10_000) < 512 << 20
    assert launches.memory_of_views(4, 2048) < 512 << 20
    large = 3 * 4096 * 4096 * (1 + 2)
    assert 4 * large < launches.memory_of_views(4, 4096) < 5 * large  # a block for each image


def test_slow_images_of_a_batch_come_first(code):
    case = batches.ordering()
    run(case, code)
    parts = parts_of(case, 512)
    order = [row for row, _, _ in parts]
    assert {part[1:] for part in parts} == {(0, 1)}
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
