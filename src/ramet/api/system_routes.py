"""What the server says about itself: health, capabilities, and its own description."""

import json

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse, JSONResponse, Response

from ramet.api import page
from ramet.api.facts import HostFacts
from ramet.telemetry import metrics
from ramet.wire_api import system as wire
from ramet.wire_api.instances import API_VERSION

FEATURES = ("instances", "images", "volumes", "exec", "logs")


def router(app: FastAPI, facts: HostFacts) -> APIRouter:
    """Return the routes about the server itself."""
    routes = APIRouter(tags=["system"])
    capabilities = _capabilities(facts)

    @routes.get("/health")
    async def health() -> wire.Health:
        return wire.Health("ok")

    @routes.get("/capabilities")
    async def get_capabilities() -> wire.Capabilities:
        return capabilities

    @routes.get("/metrics", include_in_schema=False)
    async def get_metrics() -> Response:
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)

    @routes.get("/spec.json", include_in_schema=False)
    async def spec_json() -> Response:
        return JSONResponse(app.openapi())

    @routes.get("/spec.yaml", include_in_schema=False)
    async def spec_yaml() -> Response:
        # Every JSON document is a YAML document.
        return Response(json.dumps(app.openapi(), indent=2), media_type="application/yaml")

    @routes.get("/swagger", include_in_schema=False)
    async def swagger() -> Response:
        return HTMLResponse(page.render(app.openapi()))

    return routes


def _capabilities(facts: HostFacts) -> wire.Capabilities:
    runtimes = tuple(
        wire.Runtime(runtime.name, runtime.is_available, runtime.features)
        for runtime in sorted(facts.runtimes, key=lambda runtime: runtime.name)
    )
    is_available = any(
        runtime.is_available for runtime in facts.runtimes if runtime.name == facts.default_hypervisor
    )
    return wire.Capabilities(
        server=wire.ServerVersion(facts.version, API_VERSION),
        host=wire.HostKind("linux", facts.arch),
        default_runtime=wire.DefaultRuntime(facts.default_hypervisor, is_available),
        runtimes=runtimes,
        network=wire.NetworkModel("bridge", False, facts.gateway, facts.subnet),
        images=wire.ImagePlatforms((facts.platform,), facts.platform),
        features=FEATURES,
    )
