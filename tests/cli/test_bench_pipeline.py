"""The benchmarks of pipelines measure equal work, and say all that a reader has to know."""

from __future__ import annotations

import json

import pytest
import torch
from cmlora_fast.benchmarks import models, spread
from cmlora_fast.benchmarks.engine import contenders, pipeline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EQUAL = 1e-5  # largest difference of final latents over the largest latent


@pytest.fixture(scope="module")
def measured():
    names = [name for name in contenders.CONTENDERS if contenders.available(name)]
    size = dict(channels=(32, 32, 32, 32), latents=16, steps=5)
    return pipeline.run(**size, adapters=[2], images=2, names=names)


@pytest.fixture(scope="module")
def records(measured):
    return {record["contender"]: record for record in measured["results"]}


@pytest.mark.parametrize(
    ("ours", "rival"),
    [
        ("lossless", "peft"),
        ("lossless_delta", "peft"),
        ("composite", "composite_loop"),
        ("composite_pairs", "composite_loop"),
        ("cmlora", "cmlora_loop"),
        ("cmlora_pairs", "cmlora_loop"),
    ],
)
def test_rivals_paint_the_same_image(records, ours, rival):
    assert records[ours]["same_as"]["contender"] == rival
    assert records[ours]["same_as"]["relative"] < EQUAL


def test_merge_is_deepcache(records):
    pytest.importorskip("DeepCache")
    assert records["merge"]["same_as"]["contender"] == "deepcache"
    assert records["merge"]["same_as"]["relative"] < EQUAL


def test_caching_moves_the_image_and_saves_rows(records):
    for name in ("merge", "cmlora"):
        assert records[name]["uncached"]["relative"] > 10 * EQUAL
        assert records[name]["shallow_rows"] > 0
    plain = records["composite"]
    assert (plain["full_rows"], plain["shallow_rows"]) == (2 * 2 * 5, 0)


def test_work_of_a_row(measured):
    """Counted again, by hooks on the layers, attention aside."""
    unet = models.sd_pipeline((32, 32, 32, 32)).unet
    done = {}

    def count(name):
        def hook(module, inputs, output):
            each = module.weight[0].numel()  # products per element of the output
            done[name] = 2 * each * output.numel()

        return hook

    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(count(name))
    unet(torch.randn(1, 4, 16, 16), 1, torch.randn(1, 77, models.TEXT_WIDTH))
    work = measured["work"]
    shallow = ("conv_in", "conv_out", "down_blocks.0", "up_blocks.3", "time_embedding")
    layers = {
        "full": sum(done.values()),
        "shallow": sum(
            flops
            for name, flops in done.items()
            if name.startswith(shallow) and "downsamplers" not in name
        ),
    }
    for part, flops in layers.items():
        assert flops < work[part] < 1.5 * flops


def test_ratios_limits_and_spread(measured):
    rows = {row["contender"]: row for row in pipeline.compared(measured)}
    ratio = rows["cmlora"]["times_as_fast"]["composite_loop"]["ratio"]
    assert ratio == pytest.approx(rows["composite_loop"]["median"] / rows["cmlora"]["median"])
    light = rows["lossless"]
    assert light["low"] <= light["median"] <= light["high"]
    assert light["times_as_fast"]["plain"]["low"] <= light["times_as_fast"]["plain"]["high"]
    assert light["share_of_limit"] == pytest.approx(light["limit"] / light["median"])


def test_ratio_of_medians_has_an_interval():
    found = spread.ratio([2.0, 2.2, 2.4], [1.0, 1.1, 1.2])
    assert found["ratio"] == pytest.approx(2.0)
    assert found["low"] < 2.0 < found["high"]
    assert spread.ratio([2.0], [1.0]) == {"ratio": 2.0, "low": None, "high": None}


