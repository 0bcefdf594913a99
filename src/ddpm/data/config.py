"""What a data set is and how its images are brought to one size: the `data` section of a configuration."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from ddpm.common.errors import UserError
from ddpm.data.images import SMALLEST_SIDE, Preprocessing

Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=4096)]
Level = Annotated[int, Field(ge=0, le=255)]


class DataConfig(BaseModel, extra="forbid"):
    """The `data` section.

    source: a name, `hf:user/set`, or a path; `:test` at its end names a split.
    image_size: the side of a square, or [height, width].
    channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
    random_flip: mirror each image left to right with probability 1/2, drawn anew each time.
    labels: whether the set's classes are used.
    fit: `crop` fills the frame and cuts what stands over, `pad` shows all of the image on the background.
    background: grey level or [r, g, b] behind transparent pixels and padding, 0..255.
    streaming: read the source in its own order through a shuffle buffer, for sets too large to index.
    shuffle_buffer: how many images the buffer holds.
    """

    source: str = "digits"
    image_size: Side | tuple[Side, Side] = 28
    channels: Annotated[int, Field(ge=1, le=4)] = 3
    random_flip: bool = False
    labels: bool = False
    fit: Literal["crop", "pad"] = "crop"
    background: Level | tuple[Level, Level, Level] = 255
    streaming: bool = False
    shuffle_buffer: Annotated[int, Field(ge=1)] = 4096

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
    """A DataConfig from plain arguments; what is wrong with them is a UserError of one line."""
    try:
        return DataConfig(source=source, **options)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def data_section(provenance: dict[str, Any]) -> dict[str, Any]:
    """The `data` section of the configuration a model was trained with; empty where its folder does not say."""
    config = provenance.get("config")
    section = config.get("data") if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def preprocessing_of(section: dict[str, Any]) -> Preprocessing:
    """Read the preprocessing from a `data` section, which may lack fields or hold unknown ones."""
    known = {field: section[field] for field in Preprocessing._fields if field in section}
    config = checked_config("digits", **known)
    return Preprocessing(config.fit, config.background)
