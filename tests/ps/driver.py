"""The driver's end of Control over real gRPC, without the rest of a driver."""

from protos import pserver_pb2 as pb
from ps.certificates import Authority
from ps.config import Timeouts
from ps.control import Control, Epoch, ServerAddress
from ps.control_client import ControlClient
from ps.control_service import ControlServicer
from ps.credentials import Credentials, token_of
from ps.roles import DRIVER, Role
from ps.security import RunGuard
from ps.transport.rpc import Peer, bind, new_server
from tests.ps.cluster import TOKEN

TIMEOUTS = Timeouts(connect_s=5, control_s=5)


class Driver:
    """A driver of two workers and one server that notes what it is told."""

    def __init__(self, run_id: str = "run", generation: int = 3, authority: Authority | None = None, num_stages: int = 1) -> None:
        self.run_id = run_id
        self.control = Control(num_workers=2, num_servers=1, num_stages=num_stages)
        self.control.register("server", 0, ServerAddress(0, "data:1", "control:2"))
        self.epochs: list[Epoch] = []
        self.rows: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.ends_at = 8
        self.servicer = ControlServicer(
            self.control,
            generation,
            on_epoch=self.decide,
            on_rows=lambda sender, rows: self.rows.extend(rows),
            on_step=lambda rank, step: self.steps.append((rank, step)),
        )
        self.guard = RunGuard(run_id, None if authority else TOKEN)
        self.server = new_server("driver", self.guard, num_roles=1)
        self.server.add_generic_rpc_handlers((self.servicer.handlers(),))
        self.port = bind(self.server, "127.0.0.1", 0, authority.issue(DRIVER) if authority else None)
        self.server.start()
        self.clients: list[ControlClient] = []

    def decide(self, epoch: Epoch) -> bool:
        self.epochs.append(epoch)
        return epoch.version >= self.ends_at

    def peer(self, role: Role) -> Peer:
        return Peer(DRIVER, f"127.0.0.1:{self.port}", Credentials(run_id=self.run_id, token=token_of(TOKEN, role)), TIMEOUTS)

    def client(self, index: int, role: str = "worker") -> ControlClient:
        peer = self.peer(Role("member" if role == "worker" else "server", index))
        client = ControlClient(peer, role, index)  # type: ignore[arg-type]
        self.clients.append(client)
        client.register(pb.Environment(), "data:1", "control:2")
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.servicer.stop()
        self.server.stop(0).wait()
