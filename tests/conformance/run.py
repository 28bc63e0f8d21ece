"""A share of coremltools' tests, in the process that calls."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.conformance import cases
from tests.conformance.report import Kept


def run(part: tuple[int, int, int, int]) -> Kept:
    """Run a share of the tests, as `Conformance` takes it; this process is changed for good."""
    os.environ.update(cases.ENVIRONMENT)

    from tests.conformance.plugin import Conformance

    root = cases.folder()
    plugin = Conformance(*part)
    arguments = ["-q", "-rN", "--tb=no", "--disable-warnings", "--rootdir", str(root)]
    folders = [str(root / name) for name in cases.OPSETS]
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(sys.stdout if not part[2] else nowhere),
    ):
        pytest.main([*arguments, "-p", "no:cacheprovider", *folders], plugins=[plugin])
    return plugin.kept
