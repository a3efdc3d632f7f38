"""Methods that a schedule describes: one prediction per adapter subset, features cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

from .fields import (
    check_bool,
    check_choice,
    check_fraction,
    check_names,
    fail,
    is_int,
    is_one_of,
    is_real,
    plain_numbers,
)
from .regions import check_masks

__all__ = ["CMLoRA", "Composite", "Merge", "Method", "Switch"]

CacheInterval = int | Literal["nonuniform"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What every method shares: what is kept from step to step, and when it is made anew.

    Args:
        cache: "features": deep features are reused (DeepCache); "forecast": whole UNet calls are
            skipped, and what they would predict is forecast; "relay" (Composite and CMLoRA): the
            adapters take turns to run, the others are forecast.
        cache_interval: Features: steps between refreshes. 1: no reuse; "nonuniform": interval 2,
            then 3, then 2 (breaks at 37.5 % and 87.5 % of the steps). Forecast: one step in so
            many runs, after four; 1 and "nonuniform": ever fewer. Relay: adapters that run at a
            step; "nonuniform" is 1.
        cache_layer_id: Down block in which the shallow part ends (0: the outermost).
        cache_block_id: Last resnet of that block that still belongs to the shallow part.
        uniform: Regular refreshes; with False denser near ``center`` (integer interval >= 2).
        center: Step around which refreshes are denser. Needs ``uniform=False``.
        pow: How much denser, > 1. Needs ``uniform=False``.
        reference_compat: Reproduce the released denoising loop, defects included.
    """

    cache: str = "features"
    cache_interval: CacheInterval = 1
    cache_layer_id: int = 0
    cache_block_id: int = 1
    uniform: bool = True
    center: float | None = None
    pow: float | None = None
    reference_compat: bool = False

    _caches: ClassVar[tuple[str, ...]] = ("features", "forecast")
    # What the released code can be asked for; everything else keeps its default there.
    _released_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "variant",
            "cache_interval",
            "cache_layer_id",
            "cache_block_id",
            "uniform",
            "center",
            "pow",
            "threshold",
            "switch_step",
            "low_frequency",
            "reference_compat",
        }
    )

    def __post_init__(self) -> None:
        check_choice(self, "cache", self._caches)
        if not (is_one_of(self.cache_interval, "nonuniform") or is_int(self.cache_interval, 1)):
            fail(self, "cache_interval", 'an int >= 1 or "nonuniform"')
        for name in ("cache_layer_id", "cache_block_id"):
            if not is_int(getattr(self, name), 0):
                fail(self, name, "an int >= 0")
        check_bool(self, "uniform", "reference_compat")
        if self.cache != "features" and not self.uniform:
            fail(self, "uniform", f"True with cache={self.cache!r}")
        self._check_center()
        plain_numbers(self)
        if self.reference_compat:
            self._check_compat()

    def _check_center(self) -> None:
        bent = not self.uniform and self.cache_interval not in (1, "nonuniform")
        for name in ("center", "pow"):
            value = getattr(self, name)
            if value is None:
                if bent:
                    fail(self, name, "a number when uniform=False")
            elif not is_real(value):
                fail(self, name, "None or a number")
        if self.pow is not None and self.pow <= 1:
            fail(self, "pow", "a number > 1")
        if self.center is not None and self.center < 0:
            fail(self, "center", "a step number >= 0")

    def _check_compat(self) -> None:
        for field in fields(self):
            if field.name in self._released_fields:
                continue
            default = field.default if field.default is not MISSING else None
            if getattr(self, field.name) != default:
                fail(self, field.name, f"its default {default!r} with reference_compat=True")


@dataclass(frozen=True, kw_only=True)
class Merge(Method):
    """All adapters active in every row: ``W + Σ_j scale_j B_j A_j``."""


