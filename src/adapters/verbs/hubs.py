"""How do adapters get onto hubs? They come from there by the verbs that load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import CommitInfo

from adapters.checkpoint.layout import Files, PathLike
from adapters.hub import upload
from adapters.verbs.base import Verbs


class HubVerbs(Verbs):
    """Pushing adapters and set-ups to the hub in use."""

    def push_adapter_to_hub(
        self,
        repo_id: str,
        adapter_name: str,
        datasets_tag: str | Sequence[str] | None = None,
        local_path: PathLike | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        overwrite_adapter_card: bool = False,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
        adapter_card_kwargs: Mapping[str, Any] | None = None,
        use_safetensors: Files = True,
        with_head: bool = True,
    ) -> CommitInfo:
        """Upload an adapter to the hub in use (`adapters.hub.use`), with a page that describes it.

        Args:
            repo_id: Repository "org/name"; it is made if need be.
            adapter_name: The adapter.
            datasets_tag: Id of the data set, or ids of the data sets, that it was trained on.
            local_path: Folder to leave a copy of the files in. If it holds a README.md, that is the page.
            commit_message: Title of the commit.
            private: Whether a new repository is private; by default as its owner has set.
            token: Token of the hub; by default HF_TOKEN.
            overwrite_adapter_card: Replace a page that is there.
            create_pr: Propose the change as a pull request.
            revision: Branch to upload to; it is made if need be.
            commit_description: Text of the commit.
            adapter_card_kwargs: What the page says besides what the files tell: `task` ("task/subtask"), `language`,
                `license`, `metrics`, `tags`, `datasets`, `description`, `architecture_training`, `results` (text, or
                dicts with "dataset", "metric" and "value"), `citation`.
            use_safetensors: Upload safetensors (True), pickle files (False), which hubs may refuse, or "both", which
                `adapters` 1.x can load without `use_safetensors=True`.
            with_head: Upload the prediction head of the same name too, or the head of a plain class.
        Returns:
            What was committed; `pr_url` of it is the pull request.
        Raises:
            AdapterNameError: there is no such adapter, or no repository can be called so.
            ConfigError: `adapter_card_kwargs` has an unknown entry.
            HubError: the hub could not be reached, or refused (an OSError).
        """
        commit = (local_path, commit_message, private, token, overwrite_adapter_card, create_pr, revision)
        push = upload.Push(repo_id, datasets_tag, *commit, commit_description, adapter_card_kwargs)
        return upload.push_adapter(self, adapter_name, push, use_safetensors, with_head)

    def push_adapter_setup_to_hub(
        self,
        repo_id: str,
        adapter_setup: Any,
        head_setup: Any = None,
        datasets_tag: str | Sequence[str] | None = None,
        local_path: PathLike | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        overwrite_adapter_card: bool = False,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
        adapter_card_kwargs: Mapping[str, Any] | None = None,
        use_safetensors: Files = True,
    ) -> CommitInfo:
        """Upload a composition with all adapters, fusions and heads in it to the hub in use.

        Args:
            adapter_setup: A block, or an adapter's name.
            head_setup: Heads to upload, as for `save_adapter_setup`.
            repo_id, datasets_tag, local_path, commit_message, private, token: As for `push_adapter_to_hub`.
            overwrite_adapter_card, create_pr, revision, commit_description: As for `push_adapter_to_hub`.
            adapter_card_kwargs, use_safetensors: As for `push_adapter_to_hub`.
        Returns:
            What was committed.
        Raises:
            AdapterNameError: a part of it does not exist, or no repository can be called so.
            ConfigError: `adapter_card_kwargs` has an unknown entry.
            HubError: the hub could not be reached, or refused (an OSError).
        """
        commit = (local_path, commit_message, private, token, overwrite_adapter_card, create_pr, revision)
        push = upload.Push(repo_id, datasets_tag, *commit, commit_description, adapter_card_kwargs)
        return upload.push_setup(self, adapter_setup, head_setup, push, use_safetensors)
