"""What we ship, checked: an evaluator of ML Programs, and comparisons with PyTorch.

What a script needs stands here, and is loaded when it is asked for; the rooms have the rest.
"""

from __future__ import annotations

from convert.process.face import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from verify.batch import verify_all
    from verify.judge.checks import Results
    from verify.mil.load import load_program
    from verify.question import Evidence, Question
    from verify.reference.calibration import calibrate
    from verify.reference.recording import Denoising, record
    from verify.run import verify
    from verify.runtime.evaluator import Evaluator
    from verify.sampling.pipeline import load_pipeline

_FACE = {
    "Denoising": ("verify.reference.recording", "Denoising"),
    "Evaluator": ("verify.runtime.evaluator", "Evaluator"),
    "Evidence": ("verify.question", "Evidence"),
    "Question": ("verify.question", "Question"),
    "Results": ("verify.judge.checks", "Results"),
    "calibrate": ("verify.reference.calibration", "calibrate"),
    "load_pipeline": ("verify.sampling.pipeline", "load_pipeline"),
    "load_program": ("verify.mil.load", "load_program"),
    "record": ("verify.reference.recording", "record"),
    "verify": ("verify.run", "verify"),
    "verify_all": ("verify.batch", "verify_all"),
}
__all__ = list(_FACE)
__getattr__ = face(__name__, _FACE)
