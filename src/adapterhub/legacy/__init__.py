"""The old AdapterHub (2020 to 2024): its cards can be taken over, and its index is still served to its clients."""

from .importing import Imported, import_cards

__all__ = ["Imported", "import_cards"]
