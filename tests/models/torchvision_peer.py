"""torchvision's Mask R-CNN with random but well-behaved weights, and the comparison with it."""

from __future__ import annotations

from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from fastseg import Instances

NUM_CLASSES = 7
# A low score threshold and few classes, so that an image of noise gives 100 detections.
HYPER_PARAMETERS: dict[str, Any] = {
    "min_size": 128,
    "max_size": 224,
    "box_score_thresh": 0.01,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_post_nms_top_n_test": 200,
}


def torchvision_mask_rcnn(name: str) -> nn.Module:
    """A random model: "resnet50" and "resnet50_v2" are torchvision's own builders."""
    torch.manual_seed(0)
    options = {"num_classes": NUM_CLASSES, **HYPER_PARAMETERS}
    if name == "resnet50":
        model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options)
    elif name == "resnet50_v2":
        model = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options)
    else:
        backbone = resnet_fpn_backbone(backbone_name=name, weights=None)
        model = detection.MaskRCNN(backbone, **options)
    randomise(model)
    return model.eval()


def with_hyper_parameters(peer: nn.Module, **hyper_parameters: Any) -> nn.Module:
    """A model on a ResNet-18 with the weights of ``peer`` and other hyper-parameters."""
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model = detection.MaskRCNN(backbone, num_classes=NUM_CLASSES, **hyper_parameters)
    model.load_state_dict(peer.state_dict(), assign=True)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters as after training, and heads with opinions.

    The last normalisation of a residual branch is scaled down: a deep network that adds branches
    of full variance multiplies rounding errors until the comparison means nothing.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            channels = len(module.weight)
            module.weight.copy_(0.5 + torch.rand(channels))
            module.bias.copy_(0.1 * torch.randn(channels))
            module.running_mean.copy_(0.1 * torch.randn(channels))
            module.running_var.copy_(0.5 + torch.rand(channels))
            if name.endswith(("bn3", "layer1.0.bn2", "layer1.1.bn2")):
                module.weight.mul_(0.2)
    heads = model.roi_heads
    model.rpn.head.cls_logits.weight.mul_(5)
    for layer, spread in (
        (model.rpn.head.bbox_pred, 0.3),
        (heads.box_predictor.cls_score, 2.0),
        (heads.box_predictor.bbox_pred, 1.0),
    ):
        layer.weight.mul_(spread / layer.weight.std() / layer.weight[0].numel() ** 0.5)


def assert_same_detections(ours: Instances, theirs: dict[str, Tensor]) -> None:
    """Same instances in the same order: boxes, scores, masks at 0.5."""
    assert ours.labels.tolist() == theirs["labels"].tolist()
    torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.scores, theirs["scores"], rtol=0, atol=1e-5)
    masks = theirs["masks"][:, 0] > 0.5
    decoded = decode(ours.rles)
    assert decoded.shape == masks.shape
    assert (decoded != masks).sum().item() <= 1e-5 * masks.numel()


def decode(rles: list[dict[str, Any]]) -> Tensor:
    """COCO RLE by COCO's own code: bool [N, H, W]."""
    return torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1).bool()
