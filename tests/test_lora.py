"""LoRA: what it wraps, what trains, what is saved, merging, going on from it, sizes on the real geometry."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from florence2_sizes import BASE
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Florence2Config

from lib import tiny
from lib.config import Experiment
from lib.errors import InputError
from lib.model.detector import DistortionDetector, own_weights, set_trainable
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.lora import with_lora

PROMPTS = ["a man in a red shirt", "two women"]


@pytest.fixture
def make(experiment):
    """make(**changes) -> an untrained LoRA detector in evaluation mode."""
    return lambda **changes: DistortionDetector.from_checkpoint(experiment(**{"lora_rank": 4} | changes)).eval()


def batch_for(detector, images=2, seed=0) -> dict:
    side = detector.config.input_size
    pixels = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, **detector.text(PROMPTS * (images // 2))}


def outputs(detector, seed=0) -> list[np.ndarray]:
    # Even without gradients torch multiplies in another order for weights that require them: other last digits.
    detector.requires_grad_(False)
    with torch.inference_mode():
        return [out.numpy() for out in detector.eval()(**batch_for(detector, seed=seed))]


def train_a_little(detector, steps=3) -> DistortionDetector:
    set_trainable(detector, "main")
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-2)
    detector.train()
    torch.manual_seed(0)
    for step in range(steps):
        heatmap, score = detector(**batch_for(detector, images=4, seed=step))
        (heatmap.mean() + score.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return detector.eval()


def test_adapters_sit_on_every_target_and_nothing_else(make):
    detector = make()
    wrapped = {
        name.rsplit(".lora_A", 1)[0].split(".")[-1] for name, _ in detector.named_parameters() if "lora_A" in name
    }
    assert wrapped == set(Florence2Encoder.lora_targets)
    for name, module in detector.encoder.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert "lora" not in name and not hasattr(module, "lora_A"), name
    # Both transformers and all four patch embeddings.
    where = {name for name, _ in detector.named_parameters() if "lora_A" in name}
    assert sum("vision_tower.convs" in name for name in where) == 4
    assert sum("text_encoder.layers.0" in name for name in where) == 6
    assert sum("window_attn" in name for name in where) == sum("channel_attn" in name for name in where) == 8
    assert not any("mask_head" in name or "score_head" in name for name in where)


def test_recipe_of_the_adapters(make):
    detector = make(lora_rank=16, lora_alpha=8, lora_dropout=0.05)
    config = detector.encoder.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (16, 8, 0.05, "none")
    layer = detector.encoder.base_model.model.text_encoder.layers[0].fc1
    assert layer.scaling["default"] == pytest.approx(8 / 16**0.5)  # rsLoRA: alpha over the root of the rank
    assert layer.lora_B["default"].weight.abs().max() == 0
    assert layer.lora_A["default"].weight.std().item() == pytest.approx(1 / 16, rel=0.3)  # Gaussian


def test_an_untrained_adapter_changes_nothing(make):
    for with_adapter, plain in zip(outputs(make()), outputs(make(lora_rank=0)), strict=True):
        np.testing.assert_allclose(with_adapter, plain, atol=1e-6)


def test_adapters_depend_on_the_seed_only(make):
    torch.manual_seed(1)
    first = own_weights(make(seed=7))
    torch.manual_seed(2)
    second, other = own_weights(make(seed=7)), own_weights(make(seed=8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_a_target_that_matches_nothing_is_an_error(make, monkeypatch):
    # Three entries of the reference's list did.
    monkeypatch.setattr(Florence2Encoder, "lora_targets", ("qkv", "o_proj", "linear", "Conv2d"))
    with pytest.raises(InputError, match="LoRA targets Conv2d, linear, o_proj match no layer"):
        make()


def test_only_adapters_and_heads_train(make):
    detector = make()
    base = {name: p.detach().clone() for name, p in detector.named_parameters() if "lora_" not in name}
    names = set_trainable(detector, "main")
    assert names and all("lora_" in name or not name.startswith("encoder.") for name in names)
    assert {name for name, _ in detector.named_parameters() if not name.startswith("encoder.")} <= set(names)
    train_a_little(detector)
    for name, parameter in detector.named_parameters():
        if "lora_" in name:
            continue
        moved = not torch.equal(parameter, base[name])
        assert moved == (not name.startswith("encoder.")), name
    assert any(p.abs().max() > 0 for name, p in detector.named_parameters() if "lora_B" in name)


def test_what_is_asked_for_trains_as_well(make):
    names = set_trainable(make(unfreeze_params="image_position_embed, layernorm_embedding"), "main")
    extra = [name for name in names if name.startswith("encoder.") and "lora_" not in name]
    assert extra and all("image_position_embed" in name or "layernorm_embedding" in name for name in extra)
    every = make(unfreeze_params="all")  # the seed's scripts: then nothing of LoRA's purpose is left
    assert len(set_trainable(every, "main")) == len(list(every.named_parameters()))
    frozen = set_trainable(make(freeze_params="vision_tower"), "main")
    assert not any("vision_tower" in name for name in frozen) and any("lora_" in name for name in frozen)


def test_warm_up_with_lora_trains_heads_only(make):
    assert not any(name.startswith("encoder.") for name in set_trainable(make(), "warmup"))


@pytest.mark.parametrize(
    "changes", [{}, {"lora_rank": 1}, {"score_head": "linear2_cls", "mask_head": "concat_cls"},
                {"unfreeze_params": "image_position_embed"}, {"unfreeze_params": "all"}],
)  # fmt: skip
def test_a_saved_adapter_gives_equal_outputs(make, tmp_path, changes):
    detector = train_a_little(make(**changes))
    detector.save_pretrained(tmp_path / "model")
    restored = DistortionDetector.from_pretrained(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(detector), outputs(restored), strict=True))
    before, after = detector.state_dict(), restored.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert any("running_mean" in name and before[name].abs().max() > 0 for name in before)  # buffers are part of it
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["adapter.safetensors", "detector.json", "heads.safetensors"]


def test_the_adapter_s_file_holds_adapters_only(make, tmp_path):
    detector = train_a_little(make())
    detector.save_pretrained(tmp_path)
    adapter = load_file(tmp_path / "adapter.safetensors")
    assert adapter and all(re.search(r"\.lora_[AB]\.weight$", name) for name in adapter)
    heads = load_file(tmp_path / "heads.safetensors")
    assert all(name.startswith(("mask_head.", "score_head.")) for name in heads)


@pytest.mark.parametrize("started_from", ["pretrained", "run"])
def test_adapters_on_another_base_are_refused(make, micro_checkpoint, tmp_path, started_from):
    shutil.copytree(micro_checkpoint, tmp_path / "base")
    checkpoint, weights = tmp_path / "base", tmp_path / "base" / "model.safetensors"
    if started_from == "run":
        checkpoint, weights = tmp_path / "first", tmp_path / "first" / "adapter.safetensors"
        train_a_little(make()).save_pretrained(checkpoint)
    detector = make(checkpoint=str(checkpoint))
    detector.save_pretrained(tmp_path / "model")
    assert DistortionDetector.from_pretrained(tmp_path / "model").base == detector.base != ""
    save_file({name: value * 1.5 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    told = f"model holds adapters of other weights than checkpoint: {checkpoint} has now; restore"
    with pytest.raises(InputError, match=told):
        DistortionDetector.from_pretrained(tmp_path / "model")
    note = tmp_path / "model" / "detector.json"
    older = {name: value for name, value in json.loads(note.read_text()).items() if name != "base"}
    note.write_text(json.dumps(older))
    DistortionDetector.from_pretrained(tmp_path / "model")


def test_damaged_adapters_are_told(make, tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / "adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(InputError, match="adapter.safetensors is not a readable safetensors file"):
        DistortionDetector.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="adapter.safetensors is missing"):
        DistortionDetector.from_pretrained(tmp_path)
    make(lora_rank=2).save_pretrained(tmp_path / "other")
    path.write_bytes((tmp_path / "other" / "adapter.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"another architecture \(encoder.*lora_A.*\[2, "):
        DistortionDetector.from_pretrained(tmp_path)


def test_a_lost_base_is_told(make, tmp_path, micro_checkpoint):
    import shutil

    base = shutil.copytree(micro_checkpoint, tmp_path / "base")
    make(checkpoint=str(base)).save_pretrained(tmp_path / "model")
    shutil.rmtree(base)
    with pytest.raises(InputError, match=f"checkpoint: '{base}' is neither a folder nor a hub id"):
        DistortionDetector.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("changes", [{}, {"unfreeze_params": "image_position_embed"}])
def test_merging_keeps_the_outputs(make, tmp_path, changes):
    detector = train_a_little(make(lora_dropout=0.5, **changes))
    expected = outputs(detector)
    merged = detector.merged()
    assert merged.config.lora_rank == 0
    assert not any("lora_" in name or "base_layer" in name for name in merged.state_dict())
    for a, b in zip(outputs(merged), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    merged.save_pretrained(tmp_path)
    plain = DistortionDetector.from_pretrained(tmp_path)
    assert isinstance(plain.encoder, Florence2Encoder)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(merged), outputs(plain), strict=True))
    assert plain.merged() is plain  # nothing to merge


def test_full_training_goes_on_from_a_lora_run(make, experiment, tmp_path):
    lora = train_a_little(make())
    lora.save_pretrained(tmp_path / "lora" / "model")
    full = DistortionDetector.from_checkpoint(experiment(checkpoint=str(tmp_path / "lora"), lora_rank=0))
    for a, b in zip(outputs(full), outputs(lora), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    before = full.encoder.vision_tower.convs[0].conv.weight.detach().clone()
    assert "encoder.vision_tower.convs.0.conv.weight" in set_trainable(full, "main")
    train_a_little(full)
    assert not torch.equal(full.encoder.vision_tower.convs[0].conv.weight, before)


def test_lora_on_top_of_a_full_run_and_of_a_lora_run(make, experiment, tmp_path):
    full = train_a_little(DistortionDetector.from_checkpoint(experiment()))
    full.save_pretrained(tmp_path / "full")
    below = str(tmp_path / "full")
    for name in ("first", "second"):
        lora = train_a_little(make(checkpoint=below))
        lora.save_pretrained(tmp_path / name)
        restored = DistortionDetector.from_pretrained(tmp_path / name)
        assert all(np.array_equal(a, b) for a, b in zip(outputs(lora), outputs(restored), strict=True))
        below = str(tmp_path / name)


def test_gradient_checkpointing_with_adapters(make):
    found = []
    for checkpointing in (False, True):
        detector = make(gradient_checkpointing=checkpointing, lora_dropout=0.3)
        set_trainable(detector, "main")
        torch.manual_seed(0)
        heatmap, score = detector.train()(**batch_for(detector, images=4))
        (heatmap.mean() + score.mean()).backward()
        found.append({name: p.grad for name, p in detector.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("lora_A" in name for name in found[0])
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], msg=name)


def encoder_share(detector) -> float:
    """Trained weights of the encoder over all its own weights."""
    sizes = [
        (name, p.numel(), p.requires_grad) for name, p in detector.named_parameters() if name.startswith("encoder.")
    ]
    return sum(n for _, n, trains in sizes if trains) / sum(n for name, n, _ in sizes if "lora_" not in name)


def test_the_small_checkpoint_trains_less_than_a_fifth_of_its_encoder(tmp_path):
    folder = tiny.build(tmp_path / "tiny", ["a man in a red shirt"] * 3)
    config = Experiment(checkpoint=str(folder), input_size=128, mask_size=128, mask_stride=8, lora_rank=8)
    detector = DistortionDetector.from_checkpoint(config)
    set_trainable(detector, "main")
    assert 0.05 < encoder_share(detector) < 0.2
    detector.save_pretrained(tmp_path / "model")
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 3e6


def test_a_rank_8_adapter_is_below_two_percent_of_florence_2_base():
    """Counted on the real geometry without memory for its weights; all weights have four bytes."""
    with torch.device("meta"):
        encoder = Florence2Encoder(
            Florence2Config(vision_config=BASE["vision_config"], text_config=BASE["text_config"])
        )
        base = sum(value.numel() for value in encoder.state_dict().values())
        wrapped = with_lora(encoder, Experiment(lora_rank=8))
    adapter = sum(value.numel() for name, value in wrapped.state_dict().items() if "lora_" in name)
    assert 0.005 < adapter / base < 0.02
