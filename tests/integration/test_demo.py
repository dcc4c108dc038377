"""`make demo`: the answers of the event store are git's own, and a wrong one does not pass."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLE = EXAMPLES / "sample" / "lighthouse.fast-import"
IDENTITY = "Author <author@example.com>"
ALL_MATCH = re.compile(r"(\d+) of \1 answers match git")

Step = tuple[int, dict[bytes, str | None]]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The demo as a module, to be tampered with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module("git_history")


def run(
    *arguments: object, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "git_history.py"), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def git(folder: Path, *arguments: str, text: bytes = b"") -> str:
    environment = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        input=text,
        env=environment,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode()


def make(folder: Path, steps: list[Step], *options: str) -> Path:
    """A bare repository with a commit a step: its time, and paths (quoted) with their content."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--bare", *options)
    lines = []
    for time, changes in steps:
        lines += [b"commit refs/heads/main", f"committer {IDENTITY} {time} +0000".encode()]
        lines += [b"data 0", b""]
        for path, content in changes.items():
            if content is None:
                lines += [b"D " + path]
            else:
                data = content.encode()
                lines += [b"M 100644 inline " + path, b"data %d" % len(data), data]
    git(folder, "symbolic-ref", "HEAD", "refs/heads/main")
    git(folder, "fast-import", "--quiet", text=b"\n".join([*lines, b""]))
    return folder


