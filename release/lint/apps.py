"""What each app would make of a bundle, computed by the app's own reading rules.

The rules were read in the apps' sources in November 2026, and stand beside the code that follows
them: A = apple/ml-stable-diffusion @ e12202c (swift/StableDiffusion), M = MochiDiffusion @
e686551, G = GuernikaCore/GuernikaKit @ 922f0c0 (Sources/GuernikaKit), H =
huggingface/swift-coreml-diffusers @ a561fae."""

from __future__ import annotations

from convert.errors import InputError
from release.lint.reading import Reading, exists, feature_names, model_inputs
from release.lint.swift import Crash, Undecodable, at, histogram, metadata, schema, shape, strings
from release.lint.tree import Tree, read, read_json

APPLE, MOCHI, GUERNIKA, DIFFUSERS = (
    "Apple's Swift package",
    "MochiDiffusion",
    "Guernika",
    "Swift Core ML Diffusers",
)
SPLIT_EINSUM_MARKER = "Ios16.einsum"


def read_all(tree: Tree) -> list[Reading]:
    """The reading of every app."""
    return [apple(tree), mochi(tree), guernika(tree), diffusers(tree)]


def apple(tree: Tree) -> Reading:
    """A, StableDiffusionXL+Resources.swift and StableDiffusionXLPipeline.swift.

    It opens what its caller calls an SDXL model, at the UNet's size, and reads no metadata.json.
    """
    reading = Reading(APPLE, is_sdxl=True)
    _apple_tokenizer(tree, reading)
    # Chunks are preferred, if both are there.
    chunks = [f"UnetChunk{i}" for i in (1, 2)]
    unet = chunks if all(exists(tree, c) for c in chunks) else ["Unet"]
    for model in ("TextEncoder2", *unet, "VAEDecoder"):
        if not exists(tree, model):
            reading.trouble(
                "missing-model", f"{model}.mlmodelc", "is missing", "loading the model fails"
            )
    inputs = model_inputs(tree, f"{unet[0]}.mlmodelc")
    time_ids = inputs.get("time_ids", [])
    is_refiner = time_ids[-1:] == [5]
    if not exists(tree, "TextEncoder") and not is_refiner:
        reading.trouble(
            "missing-model",
            "TextEncoder.mlmodelc",
            "is missing",
            "the model loads, and every image fails with `missingUnetInputs`",
        )
    if exists(tree, unet[0]):
        for name in ("sample", "time_ids"):  # `inputDescriptionsByName[…]!`, Unet.swift
            if not inputs.get(name):
                reading.trouble(
                    "interface",
                    f"{unet[0]}.mlmodelc",
                    f"has no input `{name}`",
                    "the app ends when an image is made",
                )
    for encoder in ("TextEncoder", "TextEncoder2"):  # `featureValue(for:)!`, TextEncoderXL.swift
        outputs = feature_names(tree, f"{encoder}.mlmodelc", "outputSchema")
        for name in ("hidden_embeds", "pooled_outputs"):
            if exists(tree, encoder) and name not in outputs:
                reading.trouble(
                    "interface",
                    f"{encoder}.mlmodelc",
                    f"has no output `{name}`",
                    "the app ends when an image is made",
                )
    # `featureNames.first!` of a set: any of them (Unet.swift, Decoder.swift).
    for model in (unet[-1], "VAEDecoder"):
        outputs = feature_names(tree, f"{model}.mlmodelc", "outputSchema")
        if len(outputs) > 1:
            reading.trouble(
                "several-outputs",
                f"{model}.mlmodelc",
                f"has {len(outputs)} outputs: {', '.join(outputs)}",
                "the app takes the first it finds, in no certain order: noise, or an error",
            )
    sample = inputs.get("sample") or []
    if len(sample) == 4:
        reading.width, reading.height = sample[3] * 8, sample[2] * 8
    reading.image_to_image = exists(tree, "VAEEncoder")
    return reading


def diffusers(tree: Tree) -> Reading:
    """H, PipelineLoader.swift: Apple's package on the folder that its archive's name promises."""
    reading = apple(tree)
    reading.app = DIFFUSERS
    return reading


def mochi(tree: Tree) -> Reading:
    """M, Model/SDModel.swift and Support/ModelRepository.swift; it draws with Apple's package."""
    reading = Reading(MOCHI)
    places = ("Unet", "UnetChunk1", "ControlledUnet", "MultiModalDiffusionTransformer")
    model = next((m for m in places if f"{m}.mlmodelc/metadata.json" in tree.files), None)
    if model is None:
        reading.listed = False
        reading.trouble(
            "missing-model", "Unet.mlmodelc/metadata.json", "is missing", "the model is not listed"
        )
        return reading
    path = f"{model}.mlmodelc/metadata.json"
    try:  # identifyAttentionType
        entries = metadata(tree, f"{model}.mlmodelc")
        counts = [histogram(entry, path) for entry in entries]
        if len(counts) != 1:
            raise Undecodable(f"{path} is an array of {len(counts)}, not of one")
        is_split = SPLIT_EINSUM_MARKER in counts[0]
        reading.attention = "split_einsum" if is_split else "original"
    except Undecodable as error:
        reading.listed = False
        reading.trouble("metadata", path, str(error), "the model is not listed")
        return reading
    try:  # identifyIfXL
        names = {entry.get("name") for entry in schema(entries[0], path)}
        reading.is_sdxl = {"time_ids", "text_embeds"} <= names
        if not reading.is_sdxl:
            reading.trouble(
                "interface",
                path,
                "the UNet's inputs lack `time_ids` or `text_embeds`",
                "it is taken for a Stable Diffusion 1.5 model, and loading it fails",
            )
    except Undecodable as error:
        reading.is_sdxl = False
        reading.trouble(
            "metadata",
            path,
            str(error),
            "it is taken for a Stable Diffusion 1.5 model, and loading it fails",
        )
    _mochi_size(tree, reading)
    reading.troubles += [t for t in apple(tree).troubles if t not in reading.troubles]
    return reading


