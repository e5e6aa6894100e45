"""PREFIX_TUNING, PROMPT_TUNING and P_TUNING: checkpoints with one tensor, of what stands in front of the sequence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapters.checkpoint.peft.options import Option, Options
from adapters.checkpoint.peft.translator import Written
from adapters.errors import CheckpointError, UnsupportedError
from adapters.methods.config import AdapterConfig, flag, integer
from adapters.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from adapters.methods.prompt_tuning import PromptTuning, PromptTuningConfig
from adapters.runtime.engine import Engine
from adapters.sites.site import AttentionSite, PromptSite

EMBEDDINGS = "prompt_embeddings"
POSITIONS = re.compile(r"(^|.*\.)(wpe|pos_emb\w*|\w*position\w*)")
"""Names of the embeddings of positions."""

OPTIONS: Mapping[str, Option] = {
    "num_virtual_tokens": Option(integer(1)),
    "token_dim": Option(integer(1)),
    "num_layers": Option(integer(1)),
    "num_attention_heads": Option(integer(1)),
    "num_transformer_submodules": Option(integer(1)),
    "prefix_projection": Option(flag, False),
    "encoder_hidden_size": Option(integer(1)),
}
HISTORY = frozenset(
    ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
    + ("encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout")
)
"""The networks of P-tuning and of projected prefixes made the numbers that files hold."""


class Prompt(NamedTuple):
    """What was read: the config, the tensors by our names, and those that are not the prompt's."""

    config: AdapterConfig
    tensors: dict[str, Tensor]
    others: dict[str, Tensor]


def read(
    engine: Engine, kind: str, saved: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, what: str
) -> Prompt:
    """Our config and tensors, of an adapter that is to be called `name`.

    Raises:
        CheckpointError: the tensor is missing, or of another size than the config and the model say.
        UnsupportedError: the model counts positions in a way that makes PEFT's prefixes something else than ours, or
            its prompts stand in another place.
    """
    options = Options(saved, OPTIONS, HISTORY, {}, what)
    others = {key.removeprefix("base_model."): tensor for key, tensor in tensors.items() if key != EMBEDDINGS}
    prompt, length = tensors.get(EMBEDDINGS), options.required("num_virtual_tokens")
    if prompt is None or prompt.dim() != 2:
        raise CheckpointError(f"{what} lacks the matrix {EMBEDDINGS!r}. It has: {', '.join(sorted(tensors)[:5])}.")
    submodules = options["num_transformer_submodules"] or (2 if options["task_type"] == "SEQ_2_SEQ_LM" else 1)
    rows = length if kind == "PREFIX_TUNING" else length * submodules
    if len(prompt) not in (length, rows):
        raise CheckpointError(f"{what}: {EMBEDDINGS} has {len(prompt)} rows, but num_virtual_tokens is {length}.")
    config, own = TRANSLATORS[kind](engine, prompt[:length], name, what)
    return Prompt(config, own, others)


def counted_positions(base: nn.Module) -> str | None:
    """Name of the embedding of absolute positions of a model, if it has one."""
    return next(
        (
            path
            for path, module in base.named_modules()
            if isinstance(module, nn.Embedding) and POSITIONS.fullmatch(path) and "relative" not in path
        ),
        None,
    )


def _refuse_positions(base: nn.Module, what: str) -> None:
    if (table := counted_positions(base)) is not None:
        raise UnsupportedError(
            f"{what}: PEFT's prefixes take positions away from the sequence, which starts behind them in {table}; here "
            "it starts at position 0, so that the model would compute something else. Merge is not possible either; "
            "train a prefix here, or use a model with rotary positions. Prompts have positions here too."
        )


# Prompts


def _check_entrance(engine: Engine, what: str) -> None:
    """Refuse models in which prompts do not stand where PEFT puts them: in front of what the stack embeds."""
    sites = [hooked.site for hooked in engine.hooked if isinstance(hooked.site, PromptSite)]
    if any(not site.argument for site in sites):
        raise UnsupportedError(
            f"{what}: prompts of {type(engine.base).__name__} join behind the positions and the norm of its "
            "embeddings, and those of PEFT in front of them: the model would compute something else. Train a prompt "
            "here, or use a decoder or an encoder-decoder, where both stand in the same place."
        )


def _read_prompt(engine: Engine, prompt: Tensor, name: str, what: str) -> tuple[AdapterConfig, dict[str, Tensor]]:
    _check_entrance(engine, what)
    config = PromptTuningConfig(prompt_length=len(prompt))
    return config, {f"{PromptTuning.container}.{name}.prompt_embedding.weight": prompt}


def _write_prompt(engine: Engine, modules: Sequence[Any]) -> Written:
    (module,) = modules
    if module.config.combine != "prefix":
        raise UnsupportedError(f"Adapter {module.name!r} stands behind the first token, and PEFT's prompts before it.")
    _check_entrance(engine, f"Adapter {module.name!r}")
    weight = module.prompt_embedding.weight
    submodules = 2 if engine.base.config.is_encoder_decoder else 1  # type: ignore[union-attr]
    return Written(
        {"num_virtual_tokens": len(weight), "token_dim": weight.shape[1], "num_transformer_submodules": submodules},
        {},
        {EMBEDDINGS: weight.repeat(submodules, 1)},
    )


# Prefixes


