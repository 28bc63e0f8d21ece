from __future__ import annotations

import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.errors import InputError
from convert.recipe.builtin import builtin_recipe_text, builtin_recipes
from convert.recipe.recipe import Recipe, json_schema, load_recipe, parse_recipe
from convert.values import (
    ATTENTIONS,
    FORMATS,
    PLAIN_BITS,
    DeploymentTarget,
    Resolution,
    parse_bits,
    targets_for,
)

SMALL = 'name = "x"\n[source]\nrepo = "owner/model"\n'


def parse(text: str) -> Recipe:
    return parse_recipe(text, where="r.toml")


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("r.toml: ")
    return message


def test_name_and_source_are_enough() -> None:
    recipe = parse(SMALL)
    assert [artifact.name for artifact in recipe.artifacts()] == [
        "x_original_16-bit_1024x1024",
        "x_split-einsum_16-bit_1024x1024",
    ]
    assert recipe.target.deployment == "macOS14"
    assert recipe.target.vae_precision == "float32"


def test_every_key_of_the_contract_is_read() -> None:
    recipe = parse(
        """
        name = "animagine-xl-3.1"
        [source]
        repo = "cagliostrolab/animagine-xl-3.1"
        revision = "main"
        loras = [{ path = "detail.safetensors", scale = 0.8 }, { path = "b.safetensors" }]
        [matrix]
        attention = ["split_einsum_v2"]
        resolution = ["832x1216"]
        bits = ["int8", "mixed-4.5"]
        [target]
        deployment = "iOS18"
        vae_precision = "float16"
        [verify]
        prompts = ["a cat"]
        negative_prompt = "a dog"
        steps = 28
        guidance = 7
        scheduler = "euler_a"
        [release]
        repo = "coreml-community/coreml-animagine-xl-3.1"
        template = "{bits}-{name}"
        license = "faipl-1.0-sd"
    """
    )
    assert recipe.source.revision == "main"
    assert [(lora.path, lora.scale) for lora in recipe.source.loras] == [
        ("detail.safetensors", 0.8),
        ("b.safetensors", 1.0),
    ]
    assert recipe.verify.guidance == 7.0
    assert [artifact.name for artifact in recipe.artifacts()] == [
        "int8-animagine-xl-3.1",
        "mixed-4.5-animagine-xl-3.1",
    ]


