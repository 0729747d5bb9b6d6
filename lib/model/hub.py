"""A model's files from and to the Hugging Face hub; every failure becomes one sentence with its remedy.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the cache's folder (HF_HOME) are honoured by `huggingface_hub` itself.
"""

import contextlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError

from lib.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What a saved detector consists of; nothing else is fetched, and in an upload nothing else is replaced.
MODEL_FILES = ("detector.json", "heads.safetensors", "encoder.safetensors", "adapter.safetensors", "backbone/*")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def looks_like_hub_id(name) -> bool:
    """Whether `name` reads as user/repository. What lies in a folder that exists here (`runs/mistyped`) does not."""
    return bool(HUB_ID.fullmatch(str(name))) and not Path(name).parent.is_dir()


def download(repo_id: str) -> Path:
    """The folder in the hub's cache with a repository's model files, fetched when it is not there or out of date."""
    with _told(f"{repo_id} is no folder here and cannot be fetched from the hub"):
        return Path(snapshot_download(repo_id, allow_patterns=list(MODEL_FILES)))


def upload(repo_id: str, folder: Path, private: bool) -> str:
    """Put the files of `folder` there as one commit; returns the repository's address.

    The repository is made when there is none. Model files of an earlier upload that are not in `folder` go.
    Raises InputError, also when the repository is public though `private` was asked for.
    """
    api = HfApi()
    with _told(f"{repo_id} cannot be uploaded"):
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
def _told(what: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into an InputError that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client raises its own types, those of its HTTP library, and plain ones around them
        reason, remedy = _explained(error)
        raise InputError(f"{what} ({textwrap.shorten(reason, 200, placeholder=' ...')}); {remedy}") from None


def _explained(error: Exception) -> tuple[str, str]:
    """(reason, remedy): the client wraps the answer of the hub, if there was one, in other exceptions."""
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    if isinstance(error, HFValidationError):
        return str(error), "a repository is named user/name, with letters, digits and - _ ."
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set", "unset it, or use a local folder"
    answered = next((cause for cause in causes if getattr(cause, "response", None) is not None), None)
    if answered is None:
        return str(causes[-1]), f"check the connection to {constants.ENDPOINT} (HF_ENDPOINT), then try again"
    status = answered.response.status_code
    remedies = {
        401: f"check the name, and {LOG_IN}",
        403: "use a token with write access to that user or organisation (`hf auth login`, HF_TOKEN)",
        404: f"check the name; for a private repository {LOG_IN}",
    }
    said = getattr(answered, "server_message", None) or answered.response.reason_phrase
    return f"{constants.ENDPOINT} answered {status}: {said}", remedies.get(status, "try again later")
