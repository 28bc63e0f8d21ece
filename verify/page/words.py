"""The words of the HTML report: what the levels, verdicts and numbers mean to who downloads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from convert.components import COMPONENTS
from convert.values import Verdict
from verify.judge.checks import worst
from verify.judge.metrics import SNR
from verify.reports import figures
from verify.reports.evidence import EvidenceReach, how_verified
from verify.reports.figures import MEANINGS

VERDICTS: dict[Verdict, str] = {
    "pass": "Passed",
    "fail": "Failed",
    "indeterminate": "No verdict",
}

NAMES = {
    **{name: spec.label for name, spec in COMPONENTS.items()},
    "pipeline": "Whole pipeline",
    "artifact": "Files",
}

# Per level: what it asks, what it means that the level was left out, what a failure means.
LEVELS = {
    "structure": (
        "Are the files complete, and names, interfaces, weights and metadata what apps expect?",
        "Files, interfaces and metadata were not looked at.",
        "An app that finds its models by these names, shapes and metadata would refuse this one, "
        "or use it wrongly.",
    ),
    "weights": (
        "Is every stored weight what the recipe makes of the checkpoint’s, one by one?",
        "The stored weights were not compared with the checkpoint’s one by one.",
        "A weight is not the checkpoint’s: the file was changed or damaged, or belongs to another "
        "checkpoint.",
    ),
    "graph": (
        "Is each program, op by op, one whose numbers can be compared at a small size, with "
        "nothing but sizes changed?",
        "Programs were not compared op by op with those of another size.",
        "The program differs from the one for another size in more than heights and widths, so "
        "what holds of that one’s numbers does not hold of this one’s.",
    ),
    "conversion": (
        "Does each model give what PyTorch float32 gives with the same weights and inputs?",
        "The models’ outputs were not compared with PyTorch.",
        "The model computes something else than the checkpoint. The limit leaves room for fp16 "
        "rounding; a lost bias, a swapped head or a wrong weight costs more than that.",
    ),
    "compression": (
        "Do the compressed weights keep as much of the checkpoint as the recipe asks for?",
        "What compression costs was not measured. Weights of 16 bits are not compressed, so there "
        "is nothing to measure.",
        "The compressed weights lose more than the recipe allows. More bits lose less.",
    ),
    "generation": (
        "Do whole pictures agree that both make from the same prompt and the same noise?",
        "No whole pictures were made, so none were compared.",
        "From the same prompt and the same noise, Core ML’s picture differs more from PyTorch’s "
        "than the limit allows.",
    ),
    "sanity": (
        "Is every picture more than black, one colour, or noise?",
        "Pictures were not looked at for black, flat or noisy ones.",
        "A picture is black, of one colour, or noise: this model would do the same in an app.",
    ),
}
NOT_FINITE = (
    "A value that is infinite or not a number spreads to the whole picture, which turns out black "
    "or noise. In fp16 it is usually an overflow: nothing above 65504 can be said."
)
INDETERMINATE = (
    "Something that these checks need was missing, so they say nothing. That is not a pass."
)
RUNTIMES = {
    "torch": "The ML Program itself, op by op on PyTorch",
    "coreml": "Core ML on a Mac",
}
BY = {"torch": "op by op on PyTorch", "coreml": "by Core ML on a Mac"}
NOT_EXECUTED: dict[EvidenceReach | None, str] = {
    "one step": "Outputs at this artifact’s own size, but for one timestep of the UNet and one run "
    "of the VAE. That all others are right, too, follows from comparing weights and operations.",
    "one step elsewhere": "Outputs of this artifact at its own size. That they are right follows "
    "from comparing its weights and operations; another artifact was executed at full size, once.",
    "small size": "Outputs of this artifact at its own size. That they are right follows from "
    "comparing its weights and operations with those of what was executed at a smaller size.",
    "no outputs": "Outputs of every model.",
}
LOWEST = {
    "checkpoint": "Lowest SNR against the checkpoint",
    "program": "Lowest SNR of the program",
}
DEFINITIONS = (
    (
        "SNR",
        f"Signal-to-noise ratio in decibels: {SNR}. Each 20 dB more is an error ten times "
        "smaller: at 40 dB it is 1 % of the signal, at 60 dB 0.1 %. ∞ means equal.",
    ),
    (
        "Checkpoint",
        f"An SNR {MEANINGS['checkpoint']}: what a user gets, compression included. Where no weight "
        "is compressed it is the program’s, too.",
    ),
    (
        "Program",
        f"An SNR {MEANINGS['program']}: what the graph and its precision cost, compression left "
        "out.",
    ),
    (
        "PyTorch fp16",
        "The same inputs through PyTorch in float16, against float32. It is the error that the "
        "number format alone brings, and no converter can be blamed for it.",
    ),
    (
        "Error ratio",
        "The model’s error over that of PyTorch fp16. About 1 is as good as fp16 gets.",
    ),
    (
        "Teacher-forced",
        "Every step starts from PyTorch’s latents, so the error of one step is seen alone.",
    ),
    (
        "Free-running",
        "Every step starts from the model’s own latents, as in an app, so errors add up.",
    ),
    (
        "PSNR",
        "Peak signal-to-noise ratio of the pictures in decibels: 10·log10(1 / mean((ref − out)²)), "
        "with pixels between 0 and 1. Above about 40 dB the eye hardly sees a difference.",
    ),
    ("SSIM", "Structural similarity of the pictures; 1 means equal."),
    (
        "Cosine",
        "Σref·out / (|ref|·|out|); 1 means that reference and output point the same way.",
    ),
)


def component_name(component: str) -> str:
    """A component as people call it; names that are not known stay as they are."""
    return NAMES.get(component, component)


def sentence(report: Mapping[str, Any]) -> str:
    """The verdict in a few sentences that promise no more than was checked."""
    verdict, checks = report["verdict"], report["checks"]
    bad = [c for c in checks if c["verdict"] == verdict]
    if verdict == "fail":
        return (
            f"{len(bad)} of {_checks(len(checks))} failed. Do not rely on this model before what "
            "is listed below is explained."
        )
    if verdict != "pass":
        return (
            f"{len(bad)} of {_checks(len(checks))} could not be made. Nothing failed, but that is "
            "not a pass."
        )
    if len(checks) == 1:
        return "The only check passed."
    levels = {c["level"] for c in checks}
    if "conversion" not in levels and "generation" in levels:
        return (
            f"All {len(checks)} checks passed. Whole pictures agree with PyTorch’s; the outputs of "
            "each model alone were not compared."
        )
    if "conversion" not in levels:
        return f"All {len(checks)} checks passed. Outputs were not compared with PyTorch’s."
    if how_verified(report).reach not in (None, "executed"):
        text = f"All {len(checks)} checks passed."
        found = None if figures.is_one(report) else figures.figure("checkpoint", report)
        if found is None:
            return text
        at = f", at {size(found['size'])}" if found.get("size") else ""
        return (
            f"{text} The weights are compressed: against the checkpoint’s own their SNR is "
            f"{figures.snr_text(found)}{at}."
        )
    if figures.is_one(report):
        return (
            f"All {len(checks)} checks passed. The Core ML models compute what the checkpoint "
            "computes in PyTorch, within the limits listed below."
        )
    text = (
        f"All {len(checks)} checks passed. The weights are compressed: the Core ML models compute "
        "what PyTorch computes with the same compressed weights, within the limits listed below. "
    )
    found = figures.figure("checkpoint", report)
    if found is None:
        return text + "How near that is to the checkpoint was not measured."
    return text + f"Against the checkpoint’s own weights their SNR is {figures.snr_text(found)}."


def ran(report: Mapping[str, Any]) -> str:
    """What was executed, and by what."""
    runtime, reach = report["runtime"], how_verified(report).reach
    text = RUNTIMES.get(runtime, runtime)
    if reach in (None, "executed"):
        return text
    once = " (one timestep of this one)" if reach == "one step" else ""
    return f"Smaller programs with these weights{once}, {BY.get(runtime, runtime)}"


def verified(checks: Sequence[Mapping[str, Any]]) -> list[tuple[Verdict, str, str]]:
    """(verdict, level with its count, what it asks), for the levels that have checks."""
    found = []
    for level, (asks, _, _) in LEVELS.items():
        verdicts = [c["verdict"] for c in checks if c["level"] == level]
        if verdicts:
            count = f"{verdicts.count('pass')} of {_checks(len(verdicts))} passed"
            found.append((worst(verdicts), f"{level.capitalize()}: {count}", asks))
    return found


def not_verified(
    levels: Collection[str],
    components: Collection[str],
    runtime: str,
    resolution: str | None,
    reach: EvidenceReach | None,
) -> list[str]:
    """What nobody should conclude from the report."""
    program = "programs were" if reach in NOT_EXECUTED else "the same program was"
    if runtime == "coreml":
        found = [
            "Other devices and versions of macOS. Each may compute with another engine, whose "
            "rounding differs a little."
        ]
    else:
        found = [
            f"Core ML itself. It runs only on Apple’s devices; here {program} computed "
            "by PyTorch. A particular Neural Engine or GPU may round differently."
        ]
    if reach in NOT_EXECUTED:
        found.append(NOT_EXECUTED[reach])
    found += [missing for level, (_, missing, _) in LEVELS.items() if level not in levels]
    absent = [NAMES[c] for c in COMPONENTS if c not in components]
    if absent and levels != {"structure"}:
        found.append(f"{' and '.join(absent)}: not among the models that were checked.")
    if resolution:
        found.append(
            f"Other sizes than {size(resolution)} pixels. Every size is a model of its own."
        )
    return [
        *found,
        "Whether the pictures are good. Two ways to compute one checkpoint are compared; what it "
        "draws badly, both draw badly.",
    ]


def case(check: Mapping[str, Any]) -> str:
    """A check's case, with the size at which it was executed where that is not the artifact's."""
    at = check.get("size")
    return f"{check['case']} at {size(at)}" if at else str(check["case"])


def size(resolution: str) -> str:
    """`832x1216` as people write it."""
    return resolution.replace("x", " × ")


_GATE = re.compile(r"(\w+) (>=|<=) (\S+)")
_MEASURES = {
    "snr_db": "SNR {} {} dB",
    "psnr_db": "PSNR {} {} dB",
    "ssim": "SSIM {} {}",
    "cosine": "cosine {} {}",
    "nrmse": "NRMSE {} {}",
    "max_abs": "largest error {} {}",
    "p99_abs": "99 % of errors {} {}",
    "fp16_error_ratio": "error {} {} × PyTorch fp16",
}


def gate_words(gate: str) -> str:
    """`snr_db >= 35` as people write it; what is no such gate stays as it is."""
    words = []
    for part in gate.split(" and "):
        match = _GATE.fullmatch(part)
        if match is None or match[1] not in _MEASURES:
            return gate
        words.append(_MEASURES[match[1]].format("≥" if match[2] == ">=" else "≤", match[3]))
    return ", ".join(words)


def capital(text: str) -> str:
    """A text with its first letter as sentences have it."""
    return text[:1].upper() + text[1:]


def _checks(number: int) -> str:
    return "1 check" if number == 1 else f"{number} checks"
