"""What the model assumes: one table for each GPU, with sources. This project measured only what is marked [C].

Sources: [G] CUDA C++ programming guide, arithmetic throughput and compute capabilities; [H] Luo et al., Dissecting the
NVIDIA Hopper architecture, arXiv 2402.13499; [V] Jia et al., Dissecting the NVIDIA Volta GPU architecture, arXiv
1804.06826; [D] the vendor's datasheets: multiprocessors, bandwidth, clocks; [C] a copy through PyTorch on an H200 moved
4.3 TB/s, read and written; [A] an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Clocks from issue until a scoreboard is released; instructions without one wait as long as their stall count says.
LATENCY = {
    "LDS": 30, "LDSM": 33, "SHFL": 24, "MUFU": 20, "S2R": 25, "S2UR": 25, "LDC": 35, "ULDC": 35, "LDCU": 35,  # [V] [H]
    "I2F": 20, "F2I": 20, "F2F": 20, "FRND": 20, "I2FP": 12, "VOTE": 12, "VOTEU": 12, "R2UR": 12, "REDUX": 20,  # [V]
    "DADD": 16, "DMUL": 16, "DFMA": 16, "DSETP": 16, "ATOMS": 60, "STS": 20, "STG": 20, "STL": 20, "LDL": 40,  # [V] [A]
    "STSM": 20, "HMMA": 33, "HGMMA": 33, "REDG": 20, "FLO": 14, "UFLO": 14, "FCHK": 14,  # [H]
}  # fmt: skip
DEFAULT_LATENCY = 30  # [A]
HOLD = {"MEMBAR": 500}  # clocks until a warp may go on, which no scoreboard says [A]
OPERANDS_READ = 12  # clocks until the scoreboard of the operands is released [A]
# Clocks of work that may wait in the queue of a shared pipe; beyond that, warps cannot issue to the pipe [A].
# `products`: of warpgroups, in a quarter's tensor core
QUEUE = {"shared": 64.0, "cache": 512.0, "dram": 1536.0, "products": 512.0}
# A product of a warpgroup, m64nNk16, takes N / 2 clocks of the four tensor cores: 4,096 dense FLOP of 16 bits a clock
# and multiprocessor [D]. Its operands in shared memory are read beside that, at 128 bytes a clock [G]. A warp goes on
# once it has issued one: FlashAttention-3 (arXiv 2407.08608) forms probabilities beside the warp's own products.
WARPGROUP_CLOCKS_PER_COLUMN = 0.5
# A batch of augment (batches.py): operations add up, each at the recipe's usual strength and as the only one; noise
# goes by the erased area; the hardware starts blocks in order, each where one has ended; more images than there are
# multiprocessors
# are sorted by what they take exactly, where the kernel sorts by an estimate (augment_order.cuh); blocks that run at
# the same time do not slow one another beyond the bandwidth's share that each has [A].
LAUNCH_US = 2.0  # from the end of one kernel to the first block of the next, and for its last block to leave [A]

HALF = {  # integers and selection, on a quarter's pipe of 16 lanes [G]
    "FMNMX", "SEL", "FSEL", "LOP3", "ISETP", "FSETP", "F2FP", "PRMT", "SHF", "LEA", "IADD3", "PLOP3", "VIADD", "IABS",
    "VIMNMX", "VIADDMNMX", "IMNMX", "I2IP", "I2FP", "IDP", "VOTE", "P2R", "R2P",
}  # fmt: skip
MULTIPLY = {"IMAD"}
FLOAT = {"FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "MOV", "CS2R"}
DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP"}
CONVERT = {"I2F", "F2I", "F2F", "FRND"}
SHARED = {"LDS", "STS", "LDSM", "STSM", "ATOMS"}
GLOBAL = {"LDG", "STG", "LDGSTS", "REDG", "ATOMG", "LD", "ST"}
LOCAL = {"LDL", "STL"}


@dataclass(frozen=True)
class Gpu:
    """One architecture, described by a GPU that has it.

    Attributes:
        arch, number: the architecture, with nvcc's letter and without.
        bandwidth: bytes a second that a large copy moves, read and written.
        block_smem, smem: bytes of shared memory that a block can have, and that a multiprocessor has.
        threads, blocks: most that a multiprocessor holds.
        rates: clocks for which one instruction of a warp keeps a pipe of a quarter busy.
        dram_latency, cache_latency: clocks until data from DRAM or a cache arrives.
        cache_bytes: bytes from L2 for a clock and multiprocessor.
        registers: of a multiprocessor.
    """

    name: str
    arch: str  # as nvcc's sm_
    number: int
    multiprocessors: int
    clock_hz: float
    bandwidth: float
    block_smem: int
    smem: int
    threads: int
    blocks: int
    rates: dict[str, float] = field(default_factory=dict)
    dram_latency: float = 700  # [H], loaded
    cache_latency: float = 270  # [H]
    cache_bytes: float = 64  # [G]
    registers: int = 65536


RATES = {
    "float": 1, "half": 2, "multiply": 2, "special": 8, "double": 2, "convert": 2, "convert_double": 8, "tensor": 6.4,
    "uniform": 2, "control": 1,
}  # fmt: skip
GPUS = {
    # mma.sync at 63 % of the tensor cores' peak, of 4 clocks [H]; 1.85 GHz under load [A]; bandwidth [C]
    "90a": Gpu("NVIDIA H200", "90a", 90, 132, 1.85e9, 4.3e12, 227 << 10, 228 << 10, 2048, 32, RATES),
    "80": Gpu(
        "NVIDIA A100 80GB", "80", 80, 108, 1.41e9, 1.75e12, 163 << 10, 164 << 10, 2048, 32,
        RATES | {"float": 2, "double": 4, "tensor": 8}, dram_latency=600,
    ),
    "89": Gpu(
        "NVIDIA RTX 4090", "89", 89, 128, 2.52e9, 0.92e12, 99 << 10, 100 << 10, 1536, 24,
        RATES | {"double": 64, "convert_double": 64, "tensor": 32},
    ),
    "100": Gpu("NVIDIA B200", "100", 100, 148, 1.85e9, 7.2e12, 227 << 10, 228 << 10, 2048, 32, RATES),
    "120": Gpu(
        "NVIDIA RTX 5090", "120", 120, 170, 2.41e9, 1.6e12, 99 << 10, 100 << 10, 1536, 24,
        RATES | {"half": 1, "double": 64, "convert_double": 64, "tensor": 32},
    ),
}  # fmt: skip


def pipe_of(name: str, modifiers: list[str]) -> str:
    """Return the pipe that an instruction occupies."""
    if name in FLOAT:
        return "float"
    if name in HALF:
        return "half"
    if name in MULTIPLY:
        return "multiply"
    if name in ("HMMA", "HGMMA"):
        return "tensor"
    if name == "MUFU":
        return "special"
    if name in DOUBLE:
        return "double"
    if name in CONVERT:
        return "convert_double" if {"F64", "S64", "U64"} & set(modifiers) else "convert"
    if name in SHARED or name == "SHFL":
        return "shared"
    if name in GLOBAL or name in LOCAL:
        return "memory"
    return "uniform" if name.startswith("U") or name in ("S2UR", "R2UR", "VOTEU") else "control"


def resident_blocks(gpu: Gpu, registers: int, threads: int, smem_bytes: int) -> int:
    """Return how many blocks a multiprocessor holds, by registers, threads and shared memory (CUDA takes 1 KB each)."""
    of_a_warp = -(-max(registers, 1) // 8) * 8 * 32
    by_registers = gpu.registers // of_a_warp // 4 * 4 // (threads // 32)
    by_smem = gpu.smem // (smem_bytes + 1024)
    return max(0, min(by_registers, by_smem, gpu.threads // threads, gpu.blocks))
