"""What a text is about, as every service of the demo says it."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

_MAX_NAME_LENGTH: Final = 200


class Topic(BaseModel):
    """A topic of a text, with a weight above 0 and at most 1."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1, max_length=_MAX_NAME_LENGTH)
    weight: float = Field(gt=0, le=1)
