"""What all tests share: a seed, devices, memory that is poisoned, the extension under test.

FASTSEG_TEST_EXTENSION=<path of a built _C>: the tests use that file as `fastseg._C`, for example
one built with the CUDA emulator, whose CUDA kernels run on CPU tensors.
"""

import importlib.machinery
import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch  # before the extension, which then shares torch's OpenMP threads

ROOT = Path(__file__).resolve().parent.parent

# Where algorithms have to be deterministic, torch asks for it before cuBLAS multiplies.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# `python -m pytest` puts the working directory first in the path. A source tree in which the
# extension was not built must not hide the package that pip installed.
if not any((ROOT / "fastseg").glob("_C.*.so")) and not os.environ.get("FASTSEG_TEST_EXTENSION"):
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]


def _load_extension(path: str) -> ModuleType:
    """Makes a built extension file the `fastseg._C` of this process."""
    loader = importlib.machinery.ExtensionFileLoader("fastseg._C", path)
    spec = importlib.util.spec_from_file_location("fastseg._C", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["fastseg._C"] = module
    import fastseg

    fastseg._C = module
    return module


if path := os.environ.get("FASTSEG_TEST_EXTENSION"):
    _load_extension(path)


def _has_cuda_kernels() -> bool:
    from fastseg import _C

    return _C.build_info()["cuda"] and not _C.build_info()["cuda_emulator"]


def pytest_report_header() -> str:
    from fastseg import _C

    info = _C.build_info()
    kernels = f"CUDA for {info['cuda_archs']}" if info["cuda"] else "CPU alone"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"torch {torch.__version__}, {gpu}"
    return f"fastseg: {_C.__file__} ({kernels}; {info['cpu_active']}), {versions}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        reason = "no CUDA GPU"
    elif not _has_cuda_kernels():
        reason = "fastseg was built without CUDA"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Runs a test on the CPU and, where there is one, on the GPU."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """Runs Python in a new process that imports the same fastseg as this one."""
    import fastseg

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        home = str(Path(fastseg.__file__).parents[1])
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": home, **environment},
            cwd=ROOT / "tests",  # Python looks here first, and the source tree may not be built
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def run_on_cpu_variant(
    request: pytest.FixtureRequest, run_python: Callable[..., subprocess.CompletedProcess]
) -> Callable[..., None]:
    """Runs a selection of a test file on each instruction set that this processor has."""
    from fastseg import _C

    variant = request.param
    if _C.build_info()["cuda_emulator"]:
        pytest.skip("the emulator runs the CUDA kernels alone")
    if os.environ.get("FASTSEG_CPU"):
        pytest.skip("already inside the run of one variant")
    if variant == _C.build_info()["cpu_active"]:
        pytest.skip(f"all tests of this run are with {variant}")
    probe = run_python("-c", "from fastseg import _C; _C.build_info()", FASTSEG_CPU=variant)
    if "is not available" in probe.stderr:
        pytest.skip(f"this processor lacks {variant}")

    def run(file: str, selection: str) -> None:
        # torch held to the same instructions rounds the same way.
        torch_variant = "default" if variant == "baseline" else variant
        environment = {"FASTSEG_CPU": variant, "ATEN_CPU_CAPABILITY": torch_variant}
        done = run_python("-m", "pytest", "-q", "-x", file, "-k", selection, **environment)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]

    return run


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory that fastseg asks for holds NaN, or the largest integer.

    Fresh memory is often zero, which hides a kernel that does not write all of its output.
    """
    # At its first use torch.device() looks up which functions it redirects: torch's own.
    with torch.device("meta"):
        torch.empty(0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like", "empty_strided", "empty_permuted"):
            patch.setattr(torch, name, _poisoning(getattr(torch, name)))
        for name in ("new_empty", "new_empty_strided"):
            patch.setattr(torch.Tensor, name, _poisoning(getattr(torch.Tensor, name)))
        for name in ("empty", "empty_like"):
            patch.setattr(np, name, _poisoning(getattr(np, name)))
        yield


def _poisoning(allocate: Callable) -> Callable:
    def allocate_poisoned(*arguments, **options):
        if torch.compiler.is_compiling():
            return allocate(*arguments, **options)
        result = allocate(*arguments, **options)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "fastseg":
            _poison(result)
        return result

    return allocate_poisoned


def _poison(memory: torch.Tensor | np.ndarray) -> None:
    if type(memory) is torch.Tensor and memory.device.type != "meta":
        with torch.no_grad():
            if memory.is_floating_point():
                memory.fill_(float("nan"))
            else:
                memory.fill_(True if memory.dtype == torch.bool else torch.iinfo(memory.dtype).max)
    elif type(memory) is np.ndarray and memory.dtype.kind == "f":
        memory.fill(np.nan)
    elif type(memory) is np.ndarray and memory.dtype.kind in "iu":
        memory.fill(np.iinfo(memory.dtype).max)
