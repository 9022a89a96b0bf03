"""How good results are: COCO's metrics and their relatives, without torch.

An evaluator takes results with `update`, image by image or all at once, and `compute` gives the
numbers, over the results of all processes where `torch.distributed` runs.
"""

from fastseg.evaluation.evaluator import Evaluator

__all__ = ["Evaluator"]
