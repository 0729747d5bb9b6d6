"""AltCLIP as a second model: features, fusion, LoRA, a whole run, refusals, the real geometry."""

import json
import shutil

import altclip_sizes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AltCLIPConfig, AltCLIPModel, AutoTokenizer
from watching import assert_identical, model_weights

from lib.config import Experiment
from lib.data.pixels import to_image, to_pixels
from lib.errors import InputError
from lib.model.detector import DistortionDetector, own_weights, set_trainable
from lib.model.encoders.altclip import AltClipEncoder, Fusion, FusionLayer
from lib.model.encoders.backbone import load_backbone, resolve_checkpoint
from lib.model.encoders.encoder import Features, Tokens, recompute_activations
from lib.model.encoders.text import TextEncoder
from lib.predict.prediction import predict
from lib.stores import LabelStore
from lib.train import train
from lib.train.loop import Run

PROMPTS = ["a man in a red shirt", "two women"]


@pytest.fixture(scope="module")
def checkpoint(raw, tmp_path_factory):
    info = json.loads((raw / "train" / "train_info.json").read_text())
    return altclip_sizes.build(tmp_path_factory.mktemp("altclip"), [row["prompt_en"] for row in info.values()])


@pytest.fixture
def settings(experiment, checkpoint):
    """settings(**changes) -> a small run of AltCLIP."""
    values = {"model": "altclip", "checkpoint": str(checkpoint), "input_size": 28, "mask_stride": 7}
    return lambda **changes: experiment(**values | changes)


@pytest.fixture
def make(settings):
    """make(**changes) -> an untrained detector in evaluation mode."""
    return lambda **changes: DistortionDetector.from_checkpoint(settings(**changes)).eval()


@pytest.fixture(scope="module")
def loaded(checkpoint):
    encoder, tokenizer = load_backbone(str(checkpoint), "altclip")
    return encoder.eval(), tokenizer


@pytest.fixture(scope="module")
def real() -> AltClipEncoder:
    with torch.device("meta"):
        return AltClipEncoder(AltCLIPConfig(**altclip_sizes.REAL))


