"""Geometries of AltCLIP: the published one, and a checkpoint of a few thousand weights with a tokenizer of its own."""

from pathlib import Path

import torch
from tokenizers import SentencePieceUnigramTokenizer
from transformers import AltCLIPConfig, AltCLIPModel, XLMRobertaTokenizer

from lib.model.encoders.backbone import quiet_transformers

REAL = {
    "vision_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 14, "image_size": 224, "projection_dim": 768,
    },
    "text_config": {},  # the class's own values are those of BAAI/AltCLIP
}  # fmt: skip
# 28 px give a grid of 2x2 tokens (stride 14) of width 16.
MICRO = {
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 14, "image_size": 28, "projection_dim": 8,
    },
    "text_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 66, "project_dim": 8,
    },
    "projection_dim": 8,
}  # fmt: skip


def build(folder: Path, prompts: list[str], seed: int = 0, **vision) -> Path:
    """Write a random AltCLIP as `save_pretrained` does, with an XLM-R tokenizer trained on the prompts."""
    unigram = SentencePieceUnigramTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's order
    unigram.train_from_iterator(
        prompts * 4, vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    pieces = sorted(unigram.get_vocab(), key=unigram.token_to_id)
    tokenizer = XLMRobertaTokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)])
    tokenizer.save_pretrained(folder)
    text = {**MICRO["text_config"], "vocab_size": len(tokenizer)}
    config = AltCLIPConfig(vision_config={**MICRO["vision_config"], **vision}, text_config=text, projection_dim=8)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        AltCLIPModel(config).save_pretrained(folder)
    return folder
