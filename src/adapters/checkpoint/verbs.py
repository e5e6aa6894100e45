"""The verbs on a model that read and write files, and those that make adapters out of others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import CommitInfo
from torch import nn

from adapters.checkpoint import adapters as adapter_files
from adapters.checkpoint import embeddings, full_model
from adapters.checkpoint import fusion as fusion_files
from adapters.checkpoint import heads as head_files
from adapters.checkpoint import setup as setup_files
from adapters.checkpoint.atomic import reading, saving
from adapters.checkpoint.average import average_adapter
from adapters.checkpoint.layout import ADAPTER, FUSION, HEAD, SETUP_FILE, subfolder, write_interface
from adapters.checkpoint.locate import locate
from adapters.checkpoint.undo import Before
from adapters.composition.blocks import Fuse
from adapters.hub import upload
from adapters.methods.config import get_adapter_config_hash
from adapters.runtime.engine import Engine

PathLike = str | os.PathLike[str]


class CheckpointVerbs:
    """What a model with adapters can do with files."""

    _engine: Engine
    _keys_to_ignore_on_load_unexpected: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = getattr(super(), "_keys_to_ignore_on_load_unexpected", None)
        if "_keys_to_ignore_on_load_unexpected" not in vars(cls):
            cls._keys_to_ignore_on_load_unexpected = [*(inherited or ()), *full_model.OURS]

    # ---------------------------------------------------------------------------------------------- adapters

    def save_adapter(
        self,
        save_directory: PathLike,
        adapter_name: str,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
        with_head: bool = True,
    ) -> None:
        """Save an adapter: its config and its tensors.

        The folder changes as a whole: it holds the old state or the new one, also if the program is killed. Files that
        are not ours stay. So do other kinds of checkpoints in it, but not the head of an adapter that was there.

        Args:
            save_directory: Folder to save in; it is made.
            adapter_name: The adapter.
            meta_dict: More entries for adapter_config.json.
            custom_weights_loaders: Objects whose `save(folder, adapter_name)` is called too; what they write into
                `folder` gets into `save_directory` with the rest.
            use_safetensors: Write adapter.safetensors, or else pytorch_adapter.bin.
            with_head: Save the prediction head of the same name too, or the head of a plain class.
        Raises:
            AdapterNameError: there is no adapter of this name.
        """
        self._engine.require(adapter_name)
        with saving(save_directory) as folder:
            adapter_files.write_adapter(self, folder, adapter_name, meta_dict, use_safetensors)
            if with_head and head_files.has_head(self, adapter_name):
                head_files.write_head(self, folder, adapter_name, meta_dict, use_safetensors)
            for loader in custom_weights_loaders or ():
                loader.save(str(folder), adapter_name)

    def load_adapter(
        self,
        adapter_name_or_path: PathLike,
        config: Any = None,
        version: str | None = None,
        model_name: str | None = None,
        load_as: str | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        leave_out: Sequence[int] | None = None,
        id2label: Mapping[int, str] | None = None,
        set_active: bool = False,
        use_safetensors: bool = True,
        with_head: bool = True,
        num_labels: int | None = None,
        strict: bool = True,
        loading_info: dict[str, Any] | None = None,
        source: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Load an adapter from a folder, an archive or the hub in use (`adapters.hub.use`).

        If the model has an adapter of this name and config, its weights are replaced.

        Args:
            adapter_name_or_path: A folder or archive, a URL of an archive, or a repository such as "org/name". Where
                the hub has an index of tasks, also "@org/file", "task/subtask@org", "task/subtask" or "subtask".
            config: The config, where the index has several adapters of this name; what is loaded has its stored one.
            version: Branch, tag or commit of the repository.
            model_name: The base model, where the index has several adapters of this name; by default this model's.
            load_as: Name in this model; by default the one it was saved with.
            custom_weights_loaders: Objects whose `load(folder, load_as=name, loading_info=...)` is called too.
            leave_out: Layers whose part of the adapter is not loaded.
            id2label: Names of the labels of the head that is loaded with it, instead of the stored ones.
            set_active: Activate the adapter.
            use_safetensors: Which file to take if both are there; if there is one, it is taken.
            with_head: Load the prediction head that lies beside the adapter, under the adapter's name.
            num_labels: Labels, a count, of a plain class's head that becomes a flexible one; by default as stored.
            strict: Refuse files with missing or unexpected tensors; otherwise they are only logged.
            loading_info: Receives `missing_keys` and `unexpected_keys`.
            source: Look only there: "local", a folder or archive; "hf", a repository; "ah", the hub's index. None: in
                this order.
            kwargs: Arguments of the download: `cache_dir`, `force_download`, `token`, `revision`, `subfolder`, ...
        Returns:
            The adapter's name in this model.
        Raises:
            CheckpointNotFound: there is nothing to load, or several adapters have this name (an OSError).
            CheckpointError: tensors are missing, unexpected or of another shape, or what was downloaded is not what the
                hub has on record. The model is as it was.
        """
        choice = {"source": source, "model_name": model_name, "config": config, "use_safetensors": use_safetensors}
        base_model = self.config.name_or_path  # type: ignore[attr-defined]
        folder = locate(adapter_name_or_path, ADAPTER, version, base_model=base_model, **choice, **kwargs)
        with Before(self) as before:
            with reading(folder):
                options = (load_as, leave_out, use_safetensors, strict, loading_info)
                name = adapter_files.load_adapter(self, folder, before, *options)
                if with_head:
                    head_options: dict[str, Any] = {"id2label": id2label, "num_labels": num_labels}
                    head_options |= {"use_safetensors": use_safetensors, "set_active": set_active, "strict": strict}
                    head_files.load_head_beside(self, folder, before, name, **head_options)
            for loader in custom_weights_loaders or ():
                loader.load(str(folder), load_as=name, loading_info=loading_info)
            if set_active:
                self.set_active_adapters(name)  # type: ignore[attr-defined]
        return name

    def save_all_adapters(
        self,
        save_directory: PathLike,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
        with_head: bool = True,
    ) -> None:
        """Save every adapter in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            meta_dict, custom_weights_loaders, use_safetensors, with_head: As for `save_adapter`.
        """
        config = self._engine.config
        with saving(save_directory) as folder:
            for name in config:
                meta = {**(meta_dict or {}), "config_id": get_adapter_config_hash(config.get(name) or {})}
                options = (meta, custom_weights_loaders, use_safetensors, with_head)
                self.save_adapter(subfolder(folder, name), name, *options)

    def average_adapter(
        self,
        adapter_name: str,
        adapter_list: Sequence[str] | Mapping[str, float],
        weights: Sequence[float] | None = None,
        combine_strategy: str = "linear",
        normalize_weights: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = False,
        svd_rank: int | None = None,
    ) -> None:
        """Add an adapter whose weights are the average of those of other adapters.

        Args:
            adapter_name: Name of the new adapter.
            adapter_list: Names of the adapters, or a dict name -> weight.
            weights: One number per adapter; equal shares by default.
            combine_strategy: "linear" averages every tensor; "lora_linear_only_negate_b" takes the weights' absolute
                values for A of LoRA; "lora_delta_w_svd" averages what LoRA adapters do, (alpha / r) B A, and factorises
                the result: here r and alpha may differ, also at fused projections. "lora_delta_w_svd_unscaled" gives
                the numbers of older versions: B A without alpha / r, used with the old alpha and the new rank.
            normalize_weights: Divide the weights by their sum.
            overwrite_ok: Replace an adapter of the name `adapter_name`.
            set_active: Activate the new adapter.
            svd_rank: Rank of the new adapter, with "lora_delta_w_svd", whose alpha is `svd_rank` too.
        Raises:
            AdapterNameError: an adapter does not exist, or `adapter_name` is taken.
            MergeError: the adapters differ in their configs, or the strategy does not suit them.
        """
        options = (weights, combine_strategy, normalize_weights, svd_rank, overwrite_ok)
        average_adapter(self._engine, adapter_name, adapter_list, *options)
        if set_active:
            self.set_active_adapters(adapter_name)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------ fusions and set-ups

    def save_adapter_fusion(
        self,
        save_directory: PathLike,
        adapter_names: Fuse | Sequence[str] | str,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
        with_head: bool | str = False,
    ) -> None:
        """Save a fusion's layers; save the adapters that it fuses apart.

        Args:
            save_directory: Folder to save in; it is made.
            adapter_names: The fusion: its name, its block or the names of its adapters.
            meta_dict: More entries for adapter_fusion_config.json.
            custom_weights_loaders: Objects whose `save(save_directory, name)` is called too.
            use_safetensors: Write safetensors, or else a pickle file.
            with_head: Save a head too: the one of this name, or with True the one called like the fusion.
        Raises:
            AdapterNameError: there is no such fusion.
        """
        name = fusion_name(adapter_names)
        self._engine.require_fusion(name)
        with saving(save_directory) as folder:
            fusion_files.write_fusion(self, folder, name, meta_dict, use_safetensors)
            if with_head:
                head = with_head if isinstance(with_head, str) else name
                if isinstance(with_head, str) or head_files.has_head(self, head):
                    head_files.write_head(self, folder, head, meta_dict, use_safetensors)
            for loader in custom_weights_loaders or ():
                loader.save(str(folder), name)

    def load_adapter_fusion(
        self,
        adapter_fusion_name_or_path: PathLike,
        load_as: str | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        set_active: bool = False,
        use_safetensors: bool = True,
        with_head: bool = True,
        strict: bool = True,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """Load a fusion's layers. The adapters that it fuses must have been added before, under their names.

        Args:
            adapter_fusion_name_or_path: As for `load_adapter`.
            load_as: Name in this model; by default the one it was saved with.
            custom_weights_loaders, use_safetensors, strict, loading_info, kwargs: As for `load_adapter`.
            set_active: Activate the fusion.
            with_head: Load the head that lies beside it.
        Returns:
            The fusion's name in this model.
        Raises:
            CheckpointNotFound: there is nothing to load (an OSError).
            CheckpointError: tensors are missing, unexpected or of another shape. The model is as it was.
        """
        folder = locate(adapter_fusion_name_or_path, FUSION, use_safetensors=use_safetensors, **kwargs)
        with Before(self) as before:
            with reading(folder):
                options = (load_as, use_safetensors, strict, loading_info)
                name = fusion_files.load_fusion(self, folder, before, *options)
                if with_head:
                    head_options = {"use_safetensors": use_safetensors, "set_active": set_active, "strict": strict}
                    head_files.load_head_beside(self, folder, before, name, **head_options)
            for loader in custom_weights_loaders or ():
                loader.load(str(folder), load_as=name, loading_info=loading_info)
            if set_active:
                names = self._engine.config.get_fusion(name)[1] or []
                self.set_active_adapters(Fuse(*names, name=name))  # type: ignore[attr-defined]
        return name

    def save_all_adapter_fusions(
        self,
        save_directory: PathLike,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
    ) -> None:
        """Save every fusion in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            meta_dict, custom_weights_loaders, use_safetensors: As for `save_adapter_fusion`.
        """
        with saving(save_directory) as folder:
            for name in self._engine.fusions:
                options = (meta_dict, custom_weights_loaders, use_safetensors)
                self.save_adapter_fusion(subfolder(folder, name), name, *options)

    def save_adapter_setup(
        self,
        save_directory: PathLike,
        adapter_setup: Any,
        head_setup: Any = None,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: bool = True,
    ) -> None:
        """Save a composition with all adapters, fusions and heads in it, each in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            adapter_setup: A block, or an adapter's name.
            head_setup: Heads to save: a name, a list or block of names, True for the head of a plain class.
            meta_dict: More entries for adapter_setup.json.
            custom_weights_loaders, use_safetensors: As for `save_adapter`.
        """
        options = {"custom_weights_loaders": custom_weights_loaders, "use_safetensors": use_safetensors}
        setup_files.save_setup(self, save_directory, adapter_setup, head_setup, meta_dict, **options)

    def load_adapter_setup(
        self,
        adapter_setup_name_or_path: PathLike,
        version: str | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        set_active: bool = False,
        use_safetensors: bool = True,
        strict: bool = True,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Load a composition with all adapters, fusions and heads in it.

        Args:
            adapter_setup_name_or_path: As for `load_adapter`.
            version: Branch, tag or commit of the repository.
            custom_weights_loaders, use_safetensors, strict, kwargs: As for `load_adapter`.
            set_active: Activate the composition and its heads.
        Returns:
            The composition, and the heads that go with it: a name, a list, a block, True for a plain class's, or None.
        Raises:
            CheckpointNotFound: a part of it is not there (an OSError).
            CheckpointError: a part of it does not fit. What was added is removed again.
        """
        folder = locate(adapter_setup_name_or_path, SETUP_FILE, version, use_safetensors=use_safetensors, **kwargs)
        options = {"use_safetensors": use_safetensors, "strict": strict}
        if custom_weights_loaders:
            options["custom_weights_loaders"] = custom_weights_loaders  # type: ignore[assignment]
        return setup_files.load_setup(self, folder, set_active, **options)

    # -------------------------------------------------------------------------------------------------- hubs

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
        use_safetensors: bool = True,
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
            use_safetensors: Upload safetensors; pickle files are what hubs may refuse.
            with_head: Upload the prediction head of the same name too, or the head of a plain class.
        Returns:
            What was committed; `pr_url` of it is the pull request.
        Raises:
            AdapterNameError: there is no such adapter, or no repository can be called so.
            ConfigError: `adapter_card_kwargs` has an unknown entry.
            HubError: the hub could not be reached, or refused (an OSError).
        """
        told = upload.told(adapter_card_kwargs, datasets_tag)
        message = commit_message or f"Upload adapter {adapter_name}"
        commit = (private, token, overwrite_adapter_card, create_pr, revision, commit_description)
        to = upload.Destination(repo_id, message, local_path, *commit)
        return upload.push_adapter(self, adapter_name, to, told, use_safetensors, with_head)

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
        use_safetensors: bool = True,
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
        told = upload.told(adapter_card_kwargs, datasets_tag)
        message = commit_message or f"Upload adapter set-up {adapter_setup}"
        commit = (private, token, overwrite_adapter_card, create_pr, revision, commit_description)
        to = upload.Destination(repo_id, message, local_path, *commit)
        return upload.push_setup(self, adapter_setup, head_setup, to, told, use_safetensors)

    # ------------------------------------------------------------------------------------------------- heads

    def save_head(self, save_directory: PathLike, head_name: str | None = None, use_safetensors: bool = True) -> None:
        """Save a prediction head.

        Args:
            save_directory: Folder to save in; it is made.
            head_name: The head; by default the active one. A plain class has only one.
            use_safetensors: Write safetensors, or else a pickle file.
        Raises:
            HeadError: there is no such head.
        """
        with saving(save_directory) as folder:
            head_files.write_head(self, folder, head_name, None, use_safetensors)

    def load_head(
        self,
        save_directory: PathLike,
        load_as: str | None = None,
        id2label: Mapping[int, str] | None = None,
        set_active: bool = True,
        use_safetensors: bool = True,
        num_labels: int | None = None,
        strict: bool = True,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Load a prediction head.

        Args:
            save_directory: As for `load_adapter`.
            load_as: Name in this model; by default the one it was saved with. Plain classes' heads have none.
            id2label: Names of the labels, instead of the stored ones.
            set_active: Activate the head.
            num_labels: Labels, a count, of a plain class's head that becomes a flexible one; by default as stored.
            use_safetensors, strict, loading_info, kwargs: As for `load_adapter`.
        Returns:
            The head's name; None for the head of a plain class.
        Raises:
            CheckpointNotFound: there is nothing to load (an OSError).
            HeadError: this model cannot have the head.
            CheckpointError: tensors are missing, unexpected or of another shape. The model is as it was.
        """
        folder = locate(save_directory, HEAD, use_safetensors=use_safetensors, **kwargs)
        options = (id2label, num_labels, use_safetensors, set_active, strict, loading_info)
        with Before(self) as before:
            return head_files.load_head(self, folder, before, load_as, *options)

    def save_all_heads(self, save_directory: PathLike, use_safetensors: bool = True) -> None:
        """Save every flexible head in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            use_safetensors: Write safetensors, or else pickle files.
        """
        with saving(save_directory) as folder:
            for name in getattr(self, "heads", ()):
                self.save_head(subfolder(folder, name), name, use_safetensors)

    # -------------------------------------------------------------------------------------------- embeddings

    def add_embeddings(
        self,
        name: str,
        tokenizer: Any,
        reference_embedding: str | None = None,
        reference_tokenizer: Any = None,
        embedding_dim: int | None = None,
    ) -> None:
        """Add input embeddings for another vocabulary, and use them.

        Args:
            name: Name of the embeddings.
            tokenizer: Tokenizer with the vocabulary.
            reference_embedding: Embeddings from which tokens that both vocabularies have are copied.
            reference_tokenizer: Tokenizer of `reference_embedding`.
            embedding_dim: Their width, which can only be the model's.
        Raises:
            AdapterNameError: the name is taken, or there are no reference embeddings of this name.
            IncompleteReference: only one of the two reference arguments is given (a KeyError).
        """
        embeddings.add_embeddings(self, name, tokenizer, reference_embedding, reference_tokenizer, embedding_dim)

    def load_embeddings(self, path: PathLike, name: str) -> Any:
        """Load input embeddings, and use them.

        Args:
            path: Folder in which they were saved.
            name: Their name in this model.
        Returns:
            The tokenizer that was saved with them, or None.
        Raises:
            EmbeddingNotFound: there are none (a FileNotFoundError).
            CheckpointError: they do not fit this model.
        """
        return embeddings.load_embeddings(self, path, name)

    def save_embeddings(self, path: PathLike, name: str, tokenizer: Any = None) -> None:
        """Save input embeddings.

        Args:
            path: Folder to save in; it is made.
            name: Their name.
            tokenizer: Tokenizer to save with them.
        """
        embeddings.save_embeddings(self, path, name, tokenizer)

    def set_active_embeddings(self, name: str) -> None:
        """Use other input embeddings. "default" are the model's own.

        Args:
            name: Their name.
        """
        embeddings.sets_of(self).use(name)

    def delete_embeddings(self, name: str) -> None:
        """Forget input embeddings; the model's own take over if they are in use.

        Args:
            name: Their name.
        """
        embeddings.sets_of(self).delete(name)

    @property
    def active_embeddings(self) -> str:
        """Name of the input embeddings in use."""
        return embeddings.sets_of(self).active

    @property
    def loaded_embeddings(self) -> dict[str, nn.Embedding]:
        """All input embeddings by name."""
        return embeddings.sets_of(self).loaded

    # ------------------------------------------------------------------------------------------ whole models

    def save_pretrained(
        self,
        save_directory: PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        **kwargs: Any,
    ) -> None:
        """As in Transformers; the folder also holds all adapters, fusions and heads.

        Open it with `AutoAdapterModel.from_pretrained`, or with `adapters.load_model` as a plain class.
        """
        options = dict(kwargs, is_main_process=is_main_process, push_to_hub=push_to_hub, variant=variant, token=token)
        options |= {"max_shard_size": max_shard_size, "save_peft_format": save_peft_format}
        if self._engine.parts:
            state_dict = full_model.complete_state(self, state_dict, save_original_format)
            save_original_format = False
        options |= {"state_dict": state_dict, "save_original_format": save_original_format}
        if not is_main_process:
            super().save_pretrained(save_directory, **options)  # type: ignore[misc]
            return
        if push_to_hub:
            options.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
        has_interface = self._engine.interface is not None
        with saving(save_directory, lambda path: full_model.is_replaced(path, variant, has_interface)) as folder:
            write_interface(self, folder)
            with full_model.described(self):
                super().save_pretrained(folder, **options)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch. Tensors may also have their names in files, by which the HF Trainer gives them back.

        Args:
            state_dict: Tensors by name.
            args, kwargs: As in torch.
        """
        named = full_model.with_module_names(self, state_dict)
        return super().load_state_dict(named, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in Transformers; adapters and fusions that the folder holds are added with their weights.

        Args:
            pretrained_model_name_or_path: Folder or hub repository.
            model_args: As in Transformers.
            kwargs: As in Transformers.
        """
        parent = super().from_pretrained  # type: ignore[misc]
        return full_model.from_pretrained(cls, parent, pretrained_model_name_or_path, model_args, kwargs)


def fusion_name(names: Fuse | Sequence[str] | str) -> str:
    """The name of a fusion that is given by its name, its block or its adapters."""
    if isinstance(names, Fuse):
        return names.name
    return names if isinstance(names, str) else ",".join(names)
