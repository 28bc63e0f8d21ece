"""The types of what diffusers' pipelines read of a checkpoint's configs, or of a manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from convert.files.documents import Document

Count = Annotated[int, Field(ge=1, le=1 << 20)]
PerBlock = Annotated[list[Count], Field(min_length=1, max_length=16)]
Share = Annotated[float, Field(ge=0, lt=1)]


class UNetPart(Document):
    """What pipelines need of the UNet's config."""

    in_channels: Count
    sample_size: Count | list[Count] | None
    addition_time_embed_dim: Count
    projection_class_embeddings_input_dim: Count
    time_cond_proj_dim: Count | None


class VAEPart(Document):
    """What pipelines need of the VAE's config."""

    block_out_channels: PerBlock
    latent_channels: Count
    scaling_factor: Annotated[float, Field(gt=0)]
    shift_factor: float | None = None
    latents_mean: list[float] | None
    latents_std: list[float] | None
    force_upcast: bool | None


class TextPart(Document):
    """What pipelines need of text encoder 2's config."""

    projection_dim: Count


class IndexPart(Document):
    """What pipelines need of model_index.json."""

    force_zeros_for_empty_prompt: bool
    requires_aesthetics_score: bool | None


class SchedulerPart(BaseModel):
    """The keys of schedulers' configs whose values diffusers takes on trust; others may be there.

    Source: the arguments of the schedulers in `verify.schedulers`, diffusers 0.36 to 0.39.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    class_name: Annotated[str | None, Field(alias="_class_name")] = None
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    beta_start: Share | None = None
    beta_end: Share | None = None
    beta_schedule: str | None = None
    trained_betas: Annotated[list[Share], Field(max_length=100_000)] | None = None
    prediction_type: str | None = None
    timestep_spacing: str | None = None
    interpolation_type: str | None = None
    final_sigmas_type: str | None = None
    algorithm_type: str | None = None
    solver_type: str | None = None
    variance_type: str | None = None
    timestep_type: str | None = None
    steps_offset: Annotated[int, Field(ge=0, le=100_000)] | None = None
    solver_order: Annotated[int, Field(ge=1, le=3)] | None = None
    original_inference_steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    clip_sample_range: float | None = None
    sample_max_value: float | None = None
    dynamic_thresholding_ratio: float | None = None
    timestep_scaling: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    # diffusers writes -Infinity, which a manifest says as text.
    lambda_min_clipped: float | Literal["-inf"] | None = None
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    thresholding: bool | None = None
    skip_prk_steps: bool | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    rescale_betas_zero_snr: bool | None = None
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    use_lu_lambdas: bool | None = None
    use_flow_sigmas: bool | None = None


class AddedTokenDocument(Document):
    """A token beside a tokenizer's vocabulary."""

    id: Annotated[int, Field(ge=0, le=1 << 31)]
    content: Annotated[str, Field(min_length=1)]
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class PipelineDocument(Document):
    """The whole, as a manifest has it."""

    unet: UNetPart
    vae: VAEPart
    text_encoder_2: TextPart
    scheduler: SchedulerPart
    pipeline: IndexPart
    pad_tokens: dict[Literal["tokenizer", "tokenizer_2"], Annotated[str, Field(min_length=1)]]
    added_tokens: dict[str, list[AddedTokenDocument]] | None = None


def sayable(value: Any) -> Any:
    """A scheduler's value as JSON can say it: infinities are the texts "inf" and "-inf"."""
    return str(value) if value in (float("inf"), float("-inf")) else value
