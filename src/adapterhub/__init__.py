"""The hub: a server that shares adapters, and speaks the protocol of the `huggingface_hub` client.

Start it with `adapterhub serve`. Nothing in this package imports torch.
"""
