"""Level `weights`: every constant that comes from the checkpoint, beside what it must be.

Nothing is run. A fault of one bit in one weight shows here, which no figure of an output does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.process.progress import Say, silent
from verify.artifact.ours import is_ours
from verify.judge.checks import Check, failed, passed
from verify.mil import Program
from verify.weights.find import FoundWeights, find_weights, match_values
from verify.weights.own import file_problem, wrong_constants
from verify.weights.parallel import Compared, compare_all

GATES = {
    "tensors": "each tensor of the checkpoint is there, once, and an op takes it",
    "plain": "what is not compressed is the checkpoint's value, to the bit",
    "palettes": "each index is that of a nearest entry, each table as good as its width allows",
    "integers": "each integer is the nearest to weight ÷ scale, no scale larger than it must be",
    "other": "stored in a way that is known",
    "own": "what is no tensor of the checkpoint's is what its name means, to the bit",
    "file": "the weight file holds this and nothing else",
}
SHOWN = 3  # deviations that are told one by one


def check_weights(
    program: Program,
    component: str,
    source: Checkpoint,
    *,
    say: Say = silent,
) -> Iterator[Check]:
    """Compare every weight of a package with the checkpoint's, reading both once.

    Another converter names, folds and rounds some in its own way: what it has folded is told.
    """
    if not source.part(component).tensors:
        text = "needs the checkpoint, of whose weights a recording has none"
        gate = GATES["tensors"]
        yield Check("weights", component, "tensors", gate, "indeterminate", message=text)
        return
    tensors = source.component_tensors(component)
    found = find_weights(program, tensors)
    ours = is_ours(program, source, component)
    matched = {} if ours else match_values(found, tensors)
    yield _presence(component, found, matched, ours=ours)
    say(f"weights of {component}")
    forms: dict[str, list[Compared]] = {}
    for compared in compare_all([*found.weights.values()], is_ours=ours):
        forms.setdefault(compared.weight.form, []).append(compared)
    for form, gate in GATES.items():
        if form in forms:
            yield _judged(component, form, gate, forms[form])
    if ours:
        yield from _beside(component, found, program, source)


def _beside(
    component: str, found: FoundWeights, program: Program, source: Checkpoint
) -> Iterator[Check]:
    """What our weight files hold that is no tensor's, and how they are arranged."""
    own, problem = [], ""
    try:
        own = [str(fault) for fault in wrong_constants(found.foreign, component, source)]
        problem = file_problem(program)
    except InputError as error:
        problem = f"unreadable: {error.problem}"
    for case, text in (("own", "; ".join(own[:SHOWN])), ("file", problem)):
        if text:
            yield failed("weights", component, case, GATES[case], text)
        elif case == "file" or found.foreign:
            told = f"{len(found.foreign)} constants" if case == "own" else ""
            yield passed("weights", component, case, GATES[case], told)


def _presence(
    component: str, found: FoundWeights, matched: Mapping[str, object], *, ours: bool
) -> Check:
    """Whether each tensor has its place in the program."""
    gate = GATES["tensors"]
    missing = [name for name in found.missing if name not in matched]
    unused = [name for name, weight in found.weights.items() if not weight.uses]
    problems = []
    if missing and ours:
        problems.append(f"no constant stands for {_listed(missing)}")
    if found.doubled:
        problems.append(f"several constants stand for {_listed(found.doubled)}")
    if unused:
        problems.append(f"no op takes {_listed(unused)}")
    if foreign := [*found.foreign] if ours and found.missing else []:
        problems.append(f"in their place are {_listed(foreign)}")
    if problems:
        return failed("weights", component, "tensors", gate, "; ".join(problems))
    count = len(found.weights) + len(matched)
    told = f"{count} of {count + len(missing)} tensors"
    if matched:
        told += f", {len(matched)} of them by their values alone"
    if missing:  # of another converter, which may have folded them into others
        text = f"{told}; not found, or folded into another value: {_listed(missing)}"
        return Check("weights", component, "tensors", gate, "indeterminate", message=text)
    return passed("weights", component, "tensors", gate, told)


def _judged(component: str, form: str, gate: str, compared: list[Compared]) -> Check:
    wrong = [str(c.deviation) for c in compared if c.deviation is not None]
    if wrong:
        more = f" (and {len(wrong) - SHOWN} more tensors)" if len(wrong) > SHOWN else ""
        return failed("weights", component, form, gate, "; ".join(wrong[:SHOWN]) + more)
    unknown = [c for c in compared if c.unknown]
    if unknown:
        text = f"`{unknown[0].weight.tensor.name}` has {unknown[0].unknown}"
        more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
        return Check("weights", component, form, gate, "indeterminate", message=text + more)
    numbers = sum(c.weight.tensor.size for c in compared)
    return passed("weights", component, form, gate, f"{len(compared)} tensors, {numbers:,} weights")


def _listed(names: Iterable[str]) -> str:
    found = [f"`{name}`" for name in names]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
