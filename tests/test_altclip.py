"""AltCLIP as a second model: features, fusion, LoRA, a whole run, refusals, the real geometry."""

import json
from pathlib import Path

import altclip_sizes
import pytest
import torch
from example_detectors import PROMPTS, batch_for
from transformers import AltCLIPConfig, AltCLIPModel

from lib.config import Experiment
from lib.errors import InputError
from lib.model.detector import DistortionDetector
from lib.model.encoders.altclip import AltClipEncoder, FusionLayer
from lib.model.encoders.backbone import load_backbone
from lib.model.encoders.text import TextEncoder
from lib.predict.prediction import predict
from lib.stores import LabelStore
from lib.train import train

GOLDEN = Path(__file__).parent / "golden" / "reference"


# Encoder


def test_tokens_are_those_of_the_native_model(altclip_checkpoint):
    encoder, tokenizer = load_backbone(str(altclip_checkpoint), "altclip")
    native = AltCLIPModel.from_pretrained(altclip_checkpoint).eval()
    text = TextEncoder(tokenizer, 64, template=encoder.template)(PROMPTS)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        tokens, wide = encoder.eval()(pixels, **text), encoder(torch.zeros(2, 3, 28, 56), **text)
        torch.testing.assert_close(tokens.image, native.vision_model(pixels).last_hidden_state)
        words = native.text_model.roberta.embeddings(input_ids=text["input_ids"])
    torch.testing.assert_close(tokens.text, words)
    assert tokens.grid == (2, 2) and tokens.image.shape == (2, 5, 16)
    assert tokenizer.decode(text["input_ids"][1], skip_special_tokens=True) == "human artifact two women"
    # Another size interpolates the table of positions.
    assert wide.grid == (2, 4) == encoder.grid(28, 56) and wide.image.shape == (2, 9, 16)


def test_sizes_of_the_real_model():
    with torch.device("meta"):
        real = AltClipEncoder(AltCLIPConfig(**altclip_sizes.REAL))
    assert (real.width, real.stride, real.grid(448, 448)) == (1024, 14, (32, 32))  # as the baseline has it
    assert real.max_text_tokens(448, 448) == 512
    told = "^input_size 448 with input_width 450 cannot be cut .* patches of 14 pixels; use multiples of 14, such as "
    with pytest.raises(InputError, match=told):
        real.grid(448, 450)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in real.named_children()}
    # ViT-L/14 has 303,179,776 weights, of which 2,048 are the last norm's; words, positions, one type, norm.
    assert sizes == {"vision": 303_179_776 - 2048, "words": (250_002 + 514 + 1 + 2) * 1024}
    baseline = json.loads((GOLDEN / "altclip.json").read_text())["fusion"]
    with torch.device("meta"):
        ours, theirs = real.fusion("multihead"), real.fusion("rahf")
    # Heads, and biases of four projections in six layers.
    for fusion, heads, biases in ((ours, 16, 4 * 6 * 1024), (theirs, baseline["heads"], 0)):
        assert {layer.attention.num_heads for layer in fusion.layers} == {heads}
        assert sum(p.numel() for p in fusion.parameters()) == baseline["parameters"] + biases


# Fusion


def test_a_layer_of_the_baseline_is_the_published_one():
    """One head over the whole width without biases; what was normed goes on (altclip.json of the golden data)."""
    torch.manual_seed(0)
    layer, x = FusionLayer(16, "rahf"), 5 + 3 * torch.randn(2, 7, 16)
    q, k, v = layer.attention.in_proj_weight.chunk(3)
    y = torch.nn.functional.layer_norm(x, (16,))
    attention = (y @ q.T @ (y @ k.T).transpose(1, 2) / 16**0.5).softmax(-1) @ (y @ v.T)
    y = torch.nn.functional.layer_norm(y + attention @ layer.attention.out_proj.weight.T, (16,))
    torch.testing.assert_close(layer(x, torch.zeros(2, 7, dtype=torch.bool)), y + layer.feed_forward(y))


def test_padding_is_attended_to_only_when_the_reference_s_way_is_asked_for(make):
    for padding, alone in (("longest", True), ("max_length", False)):
        detector = make("altclip", text_padding=padding)
        batch = batch_for(detector)
        with torch.no_grad():
            together, other = detector(**batch), detector(batch["pixel_values"], **detector.text(["a tree"] * 2))
            row = detector.tokenizer(["human artifact two women"], return_tensors="pt")
            single = detector(batch["pixel_values"][1:], row["input_ids"], row["attention_mask"])
        assert torch.allclose(together[0][1], single[0][0], atol=1e-6) == alone
        assert (batch["input_ids"].shape[1] == 64) == (padding == "max_length")
        assert not torch.equal(together[1], other[1])


# A whole run


def test_a_run_trains_and_predicts(model_settings):
    config = model_settings("altclip", epoch=1, lora_rank=2)
    trained, start = DistortionDetector.from_pretrained(train(config)), DistortionDetector.from_checkpoint(config)
    assert not torch.equal(trained.fusion.layers[0].norm1.weight, start.fusion.layers[0].norm1.weight)
    store = LabelStore(config.data_path + "/val")
    predictions = predict(trained, store, config.folder / "predictions" / "val", flip=True, scales=(1.0, 1.5))
    assert predictions.ids == store.ids and predictions.heatmap(store.ids[0]).shape == (32, 32)


# Refusals


def test_checkpoints_of_the_other_model_are_refused(altclip_checkpoint, micro_checkpoint, make, tmp_path):
    with pytest.raises(
        InputError, match="kind 'florence2', but model is altclip; set model: florence2, or checkpoint: B"
    ):
        load_backbone(str(micro_checkpoint), "altclip")
    with pytest.raises(
        InputError, match="kind 'altclip', but model is florence2; set model: altclip, or checkpoint: fl"
    ):
        load_backbone(str(altclip_checkpoint))
    make("altclip").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=f"the run {tmp_path} is of the kind 'altclip', but model is florence2"):
        DistortionDetector.from_checkpoint(Experiment(checkpoint=str(tmp_path)))