GATE = "bits = '6', component = 'unet', min_snr_db"
# (what follows SMALL, what the message says)
BAD_RECIPES = [
    (
        "bogus = 1",
        "source.bogus: unknown key; the keys here are repo, path, url, revision, file, sha256",
    ),
    (
        "clip_skip = 2",
        "source.clip_skip: is no setting: SDXL always has what model cards call clip",
    ),
    ("[verify]\nCLIP-skip = 2", "verify.CLIP-skip: is no setting: SDXL always has"),
    ("[target]\nclip_skip = 1", "target.clip_skip: 1 cannot be had, only the layer that SDXL is"),
    ("[matrx]", "matrx: unknown key; did you mean `matrix`?"),
    ("bits = ['8']", "source.bits: unknown key; `bits` belongs in [matrix]"),
    ("name = 'y'", "source.name: unknown key; `name` belongs at the top"),
    ("path = 'x'", "source: needs exactly one of repo, path, url; not repo and path"),
    ("revision = 3", 'source.revision: must be a string, not the integer 3; write "3"'),
    (f"[verify]\ngates = [{{ {GATE} = '1' }}]", "verify.gates[0].min_snr_db: must be a number"),
    (f"[verify]\ngates = [{{ {GATE} = inf }}]", "gates[0].min_snr_db: must be a finite number"),
    ("[compress]\ntensors = [{}]", "compress.tensors[0].name: missing; for example name = "),
    ("[compress]\ntensors = 'x'", 'tensors: must be a list, not the string "x"; write ["x"]'),
    ("loras = [{}]", "source.loras[0]: needs exactly one of path, repo, url"),
    ("loras = [{ path = 'x', file = 'y' }]", "source.loras[0].file: belongs to repo; a path is"),
    ("loras = [{ path = 'x', scale = 'y' }]", "source.loras[0].scale: must be a number"),
    ("loras = [{ path = 'x', scale = inf }]", "source.loras[0].scale: "),
    ("refiner = 'a/b'", "source.refiner: cannot be used by this version; convert it by a recipe"),
    (
        "vae = 'https://example.com/x?token=y'",
        "source.vae: holds `token`, and recipes are recorded",
    ),
    ("url = 'https://example.com/x'", "source: needs exactly one of repo, path, url; not repo and"),
    ("sha256 = 'abc'", 'source.sha256: "abc" is not a SHA-256: 64 digits from 0 to f'),
    (f"sha256 = '{'a' * 64}'", "source.sha256: is of a single file, which `file` names in a repo"),
    ("[[matrix]]", "matrix: must be a table, not a list"),
    (
        "[matrix]\nattention = ['original', 'split_einsm']",
        'matrix.attention[1]: "split_einsm" is not one of original, split_einsum, '
        "split_einsum_v2; did you mean `split_einsum`?",
    ),
    ("[matrix]\nattention = ['split-einsum-v2']", "did you mean `split_einsum_v2`?"),
    ("[matrix]\nattention = 'original'", 'matrix.attention: must be a list, not the string "orig'),
    ("[matrix]\nattention = [1]", "matrix.attention[0]: must be one of original, split_einsum"),
    ("[matrix]\nattention = []", "matrix.attention: must not be empty"),
    ("[matrix]\nbits = ['8', '6', '8']", "matrix.bits[2]: `8` is listed twice"),
    ("[matrix]\nbits = [16]", 'matrix.bits[0]: must be a string, not the integer 16; write "16"'),
    ("[matrix]\nbits = ['8-bit']", "did you mean `8`?"),
    ("[matrix]\nbits = ['mixed-16.1']", "not an average of 1.0 to 16.0 bits"),
    ("[matrix]\nbits = ['mixed-0.9']", "not an average of 1.0 to 16.0 bits"),
    ("[matrix]\nresolution = [1024]", 'must be a string such as "832x1216"'),
    ("[matrix]\nresolution = ['1024×1024']", "did you mean `1024x1024`?"),
    ("[matrix]\nresolution = ['1024']", "did you mean `1024x1024`?"),
    ("[matrix]\nresolution = ['832x1217']", "multiple of 8; the nearest is `832x1216`"),
    ("[matrix]\nresolution = ['0x1024']", "matrix.resolution[0]: `0x1024` is not a resolution"),
    ("[target]\ndeployment = 'macos14'", "did you mean `macOS14`?"),
    (
        "[target]\nvae_precision = 'float23'",
        'target.vae_precision: "float23" is not one of float32, float16, auto; did you mean '
        "`float32`?",
    ),
    (
        "[matrix]\nbits = ['8', '3']",
        "matrix.bits[1]: `3` needs a deployment target of macOS15 or iOS18 or newer, not macOS14; "
        'write deployment = "macOS15" in [target]',
    ),
    (
        "[matrix]\nbits = ['int4']\n[target]\ndeployment = 'iOS17'",
        "matrix.bits[0]: `int4` needs a deployment target of macOS15 or iOS18 or newer, not iOS17; "
        'write deployment = "iOS18" in [target]',
    ),
    ("[verify]\nprompts = []", "verify.prompts: must not be empty"),
    ("[verify]\nsteps = 0", "verify.steps: must be at least 1, not 0"),
    ("[verify]\nsteps = true", "verify.steps: must be an integer, not the boolean true"),
    ("[verify]\nsteps = 20.0", "verify.steps: must be an integer, not the number 20.0"),
    ("[verify]\nguidance = nan", "verify.guidance: must be a finite number, not nan"),
    ("[verify]\nguidance = -1", "verify.guidance: must be at least 0"),
    ("[verify]\nscheduler = 'Euler A'", "did you mean `euler_a`?"),
    ("[verify]\nlevels = ['generatoin']", "did you mean `generation`?"),
    (
        "[[verify.gates]]\nbits = '6'\ncomponent = 'pipeline'\nmin_snr_db = 20.0",
        "pipeline needs min_latents_cosine or min_psnr_db",
    ),
    (
        "[[verify.gates]]\nbits = '6'\ncomponent = 'unet'\nmin_psnr_db = 20.0",
        "unet needs min_snr_db",
    ),
    ("[release]\nrepo = 'https://huggingface.co/a/b'", "did you mean `a/b`?"),
    ("[release]\nlicense = 1979-05-27", "release.license: must be a string"),
    ("[release]\nlicense_link = 'freedevproject.org'", "is not a link"),
    (
        "[release]\ntemplate = '{name}_{attenton}'",
        "unknown field {attenton}; the fields are {name}",
    ),
    ("[release]\ntemplate = '{name}_{attenton}'", "did you mean {attention}?"),
    ("[release]\ntemplate = '{}'", "unknown field {}"),
    ("[release]\ntemplate = '{name'", "is not a template"),
    ("[release]\ntemplate = '{name:>9}'", "{name} takes no format"),
    ("[release]\ntemplate = '{name.__class__}'", "unknown field {name.__class__}"),
    ("[release]\ntemplate = '{name}/{attention}'", "release.template: makes unusable names"),
    ("[release]\ntemplate = '.{attention}'", "release.template: makes unusable names"),
    (
        "[release]\ntemplate = '{name}'",
        'release.template: "{name}" names several artifacts "x"; add {attention}',
    ),
    (
        "[matrix]\nresolution = ['832x1216', '1216x832']\n"
        "[release]\ntemplate = '{name}-{attention}-{width}'\n[matrix.x]",
        "matrix.x: unknown key",
    ),
    (
        "[matrix]\nattention = ['original']\nresolution = ['64x64', '64x128']\n"
        "[release]\ntemplate = '{width}'",
        'names several artifacts "64"; add {height}',
    ),
]


