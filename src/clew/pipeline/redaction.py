"""The one redactor: no secret leaves the process, in attributes, log fields, messages or names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final

from clew.pipeline.coercion import limited

REDACTED: Final = "[redacted]"

_KEY_WORDS: Final = (
    "authorization",
    "proxy[_-]authorization",
    "x?[_-]?api[_-]?key",
    "secret",
    "secret[_-]?key",
    "client[_-]?secret",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "token",
    "auth[_-]?token",
    "access[_-]?token",
    "refresh[_-]?token",
    "id[_-]?token",
    "csrf[_-]?token",
    "cookie",
    "set[_-]cookie",
    "private[_-]?key",
    "access[_-]?key",
    "credentials?",
    "session[_-]?id",
)
# Names of the standards that hold one of the words above and no secret
_HARMLESS_KEYS: Final = re.compile(r"^(gen_ai\.(usage\.|token\.type$)|clew\.)")

# Each with the words of which one stands, in small letters, in every ASCII text that it matches
_VALUE_PATTERNS: Final = (
    # Bearer and Basic credentials, wherever they stand
    (("bearer",), r"\b(bearer)\s+[A-Za-z0-9._~+/=-]{6,}", r"\1 " + REDACTED),
    # "basic" is a word of English, too: what follows must look like base64
    (("basic",), r"\b(basic)\s+(?-i:(?=[a-z+/]*[A-Z0-9=])[A-Za-z0-9+/]{6,}={0,2})", r"\1 " + REDACTED),
    # JSON web tokens
    (("eyj",), r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?", REDACTED),
    # user:password@ in an address
    (("@",), r"(?<=://)([^\s/@:]*):([^\s/@]+)@", r"\1:" + REDACTED + "@"),
    # password=..., "token": "...", api_key: ...
    (
        ("passw", "pwd", "secret", "key", "token"),
        (
            r"(?<![a-z0-9])([\w-]{0,40}(?:password|passwd|pwd|secret|secret[_-]?key|api[_-]?key|access[_-]?key|private[_-]?key|token))"
            r"(\\?[\"']?\s*[=:]\s*\\?[\"']?)(?!\[redacted\])[^\s\"'\\&,;}\]]+"
        ),
        r"\1\2" + REDACTED,
    ),
    # Keys with the prefix of their issuer
    (("sk", "pk", "rk"), r"\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{16,}", REDACTED),
    (("akia", "asia"), r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", REDACTED),
    (("gh",), r"\bgh[pousr]_[A-Za-z0-9]{20,}", REDACTED),
    (("xox",), r"\bxox[abprs]-[A-Za-z0-9-]{10,}", REDACTED),
    (("key",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", REDACTED),
)
# One cheap look before the patterns: a text without any of these has nothing to redact. Each word is found by one of its
# rarer letters, in a text in small letters: a tenth of the time of a search for it as it is. "secret" and "asia", all of
# common letters, are looked for apart
_find_hint: Final = re.compile(
    r"b(?:earer|asic)|j(?<=eyj)|:(?=//)|w(?:(?<=passw)|(?<=pw)d)"
    r"|k(?:ey|(?<=tok)en|(?<=[spr]k)[-_]|(?<=ak)ia)|_(?<=gh[pousr]_)|xox"
).search
# In other scripts are letters whose small form is one of these, such as the Kelvin sign
_HINT_ANY_SCRIPT: Final = re.compile(
    r"bearer|basic|eyJ|://|passw|pwd|secret|key|token|sk[-_]|pk[-_]|rk[-_]|AKIA|ASIA|gh[pousr]_|xox", re.IGNORECASE
)
_MAX_REMEMBERED_KEYS: Final = 4_096


class Redactor:
    """Replaces secrets, found by the name of their key or by the look of their value.

    Args:
        extra_keys: more names of keys whose values are secret; compared whole, case-insensitively, against the key
            and against the last part of a dotted key.

    Example:
        >>> redactor = Redactor()
        >>> redactor.text("GET /?api_key=abc123&page=2")
        'GET /?api_key=[redacted]&page=2'
        >>> redactor.value("db.password", "hunter2")
        '[redacted]'
        >>> redactor.value("gen_ai.usage.input_tokens", 12)
        12
    """

    def __init__(self, extra_keys: Iterable[str] = ()) -> None:
        words = (*_KEY_WORDS, *(re.escape(key) for key in extra_keys))
        self._secret_key = re.compile(rf"(?:^|[._\s-])(?:{'|'.join(words)})$", re.IGNORECASE)
        self._extra = frozenset(key.lower() for key in extra_keys)
        self._patterns = tuple(
            (words, re.compile(pattern, re.IGNORECASE | re.DOTALL), to) for words, pattern, to in _VALUE_PATTERNS
        )
        self._keys: dict[str, bool] = {}

    def is_secret(self, key: str) -> bool:
        """Tell whether the value under ``key`` is never shown."""
        known = self._keys.get(key)
        if known is None:
            harmless = _HARMLESS_KEYS.match(key) is not None and key.lower() not in self._extra
            known = not harmless and self._secret_key.search(key) is not None
            if len(self._keys) >= _MAX_REMEMBERED_KEYS:
                # Somebody puts data into keys: those that come again are back soon
                self._keys.clear()
            self._keys[key] = known
        return known

    def text(self, text: str) -> str:
        """Return ``text`` with the secrets in it replaced."""
        if text.isascii():
            small = text.lower()
            if _find_hint(small) is None and "secret" not in small and "asia" not in small:
                return text
            for words, pattern, replacement in self._patterns:
                if any(word in small for word in words):
                    text = pattern.sub(replacement, text)
        elif _HINT_ANY_SCRIPT.search(text) is not None:
            for _, pattern, replacement in self._patterns:
                text = pattern.sub(replacement, text)
        return text

    def value(self, key: str, value: Any) -> Any:
        """Return what may be shown of ``value``, which stands under ``key``. Containers are copied, never changed."""
        if self.is_secret(key) and value is not None:
            return REDACTED
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (Mapping, list, tuple, set, frozenset)):
            # One may hold itself
            return self._contained(key, limited(value))
        return value

    def _contained(self, key: str, value: Any) -> Any:
        if self.is_secret(key) and value is not None:
            return REDACTED
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self._contained(str(name), item) for name, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._contained("", item) for item in value]
        return value

    def fields(self, fields: MutableMapping[str, Any]) -> None:
        """Redact a log event in place."""
        for key, value in fields.items():
            if type(value) is not int and type(value) is not float:
                fields[key] = self.value(key, value)
