"""The policy: read strictly, judged from metrics alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.components import COMPONENTS
from convert.errors import InputError
from tests.support.packages import json_of
from verify.judge.checks import Results
from verify.judge.gates import Gate, Judgement, judge, parse_gates
from verify.judge.metrics import compare
from verify.judge.policy import Policy, load_policy

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


RULES = '[[tolerance]]\nlevels = ["conversion"]\nmetric = "snr_db"\nwhy = "a test"\n'
JUDGED = "text_encoder, text_encoder_2, unet, vae_decoder, vae_encoder"
REFUSALS = {
    "schema": ("schema = 2", "`schema` is 2; this tool reads 1"),
    "no gate": ("", "gate: there is none; write [[gate]] once for each"),
    "single brackets": (
        GATE.replace("[[gate]]", "[gate]"), "gate: must be written [[gate]], once for each"
    ),
    "no reason": (f"{GATE}at_least = 1", "gate[0].why: missing; for example why = \"At 28 dB"),
    "a blank reason": (
        f"{GATE}at_least = 1\nwhy = \" \"", "gate[0].why: must say where the number comes from"
    ),
    "no bound": (f"{GATE}why = \"x\"", "gate[0]: needs exactly one of at_least and at_most"),
    "nan": (
        f"{GATE}at_least = nan\nwhy = \"x\"", "gate[0].at_least: must be a finite number, not nan"
    ),
    "no float": (
        f"{GATE}at_least = 1{'0' * 400}\nwhy = \"x\"", "gate[0].at_least: must be "
    ),
    "a mistyped key": (
        f"{GATE}at_leats = 1\nwhy = \"x\"",
        "gate[0].at_leats: unknown key; did you mean `at_least`?",
    ),
    "a mistyped metric": (
        GATE.replace("snr_db", "sn_rdb") + "at_least = 1\nwhy = \"x\"",
        "p99_abs, fp16_error_ratio, psnr_db, ssim; did you mean `snr_db`?",
    ),
    "a mistyped component": (
        GATE.replace("unet", "vae-decoder") + "at_least = 1\nwhy = \"x\"",
        f"components[0]: \"vae-decoder\" is not one of {JUDGED}; did you mean `vae_decoder`?",
    ),
    "a bound of the other kind": (
        f"{RULES}max_factor = 1.5", "tolerance[0]: `snr_db` needs max_drop"
    ),
    "a bound that tolerates nothing": (
        RULES.replace("snr_db", "nrmse") + "max_factor = 0.5",
        "tolerance[0].max_factor: must be at least 1.0, not 0.5",
    ),
    "several": (
        f"{GATE}at_least = true\nwhy = 1",
        "2 errors\n  gate[0].at_least: must be a number, not the boolean true\n  gate[0].why: must",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_wrong_with_a_policy_is_told_with_its_place(
    text: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "policy.toml"
    valid = f'{GATE}at_least = 1\nwhy = "x"\n' if "[[tolerance]]" in text else ""
    file.write_text(text if "schema" in text else f'schema = 1\nversion = "1"\n{valid}{text}\n')
    with pytest.raises(InputError) as refused:
        load_policy(file)
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(file))


def test_a_gate_without_components_is_on_all_that_no_other_on_its_measure_names(
    tmp_path: Path,
) -> None:
    file = tmp_path / "policy.toml"
    rest = GATE.replace('components = ["unet"]\n', "")
    gates = (GATE, rest, rest.replace("snr_db", "cosine"))
    text = "".join(f'{gate}at_least = {n}\nwhy = "x"\n' for n, gate in enumerate(gates))
    file.write_text(f'schema = 1\nversion = "1"\n{text}')
    found = [gate.components for gate in load_policy(file).gates]
    assert found == [("unet",), tuple(c for c in COMPONENTS if c != "unet"), tuple(COMPONENTS)]


def test_the_built_in_policy_asks_a_signal_to_noise_ratio_of_every_component() -> None:
    gates = [g for g in load_policy().gates if (g.level, g.metric) == ("conversion", "snr_db")]
    assert sorted(name for gate in gates for name in gate.components) == sorted(COMPONENTS)


GENERATION = """schema = 1
version = "test"

