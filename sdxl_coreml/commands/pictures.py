"""The commands that make pictures: record, generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convert.errors import InputError
from convert.files.git_lfs import refuse_pointer
from convert.process.interrupts import deferred_interrupt
from sdxl_coreml.options import (
    BaseOption,
    Device,
    EmaOption,
    EmbeddingOption,
    JsonOption,
    LoraOption,
    PredictionOption,
    Quiet,
    RuntimeOption,
    SchedulerOption,
    VaeOption,
    out_option,
)
from sdxl_coreml.steps import require_new_folder, require_writable, url_token
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def generate(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    out: Annotated[Path, out_option("The picture's file.", "PNG")],
    negative: Annotated[str, typer.Option(help="What it should not show.")] = "",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 30,
    guidance: Annotated[
        float, typer.Option(min=0, max=100, help="Classifier-free guidance; 1 or less is none.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    scheduler: SchedulerOption = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Begin with this image: image-to-image.")
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="How much of the image is made anew.")
    ] = 0.6,
    runtime: RuntimeOption = "auto",
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Make a picture with an artifact's own models: text-to-image, or image-to-image.

    Example: sdxl-coreml generate out/toy_original_16-bit_128x128 "a red circle" --out circle.png
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"`{out}` is no .png file", hint="Pictures are written as PNG.")
    require_writable(out)
    with deferred_interrupt():
        from verify.sampling.noise import Noise
        from verify.sampling.pipeline import load_pipeline, require_pipeline
        from verify.sampling.sampling import Settings, evaluations, require_steps, sample
        from verify.sampling.schedulers import make_scheduler, require_scheduler
    if scheduler is not None:
        require_scheduler(scheduler)
    settings = Settings(
        kind="text-to-image" if image is None else "image-to-image",
        prompt=prompt,
        negative_prompt=negative,
        scheduler=scheduler,
        steps=steps,
        guidance=guidance,
        seed=seed,
        strength=None if image is None else strength,
    )
    _, config = require_pipeline(artifact, image_to_image=image is not None)
    require_steps(make_scheduler(scheduler, config["scheduler"]), settings)
    first = None if image is None else _read_image(image)
    terminal = Terminal(quiet=quiet, as_json=as_json)
    pipeline = load_pipeline(
        artifact,
        runtime=runtime,
        device=device,
        image_to_image=image is not None,
        scheduler=scheduler,
    )
    size = pipeline.unet.resolution
    for text in (prompt, negative):
        _warn_if_long(text, pipeline, terminal)
    start = None if first is None else _start(first, pipeline, terminal)
    with terminal.stage("Denoising", evaluations(pipeline, settings), "steps") as advance:
        made = sample(pipeline, settings, size, Noise(seed), start, lambda step: advance(1))
    facts = {
        "prompt": prompt,
        "negative_prompt": negative,
        "scheduler": scheduler or type(pipeline.scheduler).__name__,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "strength": settings.strength,
        "resolution": str(size),
        "artifact": artifact.resolve().name,
    }
    _write(made.image, out, facts)
    terminal.result({"schema": 1, "path": str(out), **facts}, str(out))


def record(
    source: Annotated[str, typer.Argument(help="Hub repo (owner/name), folder, file or URL.")],
    resolution: Annotated[str, typer.Option(metavar="WxH", help="Image size in pixels.")],
    out: Annotated[Path, out_option("The bundle: a new folder.")],
    recipe: Annotated[
        str | None, typer.Option(help="Take prompts, scheduler and steps from its [verify].")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Instead of the recipe's.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=100, help="Classifier-free guidance.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as euler_a.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    base: BaseOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    embedding: EmbeddingOption = None,
    prediction: PredictionOption = None,
    ema: EmaOption = False,
    revision: Annotated[str | None, typer.Option(help="Of a Hub repo.")] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Run the PyTorch reference once, and keep all that `verify --golden` needs to replay it.

    The pictures take the reference through every step of every prompt, as text-to-image and as
    image-to-image: minutes for one at full size on a CPU's cores times the steps.

    Example: sdxl-coreml record toy --resolution 128x128 --out golden
    """
    from convert.plan.gather import NOTHING, gather
    from convert.recipe.builtin import read_recipe
    from convert.recipe.options import Added
    from convert.recipe.sections import Verify
    from convert.source.download import parse_source
    from convert.values import Resolution

    size = Resolution.parse(resolution)
    parsed = read_recipe(recipe) if recipe else None
    asked = parsed.verify if parsed else Verify()
    given = {
        "prompts": tuple(prompt) if prompt else None,
        "negative_prompt": negative,
        "steps": steps,
        "guidance": guidance,
        "scheduler": scheduler,
    }
    asked = asked.model_copy(update={k: v for k, v in given.items() if v is not None})
    with deferred_interrupt():
        from verify import golden
        from verify.reference.recording import Denoising
        from verify.reference.recording import record as record_components
        from verify.runtime.runtimes import require_device
        from verify.sampling.sampling import kinds_of, settings_for, trace_all
        from verify.sampling.schedulers import require_scheduler
    require_scheduler(asked.scheduler)
    require_device(device)
    require_new_folder(out)
    terminal = Terminal(quiet=quiet, as_json=as_json)
    wanted = parse_source(source, revision)
    ingredients = (parsed.source if parsed else NOTHING).updated(
        Added(base, vae, lora or (), embedding or (), prediction, ema).ingredients()
    )
    gathered = gather(wanted, terminal, ingredients, spare_base=base is None, token=url_token())
    checkpoint = gathered.checkpoint
    with terminal.working("Recording") as say:
        recording = record_components(
            checkpoint,
            checkpoint.components,
            resolution=size,
            fp16=checkpoint.components,
            denoising=Denoising.of(asked),
            device=device,
            say=say,
        )
        settings = settings_for(
            asked,
            kinds_of(checkpoint.components),
            seed=seed,
            embeddings=checkpoint.embeddings,
        )
        traces = trace_all(checkpoint, settings, size, device=device, say=say)
        known = gathered.snapshot.digests
        digests = {n: known[path] for n, path in checkpoint.files.items() if path in known}
        golden.write_golden(out, checkpoint, recording, traces, digests=digests, say=say)
    cases = {name: len(found) for name, found in recording.cases.items()}
    pictures = [trace.settings.case for trace in traces]
    terminal.result(
        {"schema": 1, "path": str(out), "cases": cases, "pictures": pictures},
        f"{out}: {sum(cases.values())} cases of {len(cases)} components, {len(pictures)} pictures",
    )


