"""Output that cannot be shown or written: replaced or lost, said where it can be, never a crash."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_coreml.streams import Stream
from sdxl_coreml.terminal import Terminal

ENCODINGS = ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"]


def run(
    *arguments: object, redirect: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """A command as a shell starts it, with its output redirected."""
    shell = f'exec "$@" {redirect}'
    command = [
        "bash",
        "-c",
        shell,
        "bash",
        sys.executable,
        "-m",
        "sdxl_coreml",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment})


# ---- characters ----


@settings(max_examples=60, deadline=None)
@given(st.text(), st.sampled_from(ENCODINGS))
def test_any_text_can_be_written_in_any_encoding(text: str, encoding: str) -> None:
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding=encoding, newline=""), "stdout")
    stream.write(text)
    assert stream.lost() is None
    shown = raw.getvalue().decode(encoding)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        assert len(shown) >= len(text)
    else:
        assert shown == text


def test_our_signs_have_plain_ones_and_a_files_bytes_are_told() -> None:
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding="ascii"), "stdout")
    stream.write("✓ 64×96 … ≥ 40 dB \udcff 鳥")
    stream.flush()
    assert raw.getvalue() == b"+ 64x96 ... >= 40 dB \\xff ?"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_says_the_same_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"prompt": "ein Pferd – 馬 é\udcff", "snr": "≥ 40"}
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding=encoding), "stdout")
    monkeypatch.setattr(sys, "stdout", stream)
    Terminal(as_json=True).result(document)
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == document


POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("command", "environment", "encoding"),
    [
        ("doctor", POSIX, "ascii"),
        ("doctor", {"PYTHONIOENCODING": "latin-1"}, "latin-1"),
        ("doctor", {"PYTHONIOENCODING": "cp1252:strict"}, "cp1252"),
        ("inspect", POSIX, "ascii"),
    ],
)
def test_a_terminal_without_our_signs_gets_others(
    command: str, environment: dict[str, str], encoding: str, base_artifact: Path
) -> None:
    arguments = [base_artifact] if command == "inspect" else []
    found = run(command, *arguments, **{"PYTHONUTF8": "0", **environment})
    assert found.returncode == 0, found.stderr
    assert found.stderr == b""
    assert len(found.stdout.decode(encoding).splitlines()) > 5


# ---- closed and full ----


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_changes_nothing(redirect: str, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy"
    found = run("toy", out, redirect=redirect)
    assert (found.returncode, found.stdout) == (0, b"")
    assert b"Traceback" not in found.stderr
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*"))
    assert names == sorted(str(p.relative_to(toy)) for p in toy.rglob("*"))
    for path in (p for p in toy.rglob("*") if p.is_file()):
        # Its number must not become a file's, which something else then writes to.
        assert (out / path.relative_to(toy)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "redirect", "code"),
    [
        (["recipes"], ">/dev/full", 2),
        (["recipes", "--json"], ">/dev/full", 2),
        (["schema"], ">/dev/full", 2),  # more than a buffer holds
        (["--help"], ">/dev/full", 2),
        (["--version"], ">/dev/full", 2),
        (["toy", "{out}"], "2>/dev/full", 2),
        (["recipes", "none"], ">/dev/full", 2),
    ],
)
def test_a_full_stream_is_an_error(
    arguments: list[str], redirect: str, code: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = run(*(a.format(out=out) for a in arguments), redirect=redirect)
    assert (found.returncode, found.stdout) == (code, b"")
    if redirect == "2>/dev/full":
        assert (out / "model_index.json").is_file()  # the work was done
    else:
        assert found.stderr.startswith(b"error: ")
        assert b"Traceback" not in found.stderr
        assert b"A mistake of ours" not in found.stderr
        if "none" not in arguments:
            assert b"stdout: No space left on device" in found.stderr


def test_a_reader_who_has_seen_enough_hides_no_exit_code(toy: Path) -> None:
    script = '"$@" | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}'
    base = [sys.executable, "-m", "sdxl_coreml"]
    for arguments, code in ((["schema"], 0), (["recipes", "none"], 2)):
        found = subprocess.run(
            ["bash", "-c", script, "bash", *base, *arguments], capture_output=True
        )
        assert found.returncode == code
        assert (found.stderr == b"") == (code == 0)


class Broken(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left"),
        (errno.EDQUOT, "quota"),
        (errno.EPIPE, None),
        (errno.EIO, None),
    ],
)
def test_what_was_lost_is_told_if_there_was_a_reader(number: int, says: str | None) -> None:
    stream = Stream(Broken(number), "stdout")
    stream.write("one")
    stream.write("two")
    lost = stream.lost()
    assert (lost is None) == (says is None)
    assert says is None or says in str(lost)


def test_python_may_have_no_streams_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sdxl_coreml import app

    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    for arguments, code in ((["toy", str(tmp_path / "toy")], 0), (["recipes"], 0), (["no"], 2)):
        monkeypatch.setattr(sys, "argv", ["sdxl-coreml", *arguments])
        with pytest.raises(SystemExit) as stopped:
            app.main()
        assert stopped.value.code == code
    assert (tmp_path / "toy" / "model_index.json").is_file()


def test_a_pipe_that_must_not_wait_is_waited_for(tmp_path: Path) -> None:
    """Some parents leave their pipes so, and a full one then is an error of Python's."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    script = f"import os, time; time.sleep(1); print(len(os.fdopen({reader}, 'rb').read()))"
    waiter = subprocess.Popen(
        [sys.executable, "-c", script], pass_fds=[reader], stdout=subprocess.PIPE
    )
    os.close(reader)
    code = (
        "from sdxl_coreml.streams import standard_streams\n"
        "with standard_streams() as (out, err):\n"
        "    for _ in range(300): print('x' * 999, flush=True)\n"
        "    assert out.lost() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], stdout=writer, check=True)
    os.close(writer)
    assert waiter.communicate()[0] == b"300000\n"
