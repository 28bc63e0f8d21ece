"""What was done to verify an artifact, told in words that claim no more than that.

From the words of a report's `evidence` and the checks that did not pass come a sentence for who
downloads, and a few words for a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.values import Effort, Resolution, Verdict
from verify.reports.evidence_words import EvidenceKind, EvidenceWord, parse_word
from verify.reports.phrases import component_phrases, joined, names, size_text, with_article

# How near to the artifact itself its outputs were looked at, from nothing to everything.
EvidenceReach = Literal["no outputs", "small size", "one step elsewhere", "one step", "executed"]
REACHES: tuple[EvidenceReach, ...] = get_args(EvidenceReach)
REACH_MEANINGS: dict[EvidenceReach, str] = {
    "executed": "every model was executed at its own size, the UNet at several timesteps, and its "
    "outputs were compared with PyTorch's",
    "one step": "at its own size the UNet was executed at one timestep, the VAE on one input (here "
    "or on another of the same run); all other outputs are those of a smaller size",
    "one step elsewhere": "its outputs were compared at a smaller size; at full size nothing of it "
    "was executed, but one step of another with the same attention was",
    "small size": "its outputs were compared at a smaller size; nothing was executed at its own",
    "no outputs": "outputs of some models were not compared",
}
NOT_SAID = "not said"
NOT_SAID_MEANING = "the report does not say at which sizes anything was executed"


@dataclass(frozen=True)
class HowVerified:
    """What was done to verify one artifact, and what of it did not pass.

    Attributes:
        words: of what was done and found right, by component, in the pipeline's order; of no
            component where nothing is said.
        resolution: of the artifact; None if nobody knows.
        failed, undecided: what did, as `graph of UNet`, as far as checks say.
    """

    effort: Effort | None
    words: Mapping[str, tuple[EvidenceWord, ...]]
    resolution: Resolution | None
    verdict: Verdict | None
    failed: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()  # that there are checks of

    @property
    def sized(self) -> list[str]:
        """The components that are made for a size."""
        return [name for name in self.words if COMPONENTS[name].has_resolution]

    def having(self, kind: EvidenceKind) -> list[str]:
        """The components of which there is such a word."""
        return [c for c, words in self.words.items() if any(w.kind == kind for w in words)]

    def executed(self) -> list[str]:
        """The components that were compared as they are, at their own size if they have one."""
        own = EvidenceWord("numbers", self.resolution)
        return [
            c
            for c, words in self.words.items()
            if (own if c in self.sized else EvidenceWord("numbers")) in words
            and (self.resolution is not None or c not in self.sized)
        ]

    def once(self, *, elsewhere: bool) -> dict[str, EvidenceWord]:
        """By component, its one execution at its own size, or that of another artifact."""
        found = {}
        for component in self.sized:
            for word in self.words[component]:
                if word.kind not in ("step", "run"):
                    continue
                is_own = word.artifact is None and self.resolution in (None, word.size)
                if word.artifact is not None if elsewhere else is_own:
                    found[component] = word
        return found

    @property
    def reach(self) -> EvidenceReach | None:
        """The least of all models; of the VAE's one run it matters not whose it was. None if
        nothing is said."""
        if not self.words:
            return None
        reaches = {c: self.reach_of(c) for c in self.words}
        if reaches.get("unet") == "one step":
            for component, found in reaches.items():
                if found == "one step elsewhere":
                    reaches[component] = "one step"
        return min(reaches.values(), key=REACHES.index)

    def reach_of(self, component: str) -> EvidenceReach:
        """How near to itself one model was looked at; not at all where nothing is said of it."""
        if component in self.executed():
            return "executed"
        if component in self.once(elsewhere=False):
            return "one step"
        if component in self.once(elsewhere=True):
            return "one step elsewhere"
        return "small size" if component in self.having("numbers") else "no outputs"

    @property
    def short(self) -> str:
        """A few words for a table: the reach, and which other evidence is not there."""
        reach = self.reach
        if reach is None:
            return NOT_SAID
        kinds: tuple[tuple[EvidenceKind, set[str]], ...] = (
            ("weights", set(self.words)),
            ("graph", set(self.words).difference(self.executed())),
        )
        parts: list[str] = [reach]
        for kind, wanted in kinds:
            if missing := wanted.difference(self.having(kind)):
                parts.append(f"no {kind}" if missing == wanted else f"{kind} in part")
        return ", ".join(parts)

    @property
    def meaning(self) -> str:
        """What `short` says, in a sentence without this artifact's own sizes and names."""
        if self.reach is None:
            return NOT_SAID_MEANING
        missing = self.short.split(", ")[1:]
        told = {"weights": "every stored weight", "graph": "every operation"}
        compared = [text for name, text in told.items() if not any(name in m for m in missing)]
        parts = [f"{joined(compared)} was compared; "] if compared else []
        parts.append(REACH_MEANINGS[self.reach])
        whole = [m for m in missing if m.startswith("no ")]
        if whole:
            parts.append(f"; without a comparison of {joined([m[3:] for m in whole])}")
        if len(whole) < len(missing):
            parts.append("; the rest was compared of some models only")
        return "".join(parts)

    def sentence(self, thing: str = "artifact") -> str:
        """What was done, for who downloads.

        Args:
            thing: what the reader calls it, `artifact` or `file`.
        """
        if not self.words:
            text = f"This {thing}'s verification does not say what was executed at which size"
            told = [f"it has checks of {joined(self.levels)}"] if self.levels else []
            return "; ".join([text, *told, *self._outcome()]) + "."
        effort = f" at {self.effort} effort" if self.effort else ""
        parts = [*self._compared(thing), *self._executed(thing), *self._left(thing)]
        return f"Checked{effort}: " + "; ".join([*parts, *self._outcome()]) + "."

    def _compared(self, thing: str) -> Iterator[str]:
        """Weights, operations and outputs, each with what it was compared with."""
        pairs: list[tuple[str, str]] = []
        if weights := self.having("weights"):
            pairs.append((f"every stored weight{self._of(weights)}", "the checkpoint's"))
        if graph := self.having("graph"):
            sizes = self._small_sizes(graph)
            at = joined([size_text(s) for s in sizes]) if sizes else "another size"
            network = f"the same network at {at}" if set(graph) & set(self.sized) else "a network"
            new = "" if set(graph) & set(self.sized) else " made anew"
            pairs.append((f"every operation{self._of(graph)}", f"that of {network}{new}"))
        if outputs := list(self._outputs(thing)):
            pairs.append((f"outputs {' and '.join(outputs)}", "PyTorch's"))
        if pairs:
            (what, other), *rest = pairs
            verb = "were" if what.startswith("outputs") else "was"
            clauses = [f"{what} {verb} compared with {other}", *(f"{a} with {b}" for a, b in rest)]
            yield joined(clauses, ", and " if len(clauses) > 2 else " and ")

    def _outputs(self, thing: str) -> Iterator[str]:
        """Of which models outputs were compared, and at which size."""
        own, sized = self.executed(), self.sized
        small = [c for c in self.having("numbers") if c not in own]
        by_size: dict[Resolution | None, list[str]] = {}
        for component in small:
            by_size.setdefault(self._small_sizes([component])[0], []).append(component)
        for other, of in by_size.items():
            yield f"of {names(of)} at {size_text(other)}"
        if at_own := [c for c in own if c in sized]:
            size = f"this {thing}'s own size, {size_text(self.resolution)}"
            steps = ", the UNet's at several timesteps," if "unet" in at_own else ""
            yield f"of {names(at_own)} at {size}{steps}"
        if free := [c for c in own if c not in sized]:
            yield f"of {names(free)}"

    def _executed(self, thing: str) -> Iterator[str]:
        """What was executed at a true size, and where; what was not."""
        left = [c for c in self.sized if c not in self.executed()]
        here = {c: w for c, w in self.once(elsewhere=False).items() if c in left}
        there = {c: w for c, w in self.once(elsewhere=True).items() if c in left and c not in here}
        own = self.resolution or next((word.size for word in here.values()), None)
        size = f"this {thing}'s own size, {size_text(own)},"
        if here:
            yield f"at {size} {_were(_once(here))} executed and compared, and no more"
        others = dict.fromkeys((w.artifact, w.size) for w in there.values())
        done = [
            f"{joined(_once(of))} on another {thing} ({artifact}, {size_text(at)})"
            for artifact, at in others
            if (of := {c: w for c, w in there.items() if (w.artifact, w.size) == (artifact, at)})
        ]
        if done:
            verb = "was" if len(done) == len(_once(there)) == 1 else "were"
            yield f"at full size {joined(done)} {verb} executed and compared, not on this one"
        if (never := [c for c in left if c not in here and c not in there]) and self.resolution:
            yield f"at {size} {_were(component_phrases(never))} {self._not} executed"

    @property
    def _not(self) -> str:
        """Words are of what was found right, so what has none may have been tried."""
        return "not" if self.verdict == "pass" else "not successfully"

    def _left(self, thing: str) -> Iterator[str]:
        """Which models' weights and operations were not compared."""
        if without := [c for c in self.words if c not in self.having("weights")]:
            yield f"weights of {names(without)} were {self._not} compared one by one"
        known = {*self.having("graph"), *self.executed()}
        if without := [c for c in self.words if c not in known]:
            what = f"operations of {names(without)} were {self._not} compared"
            yield f"{what}, so outputs at another size prove little of this {thing}"

    def _outcome(self) -> Iterator[str]:
        """What did not pass."""
        if self.failed:
            yield f"failed: {', '.join(self.failed)}"
        elif self.verdict == "fail":
            yield "not all of it passed"
        if self.undecided:
            yield f"without a verdict: {', '.join(self.undecided)}"
        elif self.verdict == "indeterminate":
            yield "not all of it came to a verdict"

    def _of(self, components: Sequence[str]) -> str:
        return "" if set(components) == set(self.words) else f" of {names(components)}"

    def _small_sizes(self, components: Iterable[str]) -> list[Resolution]:
        """The sizes, other than their own, at which outputs of these were compared."""
        words = [w for c in components for w in self.words[c] if w.kind == "numbers"]
        return list(dict.fromkeys(w.size for w in words if w.size not in (None, self.resolution)))


