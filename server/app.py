"""The only wiring: settings in, a running server out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import ChainMap
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from guard.address import is_local
from guard.bundle import BundleKey
from guard.bundle.manifest import Task
from guard.engine.memory import available_memory
from guard.engine.settings import EngineSettings
from guard.errors import GuardError
from guard.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc, moderation_pb2, moderation_pb2_grpc
from server import channel, log, start
from server.auth.authenticator import Authenticator
from server.auth.permissions import EXT_PROC
from server.auth.quota import Quotas
from server.drain import Stoppable, StopRequest, drain
from server.errors import SettingsError
from server.ext_proc.service import ExternalProcessor, add_to
from server.generation import GenerationService
from server.health import SERVICE as HEALTH
from server.health import Health
from server.interceptors.access_log import AccessLogInterceptor
from server.interceptors.admission import AdmissionInterceptor
from server.interceptors.auth import AuthInterceptor
from server.interceptors.deadline import DeadlineInterceptor
from server.interceptors.decode import DecodeInterceptor
from server.interceptors.errors import ErrorInterceptor
from server.interceptors.telemetry import TelemetryInterceptor
from server.limits import Gate, Limits
from server.loading import prepared
from server.memory import MemoryPlan
from server.models import ModelService
from server.moderation import ModerationService
from server.openai_http.assembly import http_server
from server.policies import load_policies
from server.registry import Loader, Model, Registry, load_model
from server.settings import Settings
from server.telemetry.telemetry import Telemetry
from server.tickets import Submitter
from server.tls import server_credentials
from server.watchdog import DeadMan, Watchdog, leave

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from server.telemetry.tracing import Tracing

MODERATION = moderation_pb2.DESCRIPTOR.services_by_name["ModerationService"].full_name
GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
#: What the small guard that goes before the other is called here.
SCREEN = "screen"
#: What requests to the other model have to finish when an engine hangs.
BROKEN_GRACE_S = 5.0


class App:
    """One server and its parts. ``start``, then ``load``; ``stop`` ends it.

    With ``listening`` false it has no socket for gRPC: somebody else takes the calls (``server.embedded``).

    Raises SettingsError for its files: policies, callers, certificates, audit log.
    """

    def __init__(
        self,
        settings: Settings,
        loader: Loader = load_model,
        memory: MemoryPlan | None = None,
        tracing: Tracing | None = None,
        listening: bool = True,
    ) -> None:
        """``tracing``: instead of that of the settings."""
        self.settings = settings
        self.policies = load_policies(settings.policies)
        self.authenticator: Authenticator | None = None
        if settings.callers is not None:
            self.authenticator = Authenticator(settings.callers, self.policies.policies)
            # The file of callers is read again when it changes, so its part of the map is the live one.
            own = ChainMap(self.authenticator.policies, dict(self.policies.callers))
            self.policies = replace(self.policies, callers=own)
        self._credentials = None if settings.tls is None else server_credentials(settings.tls)
        self._watching: asyncio.Task[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        engine = settings.engine if memory is None else memory.engine
        self.registry = Registry(engine, prepared(self._timed(loader), self.policies, settings))
        self.registry.screen = SCREEN if settings.screen is not None else ""
        self.registry.on_change = self._models_changed
        if memory is not None:
            self.registry.before_load = memory.check_with
        self.health = Health(["", MODERATION, GENERATION, MODELS])
        self.gates = {
            service: Gate(Limits(settings.max_requests, settings.max_queued_bytes))
            for service in (MODERATION, GENERATION)
        }
        if settings.ext_proc:
            self.gates[EXT_PROC] = Gate(Limits(settings.max_requests, settings.max_queued_bytes))
        self.address = settings.address
        self.telemetry = Telemetry(settings.telemetry, settings.audit, self.gates, tracing)
        self._submitter = Submitter()
        self._loaded = False
        self.interceptors = self._interceptors()
        self.moderation = ModerationService(self.registry, self._submitter, self.policies, settings)
        self.generation = GenerationService(self.registry, self._submitter, self.policies, settings)
        self.models = ModelService(self.registry, settings)
        served = (self.moderation, self.generation, self.models)
        self.http = http_server(settings.http, self.interceptors, served, self.health, self.telemetry, self.policies)
        self._server = self._grpc_server() if listening else None

    async def start(self) -> None:
        """Listen. Health answers from now on; the models come with ``load``. Raises SettingsError."""
        if self._server is not None:
            self._bind(self._server)
        self.telemetry.start()
        if self.http is not None:
            await self.http.start()
        if self._server is not None:
            await self._server.start()
        self._watchdog = asyncio.create_task(Watchdog(self.registry, self.settings.step_timeout_s).run())
        if self.authenticator is not None:
            self._watching = asyncio.create_task(self.authenticator.watch())
        tls, callers = self._credentials is not None, self.authenticator is not None
        addresses = [] if self._server is None else [self.address]
        for address in addresses:
            log.event(logging.INFO, "listening", address=address, tls=tls, callers_known=callers)
        addresses += [] if self.http is None else [self.http.address]
        for address in addresses:
            if callers and not tls and not is_local(address):
                log.event(logging.WARNING, "credentials_unencrypted", address=address)

    async def load(self) -> None:
        """Load the models of the settings, then serve. Raises BundleError and what else loading raises."""
        loads = []
        if self.settings.guard is not None:
            loads.append(self.registry.load(self.settings.guard, "guard"))
        if self.settings.screen is not None:
            loads.append(self.registry.load(self.settings.screen, "guard", SCREEN))
        if self.settings.instruct is not None:
            loads.append(self.registry.load(self.settings.instruct, "instruct"))
        await asyncio.gather(*loads)
        self._loaded = True
        self._update_health()
        log.event(logging.INFO, "ready", address=self.address, models=[entry.name for entry in self.registry.entries()])

    @property
    def broken(self) -> bool:
        """Whether an engine hangs, or died too often."""
        return self._watchdog is not None and self._watchdog.done() and not self._watchdog.cancelled()

    async def break_down(self) -> None:
        """Wait until it is broken."""
        if self._watchdog is not None:
            await asyncio.wait({self._watchdog})

    async def stop(self, request: StopRequest) -> None:
        """Drain and free everything. Whoever is still served when it is broken has a few seconds at most."""
        grace_s = min(self.settings.grace_s, BROKEN_GRACE_S) if self.broken else self.settings.grace_s
        servers: list[Stoppable] = [server for server in (self._server, self.http) if server is not None]
        await drain(servers, self.health, request, self.settings.drain_delay_s, grace_s)
        if self._watchdog is not None and not self.broken:
            self._watchdog.cancel()
        await self.registry.close()
        self._submitter.close()
        await self.telemetry.stop()
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        log.event(logging.INFO, "stopped")

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        settings = self.settings
        auth = [] if self.authenticator is None else [AuthInterceptor(self.authenticator, settings.share_caches)]
        return [
            AccessLogInterceptor(settings.access_log),
            TelemetryInterceptor(self.telemetry),
            ErrorInterceptor(),
            DeadlineInterceptor(settings.default_deadline_s, settings.max_deadline_s),
            *auth,
            AdmissionInterceptor(self.gates, Quotas()),
            DecodeInterceptor(),
        ]

    def _grpc_server(self) -> grpc.aio.Server:
        settings = self.settings
        server = grpc.aio.server(
            interceptors=self.interceptors,
            options=channel.options(settings.max_message_bytes, settings.max_connection_age_s),
        )
        moderation_pb2_grpc.add_ModerationServiceServicer_to_server(self.moderation, server)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self.generation, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self.models, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        if settings.ext_proc:
            add_to(server, ExternalProcessor(self.registry, self._submitter, self.policies, settings))
        if settings.reflection:
            services = (MODERATION, GENERATION, MODELS, HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(services, server)
        return server

    def _bind(self, server: grpc.aio.Server) -> None:
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self.address)
            else:
                port = server.add_secure_port(self.address, self._credentials)
        except RuntimeError:
            problem = "cannot listen there: it is in use, or not an address of this machine"
            raise SettingsError("address", problem) from None
        if not self.address.startswith("unix"):
            self.address = f"{self.address.rpartition(':')[0]}:{port}"

    def _timed(self, loader: Loader) -> Loader:
        """``loader``, whose times are a metric."""

        def load(directory: Path, task: Task, settings: EngineSettings) -> Model:
            began = time.monotonic()
            model = loader(directory, task, settings)
            self.telemetry.loaded(model.bundle.digest, time.monotonic() - began)
            return model

        return load

    def _models_changed(self) -> None:
        self.telemetry.models_changed(self.registry.entries())
        self._update_health()

    def _update_health(self) -> None:
        self.health.set(MODERATION, self.registry.serves("guard"))
        self.health.set(GENERATION, self.registry.serves("instruct"))
        self.health.set(MODELS, True)
        self.health.set("", self._loaded and self.registry.healthy)


async def serve(settings: Settings, loader: Loader = load_model, memory: MemoryPlan | None = None) -> int:
    """Serve until told to stop; returns the exit status: 0, or 1 when a model did not load or an engine is broken.

    Raises SettingsError when it cannot listen, or for its policies.
    """
    stop, dead_man = StopRequest(), DeadMan(settings.step_timeout_s)
    stop.install()
    app = App(settings, loader, memory)
    await app.start()
    feeding = asyncio.create_task(dead_man.feed())
    loading = asyncio.create_task(app.load())
    stopping = asyncio.create_task(stop.wait())
    breaking = asyncio.create_task(app.break_down())
    failed = False
    await asyncio.wait({loading, stopping, breaking}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and (error := loading.exception()) is not None:
        if isinstance(error, GuardError):
            log.event(logging.ERROR, "load_failed", message=str(error))
        else:
            log.event(logging.ERROR, "load_failed", error=error)
        failed = True
        stop.ask(patient=False)
    await asyncio.wait({breaking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if app.broken:
        stop.ask(patient=False)
    feeding.cancel()
    dead_man.leave_within(BROKEN_GRACE_S * 2 if app.broken else settings.longest_stop_s)
    await app.stop(stop)
    breaking.cancel()
    if not loading.done():
        await asyncio.wait({loading})
    return 1 if failed or app.broken else 0


def run(settings: Settings) -> int:
    """``serve`` in a process of its own, with logs as JSON lines on standard error.

    Raises MemoryPlanError, with the arithmetic, when the memory that is there cannot hold the models.
    """
    loader, memory = begin(settings)
    return leave(asyncio.run(serve(settings, loader, memory)))


def begin(settings: Settings) -> tuple[Loader, MemoryPlan]:
    """What a process does before it makes an App: all of ``server.start``, then the memory plan. Raises as ``run``."""
    start.begin(settings)
    memory = MemoryPlan(settings, available_memory())
    log.event(logging.INFO, "memory_plan", bytes=memory.plan.needed, limit=memory.limit, sum=memory.plan.arithmetic())
    key = None if settings.bundle_key is None else BundleKey.read(settings.bundle_key, "bundle_key")
    return partial(load_model, key=key), memory
