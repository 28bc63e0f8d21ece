"""coremltools' own tests of MIL's operations: where they are, how they are set up, a fair sample.

They come with its wheel (`converters/mil/mil/ops/tests`): small programs with expected outputs,
whose prediction is skipped wherever there is no Core ML.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

OPSETS = ("iOS14", "iOS15", "iOS16", "iOS17", "iOS18")  # the folders; each runs up to iOS 18
ENVIRONMENT = {  # what coremltools' `testing_reqs` reads when the tests are collected
    "PYMIL_TEST_TARGETS": "mlprogram",
    "INCLUDE_MIL_FP32_UNIT_TESTS": "1",
    "RUN_BACKWARD_COMPATIBILITY": "1",
}
# Tests whose expected values hold no better than float16, whatever precision is asked for.
ROUGH = {
    "TestNormalizationLocalResponseNorm::test_builder_to_backend_smoke": "neighbours are left out",
    "TestCropResize::test_builder_to_backend_ios16": "7.899 is written for 7.9",
    "TestCropResize::test_builder_to_backend_ios17": "7.899 is written for 7.9",
}


def folder() -> Path:
    """The folder of the tests, without importing coremltools."""
    spec = find_spec("coremltools")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "converters/mil/mil/ops/tests"


def sample(items: Sequence[pytest.Item], count: int, seed: int) -> list[pytest.Item]:
    """`count` of the tests: one of each kind in turn, until there are enough.

    A kind is a test function with its parameters that are words (the op, its mode, how it pads)
    and the precision. Which of a kind comes first follows from the seed.
    """
    kinds: dict[tuple[object, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        parameters = getattr(item, "callspec", None)
        values = parameters.params if parameters else {}
        words = [(k, v) for k, v in sorted(values.items()) if isinstance(v, str)]
        precision = getattr(values.get("backend"), "precision", None)
        kinds[(item.nodeid.partition("[")[0], precision, *words)].append(item)
    generator = random.Random(seed)
    shuffled = [generator.sample(kind, len(kind)) for kind in kinds.values()]
    generator.shuffle(shuffled)
    ordered = [
        kind[turn]
        for turn in range(max(map(len, shuffled)))
        for kind in shuffled
        if turn < len(kind)
    ]
    return ordered[:count]
