"""The small Florence-2 shipped with the kit: how it is built, pretrained and exported.

`python -m lib.tiny` makes it again from nothing: a random checkpoint, procedural images in the challenge's
format, the kit's own training loop, and the encoder written in the layout of `florence-community/Florence-2-*`.
What it learns from and what it cannot do: `data_cards/florence2_tiny.md`.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import Florence2Config, Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from lib.config import Experiment
from lib.model.detector import DistortionDetector
from lib.model.encoders.backbone import SHIPPED, quiet_transformers
from lib.model.encoders.text import INSTRUCTION

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]  # BART's order
PARAMETERS = "notebooks/params/pretrain_tiny.yaml"
GEOMETRY = {
    "vision_config": {
        "depths": (1, 1, 1, 1), "embed_dim": (32, 64, 96, 128), "num_heads": (2, 4, 6, 8), "num_groups": (2, 4, 6, 8),
        "patch_stride": (4, 2, 2, 1), "window_size": 8, "projection_dim": 128, "drop_path_rate": 0.0,
    },
    "text_config": {
        "model_type": "bart", "d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 512,
        "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 128, "max_position_embeddings": 512,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    },
}  # fmt: skip


def train_tokenizer(prompts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE like BART's over the given prompts and the recipe's instruction."""
    bpe = ByteLevelBPETokenizer()
    texts = [*prompts, *[INSTRUCTION.format(prompt="")] * 8]
    bpe.train_from_iterator(texts, vocab_size=1024, min_frequency=2, special_tokens=SPECIAL, show_progress=False)
    bpe._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def build(folder, prompts: list[str], seed: int = 0, geometry: dict | None = None) -> Path:
    """Write a randomly initialised Florence-2 checkpoint and its tokenizer with `save_pretrained`.

    Weights are drawn with a standard deviation of 0.1, convolutions by Kaiming: with the library's 0.02 a DaViT
    of this size does not leave the trivial solution within 50,000 images.
    """
    geometry = geometry or GEOMETRY
    tokenizer = train_tokenizer(prompts)
    text = {**geometry["text_config"], "vocab_size": len(tokenizer)}
    config = Florence2Config(vision_config=geometry["vision_config"], text_config=text, image_token_id=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(config)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def export_encoder(run, base, folder) -> Path:
    """Put the encoder of a finished run back into the Florence-2 it came from; saved in float16."""
    detector = DistortionDetector.from_pretrained(run)
    with quiet_transformers():
        model = Florence2ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    for own in ("vision_tower", "multi_modal_projector", "text_encoder"):
        theirs = "language_model.encoder" if own == "text_encoder" else own
        model.model.get_submodule(theirs).load_state_dict(getattr(detector.encoder, own).state_dict())
    with quiet_transformers():
        model.half().save_pretrained(folder)
    detector.tokenizer.save_pretrained(folder)
    return Path(folder)


def main(argv: list[str] | None = None) -> None:
    """Make the shipped checkpoint; about 90 minutes on two cores."""
    from lib.data.prepare import prepare
    from lib.synthetic import write_dataset
    from lib.train import train

    parser = argparse.ArgumentParser(prog="python -m lib.tiny", description=main.__doc__)
    parser.add_argument("--work", default="data/pretraining", help="folder for images and runs")
    parser.add_argument("--out", default=str(SHIPPED / "florence2-tiny"), help="folder of the checkpoint")
    arguments = parser.parse_args(argv)
    work = Path(arguments.work)
    # 160 px on disk, of seeds far from the demo's
    write_dataset(work / "raw", {"train": 10_000, "val": 300}, size=160, seed=9_000_000, shifted=0)
    prepare(work / "raw", work / "prepared", splits=("train", "val"))
    info = json.loads((work / "raw/train/train_info.json").read_text())
    base = build(work / "random", [record["prompt_en"] for record in info.values()])
    places = {"data_path": str(work / "prepared"), "checkpoint": str(base), "runs": str(work)}
    run = train(Experiment.from_yaml(PARAMETERS, **places))
    out = export_encoder(run, base, arguments.out)
    shutil.copy(run / "metrics.jsonl", out / "training_log.jsonl")
    shutil.copy(PARAMETERS, out / "training_parameters.yaml")  # not the run's: it names folders of a machine
    print(f"wrote {out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
