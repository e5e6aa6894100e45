"""How does transformers' Trainer train adapters? It works as it is; these classes add what it asks of no model."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import SCHEDULER_NAME

from adapters.checkpoint.folders import load_folders, other_weights, save_folders
from adapters.checkpoint.trainers import holds_full_model
from adapters.composition.owned import BlockModule
from adapters.errors import CompositionError, UnsupportedError
from adapters.heads.outputs import MultiHeadOutput
from adapters.model import AdapterModelMixin
from adapters.runtime.active import active_setup

logger = logging.getLogger(__name__)


class AdapterTrainer(Trainer):
    """A Trainer for adapters, whose checkpoints are those of the stock one (`checkpoint/trainers.py`).

    It activates a set-up, refuses a base model that trains, adds the losses of fusions and routings to the loss, takes
    the names of labels from the active heads and does not decay the value matrices of fusions. It resumes also from
    checkpoints that earlier versions of it wrote, without `model.safetensors`.

    Args:
        args: As in `transformers.Trainer`.
        adapter_names: Set-up to activate, as for `set_active_adapters`; None for the one that is active.
        tokenizer: Earlier name of `processing_class`.
        kwargs: As in `transformers.Trainer`.
    Raises:
        UnsupportedError: the model has no adapters, or is sharded by FSDP1 or DeepSpeed ZeRO-3.
        CompositionError: no set-up is active. At the start of training: the base model is not frozen.
    """

    def __init__(self, *args: Any, adapter_names: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        self.adapter_names = adapter_names
        if tokenizer is not None:
            kwargs.setdefault("processing_class", tokenizer)
        if (model := args[0] if args else kwargs.get("model")) is not None:
            self._activate(model)
        super().__init__(*args, **kwargs)
        first_fsdp = self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 1
        if first_fsdp or is_deepspeed_zero3_enabled():
            raise UnsupportedError(
                f"AdapterTrainer cannot save adapters of a model that {'FSDP1' if first_fsdp else 'DeepSpeed ZeRO-3'} "
                "shards. Use FSDP2 (fsdp_config={'version': 2}), or transformers.Trainer, whose checkpoints hold the "
                "whole model."
            )
        if self.args.label_names is None:
            self.label_names = label_names(self.adapted_model) or self.label_names
        self.add_callback(_FrozenBase())

    @property
    def train_adapter_fusion(self) -> bool:
        """Whether fusion layers train."""
        fusions = self.adapted_model._engine.owned["fusion"]
        return any(p.requires_grad for parts in fusions.values() for part in parts for p in part.module.parameters())

    @property
    def adapted_model(self) -> Any:
        """The model with adapters, out of whatever wraps it for training."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def call_model_init(self, trial: Any = None) -> Any:
        """As in transformers, then activates `adapter_names`."""
        model = super().call_model_init(trial)
        self._activate(model)
        return model

    def _activate(self, model: Any) -> None:
        model = getattr(model, "_orig_mod", model)
        if not isinstance(model, AdapterModelMixin):
            raise UnsupportedError(
                f"AdapterTrainer trains adapters, but this {type(model).__name__} has none. Call adapters.init(model) "
                "and model.add_adapter(...) first, or use transformers.Trainer to train the whole model."
            )
        if self.adapter_names is not None:
            model.set_active_adapters(self.adapter_names)
        if active_setup(model) is None:
            raise CompositionError(
                "AdapterTrainer needs an active set-up, but no adapter is active. Call model.train_adapter(name) or "
                "pass adapter_names; use transformers.Trainer to train the whole model."
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "task_ids" not in self._signature_columns:
            self._signature_columns.append("task_ids")

    # ---------------------------------------------------------------------------------------------- training

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; in training the losses of fusions and routings that train are added."""
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **kwargs)
        owned = self.adapted_model._engine.owned.values() if model.training else ()
        extra: Any = sum((kind.auxiliary_loss() for kind in owned), 0.0)
        if not isinstance(extra, torch.Tensor):
            return result
        if self._sums_batches(num_items_in_batch):
            extra = extra / self.current_gradient_accumulation_steps
        return (result[0] + extra, result[1]) if return_outputs else result + extra

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; with `MultiTask` the logits of all heads are in the order of the labels, if they fit."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        if isinstance(logits, tuple) and len(logits) == 2 and isinstance(logits[0], list):
            logits = getattr(MultiHeadOutput(head_outputs=logits[0], rows=logits[1]), "logits", logits)
        return loss, logits, labels

    def _sums_batches(self, num_items_in_batch: Any) -> bool:
        """Whether losses of the batches of one step are added up as they are, instead of averaged."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is not None:
            return bool(scaled)
        return self.compute_loss_func is not None or (self.model_accepts_loss_kwargs and num_items_in_batch is not None)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers, without the value matrices of fusions: they belong near the identity, not near zero."""
        modules = model.named_modules()
        kept = {f"{path}.{name}" for path, m in modules if isinstance(m, BlockModule) for name in m.undecayed}
        return [name for name in super().get_decay_parameter_names(model) if name not in kept]

    # ----------------------------------------------------------------------------------------------- folders

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; of a model that FSDP2 has sharded what trains alone: all processes have to come here."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        folder = str(output_dir or self.args.output_dir)
        save_folders(self.adapted_model, folder)
        if self.args.should_save:
            tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            torch.save(self.args, os.path.join(folder, "training_args.bin"))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer  # a Trainer needs it; without one it may be missing

        # transformers would save the whole model beside it
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if holds_full_model(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_folders(self.adapted_model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None or holds_full_model(best):
            super()._load_best_model()
        else:
            load_folders(self.adapted_model, best)


class Seq2SeqAdapterTrainer(AdapterTrainer, Seq2SeqTrainer):
    """`AdapterTrainer` that can generate during evaluation, like `transformers.Seq2SeqTrainer`."""


class _FrozenBase(TrainerCallback):
    """Refuses to train a base model whose weights would not be saved."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        check_frozen(getattr(model, "_orig_mod", model))


def check_frozen(model: Any) -> None:
    """Raise CompositionError if the base model trains although nobody froze it."""
    if model.model_frozen:
        return
    if training := list(other_weights(model)):
        raise CompositionError(
            f"AdapterTrainer saves adapters only, but {len(training)} tensors of the base model would be trained too, "
            f"such as {training[0]}. Call model.train_adapter({_first(model)!r}) first, or use transformers.Trainer to "
            "train the whole model."
        )


def _first(model: Any) -> str | None:
    setup = active_setup(model)
    return setup if setup is None or isinstance(setup, str) else setup.first()


def label_names(model: Any) -> list[str]:
    """Arguments that hold the labels of the active heads; empty for models whose head is part of their class."""
    active = getattr(model, "active_head", None)
    names = [active] if isinstance(active, str) else list(active or ())
    return list(dict.fromkeys(label for name in names for label in model.heads[name].get_label_names()))
