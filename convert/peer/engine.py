"""The peer engine: Apple's own UNet and coremltools' translation, to compare ours with.

The only importer of `python_coreml_stable_diffusion`, and only of its `unet`: its `torch2coreml`
does not import with current diffusers. What that script does for SDXL is repeated here: trace in
float32, let coremltools make an ML Program of it (ml-stable-diffusion 1.1.0, e12202c).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.proto import Model_pb2
from torch import nn

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError, UserError
from convert.files.appearing import appearing
from convert.package.mlpackage import MANIFEST, MODEL, Description, manifest
from convert.peer.networks import text_encoder, unet, vae
from convert.plan.engines import PACKAGE, not_in_bits, not_installed
from convert.plan.plan import Job
from convert.process.interrupts import require_uninterrupted
from convert.values import DeploymentTarget, Resolution

VERSION_KEY = "com.github.apple.ml-stable-diffusion.version"


def convert_job(checkpoint: Checkpoint, job: Job, description: Description, package: Path) -> None:
    """Make the package of one job.

    Raises:
        InputError: a bit width other than 16, or as `convert_component` does.
        CannotExecute: as `convert_component` does.
    """
    if job.compression.methods:
        raise not_in_bits(job.bits)
    convert_component(
        checkpoint,
        job.component,
        resolution=job.resolution,
        attention=job.attention,
        out=package,
        deployment=job.deployment,
        dtype=np.dtype(job.precision),
        description=description,
    )


def convert_component(
    checkpoint: Checkpoint,
    component: str,
    *,
    resolution: Resolution | None,
    attention: str | None,
    out: Path,
    deployment: DeploymentTarget,
    dtype: np.dtype | type,
    description: Description,
) -> None:
    """Convert one component with Apple's network and coremltools' translation.

    The whole network is loaded in float32: a full-size UNet takes some 21 GiB and a quarter of an
    hour with attention `original`, more with the others. Changes a global of Apple's module while
    it runs, so one UNet at a time in a process.

    Args:
        resolution: of the image; text encoders do not depend on it.
        attention: of the UNet; other components do not depend on it.
        out: the `.mlpackage`; appears complete or not at all, and must not exist.
        dtype: of weights, activations and the UNet's and VAE's inputs.

    Raises:
        InputError: Apple's package is missing, its network would ignore part of the config, or the
            checkpoint does not fit.
        CannotExecute: tracing or translation failed.
    """
    if out.exists():
        raise InputError("exists already", where=out)
    spec, dtype = COMPONENTS[component], np.dtype(dtype)
    # As coremltools has it, but for the date: equal input gives equal packages.
    user = {
        "com.github.apple.coremltools.source": f"torch=={torch.__version__}",
        "com.github.apple.coremltools.source_dialect": "TorchScript",
        **description.user,
    }
    try:
        with appearing(out) as new, _quiet(), torch.no_grad():
            if spec.has_attention:
                assert resolution is not None
                assert attention is not None
                apple = _import_unet()
                user[VERSION_KEY] = _version()
                network, inputs = unet(apple, checkpoint, resolution, attention, dtype)
                with attention_in_effect(apple, attention):
                    program = _trace(network, inputs)
            else:
                if not spec.has_resolution:
                    network, inputs = text_encoder(checkpoint, component)
                else:
                    assert resolution is not None
                    network, inputs = vae(checkpoint, component, resolution, dtype)
                program = _trace(network, inputs)
            del network  # coremltools copies the weights once more
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, deployment),
                inputs=[
                    ct.TensorType(name, shape=x.shape, dtype=x.dtype.type)
                    for name, x in inputs.items()
                ],
                outputs=[ct.TensorType(name, dtype=np.float32) for name in spec.outputs],
                compute_precision=ct.precision[dtype.name.upper()],
                skip_model_load=True,
                package_dir=str(new),
            )
            _describe(new, description, user)
    except (UserError, OSError):
        raise
    except Exception as error:
        require_uninterrupted()
        raise CannotExecute(
            f"Apple's converter failed: {type(error).__name__}: {error}",
            where=component,
            hint="The native engine does not depend on tracing: use `--engine native`.",
        ) from error


def _import_unet() -> Any:
    try:
        from python_coreml_stable_diffusion import unet
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != PACKAGE:
            raise CannotExecute(
                f"Apple's package needs `{error.name}`, which is not installed", where=PACKAGE
            ) from error
        raise not_installed() from None
    return unet


def _version() -> str:
    from python_coreml_stable_diffusion import __version__

    return str(__version__)


def _trace(network: nn.Module, inputs: Mapping[str, np.ndarray]) -> torch.jit.ScriptModule:
    dtypes = {name: torch.int32 if name == "input_ids" else torch.float32 for name in inputs}
    samples = tuple(torch.from_numpy(x).to(dtypes[name]) for name, x in inputs.items())
    return torch.jit.trace(network, samples, check_trace=False)


def _describe(package: Path, description: Description, user: Mapping[str, str]) -> None:
    """Our descriptions and metadata in place of coremltools', without copying the weights."""
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    features: Sequence[tuple[Any, Mapping[str, str]]] = (
        (model.description.input, description.inputs),
        (model.description.output, description.outputs),
    )
    for found, texts in features:
        for feature in found:
            feature.shortDescription = texts[feature.name]
    metadata = model.description.metadata
    metadata.Clear()
    metadata.shortDescription = description.short
    metadata.author = description.author
    metadata.license = description.license
    metadata.versionString = description.version
    metadata.userDefined.update(user)
    (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (package / MANIFEST).write_bytes(manifest())


@contextmanager
def attention_in_effect(apple: Any, attention: str) -> Iterator[None]:
    """Sets Apple's attention, a global of its module `unet` that is read while the network runs.

    Args:
        apple: the module `python_coreml_stable_diffusion.unet`.
        attention: as in a recipe. What was in effect before is in effect again afterwards.
    """
    before = apple.ATTENTION_IMPLEMENTATION_IN_EFFECT
    apple.ATTENTION_IMPLEMENTATION_IN_EFFECT = apple.AttentionImplementations[attention.upper()]
    try:
        yield
    finally:
        apple.ATTENTION_IMPLEMENTATION_IN_EFFECT = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings, log lines and progress bars."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    before = logging.root.manager.disable
    init = tqdm.__init__

    def hidden(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "disable": True})

    logging.disable(logging.CRITICAL)
    tqdm.__init__ = hidden
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = init
        logging.disable(before)
