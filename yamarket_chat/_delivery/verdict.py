"""The verdict on an attempt. Only `judge` decides it, and only from what the attempt saw."""

from __future__ import annotations

import enum

import msgspec

from .._http.answers import Answer, NoAnswer, decode_envelope


class Verdict(enum.Enum):
    """What an attempt came to."""

    DONE = "carried out"
    REFUSED = "refused for good"
    NOT_CARRIED_OUT = "refused for now, surely not carried out"
    UNKNOWN = "nothing tells whether it was carried out"


_STATUSES = {
    400: Verdict.REFUSED,  # wrong data, as documented; a proxy that says so has sent nothing on
    401: Verdict.REFUSED,  # a wrong key, as documented
    403: Verdict.REFUSED,  # no access, as documented; a firewall that says so has sent nothing on
    404: Verdict.REFUSED,  # not found, as documented; a wrong path likewise
    405: Verdict.REFUSED,  # a wrong method, as documented
    407: Verdict.REFUSED,  # a proxy wants a password: nothing was sent on
    408: Verdict.UNKNOWN,  # the connection broke, perhaps after the request was carried out
    415: Verdict.REFUSED,  # a wrong content type, as documented
    420: Verdict.NOT_CARRIED_OUT,  # a rate limit, as documented
    423: Verdict.REFUSED,  # the business is being migrated, as documented
    429: Verdict.NOT_CARRIED_OUT,  # a balancer's rate limit: it has sent nothing on
    499: Verdict.UNKNOWN,  # the connection broke before the processing ended, as documented
}


def judge(seen: Answer | NoAnswer) -> Verdict:
    """Return the verdict on an attempt from what was seen of it.

    ==============================================  ======================
    seen                                            verdict
    ==============================================  ======================
    200 in the API's form, status OK                DONE
    503 in the API's form                           NOT_CARRIED_OUT
    a 4xx of `_STATUSES`, whatever its body         as it says
    any other 4xx in the API's form                 REFUSED; in another form UNKNOWN
    no connection was made                          NOT_CARRIED_OUT
    an invalid certificate; a file that cannot be
    read to its end                                 REFUSED
    anything else                                   UNKNOWN
    ==============================================  ======================
    """
    if isinstance(seen, NoAnswer):
        if seen.final:
            return Verdict.REFUSED
        return Verdict.UNKNOWN if seen.sent else Verdict.NOT_CARRIED_OUT
    if seen.status == 200:
        return Verdict.DONE if is_done(seen) else Verdict.UNKNOWN
    if seen.status in _STATUSES:
        return _STATUSES[seen.status]
    if seen.decoded is None:
        return Verdict.UNKNOWN
    if seen.status == 503:
        return Verdict.NOT_CARRIED_OUT
    return Verdict.REFUSED if 400 <= seen.status < 500 else Verdict.UNKNOWN


def is_done(answer: Answer) -> bool:
    """Whether `judge` returns DONE. Comparing with a member of an Enum would cost 1 % of a send."""
    decoded = answer.decoded
    if answer.status != 200 or decoded is None:
        return False
    if isinstance(decoded, msgspec.Struct):
        return decoded.status == "OK"  # type: ignore[attr-defined, no-any-return]
    # Methods of `session.request` are decoded without a form.
    return not isinstance(decoded, dict) or decoded.get("status", "OK") == "OK"


def is_unknown_form_of_ok(seen: Answer | NoAnswer) -> bool:
    """Whether the Market answered OK to a read in an unknown form. A retry would change nothing."""
    if not isinstance(seen, Answer) or seen.status != 200 or seen.decoded or seen.fault:
        return False
    envelope = decode_envelope(seen.body)
    return envelope is not None and envelope.status == "OK"
