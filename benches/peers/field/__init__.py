"""The field: every peer by its name. A further one is a file here and a line below."""

from __future__ import annotations

from .docker_proxy import DockerProxy
from .kernel import Kernel, KernelPlain
from .openvswitch import OpenVSwitch, OpenVSwitchTso
from .pasta import Pasta
from .peer import BESIDE, C2C, EGRESS, LOOPBACK, PUBLISHED, Peer
from .pontoon import Pontoon, Raw, Veth
from .rootlesskit import Rootlesskit
from .slirp4netns import Slirp4netns, Slirp4netns65520

OTHERS = (Kernel, KernelPlain, OpenVSwitch, OpenVSwitchTso, Pasta, Slirp4netns, Slirp4netns65520, Rootlesskit,
          DockerProxy)

__all__ = ["BESIDE", "C2C", "EGRESS", "LOOPBACK", "OTHERS", "PUBLISHED", "Peer", "Pontoon", "Raw", "Veth"]
