"""Writes docs/places.md from the table of roles, the grammar of `places` and the specs of a few families."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import torch
import transformers

from adapters.methods import places as grammar
from adapters.methods.locations import LOCATIONS
from adapters.sites import roles
from adapters.sites.lookup import spec_for
from adapters.sites.resolve import resolve
from adapters.sites.roles import ROLES
from adapters.sites.site import LinearSite

TARGET = Path(__file__).parents[1] / "docs/places.md"
FAMILIES = {"BERT": "BertConfig", "GPT-2": "GPT2Config", "Llama": "LlamaConfig", "T5 (a decoder layer)": "T5Config"}

PAGE = """# Places

An adapter acts at a *place*: a linear map, what a residual branch adds, an attention, a norm, a layer. Places of one
kind have the same name in all models, their *role*. `scripts/places_page.py` makes this page of the table of roles; a
test keeps it true.

```
{drawing}
```

{roles}

Linear maps and norms without a role (a pooler, a router, norms of queries and keys) are named by their module path.

**Packed experts** (Mixtral, Qwen-MoE, GPT-OSS, DeepSeek, OLMoE, ...) are linear maps too: `ffn.up`, `ffn.gate` and
`ffn.down` of such a layer are those of all its experts. LoRA, DoRA, VeRA, DVoRA, LoHa, LoKr, RandLoRA, VB-LoRA and
(IA)³ have one adapter per expert there, whose tensors stand in files under
`<module of the experts>.adapted.<parameter>.loras.<name>`, with the expert as their first dimension: `lora_A` is
[E, r, I], `lora_B` [E, O, r]. They give the same numbers with every experts implementation, and a merged adapter is
in the weights of each expert. Other parameters that layers hold themselves, such as the weight of a router that is no
linear layer, are meant by patterns that end in their name: `"*.experts.down_proj"`, `"*.mlp.gate.weight"`. Experts
are given the tokens of all rows in one list, so `BatchSplit`, `Parallel`, `MultiTask` and `Split` run them once per
adapter, each with its tokens; these stand around all other blocks there, `Average` inside of them. `Stack`, `Fuse`,
`Route` and gates are refused with the reason.

**Prompts** (`embed.prompt`) stand in front of the sequence. Encoders of text or patches that are described by hand
take them behind their embeddings, position embeddings and norm, and return P more positions. Decoders, and the
encoders that a decoder reads (T5, BART), take them where embeddings are given to the stack: prompts have the first P
positions, masks and positions grow with them, the cache holds them. What leaves a decoder is cut to the length of the
input, so labels, heads and `generate` do not notice; `hidden_states`, `attentions` and `encoder_last_hidden_state`
keep the P positions. In rows that are padded on the left the prompt stands in front of the padding, as in PEFT:
sliding windows, and positions that are not given, count it as distance (`generate` gives positions). Decoders that
were found by tracing take prompts if they compute of embeddings what they compute of ids. Prompts are refused where
one vector stands for the whole input at a fixed position (CLIP), where positions are biases of pairs of patches
(BEiT), for sound, and in encoders that nobody described. Assisted generation and `generate` from a cache that is
already filled are refused: they count tokens by its length.

What of all this a model has, `adapters.inspect(model)` tells; [capabilities.md](capabilities.md) has it for all types.

## Say where

Every config takes `places`. LoRA and its kin act at linear maps, BitFit at linear maps and norms that have a bias,
LN tuning at norms, bottlenecks at branches, ReFT at branches and layers, prefixes at attentions.

```python
{grammar}
```

```python
model.add_adapter("a", config=LoRAConfig(places=["attn.*", "ffn.down"]))
model.add_adapter("b", config="lora[places='all-linear',r=16]")
model.add_adapter("c", config=SeqBnConfig(places=["0-5:ffn", "attn"]))
model.add_adapter("d", config=LoReftConfig(places=["8-11:ffn"]))
model.add_adapter("e", config=IA3Config(places=["attn.k", "attn.v", "ffn.down.in"]))  # as in the paper
```

`leave_out` takes layers away from what is chosen. An entry that matches nothing is an error that lists what there is.

Without `places` a config says where by its flags, as it always did. Both are spellings of one thing: what flags can say
about a model is registered and written with flags, so that `adapters` 1.x reads it; `places` is written only where it
says more. A flag means what adapters were trained with: `selfattn_lora` is self *and* cross attention, and on Llama and
Mistral `intermediate_lora` is `ffn.down`, `output_lora` is `ffn.up`.

## Where that is

Module paths in one layer, for `embed` and `embed.prompt` in the model.

{paths}
"""


def table(*rows: tuple[str, ...]) -> str:
    """Rows of cells, the first of which is the head, as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def paths_of(config: str) -> dict[str, str]:
    """Role -> path of the module that adapters act on, in the last layer of a family's model."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(getattr(transformers, config)())
    found: dict[str, str] = {}
    modules = {id(module): path for path, module in model.named_modules()}
    sites = [site for site in resolve(model, spec_for(model)) if site.role]
    last = max(sites, key=lambda site: site.layer).layer
    layer = next(modules[id(site.module)] for site in sites if site.role == "layer" and site.layer == last)
    for site in (site for site in sites if site.layer in (-1, last)):
        path = modules[id(site.module)].removeprefix(f"{layer}.")
        for i, role in enumerate(site.role.split("+")):
            part = f", part {i + 1}" if isinstance(site, LinearSite) and site.parts else ""
            named = {layer: "the layer", "": "the model"}.get(path, f"`{path}`{part}")
            found.setdefault(
                role,
                f"in front of {named}" if getattr(site, "argument", None) and site.role == "embed.prompt" else named,
            )
    return found


def page() -> str:
    """The whole page."""
    words = [(f"`{r.name}`", r.kind, r.words, f"`{LOCATIONS.get(r.name, r.name)}`") for r in ROLES.values()]
    paths = {family: paths_of(config) for family, config in FAMILIES.items()}
    named = [role for role in ROLES if any(role in found for found in paths.values())]
    where = [(f"`{role}`", *(found.get(role, "-") for found in paths.values())) for role in named]
    drawing = inspect.cleandoc(roles.__doc__ or "").partition("\n\n")[2].lstrip()
    lines = inspect.cleandoc(grammar.__doc__ or "").split("\n\n")[1]
    return PAGE.format(
        drawing=drawing,
        roles=table(("role", "kind", "what it is", "key in `get_adapter`, flag of configs"), *words),
        grammar=textwrap.dedent(lines),
        paths=table(("role", *paths), *where),
    )


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
