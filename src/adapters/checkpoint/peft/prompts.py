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
from adapters.sites.resolve import AttentionSite

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


def read(engine: Engine, kind: str, saved: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, what: str) -> Prompt:
    """Our config and tensors, of an adapter that is to be called `name`.

    Raises:
        CheckpointError: the tensor is missing, or of another size than the config and the model say.
        UnsupportedError: the model counts positions in a way that makes PEFT's prompts something else than ours.
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
            f"{what}: PEFT's prompts and prefixes take positions away from the sequence, which starts behind them in "
            f"{table}; here it starts at position 0, so that the model would compute something else. Merge is not possible "
            "either; train a prefix or prompt here, or use a model with rotary or relative positions."
        )


# Prompts


def _read_prompt(engine: Engine, prompt: Tensor, name: str, what: str) -> tuple[AdapterConfig, dict[str, Tensor]]:
    _refuse_positions(engine.base, what)
    config = PromptTuningConfig(prompt_length=len(prompt))
    return config, {f"{PromptTuning.container}.{name}.prompt_embedding.weight": prompt}


def _write_prompt(engine: Engine, modules: Sequence[Any]) -> Written:
    (module,) = modules
    if module.config.combine != "prefix":
        raise UnsupportedError(f"Adapter {module.name!r} stands behind the first token, and PEFT's prompts before it.")
    _refuse_positions(engine.base, f"Adapter {module.name!r}")
    weight = module.prompt_embedding.weight
    submodules = 2 if engine.base.config.is_encoder_decoder else 1  # type: ignore[union-attr]
    return Written(
        {"num_virtual_tokens": len(weight), "token_dim": weight.shape[1], "num_transformer_submodules": submodules},
        {},
        {EMBEDDINGS: weight.repeat(submodules, 1)},
    )


# Prefixes


def _sites(engine: Engine) -> tuple[list[AttentionSite], list[AttentionSite]]:
    """The attentions in whose caches PEFT puts prefixes: self attentions and cross attentions of the decoder."""
    sites = [hooked.site for hooked in engine.hooked if isinstance(hooked.site, AttentionSite)]
    cross = [site for site in sites if site.role.startswith("cross")]
    layers = {site.layer for site in cross}
    own = [site for site in sites if not site.role.startswith("cross") and (site.layer in layers or not cross)]
    return own, cross


def _slots(engine: Engine) -> dict[AttentionSite, int]:
    """Place -> number of the slot of its keys in the row of a file; that of its values follows.

    Slots 2j and 2j + 1 are those of layer j. Where there is cross attention, layer j reads four slots from 4j on, and
    those of its 2 L slots begin again behind the last.
    """
    own, cross = _sites(engine)
    if not cross:
        return {site: 2 * number for number, site in enumerate(own)}
    count = 2 * len(own)
    slots = {site: 4 * number % count for number, site in enumerate(own)}
    return slots | {site: (4 * number + 2) % count for number, site in enumerate(cross)}


def _read_prefix(engine: Engine, prefix: Tensor, name: str, what: str) -> tuple[AdapterConfig, dict[str, Tensor]]:
    _refuse_positions(engine.base, what)
    slots = _slots(engine)
    own, cross = _sites(engine)
    width = _width(engine, slots, what)
    if prefix.shape[1] != 2 * len(own) * width:
        raise CheckpointError(
            f"{what}: {EMBEDDINGS} is {tuple(prefix.shape)}, but {len(own)} layers of this model with keys and values of "
            f"{width} numbers need {2 * len(own) * width} columns."
        )
    cut = prefix.view(len(prefix), -1, width)
    turned = _turning(engine, len(prefix), back=True, what=what)
    rows: dict[str, list[Tensor]] = {}
    for site, slot in slots.items():
        keys = turned(site, cut[:, slot])
        rows.setdefault(site.location, []).extend((keys, cut[:, slot + 1]))
    config = PrefixTuningConfig(
        flat=True, prefix_length=len(prefix), encoder_prefix=not cross, cross_prefix=bool(cross)
    )
    start = f"{PrefixTuning.shared_container}.{name}"
    return config, {f"{start}.{place}.control_trans": torch.cat(parts, 1).reshape(-1) for place, parts in rows.items()}


def _width(engine: Engine, slots: Mapping[AttentionSite, int], what: str) -> int:
    widths = {site.num_heads * size for site in slots for size in (site.head_dim, site.value_dim)}
    if len(widths) != 1:
        raise UnsupportedError(f"{what}: prefixes of PEFT are of one width, and this model has keys and values of {widths}.")
    return widths.pop()


def _turning(engine: Engine, length: int, back: bool, what: str) -> Callable[[AttentionSite, Tensor], Tensor]:
    """What makes keys in front of a sequence at position 0 of keys in front of one at position `length`, or back.

    Rotary positions turn queries and keys but no prefix: R(p + P) q . k = R(p) q . R(-P) k.
    """
    rotary = [module for module in engine.base.modules() if "RotaryEmbedding" in type(module).__name__]
    if not rotary:
        if any(site.position_bias is None for site in _slots(engine)):
            raise UnsupportedError(
                f"{what}: it cannot be told how {type(engine.base).__name__} counts positions, which decides what a prefix "
                "of PEFT means. Those with rotary positions, or with relative ones as T5 has them, can be read."
            )
        return lambda site, keys: keys
    module: Any = rotary[0]

    def turn(site: AttentionSite, keys: Tensor) -> Tensor:
        apply = getattr(sys.modules[type(site.module).__module__], "apply_rotary_pos_emb", None)
        by_head = keys.float().view(len(keys), -1, site.head_dim).transpose(0, 1)[None]
        device = next(engine.base.parameters()).device
        try:
            cos, sin = module(by_head.to(device), torch.tensor([[length]], device=device))
            if apply is None or cos.shape[-1] != site.head_dim:
                raise TypeError
            size = (cos.square() + sin.square()).sqrt()
            cos, sin = cos / size, (-sin if back else sin) / size
            turned: Tensor = apply(by_head, by_head, cos.to("cpu"), sin.to("cpu"))[1]
        except (TypeError, ValueError, RuntimeError, AttributeError):
            raise UnsupportedError(
                f"{what}: the rotary positions of {type(engine.base).__name__} are of a kind for which it is not known how "
                "a prefix of PEFT turns with them. Train a prefix here."
            ) from None
        return turned[0].transpose(0, 1).reshape(len(keys), -1).to(keys.dtype)

    return turn


@torch.no_grad()
def _write_prefix(engine: Engine, modules: Sequence[Any]) -> Written:
    name, length = modules[0].name, modules[0].config.prefix_length
    what = f"Adapter {name!r}"
    _refuse_positions(engine.base, what)
    slots = _slots(engine)
    placed = {module.site: module for module in modules}
    if any(module.config.use_gating for module in modules) or placed.keys() != slots.keys():
        raise UnsupportedError(
            f"{what} has a gate, or acts at other attentions than those in whose caches PEFT puts prefixes: all self "
            "attentions of a decoder, and its cross attentions if it has some. Those of encoders have none there."
        )
    own, cross = _sites(engine)
    width = _width(engine, slots, what)
    turned = _turning(engine, length, back=False, what=what)
    cut: list[Tensor | None] = [None] * (2 * len(own))
    for site, slot in slots.items():
        keys, values = (part[0].transpose(0, 1).reshape(length, -1) for part in placed[site]())
        for number, part in ((slot, turned(site, keys.cpu())), (slot + 1, values.cpu())):
            if (there := cut[number]) is not None and not torch.equal(there, part):
                raise UnsupportedError(
                    f"{what} has other prefixes in every layer, and PEFT repeats those of the first half of an "
                    "encoder-decoder's layers in the second."
                )
            cut[number] = part
    filled = [torch.zeros(length, width) if part is None else part for part in cut]
    options = {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": len(own),
        "num_attention_heads": own[0].num_heads,
        "num_transformer_submodules": 2 if cross else 1,
        "encoder_hidden_size": width,
        "prefix_projection": False,
    }
    return Written(options, {}, {EMBEDDINGS: torch.cat(filled, 1)})


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