def _start(image: Image, pipeline: Any, terminal: Terminal) -> np.ndarray:
    """The image to begin with, uint8 [H, W, 3] in the size that the models are made for."""
    import numpy as np

    size = pipeline.unet.resolution
    if image.size != (size.width, size.height):
        terminal.say(f"the image: {image.width}x{image.height} scaled and cropped to {size}")
        resize = pipeline.image_processor.resize
        image = resize(image, size.height, size.width, resize_mode="crop")
    return np.asarray(image, np.uint8)


def _warn_if_long(text: str, pipeline: Any, terminal: Terminal) -> None:
    """Say how much of a prompt the text encoders do not see."""
    from convert.components import MAX_TOKENS

    count = len(pipeline.tokenizer_2(text)["input_ids"])
    if count > MAX_TOKENS:
        terminal.say(
            f"the prompt has {count - 2} tokens; the last {count - MAX_TOKENS} are left out: "
            f"`{text[:40]}…`"
        )


def _write(image: np.ndarray, out: Path, facts: dict[str, Any]) -> None:
    """Write the PNG; its `parameters` are in the form that image-generation apps read."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from verify.sampling.sampling import to_uint8

    settings = {
        "Steps": facts["steps"],
        "Sampler": facts["scheduler"],
        "CFG scale": facts["guidance"],
        "Seed": facts["seed"],
        "Size": facts["resolution"],
        "Model": facts["artifact"],
        "Denoising strength": facts["strength"],
    }
    lines = [facts["prompt"]]
    if facts["negative_prompt"]:
        lines.append(f"Negative prompt: {facts['negative_prompt']}")
    lines.append(
        ", ".join(f"{key}: {value}" for key, value in settings.items() if value is not None)
    )
    info = PngInfo()
    info.add_itxt("parameters", "\n".join(lines))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_uint8(image)).save(out, "PNG", pnginfo=info)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=out) from None


def _read_image(file: Path) -> Image:
    """An image file, RGB."""
    from PIL import Image, UnidentifiedImageError

    try:
        refuse_pointer(file)
        return Image.open(file).convert("RGB")
    except FileNotFoundError:
        raise InputError("no such image", where=file) from None
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"not readable as an image: {error}", where=file) from None
