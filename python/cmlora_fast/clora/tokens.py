"""Where words of a prompt sit among the positions of the text encoder, and CLoRA's rows from them.

Positions count from the start token, 0, in the sequence padded to the encoder's length.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods.clora import PROMPT_LENGTH, Concept, Row

__all__ = ["build_rows", "warn_of_positions"]

Convert = Callable[[str, Any], str]  # diffusers' maybe_convert_prompt: text as it is tokenized


@dataclass(frozen=True)
class _Span:
    """Characters ``start`` to ``end`` of a prompt."""

    start: int
    end: int

    def shifted(self, by: int) -> _Span:
        return _Span(self.start + by, self.end + by)

    def overlaps(self, other: _Span) -> bool:
        return self.start < other.end and other.start < self.end


def build_rows(
    prompt: str,
    concepts: Sequence[Concept],
    tokenizers: Iterable[Any],
    negative_prompt: str = "",
    convert: Convert | None = None,
) -> tuple[Row, ...]:
    """The base row, then one row per concept with its trigger before its subject.

    Concepts of one subject take its occurrences in order. Concept c's tokens are its subject in
    every row, and the trigger too in its own, where they also make the mask.

    Args:
        prompt: The scene in plain words.
        concepts: Subjects of the prompt; at least one.
        tokenizers: The pipeline's; those that are None are left out.
        negative_prompt: Of every row.
        convert: ``pipe.maybe_convert_prompt``, where textual inversion adds tokens to a prompt.

    Raises:
        ValueError: A subject does not occur, is ambiguous or lies beyond the text encoder's reach,
            or the tokenizers do not agree.
    """
    words = _Words(tokenizers, convert)
    text = _normal(prompt)
    spans = _subject_spans(text, concepts)
    base = tuple(words.positions(text, span) for span in spans)
    rows = [Row(None, prompt, negative_prompt, (), base)]
    for c, concept in enumerate(concepts):
        start, added = spans[c].start, _added(concept)
        scene = text[:start] + added + text[start:]
        own = [span.shifted(len(added) * (span.start >= start)) for span in spans]
        own[c] = _Span(start, spans[c].end + len(added))
        found = tuple(words.positions(scene, span) for span in own)
        rows.append(Row(concept.adapter, scene, negative_prompt, found[c], found))
    return tuple(rows)


def warn_of_positions(
    rows: Sequence[Row], tokenizers: Iterable[Any], convert: Convert | None = None
) -> None:
    """Warn where a row counts the start token, the end token or padding among its words."""
    words = _Words(tokenizers, convert)
    for j, row in enumerate(rows):
        end = min(words.count(_normal(row.prompt)), PROMPT_LENGTH - 2) + 1
        for name, group in _groups(row):
            for k in group:
                if 0 < k < end:
                    continue
                what = "the start token" if k == 0 else "the end token" if k == end else "padding"
                warnings.warn(
                    f"CLoRA.rows[{j}].{name}: position {k} of {row.prompt!r} is {what}; "
                    f"its words are at 1..{end - 1}",
                    stacklevel=2,
                )


class _Words:
    """Counts tokens as every text encoder of a pipeline sees them."""

    def __init__(self, tokenizers: Iterable[Any], convert: Convert | None):
        self._tokenizers = [words for words in tokenizers if words is not None]
        self._convert = convert
        if not self._tokenizers:
            raise ValueError("tokenizers: expected at least one to find words with; got none")

    def positions(self, text: str, span: _Span) -> tuple[int, ...]:
        """Positions of the tokens of a span of ``text``."""
        answers = [self._positions(words, text, span) for words in self._tokenizers]
        if any(answer != answers[0] for answer in answers):
            raise ValueError(
                f"tokenizers: expected both to put {text[span.start : span.end]!r} of {text!r} at "
                f"the same positions; got {' and '.join(str(list(a)) for a in answers)}. Give "
                "row_prompt_embeds and rows instead of concepts"
            )
        return answers[0]

    def count(self, text: str) -> int:
        """Tokens of ``text`` itself, the fewest that any tokenizer makes."""
        return min(len(self._ids(words, text)) for words in self._tokenizers)

    def _positions(self, words: Any, text: str, span: _Span) -> tuple[int, ...]:
        # Counted rather than matched: no tokenizer of CLIP's joins across the borders of words.
        phrase = text[span.start : span.end]
        ids = self._ids(words, text)
        first, end = (len(self._ids(words, text[:place])) for place in (span.start, span.end))
        if ids[:end] != self._ids(words, text[: span.end]) or first == end:
            raise ValueError(
                f"prompt: expected words that can be told apart by tokens; {phrase!r} has none of "
                f"its own in {text!r}"
            )
        if set(ids[first:end]) & {words.bos_token_id, words.eos_token_id}:
            raise ValueError(
                f"prompt: expected words that the tokenizer knows; {phrase!r} in {text!r} becomes "
                "an end token"
            )
        last = PROMPT_LENGTH - 2  # the end token takes the last position
        if end > last:
            raise ValueError(
                f"prompt: expected {phrase!r} within the {last} tokens that the text encoder "
                f"reads; it is at {first + 1}..{end} of {text!r}"
            )
        return tuple(range(first + 1, end + 1))

    def _ids(self, words: Any, text: str) -> list[int]:
        if self._convert is not None:
            text = self._convert(text, words)
        return list(words(text, add_special_tokens=False, truncation=False).input_ids)


def _subject_spans(text: str, concepts: Sequence[Concept]) -> list[_Span]:
    """The span of each concept's subject; longer subjects choose first ("cat toy" before "cat")."""
    places: dict[str, list[int]] = {}
    for c, concept in enumerate(concepts):
        places.setdefault(_key(concept.subject), []).append(c)
    spans: dict[int, _Span] = {}
    for subject, group in sorted(places.items(), key=lambda item: -len(item[0])):
        everywhere = _occurrences(text, subject)
        free = [s for s in everywhere if not any(s.overlaps(taken) for taken in spans.values())]
        if len(free) != len(group):
            raise ValueError(_subject_error(text, concepts[group[0]], group, everywhere, free))
        spans.update(zip(group, free, strict=True))
    return [spans[c] for c in range(len(concepts))]


