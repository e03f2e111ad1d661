"""`stddaq doctor` on the network: queues, rings, rules and interrupts of the card that receives packets."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.peers.network_card import N_CORES, NetworkCard
from support.processes.deployment import make_config

from stddaq.cli import findings as findings_module
from stddaq.cli import main as stddaq
from stddaq.cli import server_checks
from stddaq.cli.findings import Finding, Server
from stddaq.cli.network_checks import network_findings
from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError

FIRST_PORT = 50_000
NETWORK = ("network buffers", "packet size", "receive queues", "receive ring", "packet rules")
INTERRUPTS = ("interrupts", "interrupt cores", "receiver cores")


def eiger(n_modules: int, **keys: Any) -> dict[str, Any]:
    return make_config(
        detector_type="eiger",
        n_modules=n_modules,
        image_pixel_height=256,
        image_pixel_width={1: 512, 2: 1028}[n_modules],
        module_positions={},
        start_udp_port=FIRST_PORT,
        **keys,
    )


def check(root: Path, n_modules: int = 2, interface: str = "", name: str = "EG1") -> dict[str, Finding]:
    config = DetectorConfig.parse(eiger(n_modules, detector_name=name))
    return {one.name: one for one in network_findings(config, Server(0, root, interface))}


def run_cure(finding: Finding) -> None:
    subprocess.run(["sh", "-c", finding.cure], check=True, timeout=30)


def pin_receivers(root: Path, **cores_of_units: str) -> None:
    """Write units: `recv_1="5"` pins the receiver of module 1 to core 5."""
    (root / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
    for unit, cores in cores_of_units.items():
        program, _, number = unit.rpartition("_")
        program = f"std_{'udp_recv_eg' if program == 'recv' else program}"
        (root / f"etc/systemd/system/std_daq-EG1-{program}-{number}.service").write_text(
            f'[Service]\nExecStart=/opt/bin/{program} "/etc/eg1.json" {number}\nCPUAffinity={cores}\n'
        )


def test_card_that_is_prepared(root: Path, card: NetworkCard) -> None:
    card.set_queues(2)
    card.set(rules=[[7, FIRST_PORT, "Direct to queue 0"], [9, FIRST_PORT + 1, "Direct to queue 1"]])
    found = check(root)
    assert tuple(found) == (*NETWORK, *INTERRUPTS)
    assert {one.state for one in found.values()} == {"ok"}


def test_a_card_needs_a_queue_for_each_module(root: Path, card: NetworkCard) -> None:
    card.set(max_queues=16)
    finding = check(root)["receive queues"]
    assert (finding.state, finding.found) == ("advice", "eth1 has 1")
    assert finding.cure == "ethtool -L eth1 combined 2"
    run_cure(finding)
    assert check(root)["receive queues"].state == "ok"


def test_a_card_with_too_few_queues_has_no_command(root: Path) -> None:
    found = check(root)
    assert found["receive queues"].found == "eth1 has 1, and 1 at most"
    assert found["receive queues"].cure == found["packet rules"].cure == ""


def test_ring_smaller_than_the_card_allows(root: Path, card: NetworkCard) -> None:
    card.set(max_ring=8192)
    finding = check(root)["receive ring"]
    assert (finding.state, finding.found) == ("advice", "eth1 holds 512 packets")
    run_cure(finding)
    assert card.state["ring"] == 8192
    assert check(root)["receive ring"].state == "ok"


def test_what_stops_the_network_is_not_mended_while_services_run(root: Path, card: NetworkCard) -> None:
    card.set(max_ring=8192, max_queues=8)
    names = ("receive ring", "receive queues")
    assert all(check(root)[name].is_for_all for name in names)
    (root / "dev/shm/GF7-image").write_text("")
    assert not any(check(root)[name].is_for_all for name in names)


def test_missing_and_wrong_rules_are_replaced_and_those_of_others_stay(root: Path, card: NetworkCard) -> None:
    card.set_queues(2)
    of_others = [1000, FIRST_PORT + 2, "Direct to queue 0"]
    card.set(rules=[[1001, FIRST_PORT, "Direct to queue 1"], [1002, FIRST_PORT + 1, "Drop"], of_others])
    finding = check(root)["packet rules"]
    assert finding.state == "advice"
    assert finding.found == "eth1 leads 0 of 2 ports to their queues, 50000, 50001 elsewhere"
    assert "ethtool -U eth1 flow-type udp4 dst-port 50001 action 1" in finding.cure
    run_cure(finding)
    assert of_others in card.state["rules"]
    assert len(card.state["rules"]) == 3
    assert check(root)["packet rules"].state == "ok"


@pytest.mark.parametrize(
    ("names", "is_above"),
    [
        ("{card}-TxRx-{queue}", False),
        ("i40e-{card}-TxRx-{queue}", False),
        ("{card}-rx-{queue}", False),
        ("mlx5_comp{queue}@pci:0000:3b:00.0", False),
        ("virtio2-input.{queue}", True),
        ("{card}-{queue}", False),
    ],
)
def test_interrupts_of_queues_are_known_by_the_names_of_drivers(
    names: str, is_above: bool, root: Path, card: NetworkCard
) -> None:
    card.set_queues(2, names, is_above)
    assert check(root)["interrupt cores"].found == "of 2 queues of eth1"


def test_each_queue_interrupts_the_core_of_its_receiver(root: Path, card: NetworkCard) -> None:
    card.set_queues(3)
    pin_receivers(root, recv_0="4", recv_1="5", det_writer_0="2")
    finding = check(root)["interrupt cores"]
    # Core 2 of the third queue is that of a writer.
    assert finding.found == "queue 0 on 0, queue 1 on 1, queue 2 on 2"
    assert finding.is_for_all
    run_cure(finding)
    assert [card.cores(queue) for queue in range(3)] == ["4", "5", "0-1,3,6-7"]
    assert check(root)["interrupt cores"].state == "ok"


def test_two_sets_of_links_have_a_queue_for_each_receiver(root: Path, card: NetworkCard) -> None:
    card.set(max_queues=16)
    pin_receivers(root, recv_0="1", recv_1="2", recv_8="3", recv_9="4")
    assert check(root)["receive queues"].cure == "ethtool -L eth1 combined 10"


def test_without_units_each_queue_gets_a_core_of_its_own_by_hand(root: Path, card: NetworkCard) -> None:
    card.set_queues(2)
    card.write_cores(0, f"0-{N_CORES - 1}")
    card.write_cores(1, f"0-{N_CORES - 1}")
    finding = check(root)["interrupt cores"]
    assert (finding.state, finding.is_for_all) == ("advice", False)
    run_cure(finding)
    assert card.cores(0) != card.cores(1)
    assert check(root)["interrupt cores"].state == "ok"


def test_receivers_belong_on_the_numa_node_of_the_card(root: Path, card: NetworkCard) -> None:
    card.set_queues(2)
    card.write("sys/class/net/eth1/device/numa_node", "1")
    card.write("sys/devices/system/node/node1/cpulist", "4-7")
    pin_receivers(root, recv_0="3", recv_1="5")
    finding = check(root)["receiver cores"]
    assert finding.found == "receivers 0 on another NUMA node than eth1"
    assert finding.expected == "cores 4-7 in the deployment"
    pin_receivers(root, recv_0="4")
    assert check(root)["receiver cores"].state == "ok"


def test_of_two_cards_only_a_named_one_is_mended(root: Path, card: NetworkCard) -> None:
    card.set_queues(2)
    card.write("sys/class/net/eth0/mtu", "1500")
    card.write("sys/class/net/eth0/device/vendor", "0x8086")
    guessed, named = check(root), check(root, interface="eth1")
    assert guessed["packet rules"].cure == named["packet rules"].cure != ""
    assert (guessed["packet rules"].is_for_all, named["packet rules"].is_for_all) == (False, True)
    assert check(root, interface="eth0")["packet size"].cure == "ip link set dev eth0 mtu 9000"
    with pytest.raises(ConfigError, match="--interface: expected one of eth0, eth1, lo, got eth7"):
        check(root, interface="eth7")


def test_settings_that_the_card_does_not_have_are_no_mistake(root: Path, card: NetworkCard) -> None:
    card.set_queues(2)
    card.set(unsupported=["-g", "-n"])
    found = check(root)
    assert (found["receive ring"].state, found["receive ring"].found) == ("ok", "eth1 has no such setting")
    assert found["packet rules"].state == "ok"


def test_without_ethtool_the_findings_say_so(
    root: Path, card: NetworkCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.set_queues(2)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(findings_module, "SYSTEM_PROGRAMS", "/nowhere")
    found = check(root)
    for name in ("receive ring", "packet rules"):
        assert found[name].state == "advice"
        assert found[name].found == "cannot be read: ethtool is not installed"


def test_mend_prepares_the_card(
    root: Path,
    card: NetworkCard,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card.set(max_queues=4, max_ring=4096)
    card.set_queues(2)
    card.write_cores(1, "0-7")
    pin_receivers(root, recv_0="6", recv_1="7")
    monkeypatch.setattr(findings_module, "Server", partial(Server, root=root))
    # Other checks would mend this machine.
    monkeypatch.setattr(
        server_checks, "check_server", lambda config, server, _: network_findings(config, server)
    )
    path = tmp_path / "eg1.json"
    path.write_text(json.dumps(eiger(2, detector_name="EG1", allowed_roots=[str(tmp_path)])))
    assert stddaq(["doctor", str(path), "--mend", "--interface", "eth1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    mended = [
        line.split(":")[0].removeprefix("mended").strip() for line in lines if line.startswith("mended")
    ]
    assert {"receive ring", "packet rules", "interrupt cores"} <= set(mended)
    assert card.state["ring"] == 4096
    assert [(port, action) for _, port, action in card.state["rules"]] == [
        (FIRST_PORT, "Direct to queue 0"),
        (FIRST_PORT + 1, "Direct to queue 1"),
    ]
    assert [card.cores(queue) for queue in range(2)] == ["6", "7"]
    # The second time there is nothing to mend.
    assert stddaq(["doctor", str(path), "--mend", "--interface", "eth1"]) == 0
    assert "mended" not in capsys.readouterr().out
