"""`fastseg doctor`: what it says of machines that fit and of machines that do not."""

import copy
import json
import os
import stat

import pytest

import fastseg
from fastseg import doctor

CPU_BINARY = {
    "cuda": False,
    "cuda_version": None,
    "cuda_archs": "",
    "cpu_variants": "baseline;avx2",
    "cpu_active": "avx2",
    "openmp": True,
    "threads": 4,
    "compiler": "GNU 12",
    "pybind11": "3.1",
}
CUDA_BINARY = {**CPU_BINARY, "cuda": True, "cuda_version": "13.0.88", "cuda_archs": "75 80"}


def report_of(binary, gpu_architecture=None, torch=None):
    gpus = []
    if gpu_architecture is not None:
        runs = doctor.how_it_runs(gpu_architecture, binary.get("cuda_archs", ""))
        gpus = [{"name": "GPU X", "architecture": gpu_architecture, "memory": "9 MiB"}]
        gpus[0]["runs"] = runs
    return {
        "fastseg": "1",
        "python": "3",
        "platform": "Linux",
        "location": "/here",
        "torch": torch or {"version": "2.9", "cuda": "13.0", "sees_gpu": bool(gpus)},
        "binary": binary,
        "cpu": {"model": "CPU Y", "logical_cores": 8},
        "driver": "570.1" if gpus else None,
        "gpus": gpus,
    }


@pytest.mark.parametrize(
    ("architecture", "compiled", "expected"),
    [
        (90, "75 80 90", "machine code"),
        (90, "75;80;90", "machine code"),
        (86, "80", "machine code"),  # same generation, later
        (80, "86", None),  # same generation, earlier
        (90, "75 80 86", "PTX"),
        (120, "90", "PTX"),
        (70, "75 80", None),
        (90, "90a", "machine code"),
        (100, "80 90a", None),  # 90a code and PTX run on 90 alone
        (90, "", None),
    ],
)
def test_which_gpus_run_which_binary(architecture, compiled, expected):
    assert doctor.how_it_runs(architecture, compiled) == expected


def test_a_machine_that_fits_has_no_problems():
    assert doctor.problems(report_of(CPU_BINARY)) == []
    assert doctor.problems(report_of(CUDA_BINARY, 80)) == []
    assert doctor.problems(report_of(CUDA_BINARY)) == []


def test_a_gpu_that_is_not_compiled_for_is_named_with_the_way_to_rebuild():
    (problem,) = doctor.problems(report_of({**CUDA_BINARY, "cuda_archs": "80 86"}, 75))
    assert "GPU X has architecture 75, which is not among the compiled ones (80 86)" in problem
    assert 'FASTSEG_CUDA_ARCHS="75" pip install' in problem


def test_a_cpu_build_beside_a_gpu_is_a_problem():
    (problem,) = doctor.problems(report_of(CPU_BINARY, 90))
    assert "built for the CPU alone" in problem
    assert "FASTSEG_CUDA=1 pip install" in problem


def test_a_torch_that_does_not_see_the_gpu_is_a_problem():
    blind = {"version": "2.9+cpu", "cuda": None, "sees_gpu": False}
    (problem,) = doctor.problems(report_of(CUDA_BINARY, 80, blind))
    assert "torch 2.9+cpu (a build for the CPU alone) does not see it" in problem


def test_what_does_not_import_is_a_problem_and_the_text_still_prints():
    report = report_of({"error": "ImportError: no _C"}, torch={"error": "OSError: libtorch"})
    report["problems"] = doctor.problems(report)
    assert len(report["problems"]) == 2
    text = doctor.as_text(report)
    assert "PROBLEM: torch does not import (OSError: libtorch)" in text
    assert "PROBLEM: the binary fastseg._C does not import (ImportError: no _C)" in text


def test_text_shows_every_part():
    report = report_of(CUDA_BINARY, 80)
    report["problems"] = []
    text = doctor.as_text(report)
    for part in ("2.9, built for CUDA 13.0", "CUDA 13.0.88 for architectures 75 80", "CPU Y"):
        assert part in text
    for part in ("avx2 in use, of baseline, avx2", "4 (OpenMP)", "570.1", "No problems found"):
        assert part in text
    assert "GPU X, architecture 80, 9 MiB: runs the binary's machine code" in text


def test_this_machine_can_be_examined():
    report = doctor.examine()
    assert json.loads(doctor.as_json(report)) == report
    assert report["fastseg"] == fastseg.__version__
    assert report["binary"]["cpu_active"] in report["binary"]["cpu_variants"].split(";")
    assert "error" not in report["torch"]
    assert doctor.as_text(report).startswith("fastseg")
    assert doctor.problems(copy.deepcopy(report)) == report["problems"]


@pytest.fixture
def run_doctor(run_python):
    def run(path_entry, *options):
        path = f"{path_entry}{os.pathsep}{os.environ['PATH']}"
        return run_python("-m", "fastseg", "doctor", *options, PATH=path)

    return run


def fake_nvidia_smi(directory, output):
    script = directory / "nvidia-smi"
    script.write_text(f"#!/bin/sh\nprintf '{output}'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def test_command_reads_nvidia_smi_and_fails_when_a_gpu_cannot_be_used(run_doctor, tmp_path):
    fake_nvidia_smi(tmp_path, r"535.1, 3.5, 4096 MiB, NVIDIA Old, Card\n")
    done = run_doctor(tmp_path, "--json")
    report = json.loads(done.stdout)
    assert report["driver"] == "535.1"
    assert report["gpus"][0]["name"] == "NVIDIA Old, Card"
    assert report["gpus"][0]["architecture"] == 35
    assert report["gpus"][0]["runs"] is None
    assert report["problems"]
    assert done.returncode == 1


def test_command_copes_with_a_driver_that_does_not_answer(run_doctor, tmp_path):
    fake_nvidia_smi(tmp_path, "NVIDIA-SMI has failed because\\n")
    done = run_doctor(tmp_path)
    assert "fastseg" in done.stdout
    assert "Traceback" not in done.stderr
