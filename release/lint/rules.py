"""The findings of `lint`, and its rules, each with what to do about one.

`error`: somebody gets no images, or wrong ones. `warning`: one app does not work, or something is
lost. `note`: worth knowing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

PACK = "Make the bundle again with `sdxl-coreml pack`."
REMEDIES = {
    "archive-folder": "Zip the folder itself, under the archive's own name; `pack` does.",
    "artifact": "`sdxl-coreml pack` makes archives that apps load.",
    "checkpoint": "Nothing of the bundle is broken; tell it to those who use it.",
    "clutter": "Zip with `pack`, or with `zip -X` on the command line.",
    "digest": "Download it again, or make it again with `pack`; do not use it as it is.",
    "dtype": "Convert with the inputs' types of Apple's converter; `sdxl-coreml convert` does.",
    "einsum-in-original": "Rename it to split_einsum, or convert it again as original.",
    "folder-name": "Give the folder the artifact's name.",
    "guernika-names": "Bundles made by `pack` have these names beside Apple's.",
    "interface": "Convert it as SDXL; `sdxl-coreml inspect` shows what a model takes and gives.",
    "manifest": PACK,
    "merges-newline": "End merges.txt with a newline.",
    "metadata": "Compile the package again with `sdxl-coreml compile` or Xcode.",
    "metadata-untrue": "Compile the package again; metadata.json and model.mil belong together.",
    "missing-model": "Convert all components and `pack` again.",
    "missing-weights": "Download it again (`git lfs pull` in a checkout), or `pack` it again.",
    "nested-folder": "Move the models and the tokenizer's files up, beside each other.",
    "no-einsum": "Rename it to original, or convert it again as split_einsum.",
    "no-encoder": "Convert the vae_encoder too.",
    "no-manifest": "Bundles made by `pack` have one.",
    "not-compiled": "`sdxl-coreml compile` makes .mlmodelc of it on any system.",
    "incomplete-model": "Compile the package again with `sdxl-coreml compile` or Xcode.",
    "one-chunk": "Add the other chunk, or remove this one and give Unet.mlmodelc.",
    "release-file": "Run `sdxl-coreml pack` and `card` again.",
    "scaling-factor": "Convert again: other scales are folded into the VAE.",
    "several-outputs": "Convert again with `noise_pred` (or `image`) as the only output.",
    "shape": "Make all models of a bundle from one checkpoint.",
    "sizes-disagree": "Make all models of a bundle for one resolution.",
    "stale": "Run the recipe again; `run --release-passing` releases what has passed.",
    "stateful": "Convert it without states; `sdxl-coreml convert` makes none.",
    "tokenizer": "Copy vocab.json and merges.txt from the checkpoint's tokenizer/ folder.",
    "tokenizers-differ": "Copy both files from the checkpoint's tokenizer/ folder.",
    "unverified": "`sdxl-coreml verify` checks it against the checkpoint.",
    "wrong-name": "Rename it.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    rule: str  # of `REMEDIES`
    file: str
    problem: str
    effect: str  # what the user of an app sees
    apps: tuple[str, ...] = ()  # those concerned; () for all

    @property
    def remedy(self) -> str:
        """What to do."""
        return REMEDIES[self.rule]

    def to_json(self) -> dict[str, Any]:
        """Fields by name, and the rule's remedy."""
        return {**asdict(self), "apps": list(self.apps), "remedy": self.remedy}
