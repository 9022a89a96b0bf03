"""The CUDA emulator runs right kernels rightly and reports wrong ones, with every way to build it.

The kernels are in selftest.cu; each case is one run of the program built from it.
"""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
FLAGS = [
    *("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-DFASTSEG_CUDA_EMULATOR"),
    *("-I", str(HERE / "include"), "-I", str(CSRC)),
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Flags of the kernels and of the emulator in each build.
BUILDS = {
    "plain": (["-O1"], ["-O1"]),
    "ucontext": (["-O1"], ["-O1", "-DFASTSEG_EMULATOR_UCONTEXT"]),
    "sanitized": (["-O1", "-g1", *SANITIZERS], ["-O1", *SANITIZERS]),
}
ORDERS = ["forward", "reverse", "shuffle", "shuffle:7"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The self-test program of each build."""
    folder = tmp_path_factory.mktemp("cuda_emulator")
    objects: dict[tuple[str, ...], Path] = {}
    compilers = []

    def compiled(*arguments: str) -> str:
        if arguments not in objects:
            objects[arguments] = folder / f"{len(objects)}.o"
            command = ["g++", *FLAGS, *arguments, "-c", "-o", str(objects[arguments])]
            compilers.append(subprocess.Popen(command))
        return str(objects[arguments])

    parts = {
        name: [
            compiled(*kernel_flags, "-x", "c++", str(HERE / "selftest.cu")),
            compiled(*emulator_flags, str(HERE / "emulator.cpp")),
        ]
        for name, (kernel_flags, emulator_flags) in BUILDS.items()
    }
    assert [compiler.wait() for compiler in compilers] == [0] * len(compilers)
    programs = {name: folder / name for name in BUILDS}
    for name, program in programs.items():
        sanitizers = SANITIZERS if name == "sanitized" else []
        subprocess.run(["g++", *sanitizers, *parts[name], "-o", str(program)], check=True)
    return programs


def run(program: Path, *cases: str, order: str = "forward", **environment: str):
    return subprocess.run(
        [program, *cases],
        env={**os.environ, "FASTSEG_EMULATOR_ORDER": order, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def outputs(program: Path, *cases: str, order: str = "forward") -> dict[str, list[str]]:
    """The lines that each case prints, all cases run by one process."""
    result = run(program, *cases, order=order)
    assert result.returncode == 0, result.stdout + result.stderr
    lines: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        if line.endswith(":"):
            current = lines.setdefault(line[:-1], [])
        else:
            current.append(line)
    return lines


def integers(program: Path, *cases: str, order: str = "forward") -> dict[str, list[list[int]]]:
    return {
        case: [[int(word, 0) for word in line.split()] for line in lines]
        for case, lines in outputs(program, *cases, order=order).items()
    }


EXPECTED = {
    "block_sum": [[sum(range(i, min(i + 256, 1000))) for i in range(0, 1000, 256)]],
    "scan": [[0, *itertools.accumulate(range(95))], [sum(range(96))]],
    "compact": [list(range(0, 128, 3)), [43]],
    "atomics": [[sum(range(192)), 191, -191, 2**31 - 1, 7, 1], [96, 2**64 - 1]],
    "transpose": [[row * 16 + column for column in range(16) for row in range(16)]],
    "shuffles": [
        [3, 3, 3, 3, 3],
        [3, 3, 3, 19, 19],
        [0, 3, 13, 14, 29],
        [4, 9, 15, 20, 31],
        [0, 5, 15, 0, 15],  # an exchange reaches into the earlier segment, not into the later one
        [1, 4, 14, 17, 30],
        [1, 1, 1, 17, 17],
        [7, 7, 7, 7, 7],
        [1, 1, 1, 1, 1],
    ],
    "intrinsics": [[5, 31, 32, 1, 64, 0x3F800000, 2, -1, 4, 1, 4, 1]],
    # Shared memory that nobody wrote holds NaN or -1, also after a block that wrote it.
    "uninitialised": [[32, 32, 64]],
    "indices": [[1000 * block + thread for block in range(12) for thread in range(24)]],
    "votes": [[0, 0, 0], [1, 0, 40], [1, 1, 64]],
    "host_threads": [[50 * sum(range(256))] * 2],
    "barriers": [[(i + 100) % 256 for i in range(256)]],
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("order", ORDERS)
def test_right_kernels(programs, build, order):
    assert integers(programs[build], *EXPECTED, order=order) == EXPECTED


@pytest.mark.parametrize(
    ("case", "right"),
    [
        ("missing_barrier", list(reversed(range(64)))),
        ("missing_warp_barrier", [(lane + 3) % 32 for lane in range(32)]),
    ],
)
def test_races_show_as_results_that_depend_on_the_order(programs, case, right):
    results = [integers(programs["plain"], case, order=order)[case] for order in ORDERS]
    assert [right] not in results
    assert len({str(result) for result in results}) == len(ORDERS)


def test_blocks_follow_the_order_too(programs):
    last_block = [
        integers(programs["plain"], "block_order", order=order)["block_order"][0][0]
        for order in ("forward", "reverse")
    ]
    assert last_block == [4, 0]


ERRORS = {
    "early_exit": "block (0, 0, 0): deadlock, not all threads of a barrier or collective arrive: "
    "16 of 64 threads exited, the first is thread (48, 0, 0); 48 of 64 threads wait at "
    "__syncthreads (selftest.cu:",
    "two_barriers": "thread (63, 0, 0): divergent barriers: this thread is at __syncthreads "
    "(selftest.cu:",
    "absent_lane": "62 of 64 threads wait at __syncwarp (selftest.cu:",
    "mask_without_caller": "thread (16, 0, 0): __syncwarp (selftest.cu:",
    "unmasked_source": "lane 0 reads lane 20, which the mask 0x0000ffff lacks",
    "partial_warp": "its mask 0xffffffff names lanes beyond the last thread of the block",
    "trap": "thread (33, 0, 0): __trap()",
    "too_many_threads": "block (1025, 1, 1), 0 bytes of dynamic shared memory: a block has 1 to",
    "too_much_shared": "102400 bytes of dynamic shared memory: the emulated device has 65536",
}


@pytest.mark.parametrize("build", BUILDS)
def test_wrong_kernels_throw_and_leave_the_emulator_usable(programs, build):
    lines = outputs(programs[build], *ERRORS)
    for case, message in ERRORS.items():
        error, after = lines[case]
        assert error.startswith("CUDA emulator: kernel 'wrong'"), error
        assert message in error
        assert after == "32640 98176 163712 204972 "  # block_sum's right result


def test_dynamic_shared_overrun_is_an_error_without_sanitizers(programs):
    result = run(programs["plain"], "dynamic_overrun")
    assert "wrote outside the 128 bytes of dynamic shared memory" in result.stdout


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("dynamic_overrun", "AddressSanitizer: use-after-poison"),
        ("static_overrun", "index 32 out of bounds for type 'int [32]'"),
        ("static_overrun_by_pointer", "AddressSanitizer: global-buffer-overflow"),
        ("global_overrun", "in global_overrun_kernel"),
        ("stack_overrun", "AddressSanitizer: stack-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_see_into_kernels(programs, case, report):
    result = run(programs["sanitized"], case)
    assert result.returncode != 0
    assert report in result.stderr


def test_larger_architectures_have_more_shared_memory(programs):
    result = run(programs["plain"], "too_much_shared", FASTSEG_EMULATOR_ARCH="90")
    assert "no error" in result.stdout


def test_unknown_order_is_an_error(programs):
    result = run(programs["plain"], "block_sum", order="random")
    assert result.returncode == 1
    assert "FASTSEG_EMULATOR_ORDER is 'random', must be forward, reverse, shuffle" in result.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_compiles_the_same_file(tmp_path):
    program = tmp_path / "selftest"
    flags = ["-std=c++17", "-gencode=arch=compute_75,code=compute_75", "-I", str(CSRC)]
    subprocess.run(["nvcc", *flags, HERE / "selftest.cu", "-o", program], check=True)
    on_gpu = run(program, "block_sum")
    if on_gpu.returncode == 0:
        assert integers(program, *EXPECTED.keys() - {"uninitialised"}) == {
            case: lines for case, lines in EXPECTED.items() if case != "uninitialised"
        }
    else:  # no GPU or no driver: the launch says so
        assert "fastseg: kernel 'block_sum' failed: cudaError" in on_gpu.stderr
        assert "grid (4, 1, 1), block (256, 1, 1)" in on_gpu.stderr
