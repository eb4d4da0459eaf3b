//! Who does the work. While little goes on it is one thread: then an answer leaves through the thread that took in the
//! question, and nobody else is woken. Under load readers receive: one waits in a socket, where the kernel wakes it once
//! for many datagrams, and a peer that sends much gets a socket and a reader of its own.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::egress::Egress;
use super::handshakes::Handshakes;
use super::ingress::Ingress;
use super::links::Links;
use super::table::Table;
use super::{DatapathEvent, Shared};
use crate::agent::os::clock;
use crate::agent::os::epoll::Epoll;
use crate::agent::os::tun::TunDevice;
use crate::agent::os::udp::receive::Reading;

/// The waker's number in the epoll set; devices have theirs, from 1.
const WAKER: u64 = 0;
/// The ports' numbers count down from here.
const PORTS: u64 = u64::MAX;

/// How long a peer's socket waits while its reader waits for a port.
const MOMENT: Duration = Duration::from_millis(1);

/// How often the sessions of encrypted tunnels are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often one of the peers that this host has not met yet is sent an initiation: 500 a second.
const GREETING: Duration = Duration::from_millis(2);

/// How long garbage waits: a full socket has that of far longer.
const PAUSE: Duration = Duration::from_micros(500);

/// The data port in one address family.
struct Port {
    is_v4: bool,
    /// Absent: a reader has it.
    ingress: Option<Box<Ingress>>,
}

/// What a reader gives back.
enum Returned {
    /// A port, by its number.
    Port(usize, Box<Ingress>),
    /// Itself, by its number.
    Reader(usize),
    /// Nothing yet: for a moment it needs a port.
    Wish(Wish),
}

/// A reader wants to have a port, both by their numbers.
#[derive(Clone, Copy)]
struct Wish {
    reader: usize,
    port: usize,
}

/// When something is due for encrypted tunnels, as times since boot.
#[derive(Default)]
struct Sessions {
    ticked_at: Duration,
    greeted_at: Duration,
    /// The position of the peer that is greeted next, and of all there are behind it.
    next: usize,
}

/// The thread that reads the devices, and the ports where no reader does.
pub(super) struct Main {
    shared: Arc<Shared>,
    epoll: Epoll,
    watched: BTreeMap<u64, Arc<TunDevice>>,
    egress: Egress,
    handshakes: Handshakes,
    sessions: Sessions,
    links: Links,
    ports: Vec<Port>,
    readers: Vec<Sender<(usize, Box<Ingress>)>>,
    /// The readers that have nothing to do.
    free: Vec<usize>,
    /// What readers wait for.
    wishes: Vec<Wish>,
    returned: Receiver<Returned>,
    give_back: Sender<Returned>,
}

/// A thread that receives while there is much to receive.
pub(super) struct Reader {
    shared: Arc<Shared>,
    number: usize,
    lent: Receiver<(usize, Box<Ingress>)>,
    give_back: Sender<Returned>,
}

