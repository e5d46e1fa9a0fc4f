from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from symposia_shared.access import ROLES, acl_line
from symposia_shared.broker import celery_app
from symposia_shared.errors import BadInput, StackUnavailable
from symposia_shared.settings import Settings, load
from symposia_shared.signing import HEADER, SIGNED, authentic, signature

KEY = b"k" * 24
HEADERS: dict[str, Any] = {"task": "symposia.turn", "id": "1", "root_id": "1", "eta": None, "stamps": {}, "argsrepr": "(...)"}
BODY = [["job", 0, 1], {}, {"callbacks": None, "chord": None}]

json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.text(max_size=20),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=10)


def test_what_was_signed_is_authentic_and_carries_no_key() -> None:
    given_headers = {**HEADERS, HEADER: signature(KEY, HEADERS, BODY)}
    assert authentic(KEY, given_headers, BODY)
    assert len(given_headers[HEADER]) == 22


def test_tuples_and_lists_sign_alike_since_json_knows_one_of_them() -> None:
    assert signature(KEY, HEADERS, (("job", 0, 1), {}, {"callbacks": None, "chord": None})) == signature(KEY, HEADERS, BODY)


@pytest.mark.parametrize("name", SIGNED)
def test_each_header_that_decides_something_is_signed(name: str) -> None:
    signed = {**HEADERS, HEADER: signature(KEY, HEADERS, BODY)}
    assert not authentic(KEY, {**signed, name: "other"}, BODY)


@given(json_values, json_values)
@settings(max_examples=200)
def test_another_body_has_another_signature(one: object, other: object) -> None:
    def same(a: object, b: object) -> bool:
        return repr(a) == repr(b) or (isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)) or (
            isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and all(map(same, a, b)))

    headers = {**HEADERS, HEADER: signature(KEY, HEADERS, one)}
    assert authentic(KEY, headers, one)
    assert authentic(KEY, headers, other) == same(one, other)


@given(json_values, json_values)
@settings(max_examples=200)
def test_garbage_is_refused_without_a_crash(sig: object, body: object) -> None:
    assert not authentic(KEY, {**HEADERS, HEADER: sig}, body)


def test_what_an_app_sends_is_signed_its_embedded_tasks_included() -> None:
    app = celery_app(Settings(broker_url=SecretStr("redis://127.0.0.1:1/0"), message_key=SecretStr(KEY.decode())), role="worker")
    sent: list[tuple[dict[str, Any], Any]] = []

    class Producer:
        connection = None

        def publish(self, body: Any, *, headers: dict[str, Any], **_: object) -> None:
            sent.append((headers, body))

    def turn(n: int) -> Any:
        return app.signature("symposia.turn", args=("job", 0, n), immutable=True, options={"queue": "turns.test"})

    message = app.amqp.as_task_v2("id", "symposia.turn", ("job", 0, 1), {}, chain=[chain(turn(2), turn(3))], chord=chord([turn(4)], turn(5)))
    app.amqp.send_task_message(Producer(), "symposia.turn", message, queue="turns.test")
    ((headers, body),) = sent
    assert authentic(KEY, headers, body)
    assert not authentic(b"other" * 5, headers, body)


def test_a_deployment_without_a_key_neither_sends_nor_serves() -> None:
    keyless = Settings(broker_url=SecretStr("redis://127.0.0.1:1/0"))
    for role in ("producer", "worker"):
        with pytest.raises(StackUnavailable, match="SYMPOSIA_MESSAGE_KEY"):
            celery_app(keyless, role=role)  # type: ignore[arg-type]
    celery_app(keyless, role="monitor")


def test_a_short_key_is_refused_with_the_command_that_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMPOSIA_MESSAGE_KEY", "short")
    with pytest.raises(BadInput, match="openssl rand"):
        load()


@pytest.mark.parametrize("role", ROLES)
def test_an_acl_line_holds_no_password_and_grants_nothing_outside_the_prefix(role: Any) -> None:
    line = acl_line(role, "mine:", "a password")
    assert "a password" not in line
    words = line.split()
    assert all(w[1:].startswith("mine:") for w in words if w[0] in "~&")
    assert all(w.startswith("%R~mine:") for w in words if w[0] == "%")
    assert not {"allkeys", "allchannels", "+@all", "+@admin", "+@dangerous", "nopass", "+eval", "+keys"} & set(words)
