"""The detector: starting points, forward, predict, what trains, saving and loading to the bit."""

import dataclasses
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from florence2_sizes import BASE, LARGE
from PIL import Image
from transformers import Florence2Config

from lib import tiny
from lib.config import Experiment
from lib.data.pixels import resize, to_pixels
from lib.errors import InputError
from lib.model.detector import DistortionDetector, Prediction, load_weights, own_weights, set_trainable
from lib.model.encoders.encoder import recompute_activations
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.losses import mask_loss, score_loss

PROMPTS = ["a man in a red shirt", "two women"]


@pytest.fixture
def make(experiment):
    """make(**changes) -> an untrained detector in evaluation mode."""
    return lambda **changes: DistortionDetector.from_checkpoint(experiment(**changes)).eval()


def batch_for(detector, images=2, seed=0) -> dict:
    side = detector.config.input_size
    pixels = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, **detector.text(PROMPTS * (images // 2))}


def outputs(detector, seed=0) -> list[np.ndarray]:
    with torch.inference_mode():
        return [out.numpy() for out in detector.eval()(**batch_for(detector, seed=seed))]


def stir(detector) -> DistortionDetector:
    """Change everything a training changes: weights that train, running statistics."""
    set_trainable(detector, "main")
    torch.manual_seed(5)
    detector.train()
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
        for seed in range(3):
            detector(**batch_for(detector, images=4, seed=seed))
    return detector.eval()


def assert_equal_outputs(a, b, **tolerance):
    for one, other in zip(outputs(a), outputs(b), strict=True):
        if tolerance:
            np.testing.assert_allclose(one, other, **tolerance)
        else:
            assert np.array_equal(one, other)


# Starting point


def test_heads_depend_on_the_seed_and_nothing_else(make):
    torch.manual_seed(1)
    first = make(seed=3).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = make(seed=3).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    other = make(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) for name in first if name.startswith("encoder."))


@pytest.mark.parametrize("mask_head", ["concat", "last", "concat_cls"])
@pytest.mark.parametrize("score_head", ["linear", "linear2", "conv", "linear_cls", "linear2_cls"])
def test_every_pair_of_heads_runs_in_the_whole_model(make, mask_head, score_head):
    detector = make(mask_head=mask_head, score_head=score_head, input_size=80, mask_size=48, mask_stride=4)
    heatmap, score = outputs(detector)
    assert heatmap.shape == (2, 48, 48) and score.shape == (2,)
    for out in (heatmap, score):
        assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


def test_only_the_first_rows_reach_the_heads(make):
    detector = make()
    batch = batch_for(detector)
    with torch.inference_mode():
        whole, part, none = detector(**batch), detector(**batch, rows=1), detector(**batch, rows=0)
    for a, b, c in zip(whole, part, none, strict=True):
        torch.testing.assert_close(b, a[:1], rtol=1e-5, atol=1e-6)
        assert c.shape == (0, *a.shape[1:])


def test_refusals_come_before_training(make):
    with pytest.raises(InputError, match="score_head: conv needs a grid of at least 5x5 tokens, not 2x2"):
        make(score_head="conv")
    with pytest.raises(InputError, match="mask_stride: 32 cannot be reached"):
        make(mask_stride=32)
    with pytest.raises(InputError, match="input_size 1664 gives .* 50 positions"):
        make(input_size=1664)
    with pytest.raises(InputError, match="input_size: .* room for .* text tokens"):
        make(input_size=15 * 16)


def test_a_batch_equals_its_images_one_by_one(make):
    detector = make()
    batch = batch_for(detector)
    with torch.inference_mode():
        together = detector(**batch)
        for i, prompt in enumerate(PROMPTS):
            alone = detector(batch["pixel_values"][i : i + 1], **detector.text([prompt]))
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i : i + 1], b, atol=1e-6, rtol=1e-5)


def test_the_prompt_matters(make):
    detector = make()
    pixels = batch_for(detector)["pixel_values"]
    with torch.inference_mode():
        one, other = detector(pixels, **detector.text(["a man"] * 2)), detector(pixels, **detector.text(["a tree"] * 2))
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


# What trains


def named(detector, stage):
    return set(set_trainable(detector, stage))


