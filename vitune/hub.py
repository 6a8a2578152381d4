"""The Hugging Face hub: download `hf:user/name` as a local folder, and upload a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from vitune.errors import AdapterError, one_line

PREFIX = "hf:"
FILES = (
    "vitune.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "README.md",
)
"""The only files ever downloaded: JSON, text and safetensors, nothing that can run code."""


def local_copy(path: str | Path) -> Path:
    """`path` itself; for `hf:user/name` or `hf:user/name@revision` the folder it was downloaded to.

    The hub's own cache keeps it; without a network the cached copy is used. HF_ENDPOINT names
    another hub; HF_TOKEN or `hf auth login` gives access to a private repository.

    Raises:
        AdapterError: no such repository or revision, no access, or a hub that cannot be reached.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(path)
    from huggingface_hub import snapshot_download

    name, _, revision = text.removeprefix(PREFIX).partition("@")
    with _told(name):
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(FILES), endpoint=_endpoint(),
        )  # fmt: skip
    if not (Path(folder) / FILES[0]).is_file():
        raise AdapterError(
            f"hub: got {name!r} without {FILES[0]}, expected what 'vitune push' wrote there."
        )
    return Path(folder)


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Upload all files of `folder` to the repository `name`, which is created if needed.

    Returns:
        The address of the commit.

    Raises:
        AdapterError: no token, no write permission, or a hub that cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    with _told(name):
        if get_token() is None:
            raise AdapterError(
                f"hub: got no token, expected one that may write to {name!r}. Set HF_TOKEN, or "
                "run 'hf auth login'."
            )
        api = HfApi(endpoint=_endpoint())
        api.create_repo(name, private=private, exist_ok=True)
        made = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(made.commit_url)


def _endpoint() -> str | None:
    """The hub that the environment names now; huggingface_hub read it on import."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Within the context, errors of the hub's client become one line that says what to do."""
    from huggingface_hub import errors
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()  # they would appear between our own lines
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the client's, and its library's
            yield
    except errors.HFValidationError:
        raise AdapterError(f"hub: got {name!r}, expected user/name.") from None
    except errors.GatedRepoError:
        raise AdapterError(
            f"hub: got {name!r}, which is gated, expected permission to read it. Request access "
            "on its page."
        ) from None
    except errors.RepositoryNotFoundError:
        raise AdapterError(
            f"hub: got {name!r}, which is not there or is private, expected a repository that this "
            "token may use. Check the name, or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise AdapterError(
            f"hub: got a revision that {name!r} does not have, expected a branch, tag or commit."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise AdapterError(
            f"hub: got status {status} for {name!r} ({shorten(one_line(error), 200)}), expected "
            f"the repository. {_advice(status)}"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(name, error) from None
    except RuntimeError as error:  # an upload that failed; the cause has the reason
        reason = shorten(one_line(error.__cause__ or error), 200)
        raise AdapterError(
            f"hub: got a failed upload to {name!r} ({reason}), expected a complete one. Push "
            "again: files already uploaded are not sent twice."
        ) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise _unreachable(name, error) from None
        raise
    finally:
        if shown:
            enable_progress_bars()


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Use a token with write permission."
    return "Try again later."


def _unreachable(name: str, error: Exception) -> AdapterError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return AdapterError(
            f"hub: got HF_HUB_OFFLINE=1, with which {name!r} is looked for on this machine only, "
            "expected a copy here or a connection. Unset it, or use a local folder."
        )
    return AdapterError(
        f"hub: got no connection for {name!r} ({shorten(one_line(error), 200)}), expected "
        f"{_endpoint() or 'https://huggingface.co'} to answer. Check the network and "
        "HF_ENDPOINT, or use a local folder."
    )
