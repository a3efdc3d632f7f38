import cmlora_fast as cf
import pytest

CONCEPTS = cf.CLoRA(concepts=[cf.Concept("character_1", "fox")])


@pytest.mark.parametrize("method", [None, "merge", cf.Merge(cache="forecast")])
def test_of_a_sum(method):
    assert [cf.recommended_weights(method, N) for N in (1, 2, 3, 5)] == [1, 0.7, 0.7, 0.7]


@pytest.mark.parametrize(
    "method",
    ["switch", "composite", "cmlora", "clora", CONCEPTS, cf.CMLoRA(variant="online")],
)
def test_of_a_mean_or_of_turns(method):
    assert [cf.recommended_weights(method, N) for N in (1, 2, 3, 5)] == [1, 1.4, 1.4, 1.4]


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True])
def test_count(count):
    with pytest.raises(ValueError, match="count: expected a whole number of adapters"):
        cf.recommended_weights("merge", count)


@pytest.mark.parametrize("method", ["composit", 3, cf.Merge])
def test_method(method):
    with pytest.raises(ValueError, match="method: expected"):
        cf.recommended_weights(method, 2)
