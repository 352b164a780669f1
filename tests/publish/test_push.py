"""`push` against a stand-in for the Hugging Face hub, which speaks what `upload_folder` needs: what goes up, and what
does not."""

import base64
import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from replication.cli import main
from replication.runs.folder import RunFolder

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Keeps what it is asked; answers as the hub does to who may write, except where `refused` says otherwise."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked, self.refused, self.is_private = [], {}, True

    def answer(self, path, body):
        if "/preupload/" in path:  # small files, and here all of them, come in the commit itself
            files = [{"uploadMode": "regular", "shouldIgnore": False, "oid": None} | file for file in body["files"]]
            return {"files": files}
        if "/commit/" in path:
            return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/me/model/commit/{COMMIT}"}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in ("masks.safetensors", "other.md")]
        return {
            "/api/repos/create": {"url": f"{self.url}/me/model"},
            "/api/models/me/model": {"id": "me/model", "private": self.is_private},
            "/api/validate-yaml": {"errors": [], "warnings": []},
        }.get(path, {})

    def commits(self):
        return [asked for asked in self.asked if "/commit/" in asked[0]]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path, is_lines = self.path.partition("?")[0], "ndjson" in self.headers.get("Content-Type", "")
        body = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text or "null")
        self.server.asked.append((path, self.headers.get("Authorization"), body))
        status, problem = self.server.refused.get(path, (200, None))
        answer = json.dumps(problem or self.server.answer(path, body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # HF_ENDPOINT, which was read at the import
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(with_snapshot, tmp_path):
    return RunFolder(shutil.copytree(with_snapshot["mst"].path, tmp_path / "run"))


def only_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def uploaded(hub):
    """Of the one commit: its message, name -> content of each file, and the names of those that it removes."""
    ((_, _, lines),) = hub.commits()
    values = [(line["key"], line["value"]) for line in lines]
    files = {value["path"]: base64.b64decode(value["content"]) for key, value in values if key == "file"}
    removed = [value["path"] for key, value in values if key == "deletedFile"]
    return lines[0]["value"]["summary"], files, removed


@pytest.mark.parametrize("place", [".", "checkpoint"])
def test_a_finished_run_goes_up_as_one_commit_with_card_and_masks(place, run, hub, capsys):
    (run.checkpoint / ".README.md.7.partial").write_text("half")
    assert main(["push", str(run.path / place), "me/model"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/me/model/commit/{COMMIT}\n"
    message, files, removed = uploaded(hub)
    assert message == f"smoke mst, seed 0: step 20, validation loss {run.metrics()[-1]['validation_loss']:.4f}"
    assert sorted(files) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "masks.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert files == {name: (run.checkpoint / name).read_bytes() for name in files} and removed == []
    assert {token for path, token, _ in hub.asked if "/models/" in path} == {"Bearer hf_of_a_test"}


def test_nothing_else_goes_up_that_lies_there_and_the_card_is_the_runs(run, hub):
    for name in (".env", "sub/.env", "sub/config.json", "notes.txt", "eval/mine.json", "model.safetensors.bak"):
        (run.checkpoint / name).parent.mkdir(exist_ok=True)
        (run.checkpoint / name).write_text("secret")
    card = (run.checkpoint / "README.md").read_bytes()
    (run.checkpoint / "README.md").write_text("secret")
    assert main(["push", str(run.path), "me/model"]) == 0
    _, files, _ = uploaded(hub)
    assert len(files) == 7 and files["README.md"] == card and not [name for name in files if b"secret" in files[name]]


@pytest.mark.parametrize("name", ["", "config.json", "generation_config.json", "masks.safetensors", "README.md"])
def test_what_a_link_points_to_does_not_go_up(name, run, hub, tmp_path, capsys):
    file, elsewhere = run.checkpoint / name, tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert main(["push", str(run.path), "me/model"]) == 2
    assert f"{file} is a link" in only_line(capsys) and hub.asked == []


def test_a_snapshot_goes_up_without_its_scores(run, hub):
    folder = run.path / "at" / "step-000010"
    (folder / "eval" / "dense").mkdir(parents=True)
    (folder / "eval" / "dense" / "a_task.json").write_text('{"results": {"a_task": {}}}')
    assert main(["push", str(folder), "me/model"]) == 0
    message, files, _ = uploaded(hub)
    assert "step 10," in message and files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not [name for name in files if "eval" in name]


def test_dense_weights_do_not_stay_beside_the_masks_of_others(with_snapshot, hub):
    assert main(["push", str(with_snapshot["dense"].path), "me/model"]) == 0
    _, files, removed = uploaded(hub)
    assert "masks.safetensors" not in files and removed == ["masks.safetensors"]


def test_one_from_before_there_were_cards_gets_one(run, hub):
    (run.checkpoint / "README.md").unlink()
    assert main(["push", str(run.path), "me/model"]) == 0
    assert b"pipeline_tag: text-generation" in uploaded(hub)[1]["README.md"]


def test_private_and_revision_are_asked_for_before_anything_goes_up(run, hub):
    assert main(["push", str(run.path), "me/model", "--private", "--revision", "v1"]) == 0
    asked = {path: body for path, _, body in hub.asked}
    paths = list(asked)
    assert asked["/api/repos/create"]["visibility"] == "private"
    assert paths.index("/api/models/me/model/branch/v1") < paths.index("/api/models/me/model/commit/v1")


def test_private_is_not_put_where_all_can_read(run, hub, capsys):
    hub.refused["/api/repos/create"] = (409, {"error": "You already created it", "url": f"{hub.url}/me/model"})
    hub.is_private = False
    assert main(["push", str(run.path), "me/model", "--private"]) == 2
    assert only_line(capsys).startswith("error: me/model is public; allowed with --private: a private repository")
    assert not hub.commits()


@pytest.mark.parametrize(
    ("status", "reason", "paths"),
    [
        (401, "Invalid username or password.", ["/api/repos/create", "/api/models/me/model"]),
        (403, "You may not create here", ["/api/repos/create", "/api/models/me/model"]),
        (404, "There is no such namespace", ["/api/repos/create"]),
        (403, "You may not write here", ["/api/models/me/model/preupload/main"]),
    ],
)
def test_where_it_may_not_write_is_one_line(status, reason, paths, run, hub, capsys):
    hub.refused |= {path: (status, {"error": reason}) for path in paths}
    assert main(["push", str(run.path), "me/model"]) == 2
    line = only_line(capsys)
    assert line.startswith(f"error: me/model cannot be written: the hub answers {status}: ") and reason in line
    assert not hub.commits()


def test_no_network_is_one_line(run, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert main(["push", str(run.path), "me/model"]) == 2
    assert only_line(capsys).startswith("error: nothing went up to me/model: ConnectError: ")


def test_without_a_token_nothing_is_looked_at_or_asked(hub, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert main(["push", str(tmp_path / "nowhere"), "me/model"]) == 2
    line = "error: no token for the Hugging Face hub is here; allowed: one in HF_TOKEN, or by `hf auth login`"
    assert only_line(capsys) == line and hub.asked == []


def test_a_name_that_is_none_is_one_line(run, hub, capsys):
    assert main(["push", str(run.path), "me/my/model"]) == 2
    assert only_line(capsys).startswith("error: REPO_ID is 'me/my/model'; allowed: a name on the hub, as in me/model")


def unfinish(run):
    run.write_status("failed", reason="the loss is nan", step=8)


def damage(run):
    file = run.checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def damage_log(run):
    (run.path / "flops.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (unfinish, "holds a failed run; allowed: a finished one"),
        (damage, "checkpoint/model.safetensors is damaged"),
        (damage_log, "flops.json is damaged"),
        (
            lambda run: shutil.rmtree(run.checkpoint),
            "holds no weights; allowed: a finished run that has its checkpoint",
        ),
        (lambda run: (run.path / "status.json").unlink(), "is of no run; allowed: a finished run's folder"),
    ],
)
def test_what_is_not_whole_or_not_finished_stays_here(harm, problem, run, hub, capsys):
    harm(run)
    assert main(["push", str(run.path), "me/model"]) == 2
    assert problem in only_line(capsys) and hub.asked == []
