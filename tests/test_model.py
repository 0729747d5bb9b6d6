"""The detector: starting points, forward, predict, what trains, saving and loading to the bit."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from example_detectors import PROMPTS, assert_equal_gradients, assert_equal_outputs, batch_for, train_a_little
from PIL import Image
from safetensors.torch import load_file, save_file

from lib import tiny
from lib.config import Experiment
from lib.data.pixels import resize, to_pixels
from lib.errors import InputError
from lib.model.detector import DistortionDetector
from lib.model.lora import set_trainable

# Starting point


def test_heads_depend_on_the_seed_and_nothing_else(make):
    torch.manual_seed(1)
    first = make(seed=3).state_dict()
    torch.manual_seed(2)
    second, other = make(seed=3).state_dict(), make(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name.partition(".")[0] for name in first if not torch.equal(first[name], other[name])} == {
        "mask_head", "score_head",
    }  # fmt: skip


def test_refusals_come_before_training(make):
    for changes, told in [
        ({"mask_stride": 32}, "mask_stride: 32 cannot be reached from the encoder's stride 16; use 16, 8, 4, 2, 1"),
        ({"input_size": 1664}, "input_size 1664 gives .* 50 positions"),
        ({"input_size": 15 * 16}, "input_size: .* room for .* text tokens"),
    ]:
        with pytest.raises(InputError, match=told):
            make(**changes)
    for changes in ({"score_head": "conv"}, {"mask_head": "rahf"}):
        with pytest.raises(InputError, match="was made for a grid of .5, 5. tokens and cannot read .6, 6.; predict"):
            make(input_size=80, **changes).text_for((96, 96))


def test_a_batch_equals_its_images_one_by_one_and_the_prompt_matters(make):
    detector = make()
    batch = batch_for(detector)
    with torch.inference_mode():
        together = detector(**batch)
        for i, prompt in enumerate(PROMPTS):
            alone = detector(batch["pixel_values"][i : i + 1], **detector.text([prompt]))
            other = detector(batch["pixel_values"][i : i + 1], **detector.text(["a tree"]))
            for a, b, c in zip(together, alone, other, strict=True):
                torch.testing.assert_close(a[i : i + 1], b, atol=1e-6, rtol=1e-5)
                assert not torch.equal(b, c)


# What trains


@pytest.mark.parametrize(
    "freeze, unfreeze, main",
    [
        ("", "", lambda name: True),  # the reference's empty text matched everything
        ("vision_tower, mask_head", "", lambda name: "vision_tower" not in name and "mask_head" not in name),
        ("all", "score_head", lambda name: "score_head" in name),
        ("florence2,heatmap_predictor", "", lambda name: name.startswith("score_head.")),  # the reference's names
        ("vision_tower", "vision_tower.convs.3", lambda name: "vision_tower" not in name or "convs.3" in name),
    ],
)
def test_freeze_then_unfreeze(make, freeze, unfreeze, main):
    detector = make(freeze_params=freeze, unfreeze_params=unfreeze)
    every = {name for name, _ in detector.named_parameters()}
    # The warm-up keeps the encoder frozen.
    assert set(set_trainable(detector, "warmup")) == {n for n in every if main(n) and not n.startswith("encoder.")}
    assert set(set_trainable(detector, "main")) == {name for name in every if main(name)}


def test_fragments_that_match_nothing_and_stages_that_train_nothing_are_refused(make):
    detector = make()
    for stage, changes, told in [
        ("main", {"freeze_params": "score_head, vison_tower"}, "freeze_params: vison_tower matches no parameter"),
        ("main", {"unfreeze_params": "vison_tower"}, "unfreeze_params: vison_tower matches no parameter"),
        ("main", {"freeze_params": "all"}, "freeze_params: all leaves nothing to train in the main stage"),
        ("warmup", {"freeze_params": "head"}, "nothing to train in the warmup stage"),
    ]:
        detector.config = dataclasses.replace(detector.config, **{"freeze_params": "", "unfreeze_params": ""} | changes)
        with pytest.raises(InputError, match=told):
            set_trainable(detector, stage)


@pytest.mark.parametrize("model", ["florence2", "altclip"])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_trains_gets_a_gradient_and_checkpointing_changes_none(make, model, rank):
    """A weight without one makes DistributedDataParallel raise."""
    changes, passes = {"lora_rank": rank, "lora_dropout": 0.3}, []
    detectors = [make(model, gradient_checkpointing=again, **changes) for again in (False, True)]
    for detector in detectors:
        set_trainable(detector, "main")
        passes.append(calls := [])
        for block in detector.modules():
            if isinstance(block, detector.encoder.blocks):
                norm = next(part for part in block.modules() if isinstance(part, torch.nn.LayerNorm))
                norm.register_forward_hook(lambda *call, calls=calls: calls.append(1))
    assert_equal_gradients(*detectors)
    assert len(passes[1]) == 2 * len(passes[0]) > 0
    for name, parameter in detectors[0].named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


# Saving and loading


SAVED = [
    {"mask_head": "concat_cls", "score_head": "linear2_cls", "mask_norm": "batch", "gradient_checkpointing": True},
    {"score_head": "conv", "input_size": 80, "mask_stride": 1, "align_corners": True},
    {"mask_head": "rahf", "score_head": "rahf", "input_size": 80},
    {"mask_head": "last", "score_head": "conv_mean", "input_size": 80, "text_padding": "max_length"},
    {"lora_rank": 4, "score_head": "linear_cls", "unfreeze_params": "image_position_embed"},
    {"model": "altclip", "score_head": "linear2"},
    {"model": "altclip", "lora_rank": 2, "unfreeze_params": "words.LayerNorm"},
]


@pytest.mark.parametrize("changes", SAVED)
def test_a_saved_detector_is_the_same_to_the_bit(make, tmp_path, changes):
    detector, lora = train_a_little(make(**changes)), "lora_rank" in changes
    if not lora:
        make(lora_rank=2).save_pretrained(tmp_path / "model")  # to be replaced
    detector.save_pretrained(tmp_path / "model")
    own = {"adapter.safetensors"} if lora else {"backbone", "encoder.safetensors"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == own | {"detector.json", "heads.safetensors"}
    state = torch.get_rng_state()
    restored = DistortionDetector.from_pretrained(tmp_path / "model")
    assert torch.equal(state, torch.get_rng_state())  # loading draws no random numbers
    assert not restored.training and (restored.config, restored.base) == (detector.config, detector.base)
    before, after = detector.state_dict(), restored.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_equal_outputs(detector, restored)
    if not lora:  # empty encoders are filled from the file alone, so everything must be in it
        held = {name for name, _ in [*detector.encoder.named_buffers(), *detector.encoder.named_parameters()]}
        assert held <= set(detector.encoder.state_dict())


def test_saving_that_is_cut_short_leaves_no_model(make, tmp_path, monkeypatch):
    make().save_pretrained(tmp_path)
    monkeypatch.setattr("lib.model.weights.save_file", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot be written .No space left on device.; free some space"):
        make().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds no trained model .*2_train.ipynb"):
        DistortionDetector.from_pretrained(tmp_path)


def with_json(path: Path, change) -> None:
    """Rewrite a JSON file with what `change` makes of its content."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def old(spoil):
    """A damage in a model of an earlier version, which noted no SHA-256."""

    def both(folder: Path) -> None:
        spoil(folder)
        with_json(folder / "detector.json", lambda note: {k: v for k, v in note.items() if k != "sha256"})

    return both