@dataclass(frozen=True, kw_only=True)
class Composite(Method):
    """Equal mean of one prediction per adapter (Zhong et al. 2024, LoRA Composite).

    Args:
        masks: Adapter -> picture of the pixels that it draws, resized to the latents. White draws,
            greys and overlaps share by their values and the adapters' weights; adapters without a
            picture draw everywhere; where nothing is drawn, all adapters are as without masks.
    """

    masks: Mapping[str, Any] | None = None

    _caches: ClassVar[tuple[str, ...]] = ("features", "forecast", "relay")

    def __post_init__(self) -> None:
        check_masks(self)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Switch(Method):
    """One adapter at a time, the next every ``switch_step`` steps (Zhong et al. 2024, LoRA Switch).

    Args:
        switch_step: Steps that an adapter stays active.
        partition: Rotate the high-frequency adapters early, the low-frequency ones late (Switch-A).
        stage_fraction: Share of the steps that is early, in [0, 1].
        low_frequency: Low-frequency adapters; None: names that start with "background".
    """

    switch_step: int = 5
    partition: bool = False
    stage_fraction: float = 0.6
    low_frequency: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not is_int(self.switch_step, 1):
            fail(self, "switch_step", "an int >= 1")
        check_bool(self, "partition")
        check_fraction(self, "stage_fraction")
        check_names(self, "low_frequency")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class CMLoRA(Method):
    """Dominant adapter per step, one feature cache per adapter (Zou et al., ICLR 2025).

    ``cache="relay"`` was closer to the uncached image in every setting measured, at less work
    (docs/caches.md); the default is the published method's.

    Args:
        variant: "offline" (stage by step), "online" (stage by the latents' high-frequency mean) or
            "async" (dominance and refreshes on separate clocks, no stages).
        stage_fraction: Offline: early means step < ceil(stage_fraction * T).
        threshold: Online: early means high-frequency mean >= threshold.
        cutoff: First bin of the band: a fraction of the largest radius, or a bin number when > 1.
        amplitude: "linear", or "log" for the natural logarithm.
        latch: Online: late stays late.
        dominant_coeff: Weight of the dominant adapter relative to the others; None: N - 0.5.
        decay: "live": the coefficient falls by 0.5**turn at every turn; "frozen": it stays.
        coeff_floor: Least value of the decaying coefficient.
        late: Late pool: "tail" (all but the first) or "low_only" (the low-frequency adapters).
        max_age: Refresh any cache older than so many steps; None: never for age alone.
        dominant_full: "schedule": the dominant adapter runs whole at schedule steps; "every_step":
            at every step, and the others at schedule steps.
        low_frequency: Low-frequency adapters; None: names that start with "background".
        masks: As those of ``Composite``; an adapter's weight is its share at the step.
    """

    cache_interval: CacheInterval = "nonuniform"
    variant: str = "offline"
    stage_fraction: float = 0.6
    threshold: float = 0.40
    cutoff: float = 0.2
    amplitude: str = "linear"
    latch: bool = True
    dominant_coeff: float | None = None
    decay: str = "live"
    coeff_floor: float = 1.0
    late: str = "tail"
    max_age: int | None = None
    dominant_full: str = "schedule"
    low_frequency: tuple[str, ...] | None = None
    masks: Mapping[str, Any] | None = None

    _caches: ClassVar[tuple[str, ...]] = ("features", "forecast", "relay")

    def __post_init__(self) -> None:
        check_choice(self, "variant", ("offline", "online", "async"))
        check_choice(self, "amplitude", ("linear", "log"))
        check_choice(self, "decay", ("live", "frozen"))
        check_choice(self, "late", ("tail", "low_only"))
        check_choice(self, "dominant_full", ("schedule", "every_step"))
        check_bool(self, "latch")
        check_fraction(self, "stage_fraction")
        if not is_real(self.threshold):
            fail(self, "threshold", "a number")
        if not (is_real(self.cutoff) and self.cutoff > 0):
            fail(self, "cutoff", "a fraction of the largest radius in (0, 1] or a bin number > 1")
        if self.dominant_coeff is not None and not (
            is_real(self.dominant_coeff) and self.dominant_coeff > 0
        ):
            fail(self, "dominant_coeff", "None or a number > 0")
        if not (is_real(self.coeff_floor) and self.coeff_floor > 0):
            fail(self, "coeff_floor", "a number > 0")
        if self.max_age is not None and not is_int(self.max_age, 1):
            fail(self, "max_age", "None or an int >= 1")
        check_names(self, "low_frequency")
        check_masks(self)
        super().__post_init__()
