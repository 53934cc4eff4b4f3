"""The executors of a cluster: found, or started."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.exceptions import RayActorError

from kaas_client.ray import reports, spares, table
from kaas_client.ray.executor import CONTROL, LANE_THREADS, QUICK_THREADS, THREADS, WAITING, WAITING_THREADS, ExecutorActor
from kaas_client.ray.policies import LANES, QUICK
from kaas_client.ray.reports import REPORT_S
from kaas_client.ray.table import NAMESPACE
from kaas_core.errors import InvalidArgumentError, UnavailableError
from kaas_core.violations import shown

EMULATOR_RESOURCE = "kaas_emulator"
"""Of a node that is to have emulated devices: how many."""
_DEVICES = {"gpu": "cuda:0", "emulator": "emulator"}
"""By kind, what an executor opens: of the GPUs it sees only its own."""
_DOWN = frozenset({ActorTableData.ActorState.RESTARTING, ActorTableData.ActorState.DEAD})


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """An executor, by name."""

    name: str
    """``gpu:0``, ``emulator:3``."""
    actor: Any
    """Its handle."""

    def is_down(self) -> bool:
        """Return whether it has ended, and is not there again yet, as far as this process knows. It takes no time."""
        return self.actor._get_local_state() in _DOWN


def start(kind: str, count: int | None) -> list[ExecutorRef]:
    """Return ``count`` executors of a kind, those that are there and new ones; None: one for each device of the cluster."""
    if count is None:
        count = int(ray.cluster_resources().get("GPU" if kind == "gpu" else EMULATOR_RESOURCE, 0)) or 1
    needs: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1}
    if kind == "emulator":
        # Where no node says how many emulated devices it is to have, each takes the CPU that it runs on.
        needs = {"num_cpus": 0, "resources": {EMULATOR_RESOURCE: 1}} if _may_have(EMULATOR_RESOURCE) else {"num_cpus": 1}
    actors = actor_class(ExecutorActor)
    executors = []
    for index in range(count):
        name = f"{kind}:{index}"
        actor = actors.options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            **needs,
        ).remote(device_of(name))
        executors.append(ExecutorRef(name, actor))
    return executors


def device_of(executor: str) -> str:
    """Return what an executor opens, by its name."""
    return _DEVICES[executor.partition(":")[0]]


def wait_for_one(executors: list[ExecutorRef]) -> None:
    """Return when one has come up, for as long as that takes: nodes may have to join. Raises as Ray does where none can."""
    awaited = [executor.actor.device.remote() for executor in executors]
    while awaited:
        (first,), awaited = ray.wait(awaited, num_returns=1)
        try:
            ray.get(first)
        except RayActorError:
            if not awaited:
                raise
        else:
            return


def find() -> list[ExecutorRef]:
    """Return the executors that there are, in order; of GPUs where there are some. Raises ``UnavailableError`` where none is."""
    names = [name for name in table.actors() if not spares.is_spare(name)]
    for kind in _DEVICES:
        found = sorted((name for name in names if name.startswith(f"{kind}:")), key=lambda name: int(name.rpartition(":")[2]))
        if found:
            return [ExecutorRef(name, ray.get_actor(name, NAMESPACE)) for name in found]
    raise UnavailableError("the cluster has no executors: call kaas_client.ray.init()")


def kind_of_device(device: str) -> str:
    """Return the kind of executor that ``auto`` or ``emulator`` stands for. Raises ``InvalidArgumentError``."""
    if device not in ("auto", "emulator"):
        raise InvalidArgumentError(f"there is no device {shown(device)} for executors: auto and emulator are possible")
    return "gpu" if device == "auto" and _may_have("GPU") else "emulator"


def _may_have(resource: str) -> bool:
    """Return whether the cluster has a resource, or Ray's autoscaler may add nodes that have it, where it says so."""
    possible = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return bool(ray.cluster_resources().get(resource) or possible.get(resource))


def stop(executors: list[ExecutorRef]) -> None:
    """End executors, with what they run."""
    for executor in executors:
        ray.kill(executor.actor)
    time.sleep(REPORT_S)  # one may be about to write a report
    for executor in executors:
        reports.forget(executor.name)


def actor_class(kind: type[ExecutorActor]) -> Any:
    """Return a kind of executor as a class of actors: they are started again whenever they end, and their calls sent there."""
    remote: Any = ray.remote  # its types lack some options
    groups = {WAITING: WAITING_THREADS, CONTROL: 2, QUICK: QUICK_THREADS, **dict.fromkeys(LANES, LANE_THREADS)}
    return remote(max_restarts=-1, max_task_retries=-1, max_concurrency=THREADS, concurrency_groups=groups)(kind)
