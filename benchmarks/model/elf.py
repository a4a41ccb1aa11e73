"""Read what a cubin, a 64-bit ELF file, holds beside its code: constants, initialised memory, and their pointers."""

from __future__ import annotations

import struct
from dataclasses import dataclass

NO_BITS, SYMBOLS, RELOCATIONS = 8, 2, 4
ADDRESS_64 = 2  # R_CUDA_64: eight bytes become the address of a symbol


@dataclass(frozen=True)
class Section:
    """A section's type, contents, and the section that its header links to."""

    kind: int
    data: bytes
    link: int


def sections(elf: bytes) -> dict[str, Section]:
    """Return the sections of a file by name, in the file's order."""
    offset, size, count, names = struct.unpack_from("<Q", elf, 40)[0], *struct.unpack_from("<HHH", elf, 58)
    heads = [struct.unpack_from("<IIQQQQII", elf, offset + number * size) for number in range(count)]

    def name(head: tuple[int, ...]) -> str:
        start = heads[names][4] + head[0]
        return elf[start : elf.index(b"\0", start)].decode()

    return {
        name(head) or str(number): Section(
            head[1], b"" if head[1] == NO_BITS else elf[head[4] : head[4] + head[5]], head[6]
        )
        for number, head in enumerate(heads)
    }


def pointers(found: dict[str, Section], target: str) -> dict[int, int]:
    """Return where addresses belong in a section: offset in the section -> offset of the symbol in its own section.

    The symbol's offset includes the addend of the relocation, which stands beside the symbol (.rela) or, before sm_90,
    where the address goes (.rel).
    """
    table = next((section for section in found.values() if section.kind == SYMBOLS), None)
    beside, inside = found.get(f".rela{target}"), found.get(f".rel{target}")
    entries = list(struct.iter_unpack("<QQq", beside.data)) if beside else []
    if inside:
        own = found[target].data
        entries += [
            (at, info, struct.unpack_from("<q", own, at)[0]) for at, info in struct.iter_unpack("<QQ", inside.data)
        ]
    places = {}
    for offset, info, addend in entries if table else ():
        if info & 0xFFFFFFFF == ADDRESS_64:
            value = struct.unpack_from("<Q", table.data, 24 * (info >> 32) + 8)[0]
            places[offset] = value + addend
    return places
