"""The encoder and its checkpoints: grids, attention to padding, cut prompts, refusals with their remedy."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from florence2_sizes import BASE, LARGE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Florence2Config, Florence2ForConditionalGeneration

from lib.errors import InputError
from lib.model.encoders.backbone import load_backbone, resolve_checkpoint
from lib.model.encoders.encoder import recompute_activations
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.encoders.text import INSTRUCTION, TextEncoder

OPENING = INSTRUCTION.split("{")[0]
CLOSING = INSTRUCTION.split("}")[1].strip()


def config_of(geometry) -> Florence2Config:
    return Florence2Config(vision_config=geometry["vision_config"], text_config=geometry["text_config"])


@pytest.fixture(scope="module")
def meta_encoders() -> dict[str, Florence2Encoder]:
    """Real geometries without memory for weights: enough for sizes."""
    with torch.device("meta"):
        return {"base": Florence2Encoder(config_of(BASE)), "large": Florence2Encoder(config_of(LARGE))}


@pytest.fixture(scope="module")
def loaded(micro_checkpoint):
    encoder, tokenizer = load_backbone(str(micro_checkpoint))
    return encoder.eval(), tokenizer


@pytest.mark.parametrize(
    "height, width, grid",
    [(448, 448, (14, 14)), (512, 512, (16, 16)), (768, 768, (24, 24)), (1024, 1024, (32, 32)), (768, 512, (24, 16)),
     (1600, 32, (50, 1)), (770, 750, (25, 24))],
)  # fmt: skip
def test_grid_follows_from_the_configuration(meta_encoders, height, width, grid):
    for encoder in meta_encoders.values():
        assert encoder.grid(height, width) == grid
        with torch.device("meta"):
            features = torch.zeros(1, 3, height, width)
            for conv in encoder.vision_tower.convs:  # what makes the grid; the blocks keep it
                features = conv(features)
        assert features.shape[-2:] == grid


def test_sizes_of_the_real_models(meta_encoders):
    base, large = meta_encoders["base"], meta_encoders["large"]
    assert (base.width, base.stride, large.width, large.stride) == (768, 32, 1024, 32)
    assert large.max_text_tokens(768, 768) == 4096 - 577  # room for the 1,024 tokens of the reference
    assert base.max_text_tokens(768, 768) == 1024 - 577
    # With its decoder they have the published 0.23 and 0.77 billion weights.
    with torch.device("meta"):
        whole = {
            "base": Florence2ForConditionalGeneration(config_of(BASE)),
            "large": Florence2ForConditionalGeneration(config_of(LARGE)),
        }
    counts = {name: sum(p.numel() for p in model.parameters()) / 1e9 for name, model in whole.items()}
    assert counts == pytest.approx({"base": 0.23, "large": 0.77}, rel=0.02)
    assert sum(p.numel() for p in base.parameters()) == 173_913_856
    assert sum(p.numel() for p in large.parameters()) == 570_706_944


@pytest.mark.parametrize("size", [(1664, 1664), (768, 1664), (1601 + 31, 64)])
def test_sizes_beyond_the_position_table_are_refused(meta_encoders, size):
    wide = "" if size[0] == size[1] else f" with input_width {size[1]}"
    told = f"^input_size {size[0]}{wide} gives a grid of .* 50 positions a side: .* 1600 pixels"
    with pytest.raises(InputError, match=told):
        meta_encoders["large"].grid(*size)


def test_an_image_below_one_token_is_refused(loaded):
    with pytest.raises(InputError, match="grid of 0x0"):
        loaded[0].grid(0, 0)


@pytest.mark.parametrize("height, width", [(32, 32), (64, 32), (48, 96)])
def test_features_have_the_grid_and_a_pooled_token(loaded, height, width):
    encoder, tokenizer = loaded
    text = TextEncoder(tokenizer, encoder.max_text_tokens(height, width))(["a man", "two women in a park"])
    with torch.inference_mode():
        features = encoder(torch.randn(2, 3, height, width), **text)
    assert features.grid == (height // 16, width // 16) == encoder.grid(height, width)
    assert features.before.shape == features.after.shape == (2, 1 + height * width // 256, encoder.width)


def test_equals_the_native_model(micro_checkpoint, loaded):
    """The same numbers as Florence2Model's own encoder, which takes <image> tokens in the text."""
    encoder, tokenizer = loaded
    native = Florence2ForConditionalGeneration.from_pretrained(micro_checkpoint).eval()
    pixels, text = torch.randn(2, 3, 64, 64), TextEncoder(tokenizer, 200)(["a man in a red shirt", "a dog"])
    places = torch.full((2, 17), native.config.image_token_id)
    attend = torch.cat([torch.ones_like(places), text["attention_mask"]], dim=1)
    with torch.inference_mode():
        ours = encoder(pixels, **text)
        torch.testing.assert_close(ours.before, native.model.get_image_features(pixels).pooler_output)
        theirs = native.model(torch.cat([places, text["input_ids"]], dim=1), pixels, attention_mask=attend)
    torch.testing.assert_close(ours.after, theirs.encoder_last_hidden_state[:, :17])


