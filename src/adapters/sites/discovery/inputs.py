"""What can a model be given to compute one forward pass? Small random inputs, made of its signature and its config."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ROWS, LENGTH = 2, 7

PARTS = ("vision", "audio", "encoder", "backbone")
"""Of a composite config, those that say what images and sounds are like."""

Inputs = dict[str, Any]


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """Inputs to try, the likeliest first."""
    maker = _Maker(model)
    main = getattr(model, "main_input_name", "input_ids")
    makers = {
        "input_ids": maker.texts,
        "pixel_values": maker.images,
        "input_features": maker.features,
        "input_values": maker.waves,
        "inputs_embeds": maker.embeddings,
        "hidden_states": maker.patches,
    }
    order = sorted(makers, key=lambda name: name != main)
    for name in order:
        if name in maker.names:
            yield from map(maker.known, makers[name]())


class _Maker:
    def __init__(self, model: nn.Module) -> None:
        self.config: Any = model.config
        parameters = inspect.signature(model.forward).parameters
        self.names = set(parameters)
        self.generator = torch.Generator().manual_seed(0)
        get = getattr(self.config, "get_text_config", None)
        self.text: Any = get() if get else self.config
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def known(self, inputs: Inputs) -> Inputs:
        """Those that the model takes."""
        return {name: value.to(self.device) for name, value in inputs.items() if name in self.names}

    def number(self, *names: str, default: int) -> int:
        """The first of these values that a config has, of the model or of its part for images or audio."""
        parts = [
            self.config,
            *(getattr(self.config, f"{part}_config", None) for part in ("vision", "audio", "encoder")),
        ]
        for name in names:
            for part in parts:
                value = getattr(part, name, None)
                if isinstance(value, (list, tuple)) and value:
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return default

    def ids(self, length: int = LENGTH) -> Tensor:
        """Token ids that are no special ones."""
        vocabulary = getattr(self.text, "vocab_size", None) or getattr(self.config, "vocab_size", None) or 32
        low = min(10, vocabulary // 2)
        return torch.randint(low, max(low + 1, min(vocabulary, 500)), (ROWS, length), generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def decoder(self) -> Inputs:
        return {"decoder_input_ids": self.ids(LENGTH - 2)}

    def texts(self) -> Iterator[Inputs]:
        ids = self.ids()
        plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.decoder()}
        boxes = torch.tensor([0, 0, 5, 5]).expand(ROWS, LENGTH, 4)
        if (queries := getattr(self.config, "num_query_tokens", None)) and "pixel_values" in self.names:
            places = torch.full((ROWS, queries), self.number("image_token_index", "image_token_id", default=0))
            longer = torch.cat([places, ids], 1)
            for images in self.images():
                yield {**plain, **images, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
        if "pixel_values" in self.names and "bbox" not in self.names:
            for images in self.images():
                yield {**plain, **images}
        if "bbox" in self.names:
            yield {**plain, "bbox": boxes}
            yield {**plain, "bbox": boxes.repeat(1, 1, 2) / 10}  # all four corners, as parts of the page
        yield plain
        yield {"input_ids": ids}
        for features in self.features() if "input_features" in self.names else ():
            yield {**plain, **features}

    def images(self) -> Iterator[Inputs]:
        side = self.number("image_size", "img_size", "input_size", default=64)
        channels = self.number("num_channels", "in_channels", "in_chans", default=3)
        frames = self.number("num_frames", default=4)
        yield {"pixel_values": self.normal(ROWS, channels, side, side), **self.decoder()}
        yield {"pixel_values": self.normal(ROWS, frames, channels, side, side)}
        patch = self.number("patch_size", default=4)
        yield from self.grids("pixel_values", channels, patch)
        shapes = torch.tensor([[3, 3]] * ROWS)
        mask = torch.ones(ROWS, 9, dtype=torch.long)
        flat = self.normal(ROWS, 9, channels * patch * patch)
        yield {"pixel_values": flat, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def grids(self, name: str, channels: int, patch: int) -> Iterator[Inputs]:
        """Patches of images of 4 x 4, one after the other."""
        if "grid_thw" not in self.names:
            return
        steps = self.number("temporal_patch_size", default=1)
        grid = torch.tensor([[1, 4, 4]] * ROWS)
        for shape in ((channels * steps * patch * patch,), (channels * patch * patch,), (channels, patch, patch)):
            yield {name: self.normal(16 * ROWS, *shape), "grid_thw": grid}

    def features(self) -> Iterator[Inputs]:
        bins = self.number("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", "input_dim", default=16)
        frames = 2 * self.number("max_source_positions", default=32)
        for shape in ((ROWS, bins, frames), (ROWS, 64, bins), (ROWS, bins, 64), (ROWS, 64, 128)):
            for length in shape[1:] if "input_features_mask" in self.names else (0,):
                mask = torch.ones(ROWS, length, dtype=torch.bool)
                yield {"input_features": self.normal(*shape), "input_features_mask": mask, **self.decoder()}

    def waves(self) -> Iterator[Inputs]:
        if bins := getattr(self.config, "num_mel_bins", None):  # a sound as an image
            yield {"input_values": self.normal(ROWS, self.number("max_length", default=64), bins)}
        for shape in ((ROWS, 2000), (ROWS, 1, 2000), (ROWS, 1, 2048), (ROWS, 64, 16)):
            yield {"input_values": self.normal(*shape), **self.decoder()}

    def embeddings(self) -> Iterator[Inputs]:
        width = self.number("hidden_size", "d_model", "embed_dim", default=32)
        states = self.normal(ROWS, LENGTH, width)
        mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
        yield {"inputs_embeds": states, "attention_mask": mask, **self.decoder()}

    def patches(self) -> Iterator[Inputs]:
        width = self.number("hidden_size", "d_model", "embed_dim", default=32)
        channels = self.number("num_channels", "in_channels", "in_chans", default=3)
        yield from self.grids("hidden_states", channels, self.number("patch_size", default=4))
        yield {"hidden_states": self.normal(ROWS, LENGTH, width)}
