"""A client of OCI registries: `Registries` is the door."""

from ramet.images.registry.client import Registries, Repository
from ramet.images.registry.config import Credentials, RegistryConfig

__all__ = ("Credentials", "Registries", "RegistryConfig", "Repository")