def test_text_beyond_the_position_table_is_refused(loaded):
    encoder, _ = loaded
    room = encoder.max_text_tokens(64, 64)
    ids = torch.full((1, room), 7)
    encoder(torch.zeros(1, 3, 64, 64), ids, torch.ones_like(ids))
    ids = torch.full((1, room + 1), 7)
    with pytest.raises(InputError, match=rf"17 image tokens and {room + 1} text tokens exceed .* 256 positions"):
        encoder(torch.zeros(1, 3, 64, 64), ids, torch.ones_like(ids))


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


def test_padding_to_the_longest_is_not_attended_to(loaded):
    encoder, tokenizer = loaded
    text = TextEncoder(tokenizer, 200)
    prompts = ["a man", "three women with umbrellas stand before a very long wall of bricks in the rain"]
    batch = text(prompts)
    pad = tokenizer.pad_token_id
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == pad)
    assert batch["attention_mask"].sum(1).tolist() == [text([prompt])["input_ids"].shape[1] for prompt in prompts]
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        together = encoder(pixels, **batch).after
        for i, prompt in enumerate(prompts):
            torch.testing.assert_close(encoder(pixels[i : i + 1], **text([prompt])).after[0], together[i])


def test_max_length_attends_to_padding_as_the_reference(loaded):
    encoder, tokenizer = loaded
    reference = TextEncoder(tokenizer, 2000, "max_length")(["a man"])
    assert reference["input_ids"].shape == (1, 1024) and reference["attention_mask"].all()
    text = TextEncoder(tokenizer, encoder.max_text_tokens(32, 32), "max_length")
    batch = text(["a man", "two men"])
    assert batch["input_ids"].shape == (2, encoder.max_text_tokens(32, 32)) and batch["attention_mask"].all()
    shortest = TextEncoder(tokenizer, 200)(["a man", "two men"])
    width = shortest["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :width], shortest["input_ids"])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.allclose(encoder(pixels, **batch).after, encoder(pixels, **shortest).after, atol=1e-4)


def instruction_is_whole(text: TextEncoder, ids: torch.Tensor) -> bool:
    told = text.tokenizer.decode(ids)
    return told.startswith("<s>" + OPENING.strip()) and told.endswith(CLOSING + "\n</s>")


@pytest.mark.parametrize(
    "prompt",
    [
        "a very long story " * 200,
        "word" * 500,
        "猫" * 400,
        "👩‍👩‍👧" * 200,
        "é" * 999,
        "a " * 5000,
        "{" * 700,
        "\n" * 900,
    ],
    ids=["words", "one word", "chinese", "emoji", "accents", "letters", "braces", "lines"],
)
@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 40, 150])
def test_a_long_prompt_is_cut_and_the_instruction_is_not(loaded, prompt, room):
    tokenizer = loaded[1]
    needed = len(tokenizer(INSTRUCTION.format(prompt="")).input_ids)
    text = TextEncoder(tokenizer, needed + room)
    batch = text([prompt, "a man"[: max(0, room - 3)]])
    assert batch["input_ids"].shape[1] <= needed + room
    ids = batch["input_ids"][0][batch["attention_mask"][0] > 0]
    assert instruction_is_whole(text, ids)
    assert len(ids) >= needed + room - 6  # and no more is cut than must be
    kept = tokenizer.decode(ids, skip_special_tokens=True)[len(OPENING) :]
    assert prompt.startswith(kept[: kept.index(CLOSING)])


