"""What a checkpoint asks for and the apps cannot express, in words, so that nothing is lost in
silence.

`plan` and `convert` say it once, the artifact's manifest keeps it, `lint` and the model card repeat
it. What the apps do was read in their sources, see `release.lint.apps`: Apple's Swift package
computes with ε-prediction, SDXL's noise schedule, four channels of latents and 77 tokens, whatever
a checkpoint says, and MochiDiffusion and Swift Core ML Diffusers draw with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from convert.checkpoint.checkpoint import Checkpoint, embedding_rows
from convert.checkpoint.configs import LEGACY_EOS
from convert.checkpoint.latents import DEFAULT
from convert.components import COMPONENTS, MAX_TOKENS
from convert.tokenizer.app import chained
from convert.tokenizer.bpe import END
from convert.tokenizer.clip import TOKENIZERS, Tokenizer

APPLES = "Apple's Swift package, MochiDiffusion and Swift Core ML Diffusers"
CHANNELS = 4
PADS = {"tokenizer": END, "tokenizer_2": "!"}
# What Apple's schedulers have built in; Guernika's, too.
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
# What schedulers whose names begin so ask of a UNet, and no app's do.
WAYS = {
    "EDM": "whose inputs are scaled in EDM's way",
    "FlowMatch": "which draws along straight paths from noise to image",
}
UNSET = 1e20  # above it, transformers means that nobody has said a length
SHOWN = 5  # tokens that are named one by one


@dataclass(frozen=True)
class Notice:
    """One thing that is otherwise in apps than in diffusers, or was made alike."""

    severity: Literal["note", "warning"]  # nothing is lost, something is
    about: str  # the checkpoint's folder that asks for it
    topic: str
    problem: str
    effect: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.problem}: {self.effect}"

    def to_json(self) -> dict[str, Any]:
        """The notice, as manifests have it."""
        return asdict(self)


def notices(checkpoint: Checkpoint, components: Iterable[str]) -> tuple[Notice, ...]:
    """What there is to say when these components are converted."""
    folders = {COMPONENTS[name].part for name in components}
    folders |= {"scheduler"} if "unet" in folders else set()
    folders |= {n for n, encoder in TOKENIZERS.items() if encoder in folders}
    found = (
        *_other_vae(checkpoint),
        *_latents(checkpoint),
        *_prediction(checkpoint.scheduler),
        *_schedule(checkpoint.scheduler),
        *_channels(checkpoint),
        *_trained_tokens(checkpoint.tokenizers),
        *_embeddings(checkpoint),
        *_rows(checkpoint),
        *_prompts(checkpoint),
    )
    told = (notice for notice in found if notice.about in folders)
    return (*told, *_out_of_reach(checkpoint, folders))


def _other_vae(checkpoint: Checkpoint) -> Iterator[Notice]:
    vae = checkpoint.other_vae
    if vae is not None and vae.is_sdxl is None:
        text = f"nothing says that {vae.name} is a VAE of SDXL"
        effect = (
            "Stable Diffusion 1's has the same tensors, and gives wrong colours; if it is SDXL's, "
            "all is well"
        )
        yield Notice("warning", "vae", "other vae", text, effect)


def _latents(checkpoint: Checkpoint) -> Iterator[Notice]:
    config, vae = checkpoint.part("vae_decoder").config, checkpoint.vae
    if not vae.scaling.is_standard:
        text = f"the VAE scales latents by {vae.scaling}"
        if "scaling_factor" not in config:
            text += f" ({DEFAULT} is diffusers' default, the config says nothing)"
        effect = "folded into VAEDecoder and VAEEncoder, because apps scale by 0.13025"
        if vae.scaling.shift_factor:
            effect += "; diffusers' own SDXL pipelines ignore the shift"
        yield Notice("note", "vae", "latents", text, effect)
    given = [key for key in ("latents_mean", "latents_std") if config.get(key) is not None]
    if len(given) == 1:
        text = f"`{given[0]}` stands alone in the VAE's config"
        yield Notice("warning", "vae", "latents", text, "ignored, as by diffusers' pipelines")
    if vae.latent_channels != CHANNELS:
        text = f"the latents have {vae.latent_channels} channels"
        effect = f"apps take {CHANNELS} of what VAEEncoder gives: image-to-image fails"
        yield Notice("warning", "vae", "channels", text, effect)


def _prediction(scheduler: Mapping[str, Any]) -> Iterator[Notice]:
    kind = scheduler.get("prediction_type")
    if kind not in (None, "epsilon"):
        text = f"the UNet predicts `{kind}`, not the noise"
        effect = f"{APPLES} take it for noise and draw nothing but noise; Guernika is told"
        yield Notice("warning", "scheduler", "prediction", text, effect)
    name = scheduler.get("_class_name")
    way = next((w for w in WAYS if isinstance(name, str) and name.startswith(w)), None)
    if way is not None:
        text = f"the UNet is made for {name}, {WAYS[way]}"
        effect = "no app has such a scheduler, and all of them draw nothing usable"
        yield Notice("warning", "scheduler", "prediction", text, effect)


def _schedule(scheduler: Mapping[str, Any]) -> Iterator[Notice]:
    other = [
        f"`{key}` {scheduler[key]}"
        for key, value in SCHEDULE.items()
        if scheduler.get(key, value) != value
    ]
    if scheduler.get("trained_betas") is not None:
        other.append("`trained_betas`")
    if scheduler.get("rescale_betas_zero_snr"):
        other.append("`rescale_betas_zero_snr`")
    if other:
        text = f"the noise schedule is another than SDXL's: {', '.join(other)}"
        effect = "apps have SDXL's built in, so that their images differ from diffusers'"
        yield Notice("warning", "scheduler", "schedule", text, effect)
    if scheduler.get("timestep_spacing") == "trailing":
        text = "`timestep_spacing` is trailing, as models for few steps have it"
        effect = f"{APPLES} place the steps otherwise, so that few of them give poor images"
        yield Notice("warning", "scheduler", "schedule", text, effect)


def _channels(checkpoint: Checkpoint) -> Iterator[Notice]:
    count = checkpoint.part("unet").config.get("in_channels", CHANNELS)
    if count == CHANNELS or checkpoint.part("vae_decoder").config.get("latent_channels") == count:
        return
    what = "an inpainting model: the UNet takes" if count == 9 else "the UNet takes"
    text = f"{what} {count} channels, not {CHANNELS}"
    effect = f"{APPLES} give it {CHANNELS}, and every image fails"
    if count == 9:
        effect += "; Guernika knows inpainting"
    yield Notice("warning", "unet", "channels", text, effect)


def _trained_tokens(tokenizers: Mapping[str, Tokenizer]) -> Iterator[Notice]:
    if not tokenizers:
        return
    known = chained(tokenizers)
    for name, tokenizer in tokenizers.items():
        tokens = [token.content for token in tokenizer.added]
        before = next(iter(tokenizers.values()))
        if not tokens or (tokenizer is not before and tokenizer.added == before.added):
            continue  # said already
        made = [token for token in tokens if token in known]
        lost = [token for token in tokens if token not in known]
        if made:
            text = f"trained {_listed(made)}"
            effect = "in the vocabulary that apps read; write it in a prompt between spaces"
            yield Notice("note", name, "tokens", text, effect)
        if lost:
            text = f"trained {_listed(lost)} cannot be a word of the vocabulary that apps read"
            effect = (
                f"lost in {APPLES}, which spell it as other tokens; Guernika reads it from the "
                "bundle's `added_vocab.json`"
            )
            yield Notice("warning", name, "tokens", text, effect)


def _embeddings(checkpoint: Checkpoint) -> Iterator[Notice]:
    for one in checkpoint.embeddings:
        text = f"the embedding {one.name} is written `{one.text}` in prompts"
        effect = f"between spaces, for with a comma right behind it {APPLES} read another word"
        yield Notice("note", "tokenizer_2", "embeddings", text, effect)


def _out_of_reach(checkpoint: Checkpoint, folders: set[str]) -> Iterator[Notice]:
    """What was put into a checkpoint, and changes nothing of what is converted."""
    nowhere = "nothing of what is converted has it"
    if checkpoint.other_vae is not None and "vae" not in folders:
        text = f"the VAE {checkpoint.other_vae.name} takes the place of the checkpoint's own"
        yield Notice("note", "vae", "other vae", text, nowhere)
    for lora in checkpoint.loras:
        parts = [part for part in checkpoint.parts if any(part in n for n in lora.kinds.values())]
        name = lora.file.rpartition("/")[2]
        if not folders & {*parts}:
            text = f"the LoRA {name} changes {' and '.join(parts)} alone"
            yield Notice("note", parts[0], "loras", text, nowhere)
        elif not any(lora.scale if part == "unet" else lora.text_scale for part in parts):
            text = f"the LoRA {name} has the strength 0"
            yield Notice("note", parts[0], "loras", text, "it changes nothing")
    for one in checkpoint.embeddings:
        if not folders & {*one.text_encoders}:
            text = f"the embedding {one.name} is of {' and '.join(one.text_encoders)} alone"
            yield Notice("note", one.text_encoders[0], "embeddings", text, nowhere)


def _listed(tokens: list[str]) -> str:
    shown = ", ".join(f"`{token}`" for token in tokens[:SHOWN])
    more = f" and {len(tokens) - SHOWN} more" if len(tokens) > SHOWN else ""
    return f"{'token' if len(tokens) == 1 else 'tokens'} {shown}{more}"


def _rows(checkpoint: Checkpoint) -> Iterator[Notice]:
    for name, tokenizer in checkpoint.tokenizers.items():
        encoder = checkpoint.parts.get(TOKENIZERS[name])
        if encoder is None:
            continue
        rows = embedding_rows(encoder)
        if rows > tokenizer.size:
            text = f"{encoder.name} has {rows} embeddings, {name} {tokenizer.size} tokens"
            effect = "no prompt reaches the others: if they were trained, their tokens are lost"
            yield Notice("warning", name, "tokens", text, effect)
        end, eos = tokenizer.ids[END], encoder.config.get("eos_token_id", 49407)
        if eos == LEGACY_EOS and tokenizer.added:
            text = f"`eos_token_id` of {encoder.name} is {LEGACY_EOS}"
            effect = (
                "as in transformers, a prompt with a trained token is pooled at that token instead "
                "of at its end"
            )
            yield Notice("warning", name, "pooling", text, effect)
        elif eos not in (LEGACY_EOS, end):
            text = f"`eos_token_id` of {encoder.name} is {eos}, its tokenizer ends texts with {end}"
            effect = "as in transformers, every prompt is pooled at its first token"
            yield Notice("warning", name, "pooling", text, effect)


def _prompts(checkpoint: Checkpoint) -> Iterator[Notice]:
    for name, tokenizer in checkpoint.tokenizers.items():
        if tokenizer.pad_token != PADS[name]:
            text = f"{name} fills prompts up with `{tokenizer.pad_token}`"
            effect = f"apps do so with `{PADS[name]}`, and their images differ from diffusers'"
            yield Notice("warning", name, "padding", text, effect)
        length = tokenizer.max_length
        if length is not None and length != MAX_TOKENS and length < UNSET:
            text = f"`model_max_length` of {name} is {length:g}"
            effect = f"the models here and the apps take {MAX_TOKENS} tokens"
            yield Notice("warning", name, "length", text, effect)