def _sites(engine: Engine, what: str) -> list[AttentionSite]:
    """The attentions in whose caches PEFT puts prefixes, in the order of the layers.

    Raises:
        UnsupportedError: the model counts positions otherwise than by turning queries and keys.
    """
    _refuse_positions(engine.base, what)
    sites = [hooked.site for hooked in engine.hooked if isinstance(hooked.site, AttentionSite)]
    if not sites or any(site.role != "attn.core" for site in sites) or not _rotary(engine):
        raise UnsupportedError(
            f"{what}: a prefix of PEFT stands in the cache of a decoder, and what it means depends on how the model "
            "counts "
            f"positions. For decoders with rotary positions it is known; {type(engine.base).__name__} is none (T5 "
            "adds a bias "
            "by distance, to prefixes too in PEFT, but not here). Train a prefix here."
        )
    return sites


def _rotary(engine: Engine) -> Any:
    """The module that computes a model's rotary positions, or None."""
    return next((m for m in engine.base.modules() if "RotaryEmbedding" in type(m).__name__), None)


def _read_prefix(engine: Engine, prefix: Tensor, name: str, what: str) -> tuple[AdapterConfig, dict[str, Tensor]]:
    sites = _sites(engine, what)
    width = _width(sites, what)
    if prefix.shape[1] != 2 * len(sites) * width:
        raise CheckpointError(
            f"{what}: {EMBEDDINGS} is {tuple(prefix.shape)}, but {len(sites)} layers of this model with keys and "
            "values of "
            f"{width} numbers need {2 * len(sites) * width} columns."
        )
    slots = prefix.view(len(prefix), -1, width).unbind(1)  # keys of layer 0, values of layer 0, keys of layer 1, ...
    rows: dict[str, list[Tensor]] = {}
    for site, keys, values in zip(sites, slots[::2], slots[1::2]):
        rows.setdefault(site.location, []).extend((_turned(engine, site, keys, -len(prefix), what), values))
    start = f"{PrefixTuning.shared_container}.{name}"
    tensors = {f"{start}.{place}.control_trans": torch.cat(parts, 1).reshape(-1) for place, parts in rows.items()}
    return PrefixTuningConfig(flat=True, prefix_length=len(prefix)), tensors


def _width(sites: Sequence[AttentionSite], what: str) -> int:
    widths = {site.num_heads * size for site in sites for size in (site.head_dim, site.value_dim)}
    if len(widths) != 1:
        raise UnsupportedError(
            f"{what}: prefixes of PEFT are of one width, and this model has keys and values of {widths}."
        )
    return widths.pop()


def _turned(engine: Engine, site: AttentionSite, keys: Tensor, positions: int, what: str) -> Tensor:
    """Keys [P, H * head_dim] of a prefix, turned by so many positions.

    Rotary positions turn queries and keys, but no prefix. PEFT's sequence starts at position P, ours at 0, and
    R(p + P) q . k = R(p) q . R(-P) k.
    """
    apply = getattr(sys.modules[type(site.module).__module__], "apply_rotary_pos_emb", None)
    by_head = keys.float().view(len(keys), -1, site.head_dim).transpose(0, 1)[None]
    device = next(engine.base.parameters()).device
    try:
        cos, sin = _rotary(engine)(by_head.to(device), torch.tensor([[abs(positions)]], device=device))
        if apply is None or cos.shape[-1] != site.head_dim:
            raise TypeError
        size = (cos.square() + sin.square()).sqrt()  # some kinds of rotary positions scale what they turn
        cos, sin = cos / size, (sin if positions > 0 else -sin) / size
        turned: Tensor = apply(by_head, by_head, cos.to(by_head.device), sin.to(by_head.device))[1]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise UnsupportedError(
            f"{what}: the rotary positions of {type(engine.base).__name__} are of a kind for which it is not known "
            "how a "
            "prefix of PEFT turns with them. Train a prefix here."
        ) from None
    return turned[0].transpose(0, 1).reshape(len(keys), -1).to(keys.dtype)


@torch.no_grad()
def _write_prefix(engine: Engine, modules: Sequence[Any]) -> Written:
    what, length = f"Adapter {modules[0].name!r}", modules[0].config.prefix_length
    sites, placed = _sites(engine, what), {module.site: module for module in modules}
    if any(module.config.use_gating for module in modules) or placed.keys() != set(sites):
        raise UnsupportedError(
            f"{what} has a gate, or leaves layers out: PEFT's prefixes have none, and stand in all layers of a decoder."
        )
    width = _width(sites, what)
    parts = []
    for site in sites:
        keys, values = (part[0].transpose(0, 1).reshape(length, -1).cpu() for part in placed[site]())
        parts += [_turned(engine, site, keys, length, what), values]
    options = {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": len(sites),
        "num_attention_heads": sites[0].num_heads,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": width,
        "prefix_projection": False,
    }
    return Written(options, {}, {EMBEDDINGS: torch.cat(parts, 1)})


TRANSLATORS: Mapping[str, Callable[[Engine, Tensor, str, str], tuple[AdapterConfig, dict[str, Tensor]]]] = {
    "PREFIX_TUNING": _read_prefix,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
}
"""Type of PEFT -> what makes our config and tensors of its tensor."""

WRITERS: Mapping[type[Any], tuple[str, Callable[[Engine, Sequence[Any]], Written]]] = {
    PrefixTuning: ("PREFIX_TUNING", _write_prefix),
    PromptTuning: ("PROMPT_TUNING", _write_prompt),
}
"""Method -> its type of PEFT, and what writes it."""