def _subject_error(
    text: str, concept: Concept, group: list[int], everywhere: list[_Span], free: list[_Span]
) -> str:
    who = ", ".join(f"concepts[{c}]" for c in group)
    head = f"CLoRA.{who}.subject: expected {concept.subject!r} in the prompt {text!r}"
    if not everywhere:
        return f"{head} as a word of its own; it does not occur"
    if not free:
        return f"{head} outside the other concepts' subjects; it occurs only inside them"
    times = f"{len(free)} time{'s' if len(free) > 1 else ''}"
    return (
        f"{head} as often as concepts name it ({len(group)}); it occurs {times}. Name a longer "
        "phrase that occurs once, as 'black cat', or give rows"
    )


def _occurrences(text: str, phrase: str) -> list[_Span]:
    """Where ``phrase`` stands as whole words, in any case and with any white space between."""
    words = r"\s+".join(re.escape(word) for word in _normal(phrase).split())
    pattern = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    return [_Span(*match.span()) for match in pattern.finditer(text)]


def _added(concept: Concept) -> str:
    trigger = _normal(concept.trigger).strip()
    return trigger + " " if trigger else ""


def _groups(row: Row) -> list[tuple[str, tuple[int, ...]]]:
    named = [(f"concept_tokens[{c}]", group) for c, group in enumerate(row.concept_tokens)]
    return [("mask_tokens", row.mask_tokens), *named]


def _key(subject: str) -> str:
    return " ".join(_normal(subject).lower().split())


def _normal(text: str) -> str:
    """The form that CLIP's tokenizer brings text to, so that lengths are those it sees."""
    return unicodedata.normalize("NFC", text)