impl Main {
    /// # Errors
    /// What the kernel says where descriptors cannot be watched.
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let (give_back, returned) = channel();
        let egress = Egress::new(Arc::clone(&shared));
        let handshakes = Handshakes::new(Arc::clone(&shared));
        let mut main = Self {
            links: Links::new(Arc::clone(&shared)),
            shared,
            epoll: Epoll::new()?,
            watched: BTreeMap::new(),
            egress,
            handshakes,
            sessions: Sessions::default(),
            ports: Vec::new(),
            readers: Vec::new(),
            free: Vec::new(),
            wishes: Vec::new(),
            returned,
            give_back,
        };
        main.epoll.add(&main.shared.waker, WAKER)?;
        for is_v4 in [true, false] {
            if main.shared.sockets.of_family(is_v4).is_some() {
                let ingress = Some(Box::new(Ingress::of_port(Arc::clone(&main.shared), is_v4)));
                main.ports.push(Port { is_v4, ingress });
                main.watch_port(main.ports.len() - 1)?;
            }
        }
        Ok(main)
    }

    /// A reader, which is to be driven by a thread of its own.
    pub(super) fn reader(&mut self) -> Reader {
        let (lend, lent) = channel();
        let number = self.readers.len();
        self.readers.push(lend);
        self.free.push(number);
        Reader { shared: Arc::clone(&self.shared), number, lent, give_back: self.give_back.clone() }
    }

    /// Works until the data path is stopped.
    ///
    /// # Errors
    /// What the kernel says where descriptors cannot be watched, or a port cannot be read any more.
    pub(super) fn drive(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut table = Arc::new(Table::default());
        while !self.shared.stop.load(Ordering::Acquire) {
            let current = self.shared.table.load_full();
            if !Arc::ptr_eq(&current, &table) {
                self.watch_devices(&current)?;
                self.links.leave(&table, &current, clock::since_boot());
                self.shared.links_due.set(Duration::ZERO);
                table = current;
                self.sessions.next = 0;
            }
            let now = clock::since_boot();
            let dues = [self.keep_sessions(&table, now), self.links.keep(&table, now)];
            self.epoll.wait(&mut ready, dues.into_iter().flatten().min())?;
            let now = clock::since_boot();
            for id in &ready {
                if *id == WAKER {
                    self.shared.waker.reset();
                    self.take_back()?;
                } else if let Some(position) = table.position(*id) {
                    self.drain(&table, position, now);
                } else if let Ok(port) = usize::try_from(PORTS - *id) {
                    self.receive(port, now)?;
                }
            }
        }
        self.links.leave(&table, &Table::default(), clock::since_boot());
        Ok(())
    }

    /// Does what is due for encrypted tunnels; `now` is time since boot. Returns for how long nothing is.
    fn keep_sessions(&mut self, table: &Table, now: Duration) -> Option<Duration> {
        if table.own_keys().is_empty() {
            return None;
        }
        let due = &mut self.sessions;
        if now >= due.ticked_at + TICK {
            due.ticked_at = now;
            self.handshakes.tick(table, now);
        }
        let mut next = due.ticked_at + TICK;
        while let Some((tunnel, peer)) = table.peer_at(due.next) {
            if now < due.greeted_at + GREETING {
                next = next.min(due.greeted_at + GREETING);
                break;
            }
            due.next += 1;
            if let Some(initiation) = peer.sessions().greet() {
                due.greeted_at = now;
                self.handshakes.ask(tunnel, &initiation);
            }
        }
        Some(next.saturating_sub(now))
    }

    fn drain(&mut self, table: &Table, position: usize, now: Duration) {
        if let Err(error) = self.egress.drain(table, position, now)
            && let Some(device) = table.devices().get(position)
        {
            // Level-triggered, a dead descriptor would be reported for ever.
            tracing::debug!(%error, "a device cannot be read any more");
            let _ = self.epoll.remove(&*device.open.tun);
            let _ = self.shared.events.try_send(DatapathEvent::DeviceGone);
        }
    }

    /// Receives what waits at a port, and lends it where there is much to do.
    fn receive(&mut self, number: usize, now: Duration) -> io::Result<()> {
        let is_busy = self.shared.load.is_high(now);
        if let Some(ingress) = self.ports.get_mut(number).and_then(|port| port.ingress.as_mut()) {
            ingress.pass(if is_busy { Reading::Many } else { Reading::Few })?;
        }
        while is_busy && self.has(number) {
            let Some(reader) = self.free.pop() else { break };
            self.lend(Wish { reader, port: number })?;
        }
        Ok(())
    }

    /// Whether a port is lent to nobody.
    fn has(&self, number: usize) -> bool {
        self.ports.get(number).is_some_and(|port| port.ingress.is_some())
    }

    /// Lends a port; where the reader's thread has ended, and said so, it stays here.
    fn lend(&mut self, wish: Wish) -> io::Result<()> {
        let Some(reader) = self.readers.get(wish.reader) else { return Ok(()) };
        let Some(port) = self.ports.get_mut(wish.port) else { return Ok(()) };
        let Some(ingress) = port.ingress.take() else { return Ok(()) };
        match reader.send((wish.port, ingress)) {
            Ok(()) => {
                let socket = self.shared.sockets.of_family(port.is_v4);
                socket.map_or(Ok(()), |socket| self.epoll.remove(socket))
            }
            Err(SendError((_, ingress))) => {
                port.ingress = Some(ingress);
                Ok(())
            }
        }
    }

    /// Takes what readers have given back, and lends what they wait for.
    fn take_back(&mut self) -> io::Result<()> {
        while let Ok(returned) = self.returned.try_recv() {
            match returned {
                Returned::Reader(number) => self.free.push(number),
                Returned::Wish(wish) => self.wishes.push(wish),
                Returned::Port(number, ingress) => {
                    if let Some(port) = self.ports.get_mut(number) {
                        port.ingress = Some(ingress);
                    }
                    self.watch_port(number)?;
                }
            }
        }
        for wish in std::mem::take(&mut self.wishes) {
            if self.has(wish.port) {
                self.lend(wish)?;
            } else {
                self.wishes.push(wish);
            }
        }
        Ok(())
    }

    fn watch_port(&self, number: usize) -> io::Result<()> {
        let port = self.ports.get(number);
        match port.and_then(|port| self.shared.sockets.of_family(port.is_v4)) {
            Some(socket) => self.epoll.add(socket, PORTS - number as u64),
            None => Ok(()),
        }
    }

    /// Watches the devices of the table and no others.
    fn watch_devices(&mut self, table: &Table) -> io::Result<()> {
        let wanted: BTreeMap<u64, &Arc<TunDevice>> =
            table.devices().iter().map(|device| (device.open.id, &device.open.tun)).collect();
        let epoll = &self.epoll;
        self.watched.retain(|id, tun| {
            let keep = wanted.contains_key(id);
            if !keep {
                // A device that failed is out of the set already.
                let _ = epoll.remove(&**tun);
            }
            keep
        });
        for (id, tun) in wanted {
            if !self.watched.contains_key(&id) {
                self.epoll.add(&**tun, id)?;
                self.watched.insert(id, Arc::clone(tun));
            }
        }
        Ok(())
    }
}

