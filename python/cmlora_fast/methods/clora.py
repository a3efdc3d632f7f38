"""CLoRA as data: its rows, its concepts and its options; bad values raise when one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fields import (
    check_bool,
    check_choice,
    check_fraction,
    check_names,
    fail,
    is_int,
    is_list,
    is_real,
    plain_numbers,
)
from .regions import check_masks

__all__ = ["PROMPT_LENGTH", "CLoRA", "Concept", "Row"]

PROMPT_LENGTH = 77  # positions of a CLIP text encoder, start and end token included

_POSITIONS = f"a list of token positions, ints in 0..{PROMPT_LENGTH - 1} (0: the start token)"


@dataclass(frozen=True)
class Row:
    """One prediction of the image: an adapter under its own prompt.

    Args:
        adapter: Name of the row's adapter; None for the base row.
        prompt: The scene in this row's words.
        negative_prompt: What guidance leads away from, encoded under this row's adapters.
        mask_tokens: Positions in the prompt whose attention maps make the row's mask.
        concept_tokens: ``concept_tokens[c]``: positions of concept c in this row's prompt.
    """

    adapter: str | None
    prompt: str
    negative_prompt: str = ""
    mask_tokens: Sequence[int] = ()
    concept_tokens: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        if self.adapter is not None:
            _check_text(self, "adapter", "None for the base row or the name of an adapter")
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                fail(self, name, "a string")
        if not _are_positions(self.mask_tokens):
            fail(self, "mask_tokens", _POSITIONS)
        groups = self.concept_tokens
        if not (is_list(groups) and all(_are_positions(group) for group in groups)):
            fail(self, "concept_tokens", f"per concept {_POSITIONS}")
        object.__setattr__(self, "mask_tokens", _positions(self.mask_tokens))
        object.__setattr__(self, "concept_tokens", tuple(_positions(group) for group in groups))


@dataclass(frozen=True)
class Concept:
    """A subject of the prompt and the adapter that draws it.

    Args:
        adapter: Name of the adapter.
        subject: The subject as the prompt calls it, one word or several ("cat").
        trigger: The words that the adapter was trained to answer to ("sks").
    """

    adapter: str
    subject: str
    trigger: str = ""

    def __post_init__(self) -> None:
        _check_text(self, "adapter", "the name of an adapter")
        _check_text(self, "subject", "a word or words of the prompt")
        if not isinstance(self.trigger, str):
            fail(self, "trigger", "a string")


@dataclass(frozen=True, kw_only=True)
class CLoRA:
    """Contrastive composition: attention maps kept apart, predictions blended by masks.

    Meral et al., "Contrastive Test-Time Composition of Multiple LoRA Models for Image Generation"
    (ICCV 2025). Give exactly one of ``rows`` and ``concepts``.

    Args:
        rows: Every row by hand; the first one gets the pixels that no row claims.
        concepts: The easy form: rows and positions are made from the call's prompt.
        style_adapters: Adapters without a place of their own, active in every row.
        style_weight: Their weight.
        step_size: The latents move by ``-step_size`` times the gradient of the loss.
        max_iter_to_alter: Steps that move the latents, from the first; None: half the steps.
        iterative_steps: Steps, among those, that move them again and again.
        iterative_steps_steps: How many more times.
        temperature: Temperature of the contrastive loss.
        latent_update: Move the latents at all; without, only masks compose.
        mask_threshold_alpha: A pixel is claimed where a map is above this share of its maximum.
        apply_mask_after: First step with masks; earlier ones take the mean of all rows.
        mask_erode, mask_dilate, mask_opening, mask_closing: 3x3 morphology of the masks, in the
            order dilate, erode, opening, closing.
        maps_from: "both": mean of the maps of both guidance halves; "cond": the conditional one.
        refresh_after_update: Run the rows again on the latents as moved, so that prediction and
            masks belong to them (one more forward per step).
        text_encoder_adapters: Encode a row's prompts under the adapter of the row.
        row_prompt_embeds: (J, 77, D) embeddings of the rows' prompts, for the text encoder's.
        row_negative_prompt_embeds: (J or 1, 77, D), of their negative prompts.
        masks: A picture per adapter of the rows, resized to the latents, instead of masks from
            attention. White draws, greys and overlaps share by their values; row 0 gets what the
            others leave.
        reference_compat: Reproduce the released loop: ``maps_from``, ``refresh_after_update`` and
            ``masks`` keep their defaults.
    """

    rows: Sequence[Row] | None = None
    concepts: Sequence[Concept] | None = None
    style_adapters: Sequence[str] = ()
    style_weight: float = 0.8
    step_size: float = 20.0
    max_iter_to_alter: int | None = None
    iterative_steps: Sequence[int] = (0, 10, 20)
    iterative_steps_steps: int = 20
    temperature: float = 0.5
    latent_update: bool = True
    mask_threshold_alpha: float = 0.4
    apply_mask_after: int = 0
    mask_erode: bool = False
    mask_dilate: bool = False
    mask_opening: bool = False
    mask_closing: bool = False
    maps_from: str = "both"
    refresh_after_update: bool = False
    text_encoder_adapters: bool = True
    row_prompt_embeds: Any = None  # Tensor
    row_negative_prompt_embeds: Any = None
    masks: Mapping[str, Any] | None = None
    reference_compat: bool = False

    def __post_init__(self) -> None:
        self._check_rows()
        self._check_styles()
        self._check_update()
        self._check_masks()
        self._check_embeds()
        check_bool(self, "text_encoder_adapters", "reference_compat")
        plain_numbers(self)
        if self.reference_compat:
            kept = (("maps_from", "both"), ("refresh_after_update", False), ("masks", None))
            for name, default in kept:
                if getattr(self, name) != default:
                    fail(self, name, f"its default {default!r} with reference_compat=True")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CLoRA):
            return NotImplemented
        # Two embeddings are equal when they are one: comparing them by value gives a tensor.
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(a is b or not (_is_tensor(a) or _is_tensor(b) or a != b) for a, b in pairs)

    @property
    def row_count(self) -> int:
        """J, the base row included."""
        return len(self.concepts) + 1 if self.rows is None else len(self.rows)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters of the rows in their order, each once, then those of the style."""
        named = self.concepts if self.rows is None else self.rows
        names = [entry.adapter for entry in named if entry.adapter is not None]
        return tuple(dict.fromkeys([*names, *self.style_adapters]))

    def updates(self, step: int, steps: int) -> int:
        """How often step ``step`` of ``steps`` moves the latents; each time takes one loss."""
        limit = steps // 2 if self.max_iter_to_alter is None else self.max_iter_to_alter
        if not self.latent_update or step >= limit:
            return 0
        return 1 + (self.iterative_steps_steps if step in self.iterative_steps else 0)

    def _check_rows(self) -> None:
        if (self.rows is None) == (self.concepts is None):
            allowed = "exactly one of rows and concepts"
            fail(self, "rows" if self.concepts is None else "concepts", allowed)
        name, kind = ("rows", Row) if self.concepts is None else ("concepts", Concept)
        value = getattr(self, name)
        listed = is_list(value) and len(value) > 0
        if not (listed and all(isinstance(entry, kind) for entry in value)):
            fail(self, name, f"a list of at least one {kind.__name__}")
        object.__setattr__(self, name, tuple(value))
        if self.rows is not None and len({len(r.concept_tokens) for r in value} - {0}) > 1:
            fail(self, "rows", "as many concept_tokens in every row, or none in a row")

    def _check_styles(self) -> None:
        if self.style_adapters is None:
            fail(self, "style_adapters", "a list of adapter names")
        check_names(self, "style_adapters")
        named = self.concepts if self.rows is None else self.rows
        if {entry.adapter for entry in named} & set(self.style_adapters):
            fail(self, "style_adapters", "adapters other than those of the rows")
        if not is_real(self.style_weight):
            fail(self, "style_weight", "a number")

    def _check_update(self) -> None:
        check_bool(self, "latent_update", "refresh_after_update")
        if not (is_real(self.step_size) and self.step_size >= 0):
            fail(self, "step_size", "a number >= 0")
        if not (is_real(self.temperature) and self.temperature > 0):
            fail(self, "temperature", "a number > 0")
        if self.max_iter_to_alter is not None and not is_int(self.max_iter_to_alter, 0):
            fail(self, "max_iter_to_alter", "None or an int >= 0")
        if not is_int(self.iterative_steps_steps, 0):
            fail(self, "iterative_steps_steps", "an int >= 0")
        steps = self.iterative_steps
        if not (is_list(steps) and all(is_int(step, 0) for step in steps)):
            fail(self, "iterative_steps", "a list of ints >= 0")
        object.__setattr__(self, "iterative_steps", _positions(steps))

    def _check_masks(self) -> None:
        check_fraction(self, "mask_threshold_alpha")
        if not is_int(self.apply_mask_after, 0):
            fail(self, "apply_mask_after", "an int >= 0")
        check_bool(self, "mask_erode", "mask_dilate", "mask_opening", "mask_closing")
        check_choice(self, "maps_from", ("both", "cond"))
        check_masks(self)
        named = set(self.adapters) - set(self.style_adapters)
        if self.masks is not None and set(self.masks) != named:
            given = sorted(self.masks)
            raise ValueError(
                f"CLoRA.masks: expected one for each of {sorted(named)}, the adapters of the rows; "
                f"got {given}"
            )

    def _check_embeds(self) -> None:
        rows = self.row_count
        for name, counts in (
            ("row_prompt_embeds", (rows,)),
            ("row_negative_prompt_embeds", (rows, 1)),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            form = " or ".join(str(count) for count in dict.fromkeys(counts))
            allowed = f"floating-point embeddings ({form}, {PROMPT_LENGTH}, D)"
            if not _is_tensor(value) or not value.is_floating_point():
                fail(self, name, allowed)
            if value.dim() != 3 or len(value) not in counts or value.shape[1] != PROMPT_LENGTH:
                raise ValueError(f"CLoRA.{name}: expected {allowed}; got {tuple(value.shape)}")


def _is_tensor(value: object) -> bool:
    """Told by what it can do: nothing here knows torch."""
    return hasattr(value, "is_floating_point") and hasattr(value, "dim")


def _check_text(owner: object, field_name: str, allowed: str) -> None:
    value = getattr(owner, field_name)
    if not isinstance(value, str) or not value.strip():
        fail(owner, field_name, allowed)


def _are_positions(value: object) -> bool:
    return is_list(value) and all(is_int(k, 0) and k < PROMPT_LENGTH for k in value)


def _positions(value: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(k) for k in value)