def batch_for(detector, images=2, seed=0) -> dict:
    pixels = torch.randn(images, 3, *detector.config.input_shape, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, **detector.text(PROMPTS * (images // 2))}


def outputs(detector, seed=0) -> list[np.ndarray]:
    with torch.no_grad():
        return [out.numpy() for out in detector.eval()(**batch_for(detector, seed=seed))]


def train_a_little(detector) -> DistortionDetector:
    set_trainable(detector, "main")
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for seed in range(2):
        heatmap, score = detector.train()(**batch_for(detector, images=4, seed=seed))
        (heatmap.mean() + score.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return detector.eval()


# Encoder


def test_tokens_are_those_of_the_native_model(checkpoint, loaded):
    encoder, tokenizer = loaded
    native = AltCLIPModel.from_pretrained(checkpoint).eval()
    text = TextEncoder(tokenizer, 64, template=encoder.template)(PROMPTS)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        tokens = encoder(pixels, **text)
        torch.testing.assert_close(tokens.image, native.vision_model(pixels).last_hidden_state)
        words = native.text_model.roberta.embeddings(input_ids=text["input_ids"])
    torch.testing.assert_close(tokens.text, words)
    assert tokens.grid == (2, 2) and tokens.image.shape == (2, 5, 16)
    assert tokenizer.decode(text["input_ids"][1], skip_special_tokens=True) == "human artifact two women"


@pytest.mark.parametrize("height, width", [(56, 56), (28, 56), (42, 14)])
def test_other_sizes_interpolate_the_position_table(loaded, height, width):
    encoder, tokenizer = loaded
    text = TextEncoder(tokenizer, 64, template=encoder.template)(["a man"])
    with torch.inference_mode():
        tokens = encoder(torch.zeros(1, 3, height, width), **text)
    assert tokens.grid == (height // 14, width // 14) == encoder.grid(height, width)
    assert tokens.image.shape == (1, 1 + height * width // 14**2, 16) and tokens.image.isfinite().all()


@pytest.mark.parametrize(
    "size, told",
    [
        ((768, 768), "^input_size 768 cannot be cut .* patches of 14 pixels; use multiples of 14, such as 756 or 770"),
        ((448, 450), "^input_size 448 with input_width 450 cannot .* 448 or 462"),
        ((0, 0), "such as 14 or 28"),
    ],
)
def test_sizes_that_leave_pixels_over_are_refused(real, size, told):
    with pytest.raises(InputError, match=told):
        real.grid(*size)


def test_sizes_of_the_real_model(real):
    assert (real.width, real.stride, real.grid(448, 448)) == (1024, 14, (32, 32))  # as the baseline has it
    assert real.max_text_tokens(448, 448) == 512
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in real.named_children()}
    # ViT-L/14 has 303,179,776 weights, of which 2,048 are the last norm's; words, positions, one type, norm.
    assert sizes == {"vision": 303_179_776 - 2048, "words": (250_002 + 514 + 1 + 2) * 1024}
    with torch.device("meta"):
        fusion = real.fusion()
    layer = 4 * (1024 * 1024 + 1024) + (1024 * 2048 + 2048) + (2048 * 1024 + 1024) + 4 * 1024
    assert sum(p.numel() for p in fusion.parameters()) == 6 * layer + 2048
    assert {layer.attention.num_heads for layer in fusion.layers} == {16}


def test_the_position_table_has_room_for_exactly_the_text_promised(loaded):
    encoder, tokenizer = loaded
    room, pixels = encoder.max_text_tokens(28, 28), torch.zeros(1, 3, 28, 28)
    text = TextEncoder(tokenizer, room, template=encoder.template)(["a very long " * 50])
    assert room - 3 <= text["input_ids"].shape[1] <= room == 64
    encoder(pixels, torch.full((1, room), 7), torch.ones(1, room))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        encoder(pixels, torch.full((1, room + 1), 7), torch.ones(1, room + 1))


# Fusion


def test_a_layer_adds_to_what_it_has_normed():
    layer = FusionLayer(16)
    for part in (layer.attention.out_proj, layer.feed_forward[2]):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    x = 5 + 3 * torch.randn(2, 7, 16)
    normed = torch.nn.functional.layer_norm(x, (16,))
    torch.testing.assert_close(
        layer(x, torch.zeros(2, 7, dtype=torch.bool)), torch.nn.functional.layer_norm(normed, (16,))
    )


def test_fusion_mixes_text_into_the_image_and_not_padding():
    torch.manual_seed(0)
    fusion, image, text = Fusion(16).eval(), torch.randn(1, 5, 16), torch.randn(1, 4, 16)
    mask = torch.tensor([[1, 1, 1, 0]])

    def fused(words):
        features = fusion(Tokens(image, words, mask, (2, 2)))
        assert isinstance(features, Features) and features.grid == (2, 2)
        assert torch.equal(features.before, image) and features.after.shape == image.shape
        return features.after

    other_padding, other_text = text.clone(), text.clone()
    other_padding[0, 3], other_text[0, 2] = 9.0, 9.0
    torch.testing.assert_close(fused(other_padding), fused(text))
    assert not torch.allclose(fused(other_text), fused(text), atol=1e-3)


@pytest.mark.parametrize("padding, alone", [("longest", True), ("max_length", False)])
def test_padding_is_attended_to_only_when_the_reference_s_way_is_asked_for(make, padding, alone):
    detector = make(text_padding=padding)
    batch = batch_for(detector)
    with torch.no_grad():
        together = detector(**batch)
        row = detector.text.tokenizer(["human artifact two women"], return_tensors="pt")
        single = detector(batch["pixel_values"][1:], row["input_ids"], row["attention_mask"])
    assert torch.allclose(together[0][1], single[0][0], atol=1e-6) == alone
    assert (batch["input_ids"].shape[1] == 64) == (padding == "max_length")


# Detector


def test_pixels_have_clip_s_statistics():
    image = np.random.default_rng(0).integers(0, 256, (28, 14, 3), np.uint8)
    pixels = to_pixels(image, (28, 14), "altclip")
    expected = (image[3, 5, 0] / 255 - 0.48145466) / 0.26862954
    assert pixels[0, 3, 5].item() == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(to_image(pixels, "altclip"), image)
    assert not torch.allclose(pixels, to_pixels(image, (28, 14), "florence2"), atol=0.01)


def test_the_fusion_trains_like_a_head(make):
    detector = make()
    every = {name for name, _ in detector.named_parameters()}
    warmup = set(set_trainable(detector, "warmup"))
    assert warmup == {name for name in every if not name.startswith("encoder.")}
    assert any(name.startswith("fusion.layers.5.") for name in warmup)
    assert set(set_trainable(make(lora_rank=2), "warmup")) == warmup


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}])
def test_every_weight_that_trains_gets_a_gradient(make, changes):
    """A weight without one makes DistributedDataParallel raise; the last norm of the vision tower would be such."""
    detector = make(mask_head="last", **changes).train()
    set_trainable(detector, "main")
    heatmap, score = detector(**batch_for(detector, images=4))
    (heatmap.mean() + score.mean()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}])