[[gate]]
level = "generation"
components = ["pipeline"]
outputs = ["latents"]
bits = ["16"]
metric = "cosine"
at_least = 0.99
why = "a test"

[[gate]]
level = "generation"
components = ["pipeline"]
outputs = ["image"]
metric = "ssim"
at_least = 0.9
why = "a test"
"""


@pytest.fixture
def generation(tmp_path: Path) -> Policy:
    (tmp_path / "policy.toml").write_text(GENERATION)
    return load_policy(tmp_path / "policy.toml")


def test_a_gate_is_on_the_outputs_it_names(generation: Policy) -> None:
    metrics = {"finite": True, "cosine": 0.98, "ssim": 0.95}
    latents = generation.judge("generation", "pipeline", metrics, output="latents", bits="16")
    image = generation.judge("generation", "pipeline", metrics, output="image", bits="16")
    assert (latents.gate, latents.verdict) == ("cosine >= 0.99", "fail")
    assert (image.gate, image.verdict) == ("ssim >= 0.9", "pass")


def test_a_gate_for_other_bits_leaves_finite_and_nothing_more(generation: Policy) -> None:
    def judge(finite: bool, bits: str | None) -> Judgement:
        metrics = {"finite": finite, "cosine": 0.5}
        return generation.judge("generation", "pipeline", metrics, output="latents", bits=bits)

    assert judge(True, "6") == Judgement("finite", "pass", "")
    assert judge(False, "6").verdict == "fail"
    assert judge(True, None).verdict == "indeterminate"


@pytest.mark.parametrize("metrics", [{"ssim": None}, {}])
def test_what_nobody_measured_is_indeterminate(metrics: dict[str, Any], generation: Policy) -> None:
    judged = generation.judge("generation", "pipeline", {"finite": True, **metrics}, output="image")
    assert (judged.verdict, judged.message) == (
        "indeterminate",
        "ssim was not measured, ssim >= 0.9 is asked",
    )
    spoilt = {"finite": False, "problem": "nan at [0]"}
    judged = generation.judge("generation", "pipeline", spoilt, output="image")
    assert (judged.verdict, judged.message) == ("fail", "nan at [0]")


def test_numbers_of_a_report_are_judged_like_those_just_measured(good: Results) -> None:
    document = json_of(good)
    for check, saved in zip(good.checks, document["checks"], strict=True):
        if check.level == "conversion" and check.metrics:
            judged = load_policy().judge("conversion", check.component, saved["metrics"])
            assert (judged.gate, judged.verdict) == (check.gate, check.verdict)


@pytest.mark.parametrize("value", [None, "inf", "-inf"])
def test_json_says_nan_and_infinity(value: str | None) -> None:
    metrics = {"finite": True, "cosine": value}
    asked = Gate("conversion", ("unet",), "cosine", True, 0.9, "a test")
    assert judge([asked], metrics).verdict == ("pass" if value == "inf" else "fail")


@pytest.mark.parametrize(
    "change",
    [
        ('metric = "ssim"', 'metric = "psnr"'),
        ('outputs = ["image"]\n', ""),
        ('bits = ["16"]', 'bits = ["17"]'),
        ('bits = ["16"]', "bits = []"),
        ('["pipeline"]', '["unet"]'),
        ('metric = "cosine"', 'metric = "fp16_error_ratio"'),
    ],
)
def test_a_gate_that_cannot_apply_is_refused(change: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(GENERATION.replace(*change))
    with pytest.raises(InputError):
        load_policy(tmp_path / "policy.toml")


def test_the_text_of_a_gate_gives_the_gate_again() -> None:
    for gate in load_policy().gates:
        (again,) = parse_gates(str(gate), gate.level, "unet") or ()
        assert (again.metric, again.at_least, again.value) == (
            gate.metric,
            gate.at_least,
            gate.value,
        )
    assert parse_gates("finite", "compression", "unet") == ()
    assert parse_gates("fits the reference", "conversion", "unet") is None
