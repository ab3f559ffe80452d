"""The Hugging Face hub as it is asked here, and every way in which it can refuse, in words.

Everything goes through huggingface_hub, so mirrors (HF_ENDPOINT), proxies and the user's own login count as everywhere
else. A token is an argument or the child's environment (HF_TOKEN); it is in no file, message or address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.words import Problem

# A server that says nothing for so long is not there. huggingface_hub's own default waits as long, but tries five times.
TIMEOUT_S = 10.0

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class HubError(Exception):
    """Something cannot be had from the hub; `problem` says what and what to do."""

    def __init__(self, rule: str, **parameters: Any):
        self.problem = Problem(rule=rule, where="base", parameters=parameters)
        super().__init__(self.problem.sentence)

    @classmethod
    def of(cls, problem: Problem) -> HubError:
        """The same for a problem that was told elsewhere."""
        made = cls(problem.rule)
        made.problem, made.args = problem, (problem.sentence,)
        return made


class File(msgspec.Struct, frozen=True):
    """A file of a repository. `hash` is what its bytes must have: a large one's sha256, else git's sha1 of its content."""

    name: str
    size: int
    hash: str

    @property
    def is_large(self) -> bool:
        return len(self.hash) == 64


class Repository(msgspec.Struct, frozen=True):
    """What the hub says of a model or a data set at one commit; `card` is the head of its README."""

    commit: str
    files: tuple[File, ...]
    card: dict[str, Any]
    gated: bool
    parameters: int | None


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, read now and not when a library was imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def host() -> str:
    return urlsplit(endpoint()).hostname or ""


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def ask(name: str, revision: str | None, kind: str, token: str | None) -> Repository:
    """Ask the hub for a model or a data set (`kind`). A file whose name leads out of its folder is left out; an answer
    without hashes is none, since what they name becomes a path and is held against them. Raises HubError."""
    with told(name, revision):
        from huggingface_hub import HfApi

        info: Any = HfApi(endpoint=endpoint(), token=token or None).repo_info(
            name, revision=revision, repo_type=kind, files_metadata=True, timeout=TIMEOUT_S
        )
        files = tuple(
            File(one.rfilename, int(one.size or 0), one.lfs.sha256 if one.lfs else one.blob_id)
            for one in info.siblings or []
            if not one.rfilename.startswith("/") and ".." not in one.rfilename.split("/")
        )
        if not _COMMIT.fullmatch(info.sha) or not all(_HASH.fullmatch(file.hash) for file in files):
            raise ValueError("no hashes")
        card = info.card_data.to_dict() if info.card_data is not None else {}
        counted = getattr(info, "safetensors", None)
        return Repository(info.sha, files, card, bool(info.gated), counted.total if counted is not None else None)


@contextmanager
def told(what: str, revision: str | None = None) -> Iterator[None]:
    """Turn every way in which the hub can refuse into a HubError; none of the messages repeats what was sent."""
    import httpx
    from huggingface_hub import errors

    if offline():
        raise HubError("hub-offline-asked", id=what)
    try:
        yield
    except errors.GatedRepoError as error:
        refused = error.response.status_code == 403
        raise HubError("hub-gated-refused" if refused else "hub-gated", id=what, host=host()) from None
    except errors.RevisionNotFoundError:
        raise HubError("hub-revision", id=what, revision=str(revision or "main")[:60]) from None
    except errors.RepositoryNotFoundError:
        raise HubError("hub-not-found", id=what, host=host()) from None
    except errors.EntryNotFoundError:
        raise HubError("hub-file", id=what) from None
    except errors.HFValidationError:
        raise HubError("hub-id", id=what) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        rules = {401: "hub-token", 403: "hub-forbidden", 404: "hub-not-found"}
        raise HubError(rules.get(status, "hub-status"), id=what, host=host(), status=status) from None
    except (httpx.HTTPError, errors.OfflineModeIsEnabled):
        raise HubError("hub-unreachable", id=what, host=host()) from None
    except (ValueError, LookupError, TypeError, AttributeError):  # a portal of a hotel, a mirror that is none
        raise HubError("hub-answer", id=what, host=host()) from None
