"""Average precision of tracks in videos, as YouTube-VIS defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastseg.evaluation.average_precision import (
    IOU_THRESHOLDS,
    VIDEO_RANGES,
    Task,
    detection_summary,
    with_details,
)
from fastseg.evaluation.coco_dataset import COCO
from fastseg.evaluation.columns import Columns
from fastseg.evaluation.detections import DetectionEvaluator


class YouTubeVISEvaluator(DetectionEvaluator):
    """Track AP (Yang et al., "Video Instance Segmentation", ICCV 2019).

    A track has a mask, or none, in each frame. The IoU of two tracks is the sum of the
    intersections of all frames over the sum of their unions; all else is COCO's AP, with areas per
    frame of up to 128^2 for small tracks and more than 256^2 for large ones, over the frames in
    which the track is seen. Crowd tracks need not be found.

    Args:
        ground_truth: annotation file of `videos`, `categories` and `annotations` with
            `segmentations` and `areas`, a list of one per frame; or its contents, or a `COCO`.
        max_dets: limits of tracks per video and category, the best scores first.

    Raises:
        ValueError: an argument or annotation is malformed; the message names it.
    """

    def __init__(
        self,
        ground_truth: COCO | str | Path | Mapping[str, Any],
        max_dets: Sequence[int] = (1, 10, 100),
    ) -> None:
        self.max_dets = sorted(int(limit) for limit in max_dets)
        if not self.max_dets or self.max_dets[0] < 1:
            raise ValueError(f"max_dets must be positive integers, got {max_dets!r}")
        super().__init__(ground_truth, ("segm",), ("segm",))

    def update(self, results: Any) -> None:
        """Adds results of some videos, each video in one call.

        Args:
            results: path of a results file, or a list of dicts with `video_id`, `category_id`,
                `score` and `segmentations`, a run-length mask or None for each frame.

        Raises:
            ValueError: a result is malformed, lacks what is needed, or is of a video that the
                ground truth lacks; the message names the result and its video.
        """
        if isinstance(results, Mapping):
            raise TypeError("results of videos must be a path or a list of dicts, got a mapping")
        super().update(results)

    def _check(self, columns: Columns, of_truth: bool) -> None:
        super()._check(columns, of_truth)
        dataset = self.ground_truth
        lengths = np.array([_length_of(dataset.imgs[one]) for one in dataset.image_places])
        places = dataset.positions(columns.image_ids)
        if len(lengths) == 0:
            return
        expected = np.where(places >= 0, lengths[places], -1)
        counts = columns.mask_counts()
        wrong = (expected >= 0) & (counts != expected)
        if wrong.any():
            n = int(wrong.argmax())
            raise ValueError(
                f"{self._name_of(columns, of_truth, n)} has {counts[n]} segmentations, "
                f"its video {expected[n]} frames"
            )

    def compute(self, per_category: bool = False, curves: bool = False) -> dict[str, Any]:
        """The metrics of all results so far.

        Args:
            per_category: add `per_category`, {category id: AP}.
            curves: add `curves`, a `Curves` of precision, recall and scores.

        Returns:
            `{"segm": ...}`, a dict of AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 (named by
            `max_dets`), ARs, ARm, ARl from 0 to 1; -1 where there is nothing to be found.
        """
        detections, truths = self._merged(), self.ground_truth.columns
        nothing = np.zeros(len(detections), np.uint8)
        task = Task(
            self._side(detections, nothing, nothing),
            self._side(truths, truths.crowds, np.zeros_like(truths.crowds)),
            self.ground_truth.image_sizes,
            len(self.ground_truth.category_ids),
            {"segm": None},
            self.max_dets,
            lambda of_truth, n: self._name_of(truths if of_truth else detections, of_truth, n),
            ranges=VIDEO_RANGES,
        )
        found = task.run()["segm"]
        summary = detection_summary(found, IOU_THRESHOLDS, self.max_dets)
        ids = self.ground_truth.category_ids
        return {"segm": with_details(summary, found, ids, per_category, curves)}


def _length_of(video: Mapping[str, Any]) -> int:
    """Frames of a video, -1 if it does not say."""
    return int(video.get("length") or len(video.get("file_names", ())) or -1)
