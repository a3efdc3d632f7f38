import dataclasses
import math

import pytest
import torch
from cmlora_fast.clora.tracked import Tracked
from cmlora_fast.methods.clora import CLoRA, Concept, Row

CAT = Concept("cat_lora", subject="cat", trigger="sks")
ROWS = [Row(None, "a cat"), Row("cat_lora", "a sks cat", "blurry", [2, 3], [[2, 3]])]


def clora(**fields):
    return CLoRA(**{"concepts": [CAT], **fields})


def test_defaults():
    method = clora()
    assert {f.name: getattr(method, f.name) for f in dataclasses.fields(method)} == {
        "rows": None,
        "concepts": (CAT,),
        "style_adapters": (),
        "style_weight": 0.8,
        "step_size": 20.0,
        "max_iter_to_alter": None,
        "iterative_steps": (0, 10, 20),
        "iterative_steps_steps": 20,
        "temperature": 0.5,
        "latent_update": True,
        "mask_threshold_alpha": 0.4,
        "apply_mask_after": 0,
        "mask_erode": False,
        "mask_dilate": False,
        "mask_opening": False,
        "mask_closing": False,
        "maps_from": "both",
        "refresh_after_update": False,
        "text_encoder_adapters": True,
        "row_prompt_embeds": None,
        "row_negative_prompt_embeds": None,
        "masks": None,
        "reference_compat": False,
    }


def test_row_defaults_and_tuples():
    assert ROWS[0] == Row(None, "a cat", "", (), ())
    assert ROWS[1].mask_tokens == (2, 3) and ROWS[1].concept_tokens == ((2, 3),)
    assert CLoRA(rows=ROWS).rows == tuple(ROWS)
    assert CLoRA(rows=ROWS, style_adapters=["ink"]).adapters == ("cat_lora", "ink")
    assert clora().row_count == 2 == CLoRA(rows=ROWS).row_count


