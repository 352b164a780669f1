"""A finished run's checkpoint, uploaded to the Hugging Face hub."""

from pathlib import Path

from replication.publish.card import write_cards
from replication.runs.folder import CARD, RunFolder
from replication.runs.snapshots import DENSE_LOSS, MASKS, WEIGHTS, Snapshot, last_of, snapshots_of
from replication.system.errors import UserError
from replication.system.files import real_path

# What goes up: nothing else that lies in the folder.
FILES = (CARD, "config.json", "generation_config.json", WEIGHTS, MASKS, "tokenizer.json", "tokenizer_config.json")


def push(path: Path, repo: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a checkpoint into a repository, which is made if it is not there, as one commit; returns its address.

    Args:
        path: a run's folder, its checkpoint, or one of its snapshots.
        repo: as in `name/model`.
        private: make the repository so, or refuse one that is not.
        revision: a branch of it, made if it is not there; None: the main one.

    Raises:
        UserError: no token, no finished run, no weights of it, a link among them, no such repository, no right to it,
            or no hub.
        DamagedError: a file of the run is not as it was written.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError("no token for the Hugging Face hub is here; allowed: one in HF_TOKEN, or by `hf auth login`")
    snapshot = _snapshot_at(path)
    for file in (snapshot.weights, *(snapshot.weights / name for name in FILES)):
        if file.is_symlink():
            raise UserError(f"{file} is a link, and what it points to would go up; allowed: files of the run itself")
    write_cards(snapshot.run)  # as the logs have it, whatever its text was
    return _upload(snapshot, token, repo, private, revision)


def _snapshot_at(path: Path) -> Snapshot:
    """What is to be uploaded, and is whole."""
    path = real_path(path)
    run = next((run for run in map(RunFolder, (path, *path.parents[:2])) if run.status()), None)
    if run is None:
        raise UserError(f"{path} is of no run; allowed: a finished run's folder, or its checkpoint's")
    if not run.is_finished():
        raise UserError(f"{run.path} holds a {run.status()['status']} run; allowed: a finished one")
    run.verify(without=["checkpoint/*"])
    of_run = (last_of(run), *snapshots_of(run))
    snapshot = next((each for each in of_run if path in (run.path, each.weights)), None)
    if snapshot is None or not snapshot.has_weights:
        raise UserError(f"{path} holds no weights; allowed: a finished run that has its checkpoint")
    run.verify()
    snapshot.check()
    return snapshot


def _upload(snapshot: Snapshot, token: str, repo: str, private: bool, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(f"{repo} is public; allowed with --private: a private repository, or a new one")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=snapshot.weights,
            revision=revision,
            commit_message=_message(snapshot),
            allow_patterns=[*FILES],
            delete_patterns=MASKS,  # of a sparse run that was there, where this one is dense
        )
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"REPO_ID is {repo!r}; allowed: a name on the hub, as in me/model ({_line(error)})") from None
    except HfHubHTTPError as error:
        reason = error.server_message or _line(error)
        problem = f"the hub answers {error.response.status_code}: {reason}"
        raise UserError(
            f"{repo} cannot be written: {problem}; allowed: a repository that the token may write"
        ) from None
    except Exception as error:  # of the network; they have no common class
        problem = f"{type(error).__name__}: {_line(error)}"
        raise UserError(f"nothing went up to {repo}: {problem}; allowed: a hub that can be reached") from None
    return str(done.commit_url)


def _message(snapshot: Snapshot) -> str:
    config, row = snapshot.run.config(), snapshot.row
    loss = row.get(DENSE_LOSS, row.get("validation_loss"))
    which = f"{config['profile']} {config['arm']}, seed {config['seed']}"
    return f"{which}: step {snapshot.step}, validation loss {loss:.4f}"


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
