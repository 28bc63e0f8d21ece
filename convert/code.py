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
    "convert/tokenizer/added_tokens.py",
    "convert/checkpoint/checkpoint.py",
    "convert/tokenizer/clip.py",
    "convert/components.py",
    "convert/files/git_lfs.py",
    "convert/files/json_files.py",
    "convert/latents.py",
    "convert/models/__init__.py",
    "convert/checkpoint/config_reader.py",
    "convert/source/select.py",
    "convert/checkpoint/tensors.py",
    "convert/tokenizer/bpe.py",
    "convert/values.py",
)
# How each weight is stored.
_WEIGHTS = (
    "convert/weights/compress.py",
    "convert/weights/streams.py",
    "convert/weights/kmeans.py",
    "convert/weights/palette.py",
    "convert/weights/integers.py",
    "convert/weights/weight_file.py",
)
# A network and its weights as a package.
_PACKAGES = (
    "convert/package/mlpackage.py",
    "convert/models/*.py",
    "convert/run/packages.py",
)
# What runs the reference in PyTorch.
_REFERENCE = (
    "verify/reference/recording.py",
    "verify/reference/reference.py",
    "verify/reference/schedule.py",
)

PARTS: dict[Part, tuple[str, ...]] = {
    # the bytes of packages and weight files
    "convert": (*_CHECKPOINT, *_WEIGHTS, *_PACKAGES, "convert/package/native.py"),
    # the same, of Apple's engine
    "apple": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_PACKAGES,
        "convert/peer/engine.py",
        "convert/peer/networks.py",
    ),
    # what mixed bits are chosen by
    "calibrate": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_REFERENCE,
        "convert/weights/mixed_bits.py",
        "verify/__init__.py",
        "verify/reference/calibration.py",
        "verify/judge/metrics.py",
    ),
    # a report's numbers, and the findings that are no numbers
    "measure": (
        *_CHECKPOINT,
        *_REFERENCE,
        "convert/tokenizer/app.py",
        "convert/weights/compress.py",
        "convert/weights/kmeans.py",
        "convert/run/manifest.py",
        "convert/checkpoint/configs.py",
        "convert/plan/notices.py",
        "convert/weights/palette.py",
        "convert/checkpoint/pipeline.py",
        "verify/__init__.py",
        "verify/artifact/artifact.py",
        "verify/bisect/modules.py",
        "verify/bisect/ops.py",
        "verify/campaign.py",
        "verify/judge/checks.py",
        "verify/levels/compression.py",
        "verify/levels/conversion.py",
        "verify/levels/generation.py",
        "verify/judge/image_metrics.py",
        "verify/artifact/graph.py",
        "verify/artifact/interface.py",
        "verify/judge/metrics.py",
        "verify/mil/*.py",
        "verify/sampling/noise.py",
        "verify/reports/pictures.py",
        "verify/sampling/pipeline.py",
        "verify/reports/report.py",
        "verify/run.py",
        "verify/runtime/runtimes.py",
        "verify/sampling/sampling.py",
        "verify/levels/sanity.py",
        "verify/sampling/schedulers.py",
        "verify/levels/stored_bits.py",
        "verify/levels/structure.py",
        "verify/sampling/tokenizers.py",
    ),
    # what numbers are judged by, and what they come to
    "judge": (
        "verify/reports/figures.py",
        "verify/judge/gates.py",
        "verify/judge/policy.py",
        "verify/reports/recheck.py",
    ),
    # the bytes of archives
    "release": (
        *_CHECKPOINT,
        *_WEIGHTS,
        *_PACKAGES,
        "convert/tokenizer/app.py",
        "convert/networks/deviations.py",
        "convert/run/manifest.py",
        "convert/plan/notices.py",
        "convert/checkpoint/pipeline.py",
        "release/__init__.py",
        "release/pack/aliases.py",
        "release/pack/archive.py",
        "release/pack/bundle.py",
        "release/compile/coremldata.py",
        "release/pack/manifest.py",
        "release/compile/literals.py",
        "release/compile/mil_text.py",
        "release/compile/mlmodelc.py",
        "release/compile/metadata.py",
        "release/compile/op_versions.py",
        "release/pack/pack.py",
        "release/compile/xcode.py",
        "verify/__init__.py",
        "verify/mil/*.py",
    ),
}

# Nothing that is kept depends on these.
OUTSIDE: tuple[str, ...] = (
    # the command line, and what people are shown; made anew every time
    "sdxl_coreml.py",
    "sdxl_coreml/making.py",
    "release/*commands.py",
    "verify/*commands.py",
    "convert/source/headers.py",
    "convert/environment.py",
    "convert/plan/text.py",
    "convert/streams.py",
    "sdxl_coreml/terminal.py",
    "convert/units.py",
    "sdxl_coreml/doctor.py",
    "verify/html_*.py",
    "verify/reports/summary.py",
    # words that everyone uses, and how work is done but not what comes of it
    "convert/cache.py",
    "convert/code.py",
    "convert/files/documents.py",
    "convert/plan/engines.py",
    "convert/errors.py",
    "convert/plan/estimate.py",
    "convert/interrupts.py",
    "convert/memory.py",
    "convert/run/pool.py",
    "convert/progress.py",
    # what is asked for, and the checkpoint's files: keys hold both, as values and digests
    "recipes/__init__.py",
    "convert/weights/allocation.py",
    "convert/source/download.py",
    "convert/source/hub.py",
    "convert/weights/methods.py",
    "convert/recipe/options.py",
    "convert/plan/plan.py",
    "convert/toy/random_checkpoint.py",
    "convert/recipe/recipe*.py",
    "convert/run/run.py",
    "convert/source/snapshot.py",
    "convert/toy/*.py",
    # commands of one's own, whose results no run keeps
    "verify/reports/baseline.py",
    "verify/bisect/bisect.py",
    "verify/bisect/graph.py",
    "verify/bisect/report.py",
    "verify/bisect/weights.py",
    "verify/reports/diff*.py",
    "verify/golden.py",
    "verify/artifact/inspect.py",
    "verify/artifact/layers.py",
    "verify/artifact/text.py",
    "verify/bisect/minimal.py",
    "verify/artifact/probe.py",
    "verify/reports/saved.py",
    # the release beside its archives: composed anew every time, or only looking
    "release/lint/apps.py",
    "release/build.py",
    "release/lint/bundle_checks.py",
    "release/card/card*.py",
    "release/lint/checkpoint_checks.py",
    "release/lint/compiled.py",
    "release/lint/interface.py",
    "release/card/licenses.py",
    "release/lint/lint*.py",
    "release/card/markdown.py",
    "release/publish/publish*.py",
    "release/lint/reading.py",
    "release/lint/rules.py",
    "release/card/samples.py",
    "release/card/source_card.py",
    "release/pack/stale.py",
    "release/lint/swift.py",
    "release/lint/tree.py",
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
