"""The command `yamarket-chat`, for which the extra `cli` brings typer and rich."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; return its exit status."""
    try:
        from .app import run

        return run()
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.stderr.write(f"Error: the command needs {missing}: pip install 'yamarket-chat[cli]'\n")
        return 1