@pytest.mark.parametrize(
    "prompt", ["", "{}", "{prompt}", "{0} {x!r:>{y}}", "%s %d", "a\x00b", "<image> </s> <pad>", "\ud7ff", "tab\t\r\n"]
)
def test_odd_characters(loaded, prompt):
    text = TextEncoder(loaded[1], 200)
    ids = text([prompt])["input_ids"][0]
    assert INSTRUCTION.replace("{prompt}", prompt) == text.tokenizer.decode(ids)[len("<s>") : -len("</s>")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=120), room=st.integers(0, 60))
def test_any_prompt_fits(loaded, prompt, room):
    needed = len(loaded[1](INSTRUCTION.format(prompt="")).input_ids)
    text = TextEncoder(loaded[1], needed + room)
    assert text([prompt])["input_ids"].shape[1] <= needed + room


def test_an_input_size_that_leaves_no_room_for_the_instruction(loaded):
    needed = len(loaded[1](INSTRUCTION.format(prompt="")).input_ids)
    with pytest.raises(InputError, match=f"input_size: .* room for {needed - 1} text tokens .* takes {needed}"):
        TextEncoder(loaded[1], needed - 1)


# Checkpoints


@pytest.mark.parametrize(
    "checkpoint, remedy",
    [
        ("microsoft/Florence-2-large", "use florence-community/Florence-2-large,"),
        ("microsoft/Florence-2-base-ft", "use florence-community/Florence-2-base-ft,"),
        ("microsoft/florence", "use florence-community/Florence-2-large,"),
        ("Florence-2-large", "neither a folder nor a hub id; use florence-community/Florence-2-large"),
        ("/no/such/folder", "neither a folder nor a hub id"),
        ("./no", "neither a folder nor a hub id"),
        ("~/no", "neither a folder nor a hub id"),
        ("a/b/c", "neither a folder nor a hub id"),
        ("", "'' is neither a folder nor a hub id"),
    ],
)
def test_ids_that_cannot_work_are_refused_with_the_remedy(checkpoint, remedy):
    with pytest.raises(InputError, match=f"checkpoint: .*{remedy}"):
        load_backbone(checkpoint)


def test_folders_that_are_no_checkpoint(tmp_path, micro_checkpoint):
    with pytest.raises(InputError, match="holds no config.json; give a folder written by save_pretrained"):
        load_backbone(str(tmp_path))
    with pytest.raises(InputError, match="neither a folder"):
        load_backbone(str(micro_checkpoint / "config.json"))


def test_ids_and_folders_that_can_work(micro_checkpoint):
    for name in ("base", "base-ft", "large", "large-ft"):
        assert resolve_checkpoint(f"florence-community/Florence-2-{name}") == f"florence-community/Florence-2-{name}"
    assert resolve_checkpoint(str(micro_checkpoint)) == str(micro_checkpoint)