@pytest.mark.parametrize(("added", "expected"), BAD_RECIPES)
def test_a_bad_value_is_named_with_what_is_allowed(added: str, expected: str) -> None:
    assert expected in refused(SMALL + added)


@pytest.mark.parametrize(
    "name",
    ["", " ", "../x", "a/b", "a\\\\b", ".hidden", "-x", "x ", "x.", "a:b", "a\\nb", "n" * 101],
)
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    assert "r.toml: name: " in refused(SMALL.replace('"x"', f'"{name}"'))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "source: needs exactly one of repo, path, url; none is given"),
        (
            "url = 'https://h/x?token=1'",
            "source.url: holds `token`, and recipes are recorded; give",
        ),
        ("url = 'https://me:pw@h/x'", "source.url: holds a login, and recipes are recorded; give"),
        ("path = 'x'\nfile = 'y'", "source.file: belongs to repo; a path has no files to choose"),
        ("repo = 'x'", 'source.repo: "x" is not a Hub repository (owner/name)'),
        ("url = 'example.com/x'", "source.url: "),
        ("path = 'x'\nrevision = 'main'", "source.revision: belongs to repo; a path has no rev"),
        ("path = ''", "source.path: must not be empty"),
    ],
)
def test_a_source_is_one_place(source: str, expected: str) -> None:
    assert expected in refused(f'name = "x"\n[source]\n{source}')


