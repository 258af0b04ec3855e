"""What acts inside a guest is refused before it begins where no guest runs."""

from ramet.api.ports import FleetPort
from ramet.core.spec import State
from ramet.instance import remedies
from ramet.instance.fleet_types import InstanceView, WrongState, demand_agent


def require_running(fleet: FleetPort, ref: str, what: str) -> InstanceView:
    """Return the running instance `ref`; `what`, such as "commands run", happens in no other.

    Raises:
        InstanceNotFound, InstanceAmbiguous: as they say.
        GuestAgentSkipped: nobody may enter its guest.
        WrongState: it does not run.
    """
    found = fleet.get(ref)
    demand_agent(found.record)
    name, state = found.record.name, found.record.state
    if state is not State.RUNNING:
        raise WrongState(
            f"{name} is {state}, and {what} in running instances only",
            remedy=remedies.to_run(found.record),
            state=state.value,
        )
    return found
