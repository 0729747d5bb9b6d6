"""LoRA: what it wraps, what trains, what is saved, merging, going on from it, sizes on the real geometry."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from example_detectors import assert_equal_gradients, assert_equal_outputs, outputs, train_a_little
from florence2_sizes import BASE
from safetensors.torch import load_file, save_file
from transformers import Florence2Config

from lib.config import Experiment
from lib.errors import InputError
from lib.model import lora
from lib.model.detector import DistortionDetector
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.lora import set_trainable, with_lora
from lib.model.weights import digest
from lib.predict.prediction import predict
from lib.stores import LabelStore

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(experiment):
    """make(**changes) -> an untrained LoRA detector in evaluation mode."""
    return lambda **changes: DistortionDetector.from_checkpoint(experiment(**{"lora_rank": 4} | changes)).eval()


def test_adapters_sit_on_every_target_and_a_target_that_matches_nothing_is_an_error(make):
    """The recipe adapts what the reference does; three entries of the reference's list match nothing."""
    recipe = Experiment.from_yaml(ROOT / "notebooks" / "params" / "florence2_lora.yaml").lora_targets.split(",")
    for targets, chosen in ((Florence2Encoder.lora_targets, ""), (recipe, ",".join(recipe))):
        names = [name for name, _ in make(lora_targets=chosen).named_parameters() if "lora_A" in name]
        assert {name.rsplit(".lora_A", 1)[0].split(".")[-1] for name in names} == set(targets)
        assert not any("mask_head" in name or "score_head" in name for name in names)
    with pytest.raises(InputError, match="lora_targets: Conv2d, linear, o_proj match no layer .* are qkv, proj"):
        make(lora_targets="qkv, o_proj, linear, Conv2d")


def test_adapters_that_are_computed_anew_are_those_of_peft(make, monkeypatch):
    ours = make(lora_dropout=0.5)
    monkeypatch.setattr(lora, "_keep_input_only", lambda layer: None)
    theirs = make(lora_dropout=0.5)
    assert_equal_outputs(ours, theirs)
    for detector in (ours, theirs):
        set_trainable(detector, "main")
    assert_equal_gradients(ours, theirs)


def test_merging_keeps_the_outputs_and_training_goes_on_from_any_run(make, experiment, tmp_path):
    train_a_little(DistortionDetector.from_checkpoint(experiment())).save_pretrained(tmp_path / "full")
    for name, below in (("first", "full"), ("second", "first")):
        trained = train_a_little(make(lora_dropout=0.5, checkpoint=str(tmp_path / below)))
        trained.save_pretrained(tmp_path / name)
        assert_equal_outputs(trained, DistortionDetector.from_pretrained(tmp_path / name))
    expected, merged = outputs(trained), trained.merged()
    assert merged.config.lora_rank == 0
    assert not any("lora_" in name or "base_layer" in name for name in merged.state_dict())
    for a, b in zip(outputs(merged), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    merged.save_pretrained(tmp_path / "plain")
    assert_equal_outputs(merged, DistortionDetector.from_pretrained(tmp_path / "plain"))


def test_predicting_merges_the_adapters_and_leaves_the_model_as_it_was(make, prepared, tmp_path, monkeypatch):
    """A prediction takes no adapter's operations; what trains on or is saved afterwards is the same to the bit."""
    detector, store = train_a_little(make(lora_dropout=0.5)), LabelStore(prepared / "val")
    adapters = [module for name, module in detector.named_modules() if name.endswith("lora_A.default")]
    calls = []
    for module in adapters:
        module.register_forward_hook(lambda *_: calls.append(1))
    state, modes = digest(detector.state_dict()), [module.training for module in detector.modules()]
    merged = predict(detector, store, tmp_path / "merged")
    assert adapters and not calls
    assert digest(detector.state_dict()) == state and [module.training for module in detector.modules()] == modes
    monkeypatch.setattr(DistortionDetector, "merged", lambda detector: detector)
    unmerged = predict(detector, store, tmp_path / "unmerged")
    assert calls
    for id in store.ids:
        np.testing.assert_allclose(merged.heatmap(id).astype(int), unmerged.heatmap(id), atol=1)  # of 255
    np.testing.assert_allclose(merged.table["score"], unmerged.table["score"], atol=1e-5)


def test_adapters_on_another_base_are_refused_and_a_moved_base_is_found(make, micro_checkpoint, tmp_path):
    base, note = shutil.copytree(micro_checkpoint, tmp_path / "base"), tmp_path / "model" / "detector.json"
    detector = train_a_little(make(checkpoint=str(base)))
    detector.save_pretrained(tmp_path / "model")
    moved = base.rename(tmp_path / "moved")
    told = f"need the base that detector.json there names as checkpoint: checkpoint: '{base}' is neither .* new place"
    with pytest.raises(InputError, match=told):
        DistortionDetector.from_pretrained(tmp_path / "model")
    found = DistortionDetector.from_pretrained(tmp_path / "model", checkpoint=str(moved))
    assert found.base == detector.base and len(found.base["sha256"]) == 64
    assert_equal_outputs(found, detector)
    content = json.loads(note.read_text())
    content["experiment"]["checkpoint"] = str(moved)
    note.write_text(json.dumps(content))
    weights = moved / "model.safetensors"
    save_file({name: value * 1.5 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    told = f"model holds adapters of other weights than checkpoint: {moved} has now; restore"
    for older in (False, True):  # earlier versions noted 16 digits as `base`
        if older:
            note.write_text(json.dumps({"experiment": content["experiment"], "base": detector.base["sha256"][:16]}))
        with pytest.raises(InputError, match=told):
            DistortionDetector.from_pretrained(tmp_path / "model")
    note.write_text(json.dumps({"experiment": content["experiment"]}))  # or nothing
    DistortionDetector.from_pretrained(tmp_path / "model")


def test_a_rank_8_adapter_is_below_two_percent_of_florence_2_base():
    """Counted on the real geometry without memory for its weights; all weights have four bytes."""
    with torch.device("meta"):
        encoder = Florence2Encoder(Florence2Config(**BASE))
        base = sum(value.numel() for value in encoder.state_dict().values())
        wrapped = with_lora(encoder, Experiment(lora_rank=8))
    adapter = sum(value.numel() for name, value in wrapped.state_dict().items() if "lora_" in name)
    assert 0.005 < adapter / base < 0.02
