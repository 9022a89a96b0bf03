"""Mask2Former's losses against the original's stored ones, transformers and mmdetection."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mask2former_training as golden
import pytest
import torch
from mmdetection_peer import import_mmdet
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses import InstanceTargets, Mask2FormerLoss, MaskLosses, match_instances

pytest.importorskip("scipy", reason="it solves the assignment")

NUM_CLASSES = 5
PADDED = (48, 64)
SIZES = [(40, 56), (48, 64), (33, 41)]
LOSS = Mask2FormerLoss(num_points=150)


def random_targets(counts: tuple[int, ...]) -> list[InstanceTargets]:
    """One for each of up to three images, with as many instances."""
    found = []
    for count, size in zip(counts, SIZES, strict=False):
        coarse = torch.randn(count, 1, 5, 6)
        masks = F.interpolate(coarse, size, mode="bilinear")[:, 0] > 0
        labels = torch.randint(NUM_CLASSES, (count,))
        found.append(InstanceTargets(torch.zeros(count, 4), labels, masks))
    return found


def random_predictions(
    batch: int = 3, layers: int = 2, queries: int = 9, dtype: torch.dtype = torch.float32
) -> list[MaskPredictions]:
    return [
        MaskPredictions(
            torch.randn(batch, queries, NUM_CLASSES + 1).to(dtype).requires_grad_(),
            (4 * torch.randn(batch, queries, 12, 16)).to(dtype).requires_grad_(),
        )
        for _ in range(layers)
    ]


def padded_masks(target: InstanceTargets) -> Tensor:
    height, width = target.masks.shape[1:]
    return F.pad(target.masks, (0, PADDED[1] - width, 0, PADDED[0] - height)).float()


def gradients(losses: MaskLosses, predictions: list[MaskPredictions]) -> list[Tensor]:
    leaves = [x for one in predictions for x in (one.class_logits, one.mask_logits)]
    return list(torch.autograd.grad(losses.total, leaves))


def test_stored_losses_of_the_original(device: torch.device) -> None:
    numbers = []
    for name, matching in (("final", golden.MATCHING), ("aux0", golden.LOSSES)):
        numbers += list(matching["points"][:, None])
        numbers += [golden.POINTS[f"{name}.draws"], golden.POINTS[f"{name}.rest"]]
    predictions = [
        MaskPredictions(one.class_logits.to(device), one.mask_logits.to(device))
        for one in golden.predictions()
    ]
    targets = [
        InstanceTargets(one.boxes, one.labels.to(device), one.masks.to(device))
        for one in golden.targets()
    ]
    loss = Mask2FormerLoss(num_points=golden.NUM_POINTS)
    rand = golden.replay([x.to(device) for x in numbers])
    losses = loss(predictions, targets, golden.PADDED, rand=rand)
    named = losses.named()
    assert len(named) == 6
    for name, value in named.items():
        torch.testing.assert_close(value.cpu(), golden.LOSSES[name], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.total, sum(named.values()))


def test_stored_matches_of_the_original() -> None:
    predictions, targets = golden.predictions(), golden.targets()
    points = [one["points"] for one in (golden.LOSSES, golden.MATCHING)]
    matches = match_instances(predictions, targets, points, golden.PADDED)
    assert matches.counts == [6, 4]
    for layer, stored in enumerate((golden.LOSSES, golden.MATCHING)):
        assert matches.queries[layer].tolist() == [*stored["src0"], *(24 + stored["src1"])]
        assert matches.instances[layer].tolist() == [*stored["tgt0"], *(6 + stored["tgt1"])]


@pytest.mark.skipif(
    "FASTSEG_GOLDEN" not in os.environ,
    reason="FASTSEG_GOLDEN does not name a folder with mask2former_official",
)
def test_all_stored_losses_of_the_original() -> None:
    """Of all layers; the class predictor's bias gets the sum of the gradients of its outputs."""
    folder = Path(os.environ["FASTSEG_GOLDEN"]) / "mask2former_official"
    tensors = load_file(folder / "fixture.safetensors")
    predictions = [
        MaskPredictions(
            tensors[f"mid/{prefix}pred_logits"].requires_grad_(), tensors[f"mid/{prefix}pred_masks"]
        )
        for prefix in (*(f"aux{i}." for i in range(4)), "")
    ]
    renamed = {"labels": "classes", "masks": "masks_packed"}
    found = {
        f"{kind}{i}": tensors[f"in/gt{i}_{name}"] for kind, name in renamed.items() for i in (0, 1)
    }
    loss = Mask2FormerLoss(num_points=golden.NUM_POINTS)
    rand = golden.replay(golden.random_numbers(tensors))
    losses = loss(predictions, golden.targets(found), golden.PADDED, rand=rand)
    assert len(losses.named()) == 15
    for name, value in losses.named().items():
        torch.testing.assert_close(value, tensors[f"train/{name}"], rtol=3e-6, atol=0)
    torch.testing.assert_close(losses.total, tensors["train/total"])
    leaves = [one.class_logits for one in predictions]
    bias = sum(grad.sum((0, 1)) for grad in torch.autograd.grad(losses.total, leaves))
    expected = tensors["grad/sem_seg_head.predictor.class_embed.bias"]
    assert (bias - expected).abs().max() <= 1e-5 * expected.abs().max()


