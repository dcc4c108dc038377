"""What the demo asks of git: a first-parent history as a stream, and the tree of any commit.

Git's output is read as it comes, so that a history of any length takes little memory.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, Self

#: Where and how a question is asked does not depend on anybody's configuration.
_SETTINGS: Final = {
    "color.ui": "false",
    "core.fsmonitor": "false",
    "diff.relative": "false",
    "log.diffMerges": "first-parent",
    "log.showRoot": "true",
    "log.showSignature": "false",
    "safe.bareRepository": "all",
    "safe.directory": "*",
}
_COMMIT: Final = "--format=%H %ct"
_RAW: Final = (
    "--raw --root -m --no-renames --no-abbrev --ignore-submodules=none -O" + os.devnull
).split()
_NO_FILE: Final = "000000"  # the mode of what is not there
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)  # git knows later times; datetime soon does not


class GitError(Exception):
    """Git is missing, or failed; the message is for people."""


class NoHistoryError(GitError):
    """There is no commit to start from."""


class Entry(NamedTuple):
    """What a tree holds under a path: a file, a symbolic link or a submodule's commit."""

    hash: str
    mode: str


class Change(NamedTuple):
    """What a commit did to a path: the new entry, or None if it removed the old one."""

    path: bytes
    entry: Entry | None


@dataclass(slots=True)
class Commit:
    """A commit with its changes against its first parent.

    `moment` is the committer's time, or that of an earlier commit if that one's is later.
    """

    hash: str
    moment: datetime
    changes: list[Change]


class Repository:
    """The first-parent history of a repository's HEAD, as it was when the object was made."""

    def __init__(self, folder: Path) -> None:
        """`folder` is a checkout, a folder in one, or a bare repository.

        Raises NoHistoryError, or GitError without git.
        """
        self.folder = folder
        _run(folder, "--version")
        try:
            _run(folder, "rev-parse", "--git-dir")
        except GitError as error:
            raise NoHistoryError(f"it is not a git repository ({error})") from None
        try:
            self.head = _run(folder, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
        except GitError:
            raise NoHistoryError("it has no commits") from None

    @classmethod
    def from_stream(cls, stream: Path, folder: Path) -> Self:
        """A new bare repository in `folder`, made from the text of `git fast-import`."""
        _run(folder, "init", "--quiet", "--bare", "--template=")
        _run(folder, "symbolic-ref", "HEAD", "refs/heads/main")
        with stream.open("rb") as text:
            _run(folder, "fast-import", "--quiet", stdin=text.fileno())
        return cls(folder)

    def __len__(self) -> int:
        """How many commits the history has."""
        return int(_run(self.folder, "rev-list", "--first-parent", "--count", self.head))

    def commits(self) -> Iterator[Commit]:
        """Every commit, the first one first."""
        commit: Commit | None = None
        with self._log(*_RAW) as tokens:
            for token in tokens:
                text = token.strip().decode("ascii")
                if not text.startswith(":"):
                    if commit is not None:
                        yield commit
                    commit = _commit(text, after=commit)
                elif commit is not None:
                    _, mode, _, hash, _ = text.split(" ")
                    entry = None if mode == _NO_FILE else Entry(hash, mode)
                    commit.changes.append(Change(next(tokens, b""), entry))
        if commit is not None:
            yield commit

    def commits_at(self, moments: Iterable[datetime]) -> dict[datetime, str | None]:
        """For each moment, the commit that was current then; None before the first."""
        waiting = sorted(moments, reverse=True)
        current: dict[datetime, str | None] = {}
        last: Commit | None = None
        with self._log() as tokens:
            for token in tokens:
                commit = _commit(token.decode("ascii"), after=last)
                while waiting and waiting[-1] < commit.moment:
                    current[waiting.pop()] = last.hash if last else None
                last = commit
        return current | dict.fromkeys(waiting, last.hash if last else None)

    def tree(self, commit: str) -> Iterator[tuple[bytes, Entry]]:
        """Every path of a commit, with what is there."""
        with _tokens(self.folder, "ls-tree", "-r", "-z", "--full-tree", commit) as tokens:
            for token in tokens:
                about, _, path = token.partition(b"\t")
                mode, _, hash = about.decode("ascii").split(" ")
                yield path, Entry(hash, mode)

    @contextmanager
    def _log(self, *options: str) -> Iterator[Iterator[bytes]]:
        arguments = ("log", "-z", "--first-parent", "--reverse", _COMMIT, *options, self.head, "--")
        with _tokens(self.folder, *arguments) as tokens:
            yield tokens


def _commit(text: str, after: Commit | None) -> Commit:
    hash, _, seconds = text.partition(" ")
    latest = (_LATEST - _EPOCH) // timedelta(seconds=1)
    moment = _EPOCH + timedelta(seconds=min(int(seconds or 0), latest))
    return Commit(hash, max(moment, after.moment) if after else moment, [])


def _run(folder: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> bytes:
    """The output of a git command that is soon done."""
    try:
        done = subprocess.run(
            _command(folder, arguments), stdin=stdin, capture_output=True, env=_environment()
        )
    except FileNotFoundError:
        raise GitError("git is needed to read the history: install it, or put it on PATH") from None
    if done.returncode != 0:
        raise _failure(arguments, done.stderr, done.returncode)
    return done.stdout


@contextmanager
def _tokens(folder: Path, *arguments: str) -> Iterator[Iterator[bytes]]:
    """The output of a git command as it comes, cut at each NUL."""
    with tempfile.TemporaryFile() as complaints:
        git = subprocess.Popen(
            _command(folder, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_environment(),
        )
        with git:
            try:
                yield _cut(git)
            except BaseException:
                git.kill()  # nobody reads the rest
                raise
        if git.returncode != 0:
            complaints.seek(0)
            raise _failure(arguments, complaints.read(), git.returncode)


def _cut(git: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert git.stdout is not None
    rest = b""
    while block := git.stdout.read(1 << 16):
        *tokens, rest = (rest + block).split(b"\0")
        yield from tokens


def _command(folder: Path, arguments: tuple[str, ...]) -> list[str]:
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    return ["git", "--no-pager", "-C", str(folder), *settings, *arguments]


def _environment() -> dict[str, str]:
    """The environment without what would lead git elsewhere, as inside a git hook."""
    kept = ("GIT_CEILING_DIRECTORIES", "GIT_EXEC_PATH")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_") or name in kept
    }
    return environment | {
        "GIT_DEFAULT_HASH": "sha1",  # of the sample; a repository that exists keeps its own
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }


def _failure(arguments: tuple[str, ...], complaints: bytes, status: int) -> GitError:
    lines = complaints.decode("utf-8", "replace").strip().splitlines()
    reason = lines[0].removeprefix("fatal: ") if lines else f"it ended with status {status}"
    return GitError(f"git {arguments[0]}: {reason}")
