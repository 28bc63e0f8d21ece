"""The sections of a recipe but for its source: matrix, target, verify and release."""

from __future__ import annotations

from string import Formatter
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from convert.recipe.errors import refusal, written
from convert.recipe.fields import (
    BitsText,
    EachOnce,
    GroupSize,
    HubRepo,
    Link,
    ManyOf,
    ManyOrNone,
    ResolutionText,
    Text,
    WidthText,
)
from convert.recipe.schedulers import Scheduler
from convert.recipe.section import Section
from convert.values import (
    DEFAULT_LEVELS,
    AskedVaePrecision,
    Attention,
    Bits,
    Compressible,
    DeploymentTarget,
    Effort,
    Level,
    Resolution,
    suggestion,
)

TEMPLATE_FIELDS = ("name", "attention", "bits", "width", "height")
DEFAULT_TEMPLATE = "{name}_{attention}_{bits}-bit_{width}x{height}"


class Matrix(Section):
    """The artifacts: every attention × every bit width × every resolution."""

    attention: EachOnce[Attention] = Field(
        default=("original", "split_einsum"),
        description="Attention implementations: original for CPU and GPU, split_einsum and "
        "split_einsum_v2 for the Neural Engine.",
        examples=[["original", "split_einsum"]],
    )
    resolution: EachOnce[ResolutionText] = Field(
        default=(Resolution(1024, 1024),),
        description="Image sizes WIDTHxHEIGHT in pixels, multiples of 8.",
        json_schema_extra={"default": ["1024x1024"]},
        examples=[["1024x1024", "832x1216"]],
    )
    bits: EachOnce[BitsText] = Field(
        default=(Bits("16"),),
        description="Bits per weight: 16 is no compression, plain numbers are palettes, int8 and "
        "int4 linear quantization, mixed-N.N palettes of several sizes with that average.",
        examples=[["16", "8", "6", "mixed-4.5"]],
    )


class ComponentBits(Section):
    """The bits of single components, in every artifact that is compressed."""

    text_encoder: WidthText | None = Field(
        default=None, description="Of the first text encoder.", examples=["8"]
    )
    text_encoder_2: WidthText | None = Field(
        default=None, description="Of the second text encoder.", examples=["8"]
    )
    unet: WidthText | None = Field(default=None, description="Of the UNet.", examples=["6"])
    vae_decoder: WidthText | None = Field(
        default=None, description="Of the VAE's decoder; 16 unless asked for.", examples=["8"]
    )
    vae_encoder: WidthText | None = Field(
        default=None, description="Of the VAE's encoder; 16 unless asked for.", examples=["8"]
    )


class TensorBits(Section):
    """The bits of single tensors, in every artifact that is compressed."""

    component: Compressible = Field(
        default="unet", description="The component they belong to.", examples=["unet"]
    )
    name: Text = Field(
        description="A tensor's name, or a glob for several.", examples=["down_blocks.0.*"]
    )
    bits: WidthText = Field(description="Their bits per weight.", examples=["16"])
    group_size: GroupSize | None = Field(
        default=None,
        description="Output channels that share a palette, instead of the recipe's.",
        examples=[32],
    )


class Compress(Section):
    """How weights are compressed where the matrix asks for less than 16 bits."""

    group_size: GroupSize | None = Field(
        default=None,
        description="Output channels that share a palette, for macOS15 and iOS18 or newer; one "
        "palette for a whole tensor without it.",
        examples=[16],
    )
    components: ComponentBits = Field(
        default=ComponentBits(),
        description="Bits of single components instead of the matrix's.",
        examples=[{"text_encoder": "8"}],
    )
    tensors: ManyOrNone[TensorBits] = Field(
        default=(),
        description="Bits of single tensors instead of their component's; of several that name "
        "a tensor the last counts.",
        examples=[[{"component": "unet", "name": "conv_out.weight", "bits": "16"}]],
    )
    allocation: Text | None = Field(
        default=None,
        description="The widths of mixed-N.N, as an earlier run left them in allocation.json; "
        "measured anew without it. A relative path starts at the recipe's folder.",
        examples=["allocation.json"],
    )

    @property
    def named(self) -> tuple[str, ...]:
        """The components that something is asked of, each once."""
        own = self.components.model_dump(exclude_none=True)
        return tuple(dict.fromkeys([*own, *(tensor.component for tensor in self.tensors)]))


class Target(Section):
    """Where the models run."""

    deployment: DeploymentTarget = Field(
        default="macOS14",
        description="The oldest system that reads the models.",
        examples=["macOS14"],
    )
    vae_precision: AskedVaePrecision = Field(
        default="float32",
        description="The VAE's precision; float16 only for a VAE made for it, others turn black. "
        "auto is float16 where its SHA-256, its config.json or a measurement says that it is.",
        examples=["float32"],
    )


class CompressionGate(Section):
    """What compression must leave of a component or of pictures; there is no universal number."""

    bits: BitsText = Field(description="Of the artifacts it is for.", examples=["6"])
    component: Literal[Compressible, "pipeline"] = Field(
        description="The component, or pipeline for whole runs at level generation.",
        examples=["unet"],
    )
    min_snr_db: float | None = Field(
        default=None,
        description="The lowest SNR in dB of any output of a component against the checkpoint's "
        "own weights.",
        examples=[20.0],
    )
    min_latents_cosine: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="The lowest cosine of a run's final latents with the reference's.",
        examples=[0.95],
    )
    min_psnr_db: float | None = Field(
        default=None,
        description="The lowest PSNR in dB (peak 1.0) of a run's picture with the reference's.",
        examples=[20.0],
    )

    @model_validator(mode="after")
    def _measures_of_the_component(self) -> Self:
        of_pictures = [self.min_latents_cosine, self.min_psnr_db]
        if self.component == "pipeline":
            if self.min_snr_db is not None or of_pictures == [None, None]:
                raise refusal("pipeline needs min_latents_cosine or min_psnr_db, not min_snr_db")
        elif self.min_snr_db is None or of_pictures != [None, None]:
            raise refusal(f"{self.component} needs min_snr_db; the others are of pipeline")
        return self


