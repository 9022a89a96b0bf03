"""Builds fastseg._C with CMake; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake in a build folder that stays, so that a rebuild compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            # pip builds in an environment that is gone the next time, and CMake remembers paths.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja") or "ninja",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output.parent,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "FASTSEG_CUDA": os.environ.get("FASTSEG_CUDA", "AUTO"),
            "FASTSEG_CUDA_ARCHS": os.environ.get("FASTSEG_CUDA_ARCHS", ""),
        }
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        subprocess.run([*configure, *(f"-D{k}={v}" for k, v in options.items())], check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)


setup(ext_modules=[Extension("fastseg._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
