"""What a host's kernel does for tunmesh, as a table: see scripts/lab.

It reads what scripts/lab has put into a directory: status.json (`agent status -o json`), check.json (`agent check -o
json`), lacks (a line for each thing that the laboratory needs and that is not there: what, a tab, what to change) and,
where cases were run, cases.log (the output of the tests). The exit code is 1 where something fails.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

# What is done instead, and what has it, by offload.
OFFLOADS = {
    "tun-tso": ("TCP packets cross the device one by one", "Linux 2.6.27 or later"),
    "tun-uso": ("UDP packets cross the device one by one", "Linux 6.2 or later"),
    "udp-gso": ("datagrams are sent one by one", "Linux 4.18 or later"),
    "udp-gro": ("datagrams are received one by one", "Linux 5.0 or later"),
}
WORKS, FALLS_BACK, FAILS, UNSET = "works", "falls back", "FAILS", "to be set"


def titles():
    """The cases, by number."""
    lines = Path(__file__).with_name("main.rs").read_text().splitlines()
    found = (re.match(r"//! - (\d\d) (.+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def read(directory, name):
    path = directory / name
    return path.read_text() if path.exists() else None


def capabilities(directory):
    for line in (read(directory, "lacks") or "").splitlines():
        what, change = line.split("\t")
        yield what, FAILS, change
    for finding in json.loads(read(directory, "check.json")):
        is_needed = finding["subject"] == "devices"
        state = WORKS if finding["severity"] == "ok" else FAILS if is_needed else UNSET
        yield finding["subject"], state, ": ".join(filter(None, [finding["found"], finding["remedy"]]))
    status = read(directory, "status.json")
    states = {state["name"]: state for state in json.loads(status)["offloads"]} if status else {}
    for offload, (instead, change) in OFFLOADS.items():
        state = states.get(offload)
        if not state:
            yield offload, FAILS, "the agent does not run here"
        elif state.get("inUse"):
            yield offload, WORKS, ""
        else:
            yield offload, FALLS_BACK, f"{instead}: {state['reason']}; {change}"


def cases(log, wanted):
    """A row a case. A case of which no test ran has failed: nothing is known of it."""
    results = {}
    for number, result in re.findall(r"^test \S*case_(\d\d)_\S* \.\.\. (ok|FAILED|ignored)", log, re.M):
        results.setdefault(number, []).append(result)
    for number, title in titles().items():
        if number not in wanted:
            continue
        ran = [result for result in results.get(number, []) if result != "ignored"]
        failed = ran.count("FAILED")
        if not ran:
            yield f"{number} {title}", FAILS, "no test of it ran to its end"
        elif failed:
            yield f"{number} {title}", FAILS, f"{failed} of {len(ran)} tests: {reason(log, number)}"
        else:
            yield f"{number} {title}", WORKS, ""


def reason(log, number):
    """What the first test of a case that failed said."""
    said = re.search(rf"^---- \S*case_{number}_\S* stdout ----\n\s*thread .*? panicked at .*?:\n(.+)", log, re.M)
    return said[1].strip()[:160] if said else "see the log"


def main(directory, *wanted):
    directory = Path(directory)
    log = read(directory, "cases.log")
    rows = [*capabilities(directory), *(cases(log, wanted) if log is not None else [])]
    lines = "\n".join("\t".join(row).rstrip("\t") for row in [("what", "state", "what to change"), *rows])
    subprocess.run(["column", "-t", "-s", "\t"], input=lines + "\n", text=True, check=True)
    failed = sum(state == FAILS for _, state, _ in rows)
    print(f"\n{failed} of {len(rows)} fail" if failed else "\nnothing fails")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
