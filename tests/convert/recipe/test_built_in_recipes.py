"""The recipe for animagine-xl-3.1 plans completely, and runs with a toy in its place."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.builtin import builtin_recipe_text
from convert.recipe.recipe import parse_recipe

Run = Callable[..., tuple[int, str, str]]
TEXT = builtin_recipe_text("animagine-xl-3.1")
# The sizes of its card.
SIZES = [
    "1024x1024", "1152x896", "896x1152", "1216x832", "832x1216", "1344x768", "768x1344", "1536x640",
    "640x1536",
]  # fmt: skip


def test_it_plans_all_nine_resolutions_both_variants_8_and_6_bits(
    shapes: Mapping[str, Path],
) -> None:
    plan = make_plan(parse_recipe(TEXT, where="test"), open_checkpoint(shapes["base"]))
    assert {a.artifact.name for a in plan.artifacts} == {
        f"animagine-xl-3.1_{attention}_{bits}-bit_{size}"
        for attention in ("original", "split-einsum")
        for bits in ("8", "6")
        for size in SIZES
    }
    # 2 × 2 text encoders, 2 × 2 × 9 UNets, 2 × 9 of the VAE, whose weights stay at 16 bits.
    assert len(plan.jobs) == 4 + 36 + 18
    settings = plan.recipe.verify
    assert (settings.scheduler, settings.steps, settings.guidance) == ("euler_a", 28, 7.0)
    assert settings.negative_prompt.startswith("nsfw, lowres, (bad), text, error")
    assert all(str(plan.recipe.release.quality_tags) in prompt for prompt in settings.prompts)


@pytest.mark.slow
def test_it_runs_with_a_toy_of_the_same_layout(
    command: Run, one_thread: None, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    """At an eighth of each side, because PyTorch's own attention at 1024x1024 takes gigabytes."""

    def eighth(match: re.Match[str]) -> str:
        return f'"{int(match[1]) // 8}x{int(match[2]) // 8}"'

    recipe = tmp_path / "animagine.toml"
    recipe.write_text(re.sub(r'"(\d+)x(\d+)"', eighth, TEXT), "utf-8")
    source = Path(shutil.copytree(shapes["base"], tmp_path / "toy"))
    (source / "README.md").write_text("---\nlicense: other\n---\n# Animagine, copied\n")
    out = tmp_path / "out"
    code, _, err = command(
        "run", recipe, "--source", source, "--out", out, "--only", "*_6-bit_104x152", "--quiet"
    )
    assert code == 0, err
    assert sorted(p.name for p in (out / "release").glob("*.zip")) == [
        "animagine-xl-3.1_original_6-bit_104x152.zip",
        "animagine-xl-3.1_split-einsum_6-bit_104x152.zip",
    ]
    code, text, _ = command("lint", out / "release", "--json")
    assert code == 0, text
    for result in json.loads(text)["results"][1:]:
        apps = {a["app"]: a for a in result["apps"]}
        assert all(a["works"] and a["size"] == "104x152" and a["sdxl"] for a in apps.values())
        split = "split-einsum" in result["name"]
        assert (apps["MochiDiffusion"]["attention"] == "split_einsum") == split
    card = (out / "release" / "README.md").read_text()
    assert "license_name: faipl-1.0-sd" in card
    assert "| Scheduler | Euler a |" in card
    assert "| 104 × 152 | 13:19 | portrait |" in card
    assert card.rstrip().endswith("# Animagine, copied")