def assert_all_match(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert ALL_MATCH.fullmatch(done.stdout.splitlines()[-1]), done.stdout
    assert done.stderr == ""
    assert all(line.isprintable() for line in done.stdout.splitlines())


# --- real input ------------------------------------------------------------------------------


def test_a_folder_without_a_repository_uses_the_sample(tmp_path: Path) -> None:
    done = run(tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    assert_all_match(done)
    assert "is not a git repository" in done.stdout
    assert "Using the bundled sample" in done.stdout
    assert "Importing 24 commits" in done.stdout


def test_a_repository_without_commits_uses_the_sample(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    done = run(tmp_path)
    assert_all_match(done)
    assert "it has no commits" in done.stdout


def test_the_sample_is_always_the_same(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.Repository.from_stream(SAMPLE, tmp_path).head == (
        "7e3187426568ec2e03ea052cc19c20c278309d56"
    )


@pytest.mark.parametrize("hashing", ["sha1", "sha256"])
def test_odd_paths_and_times(tmp_path: Path, hashing: str) -> None:
    first: dict[bytes, str | None] = {
        "straße/灯台 😀.txt".encode(): "a",
        b'"tab\\tand\\nnew line \\033[31m"': "b",
        b'"latin-1 \\351"': "c",
        b"latin-1 %E9": "not the same path as the one above",
        b'" leading and trailing "': "d",
        b'":100644 000000 looks like a change"': "e",
        b'"quo\\"te\\\\"': "f",
        b"/".join([b"long"] * 103): "too long",
        b"becomes a folder": "g",
    }
    steps: list[Step] = [
        (1_000_000_000, first),
        (1_000_000_000, {b'"latin-1 \\351"': "changed in the same second"}),
        (1_000_000_100, {b"becomes a folder": None, b"becomes a folder/file": "h"}),
        (999_000_000, {b'"tab\\tand\\nnew line \\033[31m"': None}),
        (1_000_000_100, {b"latin-1 %E9": None}),
        (1_000_000_200, {}),
        (1_000_000_300, {b"latin-1 %E9": "again"}),
    ]
    repository = make(tmp_path / "odd", steps, f"--object-format={hashing}")
    done = run(repository)
    assert_all_match(done)
    assert "Importing 7 commits" in done.stdout
    assert "514 characters" in done.stdout  # of the path that was left out, and said so


def test_one_commit_is_a_history(tmp_path: Path) -> None:
    assert_all_match(run(make(tmp_path / "one", [(1_500_000_000, {b"a": "a"})])))


def test_a_folder_in_a_shallow_clone_with_disturbing_settings(tmp_path: Path) -> None:
    steps: list[Step] = [(10**9 + n, {b"folder/a": str(n), b"b": str(n)}) for n in range(9)]
    origin, clone = make(tmp_path / "origin", steps), tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth=4", origin.as_uri(), str(clone))
    settings = {
        "log.showSignature": "true",
        "log.diffMerges": "off",
        "log.showRoot": "false",
        "color.ui": "always",
        "diff.relative": "true",
        "diff.renames": "copies",
        "diff.orderFile": "missing",
        "core.quotePath": "true",
    }
    for name, value in settings.items():
        git(clone, "config", name, value)
    done = run(clone / "folder", GIT_DIR=str(tmp_path), GIT_INDEX_FILE="nowhere")
    assert_all_match(done)
    assert "Importing 4 commits" in done.stdout


# --- trouble ---------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    done = run(tmp_path / "missing")
    assert done.returncode == 2
    assert "missing is not a folder" in done.stderr


def test_git_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "git is needed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_repository(tmp_path: Path) -> None:
    repository = make(tmp_path / "damaged", [(10**9 + n, {b"a": str(n)}) for n in range(3)])
    tree = git(repository, "rev-parse", "HEAD~1^{tree}").strip()
    (repository / "objects" / tree[:2] / tree[2:]).unlink()
    done = run(repository)
    assert done.returncode == 2
    assert done.stderr.startswith("git_history: git log:")


# --- a wrong answer does not pass -------------------------------------------------------------


def forget_a_change(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    put: Callable[..., None] = demo.File.put

    def forgetful(file: Any, blob: str, mode: str) -> None:
        if not (file.id == "README.md" and file.present):
            put(file, blob, mode)

    monkeypatch.setattr(demo.File, "put", forgetful)


def leave_a_removed_file(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.File, "remove", lambda file: None)


def ask_a_microsecond_late(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ask: Callable[..., Any] = demo.files_in_store
    monkeypatch.setattr(
        demo,
        "files_in_store",
        lambda store, moment: ask(store, moment + demo.timedelta(microseconds=1)),
    )


def forget_the_executable_bit(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    put: Callable[..., None] = demo.File.put
    monkeypatch.setattr(demo.File, "put", lambda file, blob, mode: put(file, blob, "100644"))


@pytest.fixture
def sample(demo: ModuleType, tmp_path: Path) -> Path:
    demo.Repository.from_stream(SAMPLE, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("tamper", "difference"),
    [
        (forget_a_change, "README.md: the event store has"),
        (leave_a_removed_file, "git has no such file"),
        (ask_a_microsecond_late, "README.md: the event store has"),
        (forget_the_executable_bit, "(mode 100755)"),
    ],
)
def test_a_mismatch_is_a_failure(
    demo: ModuleType,
    sample: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tamper: Callable[[ModuleType, pytest.MonkeyPatch], None],
    difference: str,
) -> None:
    tamper(demo, monkeypatch)
    assert demo.main([str(sample)]) == 1
    output = capsys.readouterr().out
    assert "  NO  " in output
    assert difference in output
    last = re.fullmatch(r"(\d+) of (\d+) answers match git", output.splitlines()[-1])
    assert last is not None
    assert int(last[1]) < int(last[2])


def test_untouched_it_succeeds(demo: ModuleType, sample: Path) -> None:
    assert demo.main([str(sample)]) == 0


# --- paths as ids -----------------------------------------------------------------------------


AWKWARD = [
    b"%",
    b"E9",
    b"\xe9",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\t",
    b"2",
    b"5",
    b"/",
    "é".encode(),
]


@given(st.lists(st.sampled_from(AWKWARD) | st.binary(min_size=1), min_size=1).map(b"".join))
def test_a_path_and_its_id_make_each_other(demo: ModuleType, path: bytes) -> None:
    id = demo.file_id(path)
    assert sys.modules["path_ids"].file_path(id) == path
    demo.File(id[: demo.LONGEST_ID])  # a valid id


def test_a_plain_path_is_its_own_id(demo: ModuleType) -> None:
    for path in ("a b/ü.txt", "100% sure", "%e9", "a+b?c#d"):
        assert demo.file_id(path.encode()) == path
