"""What coremltools' own tests leave open of its operations on images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from verify.operations.resize import resize, resize_bilinear
from verify.operations.sampling import crop_resize

X = torch.arange(16.0).reshape(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("mode", "align"), [("UNALIGN_CORNERS", False), ("STRICT_ALIGN_CORNERS", True)]
)
def test_two_sampling_modes_are_pytorchs(mode: str, align: bool) -> None:
    expected = F.interpolate(X, size=(7, 3), mode="bilinear", align_corners=align)
    torch.testing.assert_close(resize_bilinear(X, 7, 3, mode), expected)


def test_one_point_is_the_middle_or_the_start() -> None:
    assert resize_bilinear(X, 1, 1, "ALIGN_CORNERS").item() == X.mean()
    assert resize_bilinear(X, 1, 1, "STRICT_ALIGN_CORNERS").item() == X[0, 0, 0, 0]


def test_a_nearest_neighbour_that_is_not_the_only_one_is_refused() -> None:
    assert resize(X, [2, 2], 2, "NEAREST_NEIGHBOR").flatten().tolist() == [0, 2, 8, 10]
    with pytest.raises(ValueError, match="not documented"):
        resize(X, [8, 8], 2, "NEAREST_NEIGHBOR")


@pytest.mark.parametrize("mode", ["HEIGHT_FIRST", "WIDTH_FIRST"])
def test_a_box_by_its_center_is_the_box_by_its_corners(mode: str) -> None:
    def cut(box: list[float], kind: str) -> torch.Tensor:
        boxes = torch.tensor([box])
        return crop_resize(X, boxes=boxes, target_height=2, target_width=3,
                           box_coordinate_mode=f"{kind}_{mode}",
                           sampling_mode="ALIGN_CORNERS")  # fmt: skip

    corners = cut([0.0, 1.0, 2.0, 2.0], "CORNERS")
    assert torch.equal(corners, cut([1.0, 1.5, 2.0, 1.0], "CENTER_SIZE"))
    first = {"HEIGHT_FIRST": [1, 1.5, 2, 9, 9.5, 10], "WIDTH_FIRST": [4, 5, 6, 8, 9, 10]}
    assert corners.flatten().tolist() == first[mode]


def test_a_box_beyond_the_image_is_padded_or_refused() -> None:
    boxes = torch.tensor([[2.0, 2.0, 5.0, 3.0]])
    options = {"target_height": 2, "target_width": 2, "pad_value": -1.0}
    cut = crop_resize(X, boxes=boxes, sampling_mode="ALIGN_CORNERS", **options)
    assert cut.flatten().tolist() == [10, 11, -1, -1]
    with pytest.raises(ValueError, match="not documented"):
        crop_resize(X, boxes=boxes, sampling_mode="UNALIGN_CORNERS", **options)
