//! A TCP stream that goes on until it is dropped.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::{Host, SOON, wait_until};

/// A stream from one host to another, as fast as it goes.
pub struct Flow {
    received: Arc<AtomicU64>,
    ends: [TcpStream; 2],
    threads: Vec<thread::JoinHandle<()>>,
}

impl Flow {
    /// Starts a stream, which carries bytes when this returns.
    pub fn start(from: &Host, to: &Host, to_address: &str) -> Self {
        let address: IpAddr = to_address.parse().expect("an IP address");
        let listener = to.enter(|| TcpListener::bind((address, 0))).expect("a port to listen at");
        let target = listener.local_addr().expect("it is bound");
        let sender = from.enter(|| TcpStream::connect_timeout(&target, SOON)).expect("it is connected");
        let (receiver, _) = listener.accept().expect("it is accepted");
        let ends = [sender.try_clone().unwrap(), receiver.try_clone().unwrap()];
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let threads = vec![
            thread::spawn(move || {
                let (mut sender, bytes) = (sender, vec![7; 1 << 16]);
                while sender.write_all(&bytes).is_ok() {}
            }),
            thread::spawn(move || {
                let (mut receiver, mut buffer) = (receiver, vec![0; 1 << 16]);
                while let Ok(length @ 1..) = receiver.read(&mut buffer) {
                    count.fetch_add(length as u64, Ordering::Relaxed);
                }
            }),
        ];
        let flow = Self { received, ends, threads };
        wait_until(SOON, "the stream carries bytes", || flow.received() > 0);
        flow
    }

    /// How many bytes have arrived.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.ends.iter().for_each(|end| _ = end.shutdown(Shutdown::Both));
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}
