"""The text side: a CLIP tokenizer with a small BPE vocabulary and a small CLIPTextModel."""

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..concepts import IDS, STYLES, prompt

LENGTH = 77  # tokens, as in CLIP; five concepts with their trigger words take about 40
WIDTH = 128
_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
_VOCABULARY = 1000
_MIN_COUNT = 50  # rarer pieces, those of meaningless words, earn no token


def new_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Byte-level BPE as in CLIP, its merges learnt from the captions.

    Trigger words join the merges (not the base model's captions), so that prompts stay short.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=_MIN_COUNT,
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(captions + _MIN_COUNT * [prompt(IDS, s) for s in STYLES], trainer)
    merges = [tuple(m) for m in _merges(bpe)]
    tokens = _alphabet() + ["".join(m) for m in merges] + _SPECIAL
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def _merges(bpe: Tokenizer) -> list[list[str]]:
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [m if isinstance(m, list) else m.split(" ") for m in merges]


def _alphabet() -> list[str]:
    """Every byte, inside and at the end of a word, as in CLIP: any prompt can be spelled."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    return bytes_ + [b + "</w>" for b in bytes_]


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]):
    """Captions to int64 [B, LENGTH], padded as StableDiffusionPipeline does."""
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