# In the last case there are more instances than queries.
@pytest.mark.parametrize("counts", [(4, 6, 5), (3, 0, 2), (12, 4, 10)])
def test_losses_and_gradients_equal_transformers(counts: tuple[int, ...]) -> None:
    peer = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    config = peer.Mask2FormerConfig(
        num_labels=NUM_CLASSES,
        train_num_points=150,
        class_weight=1.7,
        mask_weight=2.3,
        dice_weight=3.1,
        no_object_weight=0.2,
    )
    weights = {"loss_ce": 1.7, "loss_mask": 2.3, "loss_dice": 3.1}
    predictions, targets = random_predictions(layers=3), random_targets(counts)

    torch.manual_seed(5)
    found = peer.Mask2FormerLoss(config, weights)(
        predictions[-1].mask_logits,
        predictions[-1].class_logits,
        [padded_masks(one) for one in targets],
        [one.labels for one in targets],
        [
            {"masks_queries_logits": one.mask_logits, "class_queries_logits": one.class_logits}
            for one in predictions[:-1]
        ],
    )
    expected = {}
    for name, value in found.items():
        name = name.replace("cross_entropy", "ce")
        expected[name] = weights[name.rstrip("_01")] * value
    leaves = [x for one in predictions for x in (one.class_logits, one.mask_logits)]
    expected_grads = torch.autograd.grad(sum(expected.values()), leaves)

    torch.manual_seed(5)
    loss = Mask2FormerLoss(
        num_points=150, class_weight=1.7, mask_weight=2.3, dice_weight=3.1, no_object_weight=0.2
    )
    losses = loss(predictions, targets, PADDED)
    assert losses.named().keys() == expected.keys()
    for name, value in losses.named().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    for grad, other in zip(gradients(losses, predictions), expected_grads, strict=True):
        assert (grad - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("counts", [(4, 6, 5), (3, 0, 2)])
def test_losses_and_gradients_equal_mmdetections(counts: tuple[int, ...]) -> None:
    mmdet = import_mmdet()
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.structures import InstanceData

    init_default_scope("mmdet")
    configs = Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former"
    config = Config.fromfile(configs / "mask2former_r50_8xb2-lsj-50e_coco.py").model
    config.panoptic_head.update(  # its network is not used
        num_things_classes=NUM_CLASSES,
        num_queries=9,
        train_cfg={**config.train_cfg, "num_points": 150},
        test_cfg=config.test_cfg,
    )
    config.panoptic_head.loss_cls.class_weight = NUM_CLASSES * [1.0] + [0.1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = mmdet.registry.MODELS.build(config.panoptic_head)

    (prediction,), targets = random_predictions(layers=1), random_targets(counts)
    truth = [InstanceData(labels=one.labels, masks=padded_masks(one)) for one in targets]
    torch.manual_seed(5)
    expected = head._loss_by_feat_single(
        prediction.class_logits, prediction.mask_logits, truth, [{} for _ in targets]
    )
    # Unlike the original, mmdetection counts an image without instances as one with one.
    share = sum(max(count, 1) for count in counts) / sum(counts)
    expected = (expected[0], share * expected[1], share * expected[2])
    leaves = [prediction.class_logits, prediction.mask_logits]
    expected_grads = torch.autograd.grad(sum(expected), leaves)

    torch.manual_seed(5)
    losses = LOSS([prediction], targets, PADDED)
    for value, other in zip(losses.named().values(), expected, strict=True):
        torch.testing.assert_close(value, other.reshape(()), rtol=1e-5, atol=1e-6)
    for grad, other in zip(gradients(losses, [prediction]), expected_grads, strict=True):
        assert (grad - other).abs().max() <= 1e-5 * other.abs().max()


def without_instances(target: InstanceTargets, size: tuple[int, int]) -> InstanceTargets:
    return InstanceTargets(target.boxes[:0], target.labels[:0], torch.zeros(0, *size).bool())


@pytest.mark.parametrize("size", [(33, 41), (0, 0)])
def test_images_without_instances(size: tuple[int, int]) -> None:
    predictions, targets = random_predictions(), random_targets((4, 6, 5))
    some = [targets[0], without_instances(targets[1], size), targets[2]]
    none = [without_instances(one, size) for one in targets]
    for truth in (some, none):
        losses = LOSS(predictions, truth, PADDED)
        assert losses.total.isfinite() and (losses.classes > 0).all()
        assert ((losses.masks > 0) == (truth is some)).all()
        assert ((losses.dice > 0) == (truth is some)).all()
        grads = gradients(losses, predictions)
        assert all(grad.isfinite().all() for grad in grads)
        for layer in range(2):
            assert (grads[2 * layer] != 0).all()
            per_image = grads[2 * layer + 1].flatten(1).abs().sum(1) > 0
            assert per_image.tolist() == [truth is some, False, truth is some]


def test_order_of_instances_is_free() -> None:
    predictions, targets = random_predictions(), random_targets((4, 6, 5))
    torch.manual_seed(5)
    expected = LOSS(predictions, targets, PADDED)
    orders = [torch.randperm(len(one.labels)) for one in targets]
    shuffled = [
        InstanceTargets(one.boxes, one.labels[order], one.masks[order])
        for one, order in zip(targets, orders, strict=True)
    ]
    torch.manual_seed(5)
    losses = LOSS(predictions, shuffled, PADDED)
    for name, value in losses.named().items():
        torch.testing.assert_close(value, expected.named()[name], rtol=1e-6, atol=0)


def test_an_empty_mask_counts() -> None:
    predictions, targets = random_predictions(), random_targets((4, 6, 5))
    targets[1].masks[2] = False
    losses = LOSS(predictions, targets, PADDED)
    assert losses.total.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(losses, predictions))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_names_layer_and_image_whose_logits_are_not_finite(bad: float) -> None:
    predictions, targets = random_predictions(layers=3), random_targets((4, 0, 5))
    predictions[1].mask_logits.data[1, 3, 11, 15] = bad  # a corner that few points come near
    with pytest.raises(ValueError, match="prediction 1, mask_logits of image 1 must be finite"):
        LOSS(predictions, targets, PADDED)
    predictions[0].class_logits.data[2, 8, 5] = bad
    with pytest.raises(ValueError, match="prediction 0, class_logits of image 2 must be finite"):
        LOSS(predictions, targets, PADDED)


def test_wrong_input() -> None:
    predictions, targets = random_predictions(), random_targets((4, 6, 5))
    with pytest.raises(ValueError, match="a prediction and an image, got 0 predictions and 3 tar"):
        LOSS([], targets, PADDED)
    with pytest.raises(ValueError, match="a prediction and an image, got 2 predictions and 0 tar"):
        LOSS(predictions, [], PADDED)
    with pytest.raises(ValueError, match="targets must be one for each of 3 images, got 2"):
        LOSS(predictions, targets[:2], PADDED)
    with pytest.raises(ValueError, match=r"targets\[1\] must have masks no larger.*\(48, 64\)"):
        LOSS(predictions, targets, (40, 64))
    for wrong in (targets[1].masks.byte(), targets[1].masks.to("meta")):
        others = [targets[0], replace(targets[1], masks=wrong), targets[2]]
        with pytest.raises(
            ValueError, match=r"targets\[1\] must have bool masks on cpu, got torch"
        ):
            LOSS(predictions, others, PADDED)
    fewer = replace(predictions[1], mask_logits=predictions[1].mask_logits[:, 1:])
    with pytest.raises(ValueError, match=r"must agree in images and queries"):
        LOSS([predictions[0], fewer], targets, PADDED)
    for label in (-1, NUM_CLASSES):
        targets[2].labels[1] = label
        with pytest.raises(ValueError, match="labels of image 2 must be within 0 and 4"):
            LOSS(predictions, targets, PADDED)
    with pytest.raises(ValueError, match="num_points must be positive, got 0"):
        Mask2FormerLoss(num_points=0)
    with pytest.raises(ValueError, match="no_object_weight must be positive, got 0"):
        Mask2FormerLoss(no_object_weight=0)


def test_predictions_must_have_as_many_queries() -> None:
    predictions = random_predictions(layers=1) + random_predictions(layers=1, queries=8)
    with pytest.raises(ValueError, match="class_logits of prediction 1 must have shape"):
        LOSS(predictions, random_targets((4, 6, 5)), PADDED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_single_precision_of_half_logits_under_autocast(dtype: torch.dtype) -> None:
    predictions, targets = random_predictions(dtype=dtype), random_targets((4, 6, 5))
    single = [
        MaskPredictions(
            one.class_logits.detach().float().requires_grad_(),
            one.mask_logits.detach().float().requires_grad_(),
        )
        for one in predictions
    ]
    torch.manual_seed(5)
    expected = LOSS(single, targets, PADDED)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype):
        losses = LOSS(predictions, targets, PADDED)
    assert losses.total.dtype == torch.float32
    for name, value in losses.named().items():
        assert torch.equal(value, expected.named()[name])
    for grad, exact in zip(
        gradients(losses, predictions), gradients(expected, single), strict=True
    ):
        assert torch.equal(grad, exact.to(dtype))


class Recorder(TorchDispatchMode):
    """The names of the ATen operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


def test_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For three layers and images: one copy to the host, nothing that is read or sized there, and
    no tensors made of Python's numbers, which are copied to the device one by one.
    """
    copies = []
    monkeypatch.setattr(Tensor, "cpu", lambda x: copies.append(x) or x)
    predictions, targets = random_predictions(layers=3), random_targets((4, 0, 5))
    with Recorder() as recorder:
        LOSS(predictions, targets, PADDED).total.backward()
    assert len(copies) == 1
    assert recorder.names.count("topk") == 3
    assert recorder.names.count("lift_fresh") == 1  # what was matched
    waiting = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select"}
    assert not waiting & set(recorder.names)


def test_last_layer_alone() -> None:
    predictions, targets = random_predictions(), random_targets((4, 6, 5))
    torch.manual_seed(5)
    both = LOSS(predictions, targets, PADDED).named()
    torch.manual_seed(5)
    last = LOSS(predictions[1:], targets, PADDED).named()
    assert last.keys() == {"loss_ce", "loss_mask", "loss_dice"}
    assert both.keys() == last.keys() | {f"{name}_0" for name in last}
    assert all(torch.equal(value, both[name]) for name, value in last.items())


def test_asks_for_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"needs SciPy: pip install 'fastseg\[train\]'"):
        LOSS(random_predictions(), random_targets((4, 6, 5)), PADDED)