def with_weights(change):
    path = "heads.safetensors"
    return old(lambda folder: save_file(change(load_file(folder / path)), folder / path))


def with_experiment(**changes):
    return lambda folder: with_json(
        folder / "detector.json", lambda note: note | {"experiment": note["experiment"] | changes}
    )


def in_backbone(name: str, change):
    return lambda folder: with_json(folder / "backbone" / name, change)


def cut(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:999])


def without(pattern: str):
    return old(lambda folder: [path.unlink() for path in folder.glob(pattern)])


def fewer_words(config: dict) -> dict:
    return config | {"text_config": config["text_config"] | {"vocab_size": 50}}


HEADS = "heads.safetensors"
NOT_SAVED = " is missing or not what was saved there. Mend it: copy"
WRONG = {
    "torn weights": (cut(HEADS), HEADS + NOT_SAVED),
    "missing old weights": (without("encoder.safetensors"), "encoder.safetensors is not a .*No such file"),
    "tokenizer written anew": (in_backbone("tokenizer.json", lambda tokens: tokens), "tokenizer.json" + NOT_SAVED),
    "float weights called integers": (
        with_weights(lambda w: {k: v.view(torch.int32) if v.is_floating_point() else v for k, v in w.items()}),
        r"mask_head.fuse.0.0.bias is torch.int32",
    ),
    "weights that are not finite": (
        with_weights(lambda w: w | {"mask_head.out.bias": torch.full((1,), math.nan)}),
        "not finite .mask_head.out.bias and 0 more",
    ),
    "a weight for another": (
        with_weights(lambda w: {k.replace("mlp.0.bias", "more"): v for k, v in w.items()}),
        "score_head.mlp.0.bias is not in the file; score_head.more is not in the model",
    ),
    "another mask head": (
        with_experiment(mask_head="last"),
        r"mask_head.fuse.0.0.weight: copying a param with shape .*16, 32, 3, 3.* is .*16, 16, 3, 3",
    ),
    "no tokenizer": (without("backbone/tok*"), "holds no tokenizer"),
    "no pad token": (
        old(in_backbone("tokenizer_config.json", lambda c: {k: v for k, v in c.items() if k != "pad_token"})),
        "its tokenizer has no pad_token",
    ),
    "ids beyond the embedding": (
        old(in_backbone("config.json", fewer_words)), "gives ids up to .* but the encoder has 50 word embeddings"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    detector.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_model_is_one_sentence_before_it_is_used(saved, tmp_path, case):
    folder, (spoil, told) = shutil.copytree(saved, tmp_path / "model"), WRONG[case]
    spoil(folder)
    with pytest.raises(InputError, match=told) as refusal:
        DistortionDetector.from_pretrained(folder)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_training_goes_on_from_a_run(make, experiment, tmp_path):
    run = train_a_little(make())
    run.save_pretrained(tmp_path / "first" / "model")
    again = DistortionDetector.from_checkpoint(experiment(checkpoint=str(tmp_path / "first"), lr=1e-4)).eval()
    assert_equal_outputs(run, again)
    again.requires_grad_(True)
    assert set(set_trainable(again, "main")) == {name for name, _ in again.named_parameters()}
    with pytest.raises(InputError, match="holds weights of another architecture .*mask_head"):
        make(checkpoint=str(tmp_path / "first"), mask_head="last")
    with pytest.raises(InputError, match="backbone is a part of the trained model .*, without weights; give .*/model"):
        make(checkpoint=str(tmp_path / "first/model/backbone"))
    # What was trained on is not needed any more.
    again.save_pretrained(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    assert_equal_outputs(run, DistortionDetector.from_pretrained(tmp_path / "second"))


@pytest.mark.slow
def test_a_compiled_encoder_gives_equal_outputs_and_gradients(experiment, still_checkpoint):
    """By the CPU's inductor where there is a C++ compiler; without dropout, whose numbers are others there."""
    config = experiment(checkpoint=str(still_checkpoint))
    plain, compiled = (DistortionDetector.from_checkpoint(config) for _ in range(2))
    compiled.encoder.compile_towers("inductor" if shutil.which("g++") else "aot_eager")
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert_equal_gradients(compiled, plain)
    assert_equal_outputs(compiled, plain, atol=1e-5)


# Predicting


@pytest.fixture(scope="module")
def detector(micro_checkpoint):
    config = Experiment(checkpoint=str(micro_checkpoint), input_size=32, mask_size=32, mask_stride=8)
    return DistortionDetector.from_checkpoint(config).eval()


def picture(height=40, width=60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_predict_is_the_forward_pass_whatever_the_image_is_given_as(detector, tmp_path):
    image, path = picture(), tmp_path / "ä b.png"
    Image.fromarray(image).save(path)
    batch = {"pixel_values": to_pixels(image, (32, 32))[None], **detector.text(["a man"])}
    with torch.inference_mode():
        heatmap, score = detector(**batch)
    for given in (image, Image.fromarray(image), path, str(path)):
        found = detector.predict(given, "a man")
        assert found.heatmap.shape == (40, 60) and found.heatmap.dtype == np.float32
        np.testing.assert_allclose(found.heatmap, resize(heatmap[0].numpy(), 40, 60), atol=1e-7)
        assert found.score == pytest.approx(score.item()) and found.mos == pytest.approx(1 + 4 * score.item())
    assert detector.predict(image).score != found.score
    assert all(detector.predict(picture(*size)).heatmap.shape == size for size in [(1, 1), (7, 300), (500, 20)])
    for prompt in (["a", "b"], None):
        with pytest.raises(InputError, match="predict needs a prompt as text, not .*; leave it out when unknown"):
            detector.predict(image, prompt)


# Pixels


def test_pixels_are_normalised_with_the_statistics_of_florence2(detector):
    image = np.full((5, 7, 3), (0, 128, 255), np.uint8)
    pixels = to_pixels(image, (4, 4))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 4, 4) and pixels.is_contiguous()
    means, deviations = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    expected = (torch.tensor([0, 128 / 255, 1]) - means) / deviations
    for given in (pixels, pixels / 255):
        torch.testing.assert_close(detector.normalise(given[None]), expected[:, None, None].expand(1, 3, 4, 4))
    assert not {"mean", "std"} & set(detector.state_dict())  # constants of the encoder, not weights of a run


# The small checkpoint's making


def test_the_encoder_of_a_run_goes_back_into_its_checkpoint(make, experiment, micro_checkpoint, tmp_path):
    run = train_a_little(make())
    run.save_pretrained(tmp_path / "run" / "model")
    out = tiny.export_encoder(tmp_path / "run", micro_checkpoint, tmp_path / "out")
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"}
    config = dataclasses.replace(experiment(), checkpoint=str(out))
    exported = DistortionDetector.from_checkpoint(config)
    for name, value in exported.encoder.state_dict().items():
        torch.testing.assert_close(value, run.encoder.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)
