"""What a job keeps of the request that it came from, so that another node can do what was asked for.

Invariant: the session's own UUID is not among it. A job that is taken over goes through all checks again, for who asked
then and as they are now: what they may not do any more, or whose session has ended, is refused. Of who signed the
request, only the account is looked at again: the key was good when it was used.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from caelum.gateway.portal import Request
from caelum.gateway.reading import api_parameters, typed
from caelum.kernel.database import utcnow

if TYPE_CHECKING:
    from caelum.kernel.jobs import Job
    from caelum.kernel.message import ApiMeta


class _Kept(msgspec.Struct, rename="camel", frozen=True):
    """`values` are the parameters by their wire names; `seconds` is the time-out, from the job's creation on."""

    values: dict[str, Any]
    seconds: float


def keep(request: Request) -> str:
    """A request as it is kept with its job."""
    wire = {one.name: one.wire for one in api_parameters(request.meta).values()}
    values = {wire[name]: value for name, value in request.values.items()}
    return msgspec.json.encode(_Kept(values, request.seconds)).decode()


def restored(meta: ApiMeta, job: Job, kept: str) -> Request | None:
    """The request of a job that is taken over, with the time that is left; None when there is none. Raises MsgspecError
    or Refusal when it is not readable for this version."""
    found = msgspec.json.decode(kept, type=_Kept)
    # A clock that was set back must not give it more time.
    passed = max(timedelta(), utcnow() - job.create_date)
    left = found.seconds - passed.total_seconds()
    if left <= 0:
        return None
    return Request(meta=meta, values=typed(meta, found.values), actor=job.actor, job_uuid=job.uuid, timeout=left)