def test_stages_of_full_fine_tuning(make):
    detector = make()
    every = {name for name, _ in detector.named_parameters()}
    assert named(detector, "main") == every
    assert named(detector, "warmup") == {name for name in every if not name.startswith("encoder.")}
    assert all(p.requires_grad == (not name.startswith("encoder.")) for name, p in detector.named_parameters())


@pytest.mark.parametrize(
    "freeze, unfreeze, main",
    [
        ("", "", lambda name: True),  # the reference's empty text matched everything
        ("encoder.", "", lambda name: not name.startswith("encoder.")),
        ("vision_tower, mask_head", "", lambda name: "vision_tower" not in name and "mask_head" not in name),
        ("all", "score_head", lambda name: "score_head" in name),
        ("all", "all", lambda name: True),
        ("vision_tower", "vision_tower.convs.3", lambda name: "vision_tower" not in name or "convs.3" in name),
    ],
)
def test_freeze_then_unfreeze(make, freeze, unfreeze, main):
    detector = make(freeze_params=freeze, unfreeze_params=unfreeze)
    every = {name for name, _ in detector.named_parameters()}
    assert named(detector, "main") == {name for name in every if main(name)}
    heads = {name for name in every if main(name) and not name.startswith("encoder.")}
    if heads:
        assert named(detector, "warmup") == heads


def test_fragments_that_match_nothing_are_refused(make):
    for key in ("freeze_params", "unfreeze_params"):
        with pytest.raises(InputError, match=f"{key}: vison_tower matches no parameter"):
            set_trainable(make(**{key: "score_head, vison_tower"}), "main")
    with pytest.raises(InputError, match="freeze_params: all leaves nothing to train in the main stage"):
        set_trainable(make(freeze_params="all"), "main")
    with pytest.raises(InputError, match="nothing to train in the warmup stage"):
        set_trainable(make(freeze_params="head"), "warmup")


def test_what_is_frozen_does_not_move(make):
    detector = make(freeze_params="vision_tower, score_head")
    set_trainable(detector, "main")
    heatmap, _ = detector.train()(**batch_for(detector))
    heatmap.sum().backward()
    for name, parameter in detector.named_parameters():
        if "vision_tower" in name or "score_head" in name:
            assert parameter.grad is None, name
    assert detector.mask_head.out.weight.grad.abs().sum() > 0
    assert detector.encoder.multi_modal_projector.image_projection.weight.grad.abs().sum() > 0


# Saving and loading


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_head": "concat", "score_head": "linear"},
        {"mask_head": "concat", "score_head": "linear2", "mask_stride": 16},
        {"mask_head": "last", "score_head": "linear_cls", "text_padding": "max_length"},
        {"mask_head": "concat_cls", "score_head": "linear2_cls", "gradient_checkpointing": True},
        {"mask_head": "last", "score_head": "conv", "input_size": 80, "mask_stride": 1},
    ],
)
def test_a_saved_detector_is_the_same_to_the_bit(make, tmp_path, changes):
    detector = stir(make(**changes))
    detector.save_pretrained(tmp_path / "model")
    restored = DistortionDetector.from_pretrained(tmp_path / "model")
    assert not restored.training and restored.config == detector.config
    before, after = detector.state_dict(), restored.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any("running_var" in name and not torch.all(before[name] == 1) for name in before)
    assert_equal_outputs(detector, restored)
    assert_equal_outputs(detector, DistortionDetector.from_pretrained(tmp_path))  # the run's folder does as well
    assert not list((tmp_path / "model").glob("*.part"))


def test_no_buffer_is_outside_the_saved_weights(make):
    """Empty encoders are filled from the file alone, so everything must be in it."""
    detector = make()
    held = set(detector.encoder.state_dict())
    assert {name for name, _ in detector.encoder.named_buffers()} <= held
    assert {name for name, _ in detector.encoder.named_parameters()} <= held


def test_loading_draws_no_random_numbers(make, tmp_path):
    make().save_pretrained(tmp_path)
    state = torch.get_rng_state()
    DistortionDetector.from_pretrained(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_saving_replaces_what_was_there(make, tmp_path):
    make(lora_rank=2).save_pretrained(tmp_path)
    assert (tmp_path / "adapter.safetensors").is_file()
    full = stir(make())
    full.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "backbone", "detector.json", "encoder.safetensors", "heads.safetensors",
    ]  # fmt: skip
    assert_equal_outputs(full, DistortionDetector.from_pretrained(tmp_path))


