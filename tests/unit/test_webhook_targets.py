"""Where a webhook may go, and the connection by which it goes there."""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import ip_address
from typing import Any

import pytest
from standardwebhooks import Webhook

from receiver import receiving
from symposia_shared.errors import BadInput, Damaged
from symposia_shared.notices.targets import may_call, read_networks, read_target
from symposia_shared.notices.wishes import Wish, seal, secret_of, signed_headers, unseal
from symposia_worker.notices import posting
from symposia_worker.notices.posting import post
from symposia_worker.notices.teller import wait_s

LOOPBACK = read_networks("127.0.0.0/8")


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.9.9.9", "0.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.1", "198.18.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::", "fec0::1", "100::1",
])
def test_no_address_of_a_network_behind_us_is_called(address: str) -> None:
    assert not may_call(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_called_encrypted_only(address: str) -> None:
    assert may_call(ip_address(address))
    assert not may_call(ip_address(address), secure=False)


def test_a_network_that_is_named_may_be_called() -> None:
    assert may_call(ip_address("10.1.2.3"), read_networks("10.1.0.0/16"))
    assert not may_call(ip_address("10.2.2.3"), read_networks("10.1.0.0/16"))
    assert may_call(ip_address("::ffff:10.1.2.3"), read_networks("10.1.0.0/16"), secure=False)


@pytest.mark.parametrize("url", [
    "http://example.com/x", "ftp://example.com", "https://", "https://user:pw@example.com", "https://127.0.0.1/x", "https://[::1]/", "https://10.0.0.1",
    "file:///etc/passwd", "https://exa mple.com", "https://example.com\\@10.0.0.1", "https://example.com:99999", "https://[fe80::1%25eth0]/", "gopher://x",
    "https://ex\u00e4mple.com/", "https://example.com/\r\nX: y", "https://" + "a" * 3000, 7, None,
])
def test_what_is_no_public_url_is_refused_when_it_is_given(url: object) -> None:
    with pytest.raises(BadInput):
        read_target(url)


def test_odd_ways_to_write_an_address_are_looked_at_as_the_resolver_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("2130706433", "0x7f.1", "localhost"):
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            continue
        posted = post(f"https://{host}/", b"{}", {})
        assert (posted.status, posted.taken) == (None, False)
        assert "not public" in posted.said


def test_a_name_that_says_something_else_a_moment_later_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was looked at is the one that is called, and the name is asked for once."""
    asked: list[str] = []
    called: list[tuple[str, int]] = []

    def resolver(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port))]

    def connect(address: tuple[str, int], **_: Any) -> Any:
        called.append(address)
        raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr(posting.socket, "getaddrinfo", resolver)
    monkeypatch.setattr(posting.socket, "create_connection", connect)
    posted = post("https://rebinding.example/", b"{}", {})
    assert not posted.taken
    assert (asked, called) == (["rebinding.example"], [("93.184.216.34", 443)])


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443)) for a in ("93.184.216.34", "169.254.169.254")]
    monkeypatch.setattr(posting.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(posting.socket, "create_connection", lambda *_, **__: pytest.fail("it was called"))
    assert "169.254.169.254" in post("https://mixed.example/", b"{}", {}).said


def test_a_notice_is_posted_signed_so_that_the_published_library_verifies_it() -> None:
    secret = secret_of(b"k" * 16, "default")
    with receiving() as receiver:
        headers = signed_headers([secret_of(b"k" * 16, "default", 1), secret], "evt_1", int(time.time()), b'{"a": "\xc3\xa4"}')
        posted = post(receiver.url, b'{"a": "\xc3\xa4"}', headers, allowed=LOOPBACK)
        assert (posted.status, posted.taken) == (200, True)
        came, body = receiver.came[0]
        assert receiver.paths == ["/hook?a=b"]
    assert Webhook(secret).verify(body, came) == {"a": "ä"}
    assert Webhook(secret_of(b"k" * 16, "default", 1)).verify(body, came) == {"a": "ä"}
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(secret_of(b"k" * 16, "other")).verify(body, came)


def test_redirects_are_not_followed_and_a_wait_that_is_asked_for_is_told() -> None:
    with receiving() as receiver:
        receiver.statuses += [302, 503]
        receiver.headers_out |= {"Location": "http://127.0.0.1:1/inside", "Retry-After": "120"}
        first = post(receiver.url, b"{}", {}, allowed=LOOPBACK)
        assert (first.status, first.taken) == (302, False)
        assert "not followed" in first.said
        assert post(receiver.url, b"{}", {}, allowed=LOOPBACK).retry_after_s == 120.0
        assert len(receiver.came) == 2


def test_an_endpoint_that_answers_a_byte_at_a_time_is_left() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def drip() -> None:
            taken, _ = listener.accept()
            with taken:
                for _ in range(200):
                    try:
                        taken.sendall(b"H")
                    except OSError:
                        return
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        posted = post(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"{}", {}, allowed=LOOPBACK, timeout_s=0.5)
    assert posted.status is None
    assert posted.said.startswith("no answer")


def test_an_endpoint_that_is_reached_when_the_time_is_over_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    reach = socket.create_connection

    def slowly(address: tuple[str, int], **_: Any) -> socket.socket:
        time.sleep(0.4)
        return reach(address, timeout=5)

    monkeypatch.setattr(posting.socket, "create_connection", slowly)
    with receiving() as receiver:
        posted = post(receiver.url, b"{}", {}, allowed=LOOPBACK, timeout_s=0.1)
        assert receiver.came == []
    assert (posted.status, posted.forbidden, posted.said) == (None, False, "no answer: TimeoutError: the time is over")


def test_tries_are_further_and_further_apart_and_spread() -> None:
    assert [wait_s(n, jitter=0.5) for n in (1, 2, 3)] == [5.0, 20.0, 80.0]
    assert wait_s(30, jitter=0.5) == 8 * 3600
    assert (wait_s(1, jitter=0.0), wait_s(1, jitter=1.0)) == (3.75, 6.25)


def test_a_wish_that_was_not_sealed_with_our_key_or_for_another_job_is_not_acted_upon() -> None:
    sealed = seal(b"k" * 16, "job-1", Wish(webhooks=("https://example.com",)))
    assert unseal(b"k" * 16, "job-1", sealed, Wish).webhooks == ("https://example.com",)
    for key, about, text in ((b"x" * 16, "job-1", sealed), (b"k" * 16, "job-2", sealed), (b"k" * 16, "job-1", sealed.replace("example", "examples")),
                             (b"k" * 16, "job-1", "{}"), (b"k" * 16, "job-1", "x")):
        with pytest.raises(Damaged):
            unseal(key, about, text, Wish)
