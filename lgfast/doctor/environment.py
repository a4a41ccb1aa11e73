"""Check the installation: versions that fit together, native build, GPU, optional packages."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from packaging.requirements import Requirement

from lgfast.doctor.finding import BUILD, Finding
from lgfast.doctor.kernels import check_kernels, missing_kernels
from lgfast.runtime.environment import package_version, torchvision_fix

APEX_BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation ."
)
SHARED_MEMORY_NEEDED = 1 << 30  # bytes; several batches of 128 float32 images at 224x224 (77 MB each) wait in /dev/shm


@dataclass(frozen=True)
class Facts:
    """The facts that the checks judge; `collect_facts` reads them from this machine."""

    torch: str = ""  # its version; "" where it cannot be imported
    torch_cuda: str | None = None  # the CUDA version that torch was built for
    torchvision: str = ""
    torchvision_requires: str = ""  # the torch that its metadata requires, such as "torch>=2.14"
    torchvision_error: str = ""  # the error of importing it
    build_info: dict[str, str] = field(default_factory=dict)  # lgfast._C's; empty in pure-Python mode
    has_cuda_kernels: bool = False
    cpu_level: str = ""  # the level of instructions that the CPU kernels use
    highest_cpu_level: str = ""  # the highest level that the processor and the build have
    native_switch: str = "auto"  # LGFAST_NATIVE
    compiler: str | None = None
    nvcc: str | None = None
    has_driver: bool = False
    gpus: tuple[str, ...] = ()  # name and compute capability
    missing_kernels: dict[str, dict[str, str | None]] = field(default_factory=dict)  # by GPU: `kernels.missing_kernels`
    packages: dict[str, str] = field(default_factory=dict)  # optional distributions -> version
    has_npp: bool = False
    apex: str = "absent"  # absent, nvidia, python-only, other
    cpu_precision: str = "fp32"  # the precision that precision=auto chooses on the CPU
    shared_memory: int | None = None  # bytes of /dev/shm
    num_cores: int = 1
    cpu_threads: int = 1  # the threads that PyTorch computes with
    thread_choice: str = ""  # why, where other work decided the number


def collect_facts() -> Facts:
    """Read the facts of this process and machine."""
    import torch

    from lgfast import _extension
    from lgfast.runtime import threads
    from lgfast.runtime.auto_precision import auto_precision
    from lgfast.runtime.cores import num_cores

    indices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    gpus = [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in indices]
    return Facts(
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        torchvision=package_version("torchvision") or "",
        torchvision_requires=torch_requirement("torchvision"),
        torchvision_error=import_error("torchvision"),
        build_info=_extension.build_info(),
        has_cuda_kernels=_extension.has_cuda_kernels(),
        cpu_level=_extension.cpu_level(),
        highest_cpu_level=next(reversed(_extension.cpu_levels()), ""),
        native_switch=os.environ.get("LGFAST_NATIVE", "auto"),
        compiler=next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None),
        nvcc=shutil.which("nvcc") or shutil.which(os.path.join(os.environ.get("CUDA_HOME", ""), "bin", "nvcc")),
        has_driver=nvidia_driver_answers(),
        gpus=tuple(f"{name} ({major}.{minor})" for name, (major, minor) in gpus),
        missing_kernels={name: missing_kernels(capability) for name, capability in gpus},
        packages={name: found for name in OPTIONAL_PACKAGES if (found := package_version(name))},
        has_npp=bool(package_version("nvidia-npp")) or shutil.which("nvcc") is not None,
        apex=apex_state(),
        cpu_precision=auto_precision(torch.device("cpu")),
        shared_memory=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        num_cores=num_cores(),
        cpu_threads=torch.get_num_threads(),
        thread_choice=threads.choice(),
    )


# distribution -> the features that need it
OPTIONAL_PACKAGES = {
    "nvidia-dali-cuda130": "the dali loader",
    "nvidia-dali-cuda120": "the dali loader",
    "optuna": "sweeps",
    "tensorboard": "TensorBoard events",
    "matplotlib": "plots",
}


def torch_requirement(distribution: str) -> str:
    """Return the torch that a distribution's metadata requires."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return ""
    return next((str(one) for one in wanted if one.name == "torch" and one.marker is None), "")


