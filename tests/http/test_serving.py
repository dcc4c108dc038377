"""`eventstore serve`: how it starts, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from child import PATIENCE, Child, child
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from programs import run_examples

from eventstore.cli import command_line, main
from eventstore.cli.serving import application
from eventstore.http import Limits

JSON = {"Content-Type": "application/json"}
BASE = "http://127.0.0.1"
TOKEN = "a-token-of-the-tests"

# What an application has; the command finds it in the current folder.
SHOP = """
from eventstore import Aggregate, Event, EventStore, on
from eventstore.http import DurableStreams, Operation, allow_all


class Paid(Event, name="serving-paid"):
    amount: int


class Till(Aggregate, stream="serving-till/{id}"):
    total: int = 0

    @on(Paid)
    def _paid(self, event: Paid) -> None:
        self.total += event.amount


def readers(request, path, operation):
    return operation is Operation.READ


def make():
    return DurableStreams(EventStore("sqlite:///shop.db"), root="/log", authorize=allow_all)


nothing = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "serving_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(folder: Path, sqlite_url: str) -> Iterator[Child]:
    with child(folder, sqlite_url) as running:
        yield running


# --- a life -------------------------------------------------------------------------------------


def test_a_server_says_where_it_is_whether_it_is_well_and_what_it_was_asked(
    server: Child, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "sqlite://", "--port", str(server.port)]) == 1  # it is taken
    assert str(server.port) in capfd.readouterr().err
    with httpx.Client(base_url=server.url) as client:
        made = client.put("/v1/stream/a", headers=JSON, content=b"[1]")
        assert (made.status_code, made.headers["location"]) == (201, f"{server.url}/v1/stream/a")
        assert client.get("/healthz").text == "alive\n"
        assert client.get("/readyz").text == "ready\n"
        client.get("/v1/stream/a?offset=-1&token=secret-1", headers={"Authorization": "secret-2"})
        client.get("/v1/stream/%22%1b[31m%0a?live=%0d%0a")
    assert server.stop() == 0
    lines = [line.split(" ", 2)[2] for line in server.log.splitlines() if "127.0.0.1 " in line]
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        '"PUT /v1/stream/a" 201',
        '"GET /v1/stream/a?offset=-1" 200',
        '"GET /v1/stream/%22%1b[31m%0a?live=??" 400',
    ]
    assert "secret" not in server.log
    assert "only requests of this machine are allowed" in server.log


def test_live_readers_are_sent_away_and_writes_end_before_the_server_does(server: Child) -> None:
    ended: dict[str, str] = {}
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        client.put("/v1/stream/a", headers=JSON)

        def read(live: str, started: threading.Event) -> None:
            path = f"/v1/stream/a?offset=now&live={live}"
            with client.stream("GET", path) as response:
                pieces = response.iter_text()
                if live == "sse":
                    next(pieces)
                    started.set()
                ended[live] = f"{response.status_code} {''.join(pieces)}"

        begun = threading.Event()
        sse = threading.Thread(target=read, args=("sse", begun))
        sse.start()
        begun.wait(PATIENCE)
        poll = threading.Thread(target=read, args=("long-poll", threading.Event()))
        poll.start()
        with server.connect() as slow:  # half of its body is there when the server is to stop
            slow.sendall(
                b"POST /v1/stream/a HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 4\r\n\r\n[1"
            )
            while "long-poll" not in ended:  # until it waits, it would be answered anyway
                if server.process.poll() is None and not ended:
                    time.sleep(0.2)
                    server.process.terminate()
                poll.join(PATIENCE)
            slow.sendall(b"2]")
            answer = slow.recv(1000)
        sse.join(PATIENCE)
        assert server.process.wait(PATIENCE) == 0
    assert ended == {"sse": "200 ", "long-poll": "204 "}
    assert answer.startswith(b"HTTP/1.1 204")
    assert b"connection: close" in answer.lower()


