"""The command `yamarket-chat`. The extra `cli` installs what it needs."""

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
        if missing not in ("typer", "rich", "charset_normalizer"):
            raise
        sys.stderr.write(
            f"Error: {missing} is not installed; run: pip install 'yamarket-chat[cli]'\n"
        )
        return 1
