"""Which images a run was trained on: recorded in its folder, and compared when they are read again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from imc.errors import UserError
from imc.files.json import read_json
from imc.files.run_places import DATA
from imc.text import counted

DIGEST = 16  # bytes
CHUNK = 1024  # images


def fingerprint(parts: Sequence[Tensor], labels: Tensor | None) -> dict[str, Any]:
    """What tells whether images are the same, in the same order: of their pixels, whatever the files are called.

    Args:
        parts: uint8 [M, H, W, C] each, of one shape, rows [M, D] or views of them [M, V, D]; what is trained on, in its
            order.
        labels: int64 [M] of the first part, or None.

    Returns:
        ``images``: how many; ``shape``: [H, W, C], [D] or [V, D]; ``content``: a digest of all in their order;
        ``members``: one that any order gives; ``labels``: one of the labels, or None. BLAKE2b, as hexadecimal digits.
    """
    content, members, count = hashlib.blake2b(digest_size=DIGEST), 0, 0
    of_labels = None if labels is None else hashlib.blake2b(labels.contiguous().numpy().data, digest_size=DIGEST)
    for part in parts:
        for chunk in part.split(CHUNK):
            for image in chunk.contiguous().cpu().numpy():
                digest = hashlib.blake2b(image.data, digest_size=DIGEST).digest()
                content.update(digest)
                members = (members + int.from_bytes(digest, "big")) % (1 << 8 * DIGEST)
        count += len(part)
    return {
        "images": count,
        "shape": list(parts[0].shape[1:]),
        "content": content.hexdigest(),
        "members": f"{members:0{2 * DIGEST}x}",
        "labels": None if of_labels is None else of_labels.hexdigest(),
    }


def difference(recorded: dict[str, Any], found: dict[str, Any]) -> str:
    """How the images found differ from those recorded, in words; empty where they do not. Labels do not count."""
    if recorded["shape"] != found["shape"]:
        return f"they had {_sizes(recorded['shape'])}, and have {_sizes(found['shape'])}"
    if recorded["images"] != found["images"]:
        return f"they were {recorded['images']:,}, and are {found['images']:,}"
    if recorded["content"] == found["content"]:
        return ""
    if recorded["members"] == found["members"]:
        return "they are the same in another order"
    return f"they are {found['images']:,} as before, but not all the same"


def _sizes(shape: Sequence[int]) -> str:
    if len(shape) == 1:
        return counted(shape[0], "feature{s}")
    if len(shape) == 2:
        return f"{counted(shape[0], 'view{s}')} of {counted(shape[1], 'feature{s}')}"
    height, width, channels = shape
    return f"{width}x{height} pixels of {counted(channels, 'channel{s}')}"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The fingerprint of what the run in this folder was trained on; None where an earlier version left none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / DATA
    if not path.exists():
        return None
    record = read_json(path)
    texts = all(isinstance(record.get(name), str) for name in ("content", "members"))
    shape = record.get("shape")
    sizes = isinstance(shape, list) and len(shape) in (1, 2, 3) and all(type(size) is int for size in shape)
    if not (texts and sizes and type(record.get("images")) is int and "labels" in record):
        raise UserError(f"{path} is damaged: it does not describe the images of a run; remove it to go on without")
    return record
