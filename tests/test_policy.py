"""The policy: read strictly, judged from metrics alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.errors import InputError
from verify.checks import Results
from verify.metrics import compare
from verify.policy import load_policy

pytestmark = pytest.mark.usefixtures("one_thread")


GATE = '[[gate]]\nlevel = "conversion"\ncomponents = ["unet"]\nmetric = "snr_db"\n'


def test_another_policy_judges_the_same_results(good: Results, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(f'schema = 1\nversion = "strict"\n{GATE}at_least = 200\nwhy = "a test"\n')
    policy = load_policy(file)
    check = next(c for c in good.checks if c.component == "unet" and c.metrics)
    assert check.metrics is not None
    judged = policy.judge("conversion", "unet", check.metrics)
    assert (judged.verdict, judged.gate) == ("fail", "snr_db >= 200")
    assert load_policy().judge("conversion", "unet", check.metrics).verdict == "pass"
    with pytest.raises(InputError, match="no gate"):
        policy.judge("conversion", "vae_decoder", check.metrics)


def test_an_error_three_times_that_of_pytorch_float16_fails() -> None:
    reference = np.ones(100)
    ours = compare(reference, reference + 4e-4)
    judged = load_policy().judge("conversion", "unet", ours, 4.0)
    assert judged.verdict == "fail"
    assert "fp16_error_ratio is 4" in judged.message
    assert load_policy().judge("conversion", "unet", ours).verdict == "pass"


@pytest.mark.parametrize(
    "text",
    [
        "schema = 2\n",
        'schema = 1\nversion = "1"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_least = 1\n',
        f'schema = 1\nversion = "1"\n{GATE}why = "x"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_least = 1\nat_most = 2\nwhy = "x"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_least = nan\nwhy = "x"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_leats = 1\nwhy = "x"\n',
        'schema = 1\nversion = "1"\n'
        + GATE.replace("snr_db", "psnr")
        + 'at_least = 1\nwhy = "x"\n',
        "schema = ",
    ],
)
def test_a_policy_is_read_strictly(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError):
        load_policy(tmp_path / "policy.toml")
