"""A rank's stages in threads of one process: each follows its 1F1B schedule, channels between neighbours hold one message."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ps.errors import Stopped
from workers.batches import MicroBatch
from workers.stages.channel import Channel
from workers.stages.schedule import one_forward_one_backward
from workers.stages.stage import Activations, Gradients, Stage

_CAPACITY = 1
"""Messages; with less room schedules get stuck (docs/stages.md)."""


class Pipeline:
    """Stages 0 … P − 1 of one rank. One thread uses it; `close` it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._threads = ThreadPoolExecutor(len(stages), thread_name_prefix="stage")

    def run(self, step: int, micros: Sequence[MicroBatch]) -> list[tuple[float, float]]:
        """Forward and backward of a step; loss and weight of every micro-batch. Raises what a stage raised, after all have ended."""
        links = _Links(len(self._stages))
        running = [self._threads.submit(self._run_stage, index, step, micros, links) for index in range(len(self._stages))]
        errors = [error for one in running if (error := one.exception())]
        if errors:
            raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
        return running[-1].result()

    def _run_stage(self, index: int, step: int, micros: Sequence[MicroBatch], links: "_Links") -> list[tuple[float, float]]:
        stage, is_last = self._stages[index], index + 1 == len(self._stages)
        losses = []
        stage.begin()
        try:
            for op in one_forward_one_backward(index, len(self._stages), len(micros)):
                micro = micros[op.micro]
                if op.kind == "forward":
                    inputs = links.down[index - 1].take() if index else stage.inputs(step, micro)
                    if is_last:
                        losses.append(stage.forward_to_loss(step, micro, inputs, several=len(micros) > 1))
                    else:
                        links.down[index].put(stage.forward(step, micro, inputs))
                else:
                    gradients = stage.backward(op.micro, None if is_last else links.up[index].take())
                    if index:
                        links.up[index - 1].put(gradients)
        except BaseException as error:
            links.end(f"stage {index} failed: {error}")
            raise
        return losses

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()


class _Links:
    """Channels of one step: link i lies between stages i and i + 1."""

    def __init__(self, num_stages: int) -> None:
        self.down = [Channel[Activations](_CAPACITY) for _ in range(num_stages - 1)]
        self.up = [Channel[Gradients](_CAPACITY) for _ in range(num_stages - 1)]

    def end(self, reason: str) -> None:
        for channel in (*self.down, *self.up):
            channel.end(reason)