def test_parts_add_up(cmlora, tmp_path):
    part = ["bench", "pipeline", "--quick", "--contenders", "peft,lossless", "--out", tmp_path]
    code, out, _ = cmlora(*part, "--adapters", 1, "--json")
    assert code == 0
    report = json.loads(out)
    assert {"machine", "versions", "arguments", "date", "commit", "rates", "work"} <= set(report)
    code, out, _ = cmlora(*part, "--adapters", 1, "--json")
    rows = json.loads(out)["rows"]
    assert {row["contender"]: row["images"] for row in rows} == {"peft": 2, "lossless": 2}
    assert len(list(tmp_path.glob("pipeline-tiny-*.json"))) == 1
    assert len(list(tmp_path.glob("pipeline-tiny-*.png"))) == 2
    (path,) = tmp_path.glob("pipeline-tiny-*.json")
    whole = path.read_text()
    path.write_text(whole[:-9])
    code, _, err = cmlora(*part, "--adapters", 1)
    assert code == 1 and f"--out: {path} is not JSON" in err
    path.write_text(whole)
    code, _, err = cmlora("bench", "pipeline", "--channels", "tiny", *part[3:], "--adapters", 1)
    assert code == 1 and "--out: " in err and "latents 16, this run 32" in err


def test_profile(cmlora, tmp_path):
    part = ["bench", "pipeline", "--quick", "--profile", "--contenders", "peft,composite"]
    code, out, _ = cmlora(*part, "--adapters", 2, "--json", "--out", tmp_path)
    assert code == 0
    report = json.loads(out)
    (found,) = report["results"]
    assert sum(kind["seconds"] for kind in found["kinds"]) == pytest.approx(found["seconds"])
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    for kind in ("convolution", "linear", "attention"):
        assert kinds[kind]["calls"] and kinds[kind]["limit"] > 0
    assert kinds["elementwise"]["calls"] and kinds["norm"]["calls"]
    limit = 2 * 2 * 4 * sum(report["work"]["full"].values()) / max(report["rates"].values())
    assert sum(kind["limit"] for kind in found["kinds"]) == pytest.approx(limit, rel=1e-3)
    assert len(list(tmp_path.glob("profile-tiny-*.json"))) == 1


def test_fixed(cmlora, tmp_path):
    part = ["bench", "pipeline", "--quick", "--fixed", "--adapters", 1]
    code, out, _ = cmlora(*part, "--json", "--out", tmp_path)
    assert code == 0
    report = json.loads(out)
    names = [found["contender"] for found in report["results"]]
    assert names == ["lossless", "switch", "composite", "cmlora"]
    for found in report["results"]:
        assert found["counts"]["walks"] == 0 and found["counts"]["reductions"] > 0
        assert found["eager_step_ms"]["median"] > 0
        assert found["over_ms"]["low"] <= found["over_ms"]["median"] <= found["over_ms"]["high"]
    assert len(list(tmp_path.glob("fixed-*.json"))) == 1


def test_throughput(cmlora, tmp_path):
    part = ["bench", "throughput", "--quick", "--methods", "lossless", "--out", tmp_path]
    code, out, _ = cmlora(*part, "--weights", "fold,delta", "--json")
    assert code == 0
    rows = json.loads(out)["results"]
    assert [(row["weight_mode"], row["images"]) for row in rows] == [
        ("delta", 1),
        ("delta", 2),
        ("fold", 1),
        ("fold", 2),
    ]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["images"] / row["median"], rel=1e-3)
    assert len(list(tmp_path.glob("throughput-tiny-*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["pipeline", "--adapters", "0"], "--adapters"),
        (["pipeline", "--contenders", "peft,magic"], "magic"),
        (["pipeline", "--method", "clora", "--profile"], "--profile"),
        (["pipeline", "--method", "clora", "--contenders", "peft"], "--contenders"),
        (["pipeline", "--method", "clora", "--fixed"], "--fixed"),
        (["pipeline", "--fixed", "--contenders", "peft"], "--contenders"),
        (["pipeline", "--quick", "--out", f"{__file__}/x"], "--out: cannot make the folder"),
        (
            ["pipeline", "--quick", "--profile", "--out", f"{__file__}/x"],
            "--out: cannot make the fo",
        ),
        (["throughput", "--methods", "magic"], "magic"),
        (["throughput", "--max-rows", "some"], "--max-rows"),
    ],
)
def test_bad_arguments(cmlora, arguments, word):
    code, _, err = cmlora("bench", *arguments)
    assert code == 1 and word in err and len(err.splitlines()) == 1
