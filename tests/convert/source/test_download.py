"""Downloading: what is fetched, how it goes on after an interruption, what the errors say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.source import select as repo_files
from convert.source.download import CheckpointSource, Snapshot, download, parse_source
from convert.source.headers import fetch_headers
from convert.source.hub import FileProgress
from convert.source.snapshot import RECORD
from tests.support.hub_server import TOKENIZER, HubServer, sdxl_repo

REPO = "cagliostrolab/animagine-xl-3.1"
UNET = "unet/diffusion_pytorch_model"
FULL = {
    "text_encoder/model.safetensors": b"full text_encoder",
    "text_encoder_2/model.safetensors": b"full text_encoder_2",
    f"{UNET}.safetensors": b"full unet" * 2000,
    "vae/diffusion_pytorch_model.safetensors": b"full vae",
}
HALF = {n.replace(".safetensors", ".fp16.safetensors"): b"half " + b for n, b in FULL.items()}
AROUND = {
    "LICENSE.md",
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{p}/config.json" for p in ("text_encoder", "text_encoder_2", "unet", "vae")),
    *(f"{p}/{name}" for p in ("tokenizer", "tokenizer_2") for name in TOKENIZER),
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub hands on 10 MB at a time; the test's files are smaller."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)


def fetch(
    hub: HubServer,
    tmp_path: Path,
    out: Path | None = None,
    revision: str | None = None,
    progress: FileProgress | None = None,
) -> Snapshot:
    source = CheckpointSource("repo", REPO, revision)
    return download(source, out, endpoint=hub.url, cache_dir=tmp_path / "cache", progress=progress)


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def shards(first: str, last: str = "", index: str = ".safetensors.index.json") -> list[str]:
    names = [f"{UNET}{first}-{i:05d}-of-00002{last}.safetensors" for i in (1, 2)]
    return [f"{UNET}{index}", *names]


# What SOURCE means


def test_existing_path_wins_over_repo_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("owner/name").kind == "repo"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert parse_source("owner/name") == CheckpointSource("path", "owner/name")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (REPO, CheckpointSource("repo", REPO)),
        (f"https://huggingface.co/{REPO}", CheckpointSource("repo", REPO)),
        (f"https://huggingface.co/{REPO}/", CheckpointSource("repo", REPO)),
        (f"https://hf.co/{REPO}/tree/v1", CheckpointSource("repo", REPO, "v1")),
        (
            f"https://huggingface.co/{REPO}/tree/refs%2Fpr%2F3",
            CheckpointSource("repo", REPO, "refs/pr/3"),
        ),
    ],
)
def test_repo_by_name_and_by_url(text: str, source: CheckpointSource) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize("page", ["resolve", "blob"])
def test_a_files_page_on_the_hub_is_that_file_of_its_repo(page: str) -> None:
    found = parse_source(f"https://huggingface.co/{REPO}/{page}/v1/sub/a.safetensors?download=true")
    assert found == CheckpointSource("repo", REPO, "v1", "sub/a.safetensors")


def test_what_is_said_of_a_url_holds_no_secret() -> None:
    source = parse_source("https://me:hf_secret@example.com:8080/a.safetensors?token=hf_secret")
    assert source.location == "https://example.com:8080/a.safetensors"
    assert "secret" not in repr(source)
    with pytest.raises(InputError, match=r"a\.safetensors: --revision main given for a URL"):
        parse_source("https://example.com/a.safetensors", "main")


@pytest.mark.parametrize("text", ["", "animagine", "./owner/name", "a/b/c", "owner/na me"])
def test_neither_path_nor_repo_says_both(text: str) -> None:
    with pytest.raises(InputError, match="no such folder or file, and not a Hub repo id"):
        parse_source(text)


def test_revision_of_a_local_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--revision main given for a local path"):
        parse_source(str(tmp_path), "main")


# Which files


def select_files(names: Sequence[str]) -> list[str]:
    """What is chosen of a listing; its indexes, if any, name the shards beside them."""

    def read(index: str) -> bytes:
        shards = [n.rpartition("/")[2] for n in names if n.startswith(UNET) and "-of-" in n]
        return json.dumps({"metadata": {}, "weight_map": {n: n for n in shards}}).encode()

    return repo_files.select_files(names, read)


def test_only_needed_files_of_a_cluttered_repo() -> None:
    assert set(select_files(list(sdxl_repo(FULL)))) == AROUND | set(FULL)


def test_fp16_is_preferred_and_order_does_not_depend_on_the_listing() -> None:
    names = list(sdxl_repo(FULL | HALF))
    assert set(select_files(names)) == AROUND | set(HALF)
    assert select_files(names) == select_files(names[::-1])


@pytest.mark.parametrize(
    "unet",
    [
        shards(""),
        shards(".fp16", index=".safetensors.index.fp16.json"),
        shards("", ".fp16", index=".safetensors.index.fp16.json"),
        shards("", ".fp16", index=".safetensors.fp16.index.json"),
    ],
)
def test_shards_come_with_their_index(unet: list[str]) -> None:
    others = [n for n in sdxl_repo(FULL) if n != f"{UNET}.safetensors"]
    chosen = select_files([*others, *unet])
    assert sorted(n for n in chosen if n.startswith(UNET)) == sorted(unet)


def test_an_incomplete_fp16_set_is_passed_over() -> None:
    index, *partial = shards(".fp16", index=".safetensors.index.fp16.json")
    map_ = {str(n): name.rpartition("/")[2] for n, name in enumerate(partial)}
    content = json.dumps({"metadata": {}, "weight_map": map_}).encode()
    names = [*sdxl_repo(FULL), index, partial[0]]
    chosen = repo_files.select_files(names, lambda name: content)
    assert [n for n in chosen if n.startswith(UNET)] == [f"{UNET}.safetensors"]


def test_refiner_has_no_first_text_encoder() -> None:
    names = [n for n in sdxl_repo(FULL) if not n.startswith(("text_encoder/", "tokenizer/"))]
    assert not [n for n in select_files(names) if n.startswith(("text_encoder/", "tokenizer/"))]


def test_tokenizer_with_only_tokenizer_json_will_do() -> None:
    names = [n for n in sdxl_repo(FULL) if not n.startswith("tokenizer_2/")]
    assert "tokenizer_2/tokenizer.json" in select_files([*names, "tokenizer_2/tokenizer.json"])
    with pytest.raises(InputError, match="tokenizer_2/ has neither"):
        select_files(names)


def test_bin_weights_are_read_where_there_are_no_others() -> None:
    names = [n for n in sdxl_repo(FULL) if n != f"{UNET}.safetensors"]
    unet = [name for name in select_files(names) if name.startswith("unet/")]
    assert unet == ["unet/config.json", f"{UNET}.bin"]


def test_a_repo_with_other_weights_names_folder_and_remedy() -> None:
    names = [n for n in sdxl_repo(FULL) if not n.startswith(UNET)]
    with pytest.raises(InputError, match=r"unet/ has no complete weights") as error:
        select_files([*names, f"{UNET}.msgpack"])
    assert "diffusion_pytorch_model.msgpack" in str(error.value)
    assert "save_pretrained" in str(error.value.hint)


def test_a_repo_of_another_layout_says_what_it_found() -> None:
    with pytest.raises(InputError, match=r"no model_index\.json, found model\.onnx"):
        select_files(["model.onnx"])


def test_other_architectures_are_no_sdxl_layout() -> None:
    with pytest.raises(InputError, match="text_encoder_2/ has no complete weights"):
        select_files([n for n in sdxl_repo(FULL) if not n.startswith("text_encoder_2/")])


def test_vae_alone_from_its_own_repo_or_from_a_checkpoint() -> None:
    root = ["config.json", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors"]
    assert repo_files.weight_files(root, "", lambda name: b"").files == (root[1],)
    assert repo_files.weight_files(list(sdxl_repo(HALF)), "vae", lambda name: b"").files == (
        "vae/diffusion_pytorch_model.fp16.safetensors",
    )


# Fetching


def test_out_is_a_plain_folder_with_a_record(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.push(REPO, sdxl_repo(FULL | HALF))
    snapshot = fetch(hub, tmp_path, tmp_path / "out")
    assert files_in(tmp_path / "out") == AROUND | set(HALF) | {RECORD}
    assert set(hub.fetched()) == AROUND | set(HALF)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["repo"], record["revision"], record["commit"]) == (REPO, None, commit)
    assert (snapshot.repo, snapshot.commit, snapshot.path) == (REPO, commit, tmp_path / "out")
    assert all(
        f.sha256 and f.size == (snapshot.path / f.name).stat().st_size for f in snapshot.files
    )


def test_without_out_files_are_in_the_hubs_cache(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    commit = hub.push(REPO, sdxl_repo(HALF))
    snapshot = fetch(hub, tmp_path)
    name = f"{UNET}.fp16.safetensors"
    found = try_to_load_from_cache(REPO, name, cache_dir=tmp_path / "cache", revision="main")
    assert found == str(snapshot.path / name)
    assert (snapshot.path / name).read_bytes() == HALF[name]
    assert (snapshot.commit, files_in(snapshot.path)) == (commit, AROUND | set(HALF))


@pytest.mark.parametrize("out", [None, "out"])
def test_second_run_fetches_nothing(hub: HubServer, tmp_path: Path, out: str | None) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    folder = tmp_path / out if out else None
    first = fetch(hub, tmp_path, folder)
    hub.requests.clear()
    second = fetch(hub, tmp_path, folder)
    assert (hub.fetched(), len(hub.requests)) == ([], 1)
    assert {f.name: f.sha256 for f in second.files} == {f.name: f.sha256 for f in first.files}


def test_a_commit_that_is_there_needs_no_request(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.push(REPO, sdxl_repo(HALF))
    fetch(hub, tmp_path, tmp_path / "out")
    hub.requests.clear()
    assert fetch(hub, tmp_path, tmp_path / "out", commit).commit == commit
    assert hub.requests == []


def test_what_the_cache_has_is_linked_into_out(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    cached = fetch(hub, tmp_path)
    hub.requests.clear()
    fetch(hub, tmp_path, tmp_path / "out")
    assert hub.fetched() == []
    name = f"{UNET}.fp16.safetensors"
    assert (tmp_path / "out" / name).samefile(cached.path / name)
    assert not (tmp_path / "out" / name).is_symlink()


def test_a_branch_that_moved_updates_out(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, sdxl_repo(FULL))
    fetch(hub, tmp_path, tmp_path / "out", "main")
    hub.requests.clear()
    commit = hub.push(REPO, sdxl_repo(FULL | HALF) | {"README.md": b"# new card\n"})
    assert fetch(hub, tmp_path, tmp_path / "out", "main").commit == commit
    assert set(hub.fetched()) == set(HALF) | {"README.md"}
    assert files_in(tmp_path / "out") == AROUND | set(HALF) | {RECORD}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("out", [None, "out"])
def test_dropped_connection_goes_on_by_range(
    hub: HubServer, tmp_path: Path, out: str | None
) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    hub.drop_after = 5500
    snapshot = fetch(hub, tmp_path, tmp_path / out if out else None)
    name = f"{UNET}.fp16.safetensors"
    assert (snapshot.path / name).read_bytes() == HALF[name]
    assert "bytes=5000-" in [r.range for r in hub.requests]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("out", [None, "out"])
def test_killed_run_goes_on_by_range(hub: HubServer, tmp_path: Path, out: str | None) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    folder = tmp_path / out if out else None
    seen = []

    def interrupt(name: str, done: int, total: int) -> None:
        seen.append(name)
        if seen.count(f"{UNET}.fp16.safetensors") == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(hub, tmp_path, folder, progress=interrupt)
    assert folder is None or not (folder / RECORD).exists()
    before = set(hub.fetched())
    hub.requests.clear()
    snapshot = fetch(hub, tmp_path, folder)
    assert any(r.range and r.range != "bytes=0-" for r in hub.requests)
    assert before & set(hub.fetched()) == {f"{UNET}.fp16.safetensors"}
    wanted = {RECORD} if out else set()
    assert files_in(snapshot.path) - AROUND - set(HALF) == wanted


def test_progress_counts_the_whole_download_and_nothing_is_printed(
    hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    steps: list[tuple[str, int, int]] = []
    snapshot = fetch(hub, tmp_path, tmp_path / "out", progress=lambda *step: steps.append(step))
    total = sum(f.size for f in snapshot.files)
    assert steps[-1][1:] == (total, total)
    assert [s[1] for s in steps] == sorted(s[1] for s in steps)
    assert capfd.readouterr() == ("", "")


def test_damaged_file_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    hub.corrupt = True
    with pytest.raises(InputError, match="arrived damaged"):
        fetch(hub, tmp_path, tmp_path / "out")
    hub.corrupt = False
    assert fetch(hub, tmp_path, tmp_path / "out").commit


def test_no_space_is_said_before_the_first_byte(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="no space"):
        fetch(hub, tmp_path, tmp_path / "out")
    assert hub.fetched() == []


# Without a connection


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("out", [None, "out"])
def test_offline_with_everything_there(
    hub: HubServer, tmp_path: Path, out: str | None, pinned: bool
) -> None:
    commit = hub.push(REPO, sdxl_repo(HALF))
    folder = tmp_path / out if out else None
    first = fetch(hub, tmp_path, folder)
    hub.stop()
    again = fetch(hub, tmp_path, folder, commit if pinned else None)
    assert (again.commit, again.path) == (commit, first.path)
    assert {(f.name, f.size, f.sha256) for f in again.files} == {
        (f.name, f.size, f.sha256) for f in first.files
    }


def test_offline_fills_out_from_the_cache(hub: HubServer, tmp_path: Path) -> None:
    fetch_commit = hub.push(REPO, sdxl_repo(HALF))
    fetch(hub, tmp_path)
    hub.stop()
    assert fetch(hub, tmp_path, tmp_path / "out").commit == fetch_commit
    assert files_in(tmp_path / "out") == AROUND | set(HALF) | {RECORD}


def test_unreachable_hub_is_said(hub: HubServer, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(InputError, match="the Hub cannot be reached"):
        fetch(hub, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_offline_mode_with_half_a_cache_is_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    (fetch(hub, tmp_path).path / "text_encoder" / "model.fp16.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    with pytest.raises(InputError, match="not complete on this disk, and HF_HUB_OFFLINE is set"):
        fetch(hub, tmp_path)
    assert hub.requests == []


# Errors


def test_missing_repo(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{REPO}: no such repo on the Hub"):
        fetch(hub, tmp_path)


def test_missing_revision(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    with pytest.raises(InputError, match="no such revision: v9"):
        fetch(hub, tmp_path, revision="v9")


def test_gated_repo_says_how_to_get_in(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    hub.gated.add(REPO)
    with pytest.raises(InputError, match="gated") as error:
        fetch(hub, tmp_path)
    assert f"https://huggingface.co/{REPO}" in str(error.value.hint)
    assert "hf auth login" in str(error.value.hint)
    assert error.value.__suppress_context__


def test_login_goes_to_the_hub_only(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.push(REPO, sdxl_repo(HALF))
    fetch(hub, tmp_path, tmp_path / "out")
    logins = {(r.path.startswith("/cdn/"), r.login) for r in hub.requests}
    assert logins == {(False, "Bearer hf_secret"), (True, None)}
    hub.gated.add(REPO)
    with pytest.raises(InputError) as error:
        fetch(hub, tmp_path, tmp_path / "other")
    assert "secret" not in str(error.value)


def test_repo_of_another_layout_is_named(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, {"README.md": b"", "model.onnx": b"weights"})
    with pytest.raises(InputError, match=rf"{REPO}: .*found README\.md, model\.onnx"):
        fetch(hub, tmp_path)
    assert hub.fetched() == []


def test_the_only_single_file_of_a_repo_is_meant(hub: HubServer, tmp_path: Path) -> None:
    texts = {"README.md": b"card", "LICENSE.md": b"terms"}
    hub.push(REPO, {**texts, "model.safetensors": b"weights", "sub/other.safetensors": b""})
    snapshot = fetch(hub, tmp_path)
    assert snapshot.path.name == "model.safetensors"
    assert snapshot.path.read_bytes() == b"weights"
    assert {f.name for f in snapshot.files} == {*texts, "model.safetensors"}
    assert snapshot.files[0].sha256 == hashlib.sha256(b"weights").hexdigest()


def test_one_of_several_single_files_has_to_be_named(hub: HubServer, tmp_path: Path) -> None:
    hub.push(REPO, {"a.safetensors": b"a", "b.ckpt": b"b", "sub/c.safetensors": b"c"})
    with pytest.raises(
        InputError, match=r"2 single files here.*: a\.safetensors, b\.ckpt"
    ) as error:
        fetch(hub, tmp_path)
    assert "`file` in a recipe" in str(error.value.hint)
    for name in ("b.ckpt", "sub/c.safetensors"):
        source = CheckpointSource("repo", REPO, file=name)
        found = download(source, endpoint=hub.url, cache_dir=tmp_path / "cache")
        assert found.path.read_bytes() == name.rpartition("/")[2][0].encode()
        in_out = download(source, tmp_path / name[0], endpoint=hub.url, cache_dir=tmp_path / "new")
        assert in_out.path == tmp_path / name[0] / name
    wrong = CheckpointSource("repo", REPO, file="b.ckpt", sha256="0" * 64)
    with pytest.raises(InputError, match=rf"SHA-256 is {hashlib.sha256(b'b').hexdigest()}, not 0"):
        download(wrong, endpoint=hub.url, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"no file b\.ckp here") as error:
        download(CheckpointSource("repo", REPO, file="b.ckp"), endpoint=hub.url)
    assert error.value.hint == "Did you mean b.ckpt?"


@pytest.mark.parametrize("kind", ["file", "other files", "other repo"])
def test_out_that_holds_something_else_is_left_alone(
    hub: HubServer, tmp_path: Path, kind: str
) -> None:
    hub.push(REPO, sdxl_repo(HALF))
    hub.push("other/repo", sdxl_repo(FULL))
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "other files":
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    else:
        download(
            CheckpointSource("repo", "other/repo"),
            out,
            endpoint=hub.url,
            cache_dir=tmp_path / "cache",
        )
    before = {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()}
    with pytest.raises(InputError, match="not a folder" if kind == "file" else "left as it is"):
        fetch(hub, tmp_path, out)
    assert {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()} == before


# Local folders and files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_of_several_sets_of_shards_only_those_of_the_index_are_fetched(
    hub: HubServer, tmp_path: Path
) -> None:
    index, *now = shards("")
    stale = [f"{UNET}-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    files = {n: n.encode() for n in (*now, *stale)} | {
        n: b for n, b in FULL.items() if not n.startswith("unet/")
    }
    map_ = {f"t{i}": name.rpartition("/")[2] for i, name in enumerate(now)}
    files[index] = json.dumps({"metadata": {}, "weight_map": map_}).encode()
    hub.push(REPO, sdxl_repo(files))
    wanted = AROUND | files.keys() - set(stale)
    assert files_in(fetch(hub, tmp_path, tmp_path / "out").path) == wanted | {RECORD}
    assert {f.name for f in fetch(hub, tmp_path).files} == wanted
    hub.stop()  # and what is there complete is known to be, index and all
    assert {f.name for f in fetch(hub, tmp_path, tmp_path / "out").files} == wanted
    assert {f.name for f in fetch(hub, tmp_path).files} == wanted


def test_local_folder_is_used_in_place(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", sdxl_repo(HALF, clutter=False))
    snapshot = download(parse_source(str(folder)))
    assert (snapshot.path, snapshot.repo, snapshot.commit) == (folder, None, None)
    assert {f.name for f in snapshot.files} == AROUND | set(HALF)


def test_local_folder_is_linked_into_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", sdxl_repo(FULL | HALF))
    source, out = parse_source(str(folder)), tmp_path / "out"
    download(source, out)
    assert files_in(out) == AROUND | set(HALF) | {RECORD}
    assert (out / f"{UNET}.fp16.safetensors").samefile(folder / f"{UNET}.fp16.safetensors")
    assert {f.name for f in download(source, out).files} == AROUND | set(HALF)


def test_a_downloaded_folder_keeps_its_commit_until_it_is_changed(
    hub: HubServer, tmp_path: Path
) -> None:
    commit = hub.push(REPO, sdxl_repo(HALF))
    out = fetch(hub, tmp_path, tmp_path / "out").path
    source = parse_source(str(out))
    assert download(source).commit == commit
    assert download(source, tmp_path / "copy").commit == commit
    (out / f"{UNET}.fp16.safetensors").write_bytes(b"merged with something")
    assert (download(source).repo, download(source).commit) == (None, None)


def test_local_single_file(tmp_path: Path) -> None:
    file = write(tmp_path, {"model.safetensors": b"weights"}) / "model.safetensors"
    assert download(parse_source(str(file))).path == file
    assert download(parse_source(str(file)), tmp_path / "out").path.read_bytes() == b"weights"
    folder = write(tmp_path / "folder", {"model.ckpt": b"", "README.md": b""})
    assert download(parse_source(str(folder / "model.ckpt"))).path == folder / "model.ckpt"
    assert download(parse_source(str(folder)), tmp_path / "two").path == tmp_path / "two/model.ckpt"


def pickled(toy: Path, *, old: bool) -> dict[str, bytes]:
    """The files of the toy, whose UNet PyTorch has written."""
    import io

    import torch
    from safetensors.torch import load

    files = {str(p.relative_to(toy)): p.read_bytes() for p in toy.rglob("*") if p.is_file()}
    data, name = io.BytesIO(), "unet/diffusion_pytorch_model"
    tensors = load(files.pop(f"{name}.safetensors"))
    torch.save(tensors, data, _use_new_zipfile_serialization=not old)
    return {f"{name}.bin": data.getvalue(), **files}


def test_a_plan_of_old_pickles_asks_for_them(hub: HubServer, toy: Path, tmp_path: Path) -> None:
    hub.push("me/toy", pickled(toy, old=True))
    with pytest.raises(InputError, match=r"model\.bin is a pickle of PyTorch before 1\.6") as error:
        fetch_headers(
            parse_source("me/toy"), tmp_path / "o", endpoint=hub.url, cache_dir=tmp_path / "cache"
        )
    assert "sdxl-coreml download me/toy" in str(error.value.hint)


def test_a_plan_of_pickles_fetches_what_lists_their_tensors(
    hub: HubServer, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.source.holes.FIRST", 1 << 17)
    files = pickled(toy, old=False)
    hub.push("me/toy", files)
    source, cache = parse_source("me/toy"), tmp_path / "cache"
    found = fetch_headers(source, tmp_path / "o", endpoint=hub.url, cache_dir=cache).path
    assert hub.bytes_sent() < sum(map(len, files.values())) // 4
    assert open_checkpoint(found).part("unet").size == open_checkpoint(toy).part("unet").size


def test_a_plan_fetches_headers_only(hub: HubServer, toy: Path, tmp_path: Path) -> None:
    files = {str(p.relative_to(toy)): p.read_bytes() for p in toy.rglob("*") if p.is_file()}
    hub.push("me/toy", files)
    source = parse_source("me/toy")
    snapshot = fetch_headers(source, tmp_path / "o", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert hub.bytes_sent() < sum(map(len, files.values())) // 2
    recipe = parse_recipe('name = "t"\n[source]\nrepo = "me/toy"\n', where="test")
    plan = make_plan(recipe, open_checkpoint(snapshot.path))
    assert plan.weight_files == make_plan(recipe, open_checkpoint(toy)).weight_files


# A VAE alone

VAE_REPO = {
    "config.json": b'{"_class_name": "AutoencoderKL"}',
    "diffusion_pytorch_model.safetensors": b"fix",
    "diffusion_pytorch_model.bin": b"fix as a pickle",
    "sdxl_vae.safetensors": b"fix as a single file",
    "README.md": b"---\nlicense: mit\n---\n",
}


def test_of_a_vaes_repo_no_more_than_its_vae_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.push("owner/fix", VAE_REPO)
    hub.push(REPO, sdxl_repo(FULL))
    fetch(hub, tmp_path)
    cache = tmp_path / "cache"
    wanted = CheckpointSource("repo", "owner/fix", take="vae")
    snapshot = download(wanted, endpoint=hub.url, cache_dir=cache)
    names = {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert {file.name for file in snapshot.files} == files_in(snapshot.path) == names
    of_checkpoint = CheckpointSource("repo", REPO, take="vae")
    found = download(of_checkpoint, endpoint=hub.url, cache_dir=tmp_path / "another")
    assert {f.name for f in found.files if "/" in f.name} == {
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    rest = CheckpointSource("repo", REPO, take="checkpoint without vae")
    found = download(rest, endpoint=hub.url, cache_dir=tmp_path / "a third")
    assert not any(name.startswith("vae/") for name in files_in(found.path))
    hub.stop()
    assert download(of_checkpoint, endpoint=hub.url, cache_dir=cache).path.is_dir()  # of the first


def test_a_plan_knows_a_vae_by_the_hubs_digest_without_its_weights(
    hub: HubServer, tmp_path: Path
) -> None:
    weights = (8).to_bytes(8, "little") + b"{}      "
    hub.push("owner/fix", {**VAE_REPO, "diffusion_pytorch_model.safetensors": weights})
    wanted = CheckpointSource("repo", "owner/fix", take="vae")
    snapshot = fetch_headers(wanted, tmp_path / "o", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert snapshot.path.is_dir()
    file = snapshot.path / "diffusion_pytorch_model.safetensors"
    assert snapshot.digests[file] == hashlib.sha256(weights).hexdigest()
