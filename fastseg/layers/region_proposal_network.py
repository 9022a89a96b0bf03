"""Region proposal network (Ren et al., Faster R-CNN, 2015, section 3.1) on a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastseg import ops
from fastseg.layers.anchors import AnchorGenerator
from fastseg.layers.batch_norm import ConvNorm
from fastseg.layers.box_coder import clip_boxes, decode_boxes, has_sides
from fastseg.layers.conventions import TORCHVISION, Conventions
from fastseg.layers.initial_weights import initialise_convolutions, narrow_normal
from fastseg.layers.padded import take_rows

# The network predicts plain offsets.
OFFSET_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
FINEST_STRIDE = 4


@dataclass(frozen=True)
class Proposals:
    """Proposed boxes of a batch of images, best first.

    Attributes:
        boxes: float32 [B, N, 4], pixels of the padded image; zeros behind the last proposal.
        counts: int64 [B], number of proposals per image.
    """

    boxes: Tensor
    counts: Tensor


@dataclass(frozen=True)
class LevelPredictions:
    """What the network says of all anchors of one level, in the order (y, x, anchor).

    Attributes:
        logits: float32 [B, N], scores.
        deltas: float32 [B, N, 4], box offsets.
        grid_width: width of the level's feature map.
        stride: (vertical, horizontal) distance in pixels between positions.
    """

    logits: Tensor
    deltas: Tensor
    grid_width: int
    stride: tuple[int, int]


class RPNHead(nn.Module):
    """3x3 convolutions, then one 1x1 convolution for the score and one for the box offsets.

    Args:
        in_channels: channels of the pyramid.
        num_anchors: anchors per position.
        conv_depth: number of 3x3 convolutions.
    """

    def __init__(self, *, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(
                ConvNorm(
                    in_channels=in_channels, out_channels=in_channels, kernel_size=3, relu=True
                )
                for _ in range(conv_depth)
            )
        )
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(in_channels, 4 * num_anchors, kernel_size=1)
        initialise_convolutions(self, narrow_normal)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and offsets of one level, in the order (y, x, anchor).

        Args:
            level: [B, C, H, W].

        Returns:
            logits [B, H * W * A] and offsets [B, H * W * A, 4], float32.
        """
        x = self.conv(level)
        logits = self.cls_logits(x).permute(0, 2, 3, 1).flatten(1)
        deltas = self.bbox_pred(x).permute(0, 2, 3, 1).reshape(*logits.shape, 4)
        return logits.float(), deltas.float()


