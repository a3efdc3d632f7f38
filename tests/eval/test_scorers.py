"""Scorers beside the embedded one, on tiny random models and against values worked out by hand."""

import json
import math
import sys
import types

import cmlora_fast as cf
import numpy as np
import pytest
import torch
import transformers
from cmlora_fast import eval as lab
from cmlora_fast import testbed
from cmlora_fast.eval import scorers
from cmlora_fast.eval.samples import clora_for, uncached
from cmlora_fast.eval.scorers import Scene
from cmlora_fast.testbed.load import DATA
from PIL import Image

SEED = 1  # of a CLIP whose cosines here are positive: the score is cut at zero
ENTRY = lab.LoraEntry(id="style_1", name="Ink", trigger=("ink", "lines"))


def _picture(path, seed, size=64):
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    return [_picture(tmp_path / f"{seed}.png", seed) for seed in range(3)]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A tiny random CLIP with the embedded model's tokenizer."""
    pytest.importorskip("torchmetrics")
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "pipeline" / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 32}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    tokens |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = transformers.CLIPConfig(
        text_config={**size, **tokens, "max_position_embeddings": 77},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(SEED)
    transformers.CLIPModel(config).save_pretrained(folder)
    pixels = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """A tiny random ViT, as the DINO models are."""
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_is_the_cosine_of_image_and_trigger_words(clip, pictures):
    scorer = scorers.ClipScorer(str(clip))
    scorer.check()
    found = scorer.score(Scene(pictures[0], (ENTRY,), "masterpiece, ink, lines"))
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    given = processor(text="ink, lines", images=Image.open(pictures[0]), return_tensors="pt")
    with torch.no_grad():
        out = model(**given)
    cosine = (out.image_embeds * out.text_embeds).sum()
    assert found["clip"] == pytest.approx(100 * float(cosine), abs=1e-3)
    assert found["clip"] > 1
    other = scorer.score(Scene(pictures[1], (ENTRY,), "masterpiece, ink, lines"))
    assert other != found and str(clip) in scorer.identity


def test_dino_is_the_cosine_to_each_loras_own_images(vit, pictures):
    scorer = scorers.DinoScorer(str(vit))
    scorer.check()
    own = {"style_1": [pictures[0]], "object_1": [pictures[1], pictures[2]]}
    found = scorer.score(Scene(pictures[0], (ENTRY,), "x", own=own))
    model = transformers.ViTModel.from_pretrained(vit).eval()
    processor = transformers.ViTImageProcessor.from_pretrained(vit)
    images = [Image.open(path) for path in pictures]
    with torch.no_grad():
        tokens = model(**processor(images, return_tensors="pt")).last_hidden_state[:, 0]
    other = torch.cosine_similarity(tokens[:1], tokens[1:]).mean()
    assert found["dino_max"] == pytest.approx(1, abs=1e-5)
    assert found["dino_min"] == pytest.approx(float(other), abs=1e-5)
    assert found["dino_mean"] == pytest.approx((1 + float(other)) / 2, abs=1e-5)


def test_fidelity_against_the_uncached_image(tmp_path, pictures):
    pytest.importorskip("torchmetrics")
    pixels = np.array(Image.open(pictures[0])).astype(int)
    near = tmp_path / "near.png"
    shifted = np.where(pixels < 250, pixels + 5, pixels - 5).astype(np.uint8)
    Image.fromarray(shifted).save(near)
    scorer = scorers.FidelityScorer()
    scorer.check()
    found = scorer.score(Scene(near, (ENTRY,), "x", reference=pictures[0]))
    assert found["psnr"] == pytest.approx(20 * math.log10(255 / 5), abs=0.01)
    assert 0.9 < found["ssim"] < 1
    same = scorer.score(Scene(pictures[0], (ENTRY,), "x", reference=pictures[0]))
    assert same == {"psnr": 100.0, "ssim": pytest.approx(1)}
    assert scorer.score(Scene(near, (ENTRY,), "x")) == {}


def test_lpips_of_random_features(monkeypatch, pictures):
    """AlexNet of random weights; the learnt linear layers come with torchmetrics."""
    pytest.importorskip("torchmetrics")
    nn = torch.nn
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1)]
    sizes += [(384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    torch.manual_seed(0)
    layers = []
    for number, size in enumerate(sizes):
        layers += [nn.Conv2d(*size), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if number < 2 else []
    fake = types.ModuleType("torchvision")
    alexnet = types.SimpleNamespace(features=nn.Sequential(*layers))
    weights = types.SimpleNamespace(DEFAULT=None)
    fake.models = types.SimpleNamespace(alexnet=lambda weights: alexnet, AlexNet_Weights=weights)
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    for module in ("torchmetrics.image.lpip", "torchmetrics.functional.image.lpips"):
        __import__(module)
        monkeypatch.setattr(f"{module}._TORCHVISION_AVAILABLE", True)
    scorer = scorers.LpipsScorer()
    scorer.check()
    far = scorer.score(Scene(pictures[0], (ENTRY,), "x", reference=pictures[1]))["lpips"]
    same = scorer.score(Scene(pictures[0], (ENTRY,), "x", reference=pictures[0]))["lpips"]
    assert same == pytest.approx(0, abs=1e-6) and far > 0.01


def test_reward_asks_the_package(monkeypatch, pictures):
    asked = []
    fake = types.ModuleType("ImageReward")
    fake.load = lambda name, device: types.SimpleNamespace(
        score=lambda prompt, image: asked.append((name, device, prompt, image)) or 0.25
    )
    monkeypatch.setitem(sys.modules, "ImageReward", fake)
    scorer = scorers.RewardScorer("file.pt")
    scorer.check()
    assert scorer.score(Scene(pictures[0], (ENTRY,), "a cat")) == {"image_reward": 0.25}
    assert asked == [("file.pt", "cpu", "a cat", str(pictures[0]))]


@pytest.mark.parametrize(
    ("scorer", "module"),
    [
        (scorers.ClipScorer(), "torchmetrics.functional.multimodal"),
        (scorers.FidelityScorer(), "torchmetrics.functional.image"),
        (scorers.LpipsScorer(), "torchvision"),
        (scorers.RewardScorer(), "ImageReward"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, scorer, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"scorer {scorer.name}: needs {module}.*pip install"):
        scorer.check()


@pytest.mark.parametrize("kind", [scorers.ClipScorer, scorers.DinoScorer])
def test_a_missing_model_is_named(tmp_path, kind):
    with pytest.raises(ValueError, match=rf"scorer {kind.name}: model .*nothing: no "):
        kind(str(tmp_path / "nothing")).check()


def test_the_embedded_scorer_wants_every_concept(tmp_path):
    scorer = scorers.EmbeddedScorer()
    scorer.check()
    entries = [lab.LoraEntry(id=i, name=i, trigger=("x",)) for i in ("style_1", "object_1")]
    found = scorer.score(Scene(_picture(tmp_path / "a.png", 0), tuple(entries), "x"))
    probabilities = testbed.Scorer().score([Image.open(tmp_path / "a.png")])[0]
    shown = [p > 0.5 for p in found["concepts"].values()]
    assert list(found["concepts"]) == ["style_1", "object_1"]
    assert found["recall"] == sum(shown) / 2 and found["composition"] == float(all(shown))
    assert found["concepts"].items() <= probabilities.items()


def test_the_uncached_job_differs_in_nothing_else():
    generation = lab.Generation("m", "d")
    adapter = (lab.Adapter("a", "d"),)
    bent = cf.CMLoRA(cache_interval=3, uniform=False, center=5, pow=1.4, decay="frozen")
    job = lab.Job(generation, "x", adapter, bent, 1)
    assert uncached(job) == lab.Job(
        generation, "x", adapter, cf.CMLoRA(cache_interval=1, decay="frozen"), 1
    )
    for method in (cf.Merge(), None):
        assert uncached(lab.Job(generation, "x", adapter, method, 1)) is None
    assert json.dumps(job.to_dict())


def test_clora_has_a_concept_per_lora_and_styles_everywhere():
    entries = [
        lab.LoraEntry(id=i, name=i, trigger=(f"first {i}", "second"))
        for i in ("character_1", "style_1", "object_1")
    ]
    bare = cf.CLoRA(concepts=[cf.Concept("any", "any")], step_size=5.0)
    made = clora_for(bare, entries)
    assert [(c.adapter, c.subject) for c in made.concepts] == [
        ("character_1", "first character_1"),
        ("object_1", "first object_1"),
    ]
    assert made.style_adapters == ("style_1",) and made.step_size == 5
    alone = clora_for(bare, entries[1:2])
    assert alone.concepts[0].adapter == "style_1" and not alone.style_adapters