def test_gradient_checkpointing_changes_nothing(make, changes):
    found, passes = [], []
    for checkpointing in (False, True):
        detector = make(gradient_checkpointing=checkpointing, lora_dropout=0.3, **changes).train()
        set_trainable(detector, "main")
        calls = []
        for block in (detector.fusion.layers[0].norm1, detector.encoder.vision.encoder.layers[0].layer_norm1):
            block.register_forward_hook(lambda *call, calls=calls: calls.append(1))
        torch.manual_seed(0)
        heatmap, score = detector(**batch_for(detector, images=4))
        (heatmap.mean() + score.mean()).backward()
        found.append({name: p.grad for name, p in detector.named_parameters() if p.grad is not None})
        passes.append(len(calls))
    assert passes == [2, 4]
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], msg=name)


def test_adapters_sit_on_every_target(make):
    detector = make(lora_rank=2)
    wrapped = [name.rsplit(".lora_A", 1)[0] for name, _ in detector.named_parameters() if "lora_A" in name]
    assert {name.split(".")[-1] for name in wrapped} == set(AltClipEncoder.lora_targets)
    assert len(wrapped) == 1 + 2 * 6 and all(".vision." in name for name in wrapped)
    for with_adapter, plain in zip(outputs(detector), outputs(make()), strict=True):
        np.testing.assert_allclose(with_adapter, plain, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"lora_rank": 2, "unfreeze_params": "words.LayerNorm"}])
def test_a_saved_detector_is_the_same_to_the_bit(make, tmp_path, changes):
    detector = train_a_little(make(**changes))
    detector.save_pretrained(tmp_path / "model")
    restored = DistortionDetector.from_pretrained(tmp_path)
    before, after = detector.state_dict(), restored.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(detector), outputs(restored), strict=True))
    assert any(name.startswith("fusion.") for name in load_file(tmp_path / "model" / "heads.safetensors"))
    assert any(name.startswith("fusion.") for name in own_weights(detector))


def test_no_buffer_is_outside_the_saved_weights(make):
    encoder = make().encoder
    assert {name for name, _ in [*encoder.named_buffers(), *encoder.named_parameters()]} == set(encoder.state_dict())


def test_merging_and_going_on_from_a_lora_run(make, tmp_path):
    lora = train_a_little(make(lora_rank=2))
    lora.save_pretrained(tmp_path / "lora" / "model")
    expected = outputs(lora)
    for detector in (make(checkpoint=str(tmp_path / "lora")), lora.merged()):
        assert isinstance(detector.encoder, AltClipEncoder)
        for a, b in zip(outputs(detector), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


# A whole run


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2, "warmup_epoch": 0}], ids=["full", "lora"])
def test_a_run_trains_resumes_and_predicts(settings, tmp_path, monkeypatch, changes):
    whole = train(settings(epoch=2, save_iter=1, experiment_name="whole", **changes))
    stopped = settings(epoch=2, save_iter=1, **changes)
    save = Run._save

    def save_and_stop(*arguments, **named):
        save(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Run, "_save", save_and_stop)
        train(stopped)
    run = train(stopped)
    assert_identical(model_weights(run, "model"), model_weights(whole, "model"))
    trained = DistortionDetector.from_pretrained(run)
    start = DistortionDetector.from_checkpoint(stopped)
    assert not torch.equal(trained.fusion.layers[0].norm1.weight, start.fusion.layers[0].norm1.weight)
    store = LabelStore(stopped.data_path + "/val")
    predictions = predict(trained, store, run / "predictions" / "val", flip=True, scales=(1.0, 1.5))
    assert predictions.ids == store.ids and predictions.heatmap(store.ids[0]).shape == (32, 32)


def test_a_wide_run_of_altclip(settings):
    config = settings(input_width=56, epoch=1, warmup_epoch=0)
    detector = DistortionDetector.from_pretrained(train(config))
    assert [out.shape for out in outputs(detector)] == [(2, 32, 64), (2,)]


