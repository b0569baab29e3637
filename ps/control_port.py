"""The gRPC edge of a shard's control port: decode, call, encode, under one error translator. No decisions."""

import grpc

from protos import pserver_pb2 as pb
from ps.errors import as_status
from ps.host import ShardHost
from ps.transport.rpc import unary


class ControlPort:
    """Methods of `pserver.Shard` on the control port, which stuck data streams must not keep anybody from."""

    def __init__(self, host: ShardHost) -> None:
        self._host = host

    def handlers(self) -> grpc.GenericRpcHandler:
        methods = {
            "Join": unary(self.join, pb.JoinRequest),
            "Describe": unary(self.describe, pb.DescribeRequest),
            "Decide": unary(self.decide, pb.DecideRequest),
            "Snapshot": unary(self.snapshot, pb.SnapshotRequest),
            "Stop": unary(self.stop, pb.StopRequest),
        }
        return grpc.method_handlers_generic_handler("pserver.Shard", methods)

    def join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        with as_status(context):
            return self._host.join(request)
        raise AssertionError("unreachable")

    def describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        with as_status(context):
            return self._host.describe()
        raise AssertionError("unreachable")

    def decide(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideReply:
        with as_status(context):
            self._host.shard().decide(request.version, request.rate_factor)
        return pb.DecideReply()

    def snapshot(self, request: pb.SnapshotRequest, context: grpc.ServicerContext) -> pb.SnapshotReply:
        with as_status(context):
            self._host.shard().cut(request.version)
        return pb.SnapshotReply()

    def stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopReply:
        with as_status(context):
            self._host.request_stop(request.reason)
        return pb.StopReply()
