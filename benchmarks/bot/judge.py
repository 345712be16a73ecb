"""What a buyer wrote, compared with what the shop has answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.crash.judge import Verdict

from .worker import KILLER, SILENT

COUNTED = ("messages", "answered", "given up", "unanswered", "doubled", "mixed", "disordered")
Row = tuple[int, str, str]  # the id, the sender, the text


def judge(chats: Mapping[tuple[int, int], Sequence[Row]], unknown: int = 0) -> Verdict:
    """Compare. A reply has a kind, the message that it is of, its run, and its number.

    Args:
        chats: The rows of each business and chat, in the Market's order.
        unknown: How many replies have an unknown outcome: so many may be missing.
    """
    figures: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    figures["unknown"] = unknown
    problems: list[str] = []

    def wrong(what: str, about: object) -> None:
        figures[what] += 1
        problems.append(f"{what}: {about}")

    for chat, rows in chats.items():
        written = {number: text for number, sender, text in rows if sender == "CUSTOMER"}
        figures["messages"] += len(written)
        replies: dict[int, list[tuple[str, str, int]]] = {number: [] for number in written}
        order: list[int] = []
        for _, sender, text in rows:
            if sender != "PARTNER":
                continue
            kind, of, run, number = text.split()
            name = int(of)
            if name not in replies:
                wrong("doubled", f"{chat}: {text}, and nobody wrote {name}")
                continue
            replies[name].append((kind, run, int(number)))
            if kind != "now" and (not order or order[-1] != name):
                order.append(name)
        for name, said in written.items():
            some = [reply for reply in replies[name] if reply[0] != "now"]
            if len(replies[name]) - len(some) > 1:
                wrong("doubled", f"{chat} {name}: {replies[name]}")
            if said.startswith(SILENT):
                figures["given up"] += 1
                if some:
                    wrong("doubled", f"{chat} {name}: a dead handler has answered: {some}")
            elif not some:
                wrong("unanswered", f"{chat} {name}: {said!r}")
            elif some[0][0] == "error":
                figures["given up"] += 1
                if len(some) > 1:
                    wrong("doubled", f"{chat} {name}: {some}")
            else:
                figures["answered"] += 1
                if said.startswith(KILLER):
                    wrong("doubled", f"{chat} {name}: a dead handler has answered: {some}")
                if len({run for _, run, _ in some}) > 1 or [
                    number for _, _, number in some
                ] != list(range(1, 1 + (name % 3 or 3))):
                    wrong("mixed", f"{chat} {name}: {some}")
        if order != sorted(order):
            wrong("disordered", f"{chat}: {order}")
    return Verdict(dict(figures), problems)
