"""How do adapters get into folders and out of them, and into one another?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.checkpoint import bundles
from adapters.checkpoint.layout import ADAPTER, Files, PathLike, subfolder
from adapters.checkpoint.together import saving_of
from adapters.export.exporting import export_adapter
from adapters.hub.locate import locate
from adapters.merging.averaging import average_adapter
from adapters.merging.search import LoraHub
from adapters.merging.shares import Weight
from adapters.methods.config import get_adapter_config_hash
from adapters.verbs.activation import ActivationVerbs


class AdapterFileVerbs(ActivationVerbs):
    """Saving, loading and averaging adapters."""

    def save_adapter(
        self,
        save_directory: PathLike,
        adapter_name: str,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
        with_head: bool = True,
        format: str = bundles.OURS,
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
            use_safetensors: Write adapter.safetensors (True), pytorch_adapter.bin (False), which `adapters` 1.x reads
                without being told to read the other, or "both".
            with_head: Save the prediction head of the same name too, or the head of a plain class; of a language model
                only if it trains, since it is the base model's output embedding (`save_head` writes it anyhow).
            format: "adapters", or "peft" for files that `peft.PeftModel.from_pretrained` opens, and that compute the
                same there (docs/peft.md); `meta_dict` and `custom_weights_loaders` have no place in those.
        Raises:
            AdapterNameError: there is no adapter of this name.
            UnsupportedError: no adapter of PEFT computes what this one does.
        """
        options = (meta_dict, custom_weights_loaders, use_safetensors, with_head, format)
        bundles.save_adapter(self, save_directory, adapter_name, *options)

    def export_adapter(self, folder: PathLike, name: str, target: str, rank: int | None = None) -> dict[str, float]:
        """Write an adapter for another engine, as LoRA of one rank (see `to_lora`), or within a whole merged model.

        Args:
            folder: Where to; it is made.
            name: The adapter.
            target: "vllm" or "sglang" (the files of PEFT within their rules: one rank and alpha, no bias, no head, no
                DoRA), "llama.cpp" (`adapter.gguf`), "mlx" (`adapters.safetensors`), or "merged": the whole model with
                the adapter in its weights, as a folder that `from_pretrained` of plain Transformers opens. This model
                does not change, and beside it one file's tensors are held in memory.
            rank: r; by default the lowest with which nothing is lost.
        Returns:
            By path of the linear map, ||D - B A|| / ||D||: what part of its update D is left out.
        Raises:
            UnsupportedError: there is no such target, it cannot hold this adapter, or does not know the model.
            MergeError: for "merged", its update depends on the input, or another adapter is merged.
            ConfigError: no rank is given, and no low one is exact.
        """
        return export_adapter(self, folder, name, target, rank)

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
        """Load an adapter from a folder, an archive or the hub in use (`adapters.hub.use`), ours or one of PEFT.

        If the model has an adapter of this name and config, its weights are replaced. An adapter of PEFT, whose files
        have no name, is called as the last part of the path or of the repository's name.

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
                this order. A folder of this name is taken whatever it says.
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
        options = bundles.Loading(load_as, set_active, use_safetensors, strict, loading_info, custom_weights_loaders)
        name = os.fspath(adapter_name_or_path)
        return bundles.load_adapter(self, folder, options, leave_out, with_head, id2label, num_labels, name)

    def save_all_adapters(
        self,
        save_directory: PathLike,
        meta_dict: Mapping[str, Any] | None = None,
        custom_weights_loaders: Sequence[Any] | None = None,
        use_safetensors: Files = True,
        with_head: bool = True,
    ) -> None:
        """Save every adapter in a sub-folder of its name.

        Args:
            save_directory: Folder of the sub-folders; it is made.
            meta_dict, custom_weights_loaders, use_safetensors, with_head: As for `save_adapter`.
        """
        config = self._engine.config
        with saving_of(self, save_directory) as folder:
            for name in config:
                meta = {**(meta_dict or {}), "config_id": get_adapter_config_hash(config.get(name) or {})}
                options = (meta, custom_weights_loaders, use_safetensors, with_head)
                self.save_adapter(subfolder(folder, name), name, *options)

    def average_adapter(
        self,
        adapter_name: str,
        adapter_list: Sequence[str] | Mapping[str, Weight],
        weights: Sequence[Weight] | LoraHub | None = None,
        combine_strategy: str = "linear",
        normalize_weights: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = False,
        svd_rank: int | None = None,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Add an adapter that is made of other adapters: their average, or what another algorithm makes of them.

        docs/merging.md has the formula of each algorithm, and what it acts on.

        Args:
            adapter_name: Name of the new adapter.
            adapter_list: Names of the adapters, or a dict name -> weight.
            weights: One per adapter; equal shares by default. Each is a number, or one number per layer: as a list, a
                dict layer -> number or a function of the layer's number; -1 stands for what is in no layer, such as
                prompts, and has the mean in lists and dicts without it. Or a `LoraHub`, which searches them by a few
                examples.
            combine_strategy: For every method "linear" (every tensor is averaged), "task_arithmetic",
                "magnitude_prune", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "slerp". For LoRA alone
                "cat", "knots", "lora_linear_only_negate_b", "lora_delta_w_svd" and "lora_delta_w_svd_unscaled", which
                gives the numbers of older versions. But for "linear" and "lora_linear_only_negate_b", they combine of
                LoRA what it adds to a weight, (alpha / r) B A, and r and alpha may differ.
            normalize_weights: Divide the weights by their sum.
            overwrite_ok: Replace an adapter of the name `adapter_name`.
            set_active: Activate the new adapter.
            svd_rank: Rank of a LoRA that comes of products, whose alpha is `svd_rank` too.
            options: Of the algorithm: `density` (the part of the entries that is kept), `seed`, `majority` ("total" or
                "frequency"), `epsilon`, `gamma`.
        Returns:
            The weights of each adapter that were used, one per layer in which they act, from below.
        Raises:
            AdapterNameError: an adapter does not exist, or `adapter_name` is taken.
            MergeError: the adapters differ in their configs, the algorithm does not suit them, or does not take an
                option. Nothing has changed.
        """
        given = options if svd_rank is None else {**options, "svd_rank": svd_rank}
        arguments = (weights, combine_strategy, normalize_weights, overwrite_ok, given)
        used = average_adapter(self._engine, adapter_name, adapter_list, *arguments)
        if set_active:
            self.set_active_adapters(adapter_name)
        return used