class RegionProposalNetwork(nn.Module):
    """Proposes boxes: the best anchors of each level, refined, after NMS within each level.

    Args:
        head: predicts scores and offsets of a level.
        anchors: the anchors of all levels.
        pre_nms_top_n: candidates per level.
        post_nms_top_n: proposals per image.
        nms_thresh: IoU above which the lower-scored candidate of a level is dropped.
        score_thresh: least score, a probability.
        conventions: the rules in which the libraries differ.
    """

    def __init__(
        self,
        *,
        head: RPNHead,
        anchors: AnchorGenerator,
        pre_nms_top_n: int = 1000,
        post_nms_top_n: int = 1000,
        nms_thresh: float = 0.7,
        score_thresh: float = 0.0,
        conventions: Conventions = TORCHVISION,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchors = anchors
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh
        self.conventions = conventions

    def forward(
        self, pyramid: list[Tensor], sizes: Tensor, padded_size: tuple[int, int]
    ) -> Proposals:
        """Proposes boxes.

        Args:
            pyramid: P2..P6, each [B, C, H_l, W_l].
            sizes: int64 [B, 2], (height, width) of each image without padding.
            padded_size: (height, width) of the batch.

        Returns:
            At most ``post_nms_top_n`` proposals per image, clipped to the image.
        """
        return self.propose(
            self.predict(pyramid, padded_size),
            sizes,
            pre_nms_top_n=self.pre_nms_top_n,
            post_nms_top_n=self.post_nms_top_n,
        )

    def predict(
        self, pyramid: list[Tensor], padded_size: tuple[int, int]
    ) -> list[LevelPredictions]:
        """Scores and offsets of all anchors, per level.

        Args:
            pyramid: P2..P6, each [B, C, H_l, W_l].
            padded_size: (height, width) of the batch.
        """
        if len(pyramid) != self.anchors.num_levels:
            raise ValueError(
                f"the pyramid has {len(pyramid)} levels, the anchors {self.anchors.num_levels}"
            )
        levels = []
        for i, features in enumerate(pyramid):
            logits, deltas = self.head(features)
            height, width = features.shape[-2:]
            if self.conventions.fixed_strides:
                stride = (FINEST_STRIDE << i, FINEST_STRIDE << i)
            else:
                # Rounded down, so that P6 of an odd-sized P5 has a stride below 64.
                stride = (padded_size[0] // height, padded_size[1] // width)
            levels.append(LevelPredictions(logits, deltas, width, stride))
        return levels

    def all_anchors(self, levels: Sequence[LevelPredictions]) -> Tensor:
        """The anchors that predictions are about, level by level: float32 [N, 4]."""
        anchors = []
        for i, level in enumerate(levels):
            index = torch.arange(level.logits.shape[1], device=level.logits.device)
            anchors.append(self.anchors(i, index, level.grid_width, level.stride))
        return torch.cat(anchors)

    def propose(
        self,
        levels: Sequence[LevelPredictions],
        sizes: Tensor,
        *,
        pre_nms_top_n: int,
        post_nms_top_n: int,
    ) -> Proposals:
        """Proposes boxes.

        Args:
            levels: predictions of all levels.
            sizes: int64 [B, 2], (height, width) of each image without padding.
            pre_nms_top_n: candidates per level.
            post_nms_top_n: proposals per image.

        Returns:
            At most ``post_nms_top_n`` proposals per image, clipped to the image.
        """
        candidates = [self.best_of_level(i, level, pre_nms_top_n) for i, level in enumerate(levels)]
        boxes = torch.cat([boxes for boxes, _ in candidates], dim=1)  # [B, N, 4]
        logits = torch.cat([logits for _, logits in candidates], dim=1)  # [B, N]
        level_of = torch.cat(
            [
                torch.full_like(logits, i, dtype=torch.int64)
                for i, (_, logits) in enumerate(candidates)
            ],
            dim=1,
        )

        boxes = clip_boxes(boxes, sizes)
        scores = logits.sigmoid()
        min_size = self.conventions.min_proposal_size
        valid = has_sides(boxes, min_size) & (scores >= self.score_thresh)
        ranks = logits if self.conventions.rank_by_logits else scores
        scores = ranks.masked_fill(~valid, -torch.inf)
        index, counts = ops.batched_nms(
            boxes,
            scores,
            level_of,
            self.nms_thresh,
            max_output=min(post_nms_top_n, scores.shape[1]),
        )
        return Proposals(boxes=take_rows(boxes, index), counts=counts)

    def best_of_level(
        self, level: int, predictions: LevelPredictions, top_n: int
    ) -> tuple[Tensor, Tensor]:
        """The highest-scored anchors of one level, refined.

        Args:
            level: index of the level.
            predictions: its predictions.
            top_n: most anchors.

        Returns:
            boxes [B, k, 4] in pixels and their logits [B, k], best first.
        """
        num_anchors = predictions.logits.shape[1]
        logits, index = predictions.logits.topk(min(top_n, num_anchors), dim=1)
        deltas = predictions.deltas.gather(1, index[..., None].expand(-1, -1, 4))
        anchors = self.anchors(level, index, predictions.grid_width, predictions.stride)
        boxes = decode_boxes(
            deltas,
            anchors,
            OFFSET_WEIGHTS,
            limit_shrinking=self.conventions.limit_shrinking,
        )
        return boxes, logits
