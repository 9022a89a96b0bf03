"""What models are trained with: targets, costs and losses."""

from fastseg.losses.assignment import Matches
from fastseg.losses.instance_targets import InstanceTargets
from fastseg.losses.mask2former import Mask2FormerLoss
from fastseg.losses.mask_matching import match_instances, matching_costs
from fastseg.losses.mask_rcnn import MaskRCNNLoss, MaskRCNNLosses
from fastseg.losses.maskformer import MaskFormerLoss
from fastseg.losses.set_losses import MaskLosses
from fastseg.losses.solo import SOLOLoss, SOLOLosses

__all__ = [
    "InstanceTargets",
    "Mask2FormerLoss",
    "MaskFormerLoss",
    "MaskLosses",
    "MaskRCNNLoss",
    "MaskRCNNLosses",
    "Matches",
    "SOLOLoss",
    "SOLOLosses",
    "match_instances",
    "matching_costs",
]
