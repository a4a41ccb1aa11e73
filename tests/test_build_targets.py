"""Which GPUs a build compiles for, and which library of an earlier one it removes: the functions of cmake/ alone."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake")
CUDA_13 = ["7.5", "8.0", "8.6", "8.7", "8.8", "8.9", "9.0", "10.0", "11.0", "10.3", "12.0", "12.1"]
CUDA_12_6 = ["5.0", "7.0", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0"]


def run_cmake(folder: Path, script: str, **environment: str) -> str:
    """What a script that uses the functions of cmake/ prints."""
    includes = "".join(f"include({path})\n" for path in sorted((ROOT / "cmake").glob("[ae]*.cmake")))
    (folder / "script.cmake").write_text(f"cmake_minimum_required(VERSION 3.24)\n{includes}{script}")
    command = [CMAKE, "-P", str(folder / "script.cmake")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def program(path: Path, lines: list[str]) -> None:
    """A stand-in that prints these lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("shown", "known", "chosen"),
    [
        (None, CUDA_13, "8.0;9.0a;10.0;12.0+PTX"),  # no driver
        ([], CUDA_13, "8.0;9.0a;10.0;12.0+PTX"),
        (None, CUDA_12_6, "8.0;9.0a+PTX"),
        (["9.0"], CUDA_13, "9.0a"),
        (["8.9", "7.5", "8.9"], CUDA_13, "7.5;8.9"),
        (["12.0"], CUDA_13, "12.0"),
        (["12.0"], CUDA_12_6, "9.0a+PTX"),  # the driver compiles it
        (["9.0", "12.0"], CUDA_12_6, "9.0a+PTX"),
        (["6.1", "8.6"], CUDA_13, "8.6"),
        (["6.1"], CUDA_13, "8.0;9.0a;10.0;12.0+PTX"),
    ],
)
def test_the_default_is_what_the_driver_shows_or_else_wide(shown, known, chosen, tmp_path):
    program(tmp_path / "bin" / "nvcc", [f"compute_{arch.replace('.', '')}" for arch in known])
    if shown is not None:
        program(tmp_path / "bin" / "nvidia-smi", shown)
    script = f'default_arch_list({tmp_path}/bin/nvcc list)\nmessage("chosen: ${{list}}")\n'
    printed = run_cmake(tmp_path, script, PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert printed.splitlines()[-1] == f"chosen: {chosen}"
    for gpu in set(shown or ()) & {"6.1"}:
        assert f"no CUDA kernels for the GPU of compute capability {gpu}, which is before 7.5" in printed


@pytest.mark.parametrize(
    ("arch_list", "archs", "of_attention"),
    [
        ("8.0 9.0a+PTX", "80-real;90a-real;90-virtual", "80-real;90a-real;90-virtual"),
        ("7.5+PTX, 8.6", "75-real;75-virtual;86-real", "86-real"),
        ("7.5", "75-real", ""),
    ],
)
def test_attention_is_compiled_for_gpus_from_8_0_on(arch_list, archs, of_attention, tmp_path):
    script = f'cmake_architectures("{arch_list}" all)\narchitectures_from(80 "${{all}}" some)\n'
    assert run_cmake(tmp_path, script + 'message("${all} | ${some}")').strip() == f"{archs} | {of_attention}".strip()


@pytest.mark.parametrize(("made_here", "stays"), [(True, False), (False, True), (None, True)])
def test_a_library_of_another_build_stays(made_here, stays, tmp_path):
    """None means that this build made none yet."""
    library, hash_file = tmp_path / "_cuda.so", tmp_path / "_cuda.sha256"
    library.write_bytes(b"machine code")
    if made_here is not None:
        content = library.read_bytes() if made_here else b"of an earlier build"
        hash_file.write_text(f"{hashlib.sha256(content).hexdigest()}  {library}\n")
    printed = run_cmake(tmp_path, f"remove_earlier_library({library} {hash_file})")
    assert library.exists() == stays
    assert ("stays: this build did not make it" in printed) == stays
