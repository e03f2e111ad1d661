"""Services ignore bytes on their ipc sockets that are not ZMTP, or almost ZMTP, and the run continues."""

from __future__ import annotations

import socket
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from support.processes.recording import MakeRig, assert_saved, images_of
from support.processes.sources import start_source
from support.tools.fuzzing import ZMTP_CONVERSATIONS, Health, examples

from stddaq.client.simulator import SimulatorClient


def test_bytes_that_are_not_zmtp_do_not_disturb_services(make_rig: MakeRig):
    rig = make_rig(driver=["-m"])
    meta_writer = rig.deployment.start("std_det_meta_writer_gf")
    source = start_source(rig.deployment, "simulate", "--trigger", "--rate", 1000)

    def record(prefix: str) -> None:
        rig.client.start(rig.directory, n_image=40, file_prefix=prefix)
        rig.client.wait_until_ready(60)
        first = simulator.trigger(40).first_id
        account = rig.end()
        assert (account["n_good"], account["first_id"], account["n_dropped"]) == (40, first, 0)

    with SimulatorClient(rig.deployment.detector_name) as simulator:
        record("before")
        health = Health([rig.driver, *rig.writers, meta_writer, source])
        sockets = rig.deployment.sockets()
        assert len(sockets) == 8

        @examples(30)
        @given(st.sampled_from(sockets), ZMTP_CONVERSATIONS)
        def bytes_are_survived(name: str, content: bytes) -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
                plain.settimeout(5)
                plain.connect(str(rig.deployment.ipc_directory / name))
                with suppress(OSError):
                    plain.sendall(content)
                    plain.recv(1000)
            health.check()

        bytes_are_survived()
        # The connection may have taken the driver's place at a writer's socket for a moment.
        rig.client.stop()
        rig.client.wait(["idle"], 60)
        record("after")
        health.check()


def test_peers_that_connect_and_disconnect_do_not_end_a_run(make_rig: MakeRig):
    """A second driver, started by mistake and refused, ended the run in this way."""
    rig = make_rig()
    images = images_of(range(20))
    rig.begin(n_image=20)
    rig.publish(images[:10])
    rig.wait_for_count(10)
    for name in rig.deployment.sockets():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
            plain.connect(str(rig.deployment.ipc_directory / name))
    second = rig.deployment.start("std_det_driver", "--port", 0, ready=None)
    assert second.wait() == 2
    rig.publish(images[10:])
    assert_saved(rig.end(), images)
