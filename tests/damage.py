"""Damage files as bad disks, memory and copies do."""

import random


def damaged(content: bytes, generator: random.Random) -> bytes:
    """The content with one bit turned, a part zeroed, a byte added or the end cut off."""
    at, kind = generator.randrange(len(content)), generator.choice(("bit", "zeros", "byte", "cut"))
    if kind == "bit":
        return content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :]
    if kind == "zeros":
        end = min(len(content), at + generator.randrange(1, 64))
        return content[:at] + bytes(end - at) + content[end:]
    return content[:at] if kind == "cut" else content[:at] + b"\x5a" + content[at:]
