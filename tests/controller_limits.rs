//! What one bad host may cost a controller: nobody else anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "connections are opened in real time")]

mod lab;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lab::{Agent, Controller, Lab, SOON, UNDERLAYS, wait_until};

const CONTROLLER: &str = "172.100.1.254:7443";
/// How many files the controller may have open, and how many connections the bad host holds.
const FILES: usize = 400;
const HELD: usize = 600;

/// Ends the bad host, also where the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_host_that_opens_all_connections_that_it_can_keeps_no_other_out() {
    let lab = Lab::new();
    let router = lab.host("router");
    let (bad, good) = (lab.host("bad"), lab.host("good"));
    lab.segment(&router, "172.100.1.254/24", &[(&bad, "172.100.1.1/24"), (&good, "172.100.1.2/24")]);
    let limited = format!("ulimit -n {FILES} && exec \"$0\" \"$@\"");
    let command = ["sh", "-c", &limited, lab::CONTROLLER, "serve", "--insecure", UNDERLAYS];
    let controller = Controller::start_by(&router, &command);
    let (stop, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            bad.enter(|| {
                let address: SocketAddr = CONTROLLER.parse().unwrap();
                let mut held = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                        held.push_back(stream);
                        opened.fetch_add(1, Ordering::Relaxed);
                    }
                    if held.len() > HELD {
                        held.pop_front();
                    }
                }
            });
        });
        let _stop = Stop(&stop);
        wait_until(SOON, "the bad host has opened what it can", || opened.load(Ordering::Relaxed) > HELD);
        let _agent = Agent::join(&good, CONTROLLER, "good", &[]);
        wait_until(SOON, "the other is let in", || controller.node("good")["health"] == "LIVE");
        // And stays.
        wait_until(SOON, "more are opened", || opened.load(Ordering::Relaxed) > 4 * HELD);
        assert_eq!(controller.node("good")["health"], "LIVE");
    });
    assert!(controller.log().contains("no more are left for all others"), "{}", controller.log());
}
