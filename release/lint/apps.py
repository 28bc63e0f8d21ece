"""What each app would make of a bundle, computed by the app's own reading rules.

The rules were read in the apps' sources in November 2026, and stand beside the code that follows
them: A = apple/ml-stable-diffusion @ e12202c (swift/StableDiffusion), M = MochiDiffusion @
e686551, G = GuernikaCore/GuernikaKit @ 922f0c0 (Sources/GuernikaKit), H =
huggingface/swift-coreml-diffusers @ a561fae."""

from __future__ import annotations

from convert.errors import InputError
from release.lint.app_view import AppView, exists, feature_names, model_inputs
from release.lint.swift import Crash, Undecodable, at, histogram, metadata, schema, shape, strings
from release.lint.tree import Tree, read, read_json

APPLE, MOCHI, GUERNIKA, DIFFUSERS = (
    "Apple's Swift package",
    "MochiDiffusion",
    "Guernika",
    "Swift Core ML Diffusers",
)
SPLIT_EINSUM_MARKER = "Ios16.einsum"


def read_all(tree: Tree) -> list[AppView]:
    """The view of every app."""
    return [apple(tree), mochi(tree), guernika(tree), diffusers(tree)]


def apple(tree: Tree) -> AppView:
    """A, StableDiffusionXL+Resources.swift and StableDiffusionXLPipeline.swift.

    It opens what its caller calls an SDXL model, at the UNet's size, and reads no metadata.json.
    """
    view = AppView(APPLE, is_sdxl=True)
    _apple_tokenizer(tree, view)
    # Chunks are preferred, if both are there.
    chunks = [f"UnetChunk{i}" for i in (1, 2)]
    unet = chunks if all(exists(tree, c) for c in chunks) else ["Unet"]
    for model in ("TextEncoder2", *unet, "VAEDecoder"):
        if not exists(tree, model):
            view.report(
                "missing-model", f"{model}.mlmodelc", "is missing", "loading the model fails"
            )
    inputs = model_inputs(tree, f"{unet[0]}.mlmodelc")
    time_ids = inputs.get("time_ids", [])
    is_refiner = time_ids[-1:] == [5]
    if not exists(tree, "TextEncoder") and not is_refiner:
        view.report(
            "missing-model",
            "TextEncoder.mlmodelc",
            "is missing",
            "the model loads, and every image fails with `missingUnetInputs`",
        )
    if exists(tree, unet[0]):
        for name in ("sample", "time_ids"):  # `inputDescriptionsByName[…]!`, Unet.swift
            if not inputs.get(name):
                view.report(
                    "interface",
                    f"{unet[0]}.mlmodelc",
                    f"has no input `{name}`",
                    "the app ends when an image is made",
                )
    for encoder in ("TextEncoder", "TextEncoder2"):  # `featureValue(for:)!`, TextEncoderXL.swift
        outputs = feature_names(tree, f"{encoder}.mlmodelc", "outputSchema")
        for name in ("hidden_embeds", "pooled_outputs"):
            if exists(tree, encoder) and name not in outputs:
                view.report(
                    "interface",
                    f"{encoder}.mlmodelc",
                    f"has no output `{name}`",
                    "the app ends when an image is made",
                )
    # `featureNames.first!` of a set: any of them (Unet.swift, Decoder.swift).
    for model in (unet[-1], "VAEDecoder"):
        outputs = feature_names(tree, f"{model}.mlmodelc", "outputSchema")
        if len(outputs) > 1:
            view.report(
                "several-outputs",
                f"{model}.mlmodelc",
                f"has {len(outputs)} outputs: {', '.join(outputs)}",
                "the app takes the first it finds, in no certain order: noise, or an error",
            )
    sample = inputs.get("sample") or []
    if len(sample) == 4:
        view.width, view.height = sample[3] * 8, sample[2] * 8
    view.image_to_image = exists(tree, "VAEEncoder")
    return view


def diffusers(tree: Tree) -> AppView:
    """H, PipelineLoader.swift: Apple's package on the folder that its archive's name promises."""
    view = apple(tree)
    view.app = DIFFUSERS
    return view


def mochi(tree: Tree) -> AppView:
    """M, Model/SDModel.swift and Support/ModelRepository.swift; it draws with Apple's package."""
    view = AppView(MOCHI)
    places = ("Unet", "UnetChunk1", "ControlledUnet", "MultiModalDiffusionTransformer")
    model = next((m for m in places if f"{m}.mlmodelc/metadata.json" in tree.files), None)
    if model is None:
        view.listed = False
        view.report(
            "missing-model", "Unet.mlmodelc/metadata.json", "is missing", "the model is not listed"
        )
        return view
    path = f"{model}.mlmodelc/metadata.json"
    try:  # identifyAttentionType
        entries = metadata(tree, f"{model}.mlmodelc")
        counts = [histogram(entry, path) for entry in entries]
        if len(counts) != 1:
            raise Undecodable(f"{path} is an array of {len(counts)}, not of one")
        is_split = SPLIT_EINSUM_MARKER in counts[0]
        view.attention = "split_einsum" if is_split else "original"
    except Undecodable as error:
        view.listed = False
        view.report("metadata", path, str(error), "the model is not listed")
        return view
    try:  # identifyIfXL
        names = {entry.get("name") for entry in schema(entries[0], path)}
        view.is_sdxl = {"time_ids", "text_embeds"} <= names
        if not view.is_sdxl:
            view.report(
                "interface",
                path,
                "the UNet's inputs lack `time_ids` or `text_embeds`",
                "it is taken for a Stable Diffusion 1.5 model, and loading it fails",
            )
    except Undecodable as error:
        view.is_sdxl = False
        view.report(
            "metadata",
            path,
            str(error),
            "it is taken for a Stable Diffusion 1.5 model, and loading it fails",
        )
    _mochi_size(tree, view)
    view.messages += [m for m in apple(tree).messages if m not in view.messages]
    return view


