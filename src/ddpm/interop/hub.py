"""Models on the Hugging Face Hub: names to folders, folders to repositories."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from ddpm.common.errors import UserError, first_line
from ddpm.interop.storage import WEIGHTS

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TEXT = ["model_index.json", "ddpm.json", "README.md", "config.json", "unet/config.json", "scheduler_config.json"]
TEXT += ["scheduler/scheduler_config.json"]
SAFE = [f"{WEIGHTS}.safetensors", f"{WEIGHTS}-*-of-*.safetensors", f"{WEIGHTS}.safetensors.index.json"]
VARIANTS = [f"{WEIGHTS}.*.safetensors", f"{WEIGHTS}.safetensors.index.*.json"]
PICKLED = [f"{WEIGHTS}.bin", f"{WEIGHTS}-*-of-*.bin", f"{WEIGHTS}.bin.index.json"]
UNKNOWN = "the Hub does not know who you are: `hf auth login`, with a token that may write"
REFUSALS = {401: UNKNOWN, 403: "your token may not do that: `hf auth login` with one that may write there"}
ANOTHER = "the Hub did not answer as it should"


def looks_like_id(name: str) -> bool:
    """Return whether `name` could be a repository on the Hub: "user/name"."""
    return ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def check_id(name: str) -> None:
    if not looks_like_id(name):
        raise UserError(f"a Hub model is named user/name, not {name!r}")


def download(name: str, *, pickled: bool = False) -> Path:
    """Return the folder of a Hub model; it is downloaded unless it is in the cache, and only files of a model.

    Args:
        pickled: also download .bin weights if there are no others, for `ddpm convert`.

    Raises UserError, in one line, if there is no such model, no access or no network.
    """
    for patterns in (SAFE, VARIANTS, PICKLED) if pickled else (SAFE, VARIANTS):
        both = [prefix + pattern for pattern in patterns for prefix in ("", "unet/")]
        with one_line(name):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=TEXT + both))
        if any(next(folder.glob(pattern), None) for pattern in both):
            return folder
    raise UserError(f"{name} has no safetensors weights; if it has pickled ones, ddpm convert {name} FOLDER reads them")


def check_login() -> None:
    """Raise UserError if the Hub does not know the user; call it before the work starts."""
    with one_line("your account"):
        huggingface_hub.HfApi().whoami()


def upload(folder: Path, name: str, *, private: bool, space: bool = False) -> str:
    """Upload a model folder, or the folder of a Space, to the repository `name`, creating it if needed.

    Returns its address.
    """
    check_id(name)
    api = huggingface_hub.HfApi()
    kind, sdk, what = ("space", "gradio", "the page of a") if space else ("model", None, "a")
    with one_line(name):
        address = api.create_repo(name, repo_type=kind, space_sdk=sdk, private=private, exist_ok=True)
        message = f"Upload {what} ddpm model"
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message=message)
    return str(address)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn the Hub's errors into one line that says what to do."""
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{name} is gated: ask for access on its page, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"no folder {name} here, nor on the Hub (a private one needs `hf auth login`)") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"no folder {name} here, and the Hub cannot be reached: check name and network") from None
    except errors.HFValidationError as error:
        raise UserError(f"{name} is no name of a Hub model: {error}") from None
    except errors.LocalTokenNotFoundError:
        raise UserError(UNKNOWN) from None
    except Exception as error:  # the library and its network layers raise dozens of kinds
        status = getattr(getattr(error, "response", None), "status_code", 0)
        raise UserError(f"{name}: {REFUSALS.get(status) or f'{ANOTHER}: {first_line(error)}'}") from None
