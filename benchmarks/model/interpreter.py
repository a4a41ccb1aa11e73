"""Run one block of threads through a kernel's machine code, on real memory, all its threads together.

Every thread has its place in the code. A step runs the threads at the lowest place, so that threads that parted meet
again. A barrier holds a thread until all others of its block that have not ended have come. Results are those of a GPU,
except for the last bits of approximations (operations.py); tests compare them. timing.py reads the trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.model.objects import Kernel
from benchmarks.model.sass import TRUE, ZERO, Instruction, Operand

WARP = 32
MAX_STEPS = 200_000
PARAMETERS = {80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380, 103: 0x380, 120: 0x380}  # start in bank 0
ENDED = np.iinfo(np.int64).max


class Memory:
    """Global memory: arrays of bytes at their addresses."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int, np.ndarray]] = []

    def add(self, array: np.ndarray) -> int:
        """Make an array readable and writable; return its address."""
        flat = array.reshape(-1).view(np.uint8)
        self.regions.append((flat.ctypes.data, flat.ctypes.data + flat.nbytes, flat))
        return flat.ctypes.data

    def pieces(self, addresses: np.ndarray, width: int):
        """Yield (mask of the addresses, bytes, offsets) for each array that some of the addresses lie in.

        Raises:
            IndexError: an address lies in no array.
        """
        left = np.ones(len(addresses), bool)
        for start, end, array in self.regions:
            inside = (addresses >= start) & (addresses + width <= end)
            if inside.any():
                left &= ~inside
                yield inside, array, (addresses - start).astype(np.int64)
                if not left.any():
                    return
        raise IndexError(f"address {int(addresses[left][0]):#x} lies in no array")


@dataclass
class Trace:
    """What the warps of a block ran.

    Attributes:
        instructions: of every step, the index of its instruction.
        warps: of every step, a bool for each warp: whether it took part.
        costs: step -> [warps, 2]. Global memory: sectors of 32 bytes that a warp asked for, and those of them that the
            block had not asked for before. Shared memory: wavefronts, and 0. A barrier: its number + 256 times its
            warps (0: all of the block), and 1 for a warp that has not arrived: some of its threads are on their way.
            A barrier in shared memory: see phases.py.
    """

    instructions: list[int] = field(default_factory=list)
    warps: list[np.ndarray] = field(default_factory=list)
    costs: dict[int, np.ndarray] = field(default_factory=dict)


