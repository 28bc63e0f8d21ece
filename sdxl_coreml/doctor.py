"""What works on this machine and what does not: versions, room, runtimes, login.

Nothing heavy is imported and nothing is downloaded, so the whole diagnosis takes a moment.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from convert.process.memory import cgroup_limit, physical_memory

PROJECT = "sdxl-coreml"
# Why a range is as it is, where the numbers do not say it.
REASONS = {"numpy": "coremltools 9.0 fails with numpy 2.4 and later. "}
GIB = 1 << 30
NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU, from NVIDIA's driver
# A checkpoint and one 16-bit artifact are 7 GB each; the evaluator takes 8.5 GiB for the UNet.
DISK_WANTED = 20e9
MEMORY_WANTED = 10 * GIB


@dataclass(frozen=True)
class Diagnosis:
    """One thing looked at: `ok`, `missing` (something will fail), or `note` (worth knowing).

    `remedy` says what to do, or what the note means; empty if there is nothing to do.
    """

    name: str
    status: Literal["ok", "missing", "note"]
    value: str
    remedy: str = ""


def diagnose(folder: Path | None = None) -> list[Diagnosis]:
    """Look at this machine, with the disk of `folder` (the current one if None)."""
    return [
        *_versions(),
        Diagnosis("platform", "ok", platform.platform()),
        _disk(folder or Path.cwd()),
        _memory(),
        _core_ml(),
        _xcode(),
        _cuda(),
        _mps(),
        *_hub(),
        _apple_converter(),
    ]


def _versions() -> list[Diagnosis]:
    python, requirements = _requirements()
    version = platform.python_version()
    if not is_within(version, python):
        found = [Diagnosis("Python", "missing", version, f"Use a Python {python}.")]
    else:
        found = [Diagnosis("Python", "ok", f"{version} ({sys.executable})")]
    for name, allowed in requirements.items():
        wanted = f'pip install "{name}{allowed}"'
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(Diagnosis(name, "missing", "not installed", wanted))
            continue
        if is_within(version, allowed):
            found.append(Diagnosis(name, "ok", version))
        else:
            found.append(
                Diagnosis(
                    name,
                    "missing",
                    f"{version}, outside {allowed}",
                    f"{REASONS.get(name, '')}{wanted}",
                )
            )
    return found


def _requirements() -> tuple[str, dict[str, str]]:
    """The project's own ranges: of Python, and of each run-time dependency by name."""
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"] if pyproject.is_file() else {}
    if project.get("name") == PROJECT:  # a checkout; it may be newer than what was installed
        python, lines = project["requires-python"], project["dependencies"]
    else:
        try:
            python = metadata.metadata(PROJECT)["Requires-Python"] or ""
            lines = metadata.requires(PROJECT) or []
        except metadata.PackageNotFoundError:
            return "", {}
    wanted = [w for w in map(Requirement, lines) if w.marker is None or w.marker.evaluate()]
    return python, {w.name: _text(w.specifier) for w in sorted(wanted, key=lambda w: w.name)}


def _text(allowed: SpecifierSet) -> str:
    """A range as people write it: the lower bound first."""
    return ",".join(sorted(map(str, allowed), reverse=True))


def is_within(version: str, allowed: str) -> bool:
    """Whether a version lies in a range, by its release numbers: no matter which build it is."""
    return SpecifierSet(allowed).contains(Version(version).base_version)


def _disk(folder: Path) -> Diagnosis:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Diagnosis("disk", "missing", str(error.strerror), f"{folder} cannot be used.")
    value = f"{free / 1e9:.0f} GB free in {folder}"
    if free >= DISK_WANTED:
        return Diagnosis("disk", "ok", value)
    return Diagnosis("disk", "note", value, "A checkpoint and a 16-bit artifact take 7 GB each.")