def how_verified(report: Mapping[str, Any]) -> HowVerified:
    """What a report, or an artifact's or archive's manifest, says of how it was verified.

    Args:
        report: checked as `verify.reports.saved` does. Without `evidence` it is an older one.
    """
    checks = report.get("checks", ())
    of = [(f"{c['level']} of {with_article(c['component'])}", c["verdict"]) for c in checks]
    bad = [
        tuple(dict.fromkeys(what for what, found in of if found == verdict))
        for verdict in ("fail", "indeterminate")
    ]
    said = report.get("evidence") or {}
    # What was looked at and not found right may have no words, and counts all the same.
    looked_at = {*said, *(check["component"] for check in checks)} if said else ()
    return HowVerified(
        effort=report.get("effort"),
        words={c: tuple(map(parse_word, said.get(c, ()))) for c in COMPONENTS if c in looked_at},
        resolution=_resolution(report.get("resolution")),
        verdict=report.get("verdict"),
        failed=bad[0],
        undecided=bad[1],
        levels=tuple(dict.fromkeys(c["level"] for c in checks)),
    )


def _resolution(text: str | None) -> Resolution | None:
    with suppress(InputError):  # a report may say anything here
        return Resolution.parse(text) if text else None
    return None


def meanings(verified: Iterable[HowVerified]) -> dict[str, str]:
    """What the short forms of several artifacts mean, each once, the farthest reach first."""
    found = {how.short: how for how in verified}
    nearness = {short: REACHES.index(how.reach or "no outputs") for short, how in found.items()}
    return {short: found[short].meaning for short in sorted(found, key=lambda s: -nearness[s])}


def _once(words: Mapping[str, EvidenceWord]) -> list[str]:
    """What was executed once, for each model that has a timestep, and for all others together."""
    parts = []
    steps = (w.timestep for w in words.values() if w.kind == "step")
    for timestep in dict.fromkeys(steps):
        of = [c for c, w in words.items() if w.kind == "step" and w.timestep == timestep]
        parts.append(f"one step of {names(of)} (t={timestep})")
    if runs := [c for c, w in words.items() if w.kind == "run"]:
        parts.append(f"one run of {names(runs)}")
    return parts


def _were(phrases: Sequence[str]) -> str:
    return f"{joined(phrases)} {'was' if len(phrases) == 1 else 'were'}"
