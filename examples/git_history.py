"""A git repository as an event-sourced past: import its history, ask, and check against git.

    python examples/git_history.py [REPO]

Each file of the repository is an aggregate, and each commit of the first-parent history one
atomic append to the streams of the files that it touches, at the commit's own time. Then the
event store is asked which files were there at several past moments, with which content, and
git is asked the same: the answers must be equal.

REPO is the checkout that this file lies in by default. Where there is no history, a small
bundled sample takes its place.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from git_repository import Commit, Entry, GitError, NoHistoryError, Repository
from path_ids import file_id
from progress import progress

from eventstore import Aggregate, Event, EventStore, StreamNotFoundError, context, on

HERE: Final = Path(__file__).resolve().parent
SAMPLE: Final = HERE / "sample" / "lighthouse.fast-import"

#: The longest id of a file: the limit of a stream's name, less "files/".
LONGEST_ID: Final = 512 - len("files/")


# --- the domain: three events and an aggregate ----------------------------------------------


class FileAdded(Event):
    blob: str
    mode: str


class FileChanged(Event):
    blob: str
    mode: str


class FileRemoved(Event):
    pass


class File(Aggregate, stream="files/{id}", snapshot_every=25):
    """What lies under one path. The path is its id."""

    blob: str = ""
    mode: str = ""
    present: bool = False

    def put(self, blob: str, mode: str) -> None:
        if not self.present:
            self.record(FileAdded(blob=blob, mode=mode))
        elif (blob, mode) != (self.blob, self.mode):
            self.record(FileChanged(blob=blob, mode=mode))

    def remove(self) -> None:
        if not self.present:
            raise ValueError(f"{self.id} is not there, so it cannot be removed")
        self.record(FileRemoved())

    @on(FileAdded)
    def _added(self, event: FileAdded) -> None:
        self.blob, self.mode, self.present = event.blob, event.mode, True

    @on(FileChanged)
    def _changed(self, event: FileChanged) -> None:
        self.blob, self.mode = event.blob, event.mode

    @on(FileRemoved)
    def _removed(self, event: FileRemoved) -> None:
        self.blob, self.mode, self.present = "", "", False


# --- write: a commit is one atomic append ---------------------------------------------------


class Imported(NamedTuple):
    """What an import did. `milestones` are the moments of a few commits, spread out."""

    events: int
    seconds: float
    milestones: Sequence[datetime]
    left_out: set[str]


def import_history(store: EventStore, repository: Repository, milestones: int = 5) -> Imported:
    """Append the repository's history to the store, a commit at a time."""
    total = len(repository)
    chosen = {round(step * (total - 1) / (milestones - 1)) for step in range(milestones)}
    events, moments, left_out = 0, [], set[str]()
    started = time.perf_counter()
    with progress(total) as advance:
        for number, commit in enumerate(repository.commits()):
            events += import_commit(store, commit, left_out)
            if number in chosen:
                moments.append(commit.moment)
            advance()
    return Imported(events, time.perf_counter() - started, moments, left_out)


def import_commit(store: EventStore, commit: Commit, left_out: set[str]) -> int:
    """Append what one commit did to all its files, or nothing; how many events that was."""
    files = []
    for path, entry in commit.changes:
        id = file_id(path)
        if len(id) > LONGEST_ID:
            left_out.add(id)
            continue
        file = load_file(store, id)
        if entry is None:
            file.remove()
        else:
            file.put(entry.hash, entry.mode)
        files.append(file)
    events = sum(len(file.pending) for file in files)
    with context(commit=commit.hash):
        store.save(*files, recorded_at=commit.moment)
    return events


def load_file(store: EventStore, id: str) -> File:
    """The file as it is, or a new one."""
    try:
        return store.load(File, id)
    except StreamNotFoundError:
        return File(id)


# --- read: the same question to the event store and to git ----------------------------------

#: Which files, with which content, at a moment.
Files = dict[str, Entry]


def files_in_store(store: EventStore, moment: datetime) -> Files:
    """The answer of the event store, and of nothing else."""
    files = store.load_all(File, at=store.cut(moment))
    return {file.id: Entry(file.blob, file.mode) for file in files if file.present}


def files_in_git(repository: Repository, commit: str | None) -> Files:
    """The answer of git, which knows commits and not moments. Before the first, no files."""
    tree = repository.tree(commit) if commit is not None else ()
    files = ((file_id(path), entry) for path, entry in tree)
    return {id: entry for id, entry in files if len(id) <= LONGEST_ID}


