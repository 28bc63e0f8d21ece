"""Which of our code has made what is kept, by part, and its digest.

Packages, calibrations, reports and archives are kept from run to run and are true only of the code
that made them. A file's digest is that of its bytes: a changed comment makes things again that come
out the same, which costs time, but no change is overlooked, and no parser's version is part of it.
What belongs to no part is in `OUTSIDE`; `tests/test_code.py` walks the imports and fails when a
part forgets a file that it depends on.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

Part = Literal["convert", "apple", "calibrate", "measure", "judge", "release"]

ROOT = Path(__file__).parents[1]  # the folder that holds ours: convert, verify, release

# How a checkpoint is read, and what its components are.
_CHECKPOINT = (
    "convert/__init__.py",
    "convert/added_tokens.py",
    "convert/checkpoint.py",
    "convert/clip_tokenizer.py",
    "convert/components.py",
    "convert/git_lfs.py",
    "convert/json_files.py",
    "convert/latents.py",
    "convert/models/__init__.py",
    "convert/models/config.py",
    "convert/repo_files.py",
    "convert/tensors.py",
    "convert/tokenizer.py",
    "convert/values.py",
)
# How each weight is stored.
_WEIGHTS = (
    "convert/compress.py",
    "convert/compressed_tensors.py",
    "convert/kmeans.py",
    "convert/palette.py",
    "convert/quantize.py",
    "convert/weight_file.py",
)
# A network and its weights as a package.
_PACKAGES = (
    "convert/mlpackage.py",
    "convert/models/*.py",
    "convert/packages.py",
)
# What runs the reference in PyTorch.
_REFERENCE = (
    "verify/recording.py",
    "verify/reference.py",
    "verify/schedule.py",
)

PARTS: dict[Part, tuple[str, ...]] = {
    # the bytes of packages and weight files
    "convert": (*_CHECKPOINT, *_WEIGHTS, *_PACKAGES, "convert/native.py"),
    # the same, of Apple's engine
    "apple": (*_CHECKPOINT, *_WEIGHTS, *_PACKAGES, "convert/apple.py", "convert/apple_networks.py"),
    # what mixed bits are chosen by
    "calibrate": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_REFERENCE,
        "convert/mixed_bits.py",
        "verify/__init__.py",
        "verify/calibration.py",
        "verify/metrics.py",
    ),
    # a report's numbers, and the findings that are no numbers
    "measure": (
        *_CHECKPOINT,
        *_REFERENCE,
        "convert/app_tokenizer.py",
        "convert/compress.py",
        "convert/kmeans.py",
        "convert/manifest.py",
        "convert/models/configs.py",
        "convert/notices.py",
        "convert/palette.py",
        "convert/pipeline_config.py",
        "verify/__init__.py",
        "verify/artifact.py",
        "verify/bisect_modules.py",
        "verify/bisect_ops.py",
        "verify/campaign.py",
        "verify/checks.py",
        "verify/compression.py",
        "verify/conversion.py",
        "verify/generation.py",
        "verify/image_metrics.py",
        "verify/inspect_graph.py",
        "verify/interface.py",
        "verify/metrics.py",
        "verify/mil/*.py",
        "verify/noise.py",
        "verify/pictures.py",
        "verify/pipeline.py",
        "verify/report.py",
        "verify/run.py",
        "verify/runtimes.py",
        "verify/sampling.py",
        "verify/sanity.py",
        "verify/schedulers.py",
        "verify/stored_bits.py",
        "verify/structure.py",
        "verify/tokenizers.py",
    ),
    # what numbers are judged by, and what they come to
    "judge": ("verify/figures.py", "verify/gates.py", "verify/policy.py", "verify/recheck.py"),
    # the bytes of archives
    "release": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_PACKAGES,
        "convert/app_tokenizer.py",
        "convert/deviations.py",
        "convert/manifest.py",
        "convert/notices.py",
        "convert/pipeline_config.py",
        "release/__init__.py",
        "release/aliases.py",
        "release/archive.py",
        "release/bundle.py",
        "release/coremldata.py",
        "release/manifest.py",
        "release/mil_literals.py",
        "release/mil_text.py",
        "release/mlmodelc.py",
        "release/model_metadata.py",
        "release/op_versions.py",
        "release/pack.py",
        "release/xcode.py",
        "verify/__init__.py",
        "verify/mil/*.py",
    ),
}

# Nothing that is kept depends on these.
OUTSIDE: tuple[str, ...] = (
    # the command line, and what people are shown; made anew every time
    "sdxl_coreml.py",
    "convert/commands.py",
    "release/*commands.py",
    "verify/*commands.py",
    "convert/outline.py",
    "convert/environment.py",
    "convert/plan_report.py",
    "convert/streams.py",
    "convert/terminal.py",
    "convert/units.py",
    "verify/doctor.py",
    "verify/html_*.py",
    "verify/summary.py",
    # words that everyone uses, and how work is done but not what comes of it
    "convert/cache.py",
    "convert/code.py",
    "convert/documents.py",
    "convert/engines.py",
    "convert/errors.py",
    "convert/estimate.py",
    "convert/interrupts.py",
    "convert/memory.py",
    "convert/pool.py",
    "convert/progress.py",
    # what is asked for, and the checkpoint's files: keys hold both, as values and digests
    "recipes/__init__.py",
    "convert/allocation.py",
    "convert/download.py",
    "convert/hub.py",
    "convert/methods.py",
    "convert/options.py",
    "convert/plan.py",
    "convert/random_checkpoint.py",
    "convert/recipe*.py",
    "convert/run.py",
    "convert/snapshot.py",
    "convert/toy/*.py",
    # commands of one's own, whose results no run keeps
    "verify/baseline.py",
    "verify/bisect.py",
    "verify/bisect_graph.py",
    "verify/bisect_report.py",
    "verify/bisect_weights.py",
    "verify/diff*.py",
    "verify/golden.py",
    "verify/inspect.py",
    "verify/inspect_layers.py",
    "verify/inspect_text.py",
    "verify/minimal_package.py",
    "verify/probe.py",
    "verify/saved.py",
    # the release beside its archives: composed anew every time, or only looking
    "release/apps.py",
    "release/build.py",
    "release/bundle_checks.py",
    "release/card*.py",
    "release/checkpoint_checks.py",
    "release/compiled.py",
    "release/interface.py",
    "release/licenses.py",
    "release/lint*.py",
    "release/markdown.py",
    "release/publish*.py",
    "release/reading.py",
    "release/rules.py",
    "release/samples.py",
    "release/source_card.py",
    "release/stale.py",
    "release/swift.py",
    "release/tree.py",
)


@cache
def code_digest(part: Part) -> str:
    """SHA-256 (hex) of a part's code."""
    digest = hashlib.sha256()
    for name, file in files(PARTS[part]).items():
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def files(patterns: tuple[str, ...]) -> dict[str, Path]:
    """The files that patterns name, by path below `ROOT`, in its order."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        matches = sorted(ROOT.glob(pattern))
        assert matches, f"{pattern} names no file of ours"
        found |= {path.relative_to(ROOT).as_posix(): path for path in matches}
    return dict(sorted(found.items()))
