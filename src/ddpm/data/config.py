"""The `data` section of a configuration. Free of PyTorch, so that help texts are quick."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError, field_validator

from ddpm.common.errors import UserError

SMALLEST_SIDE = 8  # pixels; a U-Net learns nothing from a smaller image

Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=4096)]
Level = Annotated[int, Field(ge=0, le=255)]


class Preprocessing(NamedTuple):
    """How images of a data set come to one size and lose their transparency; see the `data` section."""

    fit: str = "crop"
    background: int | tuple[int, int, int] = 255


class DataConfig(BaseModel, extra="forbid"):
    """The `data` section: which images, and how they are brought to one size."""

    source: str = Field("digits", description="a name, hf:user/set or a path; `:test` at the end selects a split")
    image_size: Side | tuple[Side, Side] = Field(28, description="side of a square, or [height, width], in pixels")
    channels: Annotated[int, Field(ge=1, le=4)] = Field(
        3, description="1 is grey, 2 grey with alpha, 3 colour, 4 colour with alpha"
    )
    random_flip: bool = Field(False, description="mirror each image left to right with probability 1/2")
    labels: bool = Field(False, description="train with the classes of the data set")
    fit: Literal["crop", "pad"] = Field("crop", description="crop to the frame, or show all of the image and pad")
    background: Level | tuple[Level, Level, Level] = Field(
        255, description="grey level or [r, g, b] behind transparent pixels and padding"
    )
    streaming: bool = Field(False, description="read in the source's own order, for sets too large to index")
    shuffle_buffer: Annotated[int, Field(ge=1)] = Field(4096, description="images in the shuffle buffer of a stream")

    @field_validator("source")
    @classmethod
    def _not_empty(cls, source: str) -> str:
        if not source.strip():
            raise ValueError("a data source is a name, hf:user/set, or a path")
        return source

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)


def checked_config(source: str, **options) -> DataConfig:
    """Build a DataConfig from plain arguments; raise UserError in one line if one is wrong."""
    try:
        return DataConfig(source=source, **options)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{'.'.join(map(str, problem['loc']))}: {message}") from error


def data_section(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the `data` section that a model was trained with; empty if its folder does not tell."""
    config = provenance.get("config")
    section = config.get("data") if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def preprocessing_of(section: dict[str, Any]) -> Preprocessing:
    """Read the preprocessing from a `data` section, which may lack fields or hold unknown ones."""
    known = {field: section[field] for field in Preprocessing._fields if field in section}
    config = checked_config("digits", **known)
    return Preprocessing(config.fit, config.background)
