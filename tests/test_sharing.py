"""Model cards, and uploads to a small hub on this machine, spoken to by the real client."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from example_evaluations import finished
from fake_hub import TOKEN, FakeHub, Repository
from huggingface_hub import constants

from lib import sharing
from lib.errors import InputError
from lib.model.detector import DistortionDetector

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
EVALUATION = {
    "split": "test", "threshold": 120, "min_area_ratio": 0.03, "n_images": 8,
    "figures": {"final_score": 0.71234, "f1_score": 0.8, "plcc": None},
    "intervals": {"final_score": [0.6, 0.8], "plcc": [None, None]},
    "trivial": {"final_score": 0.4321, "f1_score": 0.2},
    "by_domain": {"shifted": {"final_score": 0.55, "n_images": 3}},
}  # fmt: skip


@pytest.fixture
def write_run(experiment):
    """write_run(evaluation, **parameters) -> folder of a run as notebooks 2 and 3 leave it, with random weights."""

    def write(evaluation=None, **changes) -> Path:
        run = finished(experiment(**changes), stirred=True)
        if evaluation:
            (run / "evaluation.json").write_text(json.dumps(evaluation))
        return run

    return write


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that the client in this process talks to, as the user `me`, with an empty cache."""
    hub = FakeHub()
    point_at(hub.address, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


def point_at(address: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def assert_equal_predictions(one: DistortionDetector, other: DistortionDetector, atol: float = 0.0) -> None:
    one, other = (detector.predict(IMAGE, "a chair") for detector in (one, other))
    np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=0, atol=atol)
    assert one.score == pytest.approx(other.score, abs=atol or None)


def test_the_card_holds_figures_beside_interval_and_baseline_and_the_hubs_front_matter(write_run):
    run = write_run(EVALUATION, batch_size=3)
    card = sharing.model_card(run, data="procedural")
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "image-segmentation")
    assert {"structural-distortion", "florence2"} <= set(card.data.tags) and "lora" not in card.data.tags
    assert card.data.get("base_model") is None  # a folder of this machine
    for text in (
        f"\n# {run.name}\n", "| | this model | 95 % interval | trivial baseline |", "| PLCC | - | - | - |",
        "| Final score | 0.712 | 0.600 to 0.800 | 0.432 |", "on 24 images in 1,200 steps.",
        "On `test`, 8 images. Threshold 120, regions above 3.00% of the frame.\n", "| `batch_size` | `3` | `8` |",
        f"| torch | {torch.__version__} |", "### Procedural figures with structural distortions",
    ):  # fmt: skip
        assert text in card.text
    assert "| `weight_decay`" not in card.text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])["weight_decay"] == 5e-5
    changed = {"checkpoint": "florence-community/Florence-2-base", "lora_rank": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load((run / "config.yaml").read_text()) | changed))
    card = sharing.model_card(run)
    assert card.data.base_model == "florence-community/Florence-2-base" and "lora" in card.data.tags
    assert "Trained by LoRA of rank 2 on `florence-community/Florence-2-base`" in card.text
    for evaluation in (None, {"split": "test", "threshold": 90, "figures": None}):
        assert "Not evaluated." in sharing.model_card(write_run(evaluation, experiment_name="other")).text


def test_figures_measured_on_other_data_are_not_given_to_the_training_data(write_run, prepared):
    other, same = ({**EVALUATION, "data_path": str(path)} for path in ("data/other", prepared))
    for evaluation, data, texts in (
        (other, "evalmuse_structure", ["On `test` of data that it was not trained on, 8 images."]),
        (same, "", ["On `test`, 8 images.", "it was trained on is not recorded."]),
    ):
        card = sharing.model_card(write_run(evaluation), data=data)
        assert all(text in card.text for text in texts)


def test_what_is_no_finished_run_or_no_card_is_refused(write_run):
    run = write_run()
    with pytest.raises(InputError, match="no card 'coco' in data_cards; known are .*evalmuse_structure.*procedural"):
        sharing.model_card(run, data="coco")
    (run / "finished.json").unlink()
    with pytest.raises(InputError, match="the training has not ended"):
        sharing.model_card(run)


def test_an_uploaded_run_comes_back_equal(write_run, hub):
    run = write_run(EVALUATION)
    assert sharing.push_to_hub(run, "me/full") == f"{hub.address}/me/full"
    there = hub.repositories["me/full"]
    assert there.private and len(there.commits) == 1
    assert set(there.files) == {
        "README.md", "backbone/config.json", "backbone/tokenizer.json", "backbone/tokenizer_config.json", "config.yaml",
        "detector.json", "encoder.safetensors", "evaluation.json", "heads.safetensors",
    }  # fmt: skip
    assert there.files["README.md"] == (run / "README.md").read_bytes()
    assert b'from_pretrained("me/full")' in there.files["README.md"]
    assert json.loads(there.files["evaluation.json"]) == EVALUATION
    assert_equal_predictions(DistortionDetector.from_pretrained("me/full"), DistortionDetector.from_pretrained(run))
    hub.repositories["me/open"] = Repository(private=False)
    with pytest.raises(InputError, match="me/open exists and is public; give private=False"):
        sharing.push_to_hub(run, "me/open")
    assert hub.repositories["me/open"].files == {}
    sharing.push_to_hub(run, "me/open", private=False)
    assert hub.repositories["me/open"].files


