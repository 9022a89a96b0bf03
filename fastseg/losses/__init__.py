"""What models are trained with: targets, costs and losses."""

from fastseg.losses.mask_matching import matching_costs
from fastseg.losses.solo import SOLOLoss, SOLOLosses
from fastseg.losses.solo_targets import InstanceTargets

__all__ = ["InstanceTargets", "SOLOLoss", "SOLOLosses", "matching_costs"]
