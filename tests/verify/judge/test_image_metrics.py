"""PSNR and SSIM: fixed definitions, and no silent pass without scikit-image."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from verify.judge.image_metrics import compare_images
from verify.judge.metrics import compare
from verify.judge.policy import load_policy


def picture() -> np.ndarray:
    return np.random.default_rng(0).random((32, 24, 3))


def test_psnr_has_peak_one() -> None:
    found = compare_images(picture(), picture() + 0.01)
    assert found.psnr_db == pytest.approx(40.0)
    assert found.ssim is not None
    assert 0.9 < found.ssim < 1


def test_equal_pictures_are_infinitely_near() -> None:
    found = compare_images(picture(), picture())
    assert (found.psnr_db, found.ssim) == (math.inf, 1.0)
    assert found.to_json() == {"psnr_db": "inf", "ssim": 1.0}


def test_what_is_not_finite_has_no_similarity() -> None:
    broken = picture()
    broken[3, 4, 1] = np.nan
    found = compare_images(picture(), broken)
    assert math.isnan(found.psnr_db)
    assert found.ssim is None


def test_a_gate_on_a_measure_that_is_missing_is_never_a_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from pathlib import Path

    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    found = compare_images(picture(), picture() + 0.01)
    assert found.ssim is None
    file = Path(str(tmp_path)) / "policy.toml"
    file.write_text(
        'schema = 1\nversion = "s"\n[[gate]]\nlevel = "generation"\ncomponents = ["pipeline"]\n'
        'outputs = ["image"]\nmetric = "ssim"\nat_least = 0.9\nwhy = "a test"\n'
    )
    values = compare(picture(), picture() + 0.01).to_json() | found.to_json()
    judged = load_policy(file).judge("generation", "pipeline", values, output="image", bits="16")
    assert judged.verdict == "indeterminate"
    assert "ssim was not measured" in judged.message
