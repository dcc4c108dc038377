"""What clients may send: requests drawn from all that a server reads in them, right and wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

ROOT = b"/v1/stream/"


def request(
    method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> bytes:
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return (
        b"%b %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
        % (method, target, len(body), head, body)
    )


NUMBERS = [
    b"0",
    b"1",
    b"-1",
    b"+1",
    b"01",
    b"1.0",
    b"1e3",
    b"0x1",
    b" 1",
    b"1 ",
    b"1,1",
    b"",
    b"NaN",
    b"9007199254740991",
    b"9007199254740992",
    b"9223372036854775807",
    b"9223372036854775808",
    b"9" * 400,
    b"\xd9\xa1",
    b"\xb2",
    b"1_0",
]
OFFSETS = [
    b"-1",
    b"now",
    b"0",
    b"0000000000000000_0000000000000000",
    b"0000000000000000_0000000000000001",
    b"9999999999999999_9999999999999999",
    b"0000000000000000_9223372036854775808",
    b"1_1",
    b"",
    b"%00",
    b"%ff",
    b"-1%0d%0aX:%20y",
    b"0000000000000000_000000000000000%D9%A1",
    b"-1,now",
]
TIMES = [
    b"2030-01-01T00:00:00Z",
    b"0001-01-01T00:00:00+23:59",
    b"9999-12-31T23:59:59-23:59",
    b"2030-02-30T00:00:00Z",
    b"2030-01-01",
    b"2030-01-01T00:00:00",
    b"2030-01-01t24:00:00z",
    b"1969-12-31T00:00:00Z",
    b"0000-01-01T00:00:00Z",
    b"2030-01-01T00:00:00.1234567890123Z",
]
TYPES = [
    b"application/json",
    b"APPLICATION/JSON; charset=utf-16",
    b"text/plain",
    b"",
    b";",
    b"a/" + b"b" * 300,
    b"text/event-stream",
    b"\xff\xfe",
    b"application/json\tx",
    b"text/plain;\xe9",
    b"multipart/form-data",
]
BODIES = [
    b"",
    b"[]",
    b"[[]]",
    b"{}",
    b"1",
    b"null",
    b'"x"',
    b"[1,2,3]",
    b"[1",
    b"]",
    b"[1]x",
    b"\xff",
    b'["\xff"]',
    b'["\\ud800"]',
    b'"\\u0000"',
    b"1e999999",
    b"-0",
    b"[1,]",
    b"NaN",
    b"\xef\xbb\xbf[]",
    b"[" * 100_000,
    b"[" * 50_000 + b"]" * 50_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"9" * 100_000,
    b'{"type":"x","data":{}}',
    b'{"type":"x\\u0000","data":{}}',
    b'{"type":"\\ud800","data":1}',
    b'{"type":"$json","data":1}',
    b'{"type":"x","data":1,"id":"00000000-0000-0000-0000-000000000000"}',
    b'{"type":"x","data":1,"metadata":{"a":NaN}}',
    b'{"type":"x","data":1,"version":1e400}',
    b'{"type":"x","data":1,"metadata":"\\ud800"}',
    b'{"type":"x","data":1,"metadata":{"\\u0000":1}}',
    b'{"type":"' + b"x" * 300 + b'","data":1}',
    b'{"type":"x","type":"y","data":1,"data":2}',
    b"a\r\n\r\nevent: control\rdata: x\n",
    b" \n",
    b"x" * 200_000,
]
#: Those that most streams take.
SENSE = [b"[1,2,3]", b'{"type":"x","data":{}}']
TARGETS = [
    b"a",
    b"b",
    b"c/d",
    b"%00",
    b"%ff",
    b"%",
    b"%zz",
    b"a%2fb",
    b"..",
    b"a/../b",
    b"a//b",
    b"",
    b"/",
    b"__ds",
    b"__ds/",
    b"__ds/jwks.json",
    b"__ds/subscriptions/x",
    b"%5f%5fds/x",
    b"__ds%2fx",
    b"x" * 600,
    b"%F0%9F%90%98",
    b"a%0d%0ab",
    b"a%5cb",
    b"a;b",
    b"\xc3\xa9",
    b"\xff",
    b"'\"`--",
    b"%ED%A0%80",
    b"well/none",
    b"a%E2%80%A8b",
]
HEADERS: dict[bytes, list[bytes]] = {
    b"content-type": TYPES,
    b"stream-seq": [*NUMBERS, b"\xff", b"x" * 3000, b"x" * 20_000],
    b"stream-ttl": NUMBERS,
    b"stream-expires-at": TIMES,
    b"stream-closed": [b"true", b"TRUE", b"false", b"1", b"\xff"],
    b"stream-forked-from": [ROOT + target for target in TARGETS]
    + [b"a", b"http://x" + ROOT + b"a"],
    b"stream-fork-offset": OFFSETS,
    b"stream-fork-sub-offset": NUMBERS,
    b"stream-expected-version": NUMBERS,
    b"producer-id": [b"p", b"", b"\xff", b"x" * 512, b"x" * 513, b"\xc3\xa9", b"'"],
    b"producer-epoch": NUMBERS,
    b"producer-seq": NUMBERS,
    b"if-none-match": [b"*", b'"x"', b",,,", b"\xff", b'W/"a"' * 1000],
    b"authorization": [b"Bearer x", b"\xff"],
    b"origin": [b"null", b"http://localhost", b"x", b"\xff"],
    b"range": [b"bytes=0-1"],
    b"accept-encoding": [b"gzip"],
    b"expect": [b"100-continue", b"x"],
    b"upgrade": [b"websocket", b"h2c"],
    b"x-http-method-override": [b"DELETE"],
    b"x-forwarded-for": [b"1.1.1.1"],
}
NAMES = list(HEADERS)
PARAMETERS: dict[bytes, list[bytes]] = {
    b"offset": OFFSETS,
    b"live": [b"long-poll", b"sse", b"LONG-POLL", b"true", b"", b"%ff", b"%00"],
    b"cursor": [*NUMBERS, b"%F0", b"x" * 5000],
    b"x": [b"%", b"&&&;;;===", b"y=" * 100],
}
METHODS = [b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"QUERY"]


printable = st.binary(max_size=40).map(lambda b: bytes(c for c in b if c >= 32 and c != 127))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request of some sense, most of it odd: its method, and its bytes."""
    method = draw(st.sampled_from([*METHODS[:5], *METHODS]))
    # Mostly few paths, so that there are streams at which something happens.
    fresh = st.integers(0, 10**6).map(lambda number: b"fresh/%d" % number)
    path = draw(st.sampled_from([*TARGETS[:3] * 10, *TARGETS]) | fresh)
    pairs = []
    for name in draw(st.lists(st.sampled_from(list(PARAMETERS)), max_size=2)):
        pairs.append(name + b"=" + draw(st.sampled_from(PARAMETERS[name])))
    target = ROOT + path + (b"?" + b"&".join(pairs) if pairs else b"")
    headers = {b"content-type": b"application/json"}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        headers[name] = draw(st.sampled_from(HEADERS[name]) | printable)
    body = draw(st.sampled_from([*SENSE * 5, *BODIES])) if method in (b"PUT", b"POST") else b""
    return method, request(method, target, list(headers.items()), body)


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**53,
    2**63,
    10**400,
    "",
    "a",
    "c/*",
    "**",
    "../x",
    "\ud800",
    "\0",
    "x" * 2000,
    "__ds/x",
    "0000000000000000_0000000000000001",
    [],
    ["a", 1],
    [{}],
    {},
    {"url": "http://10.0.0.1"},
    {"url": "::"},
    {"url": "https://[::1/"},
    [{"stream": "a", "offset": "0000000000000000_0000000000000001"}],
]
SUBSCRIPTION = {"type": "pull-wake", "pattern": "c/*", "wake_stream": "wake"}
MEMBERS = [
    "type",
    "pattern",
    "streams",
    "webhook",
    "wake_stream",
    "lease_ttl_ms",
    "description",
    "worker",
    "wake_id",
    "generation",
    "acks",
    "done",
]
CONTROLS = [
    b"",
    b"/claim",
    b"/ack",
    b"/release",
    b"/callback",
    b"/streams",
    b"/streams/a",
    b"/streams/%00",
]


@st.composite
def controls(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request for the control APIs."""
    method = draw(st.sampled_from([b"PUT", b"POST", b"POST", b"GET", b"DELETE"]))
    id = draw(st.sampled_from([b"s", b"s", b"t", b"%00", b"%2f", b"x" * 600, b""]))
    target = ROOT + b"__ds/subscriptions/" + id + draw(st.sampled_from(CONTROLS))
    body: dict[str, Any] = draw(st.sampled_from([SUBSCRIPTION, {"worker": "w"}, {}]))
    odd = draw(st.dictionaries(st.sampled_from(MEMBERS), st.sampled_from(ODD), max_size=3))
    headers = [(b"content-type", b"application/json")]
    if draw(st.booleans()):
        headers.append(
            (b"authorization", draw(st.sampled_from([b"Bearer ", b"Bearer a.b.c", b"\xff"])))
        )
    return method, request(method, target, headers, json.dumps(body | odd).encode())
