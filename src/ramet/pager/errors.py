"""What may go wrong between the daemon and the pager."""

from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound


class PagerFailed(Broken):
    """The pager did not do what it is for; the text says what happened."""

    code = "pager_failed"


class PagerUnreachable(PagerFailed):
    """Nobody answered at the pager's socket, or not in time."""

    code = "pager_unreachable"


class PagerRequestInvalid(Invalid):
    """The pager can never do that: an id, a size or a path is not acceptable."""

    code = "pager_request_invalid"
    remedy_default = "change what is named"


class BaseUnusable(Invalid):
    """The file that should be served from cannot be opened, or is no regular file."""

    code = "pager_base_unusable"
    remedy_default = "see that the file is there and can be read"


class OverlayUnusable(Invalid):
    """A file that should be an overlay page cannot be read, or is not one page long."""

    code = "pager_overlay_unusable"
    remedy_default = "see that the file is there, can be read and holds 4096 bytes"


class NotServing(Conflict):
    """The session's VMM has not handed its memory over yet."""

    code = "pager_session_not_serving"


class CompletionFailed(Broken):
    """Not all of a session's memory can be filled; the session goes on serving."""

    code = "pager_completion_failed"


class SessionExists(Conflict):
    """The pager has a session of that id; close it first."""

    code = "pager_session_exists"


class NoSuchSession(NotFound):
    """The pager has no session of that id; it may have ended with its VMM."""

    code = "pager_session_not_found"


class PagerDraining(Conflict):
    """The pager takes no new sessions and exits with its last one."""

    code = "pager_draining"


class SessionsExhausted(Exhausted):
    """The pager has as many sessions as it serves at most."""

    code = "pager_sessions_exhausted"
