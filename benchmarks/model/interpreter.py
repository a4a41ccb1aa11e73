"""Runs one block of threads through a kernel's machine code, on real memory, all its threads at a time.

Every thread has its place in the code; the threads at the lowest place go on, so that those that parted meet again; a
barrier holds a thread until all others of its block that still run have come. The results are those of a GPU up to the
last bits of approximations (operations.py), which tests compare; the trace is what timing.py reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.model.objects import Kernel
from benchmarks.model.sass import TRUE, ZERO, Instruction, Operand

WARP = 32
MAX_STEPS = 200_000
PARAMETERS = {80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380, 103: 0x380, 120: 0x380}  # where they begin
ENDED = np.iinfo(np.int64).max


class Memory:
    """Global memory: arrays of bytes at their addresses."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int, np.ndarray]] = []

    def add(self, array: np.ndarray) -> int:
        """Make an array readable and writable; returns its address."""
        flat = array.reshape(-1).view(np.uint8)
        self.regions.append((flat.ctypes.data, flat.ctypes.data + flat.nbytes, flat))
        return flat.ctypes.data

    def pieces(self, addresses: np.ndarray, width: int):
        """(mask, bytes, offsets) of each array that some addresses lie in.

        Raises:
            IndexError: an address lies in none.
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
    """What the warps of a block ran: for every step the instruction, and one bit a warp.

    costs: step -> [warps, 2]: sectors of 32 bytes asked for and those asked for first; or wavefronts of shared memory.
    """

    instructions: list[int] = field(default_factory=list)
    warps: list[np.ndarray] = field(default_factory=list)
    costs: dict[int, np.ndarray] = field(default_factory=dict)


class Block:
    """The state of one block.

    Args:
        grid: blocks in x, y, z. threads: of a block. place: its index in x, y, z.
        parameters: of the kernel, as they lie in constant memory.
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
        self.places = np.zeros(threads, np.int64)  # indices of instructions
        self.held = np.full(threads, -1)  # number of the barrier that holds a thread
        self.index = {instruction.address: i for i, instruction in enumerate(kernel.instructions)}
        self.trace, self.touched = Trace(), set()
        self.unmodelled: set[str] = set()
        self.cost: np.ndarray | None = None

    def point_to(self, initialised: np.ndarray) -> None:
        """Put the addresses of the code's own data where it looks for them."""
        if not len(initialised) or 4 not in self.banks:
            return
        start, bank = self.memory.add(initialised), bytearray(self.banks[4].tobytes())
        for place, offset in self.kernel.pointers.items():
            bank[place : place + 8] = (start + offset).to_bytes(8, "little")
        self.banks[4] = np.frombuffer(bytes(bank), np.uint8)

    def run(self, actions: Callable[[Instruction], Callable[[Block, np.ndarray], None] | None]) -> Trace:
        """All threads to their end.

        Args:
            actions: what an instruction does to the block for a mask of threads; None: it is not known.
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
        """Let go on those that a barrier holds, when all are held; False where nobody is left."""
        held = self.held >= 0
        if not held.any():
            return False
        self.held[:] = -1
        return True

    def hold(self, mask: np.ndarray, number: int, count: int) -> None:
        """Threads come to a barrier; the last of its count sets all free. The step's cost is [0, 1] of warps of which
        some threads are still on their way: those have not come yet."""
        self.held[mask] = number
        waiting, running = self.held == number, self.places != ENDED
        late = (running & ~waiting).reshape(-1, WARP).any(1) & mask.reshape(-1, WARP).any(1)
        self.cost = np.stack([np.zeros(len(late), np.int64), late.astype(np.int64)], 1)
        expected = count or int(running.sum())
        if int(waiting.sum()) >= expected:
            self.held[waiting] = -1

    # ---- operands ----------------------------------------------------------------------------------------------------

    def predicate(self, operand: Operand) -> np.ndarray:
        file = self.uniform_predicates if operand.kind.startswith("uniform") else self.predicates
        return ~file[operand.index] if operand.negative else file[operand.index]

    def bits(self, operand: Operand, word: int = 0) -> np.ndarray | np.uint32:
        """32 bits, without signs: of a register (and those after it), a constant or a number."""
        if operand.kind in ("register", "uniform"):
            file = self.registers if operand.kind == "register" else self.uniforms
            return file[operand.index + word if operand.index != ZERO else ZERO]
        if operand.kind == "constant":
            return self.constant(operand, 4, 4 * word)
        if isinstance(operand.value, float):
            return np.float32(operand.value).view(np.uint32)
        return np.uint32(operand.value >> (32 * word) & 0xFFFFFFFF)

    def constant(self, operand: Operand, width: int, offset: int = 0) -> np.ndarray:
        """A little-endian number of a constant bank, for each thread."""
        place = np.int64(operand.value + offset)
        for part in operand.parts:
            place = place + self.bits(part).astype(np.int64)
        data = self.banks.get(operand.bank, np.zeros(16, np.uint8))
        places = np.clip(np.broadcast_to(np.asarray(place), (self.threads,)), 0, len(data) - width)  # idle threads'
        if (places == places[0]).all():
            raw = data[int(places[0]) : int(places[0]) + width].tobytes()
            return np.full(self.threads, int.from_bytes(raw, "little"), np.uint32)
        gathered = data[places[:, None] + np.arange(width)]
        return np.ascontiguousarray(np.pad(gathered, ((0, 0), (0, 4 - width)))).view(np.uint32)[:, 0]

    def write(self, operand: Operand, value: np.ndarray, mask: np.ndarray, word: int = 0) -> None:
        """32 bits into a register (and those after it); a uniform register is one for all of a warp."""
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
    """Constant bank 0 of a launch: sizes of block and grid, then the parameters."""
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
