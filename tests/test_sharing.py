"""Model cards, and uploads to a small hub on this machine, spoken to by the real client."""

import dataclasses
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_hub import TOKEN, FakeHub, Repository
from huggingface_hub import ModelCard, constants

from lib import sharing
from lib.errors import InputError
from lib.model.detector import DistortionDetector, set_trainable
from lib.versions import versions

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
FINISHED = {"steps": 1200, "seconds": 75.0, "images": 24}
EVALUATION = {
    "split": "test", "threshold": 120, "min_area_ratio": 0.03, "n_images": 8,
    "figures": {"final_score": 0.71234, "f1_score": 0.8, "plcc": None},
    "intervals": {"final_score": [0.6, 0.8], "plcc": [None, None]},
    "trivial": {"final_score": 0.4321}, "before": None,
    "by_domain": {"shifted": {"final_score": 0.55, "n_images": 3}},
}  # fmt: skip


@pytest.fixture
def write_run(experiment):
    """write_run(evaluation, **parameters) -> folder of a run as notebooks 2 and 3 leave it, with random weights."""

    def write(evaluation=None, **changes) -> Path:
        config = experiment(**changes)
        stirred(DistortionDetector.from_checkpoint(config)).save_pretrained(config.folder / "model")
        config.save(config.folder / "config.yaml")
        (config.folder / "finished.json").write_text(json.dumps(FINISHED))
        if evaluation:
            (config.folder / "evaluation.json").write_text(json.dumps(evaluation))
        return config.folder

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


def stirred(detector: DistortionDetector) -> DistortionDetector:
    """With other values wherever a training changes them; an adapter as it begins changes nothing."""
    set_trainable(detector, "main")
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return detector


def point_at(address: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def assert_equal_predictions(one: DistortionDetector, other: DistortionDetector, atol: float = 0.0) -> None:
    one, other = (detector.predict(IMAGE, "a chair") for detector in (one, other))
    np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=0, atol=atol)
    assert one.score == pytest.approx(other.score, abs=atol or None)


def card_of(run, repo_id="", data="") -> ModelCard:
    return sharing.model_card(run, repo_id, data)


# --- the card ---


def test_the_front_matter_is_the_hubs(write_run):
    card = card_of(write_run(EVALUATION))
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-segmentation"
    assert {"structural-distortion", "florence2"} <= set(card.data.tags) and "lora" not in card.data.tags
    assert card.data.get("base_model") is None  # a folder of this machine
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"final_score": 0.7123, "f1": 0.8}
    assert {result.dataset_split for result in results.values()} == {"test"}
    assert results["f1"].dataset_type == "procedural"
    assert results["f1"].dataset_name == "Procedural figures with structural distortions"


def test_figures_stand_beside_interval_and_baseline(write_run):
    run = write_run(EVALUATION, batch_size=3)
    text = card_of(run).text
    assert text.startswith(f"\n# {run.name}\n")
    assert "| | this model | 95 % interval | trivial baseline |" in text
    assert "| Final score | 0.712 | 0.600 to 0.800 | 0.432 |" in text
    assert "| PLCC | - | - | - |" in text
    assert "On `test`, 8 images. Threshold 120, regions above 3.00% of the frame.\n" in text
    assert "on 24 images in 1,200 steps." in text
    assert "| `batch_size` | `3` | `8` |" in text and "| `weight_decay`" not in text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])["weight_decay"] == 5e-5
    assert f"| torch | {versions()['torch']} |" in text
    parameters = yaml.safe_load((run / "config.yaml").read_text())
    changed = {"checkpoint": "florence-community/Florence-2-base", "lora_rank": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(parameters | changed))
    card = card_of(run)
    assert card.data.base_model == "florence-community/Florence-2-base" and "lora" in card.data.tags
    assert "Trained by LoRA of rank 2 on `florence-community/Florence-2-base`" in card.text


@pytest.mark.parametrize("evaluation", [None, {"split": "test", "n_images": 8, "figures": None}])
def test_without_figures_the_card_says_so(write_run, evaluation):
    card = card_of(write_run(evaluation))
    assert "Not evaluated." in card.text
    assert card.data.eval_results is None and "model-index" not in card.content


def test_the_data_card_is_part_of_it(write_run, tmp_path):
    run = write_run(EVALUATION)
    assert "### Procedural figures with structural distortions" in card_of(run).text
    assert "### EvalMuse-Structure" in card_of(run, data="evalmuse_structure").text
    unknown = card_of(write_run(EVALUATION, experiment_name="other", data_path=str(tmp_path / "gone")))
    assert "Which data it was trained on is not recorded." in unknown.text
    assert unknown.data.eval_results[0].dataset_type == "unknown"
    with pytest.raises(InputError, match="no card 'coco' in data_cards; known are .*evalmuse_structure.*procedural"):
        sharing.model_card(run, "", "coco")