def import_error(module: str) -> str:
    try:
        importlib.import_module(module)
        return ""
    except (ImportError, RuntimeError, OSError) as error:
        return str(error)


def nvidia_driver_answers() -> bool:
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program, "-L"], capture_output=True).returncode == 0


def apex_state() -> str:
    """Tell which package is named apex: NVIDIA's has apex.optimizers, and amp_C when built with CUDA."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return "absent"
    folders = spec.submodule_search_locations or ()
    if not any(os.path.isdir(os.path.join(folder, "optimizers")) for folder in folders):
        return "other"
    return "nvidia" if importlib.util.find_spec("amp_C") else "python-only"


def inspect_environment(facts: Facts) -> Iterator[Finding]:
    """Run every check, the most basic ones first."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok", f"Python {python}, torch {facts.torch}, {facts.num_cores} cores")
    yield from check_torchvision(facts)
    yield from check_native(facts)
    yield from check_gpu(facts)
    yield from check_dali(facts)
    yield from check_apex(facts)
    yield from check_shared_memory(facts)
    yield from check_threads(facts)
    missing = [name for name in ("optuna", "tensorboard", "matplotlib") if name not in facts.packages]
    for name in missing:
        yield Finding("note", f"no {name}: {OPTIONAL_PACKAGES[name]} are off", f"pip install {name}")


def check_torchvision(facts: Facts) -> Iterator[Finding]:
    """Check that torch and torchvision fit; a wrong pair fails at `import timm` with an unrelated message."""
    fix = torchvision_fix(facts.torch_cuda)
    pair = f"torchvision {facts.torchvision} with torch {facts.torch}"
    if not facts.torchvision:
        yield Finding("error", "torchvision is missing; timm needs it", fix)
    elif facts.torchvision_error:
        yield Finding("error", f"{pair}: import fails ({facts.torchvision_error})", fix)
    elif facts.torchvision_requires and not fits(facts.torch, facts.torchvision_requires):
        yield Finding("error", f"{pair}: it was built for {facts.torchvision_requires}", fix)
    else:
        yield Finding("ok", pair)


def fits(torch_version: str, requirement: str) -> bool:
    return Requirement(requirement).specifier.contains(torch_version.split("+")[0], prereleases=True)


def check_native(facts: Facts) -> Iterator[Finding]:
    if facts.build_info:
        kernels = "CPU and CUDA kernels" if facts.has_cuda_kernels else "CPU kernels"
        details = ", ".join(f"{name} {value}" for name, value in facts.build_info.items() if value)
        yield Finding("ok", f"native ops: {kernels} ({details})")
        if facts.cpu_level == facts.highest_cpu_level:
            yield Finding("ok", f"CPU kernels use {facts.cpu_level}, the highest level of this processor and build")
        else:
            text = (
                f"LGFAST_CPU_LEVEL holds the CPU kernels to {facts.cpu_level}; they could use {facts.highest_cpu_level}"
            )
            yield Finding("note", text, "unset LGFAST_CPU_LEVEL")
    elif facts.native_switch == "off":
        yield Finding(
            "warning", "LGFAST_NATIVE=off: reference ops in plain PyTorch, slower", f"unset LGFAST_NATIVE && {BUILD}"
        )
    elif facts.compiler is None:
        fix = f"apt-get install -y g++ && {BUILD}"
        yield Finding("warning", "no native ops and no C++ compiler: reference ops in plain PyTorch, slower", fix)
    else:
        yield Finding("warning", "native ops are not built: reference ops in plain PyTorch, slower", BUILD)


