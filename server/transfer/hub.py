"""The Hugging Face Hub through huggingface_hub, an optional package: the client, and its errors in an operator's words.

Knows neither what a checkpoint needs nor what an artifact is. The token comes from HF_TOKEN, the address from
HF_ENDPOINT, as everywhere that package is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The same weights under the same licence, published where no one has to be asked first.
UNGATED = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "NousResearch/Meta-Llama-3-8B-Instruct",
    "meta-llama/Meta-Llama-3-8B": "NousResearch/Meta-Llama-3-8B",
}


class TransferError(Exception):
    """Something could not be brought here or away; the text says what and what to do."""


def hub_client() -> HfApi:
    """The client; TransferError when huggingface_hub is not installed."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise TransferError(
            f"the Hugging Face Hub needs the package huggingface_hub ({error}): pip install 'neuronx-serve[hub]'"
        ) from error
    disable_progress_bars()  # it has one a file; ours is of the whole
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextmanager
def hub_errors(client: HfApi, repository: str) -> Iterator[None]:
    """Inside, what the hub or the way to it refuses becomes a TransferError that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise TransferError(_gated(client, repository)) from error
    except RevisionNotFoundError as error:
        raise TransferError(f"{repository} has no such revision: {_first_line(error)}") from error
    except RepositoryNotFoundError as error:
        raise TransferError(
            f"{client.endpoint} knows no repository {repository}, or this account may not see it ({_token()}): check "
            "the spelling, and for a private one set HF_TOKEN to a token of its owner"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise TransferError(
                f"{client.endpoint} refuses access to {repository} with status {status} ({_token()}): the token must "
                f"have the right to it. {_first_line(error)}"
            ) from error
        raise TransferError(f"{client.endpoint} failed on {repository}: {_first_line(error)}") from error
    except OSError as error:  # requests' errors are OSErrors
        raise TransferError(f"{repository} cannot be reached at {client.endpoint}: {_first_line(error)}") from error
    except ValueError as error:
        raise TransferError(f"huggingface_hub refuses {repository}: {_first_line(error)}") from error


def _gated(client: HfApi, repository: str) -> str:
    text = (
        f"{repository} is gated ({_token()}): accept its licence on {client.endpoint}/{repository} with your account, "
        "and set HF_TOKEN to a token of that account"
    )
    copy = UNGATED.get(repository)
    return f"{text}; or take the ungated copy: neuronx-serve models pull {copy}" if copy else text


def _token() -> str:
    from huggingface_hub import get_token

    return "a token is set" if get_token() else "no token is set"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
