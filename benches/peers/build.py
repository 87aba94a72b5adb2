"""Builds what is measured and what measures, in release, as the user who asked for it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from .topology import Failure

PROJECT = Path(__file__).resolve().parent.parent.parent


def target() -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))


def build(*what: str) -> str:
    """The executable that `cargo build --release WHAT` makes; one that is there already, if there is no cargo."""
    name = what[-1]
    made = target() / "release" / ("examples" if "--example" in what else "") / name
    env, user = dict(os.environ), {}
    if "SUDO_UID" in os.environ:
        # Not as root: the target folder is the user's, and so, as a rule, is the compiler.
        account = pwd.getpwuid(int(os.environ["SUDO_UID"]))
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        env.update(HOME=account.pw_dir, PATH=f"{account.pw_dir}/.cargo/bin:{env['PATH']}")
    cargo = shutil.which("cargo", path=env["PATH"])
    if not cargo:
        if made.exists():
            return str(made)
        raise Failure(f"no cargo here, and no {made}: as the user who has it, cargo build --release {' '.join(what)}")
    done = subprocess.run([cargo, "build", "--release", *what, "--message-format=json-render-diagnostics"],
                          cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          check=False, **user)
    for line in done.stdout.splitlines():
        said = json.loads(line) if line.startswith("{") else {}
        if said.get("executable") and said.get("target", {}).get("name") == name:
            return said["executable"]
    raise Failure(f"cargo build --release {' '.join(what)}: status {done.returncode}")


def generator() -> str:
    """The project's own load generators."""
    return build("--example", "load")


def pontoon() -> str:
    return build("--bin", "pontoon")
