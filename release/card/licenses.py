"""What licences of checkpoints say about passing converted models on.

A conversion is a modified copy. This table is about redistribution alone and no legal advice;
licences that it does not know are neither refused nor vouched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert.recipe.recipe import Recipe
    from release.card.source_card import SourceCard

# Identifiers that the Hub takes for `license`; others are `other` with a name and a link.
# Source: https://huggingface.co/docs/hub/repositories-licenses
_HUB = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++
osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
HUB = frozenset(_HUB.split())


@dataclass(frozen=True)
class Objection:
    """Why a licence does not let a conversion be published by default."""

    license: str
    reason: str


_NO_DERIVATIVES = "lets nobody pass on modified copies, and a conversion is one"
_RESEARCH = "lets research use the model, and nobody distribute it"
FORBIDDEN = {
    "cc-by-nd-4.0": _NO_DERIVATIVES,
    "cc-by-nc-nd-3.0": _NO_DERIVATIVES,
    "cc-by-nc-nd-4.0": _NO_DERIVATIVES,
    "sdxl-0.9-research": _RESEARCH,
    "sdxl-0.9-research-license": _RESEARCH,
    "unknown": "is not known, so nobody has allowed redistribution",
}


def objection(license: str | None, name: str | None = None) -> Objection | None:
    """Why a model under this licence is not published without being told to; None where it is.

    Args:
        license: the card's `license`; None where neither recipe nor source names one.
        name: the card's `license_name`, where `license` is `other`.
    """
    for identifier in (license, name):
        if identifier and identifier.casefold() in FORBIDDEN:
            return Objection(identifier, FORBIDDEN[identifier.casefold()])
    if license is None or (license == "other" and not name):
        return Objection("no licence", "is named, so nobody has allowed redistribution")
    return None


def front_matter(license: str | None, name: str | None, link: str | None) -> dict[str, str]:
    """`license`, `license_name` and `license_link` as the Hub wants them.

    A licence that the Hub does not list is `other`, and its identifier becomes the name.
    """
    if license is None:
        return {}
    if license in HUB and license != "other":
        return {"license": license}
    found = {"license": "other", "license_name": name or license, "license_link": link}
    if found["license_name"] == "other":
        del found["license_name"]
    return {key: value for key, value in found.items() if value}


def license_front(recipe: Recipe, source: SourceCard | None) -> dict[str, str]:
    """The same of a release's card: the recipe's licence, or else that of the source's card."""
    own, given = recipe.release, source.data if source else {}
    if own.license is not None:
        return front_matter(own.license, own.license_name, own.license_link)
    return front_matter(given.get("license"), given.get("license_name"), given.get("license_link"))
