"""Loads: each drives one peer over one path and gives back figures, `value` first among them.

iperf3, nginx and wrk where they are the custom, and the project's own `load` for what they do not do. The
servers are started once for each site, after its forwarder, and so are never charged to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import Optional

from . import machine
from .field import BESIDE, C2C, EGRESS, LOOPBACK, PUBLISHED, Peer
from .field.peer import needed, program
from .topology import OUT, Failure, wait_for

IPERF, HTTP, ECHO, SINK = 5201, 8080, 7000, 7001
# A second iperf3, for a second client at the same time.
SECOND = 5202
TCP_PORTS, UDP_PORTS = (IPERF, HTTP, ECHO), (ECHO, SINK)
NGINX = """daemon off; worker_processes 1; pid {state}/nginx.pid; error_log /dev/null; worker_rlimit_nofile 16384;
events {{ worker_connections 15000; multi_accept on; }}
http {{ access_log off; keepalive_requests 1000000000;
  server {{ listen {port} backlog=4096; location / {{ return 200 "from the container\\n"; }} }} }}
"""
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
MANY_FLOWS = 256


class Bench:
    """A peer with the servers of its site, and the loads that can be put on it."""

    def __init__(self, peer: Peer, load: str) -> None:
        self.peer, self.site, self.load = peer, peer.site, load
        self.iperf: dict[str, subprocess.Popen] = {}

    # -- life

    def begin(self) -> None:
        self.peer.begin(TCP_PORTS, UDP_PORTS)
        self.serve()
        self.peer.rest()

    def serve(self) -> None:
        config = self.site.state / "nginx.conf"
        config.write_text(NGINX.format(state=self.site.state, port=HTTP))
        for role in ("c1", "c2", "out"):
            if program("iperf3"):
                self.serve_iperf(role)
            self.echo(role)
        if program("nginx"):
            self.site.start("c1", needed("nginx"), "-c", config)
            wait_for("nginx", lambda: self.site.listens("c1", HTTP))

    def serve_iperf(self, role: str) -> None:
        """A fresh server, because one that lost its client may wait for it for ever."""
        old = self.iperf.pop(role, None)
        if old:
            old.kill()
            old.wait()
        self.iperf[role] = self.site.start(role, needed("iperf3"), "--server")
        wait_for(f"iperf3 in {role}", lambda: self.site.listens(role, IPERF))

    def end(self) -> None:
        self.iperf = {}
        self.peer.end()

    # -- ways

    def way(self, path: str) -> tuple[str, str, str]:
        """Client's namespace, the address it dials, the server's namespace."""
        return {
            C2C: ("c1", self.peer.c2, "c2"), EGRESS: ("c1", OUT, "out"),
            PUBLISHED: ("out", self.peer.host, "c1"), LOOPBACK: ("host", "127.0.0.1", "c1"),
            BESIDE: ("c2", OUT, "out"),
        }[path]

    def ask(self, role: str, *words: object, timeout: float) -> dict:
        return json.loads(self.site.run(role, self.load, *words, timeout=timeout))

    # -- loads

    def tcp(self, path: str, secs: float, streams: int, reverse: bool) -> dict:
        """Gbit/s by iperf3; one that hangs is asked again, of a fresh server."""
        client, address, server = self.way(path)
        command = [needed("iperf3"), "--json", "--client", address, "--time", max(1, round(secs)),
                   "--parallel", streams, *(["--reverse"] if reverse else [])]
        why = ""
        for attempt in range(3):
            try:
                said = json.loads(self.site.run(client, *command, timeout=secs + 8))
                received = said["end"]["sum_received"]
                return {"value": received["bits_per_second"] / 1e9, "attempt": attempt,
                        # What an attempt before it cost is in the forwarder's time, too.
                        "octets": received["bytes"] if attempt == 0 else None,
                        "retransmits": said["end"]["sum_sent"].get("retransmits")}
            except (Failure, ValueError, KeyError) as error:
                why = str(error)
                self.serve_iperf(server)
        raise Failure(f"iperf3, three times: {why}")

    def datagrams(self, path: str, secs: float, size: int, flows: int = 1, senders: int = 1) -> dict:
        """Thousands of datagrams a second that arrive, of senders that never wait."""
        client, address, server = self.way(path)
        sink = subprocess.Popen(self.site.inside(server, self.load, "sink", SINK, secs + 3), text=True,
                                stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        try:
            wait_for("sink", lambda: self.site.listens(server, SINK, "udp"))
            blast = self.site.inside(client, self.load, "blast", f"{address}:{SINK}", secs, size, flows)
            blasts = [subprocess.Popen(blast, text=True, stdout=subprocess.PIPE) for _ in range(senders)]
            sent = [json.loads(each.communicate(timeout=secs + 10)[0]) for each in blasts]
            got = json.loads(sink.communicate(timeout=secs + 15)[0])
        except (ValueError, subprocess.TimeoutExpired) as error:
            raise Failure(f"datagrams: {error}") from None
        finally:
            sink.kill()
            sink.wait()
        # A forwarder that goes on delivering after the senders have ended is given that time, too.
        lasted = max(got["seconds"], secs)
        if not got["received"]:
            raise Failure("no datagram arrived")
        offered = sum(each["sent"] for each in sent)
        return {"value": got["received"] / lasted / 1e3, "packets": got["received"],
                "offered_kpps": offered / lasted / 1e3}

    def ping(self, path: str, secs: float, transport: str) -> dict:
        """Microseconds of a round trip of 64 octets: the median, and p99 beside it."""
        client, address, _ = self.way(path)
        got = self.ask(client, "ping", transport, f"{address}:{ECHO}", secs, 64, timeout=secs + 15)
        return {"value": got["p50"], "p99": got["p99"], "p999": got["p999"], "trips": got["trips"], "lost": got["lost"]}

    def share(self, secs: float, streams: int) -> dict:
        """Per cent of its rate alone that c2's one upload keeps beside `streams` of c1's; 50 is a fair half."""
        server = self.site.start("out", needed("iperf3"), "--server", "--port", SECOND)
        try:
            wait_for("iperf3 in out", lambda: self.site.listens("out", SECOND))
            upload = [needed("iperf3"), "--json", "--client", OUT, "--port", SECOND, "--time", max(1, round(secs))]
            alone = self.received(self.site.run("c2", *upload, timeout=secs + 8))
            greedy = subprocess.Popen(
                self.site.inside("c1", needed("iperf3"), "--json", "--client", OUT, "--parallel", streams, "--time",
                                 max(1, round(secs)) + 2), stdout=subprocess.DEVNULL)
            try:
                time.sleep(1)
                beside = self.received(self.site.run("c2", *upload, timeout=secs + 8))
            finally:
                greedy.wait(secs + 15)
        except (ValueError, KeyError, subprocess.TimeoutExpired) as error:
            raise Failure(f"iperf3: {error}") from None
        finally:
            server.kill()
            server.wait()
        return {"value": 100 * beside / alone, "alone_gbit": alone / 1e9}

    @staticmethod
    def received(said: str) -> float:
        return json.loads(said)["end"]["sum_received"]["bits_per_second"]

    def ping_beside(self, secs: float) -> dict:
        """c2's round trips to the outside while c1 floods it with datagrams of 64 octets."""
        sink = self.site.start("out", self.load, "sink", SINK, secs + 5)
        wait_for("sink", lambda: self.site.listens("out", SINK, "udp"))
        flood = subprocess.Popen(self.site.inside("c1", self.load, "blast", f"{OUT}:{SINK}", secs + 1.5, 64, 1),
                                 stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            return self.ping(BESIDE, secs, "tcp")
        finally:
            flood.wait(secs + 10)
            sink.kill()
            sink.wait()

    def http(self, path: str, secs: float, close: bool) -> dict:
        """Answers a second by nginx to 50 clients of wrk's, each over a connection of its own if `close`."""
        if not program("nginx"):
            raise Failure("nginx is not installed")
        client, address, _ = self.way(path)
        said = self.site.run(client, needed("wrk"), "-t1", "-c50", f"-d{max(1, round(secs))}s", "--latency",
                             *(["-H", "Connection: close"] if close else []), f"http://{address}:{HTTP}/",
                             timeout=secs + 20)
        rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
        p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", said)
        errors = re.search(r"Socket errors: (.*)|Non-2xx.*", said)
        if not rate or float(rate[1]) == 0:
            raise Failure(f"wrk: {errors[0] if errors else 'nothing was answered'}")
        return {"value": float(rate[1]), "p99_ms": float(p99[1]) * UNITS[p99[2]] if p99 else None,
                "errors": errors[0] if errors else None}

    def connects(self, path: str, secs: float, held: int) -> dict:
        """Connections a second, of which each carried an octet there and back; the newest stay open."""
        client, address, _ = self.way(path)
        got = self.ask(client, "connect", f"{address}:{ECHO}", secs, held, timeout=secs + 30)
        if not got["opened"]:
            raise Failure(f"no connection was made, {got['failed']} failed")
        return {"value": got["opened"] / got["seconds"], "failed": got["failed"]}

    def idle_flows(self, path: str, _secs: float, transport: str, count: int) -> dict:
        """MB the forwarder holds with `count` silent flows, and how many of them answer afterwards."""
        client, address, _ = self.way(path)
        before = machine.resident(self.peer.forwarder)
        holder = subprocess.Popen(self.site.inside(client, self.load, "hold", transport, f"{address}:{ECHO}", count),
                                  text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            opened = self._line(holder)
            time.sleep(0.5)
            held, used = machine.resident(self.peer.forwarder), machine.seconds_of(self.peer.forwarder)
            time.sleep(2)
            used = machine.seconds_of(self.peer.forwarder) - used
            assert holder.stdin
            holder.stdin.write("?\n")
            holder.stdin.flush()
            answered = self._line(holder)["answered"]
        finally:
            holder.kill()
            holder.wait()
        ended = sum(1 for process in self.peer.forwarder if machine.stat(process) is None)
        return {"value": held / 1e6 if self.peer.forwarder else None, "answered": answered,
                "opened": opened["opened"], "opening_seconds": opened["seconds"], "idle_cores": used / 2,
                "per_flow": (held - before) / opened["opened"] if opened["opened"] and self.peer.forwarder else None,
                "ended": ended}

    @staticmethod
    def _line(process: subprocess.Popen) -> dict:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise Failure("load hold ended early")
        return json.loads(line)

    def start(self, path: Optional[str], _secs: float) -> dict:
        """Milliseconds from the first command to a connection that works; MB held half a second later."""
        self.end()
        self.site.build()
        kind = next((each for each in (EGRESS, C2C) if each in self.peer.paths), PUBLISHED)
        client, address, server = self.way(kind)
        early = kind != PUBLISHED  # a published port's server may have no namespace to be in yet
        if early:
            self.echo(server)
        began = time.monotonic()
        self.peer.start(TCP_PORTS, UDP_PORTS, publish=not early)
        took = time.monotonic() - began
        if not early:
            self.echo(server)
        again = time.monotonic()
        self.ask(client, "reach", f"{address}:{ECHO}", 15, timeout=20)
        took += time.monotonic() - again
        time.sleep(0.5)
        forwarder = self.peer.forwarder
        return {"value": took * 1e3, "resident_mb": machine.resident(forwarder) / 1e6 if forwarder else None,
                "processes": len(forwarder)}

    def echo(self, role: str) -> None:
        self.site.start(role, self.load, "echo", ECHO)
        wait_for(f"echo in {role}", lambda: self.site.listens(role, ECHO))