impl Reader {
    /// Works until the data path is stopped, or has no use for it any more.
    ///
    /// # Errors
    /// Where a socket cannot be read any more.
    pub(super) fn drive(&mut self) -> io::Result<()> {
        while let Ok((number, mut port)) = self.lent.recv() {
            let loud = self.hear_all(&mut port, number)?;
            self.give_back(Returned::Port(number, port));
            if let Some(peer) = loud {
                self.hear_one(peer, number)?;
            }
            self.give_back(Returned::Reader(self.number));
        }
        Ok(())
    }

    fn give_back(&self, what: Returned) {
        // Where nobody takes it the data path has ended.
        let _ = self.give_back.send(what);
        self.shared.waker.wake();
    }

    /// Receives at a port while load is high and nobody else needs it; less if a peer gets a socket of its own, which is
    /// returned.
    fn hear_all(&self, port: &mut Ingress, number: usize) -> io::Result<Option<Ingress>> {
        port.forget_who_sends();
        let wished = || self.wished(number).is_some_and(|wished| wished.load(Ordering::Relaxed) > 0);
        while !self.is_stopped() && self.shared.load.is_high(clock::since_boot()) && !wished() {
            port.pass(Reading::Wait)?;
            if !port.take_has_packet() {
                // Garbage alone: it is not worth to be woken for each piece of it.
                thread::sleep(PAUSE);
                port.empty()?;
            }
            if let Some(loud) = port.loud_peer() {
                match Ingress::of_peer(Arc::clone(&self.shared), loud) {
                    Ok(peer) => {
                        // What came first goes first.
                        port.empty()?;
                        return Ok(Some(peer));
                    }
                    Err(error) => tracing::debug!(peer = %loud.0, %error, "no socket for a peer alone"),
                }
            }
        }
        Ok(None)
    }

    /// Receives at the socket of a peer while it sends much, and then leaves it to the port of this number.
    fn hear_one(&self, mut peer: Ingress, port: usize) -> io::Result<()> {
        // What others may have sent while it was being opened is among what waits.
        if peer.empty()? {
            peer.settle();
        }
        while !self.is_stopped() {
            peer.pass(Reading::Wait)?;
            if peer.is_idle() {
                break;
            }
        }
        // While nobody else reads the port nothing that comes there overtakes what came before it.
        let count = |change: fn(&AtomicUsize)| self.wished(port).map(change);
        count(|wished| _ = wished.fetch_add(1, Ordering::Relaxed));
        self.give_back(Returned::Wish(Wish { reader: self.number, port }));
        let lent = loop {
            peer.empty()?;
            match self.lent.recv_timeout(MOMENT) {
                Ok(lent) => break Some(lent),
                Err(RecvTimeoutError::Timeout) if !self.is_stopped() => {}
                Err(_) => break None,
            }
        };
        count(|wished| _ = wished.fetch_sub(1, Ordering::Relaxed));
        peer.empty()?;
        peer.leave();
        peer.empty()?;
        if let Some((number, port)) = lent {
            self.give_back(Returned::Port(number, port));
        }
        Ok(())
    }

    fn wished(&self, port: usize) -> Option<&AtomicUsize> {
        self.shared.wished.get(port)
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }
}
