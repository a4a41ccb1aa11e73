"""lgfast: fast locality-guidance training of vision transformers on tiny datasets.

Names are imported at their first use, so that `import lgfast.ops` needs only torch, not timm.
"""

import importlib
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from lgfast._native import missing_reason
from lgfast.runtime.interrupt import is_own_command, while_loading
from lgfast.runtime.threads import spare_other_work
from lgfast.version import __version__

if TYPE_CHECKING:
    from lgfast import models, ops
    from lgfast.api import Run, evaluate, export, load, predict, train
    from lgfast.fusion import FuseReport, fuse, fuse_layers, unfuse, unfuse_layers
    from lgfast.optim.flat_adamw import FlatAdamW

__all__ = [
    "FlatAdamW",
    "FuseReport",
    "Run",
    "__version__",
    "evaluate",
    "export",
    "fuse",
    "fuse_layers",
    "load",
    "models",
    "ops",
    "predict",
    "train",
    "unfuse",
    "unfuse_layers",
]

_MODULES = ("evaluate", "export", "models", "ops", "predict", "train")  # four of them are functions too
_MODULE_OF = {
    "FlatAdamW": "optim.flat_adamw",
    "FuseReport": "fusion",
    "Run": "api",
    "fuse": "fusion",
    "fuse_layers": "fusion",
    "load": "api",
    "unfuse": "fusion",
    "unfuse_layers": "fusion",
}


_looked_at_load = sys.argv[:1] == ["-m"]  # in `python -m lgfast.NAME`, before torch is loaded
if _looked_at_load:
    spare_other_work()
    if is_own_command():
        while_loading()

if _reason := missing_reason():
    warnings.warn(f"lgfast runs its reference ops in PyTorch, slower: {_reason}", stacklevel=2)

# Two threads that import a package and a part of it at the same time may each see the other's half made.
_import_lock = threading.RLock()


def __getattr__(name: str) -> Any:
    with _import_lock:
        if name in _MODULES:
            return importlib.import_module(f"lgfast.{name}")
        if name in _MODULE_OF:
            return getattr(importlib.import_module(f"lgfast.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'lgfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