def test_a_save_cut_short_is_no_model(make, tmp_path, monkeypatch):
    detector = make()
    detector.save_pretrained(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.model.weights.save_file", fail)
    with pytest.raises(InputError, match="cannot be written .No space left on device.; free some space"):
        detector.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds no trained model"):
        DistortionDetector.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["heads.safetensors", "encoder.safetensors", "backbone/config.json", "backbone/tokenizer.json"]
)
def test_missing_and_torn_files_are_told(make, tmp_path, name):
    make().save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        InputError, match=re.escape(str(path if path.suffix == ".safetensors" else path.parent))
    ) as torn:
        DistortionDetector.from_pretrained(tmp_path)
    path.unlink()
    if name.endswith("tokenizer.json"):
        (tmp_path / "backbone/tokenizer_config.json").unlink()
    with pytest.raises(InputError) as missing:
        DistortionDetector.from_pretrained(tmp_path)
    for refusal in (torn, missing):
        assert len(str(refusal.value)) < 600 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"experiment": 3}', '{"experiment": {"epoch": "many"}}', ""])
def test_a_damaged_description_is_told(make, tmp_path, content):
    make().save_pretrained(tmp_path)
    (tmp_path / "detector.json").write_text(content)
    with pytest.raises(InputError, match="detector.json"):
        DistortionDetector.from_pretrained(tmp_path)


def test_no_model_at_all(tmp_path):
    with pytest.raises(InputError, match="holds no trained model .*2_train.ipynb"):
        DistortionDetector.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"mask_head": "last"},
            r"mask_head.fuse.0.0.weight: \[16, 32, 3, 3\] in the file, \[16, 16, 3, 3\] in the model",
        ),
        ({"score_head": "linear_cls"}, "score_head.mlp.6.weight"),
        ({"mask_stride": 2}, "mask_head.up.1.* is not in the file|mask_head.out.weight"),
    ],
)
def test_weights_of_another_architecture_are_refused(make, tmp_path, changes, told):
    make().save_pretrained(tmp_path)
    note = json.loads((tmp_path / "detector.json").read_text())
    note["experiment"] |= changes
    (tmp_path / "detector.json").write_text(json.dumps(note))
    with pytest.raises(InputError, match=told):
        DistortionDetector.from_pretrained(tmp_path)


def test_load_weights_is_strict(make):
    detector = make()
    weights = detector.state_dict()
    name = "score_head.mlp.0.weight"
    with pytest.raises(InputError, match=f"run holds .*{name} is not in the file"):
        load_weights(detector, {k: v for k, v in weights.items() if k != name}, "run")
    with pytest.raises(InputError, match="more.weight is not in the model"):
        load_weights(detector, {**weights, "more.weight": torch.zeros(1)}, "run")
    with pytest.raises(InputError, match=rf"{name}: \[1\] in the file"):
        load_weights(detector, {**weights, name: torch.zeros(1)}, "run")
    load_weights(detector, weights, "run")
    assert own_weights(detector).keys() == weights.keys()


