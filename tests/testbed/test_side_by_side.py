"""The table of two characters side by side: its methods, what counts, its intervals."""

import numpy as np
import pytest
from cmlora_fast import testbed
from cmlora_fast.testbed.training import side_by_side
from PIL import Image
from transformers import CLIPTokenizer


def test_tokens_are_the_words_that_the_table_speaks_of():
    tokenizer = CLIPTokenizer.from_pretrained(testbed.load.DATA / "pipeline" / "tokenizer")
    words = {"character_1": "hair ,", "character_2": ", beard"}
    for name, positions in side_by_side.TOKENS.items():
        ids = tokenizer(testbed.prompt([name])).input_ids
        assert tokenizer.decode([ids[k] for k in positions]).strip() == words[name]
    assert {"merge", "composite", "clora", "clora, masks given"} <= side_by_side.methods().keys()


@pytest.mark.parametrize(
    "left, right, wanted",
    [
        ("character_1", "character_2", [True, True, True]),
        ("character_2", "character_1", [True, True, True]),
        ("character_1", "character_1", [False, True, False]),
        ("", "", [False, False, False]),
    ],
)
def test_both_means_one_in_each_half(left, right, wanted):
    class Scorer:
        def score(self, halves):
            assert [np.asarray(half).mean() for half in halves] == [0, 255]
            return [{i: float(i == name) for i in side_by_side.PAIR} for name in (left, right)]

    image = Image.new("RGB", (128, 64))
    image.paste((255, 255, 255), (64, 0, 128, 64))
    assert side_by_side.shows(Scorer(), image) == wanted


def test_table_of_counts_and_intervals():
    images = {str(seed): [seed < 3, True, seed < 3] for seed in range(10)}
    assert side_by_side.table({"merge": images}).splitlines()[-1] == (
        "| merge | 10 | 3 | 11% to 60% | 10 | 3 |"  # Wilson: 0.1078 to 0.6032
    )
