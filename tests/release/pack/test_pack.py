"""Packing: archives that unpack anywhere, the same bytes every time, finished or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from convert.errors import InputError
from release.lint.lint import lint
from release.pack.archive import parse_size, split, write_archive
from release.pack.manifest import parse_sums
from release.pack.pack import find_artifacts, pack
from release.pack.packable import NotVerified

NAME = "base_split-einsum_16-bit_64x96"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".cache" not in p.parts
    }


@pytest.fixture
def out(verified: Path, tmp_path: Path) -> Path:
    """A copy of `verified` that the test may spoil."""
    return Path(shutil.copytree(verified, tmp_path / "out", copy_function=os.link))


@pytest.fixture
def release(base_release: Path, tmp_path: Path) -> Path:
    """A copy of `base_release` that the test may spoil."""
    return Path(shutil.copytree(base_release, tmp_path / "release"))


def test_a_release_holds_what_its_sums_and_manifest_say(base_release: Path) -> None:
    found = contents(base_release)
    assert sorted(found) == [
        "README.md", "SHA256SUMS", f"{NAME}.zip", f"images/{'b' * 16}.png", "manifest.json",
    ]  # fmt: skip
    digest = hashlib.sha256(found[f"{NAME}.zip"]).hexdigest()
    assert parse_sums(found["SHA256SUMS"].decode()) == {f"{NAME}.zip": digest}
    manifest = json.loads(found["manifest.json"])
    (archive,) = manifest["archives"]
    assert (archive["sha256"], archive["size"]) == (digest, len(found[f"{NAME}.zip"]))
    assert manifest["source"]["files"]["unet/config.json"]
    assert manifest["recipe"]["text"].startswith('name = "base"')
    assert archive["manifest"]["verification"]["conversion_snr_db"] == 55.12
    assert {d["component"] for d in archive["manifest"]["deviations"]} >= {"unet", "vae", "all"}
    assert archive["manifest"]["minimum_system"] == "macOS 14, iOS 17"


def test_the_archive_has_one_folder_of_its_name_with_weights_stored(base_release: Path) -> None:
    with zipfile.ZipFile(base_release / f"{NAME}.zip") as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        manifest = json.loads(archive.read(f"{NAME}/manifest.json"))
    names = [info.filename for info in infos]
    assert {name.split("/")[0] for name in names} == {NAME}
    assert [n.removeprefix(f"{NAME}/") for n in names if n.count("/") == 1] == [
        "manifest.json", "merges.txt", "vocab.json",
    ]  # fmt: skip
    assert names == sorted(names)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}
    for info in infos:
        is_stored = info.compress_type == zipfile.ZIP_STORED
        assert is_stored == info.filename.endswith(".bin"), info.filename
    assert manifest["verdict"] == "pass"
    assert manifest["verification"]["gates"] == {"conversion": {"unet": "snr_db >= 35"}}
    assert "55.1" not in json.dumps(manifest)  # what is measured differs between runs
    assert set(manifest["files"]) == {n.removeprefix(f"{NAME}/") for n in names} - {"manifest.json"}


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip on this system to try")
def test_unzip_gives_the_bundle_back(base_release: Path, tmp_path: Path) -> None:
    command = ["unzip", "-q", str(base_release / f"{NAME}.zip"), "-d", str(tmp_path)]
    subprocess.run(command, check=True)
    (result,) = lint(tmp_path / NAME)
    assert result.findings == ()
    assert all(view.works for view in result.views)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum on this system")
def test_sha256sum_checks_a_release(base_release: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    subprocess.run(command, cwd=base_release, check=True, capture_output=True)


def test_a_release_lints_clean(base_release: Path) -> None:
    results = lint(base_release)
    assert [r.name for r in results] == [base_release.name, f"{NAME}.zip"]
    assert [r.findings for r in results] == [(), ()]


def test_lint_tells_a_damaged_release(release: Path) -> None:
    archive = release / f"{NAME}.zip"
    archive.write_bytes(archive.read_bytes() + b"!")
    (release / "README.md").unlink()
    assert {(f.rule, f.file) for f in lint(release)[0].findings} == {
        ("digest", f"{NAME}.zip"), ("release-file", "README.md"),
    }  # fmt: skip


def test_two_packs_are_equal_byte_for_byte(out: Path, base_release: Path, tmp_path: Path) -> None:
    pack(find_artifacts(out), tmp_path / "again")
    found, expected = contents(tmp_path / "again"), contents(base_release)
    for name in (f"{NAME}.zip", "SHA256SUMS", "manifest.json"):
        assert found[name] == expected[name]


def test_a_finished_archive_is_kept_and_a_damaged_one_made_again(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    archive = folder / f"{NAME}.zip"
    assert pack([out / NAME], folder).fresh == (NAME,)
    before = archive.read_bytes()
    stamp = archive.stat().st_mtime_ns
    assert pack([out / NAME], folder).fresh == ()
    assert archive.stat().st_mtime_ns == stamp
    archive.write_bytes(before[:1000] + bytes([before[1000] ^ 1]) + before[1001:])
    assert pack([out / NAME], folder).fresh == (NAME,)
    assert archive.read_bytes() == before
    assert not list((folder / ".cache" / "tmp").glob("*-*"))


def test_an_artifact_that_did_not_pass_is_refused_unless_told(out: Path, tmp_path: Path) -> None:
    (file,) = (out / "reports").glob("*.json")
    report = json.loads(file.read_text())
    file.unlink()  # a hard link to the fixture's
    file.write_text(json.dumps({**report, "verdict": "fail"}))
    with pytest.raises(NotVerified, match=rf"{NAME} \(verdict: fail\)") as error:
        pack([out / NAME], tmp_path / "release")
    assert error.value.exit_code == 1
    assert not (tmp_path / "release").exists()
    file.write_text(json.dumps({**report, "fingerprint": "of other bytes"}))
    with pytest.raises(NotVerified, match=r"was not verified"):
        pack([out / NAME], tmp_path / "release")
    packed = pack([out / NAME], tmp_path / "release", allow_unverified=True)
    assert packed.manifest["archives"][0]["manifest"]["verdict"] is None


def test_a_verdict_of_other_checks_or_gates_is_no_verdict(out: Path, tmp_path: Path) -> None:
    (file,) = (out / "reports").glob("*.json")
    report = json.loads(file.read_text())
    codes: list[dict[str, str]] = [{**report["code"], key: "of old" * 10} for key in report["code"]]
    for code in [*codes, {}]:
        file.unlink(missing_ok=True)  # a hard link to the fixture's
        file.write_text(json.dumps({**report, "code": code}))
        with pytest.raises(NotVerified, match=r"verified by another version's checks or gates"):
            pack([out / NAME], tmp_path / "release")
    packed = pack([out / NAME], tmp_path / "release", allow_unverified=True)
    assert packed.manifest["archives"][0]["manifest"]["verdict"] is None


def test_parts_join_to_the_archive(out: Path, base_release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    whole = (base_release / f"{NAME}.zip").read_bytes()
    size = len(whole) // 3 + 1
    (entry,) = pack([out / NAME], folder, split=size).manifest["archives"]
    parts = sorted(folder.glob("*.zip.*"))
    assert [p.name for p in parts] == [f["name"] for f in entry["files"]]
    assert [p.stat().st_size for p in parts[:2]] == [size, size]
    joined = b"".join(p.read_bytes() for p in parts)
    assert hashlib.sha256(joined).hexdigest() == entry["sha256"]
    assert joined == whole
    assert set(parse_sums((folder / "SHA256SUMS").read_text())) == {p.name for p in parts}
    (folder / "README.md").write_text("# A card")
    results = lint(folder)
    assert [(r.name, r.findings) for r in results] == [("release", ()), (f"{NAME}.zip", ())]
    assert all(view.works for view in results[1].views)
    assert pack([out / NAME], folder, split=size).fresh == ()
    # Without parts again: they go, the archive comes.
    assert pack([out / NAME], folder).fresh == (NAME,)
    assert [p.name for p in folder.glob("*.zip*")] == [f"{NAME}.zip"]


def test_a_run_that_was_killed_goes_on(
    out: Path, base_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the files were placed and before they were recorded, the worst moment."""
    folder = tmp_path / "release"
    size = (base_release / f"{NAME}.zip").stat().st_size // 2 + 1

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("release.pack.pack._record", killed)
        with pytest.raises(KeyboardInterrupt):
            pack([out / NAME], folder, split=size)
    assert [p.name for p in sorted(folder.glob("*.zip*"))] == [f"{NAME}.zip.001", f"{NAME}.zip.002"]
    assert pack([out / NAME], folder, split=size).fresh == (NAME,)
    joined = b"".join(p.read_bytes() for p in sorted(folder.glob("*.zip.*")))
    assert joined == (base_release / f"{NAME}.zip").read_bytes()
    assert not list((folder / ".cache" / "tmp").glob("*-*"))


