"""Mask R-CNN against mmdetection's, with the same random weights.

Both run in double precision but for our boxes: random weights multiply what single precision
rounds off until scores differ by some 1e-5 and the lists of boxes by their order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_up_images import images
from mmdetection_peer import mmdet_model, mmdet_results, samples_of
from torch import Tensor, nn

from fastseg import load_model
from fastseg.models import ImageBatch

NUM_CLASSES = 7
SIZES = ((100, 151), (167, 90))
OPTIONS = {"min_size": 128, "max_size": 224}
# A narrow network: every width is a fraction of the zoo's.
NARROW = {
    "neck__in_channels": [64, 128, 256, 512],
    "neck__out_channels": 32,
    "rpn_head__in_channels": 32,
    "rpn_head__feat_channels": 32,
    "roi_head__bbox_roi_extractor__out_channels": 32,
    "roi_head__bbox_head__in_channels": 32,
    "roi_head__bbox_head__fc_out_channels": 64,
    "roi_head__bbox_head__num_classes": NUM_CLASSES,
    "roi_head__mask_roi_extractor__out_channels": 32,
    "roi_head__mask_head__in_channels": 32,
    "roi_head__mask_head__conv_out_channels": 32,
    "roi_head__mask_head__num_classes": NUM_CLASSES,
}
RESNET = {"backbone__base_channels": 16, **NARROW}
RESNEXT = {"backbone__depth": 50, "backbone__stem_channels": 16, **NARROW}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pytorch style": ("mask-rcnn_r50_fpn_1x_coco", RESNET, {}),
    "caffe style": (
        "mask-rcnn_r50-caffe_fpn_1x_coco",
        RESNET,
        {
            "stride_in_1x1": True,
            "bgr": True,
            "image_mean": (123.675 / 255, 116.28 / 255, 103.53 / 255),
            "image_std": (1 / 255,) * 3,
        },
    ),
    "shared boxes and masks": (
        "mask-rcnn_r50_fpn_1x_coco",
        {
            **RESNET,
            "roi_head__bbox_head__reg_class_agnostic": True,
            "roi_head__mask_head__class_agnostic": True,
            "test_cfg__rpn__nms_pre": 60,
            "test_cfg__rpn__max_per_img": 50,
            "test_cfg__rcnn__score_thr": 0.1,
            "test_cfg__rcnn__max_per_img": 20,
        },
        {
            "rpn_pre_nms_top_n_test": 60,
            "rpn_post_nms_top_n_test": 50,
            "box_score_thresh": 0.1,
            "box_detections_per_img": 20,
        },
    ),
    "normalised heads": (
        "mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco",
        {**RESNET, "backbone__base_channels": 64},
        {},
    ),
}


def peers_results(peer: nn.Module, pixels: Tensor, batch: ImageBatch) -> list[dict[str, Tensor]]:
    """Of a batch's images, whose pixels may have another order of channels."""
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    paste = fcn_mask_head._do_paste_mask

    def paste_single_precision(
        masks: Tensor, boxes: Tensor, *arguments: Any, **options: Any
    ) -> Any:
        return paste(masks, boxes.float(), *arguments, **options)

    sizes = [tuple(size) for size in batch.sizes.tolist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcn_mask_head, "_do_paste_mask", paste_single_precision)
        return mmdet_results(peer, pixels, sizes, batch.original_sizes)


@torch.inference_mode()
def spread_outputs(peer: nn.Module, pixels: Tensor, batch: ImageBatch) -> None:
    """Scales and shifts some layers until their outputs on these pixels have a trained network's
    deviations, and no class is preferred.
    """
    heads = peer.roi_head
    deviations = {
        **dict.fromkeys((block.conv for block in peer.neck.fpn_convs), 1.0),
        peer.rpn_head.rpn_cls: 2.0,
        peer.rpn_head.rpn_reg: 0.3,
        heads.bbox_head.fc_cls: 1.5,
        heads.bbox_head.fc_reg: 0.5,
        heads.mask_head.conv_logits: 2.0,
    }

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        if layer not in hooks:  # it runs once per level
            return output
        hooks.pop(layer).remove()
        channels = [dim for dim in range(output.dim()) if dim != 1]
        mean = output.mean(channels, keepdim=True)
        factor = deviations[layer] / (output - mean).std()
        layer.weight.mul_(factor)
        layer.bias.sub_(mean.flatten()).mul_(factor)
        return (output - mean) * factor

    hooks = {layer: layer.register_forward_hook(scale) for layer in deviations}
    peers_results(peer, pixels, batch)
    assert not hooks, "a layer whose outputs are to be spread did not run"


@pytest.fixture(scope="module", params=MODELS)
def peer_and_model(request):
    config, changes, options = MODELS[request.param]
    peer = mmdet_model(f"mask_rcnn/{config}", seed=1, **changes)
    batch = load_model(peer.state_dict(), **OPTIONS, **options).preprocess(images(*SIZES))
    blue_first = options.get("bgr", False)
    spread_outputs(peer, batch.pixels.flip(1) if blue_first else batch.pixels, batch)
    model = load_model(peer.state_dict(), **OPTIONS, **options)
    return peer.double(), model.double(), blue_first


def test_proposals_equal_mmdetections(peer_and_model):
    peer, model, _ = peer_and_model
    batch = model.preprocess([image.double() for image in images(*SIZES)])
    samples = samples_of(batch.pixels, [tuple(size) for size in batch.sizes.tolist()])
    with torch.inference_mode():
        pyramid = model.backbone(batch.pixels)
        proposals = model.rpn(pyramid, batch.sizes, tuple(batch.pixels.shape[2:]))
        expected = peer.rpn_head.predict(pyramid, samples, rescale=False)
    for boxes, count, theirs in zip(proposals.boxes, proposals.counts, expected, strict=True):
        assert count == len(theirs.bboxes) > 40
        torch.testing.assert_close(boxes[:count], theirs.bboxes.float(), rtol=0, atol=1e-3)


def test_results_equal_mmdetections(peer_and_model):
    peer, model, blue_first = peer_and_model
    with torch.inference_mode():
        batch = model.preprocess([image.double() for image in images(*SIZES)])
        results = model.postprocess(model(batch.pixels, batch.sizes), batch)
    expected = peers_results(peer, batch.pixels.flip(1) if blue_first else batch.pixels, batch)
    for ours, theirs in zip(results, expected, strict=True):
        assert len(ours) > 10
        assert len(set(ours.labels.tolist())) > 3
        assert ours.labels.tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours.boxes, theirs["bboxes"].float(), rtol=0, atol=1e-3)
        torch.testing.assert_close(ours.scores, theirs["scores"].float(), rtol=0, atol=1e-5)
        masks = ours.masks()
        assert masks.float().mean() > 0.01
        assert (masks != theirs["masks"]).float().mean() < 1e-4
