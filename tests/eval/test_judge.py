"""The judge against a stub of an OpenAI-compatible server on this machine."""

import base64
import io
import time

import cmlora_fast as cf
import pytest
from cmlora_fast import eval as lab
from cmlora_fast.eval.endpoint import Endpoint
from cmlora_fast.eval.judge import Judge, judge_all, parse_scores, question
from cmlora_fast.eval.samples import Sample
from PIL import Image

from ..support.judge import AXES, Stub, verdict

ENTRY = lab.LoraEntry(id="style_1", name="Ink", trigger=("ink", "lines"))
FIRST = verdict((1, 2), (3, 4))


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def judge(stub, waits):
    return Judge(Endpoint(stub.url, "vlm", "secret", wait=waits.append), prices=(2.0, 10.0))


@pytest.fixture
def scene(tmp_path):
    """A store with two candidates on two seeds: samples in order."""
    store = lab.ImageStore(tmp_path)
    samples = []
    for label, method in (("merge", cf.Merge()), ("switch", cf.Switch())):
        for seed in (0, 1):
            job = lab.Job(lab.Generation("m", "d"), "x", (lab.Adapter("a", "d"),), method, seed)
            store.add(job, Image.new("RGB", (8, 8), (seed, 9 * len(label), 0)), {"seconds": 1.0})
            samples.append(Sample(label, (ENTRY,), job))
    return store, samples


def _colour(request, number):
    """Which image a request shows first or second."""
    url = request["messages"][0]["content"][1 + number]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).getpixel((0, 0))


def test_both_orders_are_asked_averaged_and_kept(stub, judge, scene):
    store, samples = scene

    def favour_first(request):  # "merge" is better by 2, whoever stands first gets 3 more
        merge_first = _colour(request, 0)[1] == 9 * len("merge")
        merge, switch = (9, 4) if merge_first else (6, 7)
        pair = (merge, switch) if merge_first else (switch, merge)
        return verdict(*[(value, 5) for value in pair])

    stub.answers = [favour_first] * 4
    found = judge_all(judge, samples, store)
    assert found["methods"] == {
        "merge": {"composition": 7.5, "quality": 5},
        "switch": {"composition": 5.5, "quality": 5},
    }
    composition = found["comparisons"][0]
    assert (composition["a"], composition["b"], composition["win"]) == ("merge", "switch", 2)
    assert composition["difference"] == 2
    assert found["comparisons"][1]["tie"] == 2
    assert found["flips"] == 1.0
    assert found["tokens"] == {"question": 400, "answer": 40}
    assert found["cost"] == pytest.approx((400 * 2 + 40 * 10) / 1e6)
    assert {tuple(map(_colour, [r, r], [0, 1])) for r in stub.asked} == {
        ((0, 45, 0), (0, 54, 0)),
        ((0, 54, 0), (0, 45, 0)),
        ((1, 45, 0), (1, 54, 0)),
        ((1, 54, 0), (1, 45, 0)),
    }
    assert set(stub.keys) == {"Bearer secret"}
    assert judge_all(judge, samples, store) == found  # from judge.jsonl: nobody is asked again
    assert "secret" not in (store.folder / "judge.jsonl").read_text()


def test_busy_servers_and_unusable_answers_are_asked_again(stub, judge, waits, scene):
    store, samples = scene
    paths = [store.path(sample.job) for sample in samples[:2]]
    stub.answers = [503, 429, "no idea", verdict((11, 0), (0, 0)), verdict((8, 7.5), (0, 10))]
    found = judge.compare((ENTRY,), paths)
    assert found["scores"] == [dict(zip(AXES, s, strict=True)) for s in ((8, 7.5), (0, 10))]
    assert waits == [0.5, 1.0] and found["tokens"] == [300, 30]


def test_a_refused_request_is_told_at_once(stub, judge, waits, scene):
    store, samples = scene
    stub.answers = [400]
    with pytest.raises(ValueError, match=rf"judge {stub.url}: HTTP Error 400.*busy"):
        judge.compare((ENTRY,), [store.path(samples[0].job)] * 2)
    assert not waits
    stub.answers = ["never"] * 10
    with pytest.raises(ValueError, match="no scores in 10 answers; the last: 'never'"):
        judge.compare((ENTRY,), [store.path(samples[0].job)] * 2)


def test_an_unreachable_judge_is_found_by_the_check(stub, judge):
    judge.endpoint.check()  # the stub answers 404 to /models: somebody is there
    nobody = Endpoint("http://127.0.0.1:9/v1", "vlm")
    with pytest.raises(ValueError, match=r"judge http://127.0.0.1:9/v1: cannot be reached"):
        nobody.check()


@pytest.mark.parametrize("key", ["x", "1", "image", ":", ""])
def test_a_key_that_occurs_in_answers_spoils_none(stub, scene, key):
    store, samples = scene
    stub.answers = [FIRST]
    judge = Judge(Endpoint(stub.url, "vlm", key))
    found = judge.compare((ENTRY,), [store.path(samples[0].job)] * 2)
    assert found["scores"] == parse_scores(FIRST, AXES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (verdict((1, 2), (3, 4)) + " thanks", [(1, 2), (3, 4)]),
        (verdict((1, 2), (3, 4)) + verdict((5, 6), (7, 8)), [(5, 6), (7, 8)]),
        ("```json\n" + verdict((0, 10), (2.5, 4)) + "\n```", [(0, 10), (2.5, 4)]),
        ("Image 1: 7/10", None),
        ('{"image 1": {"composition": 3}}', None),
        (verdict((1, 2), (3, -1)), None),
        (verdict((1, 2), (3, float("nan"))), None),
    ],
)
def test_answers_are_parsed(text, found):
    expected = found and [dict(zip(AXES, scores, strict=True)) for scores in found]
    assert parse_scores(text, AXES) == expected


def test_the_question_names_elements_and_axes():
    text = question((ENTRY,), "four")
    assert "1. style (Ink): ink, lines" in text
    assert all(axis in text for axis in ("integration", "consistency", "accuracy", "aesthetics"))


@pytest.mark.parametrize(
    "score", ["1" * 400, "1e999", "true", "null", "[1]", '{"a": 1}', '"high"', "9" * 5000]
)
def test_a_score_that_is_none_gives_way_to_the_verdict_before(score):
    assert parse_scores(FIRST + FIRST.replace("1,", f"{score},"), AXES) == parse_scores(FIRST, AXES)


@pytest.mark.parametrize(
    "around",
    [
        '{"scores": HERE}',
        '{"why": "a } and \\" and \\u00e9", "seen": [1, [], {}, null], "of": [HERE]}',
        '{"why": "left open, HERE',
        '[[[ HERE "{',
    ],
)
def test_a_verdict_is_found_inside_other_things(around):
    inner = FIRST.partition("{so}. ")[2]
    expected = parse_scores(FIRST, AXES)
    assert expected and parse_scores(around.replace("HERE", inner), AXES) == expected


@pytest.mark.parametrize("unit", ['{"', '{"a":', "[", '{"a":[', '{"\\', '{"a{":1,"', "{ ", '"'])
def test_long_answers_are_parsed_in_linear_time(unit):
    size = 400_000
    began = time.perf_counter()
    assert parse_scores(FIRST + unit * (size // len(unit)), AXES) == parse_scores(FIRST, AXES)
    deep = FIRST + '{"image 1":' * (size // 12) + "1" + "}" * (size // 12)
    assert parse_scores(deep, AXES) == parse_scores(FIRST, AXES)
    assert time.perf_counter() - began < 10  # 0.5 s; by the square it takes minutes