def test_a_folder_that_holds_something_else_is_left_alone(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"holds `thesis.tex`, which no `pack` has made"):
        pack([out / NAME], folder)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_too_small_a_disk_is_told_before_any_work(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"no space: .* to write, 1.00 kB free"):
        pack([out / NAME], tmp_path / "release")


def test_a_folder_without_artifacts_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no artifact"):
        find_artifacts(tmp_path)


def test_large_files_take_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit of 2 GiB brought down, because such files take minutes here."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "weight.bin").write_bytes(bytes(2000))
    (folder / "small.txt").write_bytes(bytes(10))
    write_archive(folder, tmp_path / "big.zip")
    with zipfile.ZipFile(tmp_path / "big.zip") as found:
        assert found.testzip() is None
        small, big = found.infolist()
    assert (small.extract_version, big.extract_version) == (20, 45)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1GiB", 2**30), ("4096", 4096), ("1.5kb", 1500)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 gigs", "-1GB", "10", "0"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size of at least 1024 bytes"):
        parse_size(text)


def test_cutting_takes_the_room_of_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    content = bytes(range(250)) * 4
    archive.write_bytes(content)
    most, copy = 0, shutil.copyfileobj

    def counted(source: Any, target: Any, length: int) -> None:
        nonlocal most
        copy(source, target, length)
        target.flush()
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))

    monkeypatch.setattr(shutil, "copyfileobj", counted)
    parts = split(archive, 300)
    assert [path.stat().st_size for path in parts] == [300, 300, 300, 100]
    assert b"".join(path.read_bytes() for path in parts) == content
    assert 0 < most <= len(content) + 300
    assert sorted(tmp_path.iterdir()) == parts


def test_too_many_parts_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(bytes(5000))
    with pytest.raises(InputError, match="999 is the most"):
        split(archive, 5)
    assert split(archive, 5000) == [archive]
