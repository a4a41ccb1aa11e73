"""Let ranks meet under torchrun, at the first start and after every restart."""

from __future__ import annotations

import datetime
import os
import time
import uuid
from dataclasses import dataclass

from torch import distributed as dist

POLL_S = 0.01
PREFIX = "lgfast"
BEGUN = f"{PREFIX}/begun"


@dataclass(frozen=True)
class Start:
    """One start of the ranks; all of them have equal values."""

    number: int = 0  # differs between the starts of one torchrun
    is_restart: bool = False  # whether an earlier start began the run, so that this one continues it
    store: dist.Store | None = None  # None where this process is alone

    def begin(self) -> None:
        """Record that the run has its folder; a restart after this continues it."""
        if self.store is not None:
            self.store.set(BEGUN, "")


def open_store() -> dist.TCPStore:
    """Open the ranks' store: torchrun's own, which outlives them, unless torchrun was told not to share it."""
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = os.environ["RANK"] == "0" and not is_shared
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=is_host)


def meet(store: dist.Store, rank: int, world: int, timeout: datetime.timedelta) -> Start:
    """Wait for all ranks and agree on which start of the run this is.

    torchrun keeps its store when it restarts the ranks, with all that the dead ranks wrote. A process group that read
    their addresses would wait for them for ever. So each start gets its own number, which rank 0 counts. The others ask
    for it under a fresh token, so that no answer can be meant for an earlier start. (torchrun's own count of restarts
    differs between machines.)

    Args:
        store: torchrun's, the same for all ranks.
    Raises:
        DistError: some rank did not come within the timeout.
    """
    if rank == 0:
        start = Start(store.add(f"{PREFIX}/starts", 1), store.check([BEGUN]), store)
        answer_peers(store, start, world, timeout)
        return start
    token = uuid.uuid4().hex
    store.set(f"{PREFIX}/token/{rank}", token)
    store.wait([f"{PREFIX}/answer/{token}"], timeout)
    number, is_restart = map(int, store.get(f"{PREFIX}/answer/{token}").split())
    store.set(seen_key(number, rank), "")
    return Start(number, bool(is_restart), store)


def answer_peers(store: dist.Store, start: Start, world: int, timeout: datetime.timedelta) -> None:
    """Answer every token, a dead rank's too, until each rank has seen the answer to its own."""
    deadline = time.monotonic() + timeout.total_seconds()
    missing = set(range(1, world))
    while missing:
        for peer in sorted(missing):
            if store.check([f"{PREFIX}/token/{peer}"]):
                token = store.get(f"{PREFIX}/token/{peer}").decode()
                store.set(f"{PREFIX}/answer/{token}", f"{start.number} {int(start.is_restart)}")
        missing = {peer for peer in missing if not store.check([seen_key(start.number, peer)])}
        if missing and time.monotonic() > deadline:
            raise dist.DistError(f"rank {min(missing)} did not come within {timeout.total_seconds():.0f} s")
        time.sleep(POLL_S)


def seen_key(number: int, rank: int) -> str:
    return f"{PREFIX}/seen/{number}/{rank}"
