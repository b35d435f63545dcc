"""The quantization profiles: which format each part of the model is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guard.bundle.manifest import Quantization
from guard.errors import UnsupportedError

#: ``float32``: plain. ``int8_rows``: W8A8, one scale per output channel and per token. ``int16_rows``: the same with a
#: second 8-bit weight for what the first one left. ``int8_groups``: the same with a few groups of input channels, each
#: with scales of its own. ``int8_blocks`` / ``int4_blocks``: MatMulNBits, one scale per block of a row, activations
#: quantized per block.
Format = Literal["float32", "int8_rows", "int16_rows", "int8_groups", "int8_blocks", "int4_blocks"]
#: The embedding is only looked up, so it may stay in 16 bits: unused rows are never read from disk.
EmbeddingFormat = Literal["float32", "float16", "int8_blocks"]


@dataclass(frozen=True)
class Profile:
    """One named choice of formats; ``linears`` are those without a field of their own.

    ``down_rotation`` is the block size of the online rotation before down_proj, 0 = none.
    """

    name: str
    linears: Format
    v_proj: Format
    down_proj: Format
    embedding: EmbeddingFormat
    head: Format
    rotate: bool
    down_rotation: int
    largest_block: int

    def form(self, linear: str) -> Format:
        """The format of ``q_proj``, ..., ``down_proj``."""
        match linear:
            case "v_proj":
                return self.v_proj
            case "down_proj":
                return self.down_proj
            case _:
                return self.linears

    @property
    def calibrated(self) -> bool:
        """Whether it has linears that calibration makes more accurate."""
        return not self.rotate and "int4_blocks" in (self.linears, self.v_proj, self.down_proj)

    def quantization(self, head_pruned: bool, rotation: str) -> Quantization:
        """The manifest's description of this profile."""
        linears = self.linears if self.v_proj == self.linears else f"{self.linears}, v_proj {self.v_proj}"
        return Quantization(
            name=self.name,
            linears=linears,
            down_proj=self.down_proj,
            embedding=self.embedding,
            head="float32" if head_pruned else self.head,
            rotation=rotation if self.rotate else "none",
        )


PROFILES = {
    "none": Profile(
        name="none",
        linears="float32",
        v_proj="float32",
        down_proj="float32",
        embedding="float32",
        head="float32",
        rotate=False,
        down_rotation=0,
        largest_block=32,
    ),
    "int8": Profile(
        name="int8",
        linears="int8_rows",
        v_proj="int16_rows",  # all tokens attend to the first, whose value must stay near zero: errors there add up
        down_proj="int8_groups",
        embedding="int8_blocks",
        head="int8_rows",
        rotate=True,
        down_rotation=64,
        largest_block=32,
    ),
    "int4": Profile(
        name="int4",
        linears="int4_blocks",
        v_proj="int8_blocks",
        down_proj="int8_blocks",
        embedding="int8_blocks",
        head="int8_blocks",
        rotate=False,
        down_rotation=0,
        largest_block=32,
    ),
    "int4-small": Profile(
        name="int4-small",
        linears="int4_blocks",
        v_proj="int8_blocks",
        down_proj="int4_blocks",
        embedding="int8_blocks",
        head="int8_blocks",
        rotate=False,
        down_rotation=0,
        largest_block=128,
    ),
}

#: What a bundle is for, instead of how its numbers are stored.
PURPOSES = {"speed": "int8", "balanced": "int4", "small": "int4-small"}


def profile(name: str) -> Profile:
    """The profile called ``name``; raises UnsupportedError listing the names there are."""
    if name not in PROFILES:
        raise UnsupportedError(f"quantization {name!r}: expected one of {', '.join(PROFILES)}")
    return PROFILES[name]
