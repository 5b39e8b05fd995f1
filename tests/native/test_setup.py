"""What setup.py decides: which nvcc, for which cards, and what it says where the answer is no."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
VARIABLES = ("ACDC_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")


@pytest.fixture
def setup_py(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Makes a folder with a bin/nvcc that says what it is asked to say."""

    def make(version="13.0", name="cuda", cards="75 80 86 90 100 120", home=False):
        nvcc = tmp_path / name / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        listed = " ".join(f"compute_{card}" for card in cards.split())
        says = f"Cuda compilation tools, release {version}, V{version}.1" if version else "hello"
        nvcc.write_text(f'#!/bin/sh\ncase "$1" in --list-gpu-arch) echo "{listed}" ;; *) echo "{says}" ;; esac\n')
        nvcc.chmod(0o755)
        if home:
            monkeypatch.setenv("CUDA_HOME", str(tmp_path / name))
        else:
            monkeypatch.setenv("PATH", f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}")
        return str(nvcc)

    return make


def torch(cuda=None, cards=(), folder="/site-packages"):
    """What setup.py asks of torch."""
    return SimpleNamespace(
        __file__=f"{folder}/torch/__init__.py",
        __version__=f"2.13.0+{'cu' + cuda.replace('.', '') if cuda else 'cpu'}",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: bool(cards), device_count=lambda: len(cards), get_device_capability=cards.__getitem__
        ),
    )


def refusal(call, *arguments):
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    text = str(caught.value)
    assert text.startswith("acdc-kernels: ")
    return text


@pytest.mark.parametrize("asked", ["auto", "", None])
def test_auto_builds_cuda_kernels_where_torch_and_nvcc_have_cuda(asked, setup_py, toolkit, monkeypatch):
    nvcc = toolkit()
    if asked is not None:
        monkeypatch.setenv("ACDC_CUDA", asked)
    assert setup_py.choose_cuda(torch("13.0")) == (nvcc, (13, 0), [], "")
    assert setup_py.choose_cuda(torch()) == (None, None, [], "torch 2.13.0+cpu is built without CUDA")


@pytest.mark.parametrize("asked", ["1", "on", "ON"])
def test_asked_for_cuda_kernels_are_built_beside_a_torch_without_cuda(asked, setup_py, toolkit, monkeypatch):
    nvcc = toolkit("12.8")
    monkeypatch.setenv("ACDC_CUDA", asked)
    assert setup_py.choose_cuda(torch()) == (nvcc, (12, 8), [], "")


@pytest.mark.parametrize("asked", ["0", "off"])
def test_asked_for_none_there_are_none(asked, setup_py, toolkit, monkeypatch):
    toolkit("12.0")  # isn't looked at
    monkeypatch.setenv("ACDC_CUDA", asked)
    assert setup_py.choose_cuda(torch("13.0")) == (None, None, [], "ACDC_CUDA=0")


def test_an_unknown_wish_is_refused(setup_py, monkeypatch):
    monkeypatch.setenv("ACDC_CUDA", "yes")
    assert "ACDC_CUDA must be auto, 1 (on) or 0 (off), got 'yes'" in refusal(setup_py.choose_cuda, torch("13.0"))


def test_without_nvcc_auto_does_without_and_a_wish_is_an_error(setup_py, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))  # and no other place is looked at
    assert setup_py.choose_cuda(torch("13.0")) == (None, None, [], "CUDA_HOME names a folder that has no bin/nvcc")
    monkeypatch.setenv("ACDC_CUDA", "1")
    assert "ACDC_CUDA=1, but CUDA_HOME names" in refusal(setup_py.choose_cuda, torch("13.0"))
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    which = shutil.which
    monkeypatch.setattr(setup_py.shutil, "which", lambda name, path=None: None if path else which(name))
    assert "ACDC_CUDA=1, but nvcc was found neither on PATH nor" in refusal(setup_py.choose_cuda, torch("13.0"))


@pytest.mark.parametrize("asked", ["auto", "1"])
@pytest.mark.parametrize(("nvcc", "cuda"), [("12.8", "13.0"), ("13.1", "12.6")])
def test_another_major_version_is_an_error_that_names_both_and_the_ways_out(
    asked, nvcc, cuda, setup_py, toolkit, monkeypatch
):
    path = toolkit(nvcc)
    monkeypatch.setenv("ACDC_CUDA", asked)
    text = refusal(setup_py.choose_cuda, torch(cuda))
    for part in (
        nvcc,
        cuda,
        path,
        "CUDA_HOME",
        f"the nvcc of CUDA {cuda[:2]}",
        f"built for CUDA {nvcc[:2]}",
        "ACDC_CUDA=0",
    ):
        assert part in text
    assert "--no-build-isolation" not in text
    assert "--no-build-isolation takes yours" in refusal(
        setup_py.choose_cuda, torch(cuda, folder="/tmp/pip-build-env-x1/overlay")
    )


