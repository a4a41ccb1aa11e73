"""What every command line does with errors and closed pipes."""

import os
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from lgfast.data.decode import Decoding, decode_image
from lgfast.runtime import command_line as module
from lgfast.runtime.command_line import command_line
from tests.torch_process import run as run_python


def test_a_reader_that_leaves_early_ends_a_command_quietly():
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-W", "ignore", "-m", "lgfast.train", "--help"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("error", [ValueError("it is wrong"), FileNotFoundError("it is missing")])
def test_an_error_that_can_be_mended_is_one_line(error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    @command_line
    def main(argv=None):
        raise error

    assert main([]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"
    assert (tmp_path / "runs" / "last_error.txt").read_text().startswith("Traceback")


def test_an_error_steers_no_terminal_and_needs_no_disk(tmp_path, monkeypatch, capsys):
    """Its message may hold names of any files; the full disk may be what it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "last_error.txt").symlink_to("/dev/full")

    @command_line
    def main(argv=None):
        raise ValueError("a\x1b[2Jb.png is broken\nlower it")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: a\\x1b[2Jb.png is broken\nlower it\n"


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyError("x"), BrokenPipeError("a worker's")])
def test_other_errors_keep_their_traceback(error, tmp_path, monkeypatch):
    @command_line
    def main(argv=None):
        raise error

    with (tmp_path / "out").open("w") as file, pytest.raises(type(error)):
        monkeypatch.setattr(sys, "stdout", file)
        main([])


DAMAGED_CACHE = """
import os, pathlib, sys
import torch
import torch._inductor.compile_fx, torch._inductor.codegen.cpp, torch.export  # once, for both processes
from torch._inductor import config, cpu_vec_isa
from lgfast.runtime.command_line import command_line

cpu_vec_isa.valid_vec_isa_list = lambda: []  # or the C++ compiler tries each
config.cpp_cache_precompile_headers = False  # more than one function is worth
config.compile_threads = 1  # no processes of its own, which import torch too

@command_line
def main(argv=None):
    print(torch.compile(lambda x: x + 1)(torch.ones(64)).sum())
    return 0

def in_a_process():
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = main([])
    sys.stderr.flush()
    os._exit(status)

first = in_a_process()
for library in pathlib.Path("cache").rglob("*.so"):
    os.truncate(library, 100)
print("then", file=sys.stderr, flush=True)
print(first, in_a_process())
"""


@pytest.mark.slow
def test_a_damaged_file_of_torchs_compiler_is_named_with_its_folder(tmp_path):
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = run_python(DAMAGED_CACHE, cwd=tmp_path, env=environment)
    assert done.stdout.endswith("0 2\n"), done.stderr  # the exit codes, before and after the damage
    (line,) = [line for line in done.stderr.partition("then\n")[2].splitlines() if line.startswith("error: ")]
    assert f"remove {tmp_path / 'cache'}, or use step.compile=off" in line


@pytest.mark.parametrize(
    ("place", "expected"),
    [(module.__file__, "warning: 3 images skipped\n"), ("torch/x.py", "torch/x.py:7: UserWarning: 3 images skipped\n")],
)
def test_a_warning_of_the_package_is_one_line(place, expected, capsys):
    @command_line
    def main(argv=None):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show  # pytest's own keeps what it catches
            warnings.warn_explicit("3 images skipped", UserWarning, place, 7)
        return 0

    def show(*warning):
        print(warnings.formatwarning(*warning[:4]), end="", file=sys.stderr)

    before = warnings.formatwarning
    assert main([]) == 0
    assert capsys.readouterr().err == expected
    assert warnings.formatwarning is before


def test_names_that_are_no_text_can_be_printed(tmp_path, monkeypatch):
    """A file may have a name in another encoding, where the terminal takes only UTF-8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    @command_line
    def main(argv=None):
        print("caf\udce9")
        raise ValueError("caf\udce9: no such class")

    with (tmp_path / "out").open("w", encoding="utf-8", errors="strict") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert main([]) == 2
    assert (tmp_path / "out").read_text() == "caf\\udce9\n"
    assert r"ValueError: caf\udce9: no such class" in (tmp_path / "runs" / "last_error.txt").read_text()


def test_pillows_warning_of_large_images_is_silent(tmp_path, monkeypatch, capsys):
    """data.max_pixels decides on them, in one line of its own."""
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "image.png").close()

    @command_line
    def main(argv):
        decode_image(tmp_path / "image.png", Decoding(max_pixels=10))
        return 0

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main([]) == 2
    assert not seen and "4x4 pixels are more than data.max_pixels, 10" in capsys.readouterr().err
