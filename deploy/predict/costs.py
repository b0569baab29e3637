"""What handling bytes and frames costs in processor time, and how many bytes a wire format makes. Pure.

The defaults were measured on one core of a 2026 server under load (`make bench-codecs`, docs/predict.md); a run of one's own replaces them.
"""

from dataclasses import dataclass, replace

NS = 1e-9
ENCODE_BYTE_S = {"fp32": 0.0, "bf16": 0.13 * NS, "fp16": 0.15 * NS, "int8": 7.3 * NS, "topk": 2.7 * NS}
"""Seconds for a byte of exact values, error feedback included, by format."""
DECODE_BYTE_S = {"fp32": 0.0, "bf16": 0.08 * NS, "fp16": 0.5 * NS, "int8": 0.26 * NS, "topk": 0.45 * NS}

VIRTUAL_LINK_BYTE_S = 4 * NS
"""`kernel_byte_s` of links between virtual hosts (docs/predict.md)."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one thread on an idle core. `_frame_s` for a frame, `_byte_s` for a byte of payload as it travels unless said otherwise."""

    step_s: float = 0.5e-3
    """Of a worker for every step: the loop's bookkeeping."""
    copy_byte_s: float = 0.15 * NS
    """Worker: gradients gathered, exact bytes."""
    install_byte_s: float = 0.0
    """Worker: new parameters copied to where the model computes, exact bytes; nothing where it computes with what has landed."""
    push_frame_s: float = 100e-6
    """Worker: one frame encoded and handed to the transport."""
    push_byte_s: float = 0.7 * NS
    take_frame_s: float = 80e-6
    """Server: one frame received and checked, its receipt."""
    take_byte_s: float = 0.7 * NS
    sum_byte_s: float = 0.3 * NS
    """Server: one contribution added, exact bytes."""
    apply_byte_s: float = 0.5 * NS
    """Server: the update, exact bytes of parameters."""
    work_frame_s: float = 0.0
    """Server: sums and update of a frame of all ranks, beside what its bytes cost."""
    answer_frame_s: float = 80e-6
    """Server: one answer sent."""
    answer_byte_s: float = 0.4 * NS
    land_frame_s: float = 100e-6
    """Worker: one answer received, checked and put in its place."""
    land_byte_s: float = 0.7 * NS
    worker_step_s: float = 0.0
    """Worker: what its other threads do in a step, which nobody waits for; others want the processor meanwhile."""
    server_step_s: float = 0.0
    """Server: the event loop's, in every step."""
    shared_byte_s: float = 0.25 * NS
    """Worker, in place of `push_byte_s` and `land_byte_s` where payload stays in shared memory: digests, or copies."""
    wire_overhead: float = 1.045
    """Bytes on the wire for a byte of payload: gRPC, TCP and IP headers."""
    kernel_byte_s: float = 0.0
    """Receiving host: what the kernel does for a byte on the wire beside all processes."""
    unfairness: float = 0.0
    """Of connections that share a link: standard deviation of the logarithm of their shares of it, which change from step to step."""

    def scaled(self, factor: float) -> "Costs":
        """On processors that take `factor` times as long."""
        seconds = {name: value * factor for name, value in vars(self).items() if name.endswith("_s")}
        return replace(self, **seconds)
