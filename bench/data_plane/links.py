#!/usr/bin/env python3
"""Measures what links cost and how soon a cut is known, between two agents that have many of them: each is of a mesh of
its own, encrypted, and the controller is beside one of the agents.

  agent       processor time of each agent while nothing but probes goes, in hundredths of a core
  controller  the same of the controller
  ends        how long after everything between both was cut each end had seen it of its last link, in seconds
  known       how long after it the controller showed all links down, in seconds
  detection   what the agents say that it takes at most, in seconds
"""

import argparse
import datetime
import json
import shutil
import statistics
import sys
import tempfile
import time

import peers


def start(links):
    """Starts controller and agents, and returns once all links are up."""
    spawn, bin = peers.spawn, peers.arguments.bin
    for directory in ("controller", "stateA", "stateB"):
        shutil.rmtree(f"{peers.scratch}/{directory}", ignore_errors=True)
    insecure = "--insecure 172.100.0.0/16"
    spawn("A", f"{bin}/controller serve {insecure} {at('controller')} --state-dir {peers.scratch}/controller")
    for host, _ in peers.HOSTS:
        joining = f"--controller 172.100.1.1 --name {host.lower()} {insecure} --no-legacy"
        spawn(host, f"{bin}/agent {joining} {at('agent' + host)} --state-dir {peers.scratch}/state{host}")
    wait("both agents are there", lambda: json_of("nodes")["nodes"] and all_live())
    for number in range(links):
        mesh = {"mesh": f"m{number}", "overlay": f"10.{number // 250 + 10}.{number % 250}.0/24", "nodes": {"a": {}, "b": {}}}
        with open(f"{peers.scratch}/mesh.json", "w") as file:
            json.dump(mesh, file)
        peers.sh(f"{bin}/controller apply -f {peers.scratch}/mesh.json {at('controller')}")
    wait("all links are up", lambda: [link["state"] for link in links_of()] == ["UP"] * links)


def at(name):
    return f"--socket {peers.scratch}/{name}.sock"


def json_of(command):
    return json.loads(peers.sh(f"{peers.arguments.bin}/controller {command} -o json {at('controller')}", check=False) or "{}")


def all_live():
    return [node.get("health") for node in json_of("nodes").get("nodes", [])] == ["LIVE"] * 2


def links_of():
    return json_of("links").get("links", [])


def tunnels(host):
    return json.loads(peers.sh(f"{peers.arguments.bin}/agent tunnels -o json {at('agent' + host)}"))["tunnels"]


def wait(what, condition):
    for _ in range(1200):
        try:
            if condition():
                return
        except (KeyError, ValueError, RuntimeError):
            pass
        time.sleep(0.05)
    raise RuntimeError(f"never: {what}")


def seconds(timestamp):
    return datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def cost():
    """Hundredths of a core of the controller and of each agent."""
    before = [times([daemon]) for daemon in peers.daemons]
    began = time.monotonic()
    time.sleep(peers.arguments.seconds)
    took = time.monotonic() - began
    return [100 * (times([daemon]) - was) / took for daemon, was in zip(peers.daemons, before)]


def times(daemons):
    kept, peers.daemons = peers.daemons, daemons
    try:
        return peers.processor_time()
    finally:
        peers.daemons = kept


def cut():
    """How long each end took to see it, and the controller."""
    peers.inside("B", "nft add table ip cut")
    for hook in ("input", "output"):
        peers.inside("B", f"nft 'add chain ip cut {hook} {{ type filter hook {hook} priority 0; }}'")
    began = time.time()
    for hook in ("input", "output"):
        peers.inside("B", f"nft add rule ip cut {hook} udp dport 5000 drop")
    wait("all links are down", lambda: {link["state"] for link in links_of()} == {"DOWN"})
    known = time.time() - began
    ends = [max(seconds(tunnel["link"]["since"]) for tunnel in tunnels(host)) - began for host, _ in peers.HOSTS]
    return [*ends, known]


def measure():
    peers.make_hosts()
    try:
        start(peers.arguments.links)
        # What the handshakes of so many links took is over.
        time.sleep(3)
        costs = cost()
        detection = max(float(tunnel["link"]["detectionTime"].rstrip("s")) for tunnel in tunnels("A"))
        return [*costs, *cut(), detection]
    finally:
        peers.stop()


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/bench links", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", type=int, default=100, help="default 100")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=int, default=20, help="for which processor time is taken, default 20")
    parser.add_argument("--bin", default=f"{peers.ROOT}/target/release", help=argparse.SUPPRESS)
    parser.add_argument("--tunnels", help=argparse.SUPPRESS)
    parser.add_argument("--initiations", help=argparse.SUPPRESS)
    peers.arguments = parser.parse_args()
    peers.arguments.hard = False
    results = []
    with tempfile.TemporaryDirectory(prefix="tunmesh-bench-") as peers.scratch:
        try:
            results = [measure() for _ in range(peers.arguments.rounds)]
        finally:
            peers.stop()
            peers.remove_hosts()
    names = ["controller", "agent A", "agent B", "end A", "end B", "known", "detection"]
    print(f"{peers.arguments.links} links, medians of {len(results)} rounds")
    for name, figures in zip(names, zip(*results)):
        print(f"{name:12}{statistics.median(figures):8.2f}  {' '.join(f'{figure:.2f}' for figure in figures)}")


if __name__ == "__main__":
    sys.exit(main())
