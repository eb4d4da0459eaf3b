#!/usr/bin/env python3
"""Measures what a flood of garbage on the data port costs a good flow beside it.

A sends to B through a tunnel while B also gets datagrams of any length with any bytes, so many a second: none, to a
port whose program does not read, and to the data port, from a stranger's address and from the peer's own. Rounds take
turns; the table has the medians of the flow's Gbit/s, and its share of what it has beside the same flood to the other
port.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

import peers

FLOODS = ["none", "other-port", "strangers", "peer"]
PORT = {"other-port": 7, "strangers": 5000, "peer": 5000}


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
        peers.tunmesh()
        deaf_socket()
        peers.wait_for_ping("10.9.0.2")
        flooding = None
        if flood != "none":
            # A second address of A is a stranger's; from its first one garbage comes as the peer's.
            peers.ip("A", "addr add 172.100.2.1/24 dev vA")
            peers.ip("B", "addr add 172.100.2.2/24 dev vB")
            target = "172.100.1.2" if flood == "peer" else "172.100.2.2"
            rate, seconds = peers.arguments.rate, peers.arguments.seconds + 2
            flooding = subprocess.Popen(
                ["ip", "netns", "exec", peers.NAMESPACE["A"], peers.compiled("flood"), target, str(PORT[flood]),
                 str(rate), str(seconds)],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
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
    print("flood".ljust(12) + "tcp1".rjust(8) + "share".rjust(8))
    for flood, median in medians.items():
        print(f"{flood:12}{median:8.3g}{median / medians['other-port']:8.2f}")


if __name__ == "__main__":
    main()
