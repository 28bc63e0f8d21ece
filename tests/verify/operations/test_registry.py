"""Every operation that MIL has is run, or refused with the reason; README says the same."""

from __future__ import annotations

import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

import verify.operations  # noqa: F401  fills the registry
from convert.errors import CannotExecute
from tests.conformance.report import listed
from tests.support.programs import one_op
from verify.operations.registry import OPS, REFUSED, bind

CONSTANTS = {"const", "_const_symbolic"}
PACKAGES_ONLY = {"write_state"}  # what packages have instead of `coreml_update_state`


def test_every_operation_of_mil_is_run_or_refused() -> None:
    assert not OPS.keys() & REFUSED.keys()
    operations = (SSAOpRegistry.core_ops.keys() - CONSTANTS) | PACKAGES_ONLY
    assert operations == OPS.keys() | REFUSED.keys()


def test_readme_lists_what_is_refused() -> None:
    assert listed() >= REFUSED.keys()
    assert listed() - REFUSED.keys() == {"crop_resize", "resize", "fill"}  # what is so in part


@pytest.mark.parametrize("op", sorted(REFUSED))
def test_a_refusal_names_the_operation_and_says_why(op: str) -> None:
    program = one_op(op)
    with pytest.raises(CannotExecute, match=f"no implementation of {op} .* it {REFUSED[op]}"):
        bind(program.ops[0], program)