def test_figures_measured_on_other_data_are_not_given_to_the_training_data(write_run, tmp_path, prepared):
    gone = {**EVALUATION, "data_path": str(tmp_path / "gone")}
    card = card_of(write_run(gone), data="evalmuse_structure")
    assert "On `test` of data that it was not trained on, 8 images." in card.text
    assert card.data.eval_results[0].dataset_type == "unknown"
    drawn = card_of(write_run({**EVALUATION, "data_path": str(prepared)}, data_path=str(tmp_path / "gone")))
    assert "On `test` of Procedural figures with structural distortions that it was not trained on" in drawn.text
    assert drawn.data.eval_results[0].dataset_type == "procedural"
    same = card_of(write_run({**EVALUATION, "data_path": str(prepared)}, data_path=str(prepared)))
    assert "On `test`, 8 images." in same.text


def test_what_is_no_finished_run_is_refused(write_run, tmp_path):
    with pytest.raises(InputError, match="is no run .*config.yaml"):
        sharing.model_card(tmp_path)
    run = write_run()
    (run / "finished.json").unlink()
    with pytest.raises(InputError, match="its training has not ended"):
        sharing.model_card(run)


# --- to the hub and back ---


def test_an_uploaded_run_comes_back_equal(write_run, hub):
    run = write_run(EVALUATION)
    address = sharing.push_to_hub(run, "me/full")
    assert address == f"{hub.address}/me/full"
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
            assert Path(DistortionDetector.from_pretrained(run).config.data_path).as_posix().encode() not in content
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


# --- refusals ---


@dataclasses.dataclass
class Case:
    repo_id: str = "me/one"
    token: str = TOKEN
    offline: bool = False
    reachable: bool = True
    broken: int = 0


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case(token=""), r"me/one cannot be uploaded \(there is no token for the hub\); log in with `hf auth login`"),
        (
            Case(token="hf_old"),
            r"answered 401: Invalid .*; check the name, and log in with `hf auth login` or set HF_TO",
        ),
        (Case(repo_id="you/one"), r"answered 403: You don't have the rights .*; use a token with write access"),
        (Case(repo_id="me/on e"), r"; a repository is named user/name, with letters"),
        (Case(offline=True), r"me/one cannot be uploaded \(HF_HUB_OFFLINE is set\); unset it"),
        (Case(reachable=False), r"[Cc]onnect.*; check the connection to http://127.0.0.1:\d+ \(HF_ENDPOINT\)"),
        (Case(broken=403), r"answered 403: no room left"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(write_run, hub, monkeypatch, case, told):
    run = write_run()
    monkeypatch.setenv("HF_TOKEN", case.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", case.offline)
    hub.broken = case.broken
    if not case.reachable:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            point_at(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
    with pytest.raises(InputError, match=told) as refused:
        sharing.push_to_hub(run, case.repo_id)
    assert "\n" not in str(refused.value)
    assert not any(repository.files for repository in hub.repositories.values())


def test_what_cannot_be_fetched_is_told(hub, monkeypatch):
    with pytest.raises(
        InputError, match="me/none is no folder here and cannot be fetched .*answered 404.*check the na"
    ):
        DistortionDetector.from_pretrained("me/none")
    hub.repositories["me/other"] = Repository(private=False, files={"README.md": b"a card"})
    with pytest.raises(InputError, match=r"me/other holds no trained model \(detector.json\)"):
        DistortionDetector.from_pretrained("me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"me/none .*\(HF_HUB_OFFLINE is set\); unset it, or use a local folder"):
        DistortionDetector.from_pretrained("me/none")


def test_a_mistyped_run_is_not_asked_of_the_hub(write_run, hub, monkeypatch):
    monkeypatch.chdir(write_run().parents[1])
    with pytest.raises(InputError, match="runs/rnu holds no trained model"):
        DistortionDetector.from_pretrained("runs/rnu")
    assert hub.requests == []


# --- the command ---


def test_the_command_writes_the_card(write_run, capsys):
    run = write_run(EVALUATION)
    assert sharing.main([str(run), "me/one", "--card", "--data", "evalmuse_structure"]) == 0
    assert capsys.readouterr().out == f"{run}/README.md\n"
    text = (run / "README.md").read_text()
    assert text.startswith("---\n") and 'from_pretrained("me/one")' in text and "### EvalMuse-Structure" in text


def test_the_command_says_what_is_missing(write_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sharing.main([str(tmp_path)])
    assert "give user/name to upload to, or --card" in capsys.readouterr().err
    assert sharing.main([str(tmp_path), "me/one"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is no run")
