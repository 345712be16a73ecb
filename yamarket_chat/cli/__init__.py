"""The command `yamarket-chat`. It needs typer and rich, which the extra `cli` installs."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command and return its exit status."""
    from . import signals

    try:
        with signals.handled():
            from .app import run

            return run()
    except signals.Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"Error: {missing} is not installed; run: pip install 'yamarket-chat[cli]'\n"
        )
        return 1