# Refusals


def test_checkpoints_of_the_other_model_are_refused_before_the_network(checkpoint, micro_checkpoint, make, tmp_path):
    told = "is {}, but model is {}; set model: {}, or checkpoint: {}"
    altclip = told.format("Florence-2", "altclip", "florence2", "BAAI/AltCLIP")
    florence = told.format("AltCLIP", "florence2", "altclip", "florence-community/Florence-2-large")
    for name in (
        "florence-community/Florence-2-large",
        "microsoft/Florence-2-base",
        "florence2-tiny",
        micro_checkpoint,
    ):
        with pytest.raises(InputError, match=altclip):
            load_backbone(str(name), "altclip")
    for name in ("BAAI/AltCLIP", "BAAI/AltCLIP-m9", checkpoint):
        with pytest.raises(InputError, match=florence):
            load_backbone(str(name))
    with pytest.raises(InputError, match=altclip):
        DistortionDetector.from_checkpoint(Experiment(model="altclip", input_size=448))  # the default checkpoint
    make().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=f"the run {tmp_path} is AltCLIP, but model is florence2"):
        DistortionDetector.from_checkpoint(Experiment(checkpoint=str(tmp_path)))


def test_names_that_are_no_checkpoint_are_told_what_to_give():
    assert resolve_checkpoint("BAAI/AltCLIP", "altclip") == "BAAI/AltCLIP"
    with pytest.raises(
        InputError, match="'AltCLIP' is neither a folder nor a hub id; use BAAI/AltCLIP, a folder .*ed$"
    ):
        resolve_checkpoint("AltCLIP", "altclip")


def test_other_kinds_and_missing_weights(checkpoint, tmp_path):
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = load_file(checkpoint / "model.safetensors")
    used = ("vision_model.", "text_model.roberta.embeddings.")
    kept = {name: value for name, value in weights.items() if name.startswith(used) and "post_layer" not in name}
    assert len(kept) < len(weights)
    save_file(kept, damaged / "model.safetensors", metadata={"format": "pt"})
    load_backbone(str(damaged), "altclip")  # what is not used may be absent
    del kept["vision_model.embeddings.class_embedding"]
    save_file(kept, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 weights .*class_embedding"):
        load_backbone(str(damaged), "altclip")
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(InputError, match="is of the kind 'clip'; use a native AltCLIP such as BAAI/AltCLIP"):
        load_backbone(str(damaged), "altclip")


def test_towers_of_different_width_are_refused(tmp_path):
    folder = altclip_sizes.build(tmp_path, PROMPTS, hidden_size=32)
    with pytest.raises(InputError, match="image tokens have width 32 and its text tokens 16"):
        load_backbone(str(folder), "altclip")


# The real geometry


@pytest.mark.slow
def test_real_geometry_trains_one_step_and_predicts_at_448(checkpoint):
    """Random weights, with gradient checkpointing; the recipe's heads and text padding."""
    config = Experiment.from_yaml("notebooks/params/altclip_full.yaml", gradient_checkpointing=True)
    with torch.device("meta"):
        encoder = AltClipEncoder(AltCLIPConfig(**altclip_sizes.REAL))
    encoder.to_empty(device="cpu")
    for parameter in encoder.parameters():
        parameter.data.normal_(0, 0.02)
    encoder.words.token_type_ids.zero_()
    detector = DistortionDetector(config, encoder, AutoTokenizer.from_pretrained(checkpoint))
    recompute_activations(detector, encoder.blocks)
    set_trainable(detector, "main")
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    before = encoder.vision.encoder.layers[0].mlp.fc2.weight[:4, :4].clone()
    heatmap, score = detector.train()(torch.randn(1, 3, 448, 448), **detector.text(["a man"]))
    assert heatmap.shape == (1, 512, 512) and score.shape == (1,)
    (heatmap.square().mean() + score.mean()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    optimizer.step()
    assert not torch.equal(before, encoder.vision.encoder.layers[0].mlp.fc2.weight[:4, :4])
    optimizer.zero_grad(set_to_none=True)
    prediction = detector.predict(np.zeros((60, 80, 3), np.uint8), "a man")
    assert prediction.heatmap.shape == (60, 80) and 0 <= prediction.score <= 1
