"""What may be told of an SQL statement: its text without values, what it does, and to which table."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

MAX_TEXT_LENGTH: Final = 2_000
"""Characters that are kept of a statement's text."""

_MAX_READ_LENGTH: Final = 20_000
_MAX_NAME_LENGTH: Final = 128
_KNOWN: Final = re.compile(
    r"SELECT|INSERT|UPDATE|DELETE|MERGE|REPLACE|WITH|VALUES|CREATE|ALTER|DROP|TRUNCATE|COMMENT|RENAME|"
    r"PRAGMA|BEGIN|START|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|SET|RESET|SHOW|DESCRIBE|EXPLAIN|ANALYZE|VACUUM|"
    r"REINDEX|CLUSTER|CALL|EXEC|EXECUTE|PREPARE|DEALLOCATE|DECLARE|FETCH|COPY|LOCK|UNLOCK|GRANT|REVOKE|USE|"
    r"ATTACH|DETACH|REFRESH|NOTIFY|LISTEN|UNLISTEN|DO"
)

_COMMENT: Final = r"/\*.*?(?:\*/|\Z)|--[^\n]*"
# A literal that the cut of a long statement left open ends with the text
_STRING: Final = r"'(?:[^']|'')*(?:'|\Z)"
_ESCAPED_STRING: Final = r"'(?:[^'\\]|\\.|'')*(?:'|\Z)"
_DOLLAR_STRING: Final = r"\$(?P<tag>[A-Za-z_]*)\$.*?(?:\$(?P=tag)\$|\Z)"
# Not within a name or behind a placeholder's mark, as in t1, :name_1, $1 or %(id_1)s
_NUMBER: Final = r"(?<![\w$:.%@])[-+]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)(?![\w$])"
_NAME: Final = r'(?:"(?:[^"]|"")+"|`[^`]+`|\[[^\]]+\]|[^\W\d][\w$]*)'
_TABLE: Final = re.compile(
    rf"\b(?:FROM|INTO|UPDATE(?!\s+SET\b)|TABLE(?:\s+IF\s+(?:NOT\s+)?EXISTS)?|TRUNCATE|ON)\s+(?:ONLY\s+)?"
    rf"({_NAME}(?:\s*\.\s*{_NAME})*)",
    re.IGNORECASE,
)
_MAIN_VERB: Final = re.compile(r"[()]|\b(?:SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES)\b", re.IGNORECASE)
_PLACEHOLDERS: Final = re.compile(r"\(\s*(?:\?|%s|%\(\w+\)s|:\w+|\$\d+)(?:\s*,\s*(?:\?|%s|%\(\w+\)s|:\w+|\$\d+))+\s*\)")


@dataclass(frozen=True, kw_only=True)
class StatementSummary:
    """What may be told of a statement.

    Attributes:
        text: the statement with ``?`` for each literal, without comments, capped.
        operation: what it does, such as ``SELECT``, or ``OTHER``.
        table: the first table that it names, or ``""``.
    """

    text: str
    operation: str
    table: str


def summarise(statement: str, dialect: str = "") -> StatementSummary:
    """Return what may be told of a statement.

    Args:
        statement: the text, as it goes to the driver.
        dialect: SQLAlchemy's name of the dialect: it decides what a backslash and a double quote mean.

    Example:
        >>> summarise("SELECT name FROM users WHERE email = 'bob@x.org' AND age > 17")
        StatementSummary(text='SELECT name FROM users WHERE email = ? AND age > ?', operation='SELECT', table='users')
    """
    if len(statement) > _MAX_READ_LENGTH:
        # Such as an insert of many rows: built each time, and not worth remembering
        return _summarise(statement[:_MAX_READ_LENGTH], dialect)
    return _remembered(statement, dialect)


def _summarise(statement: str, dialect: str) -> StatementSummary:
    text = _without_values(statement, dialect)
    operation, start = _operation(text)
    table = _table(text, start) if operation != "OTHER" else ""
    if len(text) > MAX_TEXT_LENGTH:
        text = text[: MAX_TEXT_LENGTH - 1] + "…"
    return StatementSummary(text=text, operation=operation, table=table)


def _table(text: str, start: int) -> str:
    """Return the first table outside of brackets, or else within: FROM also stands in EXTRACT(YEAR FROM ...)."""
    found = list(_TABLE.finditer(text, start))
    if not found:
        return ""
    outside = (
        match for match in found if text.count("(", start, match.start()) == text.count(")", start, match.start())
    )
    name = next(outside, found[0]).group(1)
    return re.sub(r'["`\[\]]|\s+(?=\.)|(?<=\.)\s+', "", name)[:_MAX_NAME_LENGTH]


_remembered = functools.lru_cache(maxsize=512)(_summarise)


@functools.cache
def _values(dialect: str) -> re.Pattern[str]:
    mysql = dialect in ("mysql", "mariadb")
    strings = [_ESCAPED_STRING if mysql else rf"(?<![\w$])[eE]{_ESCAPED_STRING}", _STRING]
    if mysql:
        strings.append(_ESCAPED_STRING.replace("'", '"'))
        kept = r"`[^`]*`"
    elif dialect == "sqlite":
        # SQLite takes "text" for a string where no column is named so: only what can be a plain name is kept
        kept = r'"\w+"|`\w+`|\[\w+\]'
        strings.append(r'"(?:[^"]|"")*(?:"|\Z)')
    else:
        kept = r'"(?:[^"]|"")*"'
    strings.append(_DOLLAR_STRING)
    return re.compile(rf"(?P<comment>{_COMMENT})|(?P<kept>{kept})|{'|'.join(strings)}|{_NUMBER}", re.DOTALL)


def _without_values(statement: str, dialect: str) -> str:
    def replace(match: re.Match[str]) -> str:
        if match["comment"] is not None:
            return " "
        return match["kept"] if match["kept"] is not None else "?"

    text = _values(dialect).sub(replace, statement)
    # One text for a list of any length
    return _PLACEHOLDERS.sub("(?)", " ".join(text.split()))


def _operation(text: str) -> tuple[str, int]:
    """Return what a statement does, and where it starts doing it."""
    first = re.match(r"[\s(]*([A-Za-z]+)", text)
    word = first.group(1).upper() if first is not None else ""
    if _KNOWN.fullmatch(word) is None:
        return "OTHER", 0
    if word == "WITH":
        depth = 0
        for match in _MAIN_VERB.finditer(text):
            if match.group() == "(":
                depth += 1
            elif match.group() == ")":
                depth -= 1
            elif depth == 0:
                return match.group().upper(), match.start()
    return word, 0