def test_training_goes_on_from_a_run(make, experiment, tmp_path):
    run = stir(make())
    run.save_pretrained(tmp_path / "first" / "model")
    again = DistortionDetector.from_checkpoint(experiment(checkpoint=str(tmp_path / "first"), lr=1e-4)).eval()
    assert_equal_outputs(run, again)
    assert set(set_trainable(again, "main")) == {name for name, _ in again.named_parameters()}
    with pytest.raises(InputError, match="holds weights of another architecture .*mask_head"):
        DistortionDetector.from_checkpoint(experiment(checkpoint=str(tmp_path / "first"), mask_head="last"))
    # What was trained on is not needed any more.
    again.save_pretrained(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    assert_equal_outputs(run, DistortionDetector.from_pretrained(tmp_path / "second"))


def test_gradient_checkpointing_in_the_whole_model(make):
    found = []
    for checkpointing in (False, True):
        detector = make(gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        heatmap, score = detector.train()(**batch_for(detector, images=4))
        (heatmap.mean() + score.mean()).backward()
        found.append({name: p.grad for name, p in detector.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], msg=name)


# Predicting


@pytest.fixture(scope="module")
def detector(micro_checkpoint):
    config = Experiment(checkpoint=str(micro_checkpoint), input_size=32, mask_size=32, mask_stride=8)
    return DistortionDetector.from_checkpoint(config).eval()


def picture(height=40, width=60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_predict_from_path_array_and_pil(detector, tmp_path):
    image = picture()
    path = tmp_path / "ä b.png"
    Image.fromarray(image).save(path)
    predictions = [detector.predict(given, "a man") for given in (image, Image.fromarray(image), path, str(path))]
    for prediction in predictions:
        assert prediction.heatmap.shape == (40, 60) and prediction.heatmap.dtype == np.float32
        assert np.array_equal(prediction.heatmap, predictions[0].heatmap) and prediction.score == predictions[0].score
    assert predictions[0].heatmap.min() >= 0 and predictions[0].heatmap.max() <= 1
    assert detector.predict(image).score != predictions[0].score


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (32, 32), (500, 20)])
def test_heatmaps_have_the_image_s_size(detector, size):
    assert detector.predict(picture(*size), "x").heatmap.shape == size


def test_predict_is_the_forward_pass(detector):
    image = picture()
    batch = {"pixel_values": to_pixels(image, (32, 32), "florence2")[None], **detector.text(["a man"])}
    with torch.inference_mode():
        heatmap, score = detector(**batch)
    found = detector.predict(image, "a man")
    np.testing.assert_allclose(found.heatmap, resize(heatmap[0].numpy(), 40, 60), atol=1e-7)
    assert found.score == pytest.approx(score.item())
    assert found.mos == pytest.approx(1 + 4 * score.item())


def test_predict_does_not_train(detector):
    detector.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    assert detector.predict(picture()).score == detector.predict(picture()).score
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), Image.new("L", (4, 4)),
     np.zeros((0, 4, 3), np.uint8), Image.new("RGBA", (4, 4)), None, [1, 2], torch.zeros(3, 4, 4)],
)  # fmt: skip
def test_what_is_no_rgb_image_is_refused(detector, image):
    with pytest.raises(
        InputError, match=r"predict needs a path or a uint8 RGB image \[H, W, 3\], not .*; convert it first"
    ):
        detector.predict(image)


def test_other_wrong_inputs(detector, tmp_path):
    with pytest.raises(InputError, match="none.png does not exist"):
        detector.predict(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="text.png is not an image"):
        detector.predict(str(tmp_path / "text.png"))
    with pytest.raises(InputError, match="predict needs one prompt as text, not list"):
        detector.predict(picture(), ["a", "b"])
    with pytest.raises(InputError, match="not NoneType; leave it out"):
        detector.predict(picture(), None)


