"""What people do with a hub, done with one version of `huggingface_hub`: run as a program, told by the environment.

It needs nothing but the standard library and the client: `PYTHONPATH=.venv-clients/0.25.2 python -S scenario.py`.
`HF_ENDPOINT` is the hub; `TOKENS` a JSON object with tokens of `alice`, `bob` and `reader` (alice's, which only reads).
It prints a JSON object: for every step its value, or the error that the client raised.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub import utils as errors

TOKENS = json.loads(os.environ["TOKENS"])
REPO = "alice/demo"
CARD = """---
language:
- en
license: apache-2.0
base_model: google-bert/bert-base-uncased
datasets:
- glue
tags:
- adapter-transformers
- adapterhub:sentiment/sst-2
- bert
---
# A demo
"""
BOTTLENECK = {
    "architecture": None,
    "mh_adapter": False,
    "output_adapter": True,
    "non_linearity": "relu",
    "reduction_factor": 16,
    "original_ln_before": True,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "leave_out": [],
}
# The most telling first: many of these are kinds of the next ones.
ERRORS = (
    "LocalEntryNotFoundError",
    "EntryNotFoundError",
    "RevisionNotFoundError",
    "RepositoryNotFoundError",
    "BadRequestError",
    "HfHubHTTPError",
)


def main() -> None:
    """Runs the steps, in order, and prints what came of them."""
    done: dict[str, Any] = {}
    for step in STEPS:
        try:
            done[step.__name__] = {"value": step()}
        except Exception as error:
            done[step.__name__] = told(error)
    print(json.dumps({"version": huggingface_hub.__version__, "steps": done}))


def told(error: Exception) -> dict[str, Any]:
    """An error, as all versions of the client could have raised it."""
    kind = next((name for name in ERRORS if isinstance(error, getattr(errors, name))), type(error).__name__)
    status = getattr(getattr(error, "response", None), "status_code", None)
    return {"error": kind, "status": status, "message": str(error)}


STEPS: list[Callable[[], Any]] = []


def step(function: Callable[[], Any]) -> Callable[[], Any]:
    """Adds a step."""
    STEPS.append(function)
    return function


# ---- files ----------------------------------------------------------------------------------------------------------


def safetensors(shapes: dict[str, list[int]], seed: int) -> bytes:
    """A safetensors file of finite numbers that no compression makes small."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * product(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    numbers = bytearray(random.Random(seed).randbytes(end))
    numbers[3::4] = b"\x3c" * (end // 4)  # sign and most of the exponent: all lie between 2**-7 and 2**-6
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(numbers)


def product(shape: list[int]) -> int:
    """The number of elements."""
    count = 1
    for size in shape:
        count *= size
    return count


def bottleneck(layers: int = 12, width: int = 768, seed: int = 0) -> bytes:
    """The weights of a bottleneck adapter for BERT: 3.6 MB."""
    shapes: dict[str, list[int]] = {}
    small = width // BOTTLENECK["reduction_factor"]
    for layer in range(layers):
        place = f"bert.encoder.layer.{layer}.output.adapters.sst-2"
        shapes[f"{place}.adapter_down.0.weight"] = [small, width]
        shapes[f"{place}.adapter_down.0.bias"] = [small]
        shapes[f"{place}.adapter_up.weight"] = [width, small]
        shapes[f"{place}.adapter_up.bias"] = [width]
    return safetensors(shapes, seed)


def adapter_folder(folder: Path) -> Path:
    """A folder with an adapter, its card, and files with unusual names."""
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    config = {
        "config": BOTTLENECK,
        "hidden_size": 768,
        "model_class": "BertAdapterModel",
        "model_name": "google-bert/bert-base-uncased",
        "model_type": "bert",
        "name": "sst-2",
        "version": "adapters.2.0.0",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter.safetensors").write_bytes(bottleneck())
    (folder / "empty.txt").touch()
    (folder / "uni é 漢字.txt").write_text("é")
    (folder / "sub" / "notes.txt").write_text("notes")
    return folder


WORK = Path(tempfile.mkdtemp())
FOLDER = adapter_folder(WORK / "adapter")
WEIGHTS = FOLDER / "adapter.safetensors"

api = HfApi(token=TOKENS["alice"])
bob = HfApi(token=TOKENS["bob"])
reader = HfApi(token=TOKENS["reader"])
nobody = HfApi(token=False)


def sha256(path: str | Path) -> str:
    """Of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def fetched(name: str, **options: Any) -> str:
    """The text of a file that is downloaded."""
    options = {"token": TOKENS["alice"], **options}
    return Path(hf_hub_download(options.pop("repo_id", REPO), name, **options)).read_text()


def titles(**options: Any) -> list[str]:
    """Of the commits, the newest first."""
    return [commit.title for commit in api.list_repo_commits(REPO, **options)]


# ---- accounts and repositories --------------------------------------------------------------------------------------


@step
def whoami() -> Any:
    told = api.whoami()
    return told["name"], [org["name"] for org in told["orgs"]], told["auth"]["accessToken"]["role"]


@step
def whoami_with_a_bad_token() -> Any:
    return HfApi(token="ahb_bad").whoami()


@step
def repo_exists_before() -> Any:
    return api.repo_exists(REPO)


@step
def create() -> Any:
    made = api.create_repo(REPO)
    return str(made).replace(constants.ENDPOINT, ""), made.repo_id


@step
def create_with_exist_ok() -> Any:
    return api.create_repo(REPO, exist_ok=True).repo_id


@step
def create_again() -> Any:
    return api.create_repo(REPO).repo_id


@step
def create_in_a_foreign_namespace() -> Any:
    return bob.create_repo("alice/other").repo_id


@step
def create_private_in_an_organisation() -> Any:
    api.create_repo("acme/hidden", private=True)
    return api.model_info("acme/hidden").private


@step
def repo_exists_after() -> Any:
    return api.repo_exists(REPO), nobody.repo_exists(REPO)


# ---- uploads --------------------------------------------------------------------------------------------------------


@step
def upload_folder() -> Any:
    made = api.upload_folder(repo_id=REPO, folder_path=FOLDER, commit_message="The adapter")
    return made.commit_url.replace(constants.ENDPOINT, "") == f"/{REPO}/commit/{made.oid}", titles()


@step
def upload_folder_again() -> Any:
    before = api.model_info(REPO).sha
    made = api.upload_folder(repo_id=REPO, folder_path=FOLDER)
    return made.oid == before, titles()


@step
def upload_file() -> Any:
    api.upload_file(repo_id=REPO, path_or_fileobj=b"hello", path_in_repo="notes/a.txt", commit_message="A note")
    return titles()


@step
def upload_a_pickle_by_name() -> Any:
    return api.upload_file(repo_id=REPO, path_or_fileobj=b"hello", path_in_repo="pytorch_adapter.bin").oid


@step
def upload_a_pickle_in_disguise() -> Any:
    data = pickle.dumps(Path("x"), protocol=4)
    return api.upload_file(repo_id=REPO, path_or_fileobj=data, path_in_repo="notes/b.txt").oid


@step
def upload_a_broken_card() -> Any:
    card = b"---\ntags: [\n---\n"
    return api.upload_file(repo_id=REPO, path_or_fileobj=card, path_in_repo="README.md").oid


@step
def upload_a_poor_card() -> Any:
    api.create_branch(REPO, branch="poor")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        card = CARD.replace("license: apache-2.0\n", "").encode()
        api.upload_file(repo_id=REPO, path_or_fileobj=card, path_in_repo="README.md", revision="poor")
    api.delete_branch(REPO, branch="poor")
    return [str(warning.message) for warning in caught if "validating" in str(warning.message)]


# ---- looking --------------------------------------------------------------------------------------------------------


@step
def model_info() -> Any:
    info = api.model_info(REPO)
    assert info.card_data is not None
    return {
        "id": info.id,
        "author": info.author,
        "private": info.private,
        "tags": sorted(info.tags or ()),
        "library_name": info.library_name,
        "files": [file.rfilename for file in info.siblings or ()],
        "license": info.card_data.license,
        "has date": info.last_modified is not None and info.created_at is not None,
        "config": sorted(info.config or {}),
    }


@step
def model_info_of_files() -> Any:
    files = {file.rfilename: file for file in api.model_info(REPO, files_metadata=True).siblings or ()}
    large = files["adapter.safetensors"]
    assert large.lfs is not None
    return large.size == WEIGHTS.stat().st_size, large.lfs["sha256"] == sha256(WEIGHTS), files["empty.txt"].size


@step
def list_models_by_tag() -> Any:
    one = api.list_models(filter="adapter-transformers", full=True, fetch_config=True, cardData=True)
    both = api.list_models(filter=["adapter-transformers", "bert"])
    none = api.list_models(filter=["adapter-transformers", "roberta"])
    return [[model.id for model in models] for models in (one, both, none)]


@step
def list_models_by_words() -> Any:
    found = api.list_models(search="demo", author="alice", sort="downloads", limit=5)
    return [model.id for model in found], [model.id for model in api.list_models(search="nothing-like-it")]


@step
def list_models_private() -> Any:
    return [sorted(model.id for model in who.list_models(author="acme")) for who in (api, bob, nobody)]


@step
def list_files() -> Any:
    return api.list_repo_files(REPO)


@step
def tree() -> Any:
    return sorted(item.path for item in api.list_repo_tree(REPO))


@step
def tree_of_a_folder() -> Any:
    return [(item.path, item.last_commit.title) for item in api.list_repo_tree(REPO, "sub", expand=True)]


@step
def tree_of_a_missing_folder() -> Any:
    return [item.path for item in api.list_repo_tree(REPO, "nowhere")]


@step
def paths_info() -> Any:
    return sorted(item.path for item in api.get_paths_info(REPO, ["sub", "README.md", "uni é 漢字.txt", "zz"]))


@step
def file_exists() -> Any:
    return api.file_exists(REPO, "README.md"), api.file_exists(REPO, "nope"), api.revision_exists(REPO, "nope")


@step
def safetensors_metadata() -> Any:
    found = api.parse_safetensors_file_metadata(REPO, "adapter.safetensors")
    return len(found.tensors), sum(found.parameter_count.values())


# ---- downloads ------------------------------------------------------------------------------------------------------


@step
def download_small() -> Any:
    return json.loads(fetched("adapter_config.json"))["name"]


@step
def download_large() -> Any:
    path = hf_hub_download(REPO, "adapter.safetensors")
    again = hf_hub_download(REPO, "adapter.safetensors")
    return sha256(path) == sha256(WEIGHTS), path == again


@step
def download_unusual_names() -> Any:
    return fetched("uni é 漢字.txt"), fetched("empty.txt"), fetched("sub/notes.txt")


@step
def download_at_a_commit() -> Any:
    first = api.list_repo_commits(REPO)[-1].commit_id
    return fetched(".gitattributes", revision=first)[:1], fetched(".gitattributes", revision=first[:8])[:1]


@step
def download_a_missing_file() -> Any:
    return fetched("nope.json")


@step
def a_missing_file_is_remembered() -> Any:
    found = huggingface_hub.try_to_load_from_cache(REPO, "nope.json")
    return found is huggingface_hub._CACHED_NO_EXIST


@step
def download_at_a_missing_revision() -> Any:
    return fetched("README.md", revision="nope")


@step
def download_from_a_missing_repo() -> Any:
    return fetched("README.md", repo_id="alice/none")


@step
def snapshot() -> Any:
    folder = Path(snapshot_download(REPO))
    again = snapshot_download(REPO)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return files, again == str(folder), sha256(folder / "adapter.safetensors") == sha256(WEIGHTS)


@step
def snapshot_into_a_folder() -> Any:
    snapshot_download(REPO, local_dir=WORK / "local", allow_patterns=["*.json"])
    return sorted(path.name for path in (WORK / "local").glob("*.*") if path.is_file())


@step
def card() -> Any:
    return ModelCard.load(REPO).data.tags


# ---- branches, tags, history ----------------------------------------------------------------------------------------


@step
def branches() -> Any:
    api.create_branch(REPO, branch="v1")
    api.create_branch(REPO, branch="feat/x", revision="v1")
    api.create_branch(REPO, branch="feat/x", exist_ok=True)
    return [branch.name for branch in api.list_repo_refs(REPO).branches]


@step
def create_branch_again() -> Any:
    return api.create_branch(REPO, branch="feat/x")


@step
def commit_to_a_branch() -> Any:
    api.upload_file(repo_id=REPO, path_or_fileobj=b"v1", path_in_repo="v.txt", revision="feat/x", commit_message="V")
    return fetched("v.txt", revision="feat/x"), titles(revision="feat/x")[0], titles()[0]


@step
def look_at_a_branch() -> Any:
    info = api.model_info(REPO, revision="feat/x")
    listed = [item.path for item in api.list_repo_tree(REPO, revision="feat/x") if item.path == "v.txt"]
    return info.sha == api.list_repo_commits(REPO, revision="feat/x")[0].commit_id, listed


@step
def tags() -> Any:
    api.create_tag(REPO, tag="1.0", tag_message="The first")
    found = [tag.name for tag in api.list_repo_refs(REPO).tags]
    return found, len(fetched("README.md", revision="1.0")) == len(CARD)


@step
def create_tag_again() -> Any:
    return api.create_tag(REPO, tag="1.0")


@step
def delete_branch_and_tag() -> Any:
    api.delete_branch(REPO, branch="v1")
    api.delete_tag(REPO, tag="1.0")
    refs = api.list_repo_refs(REPO)
    return [branch.name for branch in refs.branches], [tag.name for tag in refs.tags]


@step
def delete_the_default_branch() -> Any:
    return api.delete_branch(REPO, branch="main")


# ---- pull requests --------------------------------------------------------------------------------------------------


@step
def pull_request_with_a_file() -> Any:
    made = bob.upload_file(
        repo_id=REPO, path_or_fileobj=b"pr", path_in_repo="pr.txt", create_pr=True, commit_message="A proposal"
    )
    return made.pr_num, made.pr_revision, api.file_exists(REPO, "pr.txt"), fetched("pr.txt", revision="refs/pr/1")


@step
def pull_request_with_a_folder() -> Any:
    made = api.upload_folder(
        repo_id=REPO, folder_path=FOLDER, path_in_repo="more", create_pr=True, allow_patterns=["*.txt"]
    )
    return made.pr_num, api.file_exists(REPO, "more/sub/notes.txt", revision=made.pr_revision)


@step
def pull_request_made_first() -> Any:
    pull = api.create_pull_request(REPO, title="Step by step", description="More will come")
    revision = f"refs/pr/{pull.num}"
    api.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="steps.txt", revision=revision)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"2", path_in_repo="steps.txt", revision=revision)
    return pull.num, pull.is_pull_request, fetched("steps.txt", revision=revision)


@step
def discussions() -> Any:
    talk = bob.create_discussion(REPO, title="A question", description="What is this?")
    found = api.get_repo_discussions(REPO)
    return talk.num, [(item.num, item.title, item.is_pull_request) for item in found]


@step
def comment() -> Any:
    made = bob.comment_discussion(REPO, 1, "What do you think?")
    events = api.get_discussion_details(REPO, 1).events
    return made.content, [event.type for event in events]


@step
def pull_request_details() -> Any:
    found = api.get_discussion_details(REPO, 1)
    return found.title, found.status, found.author, found.is_pull_request, found.target_branch, found.diff


@step
def close_and_reopen() -> Any:
    closed = api.change_discussion_status(REPO, 2, "closed").new_status
    opened = api.change_discussion_status(REPO, 2, "open").new_status
    return closed, opened, api.get_discussion_details(REPO, 2).status


@step
def merge_as_a_stranger() -> Any:
    return bob.merge_pull_request(REPO, 1)


@step
def merge() -> Any:
    api.merge_pull_request(REPO, 1)
    return api.get_discussion_details(REPO, 1).status, fetched("pr.txt"), titles()[0]


@step
def refs_of_pull_requests() -> Any:
    return [ref.ref for ref in api.list_repo_refs(REPO, include_pull_requests=True).pull_requests or ()]


# ---- other commits --------------------------------------------------------------------------------------------------


@step
def commit_on_a_stale_parent() -> Any:
    add = CommitOperationAdd("n.txt", b"m")
    return api.create_commit(REPO, [add], commit_message="Late", parent_commit=api.list_repo_commits(REPO)[1].commit_id)


@step
def commit_on_the_right_parent() -> Any:
    operations = [
        CommitOperationAdd("n.txt", b"n"),
        CommitOperationDelete("empty.txt"),
        CommitOperationCopy("adapter.safetensors", "copies/adapter.safetensors"),
        CommitOperationCopy("README.md", "copies/README.md"),
    ]
    head = api.model_info(REPO).sha
    api.create_commit(REPO, operations, commit_message="All at once", parent_commit=head)
    copy = hf_hub_download(REPO, "copies/adapter.safetensors")
    return api.file_exists(REPO, "empty.txt"), sha256(copy) == sha256(WEIGHTS), fetched("copies/README.md") == CARD


@step
def delete_file() -> Any:
    api.delete_file("n.txt", REPO)
    return api.file_exists(REPO, "n.txt")


@step
def delete_folder() -> Any:
    api.delete_folder("copies", REPO)
    return [path for path in api.list_repo_files(REPO) if path.startswith("copies")]


@step
def delete_a_missing_file() -> Any:
    return api.delete_file("n.txt", REPO)


@step
def a_write_with_a_token_that_reads() -> Any:
    return reader.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="y.txt")


@step
def a_write_by_a_stranger() -> Any:
    return bob.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="y.txt")


@step
def a_write_by_nobody() -> Any:
    return nobody.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="y.txt")


# ---- the file system ------------------------------------------------------------------------------------------------


@step
def file_system() -> Any:
    files = HfFileSystem(token=TOKENS["alice"])
    with files.open(f"{REPO}/adapter.safetensors", block_size=1 << 16) as file:
        file.seek(1_000_000)
        part = file.read(10)
    same = part == WEIGHTS.read_bytes()[1_000_000:1_000_010]
    return sorted(files.ls(f"{REPO}/sub", detail=False)), files.glob(f"{REPO}/*.json"), same


@step
def file_system_writes() -> Any:
    files = HfFileSystem(token=TOKENS["alice"])
    with files.open(f"{REPO}/written.txt", "w") as file:
        file.write("by fsspec")
    return fetched("written.txt")


# ---- privacy, names, the end ----------------------------------------------------------------------------------------


@step
def make_private() -> Any:
    change = getattr(api, "update_repo_visibility", None) or api.update_repo_settings
    change(REPO, private=True)
    return api.model_info(REPO).private, reader.model_info(REPO).private


@step
def private_for_nobody() -> Any:
    return nobody.model_info(REPO).id


@step
def private_for_a_stranger() -> Any:
    return bob.model_info(REPO).id


@step
def private_download_by_nobody() -> Any:
    return fetched("README.md", token=False, cache_dir=WORK / "other-cache")


@step
def auth_check() -> Any:
    return api.auth_check(REPO)


@step
def move() -> Any:
    api.move_repo(REPO, "acme/moved")
    return api.model_info(REPO).id, fetched("pr.txt", cache_dir=WORK / "moved-cache")


@step
def cached_without_a_network() -> Any:
    return fetched("written.txt", local_files_only=True)


@step
def delete() -> Any:
    api.delete_repo("acme/moved")
    api.delete_repo("acme/moved", missing_ok=True)
    return api.repo_exists("acme/moved"), api.repo_exists(REPO)


@step
def delete_again() -> Any:
    return api.delete_repo("acme/moved")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    sys.exit(0)
