"""A pytest plugin: where coremltools' tests would ask Core ML, we answer."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance import cases, controls, judge
from tests.conformance.report import Kept


class Conformance:
    """Chooses the tests, answers them, and keeps what became of each.

    Args:
        count: how many tests are run.
        seed: which ones.
        part: of how many `parts` this process runs which.
    """

    def __init__(self, count: int, seed: int, part: int, parts: int) -> None:
        self.count, self.seed, self.part, self.parts = count, seed, part, parts
        self.kept = Kept()
        self._outcomes: list[judge.Outcome] = []
        self._is_rough = False
        self._compares = False  # whether the test itself looks at what was predicted

    def pytest_configure(self) -> None:
        import coremltools as ct
        from coremltools.converters.mil.mil.ops.tests import testing_utils

        torch.set_num_threads(1)
        testing_utils.compare_backend = self._compare
        ct.models.MLModel.predict = lambda model, data, state=None: self._predict(model, data)
        ct.models.MLModel.make_state = lambda model: object()
        # Tests that older systems fail are left out by this.
        ct.models.utils._macos_version = lambda: (26, 0)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.kept.collected = len(items)
        items[:] = cases.sample(items, self.count, self.seed)[self.part :: self.parts]

    def pytest_collection_finish(self) -> None:
        # Each conversion ends with a collection of garbage, which would go through all tests.
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        # Tests draw their values; which ones must not follow from what ran before.
        seed = int.from_bytes(hashlib.sha256(item.nodeid.encode()).digest()[:4])
        np.random.seed(seed)
        torch.manual_seed(seed)
        self._outcomes, self._compares = [], False
        self._is_rough = any(name in item.nodeid for name in cases.ROUGH)
        try:
            yield
            for outcome in self._outcomes:
                if outcome.verdict in ("wrong", "refused"):  # and the test wants it to be
                    outcome.verdict = "right"
        except AssertionError as error:
            if self._compares and all(o.verdict == "right" for o in self._outcomes):
                self._outcomes.append(judge.Outcome("wrong", str(error)))
            raise
        finally:
            facts = [outcome.facts() for outcome in self._outcomes]
            item.user_properties.append(("programs", facts))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.kept.tests.setdefault(
                report.nodeid,
                {
                    "outcome": report.outcome,
                    "text": report.longreprtext[-1000:],
                    "programs": dict(report.user_properties).get("programs", []),
                },
            )

    def _compare(
        self,
        mlmodel: Any,
        input_key_values: Mapping[str, Any],
        expected_outputs: Mapping[str, Any] | None,
        dtype: str = "fp32",
        atol: float = 1e-4,
        rtol: float = 1e-5,
        also_compare_shapes: bool = True,
        state: object = None,
    ) -> None:
        """In place of coremltools' `compare_backend`."""
        if not expected_outputs:
            self._outcomes.append(judge.Outcome("silent", "nothing is expected"))
            return
        expected = judge.Expected(
            expected_outputs, atol, rtol, half=dtype == "fp16" or self._is_rough
        )
        self._judged(mlmodel, input_key_values, expected)

    def _predict(self, model: Any, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """In place of `MLModel.predict`, for tests that compare by themselves."""
        self._compares = True
        outcome = self._judged(model, data, None)
        return {name: value.numpy() for name, value in outcome.outputs.items()}

    def _judged(
        self, model: Any, inputs: Mapping[str, Any], expected: judge.Expected | None
    ) -> judge.Outcome:
        if model.package_path is None:
            pytest.skip("a neural network, no ML Program")
        package = Path(model.package_path)
        arrays = {name: _array(value) for name, value in inputs.items()}
        outcome = judge.judge(package, arrays, expected)
        self._outcomes.append(outcome)
        if outcome.verdict != "right":
            raise NotPredicted(outcome.message)
        for fault in controls.FAULTS:
            planted = self.kept.planted.setdefault(fault.name, [])
            if expected and fault.op in outcome.ops and len(planted) < controls.PLANTED:
                with fault.plant():
                    again = judge.judge(package, arrays, expected)
                planted.append(again.verdict in ("wrong", "silent"))
        return outcome


class NotPredicted(RuntimeError, AssertionError):
    """What coremltools' tests expect of Core ML where it must not come to a result, or to this."""

    def __init__(self, message: str) -> None:
        super().__init__(f"Unable to compute the prediction using ML Program. Not equal: {message}")


def _array(value: Any) -> np.ndarray:
    """An input as coremltools hands it to Core ML: in float32, and never without an axis."""
    array = np.asarray(value, np.float32)
    return array if array.shape else array.reshape(1)
