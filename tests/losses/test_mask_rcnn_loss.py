"""Mask R-CNN's losses and gradients against torchvision's models in training mode."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import pytest
import torch
from made_up_images import images
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg import load_model
from fastseg.layers.box_head import FastRCNNPredictor
from fastseg.losses import InstanceTargets, MaskRCNNLoss, MaskRCNNLosses
from fastseg.models import MaskRCNN, mask_rcnn_resnet18_fpn

pytest.importorskip("torchvision", reason="it is the peer that is compared with")
from torchvision.models import detection
from torchvision.models.detection import backbone_utils, faster_rcnn, mask_rcnn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

NUM_CLASSES = 5
SIZES = [(96, 128), (121, 96)]
MODEL_OPTIONS = {"min_size": 96, "max_size": 160}
LOSS_OPTIONS = {
    "rpn_pre_nms_top_n_train": 150,
    "rpn_post_nms_top_n_train": 80,
    "rpn_batch_size_per_image": 40,
    "box_batch_size_per_image": 48,
}


def peer_model(version: int = 1, **options: object) -> nn.Module:
    """torchvision's V1 or V2 in small: one block per stage, 32 channels in the pyramid."""
    torch.manual_seed(0)
    norm, other_norm = ((FrozenBatchNorm2d, None), (nn.BatchNorm2d, nn.BatchNorm2d))[version - 1]
    backbone = backbone_utils.BackboneWithFPN(
        ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm),
        {f"layer{i + 1}": str(i) for i in range(4)},
        [64, 128, 256, 512],
        32,
        norm_layer=other_norm,
    )
    box_head = (
        faster_rcnn.TwoMLPHead(32 * 49, 64)
        if version == 1
        else faster_rcnn.FastRCNNConvFCHead((32, 7, 7), [32], [64], norm_layer=other_norm)
    )
    model = detection.MaskRCNN(
        backbone,
        rpn_head=faster_rcnn.RPNHead(32, 3, conv_depth=version),
        box_head=box_head,
        box_predictor=faster_rcnn.FastRCNNPredictor(64, NUM_CLASSES),
        mask_head=mask_rcnn.MaskRCNNHeads(32, (32, 32), 1, norm_layer=other_norm),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(32, 32, NUM_CLASSES),
        **MODEL_OPTIONS,
        **{**LOSS_OPTIONS, **options},
    )
    with torch.no_grad():  # proposals that are apart, and heads with opinions
        model.rpn.head.cls_logits.weight.mul_(100)
        model.rpn.head.bbox_pred.weight.mul_(5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(3)
    # The layout that ours computes in: sums rounded alike, proposals of nearly equal scores keep
    # their order, by which they are drawn.
    return model.to(memory_format=torch.channels_last)


def random_targets(*counts: int, seed: int = 0) -> list[InstanceTargets]:
    """One for each image, with so many instances."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for count, (height, width) in zip(counts, SIZES, strict=False):
        size = torch.tensor([width, height])
        corners = 0.6 * size * torch.rand(count, 2, generator=random)
        sides = 8 + 0.3 * size * torch.rand(count, 2, generator=random)
        labels = torch.randint(1, NUM_CLASSES, (count,), generator=random)
        masks = torch.rand(count, height, width, generator=random) > 0.4
        found.append(InstanceTargets(torch.cat([corners, corners + sides], 1), labels, masks))
    return found


def ours_of(peer: nn.Module, **options: object) -> MaskRCNN:
    return load_model(peer.state_dict(), **MODEL_OPTIONS, **options).train()


def our_losses(
    model: MaskRCNN, targets: list[InstanceTargets], loss: MaskRCNNLoss | None = None
) -> MaskRCNNLosses:
    batch = model.preprocess(images(*SIZES[: len(targets)]))
    loss = loss or MaskRCNNLoss(**LOSS_OPTIONS)
    torch.manual_seed(1)
    return loss(model, model.predict_anchors(batch.pixels), targets, batch.sizes)


def peer_losses(peer: nn.Module, targets: list[InstanceTargets]) -> dict[str, Tensor]:
    peer.transform._skip_resize = True  # which would draw a size; these images have theirs
    truth = [
        {"boxes": one.boxes, "labels": one.labels, "masks": one.masks.byte()} for one in targets
    ]
    torch.manual_seed(1)
    return peer.train()(images(*SIZES[: len(targets)]), truth)


def assert_same_training(
    model: MaskRCNN, peer: nn.Module, targets: list[InstanceTargets], loss: MaskRCNNLoss | None
) -> None:
    losses = our_losses(model, targets, loss)
    drawn = torch.rand(4)
    expected = peer_losses(peer, targets)
    assert torch.equal(torch.rand(4), drawn)  # as many numbers were drawn
    assert losses.named().keys() == expected.keys()
    for name, value in losses.named().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)
    torch.testing.assert_close(losses.total, sum(expected.values()))

    losses.total.backward()
    sum(expected.values()).backward()
    others = dict(peer.named_parameters())
    assert {name for name, _ in model.named_parameters()} == others.keys()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (others[name].grad is None), name
        if parameter.grad is not None:
            # A ReLU whose input is zero but for rounding may be open in one of them alone.
            error = (parameter.grad - others[name].grad).abs().max()
            assert error <= 1e-3 * others[name].grad.abs().max() + 1e-7, name
    for name, statistic in model.state_dict().items():
        torch.testing.assert_close(statistic, peer.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("counts", [(3, 6), (0, 4), (0, 0)])
def test_losses_and_gradients_equal_torchvision(version: int, counts: tuple[int, ...]) -> None:
    """Also the statistics of batch normalisation afterwards, which V2 trains."""
    peer = peer_model(version)
    assert_same_training(ours_of(peer), peer, random_targets(*counts), None)


def test_hyper_parameters_equal_torchvision() -> None:
    options = {
        **LOSS_OPTIONS,
        "rpn_fg_iou_thresh": 0.6,
        "rpn_bg_iou_thresh": 0.2,
        "rpn_positive_fraction": 0.1,
        "box_fg_iou_thresh": 0.6,
        "box_bg_iou_thresh": 0.3,
        "box_positive_fraction": 0.7,
    }
    shared = {
        "rpn_nms_thresh": 0.5,
        "rpn_score_thresh": 0.3,
        "bbox_reg_weights": (8.0, 9.0, 4.0, 3.0),
    }
    peer = peer_model(**options, **shared)
    frozen = ("conv1", "bn1", "layer1")
    for name, parameter in peer.backbone.body.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    model = ours_of(peer, trainable_backbone_layers=3, **shared)
    assert_same_training(model, peer, random_targets(5, 2), MaskRCNNLoss(**options))


def test_defaults_are_torchvisions() -> None:
    parameters = inspect.signature(detection.MaskRCNN.__init__).parameters
    own = {field.name: field.default for field in fields(MaskRCNNLoss)}
    assert own == {name: parameters[name].default for name in own}


def test_a_few_steps_lower_the_losses() -> None:
    model = ours_of(peer_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    targets = random_targets(3, 6)
    for target in targets:  # masks that can be learned
        target.masks[:] = True
    history = []
    for _ in range(12):
        losses = our_losses(model, targets)
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append([loss.item() for loss in losses.named().values()])
    assert sum(history[-1]) < 0.75 * sum(history[0])
    for name, before, after in zip(losses.named(), history[0], history[-1], strict=True):
        # Of boxes there are more to be refined once there are better proposals.
        assert after < 0.9 * before or name == "loss_box_reg", name
    model.eval()
    batch = model.preprocess(images(*SIZES))
    assert model(batch.pixels, batch.sizes).counts.shape == (2,)


def test_bfloat16_under_autocast() -> None:
    model, targets = ours_of(peer_model()), random_targets(3, 6)
    exact = our_losses(model, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = our_losses(model, targets)
    losses.total.backward()
    for name, value in losses.named().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact.named()[name], rtol=0.15, atol=0.02, msg=name)
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("shared", [False, True], ids=["per class", "shared"])
def test_other_conventions(shared: bool) -> None:
    """The background is the last class, and boxes may be one for all classes."""
    model = mask_rcnn_resnet18_fpn(
        num_classes=NUM_CLASSES, conventions="detectron2", **MODEL_OPTIONS
    )
    model.roi_heads.box_predictor = FastRCNNPredictor(
        in_features=1024, num_classes=NUM_CLASSES, num_boxes=1 if shared else NUM_CLASSES - 1
    )
    (target,) = random_targets(3)
    target = replace(target, labels=torch.tensor([0, 2, 2]))
    predictor = model.roi_heads.box_predictor
    nn.init.constant_(predictor.cls_score.bias[-1:], 50.0)  # certain that all is background
    batch = model.preprocess([images(*SIZES)[0]])
    target = target.resized(batch.sizes[0].tolist())
    loss = MaskRCNNLoss(box_batch_size_per_image=200)
    predictions = model.train().predict_anchors(batch.pixels)
    losses = loss(model, predictions, [target], batch.sizes)
    assert 0 < losses.classifier < 0.25 * 50 + 1
    losses.total.backward()
    moved = predictor.bbox_pred.bias.grad.view(-1, 4).abs().sum(1) > 0
    assert moved.tolist() == ([True] if shared else [True, False, True, False])
    target.labels[1] = 4
    with pytest.raises(ValueError, match="labels must be within 0 and 3, got"):
        loss(model, predictions, [target], batch.sizes)


class Recorder(TorchDispatchMode):
    """The names of the ATen operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


def test_waits_for_the_device_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies to the host, nothing else that is read or sized there."""
    copies = []
    monkeypatch.setattr(Tensor, "cpu", lambda x: copies.append(x) or x)
    model, targets = ours_of(peer_model()), random_targets(3, 6)
    batch = model.preprocess(images(*SIZES))
    loss = MaskRCNNLoss(**LOSS_OPTIONS)
    with Recorder() as recorder:
        loss(model, model.predict_anchors(batch.pixels), targets, batch.sizes).total.backward()
    assert len(copies) == 2
    assert recorder.names.count("randperm") == 8
    waiting = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "lift_fresh"}
    assert not waiting & set(recorder.names)


def test_a_permutation_from_elsewhere() -> None:
    """The order of calls: anchors with an instance and background of each image, then regions."""
    model, targets = ours_of(peer_model()), random_targets(3, 6)
    batch = model.preprocess(images(*SIZES))
    lengths = []

    def randperm(length: int) -> Tensor:
        lengths.append(length)
        return torch.arange(length).flip(0)

    predictions = model.predict_anchors(batch.pixels)
    arguments = (model, predictions, targets, batch.sizes)
    losses = MaskRCNNLoss(**LOSS_OPTIONS)(*arguments, randperm=randperm)
    assert losses.total.isfinite()
    num_anchors = sum(level.logits.shape[1] for level in predictions.levels)
    assert len(lengths) == 8
    for positives, negatives in zip(lengths[0:4:2], lengths[1:4:2], strict=True):
        assert 0 < positives < negatives and positives + negatives <= num_anchors
    assert [sum(lengths[4:6]), sum(lengths[6:])] == [80 + 3, 80 + 6]


@pytest.mark.parametrize("trained", range(6))
def test_frozen_backbone_equals_torchvision(trained: int) -> None:
    with torch.device("meta"):
        peer = backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=trained
        )
    model = mask_rcnn_resnet18_fpn(trainable_backbone_layers=trained)
    assert {name for name, x in model.backbone.named_parameters() if x.requires_grad} == {
        name for name, x in peer.named_parameters() if x.requires_grad
    }


def test_number_of_trained_layers_is_checked() -> None:
    with pytest.raises(ValueError, match="trainable_backbone_layers must be from 0 to 5, got 6"):
        mask_rcnn_resnet18_fpn(trainable_backbone_layers=6)


def test_names_box_label_and_mask_that_are_wrong() -> None:
    model, targets = ours_of(peer_model()), random_targets(3, 6)
    for place, value in ((2, "x1"), (3, 0.0), (0, torch.nan), (1, -torch.inf)):
        boxes = targets[1].boxes.clone()
        boxes[4, place] = boxes[4, 0] if value == "x1" else value
        with pytest.raises(ValueError, match=r"targets\[1\].boxes\[4\] must be finite and have x1"):
            our_losses(model, [targets[0], replace(targets[1], boxes=boxes)])
    for label in (0, -1, NUM_CLASSES):
        labels = targets[1].labels.clone()
        labels[3] = label
        with pytest.raises(ValueError, match=r"targets\[1\].labels must be within 1 and 4"):
            our_losses(model, [targets[0], replace(targets[1], labels=labels)])
    masks = targets[1].masks[:, :-1]
    with pytest.raises(ValueError, match=r"resized image, \(121, 96\), got \(120, 96\)"):
        our_losses(model, [targets[0], replace(targets[1], masks=masks)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(5, 4)}, r"targets\[0\] must have float boxes .* N = 3"),
        ({"boxes": torch.zeros(3, 4).long()}, r"targets\[0\] must have float boxes"),
        ({"boxes": torch.zeros(3, 4, device="meta")}, "must have boxes on cpu, got meta"),
        ({"labels": torch.ones(3)}, "must have int64 labels, got torch.float32"),
        ({"labels": torch.ones(4).long()}, r"must have labels \[N\] and masks"),
        ({"masks": torch.zeros(3, 9, 9)}, "must have bool masks on cpu"),
        ({"masks": torch.zeros(3, 200, 9).bool()}, "masks no larger than the padded image"),
    ],
)
def test_wrong_targets(changes: dict[str, Tensor], message: str) -> None:
    (target,) = random_targets(3)
    with pytest.raises(ValueError, match=message):
        our_losses(ours_of(peer_model()), [replace(target, **changes)])


def test_names_the_image_whose_logits_are_not_finite() -> None:
    model, targets = ours_of(peer_model()), random_targets(3, 6)
    batch = model.preprocess(images(*SIZES))
    loss = MaskRCNNLoss(**LOSS_OPTIONS)
    spoilt = batch.pixels.clone()
    spoilt[1, 0, 50, 50] = torch.nan
    with pytest.raises(ValueError, match="box offsets of anchors of image 1 must be finite"):
        loss(model, model.predict_anchors(spoilt), targets, batch.sizes)
    heads = model.roi_heads
    for predictor, name in (
        (heads.box_predictor.cls_score, "class_logits of image 0"),
        (heads.box_predictor.bbox_pred, "box_offsets of image 0"),
        (heads.mask_predictor.mask_fcn_logits, "mask_logits of image 0"),
    ):
        bias = predictor.bias.detach().clone()
        predictor.bias.data.fill_(torch.inf)
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            our_losses(model, targets)
        predictor.bias.data.copy_(bias)
    predictions = model.predict_anchors(batch.pixels)
    predictions.pyramid[0].data[1] = torch.nan  # after the proposals: only regions of image 1
    with pytest.raises(ValueError, match="class_logits of image 1 must be finite"):
        loss(model, predictions, targets, batch.sizes)


def test_wrong_arguments() -> None:
    model, targets = ours_of(peer_model()), random_targets(3, 6)
    batch = model.preprocess(images(*SIZES))
    predictions = model.predict_anchors(batch.pixels)
    with pytest.raises(ValueError, match="targets must be one for each of 2 images, got 1"):
        MaskRCNNLoss()(model, predictions, targets[:1], batch.sizes)
    with pytest.raises(ValueError, match=r"sizes must have shape \(2, 2\) .* got \(1, 2\)"):
        MaskRCNNLoss()(model, predictions, targets, batch.sizes[:1])
    with pytest.raises(ValueError, match="box_bg_iou_thresh must not exceed box_fg_iou_thresh, go"):
        MaskRCNNLoss(box_fg_iou_thresh=0.4)
    with pytest.raises(ValueError, match="rpn_batch_size_per_image must be positive, got 0"):
        MaskRCNNLoss(rpn_batch_size_per_image=0)
    with pytest.raises(ValueError, match=r"box_positive_fraction must be in \[0, 1\], got 1.5"):
        MaskRCNNLoss(box_positive_fraction=1.5)


@pytest.mark.gpu
def test_cuda_equals_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    targets = random_targets(3, 6)
    cpu = ours_of(peer_model())
    expected = our_losses(cpu, targets)
    model = ours_of(peer_model()).cuda()
    batch = model.preprocess(images(*SIZES))
    moved = [
        InstanceTargets(one.boxes.cuda(), one.labels.cuda(), one.masks.cuda()) for one in targets
    ]
    torch.manual_seed(1)
    loss = MaskRCNNLoss(**LOSS_OPTIONS)
    predictions = model.predict_anchors(batch.pixels)
    losses = loss(model, predictions, moved, batch.sizes, randperm=torch.randperm)
    for name, value in losses.named().items():
        torch.testing.assert_close(value.cpu(), expected.named()[name], rtol=1e-3, atol=1e-4)
