"""VERA, RANDLORA and VBLORA: updates of which all modules share a part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapters.checkpoint.peft.modules import Found
from adapters.checkpoint.peft.options import Option, Options, bias, dropout
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.errors import CheckpointError, UnsupportedError
from adapters.methods.config import flag, integer, number, real
from adapters.methods.randlora import RandLoRA, RandLoRAConfig, terms
from adapters.methods.vblora import VBLoRA, VBLoRAConfig
from adapters.methods.vera import VeRA, VeraConfig
from adapters.sites.site import AffineSite


def _sides(found: Sequence[Found]) -> tuple[int, int]:
    """The widest output and the widest input of all modules."""
    sites: list[Any] = [module.site for module in found]
    return max(site.out_features for site in sites), max(site.in_features for site in sites)


def _cut(tensor: Tensor | None, what: str, name: str, *shape: int) -> Tensor:
    """A shared tensor, as large as the modules need it. Raises CheckpointError if it is smaller, or missing."""
    if tensor is None or tensor.dim() != len(shape) or any(a < b for a, b in zip(tensor.shape, shape)):
        have = "missing" if tensor is None else tuple(tensor.shape)
        raise CheckpointError(f"{what}: the shared tensor {name} is {have}, but its modules need {shape}.")
    return tensor[tuple(slice(size) for size in shape)]


class VeRATranslator(Translator):
    """y = W x + l_b * B (l_d * A x), with random A and B that all modules share."""

    peft_type = "VERA"
    methods = (VeRA,)
    options: ClassVar[Mapping[str, Option]] = {
        "r": Option(integer(1), 256),
        "projection_prng_key": Option(integer(0), 0),
        "save_projection": Option(flag, True),
        "vera_dropout": dropout,
        "d_initial": Option(real, 0.1),
        "bias": bias,
    }
    parts: ClassVar[Mapping[str, str]] = {"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"}
    shared_parts: ClassVar[Mapping[str, str]] = {"vera_A": "vera_A", "vera_B": "vera_B"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        rank, (rows, columns) = options["r"], _sides(found)
        if not shared:
            shared = self.drawn(options["projection_prng_key"], rank, rows, columns)
        fixed = {
            "lora_A": _cut(shared.get("vera_A"), options.what, "vera_A", rank, columns),
            "lora_B": _cut(shared.get("vera_B"), options.what, "vera_B", rows, rank),
        }
        tensors: dict[AffineSite, dict[str, Tensor]] = {
            module.site: {
                "vera_D": self.part(module, "vera_lambda_d", options, rank),
                "vera_B": self.part(module, "vera_lambda_b", options, module.site.out_features),
            }
            for module in found
        }
        size = {"r": rank, "alpha": rank, "dropout": options["vera_dropout"], "vera_d": float(options["d_initial"])}
        return [Member(VeraConfig(**size, vera_diagonal=True), tensors, fixed)]

    @staticmethod
    def drawn(key: int, rank: int, rows: int, columns: int) -> dict[str, Tensor]:
        """The matrices that PEFT draws with a key, where a file does not hold them: uniform, of variance 2 / fan-in."""
        generator = torch.Generator().manual_seed(key)

        def draw(*shape: int) -> Tensor:
            bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)

        return {"vera_A": draw(rank, columns), "vera_B": draw(rows, rank)}

    def write(self, modules: Sequence[Any]) -> Written:
        tensors: dict[AffineSite, dict[str, Tensor]] = {}
        for module in modules:
            self.ungated(module)
            self.unfused(module)
            inner, outer = (self.diagonal(module, name) for name in ("vera_D", "vera_B"))
            tensors[module.site] = {"vera_lambda_d": inner, "vera_lambda_b": outer * module.scaling}
        common, config = modules[0].common, modules[0].config
        options = {
            "r": config.r,
            "vera_dropout": config.dropout,
            "d_initial": config.vera_d or 0.0,
            "save_projection": True,
            "projection_prng_key": 0,
        }
        return Written(options, tensors, {"vera_A": common.lora_A, "vera_B": common.lora_B})

    @staticmethod
    def diagonal(module: Any, name: str) -> Tensor:
        """A trained matrix that is diagonal. Raises UnsupportedError if it is not."""
        matrix: Tensor = module.tensor(name)
        if matrix.dim() == 1:
            return matrix
        if not torch.equal(matrix, matrix.diagonal().diag()):
            raise UnsupportedError(
                f"Adapter {module.name!r} has full matrices between those that its layers share, and PEFT's VeRA "
                "diagonal "
                "ones. Train it with vera_diagonal=True."
            )
        return matrix.diagonal()


class RandLoRATranslator(Translator):
    """Sums of scaled random matrices.

    PEFT stores all B_j in one tensor [D, n, r], and takes from it for a module with n terms the first n * r columns, of
    which column k * n + j belongs to row k of A in term j. So modules with different numbers of terms read different
    B_j: each number makes a member of its own.
    """

    peft_type = "RANDLORA"
    methods = (RandLoRA,)
    options: ClassVar[Mapping[str, Option]] = {
        "r": Option(integer(1), 32),
        "randlora_alpha": Option(real, 640),
        "randlora_dropout": dropout,
        "save_projection": Option(flag, True),
        "bias": bias,
    }
    history: ClassVar[frozenset[str]] = frozenset(("projection_prng_key", "sparse", "very_sparse"))
    parts: ClassVar[Mapping[str, str]] = {
        "randlora_lambda": "randlora_lambda",
        "randlora_gamma": "randlora_gamma",
        "randlora_A": "A",
        "randlora_B": "B",
    }
    shared_parts: ClassVar[Mapping[str, str]] = {"randlora_A": "A", "randlora_B": "B"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        rank = options["r"]
        both = {**{name: t for module in found for name, t in module.tensors.items() if name in "AB"}, **shared}
        if len(both) != 2:
            raise CheckpointError(
                f"{options.what} was saved without its random matrices (save_projection=False), which PEFT draws with "
                "a "
                "precision that depends on the machine. Save it in PEFT with save_projection=True."
            )
        grouped: dict[int, list[Found]] = {}
        for module in found:
            site: Any = module.site
            grouped.setdefault(terms(rank, site.in_features, site.out_features), []).append(module)
        members = []
        for count, modules in grouped.items():
            sides = [sorted((m.site.in_features, m.site.out_features)) for m in modules]  # type: ignore[attr-defined]
            short, long = (max(side) for side in zip(*sides))
            a = _cut(both["A"], options.what, "randlora_A", rank, 1, short)[:, 0]
            b = _cut(both["B"], options.what, "randlora_B", long, count, rank).flatten(1)
            tensors: dict[AffineSite, dict[str, Tensor]] = {
                module.site: {
                    "updates.0.L": self.part(module, "randlora_lambda", options, rank, count).t(),
                    "updates.0.G": self.part(module, "randlora_gamma", options, count, side[0]),
                }
                for module, side in zip(modules, sides)
            }
            config = RandLoRAConfig(r=rank, alpha=options["randlora_alpha"], dropout=options["randlora_dropout"])
            members.append(Member(config, tensors, {"A": a, "B": b.view(long, rank, count).permute(2, 0, 1)}))
        return members

    @torch.no_grad()
    def write(self, modules: Sequence[Any]) -> Written:
        tensors: dict[AffineSite, dict[str, Tensor]] = {}
        columns: dict[int, Tensor] = {}
        rows: list[Tensor] = []
        for module in modules:
            self.ungated(module)
            self.unfused(module)
            scalings, common = module.updates[0], module.common
            count = len(scalings.L)
            tensors[module.site] = {"randlora_lambda": scalings.L.t(), "randlora_gamma": scalings.G}
            long, rank = max(scalings.size), scalings.L.shape[1]
            own = common.B[:count, :long].permute(1, 2, 0).reshape(long, rank * count)
            if count not in columns or long > len(columns[count]):
                columns[count] = own
            rows.append(common.A)
        narrow, wide = sorted((max(m.out_features for m in modules), max(m.in_features for m in modules)))
        rank = modules[0].config.r
        most = terms(rank, narrow)  # PEFT's matrices are as large as the widest input and output together ask for
        b = rows[0].new_zeros(wide, rank * most)
        for own in [columns[count] for count in sorted(columns, reverse=True)]:
            there = b[: len(own), : own.shape[1]]
            if bool(((there != 0).any(1) & (there != own).any(1)).any()):
                raise UnsupportedError(
                    f"Adapter {modules[0].name!r} acts at layers of different widths, which share random matrices in "
                    "another way than PEFT's do. Save one for each width, by places of their own."
                )
            there.copy_(own)
        a = max(rows, key=lambda tensor: tensor.shape[1])
        if any(not torch.equal(own, a[:, : own.shape[1]]) for own in rows):
            raise UnsupportedError(
                "PEFT has one random matrix A for all layers of an adapter, and this one has several."
            )
        names = {"r": "r", "randlora_alpha": "alpha", "randlora_dropout": "dropout"}
        options = {
            theirs: self.common(modules, theirs, lambda module, ours=ours: module.config[ours])
            for theirs, ours in names.items()
        }
        padded = a.new_zeros(rank, narrow)
        padded[:, : a.shape[1]] = a
        shared = {"randlora_A": padded[:, None], "randlora_B": b.view(wide, most, rank)}
        options |= {"save_projection": True, "projection_prng_key": 0}
        return Written(options, tensors, shared)


class VBLoRATranslator(Translator):
    """Matrices that are mixtures of the vectors of one bank. Files may hold the best mixtures in place of all "
    "logits."""

    peft_type = "VBLORA"
    methods = (VBLoRA,)
    options: ClassVar[Mapping[str, Option]] = {
        "r": Option(integer(1), 4),
        "num_vectors": Option(integer(1), 256),
        "vector_length": Option(integer(1), 256),
        "topk": Option(integer(1), 2),
        "vblora_dropout": dropout,
        "save_only_topk_weights": Option(flag, False),
        "init_vector_bank_bound": Option(number(0), 0.02),
        "init_logits_std": Option(number(0), 0.1),
        "bias": bias,
    }
    parts: ClassVar[Mapping[str, str]] = {
        f"vblora_logits_{matrix}{end}": f"logits_{matrix}{end}"
        for matrix in "AB"
        for end in ("", "_topk_indices", "_topk_weights")
    }
    shared_parts: ClassVar[Mapping[str, str]] = {"vblora_vector_bank": "vectors"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        vectors, length, rank = options["num_vectors"], options["vector_length"], options["r"]
        bank = _cut(shared.get("vectors"), options.what, "vblora_vector_bank", vectors, length)
        tensors: dict[AffineSite, dict[str, Tensor]] = {}
        for module in found:
            site: Any = module.site
            shapes = {"A": (rank, site.in_features // length), "B": (site.out_features // length, rank)}
            tensors[module.site] = {
                f"logits_{matrix}": self.logits(options, module, f"logits_{matrix}", shape)
                for matrix, shape in shapes.items()
            }
        config = VBLoRAConfig(
            r=rank,
            num_vectors=vectors,
            vector_length=length,
            topk=options["topk"],
            dropout=options["vblora_dropout"],
            init_vector_bound=options["init_vector_bank_bound"],
            init_logits_std=options["init_logits_std"],
        )
        return [Member(config, tensors, {"vectors": bank})]

    def logits(self, options: Options, module: Found, name: str, shape: tuple[int, int]) -> Tensor:
        """The logits, or ones with the same best mixtures."""
        vectors, topk = options["num_vectors"], options["topk"]
        if not options["save_only_topk_weights"]:
            return self.part(module, name, options, *shape, vectors)
        chosen = self.part(module, f"{name}_topk_indices", options, *shape, topk).long()
        weights = self.part(module, f"{name}_topk_weights", options, *shape, topk - 1).float()
        weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < vectors:
            raise CheckpointError(f"{options.what}: {name} of {module.name} chooses vectors that are not in the bank.")
        return torch.full((*shape, vectors), -math.inf).scatter(-1, chosen, weights.log())

    def write(self, modules: Sequence[Any]) -> Written:
        tensors: dict[AffineSite, dict[str, Tensor]] = {}
        for module in modules:
            self.ungated(module)
            self.unfused(module)
            tensors[module.site] = {f"vblora_logits_{x}": module.tensor(f"logits_{x}") for x in "AB"}
        config = modules[0].config
        options = {
            "r": config.r,
            "num_vectors": config.num_vectors,
            "vector_length": config.vector_length,
            "topk": config.topk,
            "vblora_dropout": config.dropout,
            "init_vector_bank_bound": config.init_vector_bound,
            "init_logits_std": config.init_logits_std,
            "save_only_topk_weights": False,
        }
        return Written(options, tensors, {"vblora_vector_bank": modules[0].common.vectors})
