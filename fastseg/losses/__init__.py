"""What models are trained with: targets and losses."""

from fastseg.losses.solo import SOLOLoss, SOLOLosses
from fastseg.losses.solo_targets import InstanceTargets

__all__ = ["InstanceTargets", "SOLOLoss", "SOLOLosses"]
