"""What may be asked about any part of the history, and what is allowed: the same for the HTTP API and for the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from clew import clock
from clew.history.ids import ID_LENGTH
from clew.history.paging import DEFAULT_LIMIT, MAX_LIMIT

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9998, 12, 31, tzinfo=UTC)
_MAX_HOURS: Final = 24 * 366 * 100


def _printable(value: str) -> str:
    # PostgreSQL takes no NUL in a text, and UTF-8 no half of a pair
    if "\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("must be a text without NUL characters and lone surrogates")
    return value


def _in_time(value: datetime) -> datetime:
    if not _EARLIEST <= value <= _LATEST:
        raise ValueError("must lie between 1970-01-01T00:00:00Z and 9998-12-31T00:00:00Z")
    return value.astimezone(UTC)


Text = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
Moment = Annotated[AwareDatetime, AfterValidator(_in_time)]
TraceId = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$"), AfterValidator(str.lower)]
Cursor = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{ID_LENGTH}}}$")]


class Question(BaseModel):
    """What is asked: fields that are not known are refused, since a misspelt filter would answer with too much."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Say what there is; what a form left empty was not given."""
        if not isinstance(given, dict):
            return given
        allowed = {field.alias or name for name, field in cls.model_fields.items()} | set(cls.model_fields)
        if unknown := sorted(str(name) for name in given if name not in allowed):
            names = ", ".join(field.alias or name for name, field in cls.model_fields.items())
            raise ValueError(f"{', '.join(name[:80] for name in unknown)} is not known here: use {names}")
        return {name: value for name, value in given.items() if value != ""}


class TimeQuestion(Question):
    """A time that is asked about."""

    hours: float | None = Field(
        default=None, gt=0, le=_MAX_HOURS, allow_inf_nan=False, description="The last so many hours."
    )
    since: Moment | None = Field(
        default=None,
        alias="from",
        description="From this time on: ISO 8601 with its zone, such as 2026-01-31T12:00:00Z (write the + of an offset as %2B).",
    )
    until: Moment | None = Field(default=None, alias="to", description="Before this time, written in the same way.")

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if self.hours is not None and (self.since is not None or self.until is not None):
            raise ValueError("hours can't be given together with from or to: use one of them")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("from must be before to")
        return self

    def begin(self) -> datetime | None:
        """Return when the time begins."""
        return self.since if self.hours is None else clock.utc_now() - timedelta(hours=self.hours)


class PageQuestion(TimeQuestion):
    """Which page of records is asked for."""

    limit: int = Field(
        default=DEFAULT_LIMIT, ge=1, description=f"How many; more than {MAX_LIMIT} are not answered at once."
    )
    after: Cursor | None = Field(default=None, description="`next` of the page before: older ones than that page's.")
    before: Cursor | None = Field(default=None, description="`previous` of a page: newer ones than that page's.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.after is not None and self.before is not None:
            raise ValueError("after and before can't be given together: use one of them")
        return self
