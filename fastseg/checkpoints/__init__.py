"""Models from checkpoint files, recognised by their keys."""

from fastseg.checkpoints.load import default_model, load_model

__all__ = ["default_model", "load_model"]
