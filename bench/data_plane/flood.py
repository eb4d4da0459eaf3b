#!/usr/bin/env python3
"""Measures what a flood on the data port costs a good flow beside it.

A sends to B through a tunnel while B also gets datagrams of any length with any bytes, so many a second: none, to a
port whose program does not read, and to the data port, from a stranger's address and from the peer's own. Then, through
an encrypted tunnel, beside initiations that B must look at, from addresses without number, a tenth as many a second: to
that other port, and to the data port. Rounds take turns; the table has the medians of the flow's Gbit/s, and its share
of what it has beside the same flood to the other port.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

import peers

# With the one that each is a share of.
FLOODS = {
    "none": "other-port",
    "other-port": "other-port",
    "strangers": "other-port",
    "peer": "other-port",
    "initiations-other-port": "initiations-other-port",
    "initiations": "initiations-other-port",
}


def deaf_socket():
    """Holds the other port, and reads nothing."""
    program = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 7)); time.sleep(1000)"
    # The daemon's words are split at spaces.
    with open(f"{peers.scratch}/deaf.py", "w") as file:
        file.write(program)
    peers.spawn("B", f"{sys.executable} {peers.scratch}/deaf.py")


def measure(flood):
    peers.make_hosts()
    try:
        is_handshake = flood.startswith("initiations")
        peers.tunmesh(is_encrypted=is_handshake)
        deaf_socket()
        peers.wait_for_ping("10.9.0.2")
        flooding = None
        if flood != "none":
            # A second address of A is a stranger's; from its first one garbage comes as the peer's.
            peers.ip("A", "addr add 172.100.2.1/24 dev vA")
            peers.ip("B", "addr add 172.100.2.2/24 dev vB")
            target = "172.100.1.2" if flood == "peer" else "172.100.2.2"
            port = 7 if flood.endswith("other-port") else 5000
            rate, seconds, messages = peers.arguments.rate, peers.arguments.seconds + 2, []
            if is_handshake:
                peers.ip("A", "route add local 172.101.0.0/16 dev lo")
                key = peers.public_key("B")
                messages = [f"{peers.scratch}/initiations"]
                peers.sh(f"{peers.arguments.initiations} {key} > {messages[0]}")
                rate //= 10
            words = [target, port, rate, seconds, *messages]
            flooding = subprocess.Popen(
                ["ip", "netns", "exec", peers.NAMESPACE["A"], peers.compiled("flood"), *map(str, words)],
                stdout=subprocess.DEVNULL,
            )
        try:
            return peers.tcp("10.9.0.2")
        finally:
            if flooding:
                flooding.terminate()
                flooding.wait()
    finally:
        peers.stop()


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/bench flood", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="default 8")
    parser.add_argument("--seconds", type=int, default=3, help="of each figure, default 3")
    parser.add_argument("--rate", type=int, default=100_000, help="datagrams a second, default 100000")
    parser.add_argument("--hard", action="store_true", help="segments are real on the cable, as on most networks")
    parser.add_argument("--bin", default=f"{peers.ROOT}/target/release", help=argparse.SUPPRESS)
    parser.add_argument("--tunnels", help=argparse.SUPPRESS)
    parser.add_argument("--initiations", help=argparse.SUPPRESS)
    peers.arguments = parser.parse_args()
    results = {flood: [] for flood in FLOODS}
    with tempfile.TemporaryDirectory(prefix="tunmesh-bench-") as peers.scratch:
        try:
            for _ in range(peers.arguments.rounds):
                for flood in FLOODS:
                    results[flood].append(measure(flood))
        finally:
            peers.stop()
            peers.remove_hosts()
    medians = {flood: statistics.median(figures) for flood, figures in results.items()}
    print("flood".ljust(24) + "tcp1".rjust(8) + "share".rjust(8))
    for flood, median in medians.items():
        print(f"{flood:24}{median:8.3g}{median / medians[FLOODS[flood]]:8.2f}")


if __name__ == "__main__":
    main()