def test_frozen_equal_and_hashable():
    embeds = torch.zeros(2, 77, 4)
    one, same = (clora(row_prompt_embeds=embeds) for _ in range(2))
    assert one == same and hash(one) == hash(same)
    assert one != clora(row_prompt_embeds=embeds.clone()) and one != clora()
    assert clora() == clora() and clora() != clora(step_size=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.step_size = 1.0


WRONG = [
    ("rows", []),
    ("rows", [CAT]),
    ("rows", "rows"),
    ("rows", [*ROWS, Row("dog", "a dog", "", [2], [[2], [1]])]),  # two concepts after one
    ("concepts", []),
    ("concepts", [("cat_lora", "cat")]),
    ("style_adapters", "ink"),
    ("style_adapters", None),
    ("style_adapters", [1]),
    ("style_adapters", ["cat_lora"]),  # twice in one row
    ("style_weight", math.nan),
    ("step_size", -1),
    ("step_size", "20"),
    ("max_iter_to_alter", -1),
    ("max_iter_to_alter", 2.5),
    ("iterative_steps", 3),
    ("iterative_steps", [0, -1]),
    ("iterative_steps_steps", True),
    ("temperature", 0),
    ("temperature", math.inf),
    ("latent_update", 1),
    ("mask_threshold_alpha", 1.5),
    ("apply_mask_after", -1),
    ("mask_erode", None),
    ("mask_dilate", "yes"),
    ("mask_opening", 0),
    ("mask_closing", 2),
    ("maps_from", "uncond"),
    ("refresh_after_update", "no"),
    ("text_encoder_adapters", None),
    ("row_prompt_embeds", [[1.0]]),
    ("row_prompt_embeds", torch.zeros(2, 77, 4, dtype=torch.int64)),
    ("row_prompt_embeds", torch.zeros(1, 77, 4)),  # one row missing
    ("row_prompt_embeds", torch.zeros(2, 76, 4)),
    ("row_negative_prompt_embeds", torch.zeros(3, 77, 4)),
    ("row_negative_prompt_embeds", torch.zeros(77, 4)),
    ("masks", {}),
    ("masks", {"dog_lora": torch.ones(2, 2)}),
    ("masks", {"cat_lora": torch.ones(2, 2), "ink": torch.ones(2, 2)}),
    ("reference_compat", 1),
]


@pytest.mark.parametrize("field, value", WRONG, ids=lambda value: str(value)[:30])
def test_wrong_values_are_named(field, value):
    fields = {field: value} if field in ("rows", "concepts") else {"concepts": [CAT], field: value}
    with pytest.raises(ValueError, match=rf"CLoRA\.{field}: expected .*; got "):
        CLoRA(**fields)


@pytest.mark.parametrize("fields", [{}, {"rows": ROWS, "concepts": [CAT]}])
def test_exactly_one_of_rows_and_concepts(fields):
    with pytest.raises(ValueError, match="exactly one of rows and concepts"):
        CLoRA(**fields)


WRONG_PARTS = [
    (Row, dict(adapter="", prompt="a"), "Row.adapter"),
    (Row, dict(adapter=3, prompt="a"), "Row.adapter"),
    (Row, dict(adapter=None, prompt=None), "Row.prompt"),
    (Row, dict(adapter=None, prompt="a", negative_prompt=["b"]), "Row.negative_prompt"),
    (Row, dict(adapter=None, prompt="a", mask_tokens=[-1]), "Row.mask_tokens"),
    (Row, dict(adapter=None, prompt="a", mask_tokens=[77]), "Row.mask_tokens"),
    (Row, dict(adapter=None, prompt="a", mask_tokens=2), "Row.mask_tokens"),
    (Row, dict(adapter=None, prompt="a", concept_tokens=[2]), "Row.concept_tokens"),
    (Row, dict(adapter=None, prompt="a", concept_tokens=[[2.0]]), "Row.concept_tokens"),
    (Concept, dict(adapter=None, subject="cat"), "Concept.adapter"),
    (Concept, dict(adapter="a", subject=" "), "Concept.subject"),
    (Concept, dict(adapter="a", subject="cat", trigger=None), "Concept.trigger"),
]


@pytest.mark.parametrize("kind, fields, name", WRONG_PARTS)
def test_wrong_parts_are_named(kind, fields, name):
    with pytest.raises(ValueError, match=rf"{name}: expected .*; got "):
        kind(**fields)


def test_reference_compat_keeps_three_fields():
    honoured = clora(
        reference_compat=True,
        style_adapters=["ink"],
        step_size=5,
        temperature=0.1,
        mask_closing=True,
        latent_update=False,
        text_encoder_adapters=False,
        row_prompt_embeds=torch.zeros(2, 77, 4),
    )
    assert honoured.reference_compat
    given = {"cat_lora": torch.ones(2, 2)}
    for field, value in (("maps_from", "cond"), ("refresh_after_update", True), ("masks", given)):
        with pytest.raises(ValueError, match=rf"CLoRA\.{field}: .*reference_compat=True"):
            clora(reference_compat=True, **{field: value})


def test_updates_per_step():
    paper = clora()
    assert [paper.updates(i, 50) for i in (0, 1, 10, 20, 24, 25, 49)] == [21, 1, 21, 21, 1, 0, 0]
    assert sum(paper.updates(i, 50) for i in range(50)) == 85
    notebook = clora(max_iter_to_alter=50)
    assert sum(notebook.updates(i, 100) for i in range(100)) == 110
    assert clora(max_iter_to_alter=3).updates(10, 100) == 0  # past the last that may
    assert clora(max_iter_to_alter=0).updates(0, 50) == 0
    assert clora(latent_update=False).updates(0, 50) == 0
    assert clora(iterative_steps_steps=0).updates(0, 50) == 1
    assert clora().updates(0, 1) == 0  # half of one step


def test_tracked_maps():
    rows = [
        Row(None, "a cat and a dog", "", [], [[2], [5]]),
        Row("cat", "a sks cat and a dog", "", [2, 3, 3], [[2, 3], [6, 3]]),  # 3 in both concepts
        Row("dog", "a cat and a sks dog", "", [5, 7], [[2], [5]]),  # 7 only in the mask
    ]
    tracked = Tracked.of(rows)
    places = list(zip(tracked.row, tracked.token, strict=True))
    assert places == [(0, 2), (0, 5), (1, 2), (1, 3), (1, 6), (2, 2), (2, 5), (2, 7)]
    assert tracked.mask_row == (-1, -1, 1, 1, -1, -1, 2, 2)
    in_loss = [(*places[s], c) for s, c in zip(tracked.index, tracked.labels, strict=True)]
    assert sorted(in_loss) == [
        (0, 2, 0), (0, 5, 1), (1, 2, 0), (1, 3, 0), (1, 3, 1), (1, 6, 1), (2, 2, 0), (2, 5, 1)
    ]  # fmt: skip
    assert tracked.columns == (2, 3, 5, 6, 7)
    assert tracked.contrasts
    assert not Tracked.of([Row(None, "a cat", "", [], [[2, 3]])]).contrasts  # nothing to push from
    assert not Tracked.of([Row(None, "a cat", "", [], [[2], [3]])]).contrasts  # no pair
    assert not Tracked.of([Row(None, "a cat")]).contrasts
