"""What may go wrong between the host and a guest."""

from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound, Unsupported


class GuestUnreachable(Broken):
    """The guest, or the VMM it lives in, did not answer in time or hung up."""

    code = "guest_unreachable"


class GuestMisbehaved(Broken):
    """The guest broke the protocol; its connection has been closed."""

    code = "guest_misbehaved"


class GuestRefused(Broken):
    """The guest would not do it; `guest_code` says which of the protocol's error codes it gave."""

    code = "guest_refused"

    def __init__(self, op: str, guest_code: str, message: str) -> None:
        super().__init__(f"the guest refused {op}: {message or guest_code}", op=op, guest_code=guest_code)
        self.op = op
        self.guest_code = guest_code


class GuestVersionUnsupported(Unsupported):
    """The program in the guest speaks another version of the protocol."""

    code = "guest_version_unsupported"


class IdentityNotTaken(Broken):
    """The guest answered `identify`, but is not who it was told to be; it must not run."""

    code = "identity_not_taken"


class ExecInvalid(Invalid):
    """The command can never be run: it is empty, too long, or has characters no process can be given."""

    code = "exec_invalid"
    remedy_default = "change the command"


class NoSuchUser(Invalid):
    """The guest has no user of that name."""

    code = "no_such_user"
    remedy_default = "name a user of the guest, or a number"


class NoSuchDirectory(Invalid):
    """The guest has no such working directory."""

    code = "no_such_directory"
    remedy_default = "name another directory with --cwd"


class ExecOutputTooLong(Exhausted):
    """The process wrote more than a caller may collect; it has been killed."""

    code = "exec_output_too_long"


class StreamsExhausted(Exhausted):
    """Too many requests and execs are open on one guest."""

    code = "guest_streams_exhausted"
    remedy_default = "try again when other commands have ended"


class GuestTooOld(Unsupported):
    """The program in the guest was started by an older ramet and cannot do that."""

    code = "guest_too_old"


class PathInvalid(Invalid):
    """No file can have that path."""

    code = "path_invalid"


class PathNotFound(NotFound):
    """The guest has nothing at that path."""

    code = "path_not_found"


class PathNotDirectory(Invalid):
    """Something in the guest is not a directory and would have to be one."""

    code = "not_a_directory"
    remedy_default = "choose another destination"


class PathIsDirectory(Conflict):
    """A directory in the guest stands where a file is to be written."""

    code = "is_a_directory"


class PathBusy(Conflict):
    """A file of the guest cannot be replaced: it is mounted there, or runs."""

    code = "path_busy"


class GuestReadOnly(Conflict):
    """That file system of the guest cannot be written to."""

    code = "read_only"


class GuestDiskFull(Exhausted):
    """The guest has no room for what is written."""

    code = "guest_disk_full"


class BadArchive(Invalid):
    """It is not a tar archive, it ends too early, or it would write outside its directory."""

    code = "bad_archive"
    remedy_default = "send an uncompressed tar archive, without --sparse"
