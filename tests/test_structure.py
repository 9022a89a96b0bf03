"""The rules of CONTRIBUTING.md that a machine can hold: companions, layers, sizes, names."""

import ast
import os
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREES = ("benchmarks", "csrc", "fastseg", "tests")
PYTHON = sorted(path for tree in TREES for path in (ROOT / tree).rglob("*.py"))
CPP = sorted(
    path
    for tree in TREES
    for ending in ("h", "cpp", "cu", "cuh")
    for path in (ROOT / tree).rglob(f"*.{ending}")
)
CPU_ONLY = ("evaluation",)  # folders of csrc without CUDA kernels, torch ops and references
OPS = sorted(
    path.name
    for path in (ROOT / "csrc").iterdir()
    if path.is_dir() and path.name not in ("core", "bindings", *CPU_ONLY)
)
MAX_LINES = {".py": 450, ".h": 600, ".cpp": 600, ".cu": 600, ".cuh": 600}
MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 60
BINDINGS = re.compile(r"csrc/bindings/|_bindings\.cpp$")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def includes_of(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_companions(op):
    expected = [
        f"csrc/{op}/{op}.h",
        f"csrc/{op}/{op}_math.h",
        f"csrc/{op}/{op}_cpu.cpp",
        f"csrc/{op}/{op}_cuda.cu",
        f"csrc/{op}/{op}_bindings.cpp",
        f"fastseg/ops/{op}.py",
        f"fastseg/reference/{op}.py",
        f"tests/ops/test_{op}.py",
        f"benchmarks/{op}.py",
    ]
    assert [name for name in expected if not (ROOT / name).exists()] == []


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them as modules without packages."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1 and name != "__init__.py"] == []


@pytest.mark.parametrize("folder", CPU_ONLY)
def test_cpu_only_folder_has_its_companions(folder):
    missing = [tree for tree in ("fastseg", "tests") if not (ROOT / tree / folder).is_dir()]
    assert missing == []
    assert list((ROOT / "csrc" / folder).glob("*.cu*")) == []


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("device", "ending"), [("cpu", "cpp"), ("cuda", "cu")])
def test_launchers_are_declared_and_defined(op, device, ending):
    header = (ROOT / f"csrc/{op}/{op}.h").read_text()
    source = (ROOT / f"csrc/{op}/{op}_{device}.{ending}").read_text()
    declared = re.findall(rf"^void (\w+_{device})\(", header, re.MULTILINE)
    defined = re.findall(
        rf"^(?:void |FASTSEG_CPU_LAUNCHER\()(\w+_{device})\b", source, re.MULTILINE
    )
    assert declared, f"{op} has no launcher for {device}"
    assert set(declared) - set(defined) == set()


@pytest.mark.parametrize("path", CPP, ids=name_of)
def test_kernels_know_no_framework(path):
    foreign = re.compile(r"^(torch|ATen|c10|pybind11|Python\.h)")
    if BINDINGS.search(name_of(path)):
        foreign = re.compile(r"^(torch|ATen|c10)")
    assert [name for name in includes_of(path) if foreign.match(name)] == []


@pytest.mark.parametrize("path", [path for path in CPP if path.suffix == ".cu"], ids=name_of)
def test_kernels_start_through_launch(path):
    assert "<<<" not in path.read_text(), "use launch() of csrc/core/cuda.cuh"


def test_core_knows_no_op():
    for path in CPP:
        if name_of(path).startswith("csrc/core/"):
            known = [name for name in includes_of(path) if name.split("/")[0] in OPS]
            assert known == [], name_of(path)


@pytest.mark.parametrize("path", PYTHON + CPP, ids=name_of)
def test_size(path):
    lines = lines_of(path)
    assert len(lines) <= MAX_LINES[path.suffix]
    assert [i for i, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_are_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and (length := body_lines(node)) > MAX_FUNCTION_LINES
    ]
    assert long == []


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's statements; parameters and docstring take the lines they need."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    statements = function.body[has_docstring:]
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


@pytest.mark.parametrize("path", PYTHON + CPP, ids=name_of)
def test_no_drawers_and_no_loose_ends(path):
    assert path.stem not in ("utils", "util", "misc", "helpers", "common")
    if path != Path(__file__).resolve():
        assert re.findall(r"\b(TODO|FIXME|XXX)\b", path.read_text()) == []


def public_functions() -> dict[str, ast.FunctionDef]:
    found = {}
    for path in sorted((ROOT / "fastseg/ops").glob("[a-z]*.py")):
        exported = ast.parse((ROOT / "fastseg/ops/__init__.py").read_text())
        names = {
            alias.name
            for node in ast.walk(exported)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        found |= {
            f"{path.stem}.{node.name}": node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef)
            and node.name in names
            and not any("overload" in ast.unparse(mark) for mark in node.decorator_list)
        }
    return found


PUBLIC_FUNCTIONS = public_functions()


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_docstring_names_every_parameter(name):
    function = PUBLIC_FUNCTIONS[name]
    docstring = ast.get_docstring(function) or ""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    for argument in arguments:
        assert re.search(rf"^\s+{argument.arg}: ", docstring, re.MULTILINE), argument.arg
        assert argument.annotation is not None, argument.arg
    assert "Returns:" in docstring


@pytest.mark.skipif(
    "FASTSEG_TEST_EXTENSION" in os.environ, reason="a new process imports the installed extension"
)
@pytest.mark.parametrize("module", ["fastseg", "fastseg.mask", "fastseg.evaluation"])
def test_imports_without_torch(module, run_python):
    code = f"import sys; import {module}; sys.exit('torch' in sys.modules)"
    run = run_python("-c", code)
    assert run.returncode == 0, run.stderr
