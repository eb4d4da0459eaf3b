#!/usr/bin/env python3
"""Measures how systems move packets between two hosts, side by side, in two network namespaces with one cable between.

Every system joins A (172.100.1.1) and B (172.100.1.2); inside, A is 10.9.0.1 and B is 10.9.0.2. Systems take turns, so
that a drift of the machine hits all alike, and the table has the medians of all rounds.

  tcp1, tcp4  Gbit/s of one iperf3 stream from A to B, and of four
  rev         Gbit/s of one stream from B to A
  udp         Gbit/s received of datagrams of 1,200 bytes that are offered as fast as iperf3 can
  kpps        thousands a second received of datagrams of 64 bytes, offered likewise
  rtt         microseconds, the mean of 2,000 pings back to back
  cpu         seconds of processor time of both daemons for each Gbit of tcp1
  rss         MiB of both daemons together

Lines as `tunmesh / relay` have its figures as shares of the better relay's, `mesh_encrypted / gotatun` as multiples of
gotatun's.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CARGO_BIN = os.environ.get("PEERS_BIN", os.path.expanduser("~/.cargo/bin"))
NAMESPACE = {host: f"tmb{os.getpid()}-{host}" for host in "AB"}
HOSTS = (("A", 1), ("B", 2))
COLUMNS = ["tcp1", "tcp4", "rev", "udp", "kpps", "rtt", "cpu", "rss"]

daemons = []
scratch = None
arguments = None


def sh(command, check=True):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


def inside(host, command, check=True):
    return sh(f"ip netns exec {NAMESPACE[host]} {command}", check)


def ip(host, command, check=True):
    return sh(f"ip -n {NAMESPACE[host]} {command}", check)


def spawn(host, command, env=None):
    words = command.split()
    with open(f"{scratch}/{os.path.basename(words[0])}.{host}.log", "w") as log:
        # `ip netns exec` becomes the daemon, so that its process id is the daemon's.
        daemon = subprocess.Popen(
            ["ip", "netns", "exec", NAMESPACE[host], *words], stdout=log, stderr=log, env={**os.environ, **(env or {})}
        )
    daemons.append(daemon)
    return daemon


def other(host):
    return "B" if host == "A" else "A"


def make_hosts():
    remove_hosts()
    for host in "AB":
        sh(f"ip netns add {NAMESPACE[host]}")
    sh(f"ip link add vA netns {NAMESPACE['A']} type veth peer name vB netns {NAMESPACE['B']}")
    for host, n in HOSTS:
        ip(host, f"addr add 172.100.1.{n}/24 dev v{host}")
        ip(host, "link set lo up")
        ip(host, f"link set v{host} up")
        ip(host, f"route add default via 172.100.1.{3 - n}")
        if arguments.hard:
            inside(host, f"ethtool -K v{host} tx-udp-segmentation off gro on")


def remove_hosts():
    for host in "AB":
        sh(f"ip netns del {NAMESPACE[host]}", check=False)


def give_addresses(device, mtu=None):
    for host, n in HOSTS:
        for _ in range(50):
            if "mtu" in ip(host, f"link show {device}", check=False):
                break
            time.sleep(0.1)
        ip(host, f"addr add 10.9.0.{n}/24 dev {device}", check=False)
        if mtu:
            ip(host, f"link set {device} mtu {mtu}")
        ip(host, f"link set {device} up")


# ---- the systems


def veth():
    return "172.100.1.2"


def vxlan():
    for host, n in HOSTS:
        ip(host, f"link add vx0 type vxlan id 7 remote 172.100.1.{3 - n} dstport 4789 dev v{host}")
    give_addresses("vx0")


def tunmesh(count=1, flags="", is_encrypted=False):
    for host, _ in HOSTS:
        state = f"{scratch}/state{host}"
        shutil.rmtree(state, ignore_errors=True)
        socket = f"{scratch}/agent{host}.sock"
        spawn(host, f"{arguments.bin}/agent --no-legacy --socket {socket} --state-dir {state} {flags}")
    sockets = {host: f"{scratch}/agent{host}.sock" for host, _ in HOSTS}
    for socket in sockets.values():
        for _ in range(100):
            if os.path.exists(socket):
                break
            time.sleep(0.05)
    for host, n in HOSTS:
        framing = "--mtu 1472"
        if is_encrypted:
            framing = f"--mtu 1440 --peer-public-key {public_key(other(host))}"
        sh(
            f"{arguments.tunnels} --socket {sockets[host]} --overlay 10.9.0.{n} 10.9.0.{3 - n} --remote 172.100.1.{3 - n}"
            f" {framing} --count {count}"
        )


def public_key(host):
    return json.loads(sh(f"{arguments.bin}/agent status -o json --socket {scratch}/agent{host}.sock"))["publicKey"]


def mesh_encrypted():
    tunmesh(is_encrypted=True)


def tunmesh_1000():
    tunmesh(1000)


def tunmesh_no_tun_tso():
    tunmesh(flags="--without tun-tso,tun-uso")


def tunmesh_no_udp_gso():
    tunmesh(flags="--without udp-gso")


def tunmesh_no_udp_gro():
    tunmesh(flags="--without udp-gro")


def tunmesh_one_by_one():
    tunmesh(flags="--without tun-tso,tun-uso,udp-gso,udp-gro")


def compiled(name):
    program = f"{scratch}/{name}"
    if not os.path.exists(program):
        sh(f"cc -O2 -pthread {HERE}/{name}.c -o {program}")
    return program


def relay(options):
    """A sound relay in C: real segments, checksums made and verified, trains merged again. The bound."""
    for host, n in HOSTS:
        spawn(host, f"{compiled('relay')} rel0 172.100.1.{3 - n} {options}")
    time.sleep(0.3)
    for host, _ in HOSTS:
        ip(host, "link set rel0 gso_max_segs 44 txqueuelen 4000")
    give_addresses("rel0", 1472)


def relay1():
    relay("threads=1 rb=32 rcv=16")


def relay2():
    relay("threads=2 rb=32 rcv=16")


def limit(threads):
    """A relay in C that moves packets of 64 KiB as they are: no system that is sound can do so."""
    for host, n in HOSTS:
        spawn(host, f"{compiled('limit')} lim0 172.100.1.{3 - n} {threads}")
    time.sleep(0.3)
    for host, _ in HOSTS:
        ip(host, "link set lim0 gso_max_size 64000")
    give_addresses("lim0", 1400)


def limit1():
    limit(0)


def limit2():
    limit(1)


def wireguard(command, env=None):
    keys = {}
    for host in "AB":
        key = sh("wg genkey").strip()
        keys[host] = (key, sh(f"echo {key} | wg pubkey").strip())
        spawn(host, command.format(device="wg" + host), env)
    time.sleep(1)
    for host, n in HOSTS:
        with open(f"{scratch}/key{host}", "w") as file:
            file.write(keys[host][0])
        peer = f"peer {keys[other(host)][1]} allowed-ips 10.9.0.0/24 endpoint 172.100.1.{3 - n}:51820"
        inside(host, f"wg set wg{host} private-key {scratch}/key{host} listen-port 51820 {peer}")
        ip(host, f"addr add 10.9.0.{n}/24 dev wg{host}")
        ip(host, f"link set wg{host} mtu 1420 up")


def wireguard_go():
    wireguard("wireguard-go -f {device}", {"WG_PROCESS_FOREGROUND": "1"})


def boringtun():
    wireguard(CARGO_BIN + "/boringtun-cli -f {device} --disable-drop-privileges", {"WG_SUDO": "1"})


def gotatun():
    wireguard(CARGO_BIN + "/gotatun -f {device} --disable-drop-privileges")


def vpncloud_with(algorithm):
    for host, n in HOSTS:
        spawn(
            host,
            f"{CARGO_BIN}/vpncloud --device vpn0 --type tun --mode router --password x --algorithm {algorithm}"
            f" --listen 3210 --ip 10.9.0.{n}/24 --claim 10.9.0.{n}/32 --no-auto-claim -c 172.100.1.{3 - n}:3210"
            " --no-port-forwarding",
        )
    time.sleep(2)
    give_addresses("vpn0", 1400)


def vpncloud():
    vpncloud_with("AES128")


def vpncloud_plain():
    vpncloud_with("plain")


def nebula():
    place = f"{scratch}/nebula"
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    sh(
        f"cd {place} && nebula-cert ca -name m && nebula-cert sign -name A -ip 10.9.0.1/24"
        " && nebula-cert sign -name B -ip 10.9.0.2/24"
    )
    everyone = "[{port: any, proto: any, host: any}]"
    for host, n in HOSTS:
        config = {
            "pki": f"{{ca: {place}/ca.crt, cert: {place}/{host}.crt, key: {place}/{host}.key}}",
            "static_host_map": f'{{"10.9.0.{3 - n}": ["172.100.1.{3 - n}:4242"]}}',
            "lighthouse": "{am_lighthouse: false, interval: 60}",
            "listen": "{host: 0.0.0.0, port: 4242, batch: 64}",
            "cipher": "aes",
            "tun": "{dev: neb0, mtu: 1400, tx_queue: 1000}",
            "firewall": f"{{outbound: {everyone}, inbound: {everyone}}}",
        }
        with open(f"{place}/{host}.yml", "w") as file:
            file.writelines(f"{key}: {value}\n" for key, value in config.items())
        spawn(host, f"nebula -config {place}/{host}.yml")
    time.sleep(2)


def tinc():
    for host, n in HOSTS:
        place = f"{scratch}/tinc{host}"
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place + "/hosts")
        with open(place + "/tinc.conf", "w") as file:
            file.write(f"Name = {host}\nAddressFamily = ipv4\nInterface = tinc0\nConnectTo = {other(host)}\n")
        with open(place + "/tinc-up", "w") as file:
            file.write(f"#!/bin/sh\nip addr add 10.9.0.{n}/24 dev $INTERFACE; ip link set $INTERFACE mtu 1400 up\n")
        os.chmod(place + "/tinc-up", 0o755)
        with open(place + f"/hosts/{host}", "w") as file:
            file.write(f"Address = 172.100.1.{n}\nSubnet = 10.9.0.{n}/32\nCipher = aes-128-cbc\n")
        sh(f"yes '' | tincd -c {place} -K2048")
    for host in "AB":
        shutil.copy(f"{scratch}/tinc{other(host)}/hosts/{other(host)}", f"{scratch}/tinc{host}/hosts/{other(host)}")
    for host in "AB":
        spawn(host, f"tincd -c {scratch}/tinc{host} -D --pidfile={scratch}/tinc{host}.pid")
    time.sleep(3)


def fastd():
    keys = {}
    for host in "AB":
        secret = sh("fastd --generate-key --machine-readable 2>/dev/null").strip()
        with open(f"{scratch}/fastd{host}.key", "w") as file:
            file.write(f'secret "{secret}";')
        keys[host] = (secret, sh(f"fastd --show-key --machine-readable -c {scratch}/fastd{host}.key").strip())
    for host, n in HOSTS:
        with open(f"{scratch}/fastd{host}.conf", "w") as file:
            file.write(
                f'mode tun; interface "fast0"; method "null@l2tp"; method "salsa2012+umac"; bind 0.0.0.0:10000;\n'
                f'mtu 1400; secret "{keys[host][0]}"; log level info; offload l2tp no;\n'
                f'on up "ip addr add 10.9.0.{n}/24 dev $INTERFACE; ip link set $INTERFACE up";\n'
                f'peer "{other(host)}" {{ key "{keys[other(host)][1]}"; remote 172.100.1.{3 - n}:10000; }}\n'
            )
        spawn(host, f"fastd -c {scratch}/fastd{host}.conf")
    time.sleep(3)


def openvpn_with(options):
    for host, n in HOSTS:
        spawn(
            host,
            f"openvpn --dev ov0 --dev-type tun --proto udp --port 1194 --remote 172.100.1.{3 - n}"
            f" --ifconfig 10.9.0.{n} 10.9.0.{3 - n} --sndbuf 4000000 --rcvbuf 4000000 {options}",
        )
    time.sleep(3)


def openvpn():
    sh(f"openvpn --genkey secret {scratch}/openvpn.key")
    openvpn_with(f"--secret {scratch}/openvpn.key --cipher AES-256-CBC --auth SHA256")


def openvpn_plain():
    openvpn_with("--cipher none --auth none")


def n2n():
    spawn("A", "supernode -l 7654")
    time.sleep(0.5)
    for host, n in HOSTS:
        spawn(host, f"edge -d n2n0 -a 10.9.0.{n} -c m -A1 -l 172.100.1.1:7654 -f -M 1400")
    time.sleep(3)


def socat():
    for host, n in HOSTS:
        remote = f"UDP4-DATAGRAM:172.100.1.{3 - n}:11443,bind=:11443"
        spawn(host, f"socat {remote} TUN:10.9.0.{n}/24,up,iff-no-pi,tun-name=so0")
    time.sleep(1)
    for host, _ in HOSTS:
        ip(host, "link set so0 mtu 1450")


SYSTEMS = {
    "mesh_encrypted": mesh_encrypted,
    **{function.__name__.replace("_", "-"): function for function in [
        tunmesh, tunmesh_1000, tunmesh_no_tun_tso, tunmesh_no_udp_gso, tunmesh_no_udp_gro, tunmesh_one_by_one,
        relay1, relay2, limit1, limit2, veth, vxlan, wireguard_go, boringtun, gotatun, vpncloud, vpncloud_plain, nebula,
        tinc, fastd, openvpn, openvpn_plain, n2n, socat,
    ]},
}  # fmt: skip

# ---- measuring


def stop():
    for daemon in daemons:
        daemon.send_signal(signal.SIGTERM)
    for daemon in daemons:
        try:
            daemon.wait(3)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    daemons.clear()


def iperf(target, *options):
    enter = ["ip", "netns", "exec"]
    server = subprocess.Popen(
        [*enter, NAMESPACE["B"], "iperf3", "-s", "-1", "-J"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(0.3)
    seconds = arguments.seconds
    client = ["timeout", str(seconds + 10), "iperf3", "-c", target, "-t", str(seconds), "-J", *options]
    done = subprocess.run([*enter, NAMESPACE["A"], *client], capture_output=True, text=True)
    try:
        server.wait(3)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    try:
        return json.loads(done.stdout).get("end", {})
    except ValueError:
        return {}


def tcp(target, *options):
    return iperf(target, *options).get("sum_received", {}).get("bits_per_second", 0) / 1e9


def udp(target, length):
    total = iperf(target, "-u", "-b", "0", "-l", str(length)).get("sum", {})
    arrived = 1 - total.get("lost_percent", 100) / 100
    return total.get("bits_per_second", 0) * arrived / 1e9, total.get("packets", 0) * arrived / arguments.seconds / 1e3


def wait_for_ping(target):
    for _ in range(40):
        if "1 received" in inside("A", f"ping -c1 -W1 {target}", check=False):
            return
        time.sleep(0.25)
    raise RuntimeError("no ping is answered")


def processor_time():
    ticks = 0
    for daemon in daemons:
        with open(f"/proc/{daemon.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory():
    total = 0
    for daemon in daemons:
        with open(f"/proc/{daemon.pid}/status") as file:
            total += int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))
    return total / 1024


def measure(system):
    make_hosts()
    try:
        target = SYSTEMS[system]() or "10.9.0.2"
        wait_for_ping(target)
        before = processor_time()
        figures = {"tcp1": tcp(target)}
        figures["cpu"] = (processor_time() - before) / max(figures["tcp1"] * arguments.seconds, 1e-9)
        figures["tcp4"] = tcp(target, "-P", "4")
        figures["rev"] = tcp(target, "-R")
        figures["udp"], _ = udp(target, 1200)
        _, figures["kpps"] = udp(target, 64)
        pings = re.search(r"= [\d.]+/([\d.]+)/", inside("A", f"ping -q -c 2000 -i 0.001 {target}", check=False))
        figures["rtt"] = float(pings.group(1)) * 1000 if pings else float("nan")
        figures["rss"] = memory()
        return figures
    finally:
        stop()


def table(results):
    medians = {}
    for system, rounds in results.items():
        figures = [figures for figures in rounds if "error" not in figures]
        if figures:
            medians[system] = {column: statistics.median(f[column] for f in figures) for column in COLUMNS}
    width = max(len(system) for system in results) + len(" / gotatun") + 1
    lines = ["".ljust(width) + "".join(column.rjust(8) for column in COLUMNS)]
    for system, rounds in results.items():
        if system in medians:
            cells = "".join(f"{medians[system][column]:8.3g}" for column in COLUMNS)
        else:
            cells = "  " + rounds[0]["error"].strip().splitlines()[-1]
        lines.append(system.ljust(width) + cells)
    for name, begin, others in (("relay", "tunmesh", ("relay1", "relay2")), ("gotatun", "mesh_encrypted", ("gotatun",))):
        bounds = [medians[system] for system in others if system in medians]
        for system in (system for system in medians if bounds and system.startswith(begin)):
            ratios = []
            for column in COLUMNS:
                better = (min if column in ("rtt", "cpu", "rss") else max)(bound[column] for bound in bounds)
                ratios.append(f"{medians[system][column] / better:8.2f}" if better else " " * 8)
            lines.append(f"{system} / {name}".ljust(width) + "".join(ratios))
    return "\n".join(lines)


def main():
    global arguments, scratch
    parser = argparse.ArgumentParser(
        prog="scripts/bench data-plane", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["tunmesh", "relay1", "relay2", "vxlan"]
    systems = f"{', '.join(SYSTEMS)}; default {' '.join(default)}"
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=systems)
    parser.add_argument("--rounds", type=int, default=8, help="default 8")
    parser.add_argument("--seconds", type=int, default=3, help="of each figure, default 3")
    parser.add_argument("--hard", action="store_true", help="segments are real on the cable, as on most networks")
    parser.add_argument("--bin", default=f"{ROOT}/target/release", help=argparse.SUPPRESS)
    parser.add_argument("--tunnels", help=argparse.SUPPRESS)
    parser.add_argument("--initiations", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    systems = arguments.systems or default
    unknown = [system for system in systems if system not in SYSTEMS]
    if unknown:
        parser.error(f"{unknown[0]} is no system that is known here; choose among {', '.join(SYSTEMS)}")
    results = {system: [] for system in systems}
    with tempfile.TemporaryDirectory(prefix="tunmesh-bench-") as scratch:
        try:
            for number in range(arguments.rounds):
                for system in systems:
                    sys.stderr.write(f"\r\033[Kround {number + 1} of {arguments.rounds}: {system}")
                    sys.stderr.flush()
                    try:
                        results[system].append(measure(system))
                    except (RuntimeError, OSError) as error:
                        results[system].append({"error": str(error)})
        finally:
            sys.stderr.write("\r\033[K")
            stop()
            remove_hosts()
    print(table(results))
    failed = [system for system, rounds in results.items() if any("error" in figures for figures in rounds)]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
