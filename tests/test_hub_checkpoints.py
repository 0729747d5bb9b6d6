"""Pretrained checkpoints by hub id: through a mirror (HF_ENDPOINT), and offline from the cache that it filled."""

import os
import subprocess
import sys

import pytest
from fake_hub import FakeHub, Repository

from lib.model.encoders.backbone import load_backbone

ID = "florence-community/Florence-2-base-ft"
PROGRAM = """
import sys
from lib.model.encoders.backbone import commit_of, load_backbone
from lib.errors import InputError
try:
    encoder, tokenizer = load_backbone(sys.argv[1])
    total = sum(float(value.detach().double().abs().sum()) for value in encoder.parameters())
    print(encoder.width, total, len(tokenizer), commit_of(sys.argv[1]))
except InputError as error:
    print("refused:", error)
"""


@pytest.fixture
def mirror(micro_checkpoint):
    """A hub with the small checkpoint under the name of a real one."""
    hub = FakeHub()
    files = {path.name: path.read_bytes() for path in micro_checkpoint.iterdir() if path.is_file()}
    hub.repositories[ID] = Repository(private=False, files=files)
    yield hub
    hub.close()


def load_elsewhere(checkpoint: str, home, **environment) -> str:
    """What a new process tells of a checkpoint; the client reads its environment when it is imported."""
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", PROGRAM, checkpoint]
    return subprocess.run(command, env=clean | settings, capture_output=True, text=True, timeout=500).stdout.strip()


def test_a_mirror_serves_a_checkpoint_which_is_then_there_offline(mirror, micro_checkpoint, tmp_path):
    encoder, tokenizer = load_backbone(str(micro_checkpoint))
    total = sum(float(value.detach().double().abs().sum()) for value in encoder.parameters())
    expected = f"{encoder.width} {total} {len(tokenizer)} {mirror.repositories[ID].sha}"
    assert load_elsewhere(ID, tmp_path / "hf", HF_ENDPOINT=mirror.address) == expected
    assert mirror.requests, "the mirror was not asked"
    asked = len(mirror.requests)
    assert load_elsewhere(ID, tmp_path / "hf", HF_ENDPOINT=mirror.address, HF_HUB_OFFLINE="1") == expected
    assert len(mirror.requests) == asked
    told = load_elsewhere(ID, tmp_path / "empty", HF_ENDPOINT=mirror.address, HF_HUB_OFFLINE="1")
    assert told.startswith(f"refused: checkpoint: {ID} could not be loaded") and "local folder" in told
    assert len(mirror.requests) == asked


def test_a_revision_is_asked_for(mirror, tmp_path):
    told = load_elsewhere(f"{ID}@v1.0", tmp_path / "hf", HF_ENDPOINT=mirror.address)
    assert told.endswith(mirror.repositories[ID].sha)
    fetched = [line for line in mirror.requests if line.startswith("GET") and "/resolve/" in line]
    assert fetched and all(
        "/resolve/v1.0/" in line or f"/resolve/{mirror.repositories[ID].sha}/" in line for line in fetched
    )
