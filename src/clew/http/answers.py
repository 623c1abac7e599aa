"""What every answer has in common, for the HTTP API and for the command line."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError


class Answer(BaseModel):
    """What is answered: made of what has its fields, and never changed."""

    model_config = ConfigDict(from_attributes=True, extra="ignore", frozen=True)


def to_json(answer: BaseModel) -> bytes:
    """Return an answer as JSON, whatever an app has kept in a payload."""
    try:
        return answer.model_dump_json(by_alias=True).encode()
    except PydanticSerializationError:
        # Half of a pair of surrogates: JSON can escape it, UTF-8 can't have it
        return json.dumps(answer.model_dump(by_alias=True), default=_written).encode()


def _written(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
