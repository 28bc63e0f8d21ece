"""Where commands write to: a link that leads nowhere is refused at once, by every command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from sdxl_coreml.app import application

Call = Callable[..., tuple[int, str, str]]


def commands() -> Iterator[tuple[str, click.Command]]:
    group: Any = typer.main.get_command(application())
    yield from sorted(group.commands.items())


WITH_OUT = {n: c for n, c in commands() if any("--out" in p.opts for p in c.params)}


def arguments(subject: click.Command) -> list[str]:
    """Something for everything that the command must have."""
    found = []
    for parameter in subject.params:
        if isinstance(parameter, click.Argument):
            found.append("thing")
        elif parameter.required and "--out" not in parameter.opts:
            found += [parameter.opts[0], "64x64"]
    return found


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("below", ["", "inside/it"])
def test_out_that_is_a_link_to_nothing_is_named(
    name: str, below: str, tmp_path: Path, command: Call
) -> None:
    link = tmp_path / "link"
    link.symlink_to("gone")
    code, said, error = command(name, *arguments(WITH_OUT[name]), "--out", link / below)
    assert (code, said) == (2, "")
    assert f"{link}: is a link to gone, nothing that is there" in error
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_the_toy_is_not_written_through_one(tmp_path: Path, command: Call) -> None:
    (tmp_path / "link").symlink_to("link")
    code, _, error = command("toy", tmp_path / "link")
    assert code == 2
    assert "is a link to link, itself" in error


def test_these_are_the_commands() -> None:
    assert {
        "convert",
        "run",
        "download",
        "compile",
        "pack",
        "generate",
        "record",
    } <= WITH_OUT.keys()


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path, command: Call) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert command("toy", tmp_path / "link" / "toy")[0] == 0
    assert (tmp_path / "real" / "toy" / "model_index.json").is_file()