def test_another_minor_version_will_do(setup_py, toolkit):
    nvcc = toolkit("13.2")
    assert setup_py.choose_cuda(torch("13.0"))[0] == nvcc


def test_cuda_home_goes_before_path(setup_py, toolkit):
    toolkit("12.8", "on-path")
    nvcc = toolkit("13.0", "at-home", home=True)
    assert setup_py.choose_cuda(torch("13.0"))[:2] == (nvcc, (13, 0))


@pytest.mark.parametrize(
    ("version", "why"), [("12.0", "nvcc must be 12.1 or newer, got 12.0"), ("", "doesn't tell its version")]
)
def test_an_nvcc_that_will_not_do(version, why, setup_py, toolkit):
    toolkit(version)
    assert why in refusal(setup_py.choose_cuda, torch("12.6"))


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ("8.0;9.0a;10.0+PTX", ["80-real", "90a-real", "100"]),
        ("8.0, 8.6 9.0+PTX", ["80-real", "86-real", "90"]),
        ("7.5 8.0 9.0", ["80-real", "90-real"]),  # as images have it, for all of torch's cards
        (" 12.0 ", ["120-real"]),
        ("9.0;9.0", ["90-real"]),
        ("", []),
    ],
)
def test_the_list_that_every_torch_extension_takes(listed, chosen, setup_py, toolkit, monkeypatch):
    toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert setup_py.choose_cuda(torch("13.0"))[2] == chosen


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        ("8.0;Hopper", "versions like 8.0, 9.0a or 12.0+PTX, not names; got 'Hopper'"),
        ("All", "got 'All'"),
        ("90", "got '90'"),
        ("6.0;7.5", "must hold 8.0 or newer, got 6.0, 7.5"),
        ("15.0", "can't compile for compute capability 15.0"),
    ],
)
def test_lists_that_are_refused(listed, why, setup_py, toolkit, monkeypatch):
    toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert why in refusal(setup_py.choose_cuda, torch("13.0"))


def test_without_a_list_the_cards_of_this_machine(setup_py, toolkit, monkeypatch):
    nvcc = toolkit()
    cards = torch("13.0", [(9, 0), (8, 6), (9, 0), (7, 5)])
    assert setup_py.choose_cuda(cards)[2] == ["86-real", "90a-real"]
    old = torch("13.0", [(7, 5)])
    assert setup_py.choose_cuda(old) == (None, None, [], "the cards here have compute capability 7.5, less than 8.0")
    assert "compute capability 12.1" in refusal(setup_py.choose_cuda, torch("13.0", [(12, 1)]))
    monkeypatch.setenv("ACDC_CUDA", "1")  # for other machines, then
    assert setup_py.choose_cuda(old) == (nvcc, (13, 0), [], "")


def test_an_nvcc_that_is_older_than_the_usual_cards(setup_py, toolkit):
    toolkit("12.6", cards="75 80 90")
    assert setup_py.choose_cuda(torch("12.6"))[2] == ["80-real", "90a-real", "90-virtual"]


def test_a_folder_configured_with_another_nvcc_is_stale(setup_py, tmp_path):
    assert not setup_py.is_stale(tmp_path, "/cuda/bin/nvcc", (13, 0))
    file = tmp_path / "CMakeFiles" / "3.31" / "CMakeCUDACompiler.cmake"
    file.parent.mkdir(parents=True)
    file.write_text('set(CMAKE_CUDA_COMPILER "/cuda/bin/nvcc")\nset(CMAKE_CUDA_COMPILER_VERSION "13.0.88")\n')
    assert not setup_py.is_stale(tmp_path, "/cuda/bin/nvcc", (13, 0))
    assert setup_py.is_stale(tmp_path, "/cuda/bin/nvcc", (13, 1))
    assert setup_py.is_stale(tmp_path, "/other/bin/nvcc", (13, 0))


def build_ext(folder, **environment):
    """setup.py, run as pip does."""
    env = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "CXX")}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env={**env, **environment}, capture_output=True, text=True, check=False)
    assert not list(folder.rglob("*.so"))
    return run


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
def test_an_error_is_the_last_thing_that_is_printed(tmp_path):
    run = build_ext(tmp_path, ACDC_CUDA="1", CUDA_HOME=str(tmp_path))
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    if any(map(shutil.which, ("c++", "g++", "clang++"))):
        assert last == "acdc-kernels: ACDC_CUDA=1, but CUDA_HOME names a folder that has no bin/nvcc"
    else:
        assert last == "acdc-kernels: ACDC_CUDA=1, but no C++ compiler was found"


def test_without_a_compiler_the_build_says_so_and_goes_on(tmp_path):
    run = build_ext(tmp_path, PATH="/nowhere")
    assert run.returncode == 0, run.stderr
    assert "no C++ compiler found" in run.stderr
    run = build_ext(tmp_path, PATH="/nowhere", ACDC_CUDA="1")
    assert run.returncode != 0
    assert run.stderr.strip().endswith("acdc-kernels: ACDC_CUDA=1, but no C++ compiler was found")
