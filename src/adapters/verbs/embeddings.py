"""Which input embeddings are in use? Those of other vocabularies come and go by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapters.checkpoint import embeddings
from adapters.checkpoint.layout import PathLike
from adapters.verbs.base import Verbs


class EmbeddingVerbs(Verbs):
    """Adding, using, saving and loading input embeddings."""

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
