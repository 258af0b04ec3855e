"""Every way in which an image can be refused, each with a stable code.

Whoever made the image caused most of these, so they are `Invalid`: asking again with the same bytes
fails again. The others say that a registry or this host could not do its part.
"""

import errno
from typing import Final

from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class InvalidReference(Invalid):
    """The text does not name an image."""

    code = "invalid_reference"
    remedy_default = "write it like debian:12 or registry.example/team/app@sha256:<64 hex digits>"


class ImageNotFound(NotFound):
    """No image in the catalog has this name or digest."""

    code = "image_not_found"


class ImageInUse(Conflict):
    """An instance still runs from this image."""

    code = "image_in_use"


class AmbiguousDigest(Invalid):
    """A shortened digest begins more than one image's digest."""

    code = "ambiguous_digest"
    remedy_default = "write more of it"


class AmbiguousImage(Invalid):
    """The folder or archive holds several images and the request names none of them."""

    code = "ambiguous_image"


class ImageSourceNotFound(NotFound):
    """There is nothing at the path an image was to be read from."""

    code = "image_source_not_found"
    remedy_default = "give a path on the server's host"


class NotAnImage(Invalid):
    """What lies at the path is neither an OCI layout nor a docker archive."""

    code = "not_an_image"
    remedy_default = "name an OCI layout, an OCI archive or the output of docker save"


class InvalidManifest(Invalid):
    """An index, manifest or config is not the JSON its specification asks for."""

    code = "invalid_manifest"
    remedy_default = "make the image anew; whoever made it has a bug"


class UnsupportedMediaType(Invalid):
    """A manifest or layer is of a kind we do not read."""

    code = "unsupported_media_type"
    remedy_default = "make the image in OCI or Docker schema 2 form"


class NoMatchingPlatform(Invalid):
    """The image exists, but not for this host's operating system and architecture."""

    code = "no_matching_platform"
    remedy_default = "choose an image that is built for this platform"


class DigestMismatch(Invalid):
    """Bytes do not have the digest or the size they were promised to have."""

    code = "digest_mismatch"
    remedy_default = "fetch or make the source again; something on the way may have changed it"


class BlobMissing(Invalid):
    """A manifest names a blob that its source does not hold."""

    code = "blob_missing"
    remedy_default = "make the source whole, or push the image again"


class LayerCorrupt(Invalid):
    """A layer is not a whole, well-formed tar stream, or contradicts the layers below it."""

    code = "layer_corrupt"
    remedy_default = "make the image anew"


class UnsafePath(Invalid):
    """A layer names a path that no honest image contains, such as one with `..`."""

    code = "unsafe_path"
    remedy_default = "do not use this image"


class ImageTooLarge(Invalid):
    """An image exceeds one of `ImageLimits`."""

    code = "image_too_large"
    remedy_default = "make the image smaller"


class StorageFull(Exhausted):
    """The disk that holds the images is full."""

    code = "storage_full"


class ImageQuotaReached(Exhausted):
    """Images and their layers would take more of the disk than they may."""

    code = "image_quota_reached"


class InvalidPlatform(Invalid):
    """The text is no platform that images are made for."""

    code = "invalid_platform"
    remedy_default = "write it like linux/amd64"


class RegistryDenied(Invalid):
    """The registry wants other credentials, or hides what it does not show to these."""

    code = "registry_denied"


class NotInRegistry(ImageNotFound):
    """The registry has no such repository, tag or digest."""

    code = "image_not_in_registry"


class RegistryBusy(Exhausted):
    """The registry allows no more requests for now; `retry_after_s` says for how long."""

    code = "registry_rate_limited"


class RegistryUnreachable(Broken):
    """The registry cannot be connected to, or breaks off again and again."""

    code = "registry_unreachable"


class RegistryStalled(Broken):
    """The registry is connected and sends nothing, or next to nothing."""

    code = "registry_stalled"


class RegistryAnswerInvalid(Broken):
    """The registry answered with what its protocol does not allow."""

    code = "registry_answer_invalid"


class CredentialsUnreadable(Broken):
    """Docker's config.json or a credential helper could not be used."""

    code = "credentials_unreadable"


class PullInProgress(Conflict):
    """The same image is being pulled with other credentials."""

    code = "pull_in_progress"


class TooManyPulls(Exhausted):
    """As many images are being pulled as we keep track of."""

    code = "too_many_pulls"


class PullInterrupted(Conflict):
    """The daemon ended during a pull whose credentials it did not keep."""

    code = "pull_interrupted"


class PullCancelled(Conflict):
    """The image was removed while it was being pulled."""

    code = "pull_cancelled"
    remedy_default = "pull it again"


class ImageNotReady(Conflict):
    """The image is still being pulled."""

    code = "image_not_ready"


class ConversionFailed(Broken):
    """This host could not turn the layers into a root disk."""

    code = "conversion_failed"


class CatalogCorrupt(Broken):
    """A file of the catalog on disk is not what we wrote."""

    code = "catalog_corrupt"


def storage_error(error: OSError) -> StorageFull | ConversionFailed:
    """Return what a failure to read or write below the folder of the images means to a user."""
    if error.errno in _FULL:
        return StorageFull(
            "The disk that holds the images is full",
            remedy="remove images with: ramet image rm NAME, or make room otherwise",
        )
    return ConversionFailed(f"The folder of the images cannot be used: {error.strerror or error}")
