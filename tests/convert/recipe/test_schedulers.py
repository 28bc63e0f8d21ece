"""The table of schedulers: every name that a recipe may have is in it, with all that is asked."""

from __future__ import annotations

from typing import get_args

import diffusers
import pytest

from convert.errors import InputError
from convert.recipe.schedulers import SCHEDULERS, Scheduler, require_scheduler, title


def test_every_name_has_a_row_of_its_own() -> None:
    assert list(SCHEDULERS) == sorted(get_args(Scheduler))
    assert len({found.title for found in SCHEDULERS.values()}) == len(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers_has_the_class_and_its_settings(name: Scheduler) -> None:
    found = SCHEDULERS[name]
    made = getattr(diffusers, found.name)(**found.settings)
    assert {key: made.config[key] for key in found.settings} == found.settings


def test_what_people_call_one_and_the_name_of_a_stranger() -> None:
    assert title("dpmpp_2m_sde_karras") == "DPM++ 2M SDE Karras"
    assert title("EDMEulerScheduler") == "EDMEulerScheduler"
    with pytest.raises(InputError, match="unknown scheduler `eulr`"):
        require_scheduler("eulr")
