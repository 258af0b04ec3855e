"""What can be wrong with a volume, or with what it is to be made of."""

from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound


class VolumeNotFound(NotFound):
    """No volume has this name, id or beginning of an id."""

    code = "volume_not_found"
    remedy_default = "ramet volume ls"


class VolumeAmbiguous(Conflict):
    """Several volumes' ids begin like this."""

    code = "volume_ambiguous"
    remedy_default = "write more of the id, or the name"


class VolumeNameTaken(Conflict):
    """Another volume has this name or this id, or is being made under it."""

    code = "volume_name_taken"


class VolumeInUse(Conflict):
    """An instance, or a snapshot of one, has the volume in a way that forbids this."""

    code = "volume_in_use"


class VolumeUnclean(Conflict):
    """Who wrote to the volume was cut off, and its journal has to be played back before it is only read."""

    code = "volume_unclean"


class VolumeQuotaReached(Exhausted):
    """All volumes together would be larger than they may be."""

    code = "volume_quota_reached"
    remedy_default = "delete a volume, make a smaller one, or raise limits.max_total_volume_storage"


class VolumeUnwritable(Broken):
    """A volume cannot be made or removed: the disk is full, or failing."""

    code = "volume_unwritable"
    remedy_default = "see that the file system of the data folder has space and can be written"


class VolumeBroken(Broken):
    """The files of a volume are damaged, or one is missing."""

    code = "volume_broken"


class ArchiveInvalid(Invalid):
    """What a volume was to be filled from is no archive that may be unpacked."""

    code = "volume_archive_invalid"
    remedy_default = "send a tar archive, plain or by gzip or zstd, of files with relative names"


class ArchiveTooLarge(Invalid):
    """What a volume was to be filled from does not fit into it."""

    code = "volume_archive_too_large"
    remedy_default = "make the volume larger, or the archive smaller"
