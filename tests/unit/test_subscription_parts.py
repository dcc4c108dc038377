"""The parts of subscriptions that need no database: patterns, tokens, and where webhooks may be."""

from __future__ import annotations

import asyncio
import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.http.subscriptions.globs import Glob
from eventstore.http.subscriptions.refusals import Refused
from eventstore.http.subscriptions.signing import SigningKey
from eventstore.http.subscriptions.state import Fence
from eventstore.http.subscriptions.targets import is_public, resolved, target
from eventstore.http.subscriptions.tokens import checked, token

# --- patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a", "a", True),
        ("a", "a/b", False),
        ("*", "a", True),
        ("*", "a/b", False),
        ("a/*", "a/b", True),
        ("a/*", "a", False),
        ("**", "a/b/c", True),
        ("a/**", "a", True),
        ("a/**", "b/a", False),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("**/c", "a/c/b", False),
        ("a/**/*/d", "a/b/c/d", True),
        ("a/**/*/d", "a/d", False),
        ("a*", "ab", False),
        ("a*", "a*", True),
        ("[a]", "a", False),
        (".*", "ab", False),
    ],
)
def test_a_star_is_a_segment_and_two_are_any_number(pattern: str, path: str, matches: bool) -> None:
    assert Glob(pattern).matches(path) is matches


def slowly(pattern: list[str], path: list[str]) -> bool:
    """What the words of the specification say, one by one."""
    if not pattern:
        return not path
    first, *rest = pattern
    if first == "**":
        return any(slowly(rest, path[count:]) for count in range(len(path) + 1))
    return bool(path) and first in ("*", path[0]) and slowly(rest, path[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=7),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=7),
)
def test_patterns_mean_what_the_specification_says(pattern: list[str], path: list[str]) -> None:
    glob = Glob("/".join(pattern))
    assert glob.matches("/".join(path)) is slowly(pattern, path)
    if glob.matches("/".join(path)):
        assert "/".join([*path, ""]).startswith(f"{glob.prefix}/" if glob.prefix else "")


def test_no_pattern_takes_long() -> None:
    glob = Glob("/".join(["**", "a"] * 128))
    began = time.process_time()
    assert not glob.matches("/".join("a" * 255 + "b"))
    assert time.process_time() - began < 1  # backtracking into each would take years


# --- tokens --------------------------------------------------------------------------------------

SECRET = b"s" * 32
FENCE = Fence(7, "w_1")
DAY = 24 * 3600 * 1_000_000


def test_a_token_is_of_one_wake_of_one_subscription_for_a_day() -> None:
    text = token(SECRET, "sub", FENCE, 1000)
    assert checked(SECRET, "sub", text, 1000 + DAY - 1) == FENCE
    with pytest.raises(Refused) as late:
        checked(SECRET, "sub", text, 1000 + DAY)
    assert (late.value.status, late.value.code) == (401, "TOKEN_EXPIRED")
    for secret, subscription in ((b"t" * 32, "sub"), (SECRET, "other")):
        with pytest.raises(Refused) as other:
            checked(secret, subscription, text, 1000)
        assert (other.value.status, other.value.code) == (401, "TOKEN_INVALID")


@given(st.data())
def test_no_other_text_is_a_token(data: st.DataObject) -> None:
    text = token(SECRET, "sub", FENCE, 1000)
    at = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "add"]))
    some = data.draw(st.characters())
    changed = {
        "change": text[:at] + some + text[at + 1 :],
        "cut": text[:at],
        "add": text[:at] + some + text[at:],
    }[kind]
    if changed != text:
        with pytest.raises(Refused):
            checked(SECRET, "sub", changed, 1000)


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_is_named_by_its_thumbprint() -> None:
    # The key of RFC 8037, appendix A, whose thumbprint is there as well.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(seed)
    assert key.jwk["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert key.id == "ds_kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


# --- where webhooks may be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com:8443/a/b?c=d",
        "https://HOOKS.example.com./",
        "https://93.184.215.14/",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
        "https://xn--bcher-kva.example/",
    ],
)
def test_webhooks_may_be_on_the_internet(url: str) -> None:
    assert not target(url, local=False).is_local
    assert not target(url, local=True).is_local


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "ftp://hooks.example.com/",
        "//hooks.example.com/",
        "hooks.example.com",
        "https://",
        "https:///a",
        "https://user@hooks.example.com/",
        "https://user:password@hooks.example.com/",
        "https://hooks.example.com@10.0.0.1/",
        "https://10.0.0.1@hooks.example.com/",
        "https://hooks.example.com/#a",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com\\@10.0.0.1/",
        "https://hooks.exa mple.com/",
        "https://hooks.example.com/\r\nHost: a",
        "https://b\u00fccher.example/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://a..example/",
        "https://%31%30.0.0.1/",
        "https://hooks.example.com/" + "a" * 2048,
        # names of inner networks
        "https://intranet/",
        "https://metadata.google.internal/",
        "https://printer.local/",
        "https://db.corp/",
        "https://app.localhost/",
        # private, link-local, metadata, shared, reserved, multicast, unspecified
        "https://10.0.0.1/",
        "https://172.16.0.1/",
        "https://192.168.1.1/",
        "https://169.254.169.254/",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://192.0.2.1/",
        "https://198.18.0.1/",
        "https://224.0.0.1/",
        "https://240.0.0.1/",
        "https://255.255.255.255/",
        # the same addresses in other clothes
        "https://167772161/",
        "https://0xa000001/",
        "https://0x0a.0.0.1/",
        "https://012.0.0.1/",
        "https://10.1/",
        "https://10.0.0.1./",
        "https://[fe80::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[fd00::1]/",
        "https://[::]/",
        "https://[ff02::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[::ffff:a00:1]/",
        "https://[::10.0.0.1]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://[64:ff9b:1::1]/",
        "https://[2002:a00:1::]/",
        "https://[2001:0:a00:1::]/",
        "https://[::1",
        "https://::1/",
    ],
)
def test_webhooks_may_not_be_where_only_the_server_reaches(url: str) -> None:
    for local in (False, True):
        with pytest.raises(Refused) as refused:
            target(url, local=local)
        assert (refused.value.status, refused.value.code) == (400, "WEBHOOK_URL_REJECTED")


@pytest.mark.parametrize(
    "url", ["http://localhost:1/a", "http://127.0.0.1:1/a", "https://127.0.0.9", "http://LOCALHOST"]
)
def test_webhooks_may_be_on_the_same_machine_for_development(url: str) -> None:
    assert target(url, local=True).is_local
    with pytest.raises(Refused):
        target(url, local=False)


@pytest.mark.parametrize(
    "url", ["http://[::1]/", "http://2130706433/", "http://127.1/", "http://0x7f.0.0.1/"]
)
def test_this_machine_has_two_names_only(url: str) -> None:
    with pytest.raises(Refused):
        target(url, local=True)


def test_a_local_name_has_local_addresses() -> None:
    addresses = asyncio.run(resolved(target("http://localhost:80/", local=True)))
    assert addresses
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


@given(st.ip_addresses())
def test_no_address_that_is_not_global_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if not address.is_global or address.is_multicast or address.is_link_local:
        assert not is_public(address)
