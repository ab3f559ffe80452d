"""Upload a run to a repository of the hub, private unless asked otherwise."""

from __future__ import annotations

import re
from pathlib import Path

from engine.export.artifacts import refused, travelling
from engine.export.job import Job, State, Told
from engine.workspace import Workspace

# owner/name, or a name alone for the login's own; the hub itself is stricter still
REPOSITORY = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)


def upload(
    workspace: Workspace, run_id: str, folder: Path, job: Job, token: str | None, state: State, tell: Told
) -> str:
    """Upload a folder with its card to a repository of the hub, private unless asked otherwise: file by file, then one
    commit, so that nobody sees half of it. The token stays in this process."""
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    from engine.export import card

    files = travelling(workspace, run_id, folder)
    sizes = {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in files.items()}
    state.phase, state.total_bytes = "uploading", sum(sizes.values())
    tell(state)
    api = HfApi(token=token or None)
    try:
        repository = api.create_repo(job.repository or "", private=not job.public, exist_ok=True).repo_id
        readme = card.markdown(workspace, run_id, whole=not job.only_adapter)
        operations = [CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=readme.encode())]
        for name, content in files.items():
            held = content if isinstance(content, bytes) else str(content)
            one = CommitOperationAdd(path_in_repo=name, path_or_fileobj=held)
            api.preupload_lfs_files(repository, [one])  # small files wait for the commit
            operations.append(one)
            state.done_bytes += sizes[name]
            tell(state)
        state.phase = "committing"
        tell(state)
        made = api.create_commit(repository, operations, commit_message="Add what the run has made")
    except LocalTokenNotFoundError as error:
        raise refused("export-token") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise refused("export-token") from None
        raise refused("export-hub", reason=without_token(token, str(error).splitlines()[0])) from None
    except (HFValidationError, httpx.HTTPError, OSError, ValueError) as error:
        reason = without_token(token, f"{type(error).__name__}: {error}".splitlines()[0])
        raise refused("export-hub", reason=reason[:300]) from None
    return str(made.repo_url)


def without_token(token: str | None, text: str) -> str:
    return text.replace(token, "...") if token else text
