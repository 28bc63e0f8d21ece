"""MIL ops that take parts of images, or their values between pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op
from verify.operations.resize import grid_points


@op("crop", kind="move")
def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    """x [*D, H, W] without (before, after) rows of its height and columns of its width.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`.
    """
    for axis, (before, after) in ((-2, crop_height), (-1, crop_width)):
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


@op("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes of x [B, C, H, W] in one size, between four neighbours; beyond x it is `pad_value`.

    iOS15: roi [N, 1, 4, 1, 1], of every image, or [N, 1, 5, 1, 1] with the image's number before
    -> [N, B or 1, C, *target]. iOS17: boxes [N, 4] and box_indices [N] -> [N, C, *target].

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/image_resizing.py`.
    """
    height, width = x.shape[-2:]
    if roi is not None:
        rows = roi.reshape(len(roi), -1)
        images = [[int(r[0])] if len(r) == 5 else list(range(len(x))) for r in rows]
        corners = rows[:, -4:]
    else:
        assert boxes is not None
        order = range(len(boxes)) if box_indices is None else box_indices.tolist()
        images, corners = [[int(i)] for i in order], boxes
    results = []
    sizes = ((height, target_height), (width, target_width))
    for box, chosen in zip(corners.tolist(), images, strict=True):
        points = []
        sides = _sides(box, box_coordinate_mode)
        for (start, end), (size, count) in zip(sides, sizes, strict=True):
            scale = spatial_scale * (size - 1 if normalized_coordinates else 1)
            points.append(_side_points(start * scale, end * scale, size, count, sampling_mode))
        ys, xs = torch.meshgrid(*(p.to(x.device) for p in points), indexing="ij")
        inside = (ys >= 0) & (ys <= height - 1) & (xs >= 0) & (xs <= width - 1)
        batch = (len(chosen), *ys.shape)
        sampled = _sampled(x[chosen], ys.expand(batch), xs.expand(batch), "border", 0.0, False)
        results.append(sampled.masked_fill_(~inside, pad_value))
    return torch.stack(results) if roi is not None else torch.cat(results)


def _sides(box: list[float], mode: str) -> list[tuple[float, float]]:
    """(start, end) of a box's height and width."""
    first, second, third, fourth = box
    if mode.startswith("CENTER_SIZE"):
        pairs = [
            (center - size / 2, center + size / 2)
            for center, size in ((first, third), (second, fourth))
        ]
    elif mode.startswith("CORNERS"):
        pairs = [(first, third), (second, fourth)]
    else:
        raise ValueError(f"unknown box_coordinate_mode {mode!r}")
    return pairs if mode.endswith("HEIGHT_FIRST") else pairs[::-1]


def _side_points(start: float, end: float, size: int, count: int, mode: str) -> Tensor:
    if mode == "UNALIGN_CORNERS" and not 0 <= min(start, end) <= max(start, end) <= size - 1:
        raise ValueError("what UNALIGN_CORNERS makes of a box beyond the image is not documented")
    points = torch.tensor(grid_points(abs(end - start), count, mode), dtype=torch.float64)
    return start + points if end >= start else start - points


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at coordinates [B, H', W', 2], of which x comes first -> [B, C, H', W'].

    Source: coremltools `ops/defs/{iOS15,iOS16,iOS17}/image_resizing.py`.
    """
    if sampling_mode not in ("bilinear", "nearest"):
        raise ValueError(f"unknown sampling mode {sampling_mode!r}")
    places = []
    for axis, size in enumerate((x.shape[-1], x.shape[-2])):
        at = coordinates[..., axis].double()
        if coordinates_mode != "unnormalized":
            if coordinates_mode == "normalized_minus_one_to_one":
                at = (at + 1) / 2
            elif coordinates_mode != "normalized_zero_to_one":
                raise ValueError(f"unknown coordinates mode {coordinates_mode!r}")
            at = at * (size - 1) if align_corners else at * size - 0.5
        places.append(at)
    return _sampled(
        x, places[1], places[0], padding_mode, padding_value, sampling_mode == "nearest"
    )


@op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at each place of the output after a transform [B or 1, 6], rows of 2 × 3.

    Places go from -1 to 1, with the centers of the first and the last pixel there.

    Source: coremltools `ops/defs/iOS15/image_resizing.py`.
    """
    if coordinates_mode != "normalized_minus_one_to_one" or not align_corners:
        raise ValueError(f"unknown coordinates {coordinates_mode!r}, align_corners {align_corners}")
    theta = transform_matrix.reshape(-1, 2, 3).expand(len(x), -1, -1)
    size = [len(x), x.shape[1], output_height, output_width]
    grid = F.affine_grid(theta, size, align_corners=True)
    return resample(
        x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners
    )


def _sampled(
    x: Tensor, ys: Tensor, xs: Tensor, padding: str, value: float, nearest: bool
) -> Tensor:
    """x [B, C, H, W] at ys and xs [B, *P], in pixels -> [B, C, *P]."""
    if nearest:
        # Half way it is the next one, as coremltools' tests have it.
        return _pixels(x, (ys + 0.5).floor().long(), (xs + 0.5).floor().long(), padding, value)
    top, left = ys.floor().long(), xs.floor().long()
    down, right = (ys - top).unsqueeze(1).to(x.dtype), (xs - left).unsqueeze(1).to(x.dtype)

    def row(at: Tensor) -> Tensor:
        first = _pixels(x, at, left, padding, value)
        return torch.lerp(first, _pixels(x, at, left + 1, padding, value), right)

    return torch.lerp(row(top), row(top + 1), down)


def _pixels(x: Tensor, ys: Tensor, xs: Tensor, padding: str, value: float) -> Tensor:
    """x [B, C, H, W] at whole ys and xs [B, *P], padded without end -> [B, C, *P]."""
    height, width = x.shape[-2:]
    rows, columns = _folded(ys, height, padding), _folded(xs, width, padding)
    index = (rows * width + columns).flatten(1).unsqueeze(1)
    found = x.flatten(2).take_along_dim(index, 2).reshape(*x.shape[:2], *ys.shape[1:])
    if padding != "constant":
        return found
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    return torch.where(inside.unsqueeze(1), found, value)


def _folded(index: Tensor, size: int, padding: str) -> Tensor:
    """Which pixel stands at an index beyond the image."""
    if padding in ("constant", "border"):
        return index.clamp(0, size - 1)
    if padding == "reflection":
        index = index.remainder(max(2 * size - 2, 1))
        return torch.minimum(index, 2 * size - 2 - index).clamp_min_(0)
    if padding == "symmetric":
        index = index.remainder(2 * size)
        return torch.minimum(index, 2 * size - 1 - index)
    raise ValueError(f"unknown padding mode {padding!r}")
