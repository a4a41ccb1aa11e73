"""Each trap of an installation is named with one command; a sound one has no problems."""

import sys
from dataclasses import replace

import pytest

from lgfast.doctor.environment import Facts, apex_state, collect_facts, inspect_environment
from lgfast.doctor.finding import Finding, print_findings
from tests.torch_process import run as run_python

SOUND = Facts(
    torch="2.15.0+cu132",
    torch_cuda="13.2",
    torchvision="0.29.2+cu132",
    torchvision_requires="torch>=2.14.0",
    build_info={"torch": "2.15.0", "compiler": "13.3", "cuda_compiler": "13.0", "cuda_archs": "90a"},
    has_cuda_kernels=True,
    cpu_level="x86-64-v4",
    highest_cpu_level="x86-64-v4",
    compiler="/usr/bin/c++",
    nvcc="/usr/local/bin/nvcc",
    has_driver=True,
    gpus=("NVIDIA H200 (9.0)",),
    missing_kernels={"NVIDIA H200": {"feature_mse": None, "augment": None}},
    packages={"nvidia-dali-cuda130": "2.4.0", "optuna": "5.0.0", "tensorboard": "2.20", "matplotlib": "3.10"},
    has_npp=True,
    apex="nvidia",
    shared_memory=8 << 30,
    num_cores=16,
)
CPU_BUILD = replace(SOUND, torch="2.15.0+cpu", torch_cuda=None, gpus=(), has_cuda_kernels=False)


def test_sound_installation_has_only_good_news():
    assert {finding.level for finding in inspect_environment(SOUND)} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "level", "text", "fix"),
    [
        (replace(SOUND, torchvision=""), "error", "torchvision is missing", "whl/cu132"),
        (
            replace(CPU_BUILD, torchvision_error="operator torchvision::nms does not exist"),
            "error",
            "torchvision::nms",
            "torchvision --index-url https://download.pytorch.org/whl/cpu",
        ),
        (replace(SOUND, torchvision_requires="torch==2.13.0"), "error", "built for torch==2.13.0", "pip install"),
        (replace(SOUND, build_info={}, native_switch="off"), "warning", "LGFAST_NATIVE=off", "unset LGFAST_NATIVE"),
        (replace(SOUND, build_info={}, compiler=None), "warning", "no C++ compiler", "install -y g++"),
        (replace(SOUND, build_info={}), "warning", "native ops are not built", "pip install --no-build-isolation"),
        (
            replace(SOUND, cpu_level="default"),
            "note",
            "holds the CPU kernels to default; they could use x86-64-v4",
            "unset LGFAST_CPU_LEVEL",
        ),
        (replace(SOUND, has_cuda_kernels=False), "warning", "without CUDA kernels", "LGFAST_CUDA=on"),
        (replace(SOUND, has_cuda_kernels=False, nvcc=None), "warning", "no nvcc to build them", "CUDA toolkit"),
        (
            replace(SOUND, missing_kernels={"A100": {"augment": "8.0 cannot run; build again with LIST=8.0"}}),
            "warning",
            "in PyTorch on A100, slower: augment (8.0 cannot run; build again with LIST=8.0)",
            "LIST=8.0 pip install",
        ),
        (
            replace(SOUND, missing_kernels={"T4": {"augment": None, "short_attention": "8.0 or later"}}),
            "note",
            "in PyTorch on T4, slower: short_attention (8.0 or later)",
            "",
        ),
        (CPU_BUILD, "warning", "torch is a CPU build", "--index-url"),
        (replace(SOUND, gpus=()), "warning", "the driver is probably too old", "update the NVIDIA driver"),
        (replace(CPU_BUILD, has_driver=False), "note", "no NVIDIA GPU", ""),
        (replace(SOUND, packages={}), "note", "the dali loader is off", "pip install nvidia-dali-cuda130"),
        (replace(SOUND, packages={}), "note", "no optuna: sweeps are off", "pip install optuna"),
        (
            replace(SOUND, packages={"nvidia-dali-cuda120": "2.4.0", "nvidia-dali-cuda130": "2.4.0"}),
            "error",
            "overwrite each other",
            "pip uninstall -y nvidia-dali-cuda120",
        ),
        (replace(SOUND, has_npp=False), "warning", "need NPP", "pip install nvidia-npp"),
        (replace(SOUND, apex="other"), "warning", "Pyramid toolkit, not NVIDIA's", "pip uninstall -y apex"),
        (replace(SOUND, apex="python-only"), "warning", "without its CUDA kernels (amp_C)", "APEX_CUDA_EXT=1"),
        (replace(SOUND, thread_choice="other work keeps 1 of 2 cores busy"), "note", "other work keeps", ""),
        (replace(SOUND, cpu_threads=64), "warning", "64 threads on 16 cores", "OMP_NUM_THREADS=16"),
        (replace(SOUND, shared_memory=64 << 20), "warning", "/dev/shm holds 64 MiB", "--shm-size=8g"),
    ],
)
def test_each_trap_is_named_with_its_fix(facts, level, text, fix):
    found = [one for one in inspect_environment(facts) if one.level == level and text in one.text]
    assert len(found) == 1
    assert fix in found[0].fix


@pytest.mark.parametrize(
    ("files", "state"),
    [
        (["apex/__init__.py"], "other"),
        (["apex/__init__.py", "apex/optimizers/__init__.py"], "python-only"),
        (["apex/__init__.py", "apex/optimizers/__init__.py", "amp_C.py"], "nvidia"),
        ([], "absent"),
    ],
)
def test_apex_is_told_from_its_namesake(tmp_path, monkeypatch, files, state):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert apex_state() == state
    assert "apex" not in sys.modules


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import lgfast.fusion", 1, "ImportError: torchvision does not fit torch (operator torchvision::nms does"),
        (
            "from lgfast.train import main; sys.exit(main([]))",
            2,
            "error: torchvision does not fit torch (operator",
        ),
        ("from lgfast.doctor.__main__ import main; sys.exit(main([]))", 1, "operator torchvision::nms does not exist"),
    ],
    ids=["import", "train", "doctor"],
)
def test_a_wrong_pair_is_explained(code, status, said, tmp_path):
    (tmp_path / "torchvision").mkdir()
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    run = run_python(code, cwd=tmp_path)
    assert run.returncode == status, run.stderr
    assert said in run.stdout + run.stderr and "pip install" in run.stdout + run.stderr
    assert ("Traceback" in run.stderr) == said.startswith("ImportError")


def test_this_machine_can_be_inspected(capsys):
    assert print_findings(inspect_environment(collect_facts()))
    assert "torchvision" in capsys.readouterr().out


def test_report_prints_fixes_and_fails_on_errors_only(capsys):
    assert print_findings([Finding("ok", "fine"), Finding("warning", "slow", "go faster")])
    assert not print_findings([Finding("error", "broken")])
    assert capsys.readouterr().out == "ok       fine\nWARNING  slow\n           fix: go faster\nERROR    broken\n"
