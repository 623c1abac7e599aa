"""What a check of ``clew doctor`` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        verdict: ``ok``; ``note`` for what may be meant so; ``wrong`` for what loses telemetry.
        text: what was seen.
        mend: what to do about it.
    """

    check: str
    verdict: Verdict = "ok"
    text: str
    mend: str = ""
