"""Whether the native libraries are to be used; known without torch.

LGFAST_NATIVE=off at run time ignores libraries that are built.
"""

import importlib.util
import os


def missing_reason() -> str | None:
    """Why the native libraries cannot be used, or None."""
    if os.environ.get("LGFAST_NATIVE", "auto") == "off":
        return "LGFAST_NATIVE=off"
    if importlib.util.find_spec("lgfast._C") is None:
        return "lgfast._C is not built; `pip install .` or `python setup.py build_ext --inplace` with a C++ compiler"
    return None