def test_what_was_answered_is_there_when_the_server_runs_again(
    folder: Path, sqlite_url: str
) -> None:
    with child(folder, sqlite_url, "--no-access-log") as server:
        httpx.put(f"{server.url}/v1/stream/a", headers=JSON, content=b"[1]")
        server.stop()
        assert "/v1/stream/a" not in server.log
    with child(folder, sqlite_url, "--json-access-log") as server:
        assert httpx.get(f"{server.url}/v1/stream/a?offset=-1&x=y").json() == [1]
        server.stop()
        (line,) = [line for line in server.log.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert (told["method"], told["path"], told["status"]) == ("GET", "/v1/stream/a?offset=-1", 200)
    assert told["client"] == "127.0.0.1"


def test_a_client_that_does_not_end_is_not_waited_for_for_ever(
    folder: Path, sqlite_url: str
) -> None:
    with (
        child(folder, sqlite_url, "--shutdown-timeout", "1") as server,
        server.connect() as stuck,
    ):
        stuck.sendall(b"PUT /v1/stream/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n1")
        httpx.get(f"{server.url}/healthz")
        assert server.stop(signal.SIGINT) == 0


# --- TLS ------------------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eventstore test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def test_a_server_speaks_tls_with_a_token(folder: Path, sqlite_url: str) -> None:
    import ssl

    cert, key = certificate(folder)
    (folder / "tokens").write_text(f"{TOKEN}\n")
    tls = ["--tls-cert", str(cert), "--tls-key", str(key)]
    with child(folder, sqlite_url, *tls, "--token-file", "tokens", "--host", "0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=cert)) as client:
            assert client.put("/v1/stream/a").status_code == 401
            allowed = {"Authorization": f"Bearer {TOKEN}"}
            made = client.put("/v1/stream/a", headers=allowed)
            assert (made.status_code, made.headers["location"]) == (201, f"{url}/v1/stream/a")
        server.stop()
        assert TOKEN not in server.log


# --- whom it lets in ----------------------------------------------------------------------------


def own_address() -> str:
    """An address of this machine that is not a loopback one."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


def test_nobody_from_outside_is_let_in_unless_it_is_said(folder: Path, sqlite_url: str) -> None:
    try:
        address = own_address()
    except OSError:
        pytest.skip("this machine has no address but loopback")
    with child(folder, sqlite_url, "--host", "0.0.0.0") as server:
        outside = httpx.get(f"http://{address}:{server.port}/v1/stream/a")
        assert outside.status_code == 403
        assert "--allow-anyone" in outside.json()["detail"]
        assert httpx.get(f"http://127.0.0.1:{server.port}/v1/stream/a").status_code == 404
        assert httpx.get(f"http://{address}:{server.port}/readyz").status_code == 200
    with child(folder, sqlite_url, "--host", "0.0.0.0", "--allow-anyone") as server:
        assert "everybody who can reach this server" in server.log
        assert httpx.get(f"http://{address}:{server.port}/v1/stream/a").status_code == 404


def test_a_proxy_that_is_believed_tells_the_client_and_is_no_loopback(
    folder: Path, sqlite_url: str
) -> None:
    options = ["--forwarded-allow-ips", "127.0.0.1", "--base-url", "https://shop.example/log"]
    with child(folder, sqlite_url, *options, "--requests-per-second", "0.01") as server:
        told = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        path = f"{server.url}/v1/stream/a"
        assert httpx.get(path, headers=told).status_code == 403
        assert httpx.get(path, headers=told).status_code == 429
        made = httpx.put(path)  # another client
        assert made.headers["location"] == "https://shop.example/log/v1/stream/a"
        server.stop()
        assert "192.0.2.7 " in server.log


Call = Callable[..., httpx.Response]


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Makes one request of what a command line serves, without the server."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(command: Sequence[str], *request: Any, **options: Any) -> httpx.Response:
        async def scenario() -> httpx.Response:
            with contextlib.ExitStack() as stack:
                app = application(command_line(["serve", *command]), stack)
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
                    answer = await client.request(*request, **options)
                await app.aclose()
                return answer

        return asyncio.run(scenario())

    yield call
    sys.modules.pop("serving_shop", None)


def test_an_application_brings_aggregates_a_hook_or_all_of_it(
    folder: Path, sqlite_url: str, call: Call
) -> None:
    path, event = "/v1/stream/serving-till/1", {"type": "serving-paid", "data": {"amount": 3}}
    open_till = [sqlite_url, "--writable", "serving_shop:Till"]
    assert call(open_till, "PUT", path, headers=JSON).status_code == 201
    assert call(open_till, "POST", path, json=event).status_code == 204
    assert call(open_till, "POST", path, json={"type": "x", "data": 1}).status_code == 400
    readers = [sqlite_url, "--authorize", "serving_shop:readers"]
    assert len(call(readers, "GET", path).json()) == 1
    assert call(readers, "DELETE", path).status_code == 401
    assert call(["--app", "serving_shop:make"], "PUT", "/log/a").status_code == 201
    assert (folder / "shop.db").exists()


def test_a_stream_of_an_imported_aggregate_is_read_only(sqlite_url: str, call: Call) -> None:
    shop = [sqlite_url, "--import", "serving_shop"]
    assert call(shop, "PUT", "/v1/stream/serving-till/2", headers=JSON).status_code == 405


# --- what is wrong is said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sqlite://", "--writable", "serving_shop:nothing"], "no Aggregate"),
        (["sqlite://", "--writable", "serving_shop"], "module:name"),
        (["sqlite://", "--authorize", "serving_shop:nothing"], "no function"),
        (["sqlite://", "--import", "serving_none"], "serving_none"),
        (["sqlite://", "--token-file", "none"], "cannot be read"),
        (["sqlite://", "--tls-cert", "none"], "certificate"),
        (["sqlite://", "--tls-key", "none"], "certificate"),
        (["sqlite://", "--host", "192.0.2.1"], "192.0.2.1"),
        (["--app", "serving_shop:nothing"], "DurableStreams"),
        (["--app", "serving_shop:make", "--token-file", "none"], "--token-file"),
        (["--app", "serving_shop:make", "--max-body", "7"], "--max-body"),
        (["sqlite://", "--public-cache"], "--allow-anyone"),
        ([], "EVENTSTORE_URL"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["serve", *arguments, "--port", "0"]) == 1
    told = [line for line in capfd.readouterr().err.splitlines() if "eventstore: " in line]
    assert len(told) == 1
    assert said in told[0]
    sys.modules.pop("serving_shop", None)


def test_tables_that_are_not_there_are_an_error_or_are_made(
    empty_postgres_url: str, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", empty_postgres_url, "--port", "0"]) == 1
    assert "eventstore migrate" in capfd.readouterr().err
    assert call([empty_postgres_url, "--migrate"], "PUT", "/v1/stream/a").status_code == 201


def test_a_missing_extra_is_named(folder: Path) -> None:
    script = "import sys; sys.modules['uvicorn'] = None\nfrom eventstore.cli import main\n"
    ran = subprocess.run(
        [sys.executable, "-c", f"{script}sys.exit(main(['serve', 'sqlite://']))"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert (ran.returncode, "eventstore[http]" in ran.stderr) == (1, True)


def test_a_server_that_is_not_ready_says_so(folder: Path, postgres_url: str) -> None:
    """Its database goes away."""
    import psycopg
    from sqlalchemy import make_url

    with child(folder, postgres_url) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        url = make_url(postgres_url)
        others = url.set(database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(others, autocommit=True) as admin:
            name = str(url.database)
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')  # type: ignore[call-overload]
            with contextlib.suppress(psycopg.Error):
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [name],
                )
            deadline = time.monotonic() + PATIENCE
            while httpx.get(f"{server.url}/readyz").status_code != 503:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')  # type: ignore[call-overload]
            while httpx.get(f"{server.url}/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)


# --- the page about it ----------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


def test_the_pages_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    run_examples(blocks, tmp_path)


def test_every_option_and_limit_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for field in dataclasses.fields(Limits):
        assert f"`{field.name}`" in page, field.name
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(options) > 20
    for option in options:
        assert re.search(rf"{option}\b", page), option
