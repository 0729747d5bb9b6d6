"""A model's files from and to the Hugging Face hub; every failure becomes one sentence with its remedy.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the cache's folder (HF_HOME) are honoured by `huggingface_hub` itself.
"""

import contextlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, snapshot_download

from lib.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# What a saved detector consists of; nothing else is fetched, and in an upload nothing else is replaced.
MODEL_FILES = ("detector.json", "heads.safetensors", "encoder.safetensors", "adapter.safetensors", "backbone/*")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def looks_like_hub_id(name) -> bool:
    """Whether `name` reads as user/repository[@revision]. What lies in a folder here (`runs/x`) does not."""
    return bool(HUB_ID.fullmatch(str(name))) and not Path(name).parent.is_dir()


def download(repo_id: str) -> Path:
    """The folder in the hub's cache with the model files of `user/name[@revision]`, fetched when needed."""
    name, _, revision = repo_id.partition("@")
    with one_sentence(f"{repo_id} is no folder here and cannot be fetched from the hub"):
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(MODEL_FILES)))


def find(repo_id: str) -> None:
    """Raise InputError unless the hub gives `user/name[@revision]`; waits three seconds for its answer."""
    name, _, revision = repo_id.partition("@")
    with one_sentence(f"{repo_id} cannot be fetched from the hub"):
        HfApi().model_info(name, revision=revision or None, timeout=3.0)


def upload(repo_id: str, folder: Path, private: bool) -> str:
    """Put the files of `folder` there as one commit; returns the repository's address.

    The repository is made when there is none. Model files of an earlier upload that are not in `folder` go.
    Raises InputError, also when the repository is public though `private` was asked for.
    """
    api = HfApi()
    with one_sentence(f"{repo_id} cannot be uploaded"):
        if get_token() is None:
            raise InputError(f"{repo_id} cannot be uploaded (there is no token for the hub); {LOG_IN}")
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise InputError(f"{repo_id} exists and is public; give private=False (--public) or another name")
        message = "Upload a structural distortion detector"
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, delete_patterns=list(MODEL_FILES), commit_message=message
        )
    return str(address)


@contextlib.contextmanager
def one_sentence(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever transformers, safetensors and the hub's client raise into an InputError that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client raises its own types, those of its HTTP library, and plain ones around them
        causes = [error]
        while causes[-1].__cause__:
            causes.append(causes[-1].__cause__)
        answered = next((cause for cause in causes if getattr(cause, "response", None) is not None), causes[-1])
        reason = textwrap.shorten(str(error if remedy else answered), 300, placeholder=" ...")
        usual = f"check the name, the connection to {constants.ENDPOINT} (HF_ENDPOINT) and your rights: {LOG_IN}"
        if constants.is_offline_mode():
            usual = "unset HF_HUB_OFFLINE, or use a local folder"
        raise InputError(f"{what} ({reason}); {remedy or usual}") from None
