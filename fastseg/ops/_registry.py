"""What the ops share: torch's operator library of the namespace `fastseg`, and the stream."""

from __future__ import annotations

import torch

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
