"""The encoder and its checkpoints: grids, attention to padding, cut prompts, refusals with their remedy."""

import copy
import json
import os
import shutil

import pytest
import torch
from florence2_sizes import BASE, LARGE
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Florence2Config, Florence2ForConditionalGeneration

from lib.errors import InputError
from lib.model.encoders.backbone import load_backbone
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.encoders.text import INSTRUCTION, TextEncoder

OPENING = INSTRUCTION.split("{")[0]
CLOSING = INSTRUCTION.split("}")[1].strip()


@pytest.fixture(scope="module")
def loaded(micro_checkpoint):
    encoder, tokenizer = load_backbone(str(micro_checkpoint))
    return encoder.eval(), tokenizer


def test_sizes_of_the_real_models():
    """Real geometries without memory for weights."""
    with torch.device("meta"):
        base, large = (Florence2Encoder(Florence2Config(**geometry)) for geometry in (BASE, LARGE))
    assert (base.width, base.stride, large.width, large.stride) == (768, 32, 1024, 32)
    for shape, grid in [((448, 448), (14, 14)), ((768, 512), (24, 16)), ((1600, 32), (50, 1)), ((770, 750), (25, 24))]:
        features = torch.zeros(1, 3, *shape, device="meta")
        for conv in large.vision_tower.convs:  # what makes the grid; the blocks keep it
            features = conv(features)
        assert base.grid(*shape) == large.grid(*shape) == features.shape[-2:] == grid
    assert large.max_text_tokens(768, 768) == 4096 - 577  # room for the 1,024 tokens of the reference
    assert base.max_text_tokens(768, 768) == 1024 - 577
    for size, name in (((1664, 1664), "1664"), ((768, 1664), "768 with input_width 1664")):
        with pytest.raises(InputError, match=f"^input_size {name} gives a grid of .* 50 positions a side: .* 1600 pix"):
            large.grid(*size)
    assert sum(p.numel() for p in base.parameters()) == 173_913_856
    assert sum(p.numel() for p in large.parameters()) == 570_706_944


def test_equals_the_native_model(micro_checkpoint, loaded):
    """The same numbers as Florence2Model's own encoder, which takes <image> tokens in the text."""
    encoder, tokenizer = loaded
    native = Florence2ForConditionalGeneration.from_pretrained(micro_checkpoint).eval()
    pixels, text = torch.randn(2, 3, 64, 64), TextEncoder(tokenizer, 200)(["a man in a red shirt", "a dog"])
    places = torch.full((2, 17), native.config.image_token_id)
    attend = torch.cat([torch.ones_like(places), text["attention_mask"]], dim=1)
    for dtype in (torch.float32, torch.float64):  # in any but float32 attention over channels is ours
        encoder, native = copy.deepcopy(encoder).to(dtype), native.to(dtype)
        ours = encoder(pixels.to(dtype), **text)
        torch.testing.assert_close(ours.before, native.model.get_image_features(pixels.to(dtype)).pooler_output)
        theirs = native.model(torch.cat([places, text["input_ids"]], dim=1), pixels.to(dtype), attention_mask=attend)
        torch.testing.assert_close(ours.after, theirs.encoder_last_hidden_state[:, :17])
        name = "vision_tower.convs.0.conv.weight"
        for out in (ours.after, theirs.encoder_last_hidden_state[:, :17]):
            out.square().sum().backward()
        torch.testing.assert_close(encoder.get_parameter(name).grad, native.model.get_parameter(name).grad)
        native.zero_grad()


# Text


def test_the_instruction_is_the_reference_s(loaded):
    text = TextEncoder(loaded[1], 200)
    ids = text(["a man"])["input_ids"][0]
    expected = (
        "Here's an AI image generated with prompt: a man. \nIdentify unusual or implausible areas in the image and "
        "rate the implausibility score, focusing on distorted objects, distorted human part, unnatural lighting, or "
        "illogical spatial relationships.\n"
    )
    assert text.tokenizer.decode(ids, skip_special_tokens=True) == expected
    assert (ids[0], ids[-1]) == (text.tokenizer.bos_token_id, text.tokenizer.eos_token_id)
    padded = TextEncoder(loaded[1], 2000, "max_length")(["a man"])
    assert padded["input_ids"].shape == (1, 1024) and padded["attention_mask"].all()  # attends to padding