def test_all_errors_are_listed_one_per_line() -> None:
    message = refused("""
        nam = "x"
        [source]
        repo = "a/b"
        [matrix]
        bits = ["3"]
        [verify]
        steps = "many"
    """)
    assert message.splitlines() == [
        "r.toml: 4 errors",
        '  name: missing; for example name = "animagine-xl-3.1"',
        "  matrix.bits[0]: `3` needs a deployment target of macOS15 or iOS18 or newer, not "
        'macOS14; write deployment = "macOS15" in [target]',
        '  verify.steps: must be an integer, not the string "many"',
        "  nam: unknown key; did you mean `name`?",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name = \n", r"\(at line 1, column 8\)"),
        ("name = 'x'\nname = 'y'", r"\(at line 2, column \d+\)"),
        ("a = 1\nb = [", r"\(at line 2, column 6\)"),
        ("a = [" * 5000, "line|nested"),
        ("a = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_broken_toml_is_located(text: str, place: str) -> None:
    message = refused(text)
    assert "is not valid TOML" in message
    assert re.search(place, message)


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "anime.toml"
    recipe.write_text(SMALL)
    latin = tmp_path / "latin"
    latin.write_bytes("name = 'é'".encode("latin-1"))
    checkpoint = tmp_path / "model.safetensors"
    with checkpoint.open("wb") as file:
        file.truncate(1 << 33)  # sparse
    for path, expected in [
        (tmp_path / "anima.toml", f"did you mean `{recipe}`?"),
        (tmp_path / "q" / "q.toml", "there is no such recipe\n`sdxl-coreml recipes`"),
        (tmp_path, f"is a folder, not a recipe\ndid you mean `{recipe}`?"),
        (latin, "is not UTF-8 text (byte 8)"),
        (checkpoint, "is 8,590 MB, not a recipe"),
        (Path("/dev/zero"), "has no end within 1 MB"),
        (recipe / "x", "cannot be read: Not a directory"),
    ]:
        with pytest.raises(InputError) as caught:
            load_recipe(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert expected in str(caught.value)


def test_paths_start_at_the_recipes_folder_and_the_digest_does_not_know_it(tmp_path: Path) -> None:
    text = """
        name = "x"
        [source]
        path = "a.safetensors"
        base = "my/base"
        vae = "my/vae"
        loras = [{ path = "../b.safetensors" }, { path = "/c.safetensors" }]
    """
    (tmp_path / "x.toml").write_text(text)
    recipe = load_recipe(tmp_path / "x.toml")
    assert recipe.source.path == str(tmp_path / "a.safetensors")
    places = recipe.source.base, recipe.source.vae
    assert places == ("my/base", "my/vae")  # repositories, as there are no such folders
    assert [lora.path for lora in recipe.source.loras] == [
        str(tmp_path / "../b.safetensors"),
        "/c.safetensors",
    ]
    for key in ("base", "vae"):
        (tmp_path / "my" / key).mkdir(parents=True)
        found = getattr(load_recipe(tmp_path / "x.toml").source, key)
        assert found == str(tmp_path / "my" / key)
    assert recipe.text == text
    assert recipe.digest == parse(text).digest
    for path, found in (("../b", str(tmp_path / "../b")), ("/c", "/c")):
        (tmp_path / "x.toml").write_text(text.replace("a.safetensors", path))
        assert load_recipe(tmp_path / "x.toml").source.path == found


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "x.toml").digest == parse(SMALL).digest


def test_a_recipe_is_immutable_and_hashable() -> None:
    recipe = parse(SMALL)
    assert hash(recipe) == hash(parse(SMALL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "y"
    with pytest.raises(ValueError, match="frozen"):
        recipe.matrix.bits = ()


def test_the_digest_sees_values_and_defaults_only() -> None:
    spelt_out = parse(SMALL + '# a comment\n[target]\ndeployment = "macOS14"\n[verify]\nsteps = 30')
    assert spelt_out.digest == parse(SMALL).digest
    assert parse(SMALL + "[verify]\nsteps = 31").digest != parse(SMALL).digest
    assert re.fullmatch("[0-9a-f]{64}", spelt_out.digest)


@given(st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(order: random.Random) -> None:
    def shuffled(lines: list[str]) -> str:
        return "\n".join(order.sample(lines, len(lines)))

    source = ['repo = "a/b"', 'revision = "main"']
    verify = ["steps = 3", "guidance = 2", 'prompts = ["é", "🙂"]']
    sections = ["[source]\n" + shuffled(source), "[verify]\n" + shuffled(verify)]
    in_order = "\n".join(['name = "x"', "[source]", *source, "[verify]", *verify])
    assert parse('name="x"\n' + shuffled(sections)).digest == parse(in_order).digest


@given(st.integers(1, 12499), st.integers(1, 12499))
def test_resolutions_read_what_they_write(width: int, height: int) -> None:
    resolution = Resolution(8 * width, 8 * height)
    assert Resolution.parse(str(resolution)) == resolution
    assert str(resolution) == f"{8 * width}x{8 * height}"


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9]{0,6} ?[xX×*] ?[0-9]{0,6}")))
def test_only_one_spelling_of_a_resolution_is_read(text: str) -> None:
    try:
        assert str(Resolution.parse(text)) == text
    except InputError as error:
        meant = re.search(r"`([0-9]+x[0-9]+)`", error.hint or "")
        if meant:  # what is suggested is accepted
            Resolution.parse(meant[1])


@given(st.integers(10, 160))
def test_mixed_bits_are_read_from_1_to_16(tenths: int) -> None:
    text = f"mixed-{tenths / 10:.1f}"
    assert parse_bits(text) == text


@given(st.one_of(st.text(max_size=10), st.from_regex(r"(int|mixed-)?[0-9]{0,3}(\.[0-9]{0,2})?")))
def test_bits_are_a_number_of_the_table_or_an_average(text: str) -> None:
    try:
        parse_bits(text)
    except InputError:
        assert text not in PLAIN_BITS
    else:
        assert text in PLAIN_BITS or 1 <= float(text.removeprefix("mixed-")) <= 16


def test_every_bit_width_has_a_target_and_every_target_a_format() -> None:
    assert set(FORMATS) == set(get_args(DeploymentTarget))
    assert FORMATS["macOS14"].opset == "CoreML7"
    assert FORMATS["iOS18"].specification_version == 9
    for bits in PLAIN_BITS:
        assert targets_for(parse_bits(bits))
    assert "macOS14" in targets_for(parse_bits("6"))
    assert targets_for(parse_bits("int4"))[:2] == ("macOS15", "iOS18")


@pytest.mark.slow
def test_formats_are_those_of_coremltools() -> None:
    ct = pytest.importorskip("coremltools")
    for target, its_format in FORMATS.items():
        version = getattr(ct.target, target).value
        assert (version, ct._OPSET[version]) == (
            its_format.specification_version,
            its_format.opset,
        )


def test_artifacts_are_the_whole_matrix_with_unique_names() -> None:
    recipe = parse(
        SMALL + "[matrix]\nattention = ['original', 'split_einsum', 'split_einsum_v2']\n"
        "resolution = ['64x128', '128x64']\nbits = ['16', '8', 'int8', 'mixed-4.5']"
    )
    artifacts = recipe.artifacts()
    assert len({artifact.name for artifact in artifacts}) == len(artifacts) == 24
    assert {artifact.attention for artifact in artifacts} == set(ATTENTIONS)
    assert "x_split-einsum-v2_int8-bit_128x64" in {artifact.name for artifact in artifacts}


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_are_valid_and_described(name: str) -> None:
    recipe = parse(builtin_recipe_text(name))
    assert recipe.artifacts()
    assert builtin_recipes()[name].endswith(".")
    problems = list(schema_problems(tomllib.loads(recipe.text), json_schema()))
    assert not problems


def test_an_unknown_built_in_recipe_is_answered_with_the_nearest() -> None:
    assert {"toy", "sdxl-quick", "sdxl-base-1.0", "animagine-xl-3.1"} <= set(builtin_recipes())
    with pytest.raises(InputError, match="did you mean `toy`"):
        builtin_recipe_text("toys")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SMALL + "bogus = 1", "bogus"),
        (SMALL + "[matrix]\nbits = ['5']", "5"),
        (SMALL + "[matrix]\nresolution = ['1']", "1"),
        (SMALL + "[target]\ndeployment = 'x'", "x"),
        ("name = 'x'", "source"),
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(text: str, problem: str) -> None:
    refused(text)
    assert problem in list(schema_problems(tomllib.loads(text), json_schema()))


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["title"] == "sdxl-coreml recipe"
    for table in [schema, *schema["$defs"].values()]:
        assert table["additionalProperties"] is False
        for key, values in table["properties"].items():
            assert values.get("description") or "$ref" in values, key
            assert "examples" in values or "$ref" in values, key
            assert "null" not in str(values)
            assert "None" not in str(values)


def test_importing_the_recipe_is_cheap() -> None:
    heavy = "{'coremltools', 'diffusers', 'huggingface_hub', 'numpy', 'torch', 'transformers'}"
    code = f"import sys, convert.recipe.recipe, recipes; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def schema_problems(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """The keys and values that a JSON schema refuses: the part of the standard that ours uses."""
    root = root or schema
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if all(list(schema_problems(value, choice, root)) for choice in schema["anyOf"]):
            yield value
        return
    if isinstance(value, dict):
        yield from value.keys() - schema["properties"].keys()
        yield from set(schema.get("required", ())) - value.keys()
        if "oneOf" in schema:
            assert sum(set(one["required"]) <= value.keys() for one in schema["oneOf"]) == 1
        for key in value.keys() & schema["properties"].keys():
            yield from schema_problems(value[key], schema["properties"][key], root)
    elif isinstance(value, list):
        assert schema["type"] == "array"
        for item in value:
            yield from schema_problems(item, schema["items"], root)
    elif value not in schema.get("enum", [value]) or (
        "pattern" in schema and not re.search(schema["pattern"], value)
    ):
        yield value
