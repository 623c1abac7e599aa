"""Results of health checks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from clew.history.models.columns import Base, Json, Name, Recorded


class HealthCheck(Recorded, Base):
    """What a health check found."""

    __tablename__ = "health_checks"

    name: Mapped[str] = mapped_column(Name)
    status: Mapped[str] = mapped_column(String(16))
    duration_s: Mapped[float] = mapped_column(Float)
    message: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column(Json)

    __table_args__ = (Index("health_checks_by_name", "name", "id"),)
