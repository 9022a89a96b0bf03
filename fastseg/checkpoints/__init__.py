"""Models from checkpoint files, recognised by their keys."""

from fastseg.checkpoints.load import default_model, load_model
from fastseg.checkpoints.resnet import load_resnet
from fastseg.checkpoints.save import save_model
from fastseg.checkpoints.swin import load_swin

__all__ = ["default_model", "load_model", "load_resnet", "load_swin", "save_model"]