PROCESS = """
import sys
import torch
from torch import distributed
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses import InstanceTargets, Mask2FormerLoss

rank = int(sys.argv[2])
count = (2, 5)[rank]
prediction = MaskPredictions(torch.randn(1, 6, 3), torch.randn(1, 6, 8, 8))
masks = torch.ones(count, 9, 9).bool()
target = InstanceTargets(torch.zeros(count, 4), torch.zeros(count).long(), masks)

def losses():
    torch.manual_seed(0)
    return Mask2FormerLoss(num_points=20)([prediction], [target], (32, 32))

alone = losses()
store = f"file://{sys.argv[1]}"
distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
shared = losses()
torch.testing.assert_close(shared.masks, alone.masks * count / 3.5)
torch.testing.assert_close(shared.dice, alone.dice * count / 3.5)
assert torch.equal(shared.classes, alone.classes)
distributed.destroy_process_group()
"""


def test_divides_by_the_mean_over_processes(run_python: Callable, tmp_path: Path) -> None:
    """Two processes, with 2 and 5 instances."""
    with ThreadPoolExecutor() as threads:
        runs = threads.map(
            lambda rank: run_python("-c", PROCESS, str(tmp_path / "store"), rank), ("0", "1")
        )
        for run in runs:
            assert run.returncode == 0, run.stderr
