"""How does a model speak another vocabulary? Several input embeddings by name, one of them in use.

The module of the input embeddings stays the same, so that hooks on it keep working; what changes is its weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.layout import EMBEDDING_FILE, TOKENIZER_FOLDER, PathLike
from adapters.checkpoint.tensors import load_pickle, not_plain
from adapters.checkpoint.together import saving_of
from adapters.errors import AdapterNameError, CheckpointError, CheckpointNotFound, ConfigError, choices
from adapters.sharding import whole

DEFAULT = "default"
"""Name of the embeddings that the model had from the start."""


class EmbeddingNotFound(CheckpointNotFound, FileNotFoundError):
    """No embeddings lie at the given place."""


class IncompleteReference(ConfigError, KeyError):
    """Only one of the two arguments that make a reference was given."""

    def __str__(self) -> str:
        return str(self.args[0])


class EmbeddingSets:
    """The input embeddings of one model by name.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.loaded: dict[str, nn.Embedding] = {DEFAULT: _like(self.module, self.module.weight)}
        self.active = DEFAULT

    @property
    def module(self) -> nn.Embedding:
        """The module that is called."""
        found: nn.Embedding = self.model.get_input_embeddings()
        return found

    def add(self, name: str, weight: Tensor) -> None:
        """Add embeddings [V, E] and use them.

        Raises:
            AdapterNameError: there are embeddings of this name.
        """
        if name in self.loaded:
            raise AdapterNameError(f"There are embeddings {name!r} already. Delete them first, or choose another name.")
        parameter = nn.Parameter(weight.to(self.module.weight), requires_grad=False)
        self.loaded[name] = _like(self.module, parameter)
        self.use(name)

    def use(self, name: str) -> None:
        """Let the model read the embeddings `name`.

        Raises:
            AdapterNameError: there are none of this name.
        """
        self.require(name)
        old, new = self.module.weight, self.loaded[name].weight
        with torch.no_grad():
            new.data = new.data.to(old)
        for module in self.model.base_model.modules():
            if isinstance(module, nn.Embedding) and module.weight is old:
                module.weight = new
                module.num_embeddings = new.shape[0]
                module.padding_idx = self.loaded[name].padding_idx
        self.active = name
        self.model.config.vocab_size = new.shape[0]

    def delete(self, name: str) -> None:
        """Forget the embeddings `name`; the model's own take over if they are in use.

        Raises:
            AdapterNameError: there are none of this name, or they are the model's own.
        """
        self.require(name)
        if name == DEFAULT:
            raise AdapterNameError(f"{DEFAULT!r} are the model's own embeddings and cannot be deleted.")
        if self.active == name:
            self.use(DEFAULT)
        del self.loaded[name]

    def require(self, name: str) -> None:
        """Raise AdapterNameError unless there are embeddings `name`."""
        if name not in self.loaded:
            raise AdapterNameError(f"There are no embeddings {name!r}. {choices(name, self.loaded)}")


def _like(module: nn.Embedding, weight: Tensor) -> nn.Embedding:
    """A plain module that holds `weight` itself."""
    with torch.device("meta"):
        made = nn.Embedding(weight.shape[0], weight.shape[1])
    made.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    padding = module.padding_idx
    made.padding_idx = padding if padding is not None and padding < weight.shape[0] else None
    return made


def sets_of(model: Any) -> EmbeddingSets:
    """The embeddings of a model."""
    if "_embedding_sets" not in vars(model):
        model.__dict__["_embedding_sets"] = EmbeddingSets(model)
    found: EmbeddingSets = model.__dict__["_embedding_sets"]
    return found


@torch.no_grad()
def add_embeddings(
    model: Any,
    name: str,
    tokenizer: Any,
    reference_embedding: str | None = None,
    reference_tokenizer: Any = None,
    embedding_dim: int | None = None,
) -> None:
    """Add embeddings for a tokenizer's vocabulary, N(0, 0.02), and use them.

    Raises:
        AdapterNameError: the name is taken, or there are no reference embeddings of this name.
        IncompleteReference: only one of the two reference arguments is given (a KeyError).
        ConfigError: the width is not that of the model.
    """
    sets = sets_of(model)
    if (reference_embedding is None) != (reference_tokenizer is None):
        raise IncompleteReference("reference_embedding and reference_tokenizer go together. Pass both, or neither.")
    width = sets.module.weight.shape[1]
    if embedding_dim not in (None, width):
        raise ConfigError(f"embedding_dim is {embedding_dim}, but the layers of this model take {width}.")
    if name in sets.loaded:
        raise AdapterNameError(f"There are embeddings {name!r} already. Delete them first, or choose another name.")
    weight = torch.empty(len(tokenizer), width).normal_(std=0.02)
    if reference_embedding is not None:
        sets.require(reference_embedding)
        source = sets.loaded[reference_embedding].weight
        known = reference_tokenizer.get_vocab()
        rows = [(i, known[t]) for t, i in tokenizer.get_vocab().items() if known.get(t, len(source)) < len(source)]
        if rows:
            new, old = (torch.tensor(column) for column in zip(*rows))
            weight[new] = source[old.to(source.device)].to(weight)
    sets.add(name, weight)


def save_embeddings(model: Any, folder: PathLike, name: str, tokenizer: Any = None) -> None:
    """Write embeddings, and the tokenizer whose ids they are for.

    Raises:
        AdapterNameError: there are no embeddings of this name.
    """
    sets = sets_of(model)
    sets.require(name)
    weight = whole(sets.loaded[name].weight).detach().to("cpu").clone()
    with saving_of(model, folder, lambda path: path.split("/")[0] == TOKENIZER_FOLDER) as path:
        torch.save(weight, path / EMBEDDING_FILE)
        if tokenizer is not None:
            tokenizer.save_pretrained(path / TOKENIZER_FOLDER)


def load_embeddings(model: Any, folder: PathLike, name: str) -> Any:
    """Add stored embeddings and use them.

    Returns:
        The tokenizer that lies with them, or None.
    Raises:
        EmbeddingNotFound: there are none (a FileNotFoundError).
        CheckpointError: the file is damaged, or the width is not that of the model.
        AdapterNameError: the name is taken.
    """
    file = Path(folder, EMBEDDING_FILE)
    sets = sets_of(model)
    width = sets.module.weight.shape[1]
    with reading(folder):
        if not file.is_file():
            raise EmbeddingNotFound(f"There is no file {file}.")
        weight = load_pickle(file)
        if problem := not_plain(weight):
            raise CheckpointError(f"{file} holds {type(weight).__name__}, which is {problem}.")
        if weight.dim() != 2 or weight.shape[1] != width or not weight.is_floating_point():
            raise CheckpointError(
                f"{file} holds {weight.dtype} of shape {tuple(weight.shape)}, but this model needs floating point "
                f"numbers in {width} columns."
            )
        tokenizer = None
        if Path(folder, TOKENIZER_FOLDER).is_dir():
            tokenizer = AutoTokenizer.from_pretrained(Path(folder, TOKENIZER_FOLDER))
    sets.add(name, weight)
    return tokenizer