def test_prediction_on_the_annotators_scale():
    assert [Prediction(np.zeros((1, 1)), score).mos for score in (0.0, 0.25, 1.0)] == [1, 2, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_pretrained_on_a_device(make, tmp_path):
    make().save_pretrained(tmp_path)
    detector = DistortionDetector.from_pretrained(tmp_path, "cuda")
    assert detector.device.type == "cuda"
    assert detector.predict(picture()).heatmap.shape == (40, 60)


def test_from_pretrained_device_is_passed_on(make, tmp_path):
    make().save_pretrained(tmp_path)
    assert DistortionDetector.from_pretrained(tmp_path, torch.device("meta")).device.type == "meta"


# Pixels


def test_pixels_are_normalised_with_the_statistics_of_florence2():
    image = np.full((5, 7, 3), (0, 128, 255), np.uint8)
    pixels = to_pixels(image, (4, 4), "florence2")
    expected = (torch.tensor([0, 128 / 255, 1]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(pixels, expected[:, None, None].expand(3, 4, 4))
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()


def test_pixels_keep_places_and_channels():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4, 0] = 255  # red, top left
    pixels = to_pixels(image, (4, 4), "florence2")
    assert (pixels[0, :2, :2] > pixels[0, 2:, 2:].max()).all()
    assert pixels[1].max() == pixels[1].min()


@pytest.mark.parametrize("size", [(64, 64), (64, 20), (20, 64)])
def test_stripes_are_averaged_not_aliased(size):
    stripes = np.zeros((*size, 3), np.uint8)
    axis = 0 if size[0] >= size[1] else 1
    index = [slice(None), slice(None)]
    index[axis] = slice(None, None, 2)
    stripes[tuple(index)] = 254
    small = resize(stripes, 32, 32, grow=cv2.INTER_CUBIC)
    assert small.shape == (32, 32, 3) and np.ptp(small) <= 1 and abs(int(small[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize(
    "size, target", [((30, 50), (20, 20)), ((10, 50), (20, 20)), ((10, 12), (40, 60)), ((9, 9), (9, 9))]
)
def test_resized_heatmaps_keep_their_mass(size, target):
    heatmap = np.zeros(size, np.float32)
    heatmap[2:6, 3:9] = 255
    resized = resize(heatmap, *target)
    assert resized.shape == target and resized.min() >= 0 and resized.max() <= 255
    assert resized.mean() == pytest.approx(heatmap.mean(), rel=0.03)


# Real geometries


@pytest.mark.slow
@pytest.mark.parametrize("geometry, size", [(BASE, 768), (LARGE, 768)], ids=["base", "large"])
def test_real_geometries_train_one_step_and_predict_at_768(geometry, size, micro_checkpoint):
    """Random weights. Measured at the peak: 4.2 GB for base, 8.5 GB for large, with gradient checkpointing."""
    config = Experiment(input_size=size, mask_size=size, gradient_checkpointing=True, mask_stride=1)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(micro_checkpoint)
    with torch.device("meta"):
        encoder = Florence2Encoder(
            Florence2Config(vision_config=geometry["vision_config"], text_config=geometry["text_config"])
        )
    encoder.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    for buffer in encoder.buffers():
        buffer.zero_()
    detector = DistortionDetector(config, encoder, tokenizer)
    recompute_activations(detector, encoder.blocks)
    set_trainable(detector, "main")
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    batch = {"pixel_values": torch.randn(1, 3, size, size), **detector.text(["a man"])}
    before = detector.encoder.text_encoder.layers[-1].fc2.weight[:4, :4].clone()
    heatmap, score = detector.train()(**batch)
    assert heatmap.shape == (1, size, size) and score.shape == (1,)
    loss = mask_loss("dice-mse")(heatmap, torch.rand(1, size, size)).sum() + score_loss("mse")(
        score, torch.tensor([0.5])
    )
    loss.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert not torch.equal(before, detector.encoder.text_encoder.layers[-1].fc2.weight[:4, :4])
    prediction = detector.predict(picture(600, 800), "a man")
    assert (
        prediction.heatmap.shape == (600, 800) and np.isfinite(prediction.heatmap).all() and 0 <= prediction.score <= 1
    )


# The small checkpoint's making


def test_tiny_geometry_fits_its_own_recipe(tmp_path):
    folder = tiny.build(tmp_path / "tiny", ["a man in a red shirt"] * 3)
    again = tiny.build(tmp_path / "again", ["a man in a red shirt"] * 3)
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    config = Experiment(checkpoint=str(folder), input_size=128, mask_size=128, mask_stride=8)
    detector = DistortionDetector.from_checkpoint(config)
    assert detector.encoder.grid(128, 128) == (8, 8) and detector.encoder.width == 128
    with torch.inference_mode():
        assert detector.predict(picture(), "a man").heatmap.shape == (40, 60)


def test_the_encoder_of_a_run_goes_back_into_its_checkpoint(make, experiment, micro_checkpoint, tmp_path):
    run = stir(make())
    run.save_pretrained(tmp_path / "run" / "model")
    out = tiny.export_encoder(tmp_path / "run", micro_checkpoint, tmp_path / "out")
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"}
    config = dataclasses.replace(experiment(), checkpoint=str(out))
    exported = DistortionDetector.from_checkpoint(config)
    for name, value in exported.encoder.state_dict().items():
        torch.testing.assert_close(value, run.encoder.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)
