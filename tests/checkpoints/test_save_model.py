"""Models that are saved and loaded again: nothing of them is lost."""

from __future__ import annotations

import json
import re

import pytest
import torch
from mask2former_small import small_backbone, small_maskformer, small_model
from safetensors import safe_open
from torch import nn

from fastseg import Predictor, load_model, models, save_model
from fastseg.checkpoints import save
from fastseg.checkpoints.formats import recognise
from fastseg.checkpoints.load import READERS

NAMES = ("a", "b", "ç")
IMAGES = {
    "min_size": 320,
    "max_size": 400,
    "image_mean": (0.1, 0.2, 0.3),
    "image_std": (0.4, 0.5, 0.6),
    "size_divisible": 64,
    "class_names": NAMES,
}
MASK_RCNN = {
    **IMAGES,
    "fixed_size": (200, 100),
    "anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
    "aspect_ratios": ((0.4, 1.0, 2.5),) * 5,
    "rpn_pre_nms_top_n_test": 11,
    "rpn_post_nms_top_n_test": 12,
    "rpn_nms_thresh": 0.13,
    "rpn_score_thresh": 0.14,
    "box_score_thresh": 0.15,
    "box_nms_thresh": 0.16,
    "box_detections_per_img": 17,
    "bbox_reg_weights": (1.0, 2.0, 3.0, 4.0),
    "trainable_backbone_layers": 2,
    "conventions": "detectron2",
    "batch_norm_eps": 0.5,
}
SOLO_FAMILY = {
    **IMAGES,
    "strides": (1, 2, 3, 4, 5),
    "score_thr": 0.11,
    "max_candidates": 12,
    "mask_thr": 0.13,
    "nms_pre": 14,
    "filter_thr": 0.15,
    "max_per_img": 16,
    "kernel": "linear",
    "sigma": 1.7,
    "batch_norm_eps": 0.5,
    "stride_in_1x1": True,
}
MASK2FORMER = {
    **IMAGES,
    "task": "panoptic",
    "top_k": 7,
    "object_mask_threshold": 0.71,
    "overlap_threshold": 0.61,
    "thing_classes": (0, 2),
    "batch_norm_eps": 0.5,
    "stride_in_1x1": True,
    "num_heads": 4,
}
FAMILIES = {
    # The background is one more class of the network and has no name.
    "Mask R-CNN": (
        lambda: models.mask_rcnn_resnet18_fpn(num_classes=4, conventions="detectron2"),
        MASK_RCNN,
    ),
    "SOLOv2": (
        lambda: models.solov2_light_resnet50_dcn_fpn(num_classes=3),
        {**SOLO_FAMILY, "num_grids": (10, 8, 6, 5, 3)},
    ),
    "Decoupled SOLO": (
        lambda: models.decoupled_solo_light_resnet50_fpn(num_classes=3),
        {**SOLO_FAMILY, "num_grids": (40, 36, 24, 16, 12)},
    ),
    "Mask2Former": (lambda: small_model(small_backbone("resnet")), MASK2FORMER),
    "MaskFormer": (lambda: small_maskformer(small_backbone("resnet"), encoded=True), MASK2FORMER),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_survives(tmp_path, family):
    make, options = FAMILIES[family]
    state_dict = make().state_dict()
    reader = READERS[recognise(state_dict)]
    missing = reader.hyper_parameters - set(options) - {"num_grids", "stride_in_1x1"}
    assert missing == set(), "an option that is not tried here"
    model = load_model(state_dict, **options)
    expected = save.described(model)
    # As training leaves it: on another layout, in training mode.
    save_model(model.to(memory_format=torch.channels_last).train(), tmp_path / "model.safetensors")
    assert model.training
    loaded = load_model(tmp_path / "model.safetensors")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert save.described(loaded) == expected
    assert str(loaded) == str(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_every_option_is_described():
    """What the models do not tell of themselves would be lost."""
    for make, options in FAMILIES.values():
        model = make()
        named = {"batch_norm_eps", "stride_in_1x1", "num_heads", "num_grids"}
        assert set(model.hyper_parameters()) == set(options) - named


def test_changes_of_a_model_are_saved(tmp_path):
    model = small_model(small_backbone("swin"), num_classes=80)
    model.class_names = [f"mine {i}" for i in range(80)]
    model.overlap_threshold = 0.25
    path = tmp_path / "model.safetensors"
    path.write_text("an older file")
    save_model(model.half(), str(path))
    loaded = Predictor(path).model
    assert loaded.class_names == tuple(model.class_names)
    assert loaded.task == "instance"
    assert loaded.overlap_threshold == 0.25
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("decoder.norm.weight").dtype == torch.float16
        assert json.loads(file.metadata()["config"])["arch"] == "mask2former"
    # Without names they are not COCO's.
    model.class_names = None
    save_model(model, path)
    assert load_model(path).class_names is None
    assert load_model(path, task="semantic").task == "semantic"


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    model = small_model(small_backbone("resnet"))
    model.decoder.layers[1].cross_attn.num_heads = 1
    with pytest.raises(ValueError, match=r"decoder\.layers\.1\.cross_attn\.num_heads is 1, of the"):
        save_model(model, path)
    model = small_model(small_backbone("resnet"))
    model.class_names = ("a", "b")
    with pytest.raises(ValueError, match="class_names has 2 names for 3 classes"):
        save_model(model, path)
    model.class_names = None
    model.more = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"unknown keys: more\.bias"):
        save_model(model, path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    model = small_model(small_backbone("swin"))
    with pytest.raises(ValueError, match=re.escape("path must end in .safetensors, got 'a.pth'")):
        save_model(model, "a.pth")
    path = tmp_path / "model.safetensors"
    with pytest.raises(TypeError, match="got DataParallel, which only wraps one"):
        save_model(nn.DataParallel(model), path)
    for other in (nn.Linear(1, 1), model.state_dict()):
        with pytest.raises(TypeError, match=f"or MaskFormer, got {type(other).__name__}$"):
            save_model(other, path)
    with pytest.raises(FileNotFoundError, match="none"):
        save_model(model, tmp_path / "none" / "model.safetensors")
    path.mkdir()
    with pytest.raises(OSError, match=re.escape(str(path))):
        save_model(model, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_of_ones_own(tmp_path, family):
    """Of a trained model all is kept but what tells its classes apart."""
    make, _ = FAMILIES[family]
    model = make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.reset_classes(2, class_names=("x", "y"))
    after = model.state_dict()
    assert after.keys() == before.keys()
    new = [key for key in before if after[key].shape != before[key].shape]
    assert new and all("predictor" in key for key in new)
    for key in before.keys() - new:
        assert torch.equal(after[key], before[key]), key
    for key in new:
        assert after[key].std() < 0.02, key
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.class_names == ("x", "y")
    assert str(loaded) == str(model)
    # The network runs with them.
    batch = model.preprocess([torch.rand(3, 64, 64)])
    results = model.postprocess(model(batch.pixels, batch.sizes), batch)
    assert set(results[0].names) <= {"x", "y"}
    with pytest.raises(ValueError, match="class_names has 1 names for 2 classes"):
        model.reset_classes(2, class_names=("x",))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        model.reset_classes(0)


def test_new_classes_are_things_unless_told():
    model = small_model(small_backbone("swin"), num_classes=133)
    assert len(model.thing_classes) == 80
    model.reset_classes(4)
    assert (model.class_names, model.thing_classes) == (None, (0, 1, 2, 3))
    model.reset_classes(3, thing_classes=[1])
    assert model.thing_classes == (1,)
    with pytest.raises(ValueError, match="thing_classes must be from 0 to 1"):
        model.reset_classes(2, thing_classes=[2])


def test_conventions_tell_where_the_background_is():
    model = models.mask_rcnn_resnet18_fpn(num_classes=4, conventions="mmdetection")
    model.reset_classes(1)
    model.reset_classes(2)
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.weight.shape[0] == predictor.cls_score.out_features == 3
    assert predictor.bbox_pred.weight.shape[0] == 8
    assert model.roi_heads.mask_predictor.mask_fcn_logits.weight.shape[0] == 2
