"""PEFT's settings of a LoRA: rank and alpha, by module, and rs-LoRA.

diffusers writes them into the header (`lora_adapter_metadata`, its keys beginning with the
component's name), PEFT itself into `adapter_config.json` beside `adapter_model.safetensors`.
Sources: diffusers `loaders/lora_base.py`; peft `tuners/lora/config.py`, `utils/other.py`
(`get_pattern_key`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.documents import Document, checked
from convert.files.json_files import parse_json, read_object, require_object, shown

HEADER_KEY = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"
# The spellings of PEFT's modules, by the component whose settings they follow.
_PREFIXES = {
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "unet.": "unet",
    "base_model.model.": "unet",
}


class PeftSettings(Document):
    """What PEFT's LoraConfig says of the size of a LoRA's product."""

    lora_alpha: float = 8  # as PEFT's default
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False


@dataclass(frozen=True)
class LoraSettings:
    """The settings by component; none for files that are not PEFT's."""

    path: Path
    by_component: Mapping[str, PeftSettings]

    def scale(self, module: str, rank: int, *, has_magnitude: bool) -> float:
        """alpha ÷ rank of a module without an alpha of its own, or ÷ √rank; 1 without settings."""
        prefix = next((p for p in _PREFIXES if module.startswith(p)), "")
        component = _PREFIXES.get(prefix, "unet")
        found = self.by_component.get(component)
        if found is None:
            return 1.0
        if found.use_dora and not has_magnitude:
            raise InputError(
                f"module `{module}` lacks `lora_magnitude_vector`, although `use_dora` is true",
                where=self.path,
                hint="The file is incomplete: download it again, or save it again with PEFT.",
            )
        name, alpha = module.removeprefix(prefix), found.lora_alpha
        for pattern, value in (found.alpha_pattern or {}).items():
            if self._matches(pattern, name):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if found.use_rslora else rank)

    def _matches(self, pattern: str, name: str) -> bool:
        # What regular expressions may hold here cannot take exponential time.
        if not re.fullmatch(r"\^?(\w|\\?\.|\.\*(?!.*\.\*.*\.\*.*\.\*)|\\d\+?)*", pattern):
            raise InputError(
                f"`alpha_pattern` has the pattern {shown(pattern)}, which is not read here",
                where=self.path,
                hint="Write the names of modules there, of which `.*` may stand for parts.",
            )
        return re.match(rf"(.*\.)?({pattern})$", name) is not None


def read_settings(metadata: Mapping[str, str], path: Path) -> LoraSettings:
    """The settings that a file's header or the file beside it has.

    Raises:
        InputError: they are not readable, or of other types than PEFT writes.
    """
    if HEADER_KEY in metadata:
        where = f"{path}, `{HEADER_KEY}`"
        values = require_object(parse_json(metadata[HEADER_KEY], where), where)
        components: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            component, _, name = key.partition(".")
            components.setdefault(component, {})[name] = value
        found = {name: checked(PeftSettings, each, where) for name, each in components.items()}
        return LoraSettings(path, found)
    beside = path.with_name(CONFIG_FILE)
    if path.stem == "adapter_model" and beside.exists():
        return LoraSettings(path, {"unet": checked(PeftSettings, read_object(beside), beside)})
    return LoraSettings(path, {})


def glora_is_rank_stabilized(metadata: Mapping[str, str]) -> bool:
    """Whether a GLoRA was trained with rs-LoRA, whose alpha only other kinds have saved scaled.

    Source: LyCORIS, `modules/glora.py`.
    """
    arguments = metadata.get("ss_network_args", "")
    return re.search(r'"rs_lora"\s*:\s*"?[Tt]rue', arguments) is not None
