"""Parse SASS, NVIDIA's machine code, as cuobjdump prints it: instructions, their operands and control words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

FUNCTION = re.compile(r"Function : (\S+)")
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;\s+/\* 0x([0-9a-f]{16}) \*/")
CONTROL = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
GUARD = re.compile(r"@(!?)(U?P(?:\d|T))\s+")
ADDRESS = re.compile(r"^(?:desc\[(\w+)\](?:\[\w+\])?)?\[(.*)\]$")
CONSTANT = re.compile(r"^c\[(0x[0-9a-f]+|UR\d+)\]\[(?:(U?R(?:\d+|Z))\+?)?(-?0x[0-9a-f]+)?\]$")
REGISTER = re.compile(r"^(U?)R(\d+|Z)$")
PREDICATE = re.compile(r"^(U?)P(\d|T)$")
ZERO, TRUE = 255, 7  # RZ and PT


@dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        kind: register, uniform, predicate, uniform_predicate, constant, address, number or special.
        text: as printed.
        index: of a register or predicate.
        value: of a number; the offset of an address or constant.
        negative, absolute, inverted: what the instruction does to the value first.
        suffix: what follows a register's name, as 64 or H1.
        bank: of a constant.
        parts: the registers that an address or constant adds, as operands.
    """

    kind: str
    text: str
    index: int = 0
    value: float | int = 0
    negative: bool = False
    absolute: bool = False
    inverted: bool = False
    suffix: str = ""
    bank: int = 0
    parts: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One instruction, and what its control word says.

    Attributes:
        stall: clocks before the next issue of the warp.
        write: the scoreboard that is set until the result is there; 7: none.
        read: the scoreboard that is set until the operands are read; 7: none.
        wait: mask of the scoreboards that the instruction waits for.
        guard: the predicate without which it does nothing.
    """

    address: int
    text: str
    stall: int
    write: int
    read: int
    wait: int
    guard: Operand | None = field(default=None)

    @cached_property
    def words(self) -> list[str]:
        return self.text.split(None, 1)[0].split(".")

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def modifiers(self) -> list[str]:
        return self.words[1:]

    @cached_property
    def operands(self) -> list[Operand]:
        rest = self.text.split(None, 1)[1] if " " in self.text else ""
        return [operand(part.strip()) for part in split(rest) if part.strip()]


def split(text: str) -> list[str]:
    """Split operands at commas, and at the blanks between the operands of a return or an indexed branch."""
    parts = text.split(",")
    return [word for part in parts for word in (part.split() if "[" not in part else [part])]


def operand(text: str) -> Operand:
    """Parse one operand."""
    negative, text = (text[0] in "-!", text[1:]) if text[0] in "-!" and not text[1:2].isdigit() else (False, text)
    inverted, text = (True, text[1:]) if text.startswith("~") else (False, text)
    absolute = text.startswith("|")
    text = text.replace("|", "").replace(".reuse", "")
    signs = {"negative": negative, "absolute": absolute, "inverted": inverted}
    bare, _, suffix = text.partition(".") if not text[:1].isdigit() and "[" not in text else (text, "", "")
    if found := REGISTER.match(bare):
        kind = "uniform" if found[1] else "register"
        return Operand(kind, text, ZERO if found[2] == "Z" else int(found[2]), suffix=suffix, **signs)
    if found := PREDICATE.match(bare):
        kind = "uniform_predicate" if found[1] else "predicate"
        return Operand(kind, text, TRUE if found[2] == "T" else int(found[2]), **signs)
    if found := CONSTANT.match(text):
        parts = tuple(operand(part) for part in (found[2],) if part)
        bank = int(found[1], 16) if found[1].startswith("0x") else -1
        return Operand("constant", text, value=int(found[3] or "0", 16), bank=bank, parts=parts, **signs)
    if found := ADDRESS.match(text):
        return address(text, found[2])
    return number(text, signs)


def address(text: str, inside: str) -> Operand:
    """Parse what is inside brackets, as in [R4.64+UR6+-0x10]."""
    offset, parts = 0, []
    for part in inside.split("+"):
        if re.fullmatch(r"-?0x[0-9a-f]+", part):
            offset += int(part, 16)
        elif part:
            parts.append(operand(part))
    return Operand("address", text, value=offset, parts=tuple(parts))


def number(text: str, signs: dict[str, bool]) -> Operand:
    """Parse an immediate, bits in hexadecimal or a float, or else the name of a special register."""
    words = {"INF": float("inf"), "+INF": float("inf"), "QNAN": float("nan"), "+QNAN": float("nan")}
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return Operand("number", text, value=int(text, 16), **signs)
    try:
        return Operand("number", text, value=words[text] if text in words else float(text), **signs)
    except ValueError:
        return Operand("special", text, **signs)


def functions(lines: list[str]) -> dict[str, list[Instruction]]:
    """Parse a disassembly: mangled name of a kernel -> its instructions."""
    found: dict[str, list[Instruction]] = {}
    current, pending = None, None
    for line in lines:
        if match := FUNCTION.search(line):
            current, pending = found.setdefault(match[1], []), None
        elif current is None:
            continue
        elif match := INSTRUCTION.match(line):
            pending = (int(match[1], 16), match[2].strip())
        elif pending and (match := CONTROL.match(line)):
            current.append(instruction(*pending, int(match[1], 16) >> 41))
            pending = None
    return found


def instruction(place: int, text: str, word: int) -> Instruction:
    """Make an instruction of its text and control bits, from the lowest: stall 4, yield 1, write 3, read 3, wait 6."""
    guard = None
    if found := GUARD.match(text):
        guard, text = operand(found[1] + found[2]), text[found.end() :]
    return Instruction(place, text, word & 15, word >> 5 & 7, word >> 8 & 7, word >> 11 & 63, guard)
