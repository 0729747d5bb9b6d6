"""Checkpoints of the reference as runs: names, merging, refusals, and (slow) its own outputs at full width."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Florence2Config

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate.evaluation import training_facts
from lib.import_reference import import_checkpoint, main, merged, renamed
from lib.model import DistortionDetector
from lib.model.encoders.backbone import SHIPPED
from lib.model.encoders.florence2 import Florence2Encoder

GOLDEN = Path(__file__).parent / "golden" / "reference" / "checkpoint"
KEYS = json.loads(gzip.decompress((GOLDEN / "keys.json.gz").read_bytes()))
VARIANTS = ["full", "lora", "cls", "conv"]
HEADS = {"full": ("concat", "linear"), "cls": ("concat_cls", "linear2_cls"), "conv": ("concat", "conv")}


def on_meta(variant) -> dict[str, torch.Tensor]:
    return {name: torch.empty(entry[1], device="meta") for name, entry in KEYS[variant]["tensors"].items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_of_the_reference_is_one_of_ours(variant, micro_checkpoint):
    mask, score = HEADS.get(variant, HEADS["full"])
    config = Experiment(mask_head=mask, score_head=score, mask_norm="batch")
    with torch.device("meta"):
        encoder = Florence2Encoder(Florence2Config(**KEYS["geometry"]))
        ours = DistortionDetector(config, encoder, AutoTokenizer.from_pretrained(micro_checkpoint)).state_dict()
    found = merged(renamed(on_meta(variant)), 8)
    assert {n: tuple(v.shape) for n, v in found.items()} == {n: tuple(v.shape) for n, v in ours.items()}


@pytest.fixture
def theirs(experiment):
    """theirs(**changes) -> (a small detector with the reference's layers, its weights under the reference's names)."""

    def make(**changes):
        layers = {"mask_norm": "batch", "align_corners": True, "text_padding": "max_length", "mask_stride": 1}
        detector = DistortionDetector.from_checkpoint(experiment(**{**layers, **changes}))
        torch.manual_seed(0)
        for _ in range(2):  # running statistics that are not 0 and 1
            detector.train()(torch.randn(4, 3, 32, 32), **detector.text(["a man"] * 4))
        state, names = detector.eval().state_dict(), KEYS["full"]["tensors"]
        state = {name: state[ours] for name in names for ours in renamed({name: torch.zeros(2, 2)}) if ours in state}
        assert len(state) == len(detector.state_dict())
        state["florence2.model.image_projection"] = state["florence2.model.image_projection"].T
        return detector, state

    return make


def outputs(detector):
    text = detector.text(["a man in a red shirt", "two women"])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return detector.eval()(pixels, **text)


def run_of(state, tmp_path, experiment, **given):
    torch.save({"model": state}, tmp_path / "last.pth")
    config = experiment()
    given = {"checkpoint": config.checkpoint, "runs": config.runs, "input_size": 32, "mask_size": 32} | given
    return import_checkpoint(tmp_path / "last.pth", "theirs", **given)


@pytest.mark.parametrize("mask, score, more", [("last", "linear2", -3), ("concat_cls", "linear_cls", 5)])
def test_an_imported_run_has_equal_outputs(theirs, tmp_path, experiment, mask, score, more):
    """Also when the vocabularies differ in size."""
    detector, state = theirs(mask_head=mask, score_head=score)
    words = state["florence2.encoder.embed_tokens.weight"]
    given = words[:more] if more < 0 else torch.cat([words, torch.ones(more, words.shape[1])])
    state["florence2.encoder.embed_tokens.weight"] = given
    run = run_of(state, tmp_path, experiment)
    found = DistortionDetector.from_pretrained(run)
    assert (found.config.mask_head, found.config.score_head) == (mask, score)
    for a, b in zip(outputs(found), outputs(detector), strict=True):
        assert torch.equal(a, b)
    assert Experiment.from_yaml(run / "config.yaml").experiment_name == "theirs"
    assert len(found.encoder.text_encoder.embed_tokens.weight) == max(len(words), len(given))
    assert training_facts(run)["parameters"] == sum(p.numel() for p in found.parameters())


def test_adapters_are_merged_rank_stabilised(theirs, tmp_path, experiment):
    detector, state = theirs()
    text, tower = "florence2.encoder.layers.0.fc1", "florence2.model.vision_tower.convs.1.proj"
    a, b = torch.randn(4, 16), torch.randn(32, 4)
    kernel, out = torch.randn(4, 8, 3, 3), torch.randn(8, 4, 1, 1)
    lora = {}
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        base = f"{layer}.base_layer.{part}" if layer in (text, tower) else name
        lora[base.replace("florence2.", "florence2.base_model.model.")] = value
    for layer, first, second in ((text, a, b), (tower, kernel, out)):
        layer = layer.replace("florence2.", "florence2.base_model.model.")
        lora |= {f"{layer}.lora_A.default.weight": first, f"{layer}.lora_B.default.weight": second}
    found = DistortionDetector.from_pretrained(run_of(lora, tmp_path, experiment)).state_dict()
    expected = detector.state_dict()["encoder.text_encoder.layers.0.fc1.weight"] + 8 / 4**0.5 * b @ a
    torch.testing.assert_close(found["encoder.text_encoder.layers.0.fc1.weight"], expected)
    expected = torch.einsum("or,rikl->oikl", out[:, :, 0, 0], kernel) * 8 / 2
    expected += detector.state_dict()["encoder.vision_tower.convs.1.conv.weight"]
    torch.testing.assert_close(found["encoder.vision_tower.convs.1.conv.weight"], expected)


class Foreign:
    """What a restricted unpickler must not make."""


def test_files_and_parameters_that_do_not_fit_are_one_sentence(theirs, tmp_path, experiment, capsys):
    _, state = theirs()
    without = {name: value for name, value in state.items() if "fc_layers.6" not in name}
    cases = [
        (Foreign(), {}, "cannot be read as a checkpoint"),
        ({"epoch": 3}, {}, "holds no .*tensors by name"),
        ({"model": {"x": torch.zeros(1)}}, {}, "lacks 'heatmap_predictor.conv_layers.0.weight'"),
        ({"model": without}, {}, "lacks 'score_predictor.fc_layers.6.weight'"),
        ({"model": {**state, "optimizer.x": torch.zeros(1)}}, {}, "optimizer.x is not in the model"),
        ({"model": state}, {"mask_head": "last"}, "weights of another architecture .*mask_head.fuse"),
        ({"model": state}, {"score_had": "conv"}, "'score_had' is no parameter"),
        ({"model": state}, {"checkpoint": "nowhere"}, "neither a folder nor a hub id"),
    ]
    file, config = tmp_path / "last.pth", experiment()
    usual = {"checkpoint": config.checkpoint, "runs": config.runs, "input_size": 32, "mask_size": 32}
    for content, given, told in cases:
        torch.save(content, file)
        with pytest.raises(InputError, match=told) as refusal:
            import_checkpoint(file, "theirs", **{**usual, **given})
        assert "\n" not in str(refusal.value) and not config.folder.with_name("theirs").exists()
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="LFS"):
        import_checkpoint(file, "theirs", **usual)
    torch.save({"model": state}, file)
    arguments = [str(file), "theirs", *(f"{name}={value}" for name, value in usual.items())]
    assert main(arguments) == 0 and main(arguments) == 2
    assert "theirs exists; delete it or give another RUN" in capsys.readouterr().err
    assert main(["nothing.pth", "theirs"]) == 2 and "No such file" in capsys.readouterr().err


# The reference's own outputs


def noise(name, shape, seed) -> np.ndarray:
    digest = hashlib.sha256(name.encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little") ^ seed))
    return generator.standard_normal(shape, dtype=np.float32)


def values(name, entry, seed) -> torch.Tensor:
    """A tensor of the golden checkpoints, which follow from their names."""
    kind, shape, scale, offset, positive = entry
    if kind == "counter":
        return torch.full(shape, int(offset), dtype=torch.int64)
    if kind == "sinusoid":
        angle = np.arange(shape[0])[:, None] / 10000 ** (np.arange(0, shape[1], 2) / shape[1])
        return torch.from_numpy(np.stack([np.sin(angle), np.cos(angle)], 2).reshape(shape).astype(np.float32))
    x = noise(name, shape, seed)
    return torch.from_numpy((np.abs(x) if positive else x) * np.float32(scale) + np.float32(offset))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_the_reference_s(variant, tmp_path):
    """Scores and every 64th row and column of the heatmaps, as the reference's own modules computed them."""
    golden, base = KEYS[variant], tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "florence2", **KEYS["geometry"]}))
    for path in (SHIPPED / "florence2-tiny").glob("tok*"):
        shutil.copy(path, base)
    state = {name: values(name, entry, golden["case_seed"]) for name, entry in golden["tensors"].items()}
    torch.save({"model": state}, tmp_path / "last.pth")
    del state
    run = import_checkpoint(tmp_path / "last.pth", "theirs", checkpoint=str(base), runs=str(tmp_path / "runs"))
    detector = DistortionDetector.from_pretrained(run)
    pixels = np.zeros((2, 3, 768, 768), np.float32)
    for part in golden["pixel_values"]:
        scaled = noise(part["name"], part["shape"], golden["case_seed"]) * np.float32(part["scale"])
        pixels += scaled.repeat(part["repeat"], 2).repeat(part["repeat"], 3)
    ids = torch.full((2, 1024), 1)
    for row, given in zip(ids, golden["input_ids"], strict=True):
        row[: len(given)] = torch.tensor(given)
    with torch.inference_mode():
        features = detector.fusion(detector.encoder(torch.from_numpy(pixels), ids, torch.ones_like(ids)))
        heatmap, score = detector.mask_head(features, (768, 768)), detector.score_head(features)
    expected = np.load(GOLDEN / f"{variant}.npz")
    np.testing.assert_allclose(score, expected["score"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(heatmap[:, ::64, ::64], expected["heatmap"], rtol=0, atol=2e-5)
