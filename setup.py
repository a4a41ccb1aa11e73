"""Build lgfast: the package, and its native libraries with CMake and Ninja.

Environment switches:
    LGFAST_NATIVE         auto (default): build if there is a C++ compiler; off: pure Python with the reference ops
    LGFAST_CUDA           auto (default): CUDA kernels if nvcc is found; on: fail without nvcc; off: CPU kernels only
    TORCH_CUDA_ARCH_LIST  GPUs to compile for; default: those that the driver shows, else "8.0 9.0a 10.0 12.0+PTX"
    CXX, CUDACXX          the compilers, if they are not on PATH
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def switch(name, allowed):
    value = os.environ.get(name, "auto")
    if value not in allowed:
        raise SystemExit(f"lgfast: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def skip_reason():
    """Return why the native libraries are not built, or None."""
    if switch("LGFAST_NATIVE", ("auto", "off")) == "off":
        return "LGFAST_NATIVE=off"
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "no C++ compiler on PATH or in CXX"
    return None


def tool(name):
    """Return the path of cmake or ninja: beside this Python (a venv or pip's build environment), else on PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise SystemExit(f"lgfast: {name} not found; `pip install {name}`, or build with LGFAST_NATIVE=off")
    return path


class CMakeBuild(build_ext):
    """Configures and builds in a CMake tree that stays, so that a second build compiles only what changed."""

    def run(self):
        package = ROOT / "lgfast" if self.inplace else Path(self.build_lib).resolve() / "lgfast"
        build = ROOT / "build" / ("inplace" if self.inplace else "wheel")
        package.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "LGFAST_OUTPUT_DIR": package,
            "LGFAST_CUDA": switch("LGFAST_CUDA", ("auto", "on", "off")),
            "LGFAST_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";"),
        }
        defines = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.run([tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run([tool("cmake"), "--build", build], check=True)


# An editable install adds the checkout to the path. setuptools' import hook would come after the path: `import lgfast`
# beside a checkout named lgfast would then find that folder, as a package without content.
EDITABLE = {"editable_wheel": {"mode": "compat"}}

reason = skip_reason()
if reason:
    print(f"lgfast: pure-Python package, native ops not built ({reason})", file=sys.stderr)
    setup(options=EDITABLE)
else:
    setup(options=EDITABLE, ext_modules=[Extension("lgfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