class Verify(Section):
    """How the artifacts are checked, and the images that are made for it."""

    effort: Effort = Field(
        default="standard",
        description="How much is executed. quick: each network with each weight file once, at a "
        "small size; standard: and once at the true size, for each attention; thorough: every "
        "artifact at its own size, at every timestep.",
        examples=["standard"],
    )
    prompts: ManyOf[Text] = Field(
        default=("a photograph of an astronaut riding a horse",),
        description="Prompts, one image each.",
        examples=[["a photograph of an astronaut riding a horse"]],
    )
    negative_prompt: str = Field(
        default="", description="What images should not show.", examples=["low quality"]
    )
    steps: int = Field(default=30, ge=1, le=1000, description="Denoising steps.", examples=[28])
    guidance: float = Field(
        default=5.0, ge=0, le=100, description="Classifier-free guidance scale.", examples=[7.0]
    )
    scheduler: Scheduler = Field(
        default="euler", description="The scheduler that makes them.", examples=["euler_a"]
    )
    levels: EachOnce[Level] = Field(
        default=DEFAULT_LEVELS,
        description="What is checked. Generation and sanity make every prompt's image with the "
        "reference and with each artifact, as text-to-image and as image-to-image.",
        examples=[["structure", "graph", "conversion", "compression", "generation", "sanity"]],
    )
    gates: ManyOrNone[CompressionGate] = Field(
        default=(),
        description="What compression must leave; without a gate its figures are recorded only.",
        examples=[[{"bits": "6", "component": "unet", "min_snr_db": 20.0}]],
    )


class TagTable(Section):
    """A table of the model's special tags, for its card."""

    title: Text = Field(description="What the tags are about.", examples=["Quality"])
    columns: ManyOf[Text] = Field(
        description="The heads of the columns.", examples=[["Tag", "Score"]]
    )
    rows: ManyOf[ManyOf[str]] = Field(
        description="The rows, with a cell for each column.",
        examples=[[["masterpiece", "> 95%"], ["best quality", "> 85% & ≤ 95%"]]],
    )

    @model_validator(mode="after")
    def _has_full_rows(self) -> Self:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise refusal(
                    f"has {len(row)} cells; there are {len(self.columns)} columns",
                    at=f".rows[{index}]",
                )
        return self


class Release(Section):
    """How the artifacts are named and published, and what their card advises."""

    repo: HubRepo | None = Field(
        default=None,
        description="The Hub repository to publish to.",
        examples=["coreml-community/coreml-animagine-xl-3.1"],
    )
    template: Text = Field(
        default=DEFAULT_TEMPLATE,
        description="The artifacts' names, from {name}, {attention}, {bits}, {width} and {height}.",
        examples=[DEFAULT_TEMPLATE],
    )
    license: Text | None = Field(
        default=None, description="The licence's identifier.", examples=["openrail++"]
    )
    license_name: Text | None = Field(
        default=None,
        description="The licence's name, where it is not one that the Hub knows.",
        examples=["faipl-1.0-sd"],
    )
    license_link: Link | None = Field(
        default=None,
        description="A link to the licence's text.",
        examples=["https://freedevproject.org/faipl-1.0-sd/"],
    )
    language: EachOnce[Text] | None = Field(
        default=None, description="Languages of the prompts, as ISO 639 codes.", examples=[["en"]]
    )
    base_model: HubRepo | None = Field(
        default=None,
        description="The Hub repository of the model that was converted, where it is not the "
        "source's.",
        examples=["cagliostrolab/animagine-xl-3.1"],
    )
    title: Text | None = Field(
        default=None,
        description="The model's name as its makers write it; the recipe's name by default.",
        examples=["Animagine XL 3.1"],
    )
    quality_tags: Text | None = Field(
        default=None,
        description="Tags that prompts should start with.",
        examples=["masterpiece, best quality"],
    )
    prompt_template: Text | None = Field(
        default=None,
        description="The order in which prompts name things.",
        examples=["1girl/1boy, character name, from what series, everything else"],
    )
    negative_prompt: Text | None = Field(
        default=None,
        description="The negative prompt to recommend; that of [verify] by default.",
        examples=["lowres, bad anatomy"],
    )
    advice: ManyOrNone[Text] = Field(
        default=(),
        description="Further advice, a sentence each.",
        examples=[["A guidance scale of 5 to 7 works best."]],
    )
    tag_tables: ManyOrNone[TagTable] = Field(
        default=(),
        description="Tables of the tags that the model was trained on.",
        examples=[
            [{"title": "Rating", "columns": ["Tag", "Meaning"], "rows": [["safe", "General"]]}]
        ],
    )

    @field_validator("template")
    @classmethod
    def _known_fields(cls, template: str) -> str:
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise refusal(f"{written(template)} is not a template: {error}") from error
        for _, field, spec, conversion in parts:
            if field is not None and field not in TEMPLATE_FIELDS:
                meant = suggestion(field, TEMPLATE_FIELDS)
                raise refusal(
                    f"unknown field {{{field}}}; the fields are "
                    + ", ".join(f"{{{known}}}" for known in TEMPLATE_FIELDS),
                    f"did you mean {{{meant}}}?" if meant else None,
                )
            if spec or conversion:
                raise refusal(f"{{{field}}} takes no format; write {{{field}}} alone")
        return template