def test_nothing_private_is_uploaded(write_run, hub, tmp_path):
    evaluation = {**EVALUATION, "data_path": "secret/data"}
    places = {"pseudo_labels": "runs/secret/predictions/val", "wandb": "secret"}
    for run in (write_run(evaluation, **places), write_run(lora_rank=2, experiment_name="lora", **places)):
        sharing.push_to_hub(run, "me/one", merge=True)
        for name, content in hub.repositories["me/one"].files.items():
            assert str(tmp_path).encode() not in content and b"secret" not in content, name
        assert DistortionDetector.from_pretrained("me/one").config.checkpoint == "checkpoint0"


def test_an_update_replaces_the_model_and_nothing_else(write_run, hub):
    sharing.push_to_hub(write_run(), "me/one")
    hub.repositories["me/one"].files["picture.png"] = b"mine"
    lora = write_run(lora_rank=2, experiment_name="lora", checkpoint="florence2-tiny", input_size=64)
    sharing.push_to_hub(lora, "me/one")
    files = hub.repositories["me/one"].files
    assert "adapter.safetensors" in files and files["picture.png"] == b"mine"
    assert "encoder.safetensors" not in files and not [name for name in files if name.startswith("backbone/")]
    assert_equal_predictions(DistortionDetector.from_pretrained("me/one"), DistortionDetector.from_pretrained(lora))


def test_a_lora_model_on_a_base_of_this_machine_is_merged_or_refused(write_run, hub, micro_checkpoint):
    run = write_run(lora_rank=2)
    detector = DistortionDetector.from_pretrained(run)
    with pytest.raises(InputError, match=f"{micro_checkpoint} is a folder of this machine.*--merge"):
        sharing.push_to_hub(run, "me/lora")
    assert hub.requests == []
    sharing.push_to_hub(run, "me/lora", merge=True)
    fetched = DistortionDetector.from_pretrained("me/lora")
    assert fetched.config.lora_rank == 0
    assert_equal_predictions(fetched, detector, atol=1e-5)
    assert b"Trained by LoRA of rank 2" in hub.repositories["me/lora"].files["README.md"]


REFUSED = {  # settings -> what is told
    "no token": ({"token": ""}, "no token for the hub.; log in with `hf auth login`"),
    "old token": ({"token": "hf_old"}, "401 .*; check the name, .* and your rights: log in with `hf auth login`"),
    "offline": ({"offline": True}, "; unset HF_HUB_OFFLINE"),
    "no connection": ({"address": "http://127.0.0.1:9"}, "[Cc]onnect.*connection to http://127.0.0.1:9 .HF_ENDPOINT."),
    "no room": ({"broken": 403}, "403 .*no room left"),
}


@pytest.mark.parametrize(("case", "told"), REFUSED.values(), ids=REFUSED)
def test_what_the_hub_refuses_is_one_sentence(write_run, hub, monkeypatch, case, told):
    monkeypatch.setenv("HF_TOKEN", case.get("token", TOKEN))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", case.get("offline", False))
    hub.broken = case.get("broken", 0)
    point_at(case.get("address", hub.address), monkeypatch)
    with pytest.raises(InputError, match=told) as refused:
        sharing.push_to_hub(write_run(), "me/one")
    assert "\n" not in str(refused.value)
    assert not any(repository.files for repository in hub.repositories.values())


def test_what_cannot_be_fetched_is_told(write_run, hub, monkeypatch):
    with monkeypatch.context() as inside:
        inside.chdir(write_run().parents[1])
        with pytest.raises(InputError, match="runs/rnu holds no trained model"):  # mistyped
            DistortionDetector.from_pretrained("runs/rnu")
    assert hub.requests == []
    with pytest.raises(InputError, match="me/none is no folder here and cannot be fetched .*404.*check the name"):
        DistortionDetector.from_pretrained("me/none")
    hub.repositories["me/other"] = Repository(private=False, files={"README.md": b"a card"})
    with pytest.raises(InputError, match=r"me/other holds no trained model \(detector.json\)"):
        DistortionDetector.from_pretrained("me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="me/none .*; unset HF_HUB_OFFLINE, or use a local folder"):
        DistortionDetector.from_pretrained("me/none")


def test_the_command_writes_the_card(write_run, capsys):
    run = write_run(EVALUATION)
    assert sharing.main([str(run), "me/one", "--card", "--data", "evalmuse_structure"]) == 0
    assert capsys.readouterr().out == f"{run}/README.md\n"
    text = (run / "README.md").read_text()
    assert text.startswith("---\n") and 'from_pretrained("me/one")' in text and "### EvalMuse-Structure" in text
    assert sharing.main([str(run.parent), "me/one"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {run.parent} holds no config.yaml")
    with pytest.raises(SystemExit):
        sharing.main([str(run)])
