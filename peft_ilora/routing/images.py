"""Rows of images, videos and sounds: which row of the batch each of them belongs to.

A model takes the images of all rows as one batch of their own, in the order of their tokens in the
text. As many images as rows are not one for each, so it is proved from the tokens.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_MEDIA = {
    "pixel_values": "image",
    "pixel_values_videos": "video",
    "pixel_values_images": "image",
    "pixel_values_local": "image",
    "image_pixel_values": "image",
    "image_patches": "image",
    "flattened_patches": "image",
    "input_features": "audio",
    "audio_input_features": "audio",
    "input_values": "audio",
}
_CROPS = "pixel_values_local"
_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
_MEASURED = re.compile(
    r"(image|pixel|feature|audio|video)\w*_(sizes?|mask)|_grid|spatial_shapes|aspect_ratio"
    r"|num_(\w+_)?(crops|patches|tiles|images|frames)"
)
"""Arguments that let images differ in their number of tokens."""
_TOWER = re.compile(
    r"vision|visual|image|pixel|audio|speech|video|multi_modal|mm_|qformer|connector|perceiver"
    r"|resampler|projec"
)
_PLACES = "_embeds_position_mask"
"""Of an argument that marks the tokens of a kind, in place of an id."""
_INNER = ("thinker", "vlm")
"""The model that reads the tokens, in one that is built around it."""
_HEADS = ("lm_head", "score", "classifier")


@dataclass(frozen=True)
class Images:
    """The images of one kind, in order."""

    row_of: tuple[int, ...]
    """The row of the batch that each belongs to."""
    parts: tuple[int, ...]
    """In how many neighbouring parts layers may see each: tiles, frames, patches."""


@dataclass(frozen=True)
class ImageRows:
    """The images of a forward."""

    kinds: tuple[Images, ...]

    def spread(self, given: Tensor, count: int) -> Tensor | None:
        """Give each part of an image what its row has.

        Args:
            given: [..., rows, coefficients]
            count: How many images, or parts of them, a layer sees.

        Returns:
            [..., count, coefficients]; None where no images make so many, or where some of either
            kind do.
        """
        found = {
            tuple(row for row in kind.row_of for _ in range(parts))
            for kind in self.kinds
            for parts in kind.parts
            if len(kind.row_of) * parts == count
        }
        return given[..., list(found.pop()), :] if len(found) == 1 else None


def image_rows(model: nn.Module, kwargs: dict[str, Any]) -> ImageRows | None:
    """Return the rows of the images of a call.

    Args:
        model: The base model.
        kwargs: The call's arguments by name; `input_ids` [rows, length].

    Returns:
        None where there are none, or the model marks them by no token.

    Raises:
        ValueError: It cannot be told which row each belongs to.
    """
    kinds = []
    for name, kind in _MEDIA.items():
        token = _token(getattr(model, "config", None), kind)
        marked = token is not None or f"{kind}{_PLACES}" in kwargs
        if marked and isinstance(kwargs.get(name), Tensor):
            kinds.append(_rows(name, token, kwargs))
    return ImageRows(tuple(kinds)) if kinds else None


def has_images(model: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a call has images, or the like, that tokens of its text stand for."""
    config = getattr(model, "config", None)
    return any(
        kwargs.get(name) is not None
        and (_token(config, kind) is not None or f"{kind}{_PLACES}" in kwargs)
        for name, kind in _MEDIA.items()
    )


def sees_images(model: nn.Module, name: str) -> bool:
    """Whether a layer of a model that reads text and images sees images.

    Args:
        model: The model.
        name: The layer's name in it.
    """
    text, around = _text(model)
    if (
        name.rpartition(".")[2] in _HEADS
        or name.startswith(_HEADS)
        or (text and name.startswith(f"{text}."))
    ):
        return False
    return bool(_TOWER.search(name)) or bool(around and name.startswith(f"{around}."))


