"""Write .env.example and docs/reference/settings.md from the table of settings, or check them.

Separate from the table because a node never needs it. A test runs the check.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from lattice.config import SETTINGS, Setting

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100

ENV_HEAD = """\
# Settings of a Lattice node. The launcher copies this file to .env, or to .env.NAME, on the first
# run; the node reads it when it starts. A line without # is in force; the values shown behind # are
# the defaults, or examples where the default is empty.
# A flag wins over the environment, the environment over this file, this file over the defaults.
# Nothing behind the = means the default. Relative paths start at the directory of this file.
"""

REFERENCE_HEAD = """\
# Settings

Made by `scripts/settings_docs.py` from the table in `lattice/config/table.py`.

A flag wins over the environment, the environment over the file (`--env-file`, or `.env` of the
project), the file over the default. A name set to nothing means the default. Relative paths start at
the directory of the file, or of the project, and never at the caller's. An unknown `LATTICE_*` name in
the file or a flag is an error, in the environment a warning. Every mistake ends the program with exit
code 78 and one line that names the setting, where it was set, and what to write instead.
"""


def env_example() -> str:
    parts = [ENV_HEAD]
    for setting in SETTINGS:
        comment = textwrap.wrap(f"{setting.doc} ({setting.kind})", COLUMNS - 2, break_on_hyphens=False)
        # The name stands in force: the launcher replaces it when it makes .env.NAME.
        sign = "" if setting.field == "node_name" else "#"
        parts.append("\n".join(f"# {line}" for line in comment))
        parts.append(f"{sign}{setting.name}={setting.default or setting.example}\n")
    return "\n".join(parts)


def reference() -> str:
    return "\n".join([REFERENCE_HEAD, *(_entry(setting) for setting in SETTINGS)])


def _entry(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else "empty"
    facts = [f"- Value: {setting.kind}", f"- Default: {default}", f"- Flag: `{setting.flag}`"]
    if setting.example:
        facts.append(f"- Example: `{setting.example}`")
    if setting.secret:
        facts.append("- Secret: never logged, never shown in an error")
    return f"## {setting.name}\n\n{textwrap.fill(setting.doc, COLUMNS)}\n\n" + "\n".join(facts) + "\n"


FILES = {".env.example": env_example, "docs/reference/settings.md": reference}


def main() -> int:
    stale = [name for name, text in FILES.items() if not _holds(ROOT / name, text())]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{name} does not follow the table of settings: run scripts/settings_docs.py")
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).write_text(FILES[name](), encoding="utf-8")
        print(f"wrote {name}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
