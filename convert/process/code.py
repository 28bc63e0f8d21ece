"""Which of our code has made what is kept, by part, and its digest.

Packages, calibrations, reports and archives are kept from run to run and are true only of the code
that made them. A file's digest is that of its bytes: a changed comment makes things again that come
out the same, which costs time, but no change is overlooked, and no parser's version is part of it.
What belongs to no part is in `OUTSIDE`; `tests/convert/process/test_code.py` walks the imports and
fails when a part forgets a file that it depends on.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

CodePart = Literal[
    "convert", "apple", "calibrate", "precision", "record", "measure", "judge", "release"
]

ROOT = Path(__file__).parents[2]  # the folder that holds ours: convert, verify, release

# How a checkpoint is read, and what its components are.
_CHECKPOINT = (
    "convert/__init__.py",
    "convert/checkpoint/*.py",
    "convert/components.py",
    "convert/embedding/*.py",
    "convert/files/__init__.py",
    "convert/files/appearing.py",
    "convert/files/disk.py",
    "convert/files/documents.py",
    "convert/files/dtypes.py",
    "convert/files/git_lfs.py",
    "convert/files/json_files.py",
    "convert/files/pickle_values.py",
    "convert/files/stored_zip.py",
    "convert/known/*.py",
    "convert/lora/*.py",
    "convert/opening/*.py",
    "convert/source/select.py",
    "convert/tokenizer/*.py",
    "convert/values.py",
)
# How each weight is stored.
_WEIGHTS = (
    "convert/weights/compress.py",
    "convert/weights/integers.py",
    "convert/weights/kmeans.py",
    "convert/weights/palette.py",
    "convert/weights/streams.py",
    "convert/weights/weight_file.py",
)
# A network and its weights as a package.
_PACKAGES = (
    "convert/networks/*.py",
    "convert/package/*.py",
    "convert/run/packages.py",
)
# What runs the reference in PyTorch.
_REFERENCE = (
    "verify/reference/embeddings.py",
    "verify/reference/loras.py",
    "verify/reference/recording.py",
    "verify/reference/reference.py",
    "verify/reference/schedule.py",
    "verify/reference/single_file.py",
)

PARTS: dict[CodePart, tuple[str, ...]] = {
    # the bytes of packages and weight files
    "convert": (*_CHECKPOINT, *_WEIGHTS, *_PACKAGES),
    # the same, of Apple's engine
    "apple": (*_CHECKPOINT, *_WEIGHTS, *_PACKAGES, "convert/peer/*.py"),
    # what mixed bits are chosen by
    "calibrate": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_REFERENCE,
        "convert/weights/mixed_bits.py",
        "verify/judge/metrics.py",
        "verify/reference/calibration.py",
    ),
    # what a VAE's precision is chosen by, where nothing says it
    "precision": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_PACKAGES,
        "verify/judge/metrics.py",
        "verify/mil/*.py",
        "verify/operations/*.py",
        "verify/reference/vae_precision.py",
        "verify/runtime/*.py",
    ),
    # what the reference made of a checkpoint
    "record": (*_CHECKPOINT, *_REFERENCE, "verify/reference/kept.py"),
    # a report's numbers, and the findings that are no numbers
    "measure": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_REFERENCE,
        "convert/networks/*.py",
        "convert/package/mlpackage.py",
        "convert/plan/notices.py",
        "convert/run/manifest.py",
        "convert/recipe/schedulers.py",
        "verify/artifact/artifact.py",
        "verify/artifact/folder.py",
        "verify/artifact/graph.py",
        "verify/artifact/interface.py",
        "verify/artifact/ours.py",
        "verify/artifact/probe.py",
        "verify/artifact/stored.py",
        "verify/artifact/usual.py",
        "verify/bisect/modules.py",
        "verify/bisect/ops.py",
        "verify/batch.py",
        "verify/equivalence/*.py",
        "verify/judge/checks.py",
        "verify/judge/image_metrics.py",
        "verify/judge/metrics.py",
        "verify/levels/*.py",
        "verify/mil/*.py",
        "verify/operations/*.py",
        "verify/proof/alone.py",
        "verify/proof/keep.py",
        "verify/proof/processes.py",
        "verify/proof/prove.py",
        "verify/proof/scheme.py",
        "verify/proof/shipped.py",
        "verify/proof/steps.py",
        "verify/proof/tasks.py",
        "verify/proof/work.py",
        "verify/question.py",
        "verify/reference/kept.py",
        "verify/reports/images.py",
        "verify/reports/report.py",
        "verify/run.py",
        "verify/runtime/*.py",
        "verify/sampling/*.py",
        "verify/weights/*.py",
    ),
    # what numbers are judged by, and what they come to
    "judge": (
        "verify/judge/gates.py",
        "verify/judge/policy.py",
        "verify/judge/policy_file.py",
        "verify/judge/rules.py",
        "verify/reports/figures.py",
        "verify/reports/recheck.py",
    ),
    # the bytes of archives
    "release": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_PACKAGES,
        "convert/plan/notices.py",
        "convert/run/manifest.py",
        "release/compile/*.py",
        "release/pack/aliases.py",
        "release/pack/archive.py",
        "release/pack/bundle.py",
        "release/pack/documents.py",
        "release/pack/manifest.py",
        "release/pack/pack.py",
        "release/pack/packable.py",
        "release/pack/room.py",
        "verify/artifact/folder.py",
        "verify/mil/*.py",
    ),
}

# Nothing that is kept depends on these.
OUTSIDE: tuple[str, ...] = (
    # the command line, and what people are shown; made anew every time
    "sdxl_coreml/*.py",
    "sdxl_coreml/commands/*.py",
    "convert/plan/text.py",
    "convert/source/headers.py",
    "convert/source/holes.py",
    "convert/source/parts.py",
    "convert/units.py",
    "verify/page/*.py",
    "verify/reports/evidence*.py",
    "verify/reports/phrases.py",
    "verify/reports/summary.py",
    # what a script finds at the top
    "release/__init__.py",
    "verify/__init__.py",
    # words that everyone uses, and how work is done but not what comes of it
    "release/__init__.py",
    "verify/__init__.py",
    "convert/errors.py",
    "convert/files/cache.py",
    "convert/process/*.py",
    "convert/plan/engines.py",
    "convert/plan/estimate.py",
    "convert/run/pool.py",
    "verify/proof/cost.py",
    "verify/proof/estimate.py",
    "verify/proof/pieces.py",
    # what is asked for, and the checkpoint's files: keys hold both, as values and digests
    "convert/plan/gates.py",
    "convert/plan/plan.py",
    "convert/plan/gather.py",
    "convert/plan/precision.py",
    "convert/plan/prepare.py",
    "convert/recipe/__init__.py",
    "convert/recipe/builtin.py",
    "convert/recipe/errors.py",
    "convert/recipe/fields.py",
    "convert/recipe/options.py",
    "convert/recipe/recipe.py",
    "convert/recipe/section.py",
    "convert/recipe/sections.py",
    "convert/recipe/source.py",
    "convert/run/run.py",
    "convert/source/download.py",
    "convert/source/hub.py",
    "convert/source/snapshot.py",
    "convert/source/url.py",
    "convert/toy/*.py",
    "convert/weights/allocation.py",
    "convert/weights/methods.py",
    # commands of one's own, whose results no run keeps
    "verify/artifact/inspect.py",
    "verify/artifact/layers.py",
    "verify/artifact/made_with.py",
    "verify/artifact/text.py",
    "verify/bisect/bisect.py",
    "verify/bisect/graph.py",
    "verify/bisect/minimal.py",
    "verify/bisect/report.py",
    "verify/bisect/weights.py",
    "verify/golden.py",
    "verify/reports/baseline.py",
    "verify/reports/diff*.py",
    "verify/reports/saved.py",
    # the release beside its archives: composed anew every time, or only looking
    "release/build.py",
    "release/card/*.py",
    "release/lint/*.py",
    "release/pack/stale.py",
    "release/publish/*.py",
)


@cache
def code_digest(part: CodePart) -> str:
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
