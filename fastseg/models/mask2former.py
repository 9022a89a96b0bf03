"""Mask2Former (Cheng et al., CVPR 2022): one network for instances, panoptic and semantic maps.

An image goes through the backbone and the pixel decoder, which makes features of every pixel; the
queries of the transformer decoder become one class and one mask each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastseg.categories import by_count, checked_names
from fastseg.instances import Instances
from fastseg.layers.batch_norm import keep_statistics
from fastseg.layers.mask_classification import MaskClassifier, MaskPredictions
from fastseg.layers.mask_results import ImageFrame, instances_of, panoptic_of, semantic_of
from fastseg.layers.reset_outputs import reset_outputs
from fastseg.models.image_batch import ImageBatch, ImageTransform
from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

Task = Literal["instance", "panoptic", "semantic"]


class Mask2Former(nn.Module):
    """Mask2Former.

    From ``pixels`` to ``MaskPredictions`` all shapes depend on the shape of ``pixels`` alone and
    nothing is read back from the device, so that the model can be captured in a CUDA graph.

    The parameters without default are the network; the others are the original's.

    Args:
        backbone: pixels -> features at strides 4, 8, 16 and 32.
        pixel_decoder: these -> features for the decoder, and mask features at stride 4.
        decoder: those -> a class and a mask for each query.
        task: what ``postprocess`` makes unless it is told, and what the weights are trained for:
            of panoptic ones, instances are things only.
        min_size: images are resized so that their shorter side is this long,
        max_size: unless their longer side would exceed this.
        image_mean: RGB mean of pixels from 0 to 1, subtracted.
        image_std: RGB standard deviation, divided by.
        size_divisible: images are padded to a multiple of this.
        top_k: pairs of query and class that become instances of an image.
        object_mask_threshold: queries with a lower probability have no part in a panoptic map.
        overlap_threshold: a panoptic segment of which others leave less than this share is dropped.
        thing_classes: labels of countable classes. By default known for the class counts of COCO
            (133), ADE20K (150) and Cityscapes (19); else all are.
        class_names: names indexed by label.
    """

    tasks: tuple[str, ...] = ("instance", "panoptic", "semantic")
    inside_only = True  # pixels outside of the winner's mask are void

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        decoder: MaskClassifier,
        task: Task = "instance",
        min_size: int = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        size_divisible: int = 32,
        top_k: int = 100,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        thing_classes: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self._set_classes(decoder.num_classes, class_names, thing_classes)
        self.transform = ImageTransform(
            min_size=min_size,
            max_size=max_size,
            image_mean=tuple(image_mean),
            image_std=tuple(image_std),
            size_divisible=size_divisible,
            round_sizes=True,
        )
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.task = self.known_task(task)
        self.top_k = top_k
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.eval()

    def _set_classes(
        self,
        num_classes: int,
        class_names: Sequence[str] | None,
        thing_classes: Sequence[int] | None,
    ) -> None:
        self.class_names = checked_names(class_names, num_classes)
        if thing_classes is None:
            known = by_count(num_classes)
            thing_classes = range(num_classes) if known is None else known.things
        elif not all(0 <= label < num_classes for label in thing_classes):
            raise ValueError(
                f"thing_classes must be from 0 to {num_classes - 1}, got {list(thing_classes)}"
            )
        self.thing_classes = tuple(int(label) for label in thing_classes)

    def reset_classes(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        thing_classes: Sequence[int] | None = None,
    ) -> None:
        """Makes the model one of other classes, to be trained: what tells them is random again.

        Args:
            num_classes: number of classes, without "no object".
            class_names: as of the model.
            thing_classes: as of the model.

        Raises:
            ValueError: as of the model, or there is no class.
        """
        self._set_classes(num_classes, class_names, thing_classes)
        self.decoder.num_classes = num_classes
        reset_outputs(self.decoder.class_predictor, num_classes + 1)

    def known_task(self, task: str) -> str:
        """The task itself; raises ValueError if it is none of ``tasks``."""
        if task not in self.tasks:
            raise ValueError(f"task must be one of {', '.join(self.tasks)}, got {task!r}")
        return task

    def hyper_parameters(self) -> dict[str, Any]:
        """The arguments besides the network, with which the model can be made again."""
        return {
            "task": self.task,
            **self.transform.sizes_and_colors(),
            "top_k": self.top_k,
            "object_mask_threshold": self.object_mask_threshold,
            "overlap_threshold": self.overlap_threshold,
            "thing_classes": self.thing_classes,
            "class_names": self.class_names,
        }

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalises, resizes, pads and stacks images, on the model's device in its type.

        Args:
            images: each [3, h, w] float, RGB from 0 to 1, of any size.
        """
        weight = self.decoder.class_predictor.weight
        return self.transform(images, device=weight.device, dtype=weight.dtype)

    def train(self, mode: bool = True) -> Mask2Former:
        """Sets training mode, in which batch normalisation keeps its statistics."""
        super().train(mode)
        keep_statistics(self.backbone)
        return self

    def features(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pixels [B, 3, H, W] -> features for the decoder, and mask features at stride 4."""
        stages = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        levels: tuple[list[Tensor], Tensor] = self.pixel_decoder(stages)
        return levels

    def forward(self, pixels: Tensor, sizes: Tensor) -> MaskPredictions:
        """Classes and masks of the queries.

        Args:
            pixels: [B, 3, H, W], a batch's ``pixels``; H and W are multiples of 32.
            sizes: int64 [B, 2], its ``sizes``; the network does not tell padding from image.

        Raises:
            RuntimeError: the model is in training mode; training needs ``predict_layers``.
        """
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__} is in training mode: call model.eval() before predicting, "
                "or model.predict_layers() for training"
            )
        predictions: MaskPredictions = self.decoder(*self.features(pixels))
        return predictions

    def predict_layers(self, pixels: Tensor) -> list[MaskPredictions]:
        """The predictions of the learned queries and of every layer, the last layer's last.

        For training these go to ``fastseg.losses.Mask2FormerLoss``.

        Args:
            pixels: [B, 3, H, W]; H and W are multiples of 32.
        """
        return self.decoder.predict_layers(*self.features(pixels))

    @torch.no_grad()
    def postprocess(
        self, predictions: MaskPredictions, batch: ImageBatch, task: str | None = None
    ) -> list[Instances] | list[PanopticSegmentation] | list[SemanticSegmentation]:
        """Results per image at its original size, by the rules of the original.

        Args:
            predictions: of ``batch``.
            batch: from ``preprocess``.
            task: "instance", "panoptic" or "semantic"; the model's ``task`` by default.

        Returns:
            By the task ``Instances``, best first and with empty masks among them,
            ``PanopticSegmentation`` or ``SemanticSegmentation``.

        Raises:
            ValueError: the model has no such task.
        """
        task = self.task if task is None else self.known_task(task)
        padded = (batch.pixels.shape[2], batch.pixels.shape[3])
        frames = [
            ImageFrame(padded, (height, width), original)
            for (height, width), original in zip(
                batch.sizes.tolist(), batch.original_sizes, strict=True
            )
        ]
        images = zip(predictions.class_logits, predictions.mask_logits, frames, strict=True)
        make: dict[str, Callable[..., Any]] = {
            "instance": self.instances,
            "panoptic": self.panoptic,
            "semantic": self.semantic,
        }
        return [make[task](*image) for image in images]

    def instances(self, class_logits: Tensor, mask_logits: Tensor, frame: ImageFrame) -> Instances:
        """The instances of one image: class logits [Q, K + 1], mask logits [Q, h, w]."""
        return instances_of(
            class_logits,
            mask_logits,
            frame,
            top_k=self.top_k,
            labels_kept=self.thing_classes if self.task == "panoptic" else None,
            class_names=self.class_names,
        )

    def panoptic(
        self, class_logits: Tensor, mask_logits: Tensor, frame: ImageFrame
    ) -> PanopticSegmentation:
        """The segments of one image; arguments as of ``instances``."""
        return panoptic_of(
            class_logits,
            mask_logits,
            frame,
            thing_classes=self.thing_classes,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
            inside_only=self.inside_only,
            class_names=self.class_names,
        )

    def semantic(
        self, class_logits: Tensor, mask_logits: Tensor, frame: ImageFrame
    ) -> SemanticSegmentation:
        """The class of each pixel of one image; arguments as of ``instances``.

        A model that is trained for this alone resizes the classes' scores to the original size, any
        other the masks.
        """
        return semantic_of(
            class_logits,
            mask_logits,
            frame,
            resize_scores=self.task == "semantic",
            class_names=self.class_names,
        )