LONG = ["a very long story " * 200, "word" * 500, "猫" * 400, "👩‍👩‍👧" * 200, "{" * 700, "\n" * 900]


@settings(max_examples=60)
@given(
    prompt=st.one_of(st.sampled_from(LONG), st.text(st.characters(exclude_categories=["Cs"]), max_size=120)),
    room=st.integers(0, 60),
)
def test_a_prompt_that_does_not_fit_is_cut_and_the_instruction_is_not(loaded, prompt, room):
    tokenizer = loaded[1]
    needed = len(tokenizer(INSTRUCTION.format(prompt="")).input_ids)
    [ids] = TextEncoder(tokenizer, needed + room)([prompt])["input_ids"]
    told = tokenizer.decode(ids)
    assert told.startswith("<s>" + OPENING.strip()) and told.endswith(CLOSING + "\n</s>") and len(ids) <= needed + room
    if prompt in LONG:
        assert len(ids) == needed + room  # no more is cut than must be
        kept = tokenizer.decode(ids, skip_special_tokens=True)[len(OPENING.strip()) :]
        assert prompt.startswith(kept[: kept.index(CLOSING)].strip(" \ufffd"))  # half of a last letter
    with pytest.raises(InputError, match=f"input_size: .* room for {needed - 1} text tokens .* takes {needed}"):
        TextEncoder(tokenizer, needed - 1)


# Checkpoints


def test_ids_that_cannot_work_are_refused_with_the_remedy():
    for checkpoint, remedy in [
        ("microsoft/Florence-2-base-ft", "needs remote code .* use florence-community/Florence-2-base-ft,"),
        ("Florence-2-large", "neither a folder nor a hub id; use florence-community/Florence-2-large"),
        *((name, "neither a folder nor a hub id") for name in ("/no/such/folder", "./no", "~/no", "a/b/c", "")),
    ]:
        with pytest.raises(InputError, match=f"checkpoint: .*{remedy}"):
            load_backbone(checkpoint)


def change_config(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


def change_weights(change):
    def damage(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return damage


def without(fragment: str):
    return lambda weights: {name: value for name, value in weights.items() if fragment not in name}


NAN = "model.vision_tower.convs.0.conv.bias"
DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json; give a folder written by save_pretr"),
    "bert": (change_config(model_type="bert"), "is of the kind 'bert', but model is florence2; set checkpoint: f"),
    "remote code": (change_config(auto_map={"AutoModel": "modeling.X"}), "is of the kind 'remote code', but"),
    "a weight left out": (change_weights(without("image_projection")), "lacks 1 weights .*image_projection"),
    "NaN": (
        change_weights(lambda weights: weights | {NAN: weights[NAN] / 0}),
        "damaged holds weights that are not finite .vision_tower.convs.0",
    ),
    "torn weights": (lambda f: os.truncate(f / "model.safetensors", 2048), "could not be loaded .* fetch it again"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_checkpoints_of_another_kind_or_damaged_are_one_sentence(micro_checkpoint, tmp_path, case):
    folder, (damage, told) = shutil.copytree(micro_checkpoint, tmp_path / "damaged"), DAMAGES[case]
    damage(folder)
    with pytest.raises(InputError, match=told) as refusal:
        load_backbone(str(folder))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_half_precision_and_no_decoder_are_enough(micro_checkpoint, tmp_path):
    """The file's values come as float32; the decoder is not used."""
    folder = shutil.copytree(micro_checkpoint, tmp_path / "half")
    change_weights(lambda weights: {k: v.half() for k, v in without(".decoder.")(weights).items()})(folder)
    half, whole = (load_backbone(str(place))[0].state_dict() for place in (folder, micro_checkpoint))
    for name, value in half.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-3)  # and the same dtype