def _mochi_size(tree: Tree, view: AppView) -> None:
    """identifyInputSize: of the VAE encoder's first input, leniently but for the sizes' number."""
    path = "VAEEncoder.mlmodelc/metadata.json"
    try:
        text = metadata(tree, "VAEEncoder.mlmodelc")[0]["inputSchema"][0]["shape"]
        if not isinstance(text, str):
            raise TypeError
    except (Undecodable, LookupError, TypeError):
        return  # no size: the user sees 512x512, and no starting image is taken
    try:
        sizes = shape(text)
        view.width, view.height = at(sizes, 3, "its shape"), at(sizes, 2, "its shape")
        view.image_to_image = True
    except Crash as error:
        view.listed = False
        view.report("metadata", path, str(error), "the app ends when it lists its models")


def guernika(tree: Tree) -> AppView:
    """G, GuernikaKit.swift, Modules/*.swift and Utils/CoreMLMetadata.swift."""
    view = AppView(GUERNIKA)
    if exists(tree, "Unet"):  # unlike Apple's package, one model is preferred
        unet = "Unet"
    elif exists(tree, "UnetChunk1") and exists(tree, "UnetChunk2"):
        unet = "UnetChunk1"
    else:
        view.listed = False
        view.report("missing-model", "Unet.mlmodelc", "is missing", "the model is not listed")
        return view
    model = unet
    try:
        counts, inputs, user = _guernika_metadata(tree, unet)
        view.attention = "split_einsum" if SPLIT_EINSUM_MARKER in counts else "original"
        for name in ("timestep", "sample"):
            if name not in inputs:
                raise Crash(f"the UNet has no input `{name}`")
        sample = inputs["sample"]
        view.width = at(sample, 3, "the shape of `sample`") * 8
        view.height = at(sample, 2, "the shape of `sample`") * 8
        if len(inputs.get("encoder_hidden_states", [])) != 4:
            raise Crash("`encoder_hidden_states` of the UNet has not four sizes")
        is_refiner = user.get("requires_aesthetics_score") == "true"
        model = "VAEDecoder"
        _guernika_metadata(tree, model)
        model = "VAEEncoder"
        if exists(tree, model) or is_refiner:
            if "z" not in _guernika_metadata(tree, model)[1]:
                raise Crash("its input is not called `z`")
            view.image_to_image = True
        encoders = ["TextEncoder2"] if is_refiner else ["TextEncoder"]
        if exists(tree, "TextEncoder2") and not is_refiner:
            encoders.append("TextEncoder2")
        view.is_sdxl = "TextEncoder2" in encoders
        for model in encoders:
            _guernika_metadata(tree, model)
            outputs = feature_names(tree, f"{model}.mlmodelc", "outputSchema")
            for name in ("pooled_outputs", "last_hidden_state"):  # `featureValue(for:)!`
                if name not in outputs:
                    view.report(
                        "guernika-names",
                        f"{model}.mlmodelc",
                        f"has no output `{name}`",
                        "the app ends when an image is made",
                    )
    except Undecodable as error:
        view.listed = False
        rule = "metadata" if exists(tree, model) else "missing-model"
        file = f"{model}.mlmodelc/metadata.json"
        view.report(rule, file, str(error), "the model is not listed")
    except Crash as error:
        view.listed = False
        rule = "guernika-names" if "`z`" in str(error) else "interface"
        view.report(rule, f"{model}.mlmodelc", str(error), "the app ends when it lists its models")
    return view


def _guernika_metadata(
    tree: Tree, model: str
) -> tuple[dict[str, int], dict[str, list[int]], dict[str, str]]:
    """CoreMLMetadata.metadataForModel: histogram, shapes of inputs by name, user metadata."""
    path = f"{model}.mlmodelc/metadata.json"
    entries = metadata(tree, f"{model}.mlmodelc")
    decoded = [
        (
            histogram(entry, path),
            {i["name"]: shape(i["shape"]) for i in schema(entry, path, ("name", "shape"))},
            strings(entry, "userDefinedMetadata", path),
        )
        for entry in entries
    ]
    if not decoded:
        raise Crash(f"{path} is an empty array")
    return decoded[0]


def _apple_tokenizer(tree: Tree, view: AppView) -> None:
    """A, BPETokenizer+Reading.swift; Guernika's is a copy of it."""
    try:
        vocab = read_json(tree, "vocab.json")
        if not isinstance(vocab, dict) or not all(isinstance(v, int) for v in vocab.values()):
            raise ValueError
    except OSError:
        view.report("tokenizer", "vocab.json", "is missing", "the app ends when it loads it")
    except (ValueError, InputError):
        view.report(
            "tokenizer", "vocab.json", "is no object of numbers", "the app ends when it loads it"
        )
    try:
        merges = read(tree, "merges.txt")
    except OSError:
        view.report("tokenizer", "merges.txt", "is missing", "loading the model fails")
        return
    *lines, rest = merges.split(b"\n")
    if rest:
        view.report(
            "merges-newline",
            "merges.txt",
            "does not end in a newline",
            f"the last merge, `{rest.decode(errors='replace')}`, is dropped: prompts that need it "
            "are split into other tokens than the model was trained on",
        )
    for number, line in enumerate(lines, 1):
        if line and not line.startswith(b"#") and len(line.split()) != 2:
            view.report(
                "tokenizer", "merges.txt", f"line {number} is no pair", "loading the model fails"
            )
            return
