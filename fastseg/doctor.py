"""`fastseg doctor`: what this installation consists of, and whether it fits the machine.

Works, and says so, where torch or the binary does not import.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import fastseg

_REBUILD = "{variables} pip install --force-reinstall --no-deps --no-cache-dir ."


def examine() -> dict[str, Any]:
    """Looks at the installation and the machine.

    Returns:
        JSON-ready: `fastseg`, `python`, `platform`; `torch`, `binary` (either with `error` where it
        does not import), `cpu`, `driver`, `gpus`, and `problems`, a list of sentences, each with
        its remedy.
    """
    torch = _torch()
    driver, gpus = _nvidia_gpus()
    if not gpus and torch.get("sees_gpu"):  # a container without nvidia-smi
        gpus = _gpus_of_torch()
    report: dict[str, Any] = {
        "fastseg": fastseg.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "location": str(Path(fastseg.__file__).parent),
        "torch": torch,
        "binary": _binary(),
        "cpu": {"model": _cpu_model(), "logical_cores": os.cpu_count()},
        "driver": driver,
        "gpus": gpus,
    }
    for gpu in gpus:
        gpu["runs"] = how_it_runs(gpu["architecture"], report["binary"].get("cuda_archs", ""))
    report["problems"] = problems(report)
    return report


def how_it_runs(architecture: int, compiled: str) -> str | None:
    """How a GPU runs the CUDA code in the binary.

    Args:
        architecture: of the GPU, 90 for compute capability 9.0.
        compiled: architectures in the binary, "75 80 90"; PTX of the last is there too.

    Returns:
        "machine code", "PTX" (the driver compiles it on first use), or None: it cannot.
    """
    words = compiled.replace(";", " ").split()
    if str(architecture) in words or f"{architecture}a" in words:
        return "machine code"
    plain = [int(word) for word in words if word.isdigit()]
    # Machine code also runs on later GPUs of the same generation: that for 80 on an 86.
    if any(code // 10 == architecture // 10 and code < architecture for code in plain):
        return "machine code"
    newest = words[-1] if words else ""
    return "PTX" if newest.isdigit() and int(newest) < architecture else None


def problems(report: dict[str, Any]) -> list[str]:
    """What does not fit in a report of `examine`, each with its remedy."""
    found = []
    torch, binary, gpus = report["torch"], report["binary"], report["gpus"]
    if "error" in torch:
        found.append(f"torch does not import ({torch['error']}); install it: pip install torch")
    if "error" in binary:
        rebuild = _REBUILD.format(variables="").strip()
        found.append(
            f"the binary fastseg._C does not import ({binary['error']}); rebuild it in fastseg's "
            f"source folder: {rebuild}"
        )
        return found
    if not gpus:
        return found
    if not binary["cuda"]:
        rebuild = _REBUILD.format(variables="FASTSEG_CUDA=1")
        found.append(
            "this machine has a GPU, but the binary was built for the CPU alone; with the CUDA "
            f"toolkit (nvcc) installed, rebuild it in fastseg's source folder: {rebuild}"
        )
    else:
        for gpu in gpus:
            if gpu["runs"] is None:
                archs = " ".join(sorted({str(other["architecture"]) for other in gpus}))
                rebuild = _REBUILD.format(variables=f'FASTSEG_CUDA_ARCHS="{archs}"')
                found.append(
                    f"{gpu['name']} has architecture {gpu['architecture']}, which is not among the "
                    f"compiled ones ({binary['cuda_archs']}); rebuild in fastseg's source folder: "
                    f"{rebuild}"
                )
    if "error" not in torch and not torch["sees_gpu"]:
        built = f"built for CUDA {torch['cuda']}" if torch["cuda"] else "a build for the CPU alone"
        found.append(
            f"this machine has a GPU, but torch {torch['version']} ({built}) does not see it; "
            "install a torch whose CUDA version the driver supports (https://pytorch.org)"
        )
    return found


def as_json(report: dict[str, Any]) -> str:
    """The report as JSON text."""
    return json.dumps(report, indent=2)


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    torch, binary, cpu = report["torch"], report["binary"], report["cpu"]
    if "error" in torch:
        torch_text = "does not import"
    else:
        torch_text = f"{torch['version']}, " + (
            f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built for the CPU alone"
        )
    lines = [
        ("fastseg", f"{report['fastseg']} in {report['location']}"),
        ("Python", f"{report['python']} on {report['platform']}"),
        ("torch", torch_text),
        ("binary", _binary_text(binary)),
        ("CPU", f"{cpu['model']}, {cpu['logical_cores']} logical cores"),
    ]
    if "error" not in binary:
        parallel = "OpenMP" if binary["openmp"] else "no OpenMP"
        variants = binary["cpu_variants"].replace(";", ", ")
        lines += [
            ("CPU code", f"{binary['cpu_active']} in use, of {variants}"),
            ("threads", f"{binary['threads']} ({parallel})"),
        ]
    no_driver = "version unknown" if report["gpus"] else "no NVIDIA driver"
    lines.append(("driver", report["driver"] or no_driver))
    for gpu in report["gpus"]:
        runs = f"runs the binary's {gpu['runs']}" if gpu["runs"] else "cannot run the binary"
        lines.append(
            ("GPU", f"{gpu['name']}, architecture {gpu['architecture']}, {gpu['memory']}: {runs}")
        )
    text = [f"{name:10}{value}" for name, value in lines]
    if report["problems"]:
        text += ["", *(f"PROBLEM: {problem}" for problem in report["problems"])]
    else:
        text += ["", "No problems found."]
    return "\n".join(text)


def _binary_text(binary: dict[str, Any]) -> str:
    if "error" in binary:
        return "does not import"
    if not binary["cuda"]:
        cuda = "without CUDA"
    else:
        archs = binary["cuda_archs"]
        cuda = f"CUDA {binary['cuda_version']} for architectures {archs}"
    return f"{cuda}, built by {binary['compiler']} with pybind11 {binary['pybind11']}"


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken torch fails to import in many ways
        return {"error": _one_line(error)}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "sees_gpu": torch.cuda.is_available(),
    }


def _binary() -> dict[str, Any]:
    try:
        from fastseg import _C
    except ImportError as error:
        return {"error": _one_line(error)}
    try:
        return dict(_C.build_info())
    except RuntimeError as error:  # FASTSEG_CPU asks for what the processor lacks
        return {"error": _one_line(error)}


def _gpus_of_torch() -> list[dict[str, Any]]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": found.name,
                "architecture": 10 * found.major + found.minor,
                "memory": f"{found.total_memory >> 20} MiB",
            }
        )
    return gpus


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _nvidia_gpus() -> tuple[str | None, list[dict[str, Any]]]:
    """Driver version and GPUs as nvidia-smi tells, which comes with the driver itself."""
    fields = "driver_version,compute_cap,memory.total,name"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, []
    driver, gpus = None, []
    for line in run.stdout.splitlines():
        words = [word.strip() for word in line.split(",", 3)]
        if len(words) == 4 and re.fullmatch(r"\d+\.\d+", words[1]):
            driver = words[0]
            architecture = int(words[1].replace(".", ""))
            gpus.append({"name": words[3], "architecture": architecture, "memory": words[2]})
    return driver, gpus
