"""Instance segmentation kernels and models: fast, exact, easy to install."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastseg.checkpoints import default_model, load_model, save_model
    from fastseg.instances import Instances
    from fastseg.predictor import Predictor
    from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

__version__ = "0.1.0"

__all__ = [
    "Instances",
    "PanopticSegmentation",
    "Predictor",
    "SemanticSegmentation",
    "default_model",
    "load_model",
    "save_model",
]

# Imported on first use: `import fastseg` is instant, and fastseg.mask works without torch.
_HOMES = {
    "Instances": "fastseg.instances",
    "PanopticSegmentation": "fastseg.segmentation",
    "Predictor": "fastseg.predictor",
    "SemanticSegmentation": "fastseg.segmentation",
    "default_model": "fastseg.checkpoints",
    "load_model": "fastseg.checkpoints",
    "save_model": "fastseg.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
