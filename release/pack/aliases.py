"""The second names that let one bundle serve Apple's Swift package, MochiDiffusion and Guernika.

Guernika (GuernikaKit @ 922f0c0) force-unwraps two features that Apple's form of a bundle lacks: a
text encoder's output `last_hidden_state` (Modules/TextEncoder.swift) and a VAE encoder's input `z`
(Modules/Encoder.swift), and ends without them. Apple's package (ml-stable-diffusion @ e12202c)
finds a text encoder's outputs by name and never asks what others there are (TextEncoderXL.swift),
and takes a VAE encoder's input by position (Encoder.swift), as MochiDiffusion does
(SDModel.swift). So the compiled models of a bundle carry both: the text encoders give
`hidden_embeds` once more as `last_hidden_state`, and the VAE encoder's input is called `z`. It
costs one `identity` op and not a byte of weights. The UNet and the VAE decoder stay as they are,
because Apple's package takes the first output it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.components import COMPONENTS, INPUT_ALIASES, OUTPUT_ALIASES
from convert.package.mlpackage import MODEL, WEIGHTS, assemble


def aliased(package: Path, component: str, folder: Path) -> Path:
    """The package with Guernika's names, made in `folder` with its weights linked; or as it is.

    Args:
        package: an `.mlpackage` of ours.
        component: which one it is; only those with aliases in `convert.components` change.
        folder: an empty folder on any disk; without hard links the weights are copied.
    """
    if component not in INPUT_ALIASES and component not in OUTPUT_ALIASES:
        return package
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    for name, alias in INPUT_ALIASES.get(component, {}).items():
        _rename_input(model, name, alias)
    for name, alias in OUTPUT_ALIASES.get(component, {}).items():
        _repeat_output(model, name, alias)
    target = folder / f"{COMPONENTS[component].file}.mlpackage"
    assemble(target, model.SerializeToString(deterministic=True), package / WEIGHTS)
    return target


def _block(model: Any) -> tuple[Any, Any]:
    function = model.mlProgram.functions["main"]
    return function, function.block_specializations[function.opset]


def _repeat_output(model: Any, name: str, alias: str) -> None:
    """Give the output `name` a second time, as `alias`."""
    _, block = _block(model)
    if alias in block.outputs:
        return
    (feature,) = (f for f in model.description.output if f.name == name)
    source = next(o for op in block.operations for o in op.outputs if o.name == name)
    op = block.operations.add(type="identity")
    op.inputs["x"].arguments.add(name=name)
    op.outputs.add(name=alias, type=source.type)
    op.attributes["name"].CopyFrom(_text(alias))
    block.outputs.append(alias)
    again = model.description.output.add()
    again.CopyFrom(feature)
    again.name = alias
    again.shortDescription = f"The same as `{name}`, under the name that Guernika looks for"


def _rename_input(model: Any, name: str, alias: str) -> None:
    function, block = _block(model)
    if any(o.name == alias for op in block.operations for o in op.outputs):
        return  # a graph of another converter that uses the name inside; `lint` says what it means
    for feature in (*model.description.input, *function.inputs):
        if feature.name == name:
            feature.name = alias
    for op in block.operations:
        for value in op.inputs.values():
            for argument in value.arguments:
                if argument.WhichOneof("binding") == "name" and argument.name == name:
                    argument.name = alias


def _text(value: str) -> Any:
    from coremltools.converters.mil.backend.mil.helper import create_scalar_value

    return create_scalar_value(value)
