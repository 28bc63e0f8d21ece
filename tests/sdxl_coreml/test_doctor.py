"""The diagnosis is quick, never fails, and tells no secret."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from convert.process import memory
from sdxl_coreml import doctor
from sdxl_coreml.doctor import diagnose

ROOT = Path(__file__).parents[2]


def finding(name: str) -> doctor.Diagnosis:
    return next(f for f in diagnose() if f.name == name)


def test_every_finding_is_complete() -> None:
    findings = diagnose()
    assert {"Python", "numpy", "coremltools", "disk", "memory", "Core ML", "Hub login"} <= {
        f.name for f in findings
    }
    for f in findings:
        assert f.value
        assert f.status in ("ok", "missing", "note")
        assert f.status == "ok" or f.remedy, f


def test_nothing_heavy_is_imported_and_it_takes_less_than_a_second() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from sdxl_coreml.doctor import diagnose; diagnose()\n"
        "print(time.perf_counter() - start)\n"
        "print([m for m in ('torch', 'numpy', 'coremltools', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, heavy = done.stdout.splitlines()
    assert float(seconds) < 1
    assert heavy == "[]"


@pytest.mark.parametrize(
    ("version", "allowed", "inside"),
    [
        ("2.3.5", ">=1.26,<2.4", True),
        ("2.4.0", ">=1.26,<2.4", False),
        ("2.4", ">=1.26,<2.4", False),
        ("1.25.9", ">=1.26,<2.4", False),
        ("1.26", ">=1.26.0", True),
        ("2.13.0+cpu", ">=2.6", True),
        ("10.0", ">=9.0,<10", False),
        ("9.0b1", ">=9.0", True),
        ("3.11.7", "", True),
    ],
)
def test_ranges(version: str, allowed: str, inside: bool) -> None:
    assert doctor.is_within(version, allowed) is inside


def test_numpy_too_new_for_coremltools_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "2.4.1" if n == "numpy" else real(n))
    found = finding("numpy")
    assert found.status == "missing"
    assert "coremltools 9.0" in found.remedy
    assert 'pip install "numpy>=1.26,<2.4"' in found.remedy


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    found = finding("torch")
    assert (found.status, found.value) == ("missing", "not installed")
    assert found.remedy.startswith('pip install "torch>=')


def test_a_token_is_found_but_never_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert finding("Hub login").status == "note"
    (tmp_path / "token").write_text("hf_secret")
    assert finding("Hub login").status == "ok"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert finding("Hub login").value == "token from HF_TOKEN"
    assert "secret" not in str(diagnose())


def test_little_disk_is_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_WANTED", 1e30)
    assert finding("disk").status == "note"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = next(f for f in diagnose(tmp_path / "gone") if f.name == "disk")
    assert found.status == "missing"


def test_memory_is_that_of_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "physical_memory", lambda: (64 << 30, 60 << 30))
    monkeypatch.setattr(doctor, "cgroup_limit", lambda: 4 << 30)
    found = finding("memory")
    assert found.status == "note"
    assert "limited to 4.0 GiB" in found.value


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/a/b", {"a/memory.max": "1024", "a/b/memory.max": "max"}, 1024),
        ("0::/a/b", {"a/memory.max": "1024", "a/b/memory.max": "512"}, 512),
        ("0::/seen/from/outside", {"memory.max": "2048"}, 2048),
        ("0::/", {}, None),
        ("4:memory:/x", {"memory/x/memory.limit_in_bytes": "4096"}, 4096),
        ("4:cpu,memory:/x", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:cpu:/x", {"memory/memory.limit_in_bytes": "4096"}, None),
    ],
)
def test_control_group_limits(
    tmp_path: Path, line: str, files: dict[str, str], limit: int | None
) -> None:
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (tmp_path / "mine").write_text(line + "\n")
    assert memory.cgroup_limit(tmp_path / "cgroup", tmp_path / "mine") == limit


def test_memory_of_a_system_without_proc(tmp_path: Path) -> None:
    total, available = memory.physical_memory(tmp_path / "absent")
    assert total is None or total > 1 << 20
    assert available is None


def test_a_gpu_that_torch_cannot_use_is_worth_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0/information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path)
    found = finding("CUDA")
    assert found.status == "note"
    assert "NVIDIA H200" in found.value
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0")
    assert finding("CUDA") == doctor.Diagnosis("CUDA", "ok", "NVIDIA H200")