def _memory() -> Diagnosis:
    total, available = physical_memory()
    limit = cgroup_limit()
    if total is None:
        return Diagnosis("memory", "note", "unknown", "This system does not say.")
    value = f"{total / GIB:.1f} GiB"
    if available is not None:
        value += f", {available / GIB:.1f} GiB available"
    if limit is not None and limit < total:
        value += f", limited to {limit / GIB:.1f} GiB (cgroup)"
        total = limit
    if total >= MEMORY_WANTED:
        return Diagnosis("memory", "ok", value)
    return Diagnosis(
        "memory",
        "note",
        value,
        "Enough to convert; verifying or generating with a full-size UNet takes about 9 GiB.",
    )


def _core_ml() -> Diagnosis:
    if sys.platform != "darwin":
        return Diagnosis(
            "Core ML",
            "note",
            "only on macOS",
            "Models are converted and verified here all the same, with PyTorch.",
        )
    spec = find_spec("coremltools")
    places = list(spec.submodule_search_locations or []) if spec else []
    if any(list(Path(place).glob("libcoremlpython*")) for place in places):
        return Diagnosis("Core ML", "ok", f"macOS {platform.mac_ver()[0]}")
    return Diagnosis(
        "Core ML",
        "missing",
        "coremltools has no libcoremlpython",
        "Reinstall coremltools with a Python that it has wheels for.",
    )


def _xcode() -> Diagnosis:
    name, other = "Xcode", "Not needed: `compile` makes what the apps load on any system."
    if sys.platform != "darwin":
        return Diagnosis(name, "note", "only on macOS", other)
    try:
        found = subprocess.run(
            ["xcrun", "--find", "coremlcompiler"],
            capture_output=True,
            text=True,
            timeout=0.5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return Diagnosis(name, "note", "no coremlcompiler", other)
    return Diagnosis(name, "ok", found.stdout.strip())


def _cuda() -> Diagnosis:
    """Read from the driver's files and torch's version, because importing torch takes seconds."""
    models = [
        match[1].strip()
        for info in sorted(NVIDIA.glob("*/information"))
        if (match := re.search(r"^Model:(.*)$", info.read_text(), re.M))
    ]
    if not models:
        return Diagnosis("CUDA", "note", "no device", "Verification runs on the CPU.")
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        version = ""
    if version.endswith("+cpu"):
        return Diagnosis(
            "CUDA",
            "note",
            f"{', '.join(models)}, but torch {version} is a CPU build",
            "To verify on the GPU, install torch with CUDA: https://pytorch.org/get-started",
        )
    return Diagnosis("CUDA", "ok", ", ".join(models))


def _mps() -> Diagnosis:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Diagnosis("MPS", "ok", "Apple silicon")
    return Diagnosis("MPS", "note", "no device", "It is the GPU of a Mac with Apple silicon.")


def _hub() -> list[Diagnosis]:
    """Login and cache. Not by `get_token`, which may refresh a token over the network."""
    if find_spec("huggingface_hub") is None:
        return []  # named among the versions
    from huggingface_hub import constants

    cache = Diagnosis("Hub cache", "ok", str(constants.HF_HUB_CACHE))
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return [Diagnosis("Hub login", "ok", f"token from {variable}"), cache]
    file = Path(constants.HF_TOKEN_PATH)
    try:
        present = bool(file.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        present = False
    if present:
        return [Diagnosis("Hub login", "ok", f"token in {file}"), cache]
    remedy = "Needed for gated or private repos and to publish: hf auth login"
    return [Diagnosis("Hub login", "note", "no token", remedy), cache]


def _apple_converter() -> Diagnosis:
    name = "Apple's converter"
    if find_spec("python_coreml_stable_diffusion") is not None:
        return Diagnosis(name, "ok", "python_coreml_stable_diffusion")
    return Diagnosis(
        name,
        "note",
        "not installed",
        "Only `convert --engine apple` needs it: pip install --no-deps "
        "git+https://github.com/apple/ml-stable-diffusion@e12202c",
    )
