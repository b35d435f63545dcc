"""The quantization profiles: which format each part of the model is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guard.bundle.manifest import Quantization
from guard.errors import UnsupportedError

#: ``float32``: plain. ``int8_rows``: W8A8, one scale per output channel and per token. ``int8_blocks`` / ``int4_blocks``:
#: MatMulNBits, one scale per block of a row, activations quantized per block.
Format = Literal["float32", "int8_rows", "int8_blocks", "int4_blocks"]


@dataclass(frozen=True)
class Profile:
    """One named choice of formats. ``down_rotation`` is the block size of the online rotation before down_proj, 0 = none."""

    name: str
    linears: Format
    down_proj: Format
    embedding: Format
    head: Format
    rotate: bool
    down_rotation: int
    largest_block: int

    def quantization(self, head_pruned: bool, rotation: str) -> Quantization:
        """The manifest's description of this profile."""
        return Quantization(
            name=self.name,
            linears=self.linears,
            down_proj=self.down_proj,
            embedding=self.embedding,
            head="float32" if head_pruned else self.head,
            rotation=rotation if self.rotate else "none",
        )


PROFILES = {
    "none": Profile(
        "none", "float32", "float32", "float32", "float32", rotate=False, down_rotation=0, largest_block=32
    ),
    "int8": Profile(
        "int8", "int8_rows", "int8_rows", "int8_blocks", "int8_rows", rotate=True, down_rotation=64, largest_block=32
    ),
    "int4": Profile(
        "int4",
        "int4_blocks",
        "int8_blocks",
        "int8_blocks",
        "int8_blocks",
        rotate=False,
        down_rotation=0,
        largest_block=32,
    ),
}


def profile(name: str) -> Profile:
    """The profile called ``name``; raises UnsupportedError listing the names there are."""
    if name not in PROFILES:
        raise UnsupportedError(f"quantization {name!r}: expected one of {', '.join(PROFILES)}")
    return PROFILES[name]
