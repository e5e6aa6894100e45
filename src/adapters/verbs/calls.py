"""What Transformers and torch call on a model: forward calls, generation, gradient checkpointing, replicas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from adapters.call import CALL
from adapters.errors import UnsupportedError
from adapters.runtime.active import INNERMOST, innermost
from adapters.runtime.arguments import refuse_adapter_names
from adapters.runtime.engine import Engine, checkpoint_functions, reenters
from adapters.runtime.hooks import HookedEmbedding
from adapters.runtime.mixing import mixing
from adapters.verbs.base import Verbs


class CallVerbs(Verbs):
    """Forward calls, generation, gradient checkpointing and replicas, as Transformers and torch ask for them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every module; an interrupt in the middle leaves nothing behind, replicas get adapters of their own.

        Args:
            args, kwargs: As of the class, and `adapter_names`: a list of one adapter name, block or None ("no adapter")
                for each row of the batch, in place of the active set-up. Where adapters have heads of their names, each
                row goes through its own.
        """
        if "_is_replica" in self.__dict__:
            refuse_losses(self._engine)
            return replica_of(self._engine.root, cast(nn.Module, self))(*args, **kwargs)
        if torch.compiler.is_compiling():
            refuse_adapter_names(kwargs)
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        entry = self._engine.entry
        if kwargs.get("fused_lm_head"):
            refuse_fused_head(self)
        INNERMOST.setup, before = innermost(), CALL.now
        if (names := kwargs.pop("adapter_names", None)) is not None:
            with mixing(self._engine.programs, names, args, kwargs):
                return self.__call__(*args, **kwargs)
        if not entry.attached:
            entry.check_unfollowed()
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            if CALL.now is not before:
                entry.end_interrupted(before)

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        """As every module. When compiled, it is compiled anew once other hooks are there, or a set-up is in force."""
        if torch.compiler.is_compiling():
            self._engine.entry.check_compiled()
        return super()._call_impl(*args, **kwargs)  # type: ignore[misc]

    def forward_context(self, context: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: a call notes by itself what it needs. Classes written for version 1 call it from their own."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; with `Parallel` the result has the rows of all adapters, first adapter first.

        Args:
            args, kwargs: As in Transformers, and `adapter_names`, as for a call of the model: one for each row of the
                input, whatever `num_beams` and `num_return_sequences` make of it. What comes first is called `inputs`
                by most models, and otherwise by those that hear or see.
        """
        if (names := kwargs.pop("adapter_names", None)) is not None:
            with mixing(self._engine.programs, names, args[:1], kwargs):
                return self.generate(*args, **kwargs)
        if not self._engine.parts:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        first = args[0] if args else kwargs.get("inputs")
        with self._engine.entry.generation(kwargs, first) as (first, kwargs):
            return super().generate(*(first, *args[1:])[: len(args)], **kwargs)  # type: ignore[misc]

    def create_masks_for_generate(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        """As in Transformers; with prompts a mask [B, S], from which the model makes one with theirs."""
        create: Any = getattr(super(), "create_masks_for_generate", create_masks_for_generate)
        found = create(*args, attention_mask=attention_mask, **kwargs)
        if not (prompts := self._engine.entry.prompt_length()):
            return found
        fills = isinstance(found, Tensor) and found.dim() == 2  # BLOOM: as many columns as the cache has room for
        return found[:, :-prompts] if fills else attention_mask

    def _prepare_static_cache(self, *args: Any, max_cache_len: int, **kwargs: Any) -> Any:
        """As in Transformers, with room for prompts."""
        length = max_cache_len + self._engine.entry.prompt_length()
        return super()._prepare_static_cache(*args, max_cache_len=length, **kwargs)  # type: ignore[misc]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] | None = None, **kwargs: Any
    ) -> None:
        function = gradient_checkpointing_func or torch.utils.checkpoint.checkpoint
        carried = self._engine.checkpointed(function) if enable else function
        super()._set_gradient_checkpointing(enable, carried, **kwargs)  # type: ignore[misc]
        if enable and reenters(carried):
            self.enable_input_require_grads()

    def enable_input_require_grads(self) -> None:
        """Let embeddings have gradients, as in Transformers; nothing if checkpointing is on and does not need it.

        Transformers calls this for all checkpointing. Only the re-entrant kind needs it; with the other kind it would
        send every backward pass through the frozen layers below the first adapter.
        """
        model = cast(PreTrainedModel, self)
        kinds = [reenters(function) for function in checkpoint_functions(model)]
        if not kinds or any(kinds):
            model.disable_input_require_grads()
            super().enable_input_require_grads()  # type: ignore[misc]


def refuse_fused_head(model: Any) -> None:
    """Raise UnsupportedError if TRL's loss, which reads the weight of the output embedding, leaves something out."""
    engine: Engine = model._engine
    plans = engine.programs.in_force().plans
    for hooked in engine.hooked:
        if isinstance(hooked, HookedEmbedding) and hooked.outputs and plans[hooked.number] is not None:
            raise UnsupportedError(
                "TRL's loss multiplies with the weight of the output embedding and would pass over the inverse of an "
                f"invertible adapter ({', '.join(sorted(hooked.names))}). Use a config without it, such as 'seq_bn' "
                "in place of 'seq_bn_inv'."
            )
    if hasattr(model, "heads"):
        active = model._used_heads()
        if not isinstance(active, str) or model.heads[active].get_output_embeddings() is None:
            raise UnsupportedError(
                f"TRL's loss needs one active head that predicts tokens, and active is {active!r}. Set "
                "model.active_head to a causal LM head."
            )
        if (layers := len(model.heads[active])) > 1:
            raise UnsupportedError(
                f"TRL's loss multiplies with the weight of the output embedding and would pass over what stands in "
                f"front of it in head {active!r} ({layers - 1} modules). Use a causal LM head with layers=1."
            )


def refuse_losses(engine: Engine) -> None:
    """Raise UnsupportedError if calls of a replica make losses that would not reach the original."""
    if engine.root.training and torch.is_grad_enabled() and any(own.makes_losses() for own in engine.owned.values()):
        raise UnsupportedError(
            "The balance loss of a routing would stay in the replicas of torch.nn.DataParallel. Use "
            "DistributedDataParallel, or add the routing with balance=0."
        )


def replica_of(original: nn.Module, replica: nn.Module) -> nn.Module:
    """A copy of a model with the tensors of one of its replicas (`torch.nn.DataParallel`).

    Replicas share hooks and everything but tensors with the original, and so would adapters that refer to each other.
    """
    memo: dict[int, Any] = {}

    def pair(one: nn.Module, other: nn.Module) -> None:
        for name, parameter in one._parameters.items():
            if parameter is not None:
                memo[id(parameter)] = getattr(other, name)
        for name, buffer in one._buffers.items():
            if buffer is not None:
                memo[id(buffer)] = other._buffers[name]
        for name, child in one._modules.items():
            if child is not None:
                pair(child, other._modules[name])  # type: ignore[arg-type]

    pair(original, replica)
    return copy.deepcopy(original, memo).train(replica.training)