def check_gpu(facts: Facts) -> Iterator[Finding]:
    if facts.gpus:
        yield Finding("ok", f"GPU: {', '.join(facts.gpus)}; torch is built for CUDA {facts.torch_cuda}")
        if facts.has_cuda_kernels:
            for gpu, missing in facts.missing_kernels.items():
                yield from check_kernels(gpu, missing)
        elif facts.build_info:
            if facts.nvcc:
                yield Finding("warning", "lgfast was built without CUDA kernels", f"LGFAST_CUDA=on {BUILD}")
            else:
                text = "lgfast was built without CUDA kernels, and there is no nvcc to build them"
                yield Finding("warning", text, "install the CUDA toolkit (https://developer.nvidia.com/cuda-downloads)")
    elif facts.has_driver and facts.torch_cuda is None:
        fix = "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130"
        yield Finding("warning", "this machine has an NVIDIA GPU, but torch is a CPU build", fix)
    elif facts.has_driver:
        text = f"torch is built for CUDA {facts.torch_cuda} but cannot use the GPU; the driver is probably too old"
        yield Finding("warning", text, "update the NVIDIA driver, or install torch for an older CUDA")
    else:
        yield Finding("note", f"no NVIDIA GPU: everything runs on the CPU, in {facts.cpu_precision} by default")


def check_dali(facts: Facts) -> Iterator[Finding]:
    found = [name for name in facts.packages if name.startswith("nvidia-dali")]
    if len(found) == 2:
        text = "nvidia-dali-cuda120 and nvidia-dali-cuda130 overwrite each other"
        yield Finding(
            "error", text, "pip uninstall -y nvidia-dali-cuda120 && pip install --force-reinstall nvidia-dali-cuda130"
        )
    elif not found:
        yield Finding("note", "no NVIDIA DALI: the dali loader is off", "pip install nvidia-dali-cuda130")
    elif facts.gpus and not facts.has_npp:
        text = f"{found[0]} {facts.packages[found[0]]}: its GPU operators need NPP, which its wheel does not bring"
        yield Finding("warning", text, "pip install nvidia-npp")
    else:
        yield Finding("ok", f"{found[0]} {facts.packages[found[0]]}")


def check_apex(facts: Facts) -> Iterator[Finding]:
    if facts.apex == "nvidia":
        yield Finding("ok", "NVIDIA apex with its CUDA kernels: fused optimizers (fusedlamb, fusedadam) can be used")
    elif facts.apex == "python-only":
        text = "NVIDIA apex without its CUDA kernels (amp_C): its optimizers fail at use"
        yield Finding("warning", text, f"pip uninstall -y apex && {APEX_BUILD}")
    elif facts.apex == "other":
        text = "the installed apex is PyPI's Pyramid toolkit, not NVIDIA's"
        yield Finding("warning", text, "pip uninstall -y apex")
    else:
        yield Finding("note", "no NVIDIA apex: its fused optimizers are off (PyPI's apex is another project)")


def check_shared_memory(facts: Facts) -> Iterator[Finding]:
    if facts.shared_memory is not None and facts.shared_memory < SHARED_MEMORY_NEEDED:
        text = f"/dev/shm holds {facts.shared_memory >> 20} MiB; loader workers die with a bus error when it is full"
        yield Finding("warning", text, "start the container with --shm-size=8g, or set data.workers to 0")


def check_threads(facts: Facts) -> Iterator[Finding]:
    if facts.thread_choice:
        yield Finding("note", facts.thread_choice)
    elif facts.cpu_threads > facts.num_cores:
        text = f"PyTorch computes with {facts.cpu_threads} threads on {facts.num_cores} cores; threads wait in turn"
        yield Finding("warning", text, f"export OMP_NUM_THREADS={facts.num_cores}")
    else:
        yield Finding("ok", f"CPU: PyTorch computes with {facts.cpu_threads} threads on {facts.num_cores} cores")