@pytest.fixture
def damaged(micro_checkpoint, tmp_path):
    """A copy of the checkpoint to be damaged."""
    return shutil.copytree(micro_checkpoint, tmp_path / "damaged")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model_type": "bert"}, "is of the kind 'bert'; use a native Florence-2"),
        ({"model_type": None}, "is of the kind None"),
        (
            {"auto_map": {"AutoModel": "modeling.X"}},
            "needs remote code; use a native Florence-2 such as florence-community",
        ),
        ({"vision_config": {"embed_dim": [8, 8, 16, 24]}}, "could not be loaded"),
        ({"vision_config": {"depths": [1, 1, 2, 1]}}, "lacks .* weights"),
        ({"vision_config": "x"}, "could not be loaded"),
    ],
)
def test_checkpoints_of_another_kind_are_refused(damaged, changes, told):
    change_config(damaged, **changes)
    with pytest.raises(InputError, match=told) as refusal:
        load_backbone(str(damaged))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_damaged_files_are_told(damaged, micro_checkpoint):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: 2 * 1024])
    with pytest.raises(InputError, match="could not be loaded .* fetch it again"):
        load_backbone(str(damaged))
    weights.unlink()
    with pytest.raises(InputError, match="could not be loaded .*no file named model.safetensors"):
        load_backbone(str(damaged))
    kept = {k: v for k, v in load_file(micro_checkpoint / "model.safetensors").items() if "image_projection" not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 weights .*image_projection"):
        load_backbone(str(damaged))
    (damaged / "config.json").write_text('{"model_type": "flor')
    with pytest.raises(InputError, match="could not be loaded .*JSON"):
        load_backbone(str(damaged))


def test_a_checkpoint_without_decoder_is_enough(damaged):
    weights = load_file(damaged / "model.safetensors")
    kept = {k: v for k, v in weights.items() if ".decoder." not in k}
    assert len(kept) < len(weights)
    save_file(kept, damaged / "model.safetensors", metadata={"format": "pt"})
    encoder, _ = load_backbone(str(damaged))
    for name, value in encoder.state_dict().items():
        if name.startswith("vision_tower."):
            assert torch.equal(value, weights[f"model.{name}"]), name


def test_a_missing_or_torn_tokenizer_is_told(damaged):
    (damaged / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="could not be loaded"):
        load_backbone(str(damaged))
    for path in damaged.glob("tok*"):
        path.unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_backbone(str(damaged))


def test_weights_are_float32_whatever_the_file_holds(micro_checkpoint, damaged):
    model = Florence2ForConditionalGeneration.from_pretrained(micro_checkpoint)
    model.half().save_pretrained(damaged)
    encoder, _ = load_backbone(str(damaged))
    whole, _ = load_backbone(str(micro_checkpoint))
    for (name, value), other in zip(encoder.state_dict().items(), whole.state_dict().values(), strict=True):
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3)


OFFLINE = """
import os
from lib.model.encoders.backbone import load_backbone
from lib.errors import InputError
try:
    load_backbone("florence-community/Florence-2-base")
except InputError as error:
    print(error)
print(os.environ["HF_ENDPOINT"], os.environ["HF_HUB_OFFLINE"])
"""


def test_a_hub_out_of_reach_is_one_sentence_and_the_mirror_stays(tmp_path):
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "https://mirror.invalid",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=120)
    told, variables = done.stdout.strip().splitlines()
    assert told.startswith("checkpoint: florence-community/Florence-2-base could not be loaded (")
    assert told.endswith("check the id, the connection or HF_ENDPOINT, or give a local folder")
    assert "mirror.invalid" in told
    assert variables == "https://mirror.invalid 1"


# Memory


def test_gradient_checkpointing_gives_the_same_gradients(micro_checkpoint, loaded):
    text = TextEncoder(loaded[1], 200)(["a man", "two women"])
    pixels = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        encoder, _ = load_backbone(str(micro_checkpoint))
        calls = []
        if checkpointing:
            recompute_activations(encoder, encoder.blocks)
        encoder.vision_tower.blocks[0][0].register_forward_hook(lambda *call, calls=calls: calls.append(1))
        torch.manual_seed(1)  # dropout and stochastic depth
        features = encoder.train()(pixels, **text)
        (features.after.square().sum() + features.before.sum()).backward()
        # Blocks run anew in the backward pass: the first conv of a block sees two forward passes.
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 100
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_gradient_checkpointing_recomputes(micro_checkpoint, loaded):
    text = TextEncoder(loaded[1], 200)(["a man"])
    encoder, _ = load_backbone(str(micro_checkpoint))
    recompute_activations(encoder, encoder.blocks)
    passes = []
    encoder.vision_tower.blocks[2][0].spatial_block.register_forward_hook(lambda *call: passes.append(1))
    encoder.text_encoder.layers[0].fc1.register_forward_hook(lambda *call: passes.append(2))
    encoder.train()(torch.randn(1, 3, 32, 32), **text).after.sum().backward()
    assert passes == [1, 2, 2, 1]
    passes.clear()
    with torch.no_grad():
        encoder(torch.randn(1, 3, 32, 32), **text)
    assert passes == [1, 2]


def test_seeds_decide_stochastic_depth(loaded):
    encoder, tokenizer = loaded
    text, pixels = TextEncoder(tokenizer, 200)(["a man"] * 4), torch.randn(1, 3, 32, 32).expand(4, -1, -1, -1)
    encoder.train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs.append(encoder(pixels, **text).after.numpy())
    encoder.eval()
    assert np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[0], outputs[2])
