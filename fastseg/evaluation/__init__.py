"""How good results are: COCO's metrics and their relatives, without torch.

An evaluator takes results with `update`, image by image or all at once, and `compute` gives the
numbers, over the results of all processes where `torch.distributed` runs.
"""

from fastseg.evaluation.cityscapes import CityscapesInstanceEvaluator
from fastseg.evaluation.coco import COCOEvaluator
from fastseg.evaluation.coco_dataset import COCO
from fastseg.evaluation.evaluator import Evaluator
from fastseg.evaluation.folders import evaluate_cityscapes, evaluate_semantic
from fastseg.evaluation.lvis import LVISEvaluator
from fastseg.evaluation.panoptic import PanopticEvaluator, evaluate_panoptic
from fastseg.evaluation.panoptic_files import (
    id2rgb,
    panoptic_results,
    panoptic_to_instances,
    rgb2id,
)
from fastseg.evaluation.semantic import SemanticEvaluator
from fastseg.evaluation.video import YouTubeVISEvaluator

__all__ = [
    "COCO",
    "COCOEvaluator",
    "CityscapesInstanceEvaluator",
    "Evaluator",
    "LVISEvaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "YouTubeVISEvaluator",
    "evaluate_cityscapes",
    "evaluate_panoptic",
    "evaluate_semantic",
    "id2rgb",
    "panoptic_results",
    "panoptic_to_instances",
    "rgb2id",
]
