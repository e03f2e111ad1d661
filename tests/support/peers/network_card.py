"""A network card in a directory that stands for the file system, and the `ethtool` that changes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FIRST_INTERRUPT = 100
N_CORES = 8
# It prints as ethtool 6.1 does.
_ETHTOOL = """#!{python} -S
import json, os, sys
path = {state!r}
state = json.load(open(path))
option, card, *rest = sys.argv[1:]
if card != state["name"]:
    sys.exit("netlink error: No such device")
if option in state["unsupported"]:
    sys.exit("netlink error: Operation not supported")
if option == "-g":
    values = "RX:\\t\\t{{}}\\nRX Mini:\\tn/a\\nRX Jumbo:\\tn/a\\nTX:\\t\\t512"
    print(f"Ring parameters for {{card}}:\\nPre-set maximums:\\n" + values.format(state["max_ring"]))
    print("Current hardware settings:\\n" + values.format(state["ring"]))
elif option == "-l":
    values = "RX:\\t\\tn/a\\nTX:\\t\\tn/a\\nOther:\\t\\t1\\nCombined:\\t{{}}"
    print(f"Channel parameters for {{card}}:\\nPre-set maximums:\\n" + values.format(state["max_queues"]))
    print("Current hardware settings:\\n" + values.format(state["queues"]))
elif option == "-n":
    print(f"{{state['queues']}} RX rings available\\nTotal {{len(state['rules'])}} rules\\n")
    for number, port, action in state["rules"]:
        print(f"Filter: {{number}}\\n\\tRule Type: UDP over IPv4")
        for end in ("Src", "Dest"):
            print(f"\\t{{end}} IP addr: 0.0.0.0 mask: 255.255.255.255")
        print("\\tTOS: 0x0 mask: 0xff\\n\\tSrc port: 0 mask: 0xffff")
        print(f"\\tDest port: {{port}} mask: 0x0\\n\\tAction: {{action}}\\n")
elif option == "-G":
    state["ring"] = int(rest[1])
elif option == "-L":
    state["queues"] = int(rest[1])
    for queue in range(state["queues"]):
        os.makedirs(f"{{state['directory']}}/queues/rx-{{queue}}", exist_ok=True)
elif option == "-K":
    assert rest == ["ntuple", "on"]
elif rest[0] == "delete":
    state["rules"] = [rule for rule in state["rules"] if rule[0] != int(rest[1])]
else:
    flow, kind, by, port, what, queue = rest
    assert (flow, kind, by, what) == ("flow-type", "udp4", "dst-port", "action"), rest
    assert int(queue) < state["queues"], rest
    number = min([1023, *(rule[0] - 1 for rule in state["rules"])])
    state["rules"].append([number, int(port), f"Direct to queue {{queue}}"])
json.dump(state, open(path, "w"))
"""


class NetworkCard:
    """A card with interrupts for its queues.

    Attributes:
        programs: directory of `ethtool`.
    """

    def __init__(self, root: Path, programs: Path, name: str = "eth1") -> None:
        self.root, self.name, self.programs = root, name, programs
        self._directory = root / "sys/class/net" / name
        self._state = programs / f"{name}.json"
        programs.mkdir()
        (programs / "ethtool").write_text(_ETHTOOL.format(python=sys.executable, state=str(self._state)))
        (programs / "ethtool").chmod(0o755)
        self.write("sys/devices/system/cpu/online", f"0-{N_CORES - 1}")
        self.write(f"sys/class/net/{name}/mtu", "9000")
        self.write(f"sys/class/net/{name}/device/vendor", "0x8086")
        self._state.write_text(
            json.dumps(
                {
                    "name": name,
                    "directory": str(self._directory),
                    "unsupported": [],
                    "rules": [],
                    **{"queues": 1, "max_queues": 1, "ring": 512, "max_ring": 512},
                }
            )
        )
        self.set_queues(1)

    def write(self, path: str, text: str) -> None:
        """Write a file of the system."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text + "\n")

    @property
    def state(self) -> dict[str, Any]:
        """What `ethtool` shows."""
        return json.loads(self._state.read_text())

    def set(self, **keys: object) -> None:
        """Change what `ethtool` shows."""
        self._state.write_text(json.dumps(self.state | keys))

    def set_queues(self, n: int, names: str = "{card}-TxRx-{queue}", is_above: bool = False) -> None:
        """Give the card `n` queues, with the interrupt of each on its own core.

        Interrupts belong to the device, or to that above it as for virtual cards.
        """
        self.set(queues=n, max_queues=max(n, self.state["max_queues"]))
        lines = ["           CPU0       CPU1", "  0:         36          0   IO-APIC   2-edge      timer"]
        for queue in range(n):
            number = FIRST_INTERRUPT + queue
            (self._directory / f"queues/rx-{queue}").mkdir(parents=True, exist_ok=True)
            owner = self._directory if is_above else self._directory / "device"
            self.write(f"{(owner / 'msi_irqs' / str(number)).relative_to(self.root)}", "msix")
            self.write_cores(queue, str(queue))
            name = names.format(card=self.name, queue=queue)
            lines.append(
                f"{number}:          0      37203   PCI-MSIX-0000:00:03.0   {queue}-edge      {name}"
            )
        lines.append("NMI:          0          0   Non-maskable interrupts")
        self.write("proc/interrupts", "\n".join(lines))

    def write_cores(self, queue: int, cores: str) -> None:
        """Let the interrupt of a queue run on these cores."""
        self.write(f"proc/irq/{FIRST_INTERRUPT + queue}/smp_affinity_list", cores)

    def cores(self, queue: int) -> str:
        """Return the cores of the interrupt of a queue."""
        return (self.root / f"proc/irq/{FIRST_INTERRUPT + queue}/smp_affinity_list").read_text().strip()