class Block:
    """The state of one block.

    Args:
        kernel: the code to run.
        arch: the number of its architecture, as 90.
        memory: the global memory.
        grid: number of blocks in x, y, z.
        threads: number of threads of a block.
        smem_bytes: shared memory of a block.
        parameters: of the kernel, as they lie in constant memory.
        place: index of this block in x, y, z.
    """

    def __init__(
        self,
        kernel: Kernel,
        arch: int,
        memory: Memory,
        grid: Sequence[int],
        threads: int,
        smem_bytes: int,
        parameters: bytes,
        place: Sequence[int] = (0, 0, 0),
    ) -> None:
        self.kernel, self.memory, self.place, self.grid, self.threads = kernel, memory, place, grid, threads
        self.registers = np.zeros((ZERO + 1, threads), np.uint32)
        self.uniforms = np.zeros((ZERO + 1, threads), np.uint32)
        self.predicates = np.zeros((TRUE + 1, threads), bool)
        self.uniform_predicates = np.zeros((TRUE + 1, threads), bool)
        self.predicates[TRUE] = self.uniform_predicates[TRUE] = True
        self.shared = np.zeros(smem_bytes + 4096, np.uint8)
        self.local = np.zeros((threads, max(kernel.stack_bytes, 16) + 256), np.uint8)
        self.registers[1] = max(kernel.stack_bytes, 16)
        self.banks = dict(kernel.constants) | {0: constant_bank(arch, grid, threads, parameters, self.registers[1, 0])}
        self.banks = {bank: np.frombuffer(data + bytes(16), np.uint8) for bank, data in self.banks.items()}
        self.point_to(np.frombuffer(bytearray(kernel.initialised), np.uint8))
        self.places = np.zeros(threads, np.int64)  # index of the instruction that each thread runs next
        self.held = np.full(threads, -1)  # number of the barrier that holds a thread
        self.arrived: Counter = Counter()  # barrier -> threads of whole warps that have come and do not wait
        self.phases: dict[int, Any] = {}  # address -> barrier in shared memory (phases.py)
        self.passing: dict[int, np.ndarray] = {}  # barrier -> threads that have come, of warps that have not whole
        self.index = {instruction.address: i for i, instruction in enumerate(kernel.instructions)}
        self.trace, self.touched = Trace(), set()
        self.unmodelled: set[str] = set()
        self.cost: np.ndarray | None = None

    def point_to(self, initialised: np.ndarray) -> None:
        """Put the addresses of the code's initialised data where the code looks for them."""
        if not len(initialised) or 4 not in self.banks:
            return
        start, bank = self.memory.add(initialised), bytearray(self.banks[4].tobytes())
        for place, offset in self.kernel.pointers.items():
            bank[place : place + 8] = (start + offset).to_bytes(8, "little")
        self.banks[4] = np.frombuffer(bytes(bank), np.uint8)

    @np.errstate(all="ignore")  # as a GPU's, and threads may compute with bytes whose results nobody reads
    def run(self, actions: Callable[[Instruction], Callable[[Block, np.ndarray], None] | None]) -> Trace:
        """Run all threads to their end; return the trace.

        Args:
            actions: instruction -> function (block, mask of threads) that does it, or None where none is known.
        Raises:
            RuntimeError: the threads do not end.
        """
        code, done = self.kernel.instructions, [None] * len(self.kernel.instructions)
        warps = self.threads // WARP
        for _ in range(MAX_STEPS):
            running = self.held < 0
            place = int(np.min(self.places, where=running, initial=ENDED))
            if place == ENDED:
                if not self.release():
                    return self.trace
                continue
            mask = running & (self.places == place)
            instruction = code[place]
            if done[place] is None:
                done[place] = actions(instruction) or self.skip(instruction)
            self.trace.instructions.append(place)
            self.trace.warps.append(mask.reshape(warps, WARP).any(1))
            self.places[mask] += 1
            guarded = mask & self.predicate(instruction.guard) if instruction.guard else mask
            if guarded.any():
                self.cost = None
                done[place](self, guarded)
                if self.cost is not None:
                    self.trace.costs[len(self.trace.instructions) - 1] = self.cost
        raise RuntimeError(f"{self.kernel.name}: not ended after {MAX_STEPS} steps")

    def skip(self, instruction: Instruction) -> Callable[[Block, np.ndarray], None]:
        self.unmodelled.add(".".join(instruction.words))
        return lambda block, mask: None

    def release(self) -> bool:
        """Free the threads that a barrier holds when every thread is held or has ended; False if none is held."""
        held = self.held >= 0
        if not held.any():
            return False
        self.held[:] = -1
        return True

    def meet(self, mask: np.ndarray, number: int, count: int, waits: bool) -> np.ndarray:
        """Let threads come to a barrier: hold them if they wait there, and free all once the last of its count came.

        Args:
            count: of threads, those that do not wait included; 0: all that have not ended.
        Returns:
            For each warp, whether some of its threads are still on their way.
        """
        running = self.places != ENDED
        if waits:
            self.held[mask] = number
            came = self.held == number
        else:
            came = self.passing.setdefault(number, np.zeros(self.threads, bool))
            came |= mask
        late = (running & ~came).reshape(-1, WARP).any(1) & mask.reshape(-1, WARP).any(1)
        if not waits:
            whole = np.repeat(mask.reshape(-1, WARP).any(1) & ~late, WARP) & came
            self.arrived[number] += int(whole.sum())
            came &= ~whole
        waiting = self.held == number
        if int(waiting.sum()) + self.arrived[number] >= (count or int(running.sum())):
            self.held[waiting] = -1
            self.arrived[number] = 0
        return late

    # ---- operands ----------------------------------------------------------------------------------------------------

    def predicate(self, operand: Operand) -> np.ndarray:
        file = self.uniform_predicates if operand.kind.startswith("uniform") else self.predicates
        return ~file[operand.index] if operand.negative else file[operand.index]

    def bits(self, operand: Operand, word: int = 0) -> np.ndarray | np.uint32:
        """Return 32 bits, without signs, of a constant, a number or a register; word: how many registers on."""
        if operand.kind in ("register", "uniform"):
            file = self.registers if operand.kind == "register" else self.uniforms
            return file[operand.index + word if operand.index != ZERO else ZERO]
        if operand.kind == "constant":
            return self.constant(operand, 4, 4 * word)
        if isinstance(operand.value, float):
            return np.float32(operand.value).view(np.uint32)
        return np.uint32(operand.value >> (32 * word) & 0xFFFFFFFF)

    def constant(self, operand: Operand, width: int, offset: int = 0) -> np.ndarray:
        """Return a little-endian number of a constant bank, for each thread."""
        place = np.int64(operand.value + offset)
        for part in operand.parts:
            place = place + self.bits(part).astype(np.int64)
        data = self.banks.get(operand.bank, np.zeros(16, np.uint8))
        places = np.clip(np.broadcast_to(np.asarray(place), (self.threads,)), 0, len(data) - width)  # for idle threads
        if (places == places[0]).all():
            raw = data[int(places[0]) : int(places[0]) + width].tobytes()
            return np.full(self.threads, int.from_bytes(raw, "little"), np.uint32)
        gathered = data[places[:, None] + np.arange(width)]
        return np.ascontiguousarray(np.pad(gathered, ((0, 0), (0, 4 - width)))).view(np.uint32)[:, 0]

    def write(self, operand: Operand, value: np.ndarray, mask: np.ndarray, word: int = 0) -> None:
        """Write 32 bits to a register, or to the one `word` registers on; a warp shares one uniform register."""
        if operand.index == ZERO:
            return
        if operand.kind == "uniform":
            lanes = np.broadcast_to(np.asarray(value, np.uint32), (self.threads,)).reshape(-1, WARP)
            busy = mask.reshape(-1, WARP)
            first = lanes[np.arange(len(lanes)), busy.argmax(1)]
            rows = busy.any(1)
            self.uniforms[operand.index + word].reshape(-1, WARP)[rows] = first[rows, None]
            return
        np.copyto(self.registers[operand.index + word], value, where=mask, casting="unsafe")

    def set_predicate(self, operand: Operand, value: np.ndarray, mask: np.ndarray) -> None:
        if operand.index == TRUE:
            return
        file = self.uniform_predicates if operand.kind.startswith("uniform") else self.predicates
        if operand.kind.startswith("uniform"):
            mask = np.repeat(mask.reshape(-1, WARP).any(1), WARP)
        np.copyto(file[operand.index], value, where=mask)

    def jump(self, address: int | np.ndarray, mask: np.ndarray) -> None:
        if np.ndim(address) == 0:
            self.places[mask] = self.index[int(address)]
        else:
            for thread in np.flatnonzero(mask):
                self.places[thread] = self.index[int(address[thread])]


def constant_bank(arch: int, grid: Sequence[int], threads: int, parameters: bytes, stack: int) -> bytes:
    """Return constant bank 0 of a launch: sizes of block and grid, then the parameters."""
    start = PARAMETERS[arch]
    bank = bytearray(start + len(parameters))
    of_block, of_grid = (0x360, 0x370) if start == 0x380 else (0x0, 0xC)
    for place, sizes in ((of_block, (threads, 1, 1)), (of_grid, grid)):
        bank[place : place + 12] = np.array(sizes, np.uint32).tobytes()
    bank[start:] = parameters
    for stack_place in (0x28, 0x37C):  # where a thread's stack begins
        if stack_place + 4 <= start:
            bank[stack_place : stack_place + 4] = int(stack).to_bytes(4, "little")
    return bytes(bank)
