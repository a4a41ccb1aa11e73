"""The model on made-up instructions: what its interpreter computes, and the clocks that they take."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.model import objects, sass, timing
from benchmarks.model.assumptions import GPUS, resident_blocks
from benchmarks.model.interpreter import Block, Memory, Trace
from benchmarks.model.operations import action

ARCH = "90a"


def instruction(text: str, stall: int = 1, write: int = 7, wait: int = 0) -> sass.Instruction:
    return sass.Instruction(0, text, stall, write, 7, wait)


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
