"""Finding a text in stored text, whatever the case, in any script."""

from __future__ import annotations

from clew.console.errors import QueryError
from clew.console.values import dump_json

FOLD_CONTAINS = "fold_contains"

_LONGEST_TEXT = 1_000


def fold_contains(haystack: str | None, folded_needle: str) -> bool:
    """Return whether a text holds another, ignoring case.

    Args:
        haystack: the text to look in, or None.
        folded_needle: what to look for, case-folded.

    Example:
        >>> fold_contains("Grüße aus ZÜRICH", "zürich")
        True
    """
    return haystack is not None and folded_needle in haystack.casefold()


def text_condition(text: str, plain_columns: tuple[str, ...], json_columns: tuple[str, ...]) -> tuple[str, list[str]]:
    r"""Return an SQL condition, with its arguments, that is true when any of the columns holds the text.

    SQLite's LIKE is fast but folds ASCII only, so other text goes through `fold_contains`.

    Args:
        text: what to look for; its case is ignored.
        plain_columns: columns that hold text as it is.
        json_columns: columns that hold JSON, where the text is looked for as JSON writes it.

    Raises:
        QueryError: the text is empty or too long.

    Example:
        >>> text_condition("50%", ("name",), ())
        ("(name LIKE ? ESCAPE '\\')", ['%50\\%%'])
    """
    if not text or len(text) > _LONGEST_TEXT:
        raise QueryError(f"text has {len(text)} characters: give 1 to {_LONGEST_TEXT}")
    needles = [(column, text) for column in plain_columns]
    needles += [(column, dump_json(text)[1:-1]) for column in json_columns]
    if text.isascii():
        condition = " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column, _ in needles)
        return f"({condition})", [f"%{_escaped(needle)}%" for _, needle in needles]
    condition = " OR ".join(f"{FOLD_CONTAINS}({column}, ?)" for column, _ in needles)
    return f"({condition})", [needle.casefold() for _, needle in needles]


def _escaped(needle: str) -> str:
    return needle.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
