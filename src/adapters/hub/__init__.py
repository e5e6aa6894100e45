"""Share adapters on a hub, and fetch them: the public Hugging Face Hub or one of your own.

import adapters

adapters.hub.use("http://hub.example.org")
model.load_adapter("sentiment/sst-2@org")
model.push_adapter_to_hub("org/name", "my_adapter")
"""

from adapters.hub.listing import AdapterInfo, get_adapter_info, list_adapters
from adapters.hub.names import resolve
from adapters.hub.session import endpoint, use

__all__ = [
    "AdapterInfo",
    "endpoint",
    "get_adapter_info",
    "list_adapters",
    "resolve",
    "use",
]