def _mochi_size(tree: Tree, reading: Reading) -> None:
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
        reading.width, reading.height = at(sizes, 3, "its shape"), at(sizes, 2, "its shape")
        reading.image_to_image = True
    except Crash as error:
        reading.listed = False
        reading.trouble("metadata", path, str(error), "the app ends when it lists its models")


def guernika(tree: Tree) -> Reading:
    """G, GuernikaKit.swift, Modules/*.swift and Utils/CoreMLMetadata.swift."""
    reading = Reading(GUERNIKA)
    if exists(tree, "Unet"):  # unlike Apple's package, one model is preferred
        unet = "Unet"
    elif exists(tree, "UnetChunk1") and exists(tree, "UnetChunk2"):
        unet = "UnetChunk1"
    else:
        reading.listed = False
        reading.trouble("missing-model", "Unet.mlmodelc", "is missing", "the model is not listed")
        return reading
    model = unet
    try:
        counts, inputs, user = _guernika_metadata(tree, unet)
        reading.attention = "split_einsum" if SPLIT_EINSUM_MARKER in counts else "original"
        for name in ("timestep", "sample"):
            if name not in inputs:
                raise Crash(f"the UNet has no input `{name}`")
        sample = inputs["sample"]
        reading.width = at(sample, 3, "the shape of `sample`") * 8
        reading.height = at(sample, 2, "the shape of `sample`") * 8
        if len(inputs.get("encoder_hidden_states", [])) != 4:
            raise Crash("`encoder_hidden_states` of the UNet has not four sizes")
        is_refiner = user.get("requires_aesthetics_score") == "true"
        model = "VAEDecoder"
        _guernika_metadata(tree, model)
        model = "VAEEncoder"
        if exists(tree, model) or is_refiner:
            if "z" not in _guernika_metadata(tree, model)[1]:
                raise Crash("its input is not called `z`")
            reading.image_to_image = True
        encoders = ["TextEncoder2"] if is_refiner else ["TextEncoder"]
        if exists(tree, "TextEncoder2") and not is_refiner:
            encoders.append("TextEncoder2")
        reading.is_sdxl = "TextEncoder2" in encoders
        for model in encoders:
            _guernika_metadata(tree, model)
            outputs = feature_names(tree, f"{model}.mlmodelc", "outputSchema")
            for name in ("pooled_outputs", "last_hidden_state"):  # `featureValue(for:)!`
                if name not in outputs:
                    reading.trouble(
                        "guernika-names",
                        f"{model}.mlmodelc",
                        f"has no output `{name}`",
                        "the app ends when an image is made",
                    )
    except Undecodable as error:
        reading.listed = False
        rule = "metadata" if exists(tree, model) else "missing-model"
        file = f"{model}.mlmodelc/metadata.json"
        reading.trouble(rule, file, str(error), "the model is not listed")
    except Crash as error:
        reading.listed = False
        rule = "guernika-names" if "`z`" in str(error) else "interface"
        reading.trouble(
            rule, f"{model}.mlmodelc", str(error), "the app ends when it lists its models"
        )
    return reading


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


def _apple_tokenizer(tree: Tree, reading: Reading) -> None:
    """A, BPETokenizer+Reading.swift; Guernika's is a copy of it."""
    try:
        vocab = read_json(tree, "vocab.json")
        if not isinstance(vocab, dict) or not all(isinstance(v, int) for v in vocab.values()):
            raise ValueError
    except OSError:
        reading.trouble("tokenizer", "vocab.json", "is missing", "the app ends when it loads it")
    except (ValueError, InputError):
        reading.trouble(
            "tokenizer", "vocab.json", "is no object of numbers", "the app ends when it loads it"
        )
    try:
        merges = read(tree, "merges.txt")
    except OSError:
        reading.trouble("tokenizer", "merges.txt", "is missing", "loading the model fails")
        return
    *lines, rest = merges.split(b"\n")
    if rest:
        reading.trouble(
            "merges-newline",
            "merges.txt",
            "does not end in a newline",
            f"the last merge, `{rest.decode(errors='replace')}`, is dropped: prompts that need it "
            "are split into other tokens than the model was trained on",
        )
    for number, line in enumerate(lines, 1):
        if line and not line.startswith(b"#") and len(line.split()) != 2:
            reading.trouble(
                "tokenizer", "merges.txt", f"line {number} is no pair", "loading the model fails"
            )
            return
