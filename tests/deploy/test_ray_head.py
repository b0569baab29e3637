import socket
from contextlib import closing

import pytest

from deploy.launch.ray_head import LOST_AFTER_S, RayHead
from ps.errors import HeadLost
from tests.ports import free_port
from tests.waiting import until


def test_a_head_that_is_back_in_time_is_no_loss_and_one_that_is_not_is_named_with_the_remedy() -> None:
    now = [0.0]
    listener = socket.create_server(("127.0.0.1", port := free_port()))
    address = f"127.0.0.1:{port}"
    with closing(RayHead(address, clock=lambda: now[0])) as head:
        assert head.answers()
        listener.close()
        until(lambda: not head.answers(), timeout_s=10)
        now[0] += LOST_AFTER_S
        with socket.create_server(("127.0.0.1", port)):
            until(lambda: head.is_there, timeout_s=10)
            now[0] += LOST_AFTER_S
        until(lambda: not head.is_there, timeout_s=10)
        assert not head.answers()
        now[0] += LOST_AFTER_S + 1
        with pytest.raises(HeadLost, match=rf"the Ray head at {address} has not answered for 20 s: .* --resume"):
            head.answers()
