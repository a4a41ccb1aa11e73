"""Instructions that move data: global, shared, local and constant memory, and the matrices of tensor cores."""

from __future__ import annotations

import numpy as np

from benchmarks.model.interpreter import WARP, Block
from benchmarks.model.sass import ZERO, Instruction, Operand
from benchmarks.model.values import F32, I64, U32, U64, Action, pair

SECTOR, BANKS = 32, 32


def width_of(modifiers: list[str]) -> int:
    return next((int(m.lstrip("US")) // 8 for m in modifiers if m in ("U8", "S8", "U16", "S16", "64", "128")), 4)


def place_of(b: Block, o: Operand, wide: bool) -> np.ndarray:
    """Return the addresses that an operand in brackets names."""
    total = np.full(b.threads, o.value, I64)
    for part in o.parts:
        scale = 1
        if part.suffix.startswith("X"):
            scale = int(part.suffix[1:])
        is_pair = wide and (part.suffix == "64" or part.kind == "uniform")
        value = pair(b, part).view(I64) if is_pair else np.asarray(b.bits(part)).astype(I64)
        total = total + value * scale
    return total if wide else total & 0xFFFFFFFF


def sectors(b: Block, mask: np.ndarray, addresses: np.ndarray, width: int) -> np.ndarray:
    """Return [warps, 2]: sectors of 32 bytes that each warp asks for, and those that are new to the block."""
    counts = np.zeros((b.threads // WARP, 2), I64)
    places = addresses[:, None] // SECTOR + np.arange((width + SECTOR - 1) // SECTOR)
    for warp in np.flatnonzero(mask.reshape(-1, WARP).any(1)):
        lanes = slice(warp * WARP, (warp + 1) * WARP)
        asked = set(places[lanes][mask[lanes]].ravel().tolist())
        counts[warp] = len(asked), len(asked - b.touched)
        b.touched |= asked
    return counts


def wavefronts(b: Block, mask: np.ndarray, addresses: np.ndarray, width: int) -> np.ndarray:
    """Return [warps, 2]: wavefronts of shared memory that each warp's access takes, and 0.

    An access takes as many wavefronts as the busiest bank has different words. A warp makes a 16-byte access in
    quarters, an 8-byte access in halves.
    """
    counts = np.zeros((b.threads // WARP, 2), I64)
    group = WARP * 4 // max(width, 4)
    chosen = mask.reshape(-1, group)
    groups = np.flatnonzero(chosen.any(1))
    chosen, places = chosen[groups], addresses.reshape(chosen.shape)[groups]
    places = np.where(chosen, places, places[np.arange(len(groups)), chosen.argmax(1), None])  # idle lanes add no word
    words = ((places[:, :, None] + np.arange(0, max(width, 4), 4)) // 4).reshape(len(groups), WARP)
    words.sort(1)
    is_new = np.ones(words.shape, bool)
    is_new[:, 1:] = words[:, 1:] != words[:, :-1]
    banks = np.nonzero(is_new)[0] * BANKS + words[is_new] % BANKS
    busiest = np.bincount(banks, minlength=len(groups) * BANKS).reshape(-1, BANKS).max(1)
    np.add.at(counts[:, 0], groups * group // WARP, busiest)
    return counts


def load(i: Instruction) -> Action:
    """LDG, LDS, LDL, and LD."""
    to, source = i.operands[0], i.operands[-1]
    width, space = width_of(i.modifiers), i.name
    source = next(o for o in i.operands if o.kind == "address")
    signed = {"S8": 8, "S16": 16}

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, source, space in ("LDG", "LD"))
        data = np.zeros((b.threads, max(width, 4)), np.uint8)
        steps = np.arange(width)
        if space in ("LDG", "LD"):
            asked = np.flatnonzero(mask)
            for inside, array, offsets in b.memory.pieces(places[asked], width):
                data[asked[inside], :width] = array[offsets[inside, None] + steps]
            b.cost = sectors(b, mask, places, width)
        elif space == "LDS":
            data[mask, :width] = b.shared[places[mask][:, None] + steps]
            b.cost = wavefronts(b, mask, places, width)
        else:
            threads = np.flatnonzero(mask)
            data[mask, :width] = b.local[threads[:, None], places[mask][:, None] + steps]
        words = data.view(U32)
        for m, bits in signed.items():
            if m in i.modifiers:
                words = (words.astype(U64) << U64(64 - bits)).view(I64) >> (64 - bits)
                words = words.view(U64).astype(U32)
        for word in range(max(width // 4, 1)):
            b.write(to, words[:, word], mask, word)

    return act


def store(i: Instruction) -> Action:
    """STG, STS, STL, and ST."""
    target = next(o for o in i.operands if o.kind == "address")
    source = i.operands[-1]
    width, space = width_of(i.modifiers), i.name

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, target, space in ("STG", "ST"))
        words = np.stack([np.broadcast_to(b.bits(source, k), (b.threads,)) for k in range(max(width // 4, 1))], 1)
        data = np.ascontiguousarray(words).view(np.uint8)[:, :width]
        steps = np.arange(width)
        if space in ("STG", "ST"):
            asked = np.flatnonzero(mask)
            for inside, array, offsets in b.memory.pieces(places[asked], width):
                array[offsets[inside, None] + steps] = data[asked[inside]]
            b.cost = sectors(b, mask, places, width)
        elif space == "STS":
            b.shared[places[mask][:, None] + steps] = data[mask]
            b.cost = wavefronts(b, mask, places, width)
        else:
            b.local[np.flatnonzero(mask)[:, None], places[mask][:, None] + steps] = data[mask]

    return act


def copy_async(i: Instruction) -> Action:
    """LDGSTS: copies global to shared memory, or zeros where its predicate is false."""
    target, source, *which = i.operands
    width = width_of(i.modifiers)

    def act(b: Block, mask: np.ndarray) -> None:
        valid = mask & b.predicate(which[0]) if which else mask
        to, start = place_of(b, target, False), place_of(b, source, True)
        data = np.zeros((b.threads, width), np.uint8)
        asked = np.flatnonzero(valid)
        if len(asked):
            for inside, array, offsets in b.memory.pieces(start[asked], width):
                data[asked[inside]] = array[offsets[inside, None] + np.arange(width)]
        b.shared[to[mask][:, None] + np.arange(width)] = data[mask]
        b.cost = sectors(b, valid, start, width)

    return act


def load_constant(i: Instruction) -> Action:
    to, source = i.operands[0], i.operands[-1]
    width = width_of(i.modifiers)

    def act(b: Block, mask: np.ndarray) -> None:
        words = [b.constant(source, min(width, 4), 4 * word) for word in range(max(width // 4, 1))]
        for word, value in enumerate(words):  # read before the first write, which may overwrite the address
            b.write(to, value, mask, word)

    return act


def load_matrix(i: Instruction) -> Action:
    """LDSM: loads up to four 8x8 matrices of 16-bit values; the lanes name their rows."""
    to, source = i.operands
    count = int(i.modifiers[-1]) if i.modifiers[-1].isdigit() else 1
    transposed = "MT88" in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, source, False)
        rows = np.zeros((b.threads, 8), np.uint16)
        rows[mask] = b.shared[places[mask][:, None] + np.arange(16)].view(np.uint16)
        matrices = rows.reshape(-1, 4, 8, 8)[:, :count]
        matrices = matrices.swapaxes(2, 3) if transposed else matrices
        words = np.ascontiguousarray(matrices).view(U32).reshape(-1, count, WARP)  # lane 4 r + c: row r, columns 2 c
        for k in range(count):
            b.write(to, words[:, k].reshape(-1), mask, k)
        b.cost = wavefronts(b, mask, places, 16)

    return act


def store_matrix(i: Instruction) -> Action:
    """STSM: stores up to four 8x8 matrices of 16-bit values, as LDSM loads them."""
    target, source = i.operands
    count = int(i.modifiers[-1]) if i.modifiers[-1].isdigit() else 1
    transposed = "MT88" in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, target, False)
        words = words_of(b, source, count).reshape(count, -1, WARP)
        matrices = np.ascontiguousarray(words.swapaxes(0, 1)).view(np.uint16).reshape(-1, count, 8, 8)
        rows = np.zeros((b.threads // WARP, 4, 8, 8), np.uint16)
        rows[:, :count] = matrices.swapaxes(2, 3) if transposed else matrices
        named = mask & (np.arange(b.threads) % WARP < 8 * count)
        b.shared[places[named][:, None] + np.arange(16)] = rows.reshape(-1, 8)[named].view(np.uint8)
        b.cost = wavefronts(b, named, places, 16)

    return act


def words_of(b: Block, o: Operand, count: int) -> np.ndarray:
    """Return [count, threads]: registers that follow one another."""
    return np.stack([np.broadcast_to(b.bits(o, word), (b.threads,)) for word in range(count)])


def halves_of(words: np.ndarray, is_bfloat16: bool) -> np.ndarray:
    """Return [..., 2] as float32: the lower and the upper 16-bit float of each register."""
    parts = words.view(np.uint16).reshape(*words.shape, 2)
    return (parts.astype(U32) << U32(16)).view(F32) if is_bfloat16 else parts.view(np.float16).astype(F32)


def matrix_product(i: Instruction) -> Action:
    """HMMA.16816: multiplies a 16x16 by a 16x8 matrix of 16-bit floats, with sums in float32."""
    to, x, y, z = i.operands[:4]
    is_bfloat16 = "BF16" in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        # A lane 4 r + c holds rows r and columns 2 c, 2 c + 1 of 8x8 matrices; the left one's stand below one another
        # first, then side by side.
        warps = b.threads // WARP
        left = halves_of(words_of(b, x, 4), is_bfloat16).reshape(2, 2, warps, 8, 4, 2)
        left = left.transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, 16)
        right = halves_of(words_of(b, y, 2), is_bfloat16).reshape(2, warps, 8, 4, 2)
        right = right.transpose(1, 0, 3, 4, 2).reshape(warps, 16, 8)
        sums = words_of(b, z, 4).view(F32).reshape(2, 2, warps, 8, 4)
        sums = left @ right + sums.transpose(2, 0, 3, 4, 1).reshape(warps, 16, 8)
        results = sums.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, b.threads)
        for word, result in enumerate(results.view(U32)):
            b.write(to, result, mask, word)

    return act


def earlier(words: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Add values to words one after the other; return what each found there."""
    found = np.empty(len(places), U32)
    for k, (place, value) in enumerate(zip(places, values, strict=True)):
        found[k] = words[place]
        words[place] += value
    return found


def shared_atomic(i: Instruction) -> Action:
    """ATOMS.ADD and .POPC.INC; the latter does not return the value before."""
    to = i.operands[0]
    target = next(o for o in i.operands if o.kind == "address")
    source = i.operands[-1]
    returns = to.kind == "register" and to.index != ZERO

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, target, False)[mask] // 4
        words = b.shared[: len(b.shared) // 4 * 4].view(U32)
        value = np.broadcast_to(U32(1) if "INC" in i.modifiers else b.bits(source), (b.threads,))[mask]
        if returns:
            found = np.zeros(b.threads, U32)
            found[mask] = earlier(words, places, value)
            b.write(to, found, mask)
        else:
            np.add.at(words, places, value)
        b.cost = wavefronts(b, mask, place_of(b, target, False), 4)

    return act


def global_atomic(i: Instruction) -> Action:
    """REDG.ADD of 32 bits."""
    target, source = next(o for o in i.operands if o.kind == "address"), i.operands[-1]

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, target, True)
        for inside, array, offsets in b.memory.pieces(places[mask], 4):
            words = array[: len(array) // 4 * 4].view(U32)
            np.add.at(words, offsets[inside] // 4, np.broadcast_to(b.bits(source), (b.threads,))[mask][inside])
        b.cost = sectors(b, mask, places, 4)

    return act


def global_turn(i: Instruction) -> Action:
    """ATOMG.INC and .ADD of 32 bits, which give back what was there; the counter lies in a cache."""
    _, to, _, source = i.operands
    target = next(o for o in i.operands if o.kind == "address")
    adds = "ADD" in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        places = place_of(b, target, True)
        found, value = np.zeros(b.threads, U32), np.broadcast_to(b.bits(source), (b.threads,))
        for thread in np.flatnonzero(mask):
            for _, array, offsets in b.memory.pieces(places[thread : thread + 1], 4):
                word = array[offsets[0] : offsets[0] + 4].view(U32)
                found[thread] = word[0]
                word[0] = word[0] + value[thread] if adds else 0 if word[0] >= value[thread] else word[0] + 1
        b.write(to, found, mask)
        b.cost = sectors(b, mask, places, 4) * np.array([1, 0])

    return act