def _text(model: nn.Module) -> tuple[str, str]:
    """Return the name of the module that embeds tokens, and of the one around it."""
    reader = next((getattr(model, inner) for inner in _INNER if hasattr(model, inner)), model)
    embedding = reader.get_input_embeddings()  # type: ignore[operator]
    names = (name for name, module in model.named_modules() if module is embedding)
    text = next(names, "").rpartition(".")[0]
    return (text, text.rpartition(".")[0]) if "." in text else (text if text != "model" else "", "")


def _token(config: Any, kind: str) -> int | None:
    """Return the id of the tokens that stand for images of a kind."""
    parts = (f"{kind}_config", "vision_config", *(f"{inner}_config" for inner in _INNER))
    for holder in (config, *(getattr(config, part, None) for part in parts)):
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            if isinstance(getattr(holder, name, None), int):
                return getattr(holder, name)
    return None


def _rows(name: str, token: int | None, kwargs: dict[str, Any]) -> Images:
    media, ids = kwargs[name], kwargs.get("input_ids")
    places = kwargs.get(f"{_MEDIA[name]}{_PLACES}")
    if not isinstance(places, Tensor):
        if not isinstance(ids, Tensor):
            raise _untold(name, media, "the call has no input_ids")
        places = ids == token
    tokens = places.bool().sum(dim=1).tolist()
    grid = kwargs.get(_GRIDS.get(name, ""))
    if name == _CROPS:
        found = _of_crops(_rows("pixel_values", token, kwargs), kwargs.get("num_local_patches"))
    elif isinstance(grid, Tensor):
        found = _of_patches(tokens, grid, len(media))
    else:
        found = _of_images(tokens, media, any(map(_MEASURED.search, kwargs)))
    if found is None:
        raise _untold(name, media, f"the rows have {tokens} of its tokens")
    return found


def _of_images(tokens: list[int], media: Tensor, measured: bool) -> Images | None:
    """Images of one size each, perhaps padded: [images, ...] or, of a row, [rows, images, ...]."""
    parts = tuple(math.prod(media.shape[1:n]) for n in range(2, media.dim() - 2)) or (1,)
    images, total = len(media), sum(tokens)
    if images == len(tokens) and all(tokens):
        return Images(tuple(range(images)), parts)  # each row has one, and none is left
    if measured or media.dim() != 4 or not total or total % images:
        return None
    each = total // images
    if any(count % each for count in tokens):
        return None
    rows = [row for row, count in enumerate(tokens) for _ in range(count // each)]
    return Images(tuple(rows), parts)


def _of_crops(images: Images, counts: Any) -> Images | None:
    """Crops of all images in one sequence, so many of each."""
    if counts is None or len(counts) != len(images.row_of):
        return None
    pairs = zip(images.row_of, map(int, counts), strict=True)
    return Images(tuple(row for row, count in pairs for _ in range(count)), (1,))


def _of_patches(tokens: list[int], grid: Tensor, patches: int) -> Images | None:
    """Patches of all images in one sequence, so many of them to a token."""
    sizes, total = grid.prod(dim=-1).tolist(), sum(tokens)
    if sum(sizes) != patches or not total or patches % total:
        return None
    each, ends, end = patches // total, {0}, 0
    for size in sizes:
        end += size
        ends.add(end)
    begun = 0
    for count in tokens:  # every row ends with an image of its own
        begun += count * each
        if begun not in ends:
            return None
    rows = [row for row, count in enumerate(tokens) for _ in range(count)]
    return Images(tuple(rows), (1, each))


def _untold(name: str, media: Tensor, why: str) -> ValueError:
    return ValueError(
        f"{name} of shape {tuple(media.shape)} holds images (or clips) of several rows, and it "
        f"cannot be told which belongs to which row of routing_embeds: {why}. Give every row "
        "one image, run one row at a time, or leave the layers that see images out by "
        "exclude_modules"
    )
