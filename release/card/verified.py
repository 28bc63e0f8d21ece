"""How the files of a release were verified, as their manifests say: columns, and a section.

It is told for who downloads, file by file where they differ, and claims no more than was done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convert.weights.compress import UNCOMPRESSED
from release.card.markdown import bullets, code, escape, prose
from verify.judge.gates import FINITE
from verify.reports.evidence import HowVerified, how_verified, meanings
from verify.reports.figures import NOT_MEASURED, decibels
from verify.reports.phrases import joined, size_text

MOST_NAMES = 6  # the table of files says of which others
ArchiveEntries = Sequence[Mapping[str, Any]]


def snr_cell(archive: Mapping[str, Any], figure: str) -> str:
    """A figure of an archive for people: see `verify.reports.figures`."""
    own = archive["manifest"]
    checked = own.get("verification")
    if not checked:
        return "not verified"
    program = checked.get("program_snr_db", checked.get("conversion_snr_db"))
    value = program
    if figure == "checkpoint":  # releases of version 0.1.0 have the program's alone
        value = checked.get("snr_db", program if own["bits"] == UNCOMPRESSED else None)
    return NOT_MEASURED if value is None else decibels(value)


def gates_note(archives: ArchiveEntries, level: str) -> str:
    """The gates of a level, each once with the models that it is for; empty without any."""
    found: dict[str, list[str]] = {}
    for archive in archives:
        checked = archive["manifest"].get("verification") or {}
        for component, gate in checked.get("gates", {}).get(level, {}).items():
            names = found.setdefault(gate, [])
            if component not in names and gate != FINITE:
                names.append(component)
    asked = [f"{code(g)} ({escape(', '.join(names))})" for g, names in found.items() if names]
    return f" What was asked of it: {'; '.join(asked)}." if asked else ""


def says_evidence(archives: ArchiveEntries) -> bool:
    """Whether any file's manifest says how it was verified."""
    return any(archive["manifest"].get("evidence") for archive in archives)


def evidence_cell(archive: Mapping[str, Any]) -> str:
    """How a file was verified, in a few words."""
    own = archive["manifest"]
    if own["verdict"] is None:
        return "not verified"
    text = how_verified(own).short
    return text if own["verdict"] == "pass" else f"{text}; not passed"


def sizes_note(archives: ArchiveEntries) -> str:
    """At which sizes the numbers were measured, where those are not the files' own."""
    sizes = dict.fromkeys(
        size_text(word.size)
        for archive in archives
        if (how := how_verified(archive["manifest"])).reach != "executed"
        for words in how.words.values()
        for word in words
        if word.kind == "numbers" and word.size not in (None, how.resolution)
    )
    if not sizes:
        return ""
    whole = any(how_verified(a["manifest"]).reach == "executed" for a in archives)
    start = "But for files whose evidence is `executed`, those" if whole else "Those"
    return (
        f" {start} of UNet and VAE were measured at {joined(list(sizes))} with the same weights, "
        "and at a file's own size only as far as its evidence says."
    )


def verified_section(archives: ArchiveEntries) -> list[str]:
    """What was done to verify the files, each kind of evidence with its files; nothing where no
    manifest says it."""
    told = [(archive, how_verified(archive["manifest"])) for archive in archives]
    told = [(archive, how) for archive, how in told if how.verdict is not None]
    if not any(how.words for _, how in told):
        return []
    efforts = list(dict.fromkeys(how.effort for _, how in told if how.effort))
    lines = []
    for short, meaning in meanings(how for _, how in told).items():
        names = [archive["archive"] for archive, how in told if how.short == short]
        lines.append(f"**{escape(short)}** ({_files(names, len(archives))}): {escape(meaning)}.")
    if full := _executed_once(told):
        lines.append(f"Executed once at full size: {full}.")
    if any(how.reach != "executed" for _, how in told):
        lines.append(
            "Not done: executing every file at its own size and several timesteps. `thorough` "
            "effort does that."
        )
    shorts = [how.short for _, how in told]
    example, how = max(told, key=lambda one: shorts.count(one[1].short))
    effort = f"at {joined(efforts)} effort, " if efforts else ""
    return [
        "## How it was verified",
        f"Checked {effort}{_runner(archives)}:",
        bullets(lines),
        f"In full, of {code(example['archive'])}: {prose(how.sentence('file'))}",
    ]


def _runner(archives: ArchiveEntries) -> str:
    """Where programs were executed."""
    checks = [archive["manifest"].get("verification") or {} for archive in archives]
    runtimes = {check.get("runtime") for check in checks}
    if runtimes == {"coreml"}:
        return "with Core ML on a Mac"
    return "op by op with PyTorch, without Core ML" if runtimes == {"torch"} else "as follows"


def _files(names: Sequence[str], count: int) -> str:
    if len(names) == count:
        return "all files" if count > 1 else "the file"
    if len(names) > MOST_NAMES:
        return f"{len(names)} files"
    return ", ".join(code(name) for name in names)


def _executed_once(told: Sequence[tuple[Mapping[str, Any], HowVerified]]) -> str:
    """The artifacts that were executed at a true size, once, with that."""
    found: dict[str, str] = {}
    for archive, how in told:
        for elsewhere in (False, True):
            for word in how.once(elsewhere=elsewhere).values():
                name = word.artifact or archive["manifest"]["artifact"]
                found[name] = size_text(word.size)
    return ", ".join(f"{code(name)} ({size})" for name, size in found.items())
