"""The Hugging Face hub as it is asked here, and every way in which it can refuse, in words.

Everything goes through huggingface_hub, so mirrors (HF_ENDPOINT), proxies and the user's own login count as everywhere
else. A token is an argument or the child's environment (HF_TOKEN); it is in no file, message or address.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.words import Problem

# A server that says nothing for so long is not there. huggingface_hub's own default waits as long, but tries five times.
TIMEOUT_S = 10.0
DATA_ENDINGS = (".parquet", ".jsonl", ".json", ".csv")
SPARE_BYTES = 100 << 20
CHUNK_BYTES = 4 << 20
PIECE_BYTES = 1 << 20

Progress = Callable[[int, int], None]


class HubError(Exception):
    """Something cannot be had from the hub; `problem` says what and what to do."""

    def __init__(self, rule: str, **parameters: str | int):
        self.problem = Problem(rule=rule, where="base", parameters=dict(parameters))
        super().__init__(self.problem.sentence)


class File(msgspec.Struct, frozen=True):
    """A file of a repository: `sha256` of large ones, else `blob`, git's hash of its content."""

    name: str
    size: int
    sha256: str | None = None
    blob: str | None = None


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, read now and not when a library was imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=token or None)


@contextmanager
def told(what: str, revision: str | None = None) -> Iterator[None]:
    """Turn every way in which the hub can refuse into a HubError; none of the messages repeats what was sent."""
    import httpx
    from huggingface_hub import errors

    host = urlsplit(endpoint()).hostname or ""
    if offline():
        raise HubError("hub-offline-asked", id=what)
    try:
        yield
    except errors.GatedRepoError as error:
        status = error.response.status_code if error.response is not None else 403
        raise HubError("hub-gated-refused" if status == 403 else "hub-gated", id=what, host=host) from None
    except errors.RevisionNotFoundError:
        raise HubError("hub-revision", id=what, revision=str(revision or "main")[:60]) from None
    except errors.RepositoryNotFoundError:
        raise HubError("hub-not-found", id=what, host=host) from None
    except errors.EntryNotFoundError:
        raise HubError("hub-file", id=what) from None
    except errors.HFValidationError:
        raise HubError("hub-id", id=what) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise HubError("hub-unreachable", id=what, host=host) from None
    except (errors.HfHubHTTPError, httpx.HTTPStatusError) as error:
        status = error.response.status_code if error.response is not None else 0
        rules = {401: "hub-token", 403: "hub-forbidden", 404: "hub-not-found"}
        raise HubError(rules.get(status, "hub-status"), id=what, host=host, status=status) from None
    except httpx.HTTPError:
        raise HubError("hub-unreachable", id=what, host=host) from None
    except ValueError:  # an answer that is no JSON: a portal of a hotel, a mirror that is none
        raise HubError("hub-answer", id=what, host=host) from None
