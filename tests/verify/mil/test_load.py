"""Programs of several functions, as coremltools writes them: all read, none taken unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute, InputError
from release.compile.mlmodelc import compile_package
from tests.support.packages import edit_model
from tests.support.programs import assert_same
from verify.artifact.inspect import inspect
from verify.mil import load_functions, load_program
from verify.run import verify
from verify.runtime.evaluator import Evaluator

WEIGHT = np.random.default_rng(3).standard_normal((8, 16)).astype(np.float16)
X = {
    "small": np.linspace(-1, 1, 2 * 16, dtype=np.float32).reshape(2, 16),
    "large": np.linspace(-2, 1, 5 * 16, dtype=np.float32).reshape(5, 16),
}
MEANT: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "small": lambda x: x @ WEIGHT.T.astype(np.float32),
    "large": lambda x: np.maximum(x @ WEIGHT.T.astype(np.float32), 0),
}


def save_single(path: Path, name: str) -> None:
    """A package of one function, `main`, which is linear, and rectified where it is `large`."""

    @mb.program(  # type: ignore[untyped-decorator]
        input_specs=[mb.TensorSpec(X[name].shape, types.fp16)], opset_version=ct.target.iOS18
    )
    def program(x: Any) -> Any:
        y = mb.linear(x=x, weight=WEIGHT, name="product" if name == "large" else "y")
        return mb.relu(x=y, name="y") if name == "large" else y

    made = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        inputs=[ct.TensorType("x", dtype=np.float16)],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        skip_model_load=True,
    )
    made.save(str(path))


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("singles")
    for name in X:
        save_single(folder / f"{name}.mlpackage", name)
    return {name: folder / f"{name}.mlpackage" for name in X}


def merge(singles: Mapping[str, Path], names: tuple[str, ...], path: Path) -> Path:
    """The packages as functions of one, of which the first is the default."""
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name in names:
        descriptor.add_function(str(singles[name]), "main", name)
    descriptor.default_function_name = names[0]
    ct.utils.save_multifunction(descriptor, str(path))
    return path


@pytest.fixture(scope="module")
def both(singles: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("both") / "Both.mlpackage"
    return merge(singles, ("small", "large"), path)


@pytest.fixture(scope="module", params=["package", "compiled"])
def form(
    request: pytest.FixtureRequest, both: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "package":
        return both
    return compile_package(both, tmp_path_factory.mktemp("compiled"), engine="native")


def test_each_function_has_its_interface_and_its_numbers(form: Path) -> None:
    functions = load_functions(form)
    assert (functions.names, functions.default) == (("large", "small"), "small")
    for name, program in functions.all().items():
        assert program.function == name
        assert [f.name for f in program.inputs] == list(program.main.inputs) == ["x"]
        assert program.inputs[0].shape == program.main.inputs["x"].shape == X[name].shape
        assert [f.name for f in program.outputs] == program.main.outputs == ["y"]
        found = Evaluator(form, function=name, mode="fp32").run({"x": X[name]})["y"]
        expected = torch.from_numpy(MEANT[name](X[name]))
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=2e-3)  # inputs are fp16


def test_compiled_functions_are_the_packages(both: Path, tmp_path: Path) -> None:
    compiled = load_functions(compile_package(both, tmp_path, engine="native")).all()
    for name, program in load_functions(both).all().items():
        assert_same(program, compiled[name])


def test_functions_share_their_weights(both: Path) -> None:
    places = {
        (constant.file.path, constant.offset)
        for program in load_functions(both).all().values()
        for _, constant in program.constants()
        if constant.file is not None
    }
    assert len(places) == 1


def test_none_of_several_is_taken_unasked(form: Path, base: Checkpoint) -> None:
    for take in (load_program, Evaluator, partial(verify, evidence=base)):
        with pytest.raises(CannotExecute, match=r"has 2: large, small \(default: small\)"):
            take(form)
    with pytest.raises(InputError, match="no function 'smal'; did you mean `small`"):
        load_program(form, "smal")
    with pytest.raises(InputError, match="is function 'small', not 'large'"):
        Evaluator(load_program(form, "small"), function="large")


def test_inspect_names_every_function_and_counts_the_files_once(form: Path) -> None:
    found = inspect(form)
    assert [(m.function, m.ops) for m in found.models] == [
        ("large", {"linear": 1, "relu": 1}),
        ("small", {"linear": 1}),
    ]
    size = sum(f.stat().st_size for f in form.rglob("*") if f.is_file())
    document = json.loads(json.dumps(found.to_json()))
    assert document["bytes"] == size
    assert [m["default_function"] for m in document["models"]] == ["small", "small"]
    lines = found.lines()
    assert f"{form.name}, function large" in lines
    assert f"{form.name}, function small (default)" in lines


def test_a_single_function_may_have_any_name(singles: Mapping[str, Path], tmp_path: Path) -> None:
    one = merge(singles, ("large",), tmp_path / "one.mlpackage")
    program = load_program(one)
    assert (program.function, program.inputs[0].shape) == ("large", X["large"].shape)
    (model,) = inspect(one).models
    assert "function" not in model.to_json()


def test_descriptions_that_do_not_fit_are_refused(both: Path, tmp_path: Path) -> None:
    def copied(name: str, change: Callable[[Any], Any]) -> Path:
        path = Path(shutil.copytree(both, tmp_path / name))
        edit_model(path, change)
        return path

    strange = copied("a.mlpackage", lambda m: setattr(m.description, "defaultFunctionName", "tiny"))
    with pytest.raises(CannotExecute, match="the default function 'tiny' is not in the program"):
        load_functions(strange)
    mute = copied("b.mlpackage", lambda m: m.description.functions.pop())
    with pytest.raises(CannotExecute, match="has no description"):
        load_functions(mute).all()