def questions(milestones: Sequence[datetime]) -> dict[datetime, str]:
    """The moments to ask about, in order of time, with what is special about each."""
    first, last = milestones[0], milestones[-1]
    microsecond = timedelta(microseconds=1)
    asked = {}
    for moment in milestones[1:-1]:
        asked[moment - microsecond] = "just before a commit"
        asked[moment] = "at that commit"
        asked[moment + timedelta(milliseconds=500)] = "just after it"
    asked[last] = "last commit"
    asked[max(last, datetime.now(UTC)) + timedelta(days=365)] = "in the future"
    asked[first] = "first commit"
    asked[first - microsecond] = "just before the first"
    asked[first - timedelta(days=1)] = "before all commits"
    return dict(sorted(asked.items()))


def check_answers(store: EventStore, repository: Repository, asked: dict[datetime, str]) -> int:
    """Ask both, print both, and count the answers that are equal."""
    commits = repository.commits_at(asked)
    matching = 0
    print(f"  {'moment (UTC)':26}  {'commit':9}{'files':>8}{'ms':>9}  git too")
    for moment, remark in asked.items():
        started = time.perf_counter()
        answer = files_in_store(store, moment)
        milliseconds = 1000 * (time.perf_counter() - started)
        truth = files_in_git(repository, commits[moment])
        matching += answer == truth
        print(
            f"  {moment:%Y-%m-%d %H:%M:%S.%f}  {(commits[moment] or 'none')[:9]:9}"
            f"{len(answer):8,}{milliseconds:9.1f}  {'yes' if answer == truth else 'NO':7}  {remark}"
        )
        print_lines(differences(answer, truth))
    return matching


def differences(answer: Files, truth: Files) -> Iterator[str]:
    """What the event store says about a file, and what git says, where that is not the same."""
    for id in sorted(answer.keys() | truth.keys()):
        told, is_so = answer.get(id), truth.get(id)
        if told != is_so:
            yield f"{id}: the event store has {_spelled(told)}, git has {_spelled(is_so)}"


def _spelled(entry: Entry | None) -> str:
    return "no such file" if entry is None else f"{entry.hash} (mode {entry.mode})"


# --- the command line -----------------------------------------------------------------------


def print_lines(lines: Iterable[str], most: int = 20) -> None:
    """Print lines as a list, and how many more there were than `most`."""
    more = 0
    for number, line in enumerate(lines):
        if number < most:
            print(f"    - {line}")
        else:
            more += 1
    if more:
        print(f"    - and {more:,} more")


@contextmanager
def open_repository(folder: Path) -> Iterator[Repository]:
    """The history of `folder`, or the bundled sample's where there is none."""
    try:
        repository = Repository(folder)
    except NoHistoryError as reason:
        print(f"{folder} has no history: {reason}.\nUsing the bundled sample instead.")
        with tempfile.TemporaryDirectory() as temporary:
            yield Repository.from_stream(SAMPLE, Path(temporary))
    else:
        yield repository


def demonstrate(repository: Repository, database: Path) -> bool:
    """Import, ask, check; whether every answer was right."""
    with EventStore(f"sqlite:///{database}", durability="relaxed", cache=10_000) as store:
        print(f"Importing {len(repository):,} commits, up to {repository.head[:9]}:")
        done = import_history(store, repository)
        print(
            f"  {done.events:,} events in {done.seconds:.2f} s: "
            f"{done.events / done.seconds:,.0f} events/s, "
            f"{len(repository) / done.seconds:,.0f} commits/s; "
            f"{size_of(database) / 1_000_000:,.1f} MB of SQLite"
        )
        if done.left_out:
            print("  Left out here and in git's answers, paths too long for a stream's name:")
            print_lines((f"{id[:60]}... ({len(id)} characters)" for id in sorted(done.left_out)), 5)
        print("Which files were there, with which content?")
        asked = questions(done.milestones)
        matching = check_answers(store, repository, asked)
    print(f"{matching} of {len(asked)} answers match git")
    return matching == len(asked)


def size_of(database: Path) -> int:
    """The bytes of a SQLite file and its write-ahead log."""
    return sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if every answer matches, 1 if not, 2 if git fails."""
    parser = argparse.ArgumentParser(description="Import a git history, and ask for its past.")
    parser.add_argument("repo", nargs="?", type=Path, default=HERE, help="a git repository")
    folder: Path = parser.parse_args(arguments).repo
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    try:
        with tempfile.TemporaryDirectory() as temporary, open_repository(folder) as repository:
            return 0 if demonstrate(repository, Path(temporary) / "history.db") else 1
    except GitError as error:
        print(f"git_history: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
