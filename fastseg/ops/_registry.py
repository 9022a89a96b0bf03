"""What the ops share: torch's operator library of the namespace `fastseg`, and the stream."""

from __future__ import annotations

import re

import torch

from fastseg import _C

LIBRARY = torch.library.Library("fastseg", "DEF")


def stream_of(tensor: torch.Tensor) -> int:
    """The current CUDA stream of the tensor's device as an address; 0 on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def allows_tf32() -> bool:
    """Whether torch's settings let float32 products on CUDA round their factors to TF32."""
    matmul = torch.backends.cuda.matmul
    # torch before 2.9 has the older switch alone.
    return (
        matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    )


_ARCHITECTURES = [int(word) for word in re.findall(r"\d+", _C.build_info()["cuda_archs"])]


def kernel_capability(tensor: torch.Tensor) -> tuple[int, int]:
    """The compute capability that the kernels which run on the tensor's GPU are compiled for.

    It may be below the GPU's: a binary for 7.5 alone runs on an 8.0, without what came with that.
    On the CPU it is (8, 0), the emulator's.
    """
    if not tensor.is_cuda:
        return 8, 0
    major, minor = torch.cuda.get_device_capability(tensor.device)
    own = 10 * major + minor
    # Of machine code that a GPU can run, and PTX, the driver takes the latest.
    return divmod(max((code for code in _ARCHITECTURES if code <= own), default=own), 10)
