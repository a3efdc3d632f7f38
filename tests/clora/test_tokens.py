import pytest
from cmlora_fast.clora.tokens import build_rows, warn_of_positions
from cmlora_fast.methods.clora import Concept, Row
from transformers import CLIPTokenizer

WORDS = ["cat", "dog", "and", "woman", "black", "toy"]


def tokenizer(words=WORDS):
    """One token for each of the words, any other word letter by letter."""
    letters = [chr(code) for code in range(33, 127)]
    merges = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    merges = list(dict.fromkeys(merges))
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


CLIP = tokenizer()
CAT, DOG = Concept("cat_lora", "cat", "sks"), Concept("dog_lora", "dog", "sks")


def spelled(prompt, positions):
    """The tokens at these positions of the padded sequence, as a text encoder gets them."""
    padded = CLIP(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    pieces = CLIP.convert_ids_to_tokens([padded[k] for k in positions])
    return "".join(pieces).replace("</w>", " ").strip()


def test_rows_of_two_concepts():
    """The example of the release, with the positions that its notebook should have had."""
    known = tokenizer([*WORDS, "sks"])
    rows = build_rows("A cat and a dog", [DOG, CAT], [known], "nsfw")
    assert rows == (
        Row(None, "A cat and a dog", "nsfw", (), ((5,), (2,))),
        Row("dog_lora", "A cat and a sks dog", "nsfw", (5, 6), ((5, 6), (2,))),
        Row("cat_lora", "A sks cat and a dog", "nsfw", (2, 3), ((6,), (2, 3))),
    )


@pytest.mark.parametrize(
    "prompt, subject",
    [
        ("a cat and a dog", "cat"),
        ("a cat and a dog", "dog"),  # the last word
        ("cat", "cat"),  # nothing else
        ("a wildcat and a cat", "cat"),  # inside another word
        ("a category, the CAT's toy", "Cat"),  # another case, an apostrophe
        ("a black  cat and a cat", "black cat"),  # two words, two blanks
        ("a black cat and a dog", "cat and a dog"),
        ("a fluffy fox (cat)", "fluffy fox"),  # words of several tokens
        ("2 cats, 1 cat!", "cat"),
        ("cafe\u0301, cat", "cat"),  # an accent that the tokenizer joins with its letter
    ],
)
def test_positions_spell_the_phrase(prompt, subject):
    positions = build_rows(prompt, [Concept("x", subject)], [CLIP])[0].concept_tokens[0]
    assert spelled(prompt, positions).replace(" ", "") == subject.lower().replace(" ", "")
    assert positions == tuple(range(positions[0], positions[-1] + 1))


def test_positions_in_every_row_spell_subject_and_trigger():
    concepts = [
        Concept("a", "black cat", "xyz cat"),  # a trigger with a subject's word in it
        Concept("b", "dog", ""),  # no trigger
        Concept("c", "fluffy fox", "ohwx"),
        Concept("d", "toy"),
    ]
    prompt = "A fluffy fox, a black cat and a dog's toy"
    rows = build_rows(prompt, concepts, [CLIP])
    assert [row.prompt for row in rows] == [
        prompt,
        "A fluffy fox, a xyz cat black cat and a dog's toy",
        prompt,
        "A ohwx fluffy fox, a black cat and a dog's toy",
        prompt,
    ]
    for j, row in enumerate(rows):
        assert row.adapter == (concepts[j - 1].adapter if j else None)
        assert row.mask_tokens == (row.concept_tokens[j - 1] if j else ())
        for c, concept in enumerate(concepts):
            own = f"{concept.trigger} " * (j == c + 1) + concept.subject
            assert spelled(row.prompt, row.concept_tokens[c]).split() == own.split()


def test_repeated_words_go_to_concepts_in_order():
    first, second = Concept("anna", "woman", "L1"), Concept("eve", "Woman", "L2")
    rows = build_rows("a woman and a woman", [first, second], [CLIP])
    assert rows[0].concept_tokens == ((2,), (5,))
    assert rows[1].prompt == "a L1 woman and a woman"
    assert rows[2].prompt == "a woman and a L2 woman"
    assert rows[1].concept_tokens == ((2, 3, 4), (7,))  # l, 1, woman
    assert rows[2].concept_tokens == ((2,), (5, 6, 7))


def test_longer_subjects_choose_first():
    rows = build_rows("a cat toy and a cat", [Concept("a", "cat"), Concept("b", "cat toy")], [CLIP])
    assert rows[0].concept_tokens == ((6,), (2, 3))


@pytest.mark.parametrize(
    "prompt, subjects, message",
    [
        ("a cat and a dog", ["fox"], r"concepts\[0\]\.subject: .*'fox'.*does not occur"),
        ("a wildcat, a category", ["cat"], "does not occur"),
        ("a cat and a cat", ["cat"], r"concepts name it \(1\); it occurs 2 times"),
        ("a cat and a dog", ["cat", "cat"], r"concepts\[0\], .*name it \(2\); it occurs 1 time\."),
        ("a cat toy", ["cat", "cat toy"], "only inside them"),
        ("a a " * 40 + "cat", ["cat"], "within the 75 tokens .* it is at 81..81"),
        ("", ["cat"], "does not occur"),
    ],
)
def test_what_cannot_be_found_is_said(prompt, subjects, message):
    concepts = [Concept(f"lora_{c}", subject) for c, subject in enumerate(subjects)]
    with pytest.raises(ValueError, match=message):
        build_rows(prompt, concepts, [CLIP])


def test_reach_of_the_text_encoder():
    """75 tokens fit; a trigger can push a subject out."""
    prompt = "a " * 74 + "cat"
    assert build_rows(prompt, [Concept("x", "cat")], [CLIP])[0].concept_tokens == ((75,),)
    with pytest.raises(ValueError, match=r"'z cat' within the 75 tokens .* it is at 75\.\.76"):
        build_rows(prompt, [Concept("x", "cat", "z")], [CLIP])


def test_words_that_the_tokenizer_does_not_know():
    with pytest.raises(ValueError, match=r"'café' .* becomes an end token"):
        build_rows("a café", [Concept("x", "café")], [CLIP])


def test_two_tokenizers():
    same, other = tokenizer(), tokenizer([word for word in WORDS if word != "and"])
    same.pad_token = "!"
    assert build_rows("a cat and a dog", [DOG], [CLIP, same]) == build_rows(
        "a cat and a dog", [DOG], [None, CLIP]
    )
    build_rows("a cat and a dog", [CAT], [CLIP, other])  # they part after the cat
    with pytest.raises(ValueError, match=r"same positions; got \[5\] and \[7\]"):
        build_rows("a cat and a dog", [DOG], [CLIP, other])
    with pytest.raises(ValueError, match="tokenizers: expected at least one"):
        build_rows("a cat", [CAT], [None])


def test_converted_prompts():
    """Textual inversion writes one word as several tokens; positions follow what is encoded."""

    def convert(text, words):
        return text.replace("fox", "cat cat cat")

    rows = build_rows("a fox and a dog", [Concept("x", "fox"), DOG], [CLIP], convert=convert)
    assert rows[0].concept_tokens == ((2, 3, 4), (7,))
    assert rows[0].prompt == "a fox and a dog"


def test_positions_that_are_no_words_are_warned_of():
    rows = [
        Row(None, "a cat and a dog", "", (), ((2,), (6,))),  # the notebook's: end, not dog
        Row("cat_lora", "a cat", "", (0, 2), ((2, 9),)),
    ]
    with pytest.warns(UserWarning) as caught:
        warn_of_positions(rows, [CLIP])
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" is ")[1].split(";")[0] for message in messages] == [
        "the end token",
        "the start token",
        "padding",
    ]
    assert messages[0].startswith("CLoRA.rows[0].concept_tokens[1]: position 6")
    assert "its words are at 1..5" in messages[0]


@pytest.mark.filterwarnings("error")
def test_right_positions_pass_silently():
    rows = build_rows("a cat and a dog", [CAT, DOG], [CLIP])
    warn_of_positions(rows, [CLIP, tokenizer()])
    warn_of_positions([Row(None, "a " * 90, "", (1, 75))], [CLIP])  # cut off after 75
    with pytest.warns(UserWarning, match="position 76 .* end token"):
        warn_of_positions([Row(None, "a " * 90, "", (76,))], [CLIP])
