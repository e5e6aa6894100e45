"""Xet uploads of `huggingface_hub`: taken in and turned into ordinary files. Downloads never use Xet."""
