"""What each instruction does: exact, except for the last bits of approximations of floats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.model.control import (
    absolute,
    branch,
    end,
    jump_to_register,
    move,
    no_trouble,
    predicates_to_register,
    register_to_predicates,
    shuffle,
    special_register,
    vote,
    warp_sum,
)
from benchmarks.model.floats import (
    compare_floats,
    double_arithmetic,
    float_arithmetic,
    float_extreme,
    float_to_float,
    from_integer,
    halves,
    pack_floats,
    round_to_whole,
    special_function,
    to_integer,
)
from benchmarks.model.integers import (
    add,
    compare_integers,
    count_bits,
    dot,
    highest_bit,
    logic,
    multiply,
    pack_bytes,
    permute,
    predicate_logic,
    select,
    shift,
    shifted_add,
    smaller_or_larger,
)
from benchmarks.model.phases import phase_barrier
from benchmarks.model.sass import Instruction
from benchmarks.model.transfers import (
    copy_async,
    global_atomic,
    global_turn,
    load,
    load_constant,
    load_matrix,
    matrix_product,
    shared_atomic,
    store,
    store_matrix,
)
from benchmarks.model.values import Action, integer
from benchmarks.model.warpgroups import barrier, registers_granted, warpgroup_product, warpgroup_sync

NOTHING = {
    "BSSY", "BSYNC", "NOP", "WARPSYNC", "YIELD", "DEPBAR", "LDGDEPBAR", "ENDCOLLECTIVE", "BREAK", "ERRBAR", "CCTL",
    "MEMBAR", "FENCE", "BMOV", "NANOSLEEP", "PREEXIT", "ACQBULK", "UCGABAR_WAIT", "BPT", "LEPC",
    "CGAERRBAR",
}  # fmt: skip

TABLE: dict[str, Callable[[Instruction], Action | None]] = {
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD", "IADD", "UIADD", "VIADD2"), add),
    **dict.fromkeys(("IMAD", "UIMAD"), multiply),
    **dict.fromkeys(("LEA", "ULEA"), shifted_add),
    **dict.fromkeys(("LOP3", "ULOP3"), logic),
    **dict.fromkeys(("PLOP3", "UPLOP3"), predicate_logic),
    **dict.fromkeys(("SHF", "USHF"), shift),
    **dict.fromkeys(("PRMT", "UPRMT"), permute),
    **dict.fromkeys(("ISETP", "UISETP"), compare_integers),
    **dict.fromkeys(("SEL", "USEL", "FSEL", "UFSEL"), select),
    **dict.fromkeys(("VIMNMX", "IMNMX", "VIADDMNMX", "UIMNMX", "UVIMNMX", "VIMNMX3"), smaller_or_larger),
    **dict.fromkeys(("FLO", "UFLO"), highest_bit),
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "UFADD", "UFMUL", "UFFMA"), float_arithmetic),
    **dict.fromkeys(("DADD", "DMUL", "DFMA"), double_arithmetic),
    **dict.fromkeys(("FSETP", "UFSETP", "DSETP"), compare_floats),
    **dict.fromkeys(("I2F", "I2FP", "UI2F", "UI2FP"), from_integer),
    **dict.fromkeys(("LDG", "LDS", "LDL", "LD"), load),
    **dict.fromkeys(("STG", "STS", "STL", "ST"), store),
    **dict.fromkeys(("LDC", "ULDC", "LDCU"), load_constant),
    **dict.fromkeys(("S2R", "S2UR", "CS2R", "CS2UR"), special_register),
    **dict.fromkeys(("VOTE", "VOTEU"), vote),
    **dict.fromkeys(("BRA", "CALL"), branch),
    **dict.fromkeys(("RET", "BRX"), jump_to_register),
    **dict.fromkeys(("MOV", "UMOV", "R2UR"), move),
    **dict.fromkeys(("REDUX", "CREDUX"), warp_sum),
    **dict.fromkeys(("HFMA2", "HADD2"), halves),
    **dict.fromkeys(("FMNMX", "FMNMX3"), float_extreme),
    **dict.fromkeys(("POPC", "UPOPC"), count_bits),
    "IDP": dot, "I2IP": pack_bytes, "MUFU": special_function, "F2I": to_integer, "UF2I": to_integer,
    "F2FP": pack_floats, "F2F": float_to_float, "FRND": round_to_whole, "LDGSTS": copy_async, "LDSM": load_matrix,
    "STSM": store_matrix, "HMMA": matrix_product,
    "ATOMS": shared_atomic, "REDG": global_atomic, "ATOMG": global_turn, "SHFL": shuffle,
    "P2R": predicates_to_register, "R2P": register_to_predicates, "BAR": barrier, "EXIT": end, "IABS": absolute,
    "FCHK": no_trouble, "HGMMA": warpgroup_product, "WARPGROUP": warpgroup_sync, "USETMAXREG": registers_granted,
    "SYNCS": phase_barrier,
}  # fmt: skip


def action(i: Instruction) -> Action | None:
    """Return the function that does an instruction, or None where none is known."""
    if i.name in NOTHING:
        return lambda b, mask: None
    make = TABLE.get(i.name)
    if make is multiply and "MOV" in i.modifiers:
        to, x = i.operands[0], i.operands[-1]
        return lambda b, mask: b.write(to, np.broadcast_to(integer(b, x), (b.threads,)), mask)
    return make(i) if make else None
