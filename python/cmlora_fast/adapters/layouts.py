"""The key layouts of LoRA files, as tables: whose update a key belongs to, and as what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["COMPONENTS", "KOHYA", "Parsed", "foreign_kind", "format_of", "parse", "place"]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
# OneTrainer writes the same with dots, LyCORIS outside kohya's scripts a prefix of its own.
_PREFIXES = {
    **KOHYA,
    **{f"{prefix.rstrip('_')}.": part for prefix, part in KOHYA.items()},
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "lycoris_": "unet",
}

# End of a key -> what the tensor is in the update of its module.
_ROLES = (
    (r"\.lora_(?:A(?:\.\w+)?|down)\.weight", "down"),
    (r"\.lora_(?:B(?:\.\w+)?|up)\.weight", "up"),
    (r"(?:[._]lora|\.lora_linear_layer)\.down\.weight", "down"),
    (r"(?:[._]lora|\.lora_linear_layer)\.up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale|\.lora_magnitude_vector(?:\.\w+)*", "magnitude"),
    (r"\.(?P<factor>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))", None),
    (r"\.diff", "diff"),
)
_KEY = re.compile(
    r"^(?P<stem>.+?)(?:"
    + "|".join(f"(?P<r{n}>{pattern})" for n, (pattern, _) in enumerate(_ROLES))
    + r")$"
)
# Roles of which a whole update has all; one line is enough.
_WHOLE = (
    {"down", "up"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"lokr_w1", "lokr_w2"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
    {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
    {"diff"},
)
_EMBEDDING = re.compile(r"^bundle_emb\.(.+)\.(string_to_param\.\*|emb_params|clip_l|clip_g)$")

# The first whose pattern occurs in a key names the layout.
_FORMATS = (
    ("LyCORIS", r"^lycoris_|\.(hada|lokr)_|\.lora_mid\.|\.diff$"),
    ("kohya (SGM blocks)", r"^lora_unet_(input_blocks|middle_block|output_blocks)_"),
    ("kohya", r"^lora_(unet|te\d?)_"),
    ("OneTrainer", r"^(lora_(unet|te\d?)|clip_[lg])\."),
    ("PEFT", r"^base_model\.model\."),
    ("diffusers/PEFT", r"\.lora_[AB]\."),
    ("diffusers (before PEFT)", r"[._]lora\.(down|up)\.|\.lora_linear_layer\."),
)
# What files are that are no LoRA for a UNet, by keys that only they have.
_FOREIGN = (
    ("a LoRA for Flux", r"(lora_unet_|diffusion_model\.|transformer\.)\w*(double|single)_blocks"),
    ("a LoRA for Flux", r"single_transformer_blocks"),
    ("a LoRA for SD3", r"joint_blocks|lora_transformer_|^transformer\.transformer_blocks"),
    ("a LoRA for a transformer model", r"^(transformer|diffusion_model)\."),
    ("a whole checkpoint", r"^(model\.diffusion_model|cond_stage_model|conditioner)\."),
    ("a VAE", r"^(first_stage_model\.|(en|de)coder\.(conv_in|conv_out|mid|up|down))"),
    ("a textual inversion embedding", r"^(emb_params|string_to_param.*|clip_l|clip_g|<.+>)$"),
    ("a ControlNet", r"^(control_model|controlnet_\w+)\."),
)


@dataclass
class Parsed:
    """Stem -> role -> key; token -> part -> key of bundled embeddings; keys that are neither."""

    updates: dict[str, dict[str, str]] = field(default_factory=dict)
    embeddings: dict[str, dict[str, str]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)


def parse(keys: Iterable[str]) -> Parsed:
    """Sort the keys of a file; updates that lack a part are among the rest."""
    found, groups = Parsed(), {}
    for key in keys:
        if match := _EMBEDDING.match(key):
            part = "emb_params" if match[2].startswith("string") else match[2]
            found.embeddings.setdefault(match[1], {})[part] = key
        elif match := _KEY.match(key):
            number = next(n for n in range(len(_ROLES)) if match[f"r{n}"] is not None)
            groups.setdefault(match["stem"], {})[_ROLES[number][1] or match["factor"]] = key
        else:
            found.rest.append(key)
    for stem, roles in groups.items():
        if any(whole <= roles.keys() for whole in _WHOLE):
            found.updates[stem] = roles
        else:
            found.rest.extend(roles.values())
    return found


def place(stem: str) -> tuple[str, str]:
    """Component and module name that a key's stem means."""
    stem = stem.removeprefix("base_model.model.")
    for prefix, component in _PREFIXES.items():
        if stem.startswith(prefix):
            component, name = component, stem.removeprefix(prefix)
            break
    else:
        head, _, rest = stem.partition(".")
        component, name = (head, rest) if head in COMPONENTS else ("unet", stem)
    text = component == "unet" and name.startswith(("text_model.", "text_model_"))
    return ("text_encoder", name) if text else (component, name)


def format_of(keys: Iterable[str]) -> str:
    """The layout's name; "unknown" where no key is of any."""
    keys = list(keys)
    for name, pattern in _FORMATS:
        if any(map(re.compile(pattern).search, keys)):
            return name
    return "unknown"


def foreign_kind(keys: Iterable[str]) -> str | None:
    """What a file is that is not meant for a UNet; None: nothing that is known."""
    keys = list(keys)
    for name, pattern in _FOREIGN:
        if any(map(re.compile(pattern).search, keys)):
            return name
    return None
