"""MIL's non-maximum suppression of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from verify.operations.registry import op


@op("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """The best boxes, none of which overlaps a better one, of the same class where that counts.

    iOS15, with a score threshold: boxes [N, B, 4] of center and size, x first, scores [N, B, K] ->
    boxes [N, M, 4], scores [N, M, K], indices [N, M], how many [N]; what is not used is 0, indices
    -1. The best box stays whatever its score. iOS17, without: [N, 4, B] and [N, K, B] -> the same
    way round, without how many.

    Source: coremltools `ops/defs/{iOS15,iOS17}/tensor_operation.py`, and its tests' reference.
    """
    is_new = score_threshold is None
    least = -torch.inf if score_threshold is None else score_threshold
    if is_new:
        boxes, scores = boxes.mT, scores.mT
    batch, _, classes = scores.shape
    kept_boxes, kept_scores = (
        boxes.new_zeros(batch, max_boxes, 4),
        scores.new_zeros(batch, max_boxes, classes),
    )
    indices = torch.full((batch, max_boxes), -1)
    counts = torch.zeros(batch, dtype=torch.int64)
    for n in range(batch):
        best, which = scores[n].max(-1)
        overlaps = _intersections_over_unions(boxes[n]) > iou_threshold
        if per_class_suppression:
            overlaps &= which[:, None] == which
        order = best.argsort(descending=True, stable=True)
        chosen: list[int] = []
        for index in order.tolist():
            if len(chosen) == max_boxes or best[index] <= least:
                break
            if not overlaps[index, chosen].any():
                chosen.append(index)
        chosen = chosen or order[:1].tolist()
        counts[n] = count = len(chosen)
        indices[n, :count] = torch.tensor(chosen)
        kept_boxes[n, :count], kept_scores[n, :count] = boxes[n, chosen], scores[n, chosen]
    if is_new:
        return kept_boxes.mT, kept_scores.mT, indices
    return kept_boxes, kept_scores, indices, counts


def _intersections_over_unions(boxes: Tensor) -> Tensor:
    """boxes [B, 4] of center and size -> [B, B]; 0 where there is no area."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    sides = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    intersection = sides.clamp_min_(0).prod(-1)
    area = boxes[:, 2:].prod(-1)
    return (intersection / (area[:, None] + area - intersection)).nan_to_num_(0.0)
