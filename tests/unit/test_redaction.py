from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clew
from clew.history.payload import payload
from clew.pipeline.redaction import REDACTED, Redactor

SECRET = "hunter2hunter2"
SECRET_KEYS = [
    "password",
    "db.password",
    "user_password",
    "Authorization",
    "http.request.header.authorization",
    "x-api-key",
    "apiKey",
    "api_key",
    "client_secret",
    "access_token",
    "refresh-token",
    "token",
    "cookie",
    "http.response.header.set-cookie",
    "session_id",
    "private_key",
    "aws.secret_key",
]
HARMLESS_KEYS = [
    "gen_ai.usage.input_tokens",
    "gen_ai.token.type",
    "clew.correlation.id",
    "tokens",
    "tokenizer",
    "keyboard",
    "author",
    "passwordless",
    "secretary",
    "http.route",
]
SECRET_TEXTS = [
    f"Authorization: Bearer {SECRET}",
    f"authorization: basic {SECRET}==",
    f"https://user:{SECRET}@example.com/path",
    f"redis://:{SECRET}@localhost:6379/0",
    f"GET /login?user=x&password={SECRET}&next=/",
    f"GET /?api_key={SECRET}",
    f'{{"token": "{SECRET}", "page": 2}}',
    f"{{'client_secret': '{SECRET}'}}",
    f"PGPASSWORD={SECRET} psql",
    f"token: {SECRET}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2hunter2sig",
    "sk-proj-hunter2hunter2hunter2",
    "AKIAHUNTER2HUNTER2XX",
    "ghp_hunter2hunter2hunter2hunter2",
    "xoxb-hunter2-hunter2-hunter2",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2hunter2\n-----END RSA PRIVATE KEY-----",
]
PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----x-----END PRIVATE KEY-----"
HARMLESS_TEXTS = [
    "a plain sentence about tokens and keys",
    "GET /topics?page=2&sort=token",
    "https://example.com/path?x=1",
    "the secret of good tea is time",
    "basic training",
    "gen_ai.usage.input_tokens=12",
    "sk-learn",
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_secret_keys(key):
    assert Redactor().value(key, SECRET) == REDACTED


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_harmless_keys(key):
    assert Redactor().value(key, "value") == "value"


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_secret_texts(text):
    shown = Redactor().text(text)
    assert "hunter2" not in shown.lower()
    assert REDACTED in shown


@pytest.mark.parametrize("text", HARMLESS_TEXTS)
def test_harmless_texts(text):
    assert Redactor().text(text) == text


@given(st.text(), st.sampled_from(SECRET_TEXTS), st.text())
def test_a_secret_is_found_wherever_it_stands(before, secret, after):
    shown = Redactor().text(f"{before} {secret} {after}")
    assert "hunter2" not in shown.lower()


@given(st.text())
def test_redacting_twice_changes_nothing_more(text):
    redactor = Redactor()
    once = redactor.text(text)
    assert redactor.text(once) == once


@given(
    st.lists(
        st.sampled_from(["bearer", "basic", "eyJ", "eyJhbGciOi", ".", "://", "@", ":", "=", "'", "/", "-", "_", " "])
        | st.sampled_from(["pass", "password", "PWD", "secret", "api_key", "token", "Token", "KEY"])
        | st.sampled_from(["sk-", "sk_live_", "pk_", "rk-", "AKIA", "asia", "ghp_", "gho_", "xoxb-"])
        | st.sampled_from(["hunter2hunter2hunter2hunter2", "HUNTER2HUNTER2X", PRIVATE_KEY]),
        max_size=8,
    ).map("".join)
)
def test_the_quick_look_at_an_ascii_text_misses_nothing(text):
    # A text with a letter of another script goes through every pattern
    assert Redactor().text(text + ";é") == Redactor().text(text) + ";é"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_can_be_redacted_and_stays_as_it_was(value):
    before = json.dumps(value)
    Redactor().value("key", value)
    assert json.dumps(value) == before


def test_keys_of_the_app_are_added():
    redactor = Redactor(["iban", "gen_ai.usage.input_tokens"])
    assert redactor.value("customer.iban", "DE00") == REDACTED
    assert redactor.value("gen_ai.usage.input_tokens", 3) == REDACTED
    assert redactor.value("ibanez", "guitar") == "guitar"


def test_no_planted_secret_leaves_the_process_in_any_place(captured_telemetry, capfd):
    log = clew.get_logger()
    with (
        pytest.raises(RuntimeError),
        clew.span(f"GET /?token={SECRET}", password=SECRET, headers={"Authorization": f"Bearer {SECRET}"}) as span,
    ):
        span.event(f"api_key={SECRET}", cookie=SECRET)
        span.set("list", [f"token={SECRET}"])
        log.info(f"login with password={SECRET}", token=SECRET, nested={"deep": [{"secret": SECRET}]})
        logging.getLogger("a.library").warning("Bearer %s", SECRET, extra={"api_key": SECRET})
        clew.counter("t.secrets").add(1, url=f"https://u:{SECRET}@host/")
        try:
            raise ValueError(f"password={SECRET}")
        except ValueError:
            log.exception("failed")
        raise RuntimeError(f"Authorization: Bearer {SECRET}")
    clew.flush()
    transport = captured_telemetry._transport
    for signal in ("traces", "metrics", "logs"):
        bodies = b"".join(transport.bodies(signal))
        assert bodies
        assert SECRET.encode() not in bodies, signal
    printed = capfd.readouterr()
    assert "login with" in printed.err
    assert SECRET not in printed.err + printed.out


def test_a_secret_under_a_key_within_a_container_is_redacted(captured_telemetry):
    headers = {"cookie": "planted-1", "accept": "text/html"}
    with clew.span("call", headers=headers) as span:
        span.set("nested", [{"authorization": "planted-2"}])
        clew.get_logger().info("called", headers=headers, more=[{"x-api-key": "planted-3"}])
    shown = f"{captured_telemetry.spans} {captured_telemetry.logs}"
    assert "planted" not in shown
    assert "text/html" in shown


@pytest.mark.parametrize("kept", [f"password={SECRET}".encode(), {"note": f"password={SECRET}".encode()}])
def test_no_secret_is_kept_of_bytes_that_a_record_has(kept):
    shown = payload(kept, max_bytes=1_000, redact=Redactor().value)
    assert SECRET not in json.dumps(shown)
    assert REDACTED in json.dumps(shown)
